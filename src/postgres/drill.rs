//! Drills: a dump is really restored on a server that is there for it, checked, dropped, and the result recorded.

use std::collections::BTreeSet;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::fresh::{Mark, aside, discard, into_new, marked};
use super::{Clients, Connection, PostgresError, RestoreOptions, Source, Stop};
use crate::store::{PutMode, Store};

/// Where results are.
const FOLDER: &str = "lifeboat/drills";
/// Results read to find the proven dumps, the newest: pruning keeps the newest proven one only.
const READ: usize = 10;
/// Results that are kept: two months of daily drills.
const KEEP: usize = 60;
/// Begins the name of every database that a drill fills.
const NAME: &str = "lifeboat_drill_";
/// A database of a drill without sessions that is older than this was left behind by one that was killed.
const LEFT_AFTER: SignedDuration = SignedDuration::from_hours(1);

/// What a drill found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drill {
    /// When it began.
    pub time: Timestamp,
    /// The dump.
    pub dump: String,
    /// When that began.
    pub dump_time: Timestamp,
    /// Tables counted.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// How long the restore took: what a restore in place takes.
    pub seconds: f64,
    /// What was wrong; empty if nothing.
    pub findings: Vec<String>,
}

impl Drill {
    /// What was wrong, in words.
    pub fn failure(&self) -> Option<String> {
        (!self.findings.is_empty()).then(|| self.findings.join("; "))
    }

    /// How old the dump was when the drill began.
    pub fn data_age(&self) -> SignedDuration {
        self.time.duration_since(self.dump_time)
    }
}

fn name_at(time: Timestamp) -> String {
    format!("{NAME}{}", time.strftime("%Y%m%dt%H%M%Sz"))
}

/// Restores into a database of its own on `server`, checks it, drops it and records the result, also a bad one. Blocks.
///
/// # Errors
/// A store or a server that is away, or `stop`: that says nothing about the dump, and nothing is recorded.
pub fn drill(
    source: &Source,
    server: &Connection,
    clients: &Clients,
    now: Timestamp,
    stop: &Stop,
) -> Result<Drill, PostgresError> {
    let begun = Instant::now();
    let name = name_at(now);
    let options = RestoreOptions {
        // A scratch server need not know the roles.
        no_owner: true,
        no_privileges: true,
        stop: stop.clone(),
        ..RestoreOptions::default()
    };
    let beside = aside(clients, server, &name);
    sweep_left(clients, &beside, now)?;
    let result = into_new(source, server, clients, &name, &options);
    let mut drill = Drill {
        time: now,
        dump: source.manifest.id.clone(),
        dump_time: source.manifest.began,
        tables: 0,
        rows: 0,
        seconds: begun.elapsed().as_secs_f64(),
        findings: Vec::new(),
    };
    match &result {
        Ok(checked) => {
            (drill.tables, drill.rows) = (checked.tables, checked.rows);
            discard(clients, &beside, &name);
        }
        Err(error) if !stop.is_stopped() && is_verdict(error, clients, &beside) => {
            drill.findings.push(error.to_string());
        }
        Err(_) => return result.map(|_| drill),
    }
    source.runtime.block_on(record(&source.store, &drill))?;
    Ok(drill)
}

/// Whether an error is one of the dump: a server that still answers is not away.
fn is_verdict(error: &PostgresError, clients: &Clients, beside: &Connection) -> bool {
    match error {
        PostgresError::Damaged { .. } => true,
        PostgresError::Failed { program, .. } => {
            *program == "pg_restore" && clients.sql(beside, "SELECT 1;", &[]).is_ok()
        }
        _ => false,
    }
}

/// Drops what killed drills left behind.
fn sweep_left(clients: &Clients, beside: &Connection, now: Timestamp) -> Result<(), PostgresError> {
    let limit = name_at(now.saturating_sub(LEFT_AFTER).unwrap_or(now));
    for (name, mark, sessions) in marked(clients, beside)? {
        let left = matches!(&mark, Mark::Unfinished { of } if of.starts_with(NAME));
        if left && sessions == 0 && name < limit {
            discard(clients, beside, &name);
        }
    }
    Ok(())
}

async fn record(store: &Store, drill: &Drill) -> Result<(), PostgresError> {
    let text = serde_json::to_vec_pretty(drill)
        .map_err(|e| PostgresError::Io("recording the drill", e.into()))?;
    let time = drill.time.strftime("%Y%m%dT%H%M%S.%3fZ");
    let key = format!("{FOLDER}/{time}.json");
    store
        .put(&key, text.into(), PutMode::Overwrite, None)
        .await?;
    let keys = keys(store).await?;
    for key in &keys[..keys.len().saturating_sub(KEEP)] {
        store.delete(key).await?;
    }
    Ok(())
}

/// Keys of all results, oldest first.
async fn keys(store: &Store) -> Result<Vec<String>, PostgresError> {
    let objects = store.list(FOLDER).await?;
    let mut keys: Vec<String> = objects.into_iter().map(|o| o.key).collect();
    keys.sort_unstable();
    Ok(keys)
}

/// The newest results, newest first; what cannot be read is left out.
///
/// # Errors
/// The store's.
pub async fn drills(store: &Store, most: usize) -> Result<Vec<Drill>, PostgresError> {
    let mut found = Vec::new();
    for key in keys(store).await?.iter().rev().take(most) {
        match store.get(key).await {
            Ok(bytes) => found.extend(serde_json::from_slice(&bytes).ok()),
            // Deleted since the listing.
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(found)
}

/// Ids of dumps that drills have restored.
///
/// # Errors
/// The store's.
pub(super) async fn proven(store: &Store) -> Result<BTreeSet<String>, PostgresError> {
    // What cannot be read proves nothing.
    let good = drills(store, READ).await?.into_iter();
    Ok(good
        .filter(|d| d.findings.is_empty())
        .map(|d| d.dump)
        .collect())
}
