//! What a drill found, kept beside the replica.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::proven::{bytes, keys, sweep};
use crate::replica::layout::drill_key;
use crate::replica::upload::Replica;
use crate::restore::plan::Catalog;
use crate::store::{PutMode, Store, StoreError};
use crate::types::Millis;

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

impl Check {
    /// What a check found, right or wrong.
    pub(crate) fn of(name: &str, result: Result<String, String>) -> Self {
        let ok = result.is_ok();
        Self {
            name: name.into(),
            ok,
            detail: result.unwrap_or_else(|e| e),
        }
    }
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

    /// The point that a record proves: empty for one of Litestream 0.3, which no retention of ours prunes.
    pub(super) fn proves(record: &[u8]) -> Option<String> {
        let drill: Self = serde_json::from_slice(record).ok()?;
        drill.ok.then(|| drill.txid.unwrap_or_default())
    }

    /// Writes the record, and deletes the oldest ones beyond a bound.
    pub(super) async fn write(&self, store: &Store) -> Result<(), StoreError> {
        let body = serde_json::to_vec_pretty(self).unwrap_or_default();
        // Two drills within a millisecond: the later one's record stays.
        store
            .put(&drill_key(self.at()), body.into(), PutMode::Overwrite, None)
            .await?;
        let points = async || {
            let catalog = Catalog::new(Replica::list(store).await?.into_values());
            let points = catalog.points().into_iter();
            Ok(points.map(|p| p.txid.to_string()).collect())
        };
        sweep(store, Self::proves, points).await
    }
}

/// The newest records, newest first; what cannot be read is left out.
pub async fn history(store: &Store, max: usize) -> Result<Vec<Drill>, StoreError> {
    let mut found = Vec::new();
    for key in keys(store).await?.iter().rev().take(max) {
        let read = bytes(store, key).await?;
        found.extend(read.and_then(|b| serde_json::from_slice(&b).ok()));
    }
    Ok(found)
}
