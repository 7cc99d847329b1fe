//! What a drill found, kept beside the replica.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::replica::layout::{DRILLS_PREFIX, drill_key};
use crate::store::{PutMode, Store, StoreError};
use crate::types::{Millis, Txid};

/// Records that are kept: two months of daily drills.
const KEEP: usize = 60;

/// One check of what was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// `restore`, `checksum`, `integrity`, `assert`.
    pub name: String,
    /// Passed.
    pub ok: bool,
    /// What was asked or found.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// One drill of a SQLite target in one store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drill {
    /// Format of this object.
    pub format: u32,
    /// Name of the target.
    pub target: String,
    /// The store, without secrets.
    pub store: String,
    /// When it began, RFC 3339 in UTC.
    pub at: String,
    /// Every check passed.
    pub ok: bool,
    /// The point: 16 hexadecimal digits; `None` if nothing was restored, and for Litestream 0.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txid: Option<String>,
    /// Time of the point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<String>,
    /// Age of the point when the drill began, in seconds.
    pub data_age_seconds: f64,
    /// How long the restore took: fetching, writing, checksum.
    pub restore_seconds: f64,
    /// How long everything took.
    pub seconds: f64,
    /// Bytes of the restored database.
    pub bytes: u64,
    /// Each check.
    pub checks: Vec<Check>,
    /// What a person should look at although the copy is right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Rows by table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rows: BTreeMap<String, u64>,
    /// Who did it.
    pub instance: String,
    /// Lifeboat's version.
    pub version: String,
}

impl Drill {
    /// When it began; the epoch if the record is damaged.
    pub fn at(&self) -> Millis {
        let parsed: Result<jiff::Timestamp, _> = self.at.parse();
        Millis(parsed.map_or(0, jiff::Timestamp::as_millisecond))
    }

    /// The first check that failed, in words.
    pub fn failure(&self) -> Option<String> {
        let failed = self.checks.iter().find(|c| !c.ok)?;
        Some(format!("{}: {}", failed.name, failed.detail))
    }

    /// Writes the record, and deletes the oldest ones beyond a bound.
    pub(super) async fn write(&self, store: &Store) -> Result<(), StoreError> {
        let body = serde_json::to_vec_pretty(self).unwrap_or_default();
        // Two drills within a millisecond: the later one's record stays.
        store
            .put(&drill_key(self.at()), body.into(), PutMode::Overwrite, None)
            .await?;
        let keys = keys(store).await?;
        let surplus = keys.len().saturating_sub(KEEP);
        for key in &keys[..surplus] {
            store.delete(key).await?;
        }
        Ok(())
    }
}

/// Keys of all records, oldest first.
async fn keys(store: &Store) -> Result<Vec<String>, StoreError> {
    let prefix = format!("{DRILLS_PREFIX}/");
    let objects = store.list(&prefix).await?;
    let mut keys: Vec<String> = objects.into_iter().map(|o| o.key).collect();
    keys.sort_unstable();
    Ok(keys)
}

/// A record; `None` if it is gone or cannot be read: a record is news, and nothing depends on it but [`Proven`].
async fn read(store: &Store, key: &str) -> Result<Option<Drill>, StoreError> {
    match store.get(key).await {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

/// The newest records, newest first.
pub async fn history(store: &Store, max: usize) -> Result<Vec<Drill>, StoreError> {
    let mut found = Vec::new();
    for key in keys(store).await?.iter().rev().take(max) {
        found.extend(read(store, key).await?);
    }
    Ok(found)
}

/// The newest point that a drill proved, for retention. Records never change, so each is read once.
#[derive(Debug, Default)]
pub struct Proven {
    known: Option<(String, Option<Txid>)>,
}

impl Proven {
    /// Costs a listing, and a read for each record that is newer than the newest known good one.
    pub async fn newest(&mut self, store: &Store) -> Result<Option<Txid>, StoreError> {
        let keys = keys(store).await?;
        let Some(last) = keys.last() else {
            self.known = None;
            return Ok(None);
        };
        if let Some((key, txid)) = &self.known
            && key == last
        {
            return Ok(*txid);
        }
        let mut proven = None;
        for key in keys.iter().rev() {
            // Of format 1 and right: the point is in it.
            if let Some(drill) = read(store, key).await?.filter(|d| d.ok) {
                proven = drill.txid.as_deref().and_then(Txid::from_hex);
                break;
            }
        }
        self.known = Some((last.clone(), proven));
        Ok(proven)
    }
}
