//! Drills: a dump is really restored on a server that is there for it, checked, dropped, and the result recorded.

use std::collections::BTreeSet;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::fresh::{Mark, aside, discard, into_new, marked};
use super::manifest::ids;
use super::{Clients, Connection, PostgresError, RestoreOptions, Source, Stop};
use crate::drills;
use crate::replica::layout::DRILLS_PREFIX;
use crate::store::{PutMode, Store, StoreError};

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
    let key = format!("{DRILLS_PREFIX}/{time}.json");
    store
        .put(&key, text.into(), PutMode::Overwrite, None)
        .await?;
    let dumps = async || Ok::<_, StoreError>(ids(store).await?);
    Ok(drills::sweep(store, proves, dumps).await?)
}

/// The dump that a result proves.
fn proves(record: &[u8]) -> Option<String> {
    let drill: Drill = serde_json::from_slice(record).ok()?;
    drill.findings.is_empty().then_some(drill.dump)
}

/// The newest results, newest first; what cannot be read is left out.
///
/// # Errors
/// The store's.
pub async fn drills(store: &Store, most: usize) -> Result<Vec<Drill>, PostgresError> {
    let mut found = Vec::new();
    for key in drills::keys(store).await?.iter().rev().take(most) {
        match store.get(key).await {
            Ok(bytes) => found.extend(serde_json::from_slice(&bytes).ok()),
            // Deleted since the listing.
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(found)
}

/// Id of the newest of these dumps that a drill has restored.
///
/// # Errors
/// The store's.
pub(super) async fn proven(
    store: &Store,
    dumps: &BTreeSet<&str>,
) -> Result<Option<String>, PostgresError> {
    Ok(drills::newest(store, proves, |id| dumps.contains(id)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreSpec;

    async fn put(store: &Store, seconds: i64, dump: &str, finding: Option<&str>) {
        let drill = Drill {
            time: Timestamp::from_second(seconds).unwrap(),
            dump: dump.into(),
            dump_time: Timestamp::UNIX_EPOCH,
            tables: 1,
            rows: 1,
            seconds: 1.0,
            findings: finding.into_iter().map(str::to_owned).collect(),
        };
        record(store, &drill).await.unwrap();
    }

    #[tokio::test]
    async fn the_dump_that_a_drill_proved_is_found_behind_two_months_of_failures() {
        let spec = StoreSpec::from_text("memory://").unwrap();
        let store = Store::open(&spec).await.unwrap();
        for dump in ["older", "good"] {
            let key = format!("dumps/{dump}/manifest.json");
            let body = bytes::Bytes::from_static(b"{}");
            store.put(&key, body, PutMode::Create, None).await.unwrap();
        }
        put(&store, 1, "older", None).await;
        put(&store, 2, "good", None).await;
        put(&store, 3, "deleted since", None).await;
        for second in 4..70 {
            put(&store, second, "bad", Some("damaged")).await;
        }
        let whole = BTreeSet::from(["older", "good", "bad"]);
        let found = proven(&store, &whole).await.unwrap();
        assert_eq!(found.as_deref(), Some("good"));
        assert_eq!(drills(&store, 100).await.unwrap().len(), 62);
        // One that is not whole any more proves nothing.
        put(&store, 70, "bad", None).await;
        put(&store, 71, "good", None).await;
        let whole = BTreeSet::from(["older", "bad"]);
        let found = proven(&store, &whole).await.unwrap();
        assert_eq!(found.as_deref(), Some("bad"));
    }
}
