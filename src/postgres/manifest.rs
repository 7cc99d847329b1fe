//! What a dump is, written last.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PostgresError;
use crate::store::{PutMode, Store};

const FOLDER: &str = "dumps/";
const FILE: &str = "/manifest.json";

/// One stream of a dump, before and after compression.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Part {
    /// Bytes in the store.
    pub size: u64,
    /// Their SHA-256, hexadecimal.
    pub sha256: String,
    /// Bytes before compression.
    pub raw_size: u64,
    /// Their SHA-256, hexadecimal.
    pub raw_sha256: String,
}

/// The commit marker of a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// Name of its folder: the UTC time at which it began.
    pub id: String,
    /// The database.
    pub database: String,
    /// When it began. `pg_dump` shows the database as of shortly after.
    pub began: jiff::Timestamp,
    /// When its last byte was in the store.
    pub ended: jiff::Timestamp,
    /// `pg_dump -Fc -Z0`, compressed by zstd.
    pub dump: Part,
    /// The server's own words.
    pub server_version: String,
    /// As `pg_dump --version` prints it.
    pub client_version: String,
    /// Bytes of the database on the server.
    pub database_bytes: u64,
    /// Name and version.
    pub extensions: BTreeMap<String, String>,
    /// Row estimates by table, as the planner has them; -1 for a table that was never analysed.
    pub rows: BTreeMap<String, i64>,
    /// Pins the dump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl Manifest {
    /// Key of the dump itself.
    pub fn dump_key(&self) -> String {
        dump_key(&self.id)
    }

    pub(super) async fn write(&self, store: &Store) -> Result<(), PostgresError> {
        let key = format!("{FOLDER}{}{FILE}", self.id);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| PostgresError::Io("writing a manifest", e.into()))?;
        store
            .put(&key, text.into(), PutMode::Create, None)
            .await
            .map_err(PostgresError::Store)?;
        Ok(())
    }
}

pub(super) fn dump_key(id: &str) -> String {
    format!("{FOLDER}{id}/dump.pgc.zst")
}

/// Every dump with a manifest, oldest first.
///
/// # Errors
/// The store's; [`PostgresError::Damaged`] for a manifest that cannot be read.
pub async fn list(store: &Store) -> Result<Vec<Manifest>, PostgresError> {
    let mut found = Vec::new();
    for object in store.list(FOLDER).await? {
        let name = object.key.strip_prefix(FOLDER);
        let Some(id) = name.and_then(|name| name.strip_suffix(FILE)) else {
            continue;
        };
        let bytes = store.get(&object.key).await?;
        let damaged = |why: String| PostgresError::Damaged {
            id: id.to_owned(),
            why,
        };
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if manifest.id != id {
            return Err(damaged(format!("its manifest is of {}", manifest.id)));
        }
        found.push(manifest);
    }
    found.sort_by(|a, b| (a.began, &a.id).cmp(&(b.began, &b.id)));
    Ok(found)
}
