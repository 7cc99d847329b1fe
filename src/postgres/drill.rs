//! Drills: a dump is really restored on a server that is there for it, checked, dropped, and the result recorded.

use std::collections::BTreeSet;
use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::fresh::{aside, discard, into_new};
use super::{Clients, Connection, PostgresError, RestoreOptions, Source};
use crate::store::{PutMode, Store};

/// Where results are.
const FOLDER: &str = "lifeboat/drills";
/// Results read to find the proven dumps, the newest: pruning keeps the newest proven one only.
const READ: usize = 10;

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

/// Restores into a database of its own on `server`, checks it, drops it and records the result. Blocks.
///
/// # Errors
/// [`PostgresError::Damaged`] after recording it, and the rest.
pub fn drill(
    source: &Source,
    server: &Connection,
    clients: &Clients,
    now: Timestamp,
) -> Result<Drill, PostgresError> {
    let begun = Instant::now();
    let name = format!("lifeboat_drill_{}", now.strftime("%Y%m%dt%H%M%Sz"));
    let options = RestoreOptions {
        // A scratch server need not know the roles.
        no_owner: true,
        no_privileges: true,
        ..RestoreOptions::default()
    };
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
            discard(clients, &aside(clients, server, &name), &name);
        }
        Err(error) => drill.findings.push(error.to_string()),
    }
    // A store or a server that is away says nothing about the dump.
    if result.is_ok() || matches!(result, Err(PostgresError::Damaged { .. })) {
        let text = serde_json::to_vec_pretty(&drill)
            .map_err(|e| PostgresError::Io("recording the drill", e.into()))?;
        let key = format!("{FOLDER}/{}.json", now.strftime("%Y%m%dT%H%M%S.%3fZ"));
        let put = source
            .store
            .put(&key, text.into(), PutMode::Overwrite, None);
        source.runtime.block_on(put)?;
    }
    result.map(|_| drill)
}

/// Ids of dumps that drills have restored.
///
/// # Errors
/// The store's.
pub(super) async fn proven(store: &Store) -> Result<BTreeSet<String>, PostgresError> {
    let mut found = BTreeSet::new();
    for object in store.list(FOLDER).await?.into_iter().rev().take(READ) {
        let bytes = store.get(&object.key).await?;
        // What cannot be read proves nothing.
        if let Ok(drill) = serde_json::from_slice::<Drill>(&bytes)
            && drill.findings.is_empty()
        {
            found.insert(drill.dump);
        }
    }
    Ok(found)
}
