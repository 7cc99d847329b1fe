//! What a dump is, written last.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::PostgresError;
use crate::store::{ObjectInfo, PutMode, Store, StoreError};

/// Where dumps lie.
pub(super) const FOLDER: &str = "dumps/";
/// Ends the key of a manifest.
pub(super) const FILE: &str = "/manifest.json";

/// Ends the key of what says that a dump is accepted as it is.
const ACCEPTED: &str = "/accepted.json";
/// Manifests read at once.
const READS_AT_ONCE: usize = 16;

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

/// What a database is, beside what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Properties {
    /// Its owner.
    pub owner: String,
    /// As `pg_encoding_to_char` names it.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// `c` for libc, `i` for ICU, `b` for the server's own.
    pub provider: String,
    /// Locale of ICU or of the server's own provider.
    pub locale: String,
    /// Connections allowed; -1 is any number.
    pub connection_limit: i32,
    /// Rights on the database, as SQL that gives them.
    pub grants: Vec<String>,
    /// Settings of the database and of roles in it, as SQL that sets them.
    pub settings: Vec<String>,
}

/// What was dumped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A PostgreSQL database, as `pg_dump -Fc -Z0`.
    #[default]
    Postgres,
    /// A Redis server, as RDB.
    Redis,
}

impl Kind {
    /// As labels, metrics and JSON name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }

    /// How such a file is called.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Postgres => "pgc",
            Self::Redis => "rdb",
        }
    }

    pub(crate) fn dump_key(self, id: &str) -> String {
        format!("{FOLDER}{id}/dump.{}.zst", self.extension())
    }
}

/// The commit marker of a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// Name of its folder: the UTC time at which it began.
    pub id: String,
    /// What was dumped.
    #[serde(default)]
    pub kind: Kind,
    /// The database; empty for Redis.
    pub database: String,
    /// When it began. `pg_dump` shows the database as of shortly after.
    pub began: jiff::Timestamp,
    /// When its last byte was in the store.
    pub ended: jiff::Timestamp,
    /// In the form of its kind, compressed by zstd.
    pub dump: Part,
    /// The server's own words.
    pub server_version: String,
    /// As the program that dumped prints it.
    pub client_version: String,
    /// Bytes of the database on the server; of Redis' memory.
    pub database_bytes: u64,
    /// Name and version.
    pub extensions: BTreeMap<String, String>,
    /// Row estimates by table, as the planner has them; -1 for a table that was never analysed.
    pub rows: BTreeMap<String, i64>,
    /// Rows in the dump by table, exactly; the name as SQL writes it. Empty if they could not be counted (`--inserts`). Of Redis keys by
    /// database, as the server counted them shortly before.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
    /// Indexes and constraints that were not valid in the database itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsound: Vec<String>,
    /// Owner, encoding, settings and privileges of the database itself, which are no part of a dump.
    #[serde(default)]
    pub properties: Properties,
    /// Roles and tablespaces, compressed by zstd, without password hashes; `None` if the server did not show them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub globals: Option<Part>,
    /// What looks wrong with this dump beside the one before it; such a dump replaces no other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anomalies: Vec<String>,
    /// Pins the dump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl Manifest {
    /// Key of the dump itself.
    pub fn dump_key(&self) -> String {
        self.kind.dump_key(&self.id)
    }

    /// Key of the roles.
    pub fn globals_key(&self) -> String {
        globals_key(&self.id)
    }

    /// Bytes in the store.
    pub fn stored_bytes(&self) -> u64 {
        self.dump.size + self.globals.as_ref().map_or(0, |g| g.size)
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

pub(super) fn globals_key(id: &str) -> String {
    format!("{FOLDER}{id}/globals.sql.zst")
}

/// The dumps of a store.
#[derive(Debug, Default)]
pub struct Dumps {
    /// Oldest first.
    pub dumps: Vec<Manifest>,
    /// Ids of those whose manifest cannot be read.
    pub damaged: Vec<String>,
}

/// Every dump with a manifest, oldest first. One that cannot be read is left out with a word in the log.
///
/// # Errors
/// The store's.
pub async fn list(store: &Store) -> Result<Vec<Manifest>, PostgresError> {
    Ok(dumps(store).await?.dumps)
}

/// [`list`], with those that cannot be read.
///
/// # Errors
/// The store's.
pub async fn dumps(store: &Store) -> Result<Dumps, PostgresError> {
    read_all(store, &store.list(FOLDER).await?).await
}

/// Ids of all dumps that have a manifest, whatever is in it.
pub(super) async fn ids(store: &Store) -> Result<BTreeSet<String>, StoreError> {
    let objects = store.list(FOLDER).await?;
    let id = |key: &str| Some(key.strip_prefix(FOLDER)?.strip_suffix(FILE)?.to_owned());
    Ok(objects.iter().filter_map(|o| id(&o.key)).collect())
}

/// The newest dump that nothing looks wrong with; reads no more manifests than it must.
///
/// # Errors
/// The store's.
pub async fn newest_good(store: &Store) -> Result<Option<Manifest>, PostgresError> {
    let objects = store.list(FOLDER).await?;
    // Ids are times: the last key is the newest.
    for object in objects.iter().rev().filter(|o| o.key.ends_with(FILE)) {
        let found = read_all(store, std::slice::from_ref(object)).await?;
        let accepted = is_accepted(&objects, &object.key);
        let mut dumps = found.dumps.into_iter();
        if let Some(manifest) = dumps.find(|m| m.anomalies.is_empty() || accepted) {
            return Ok(Some(manifest));
        }
    }
    Ok(None)
}

/// Says that a dump is as it should be, however it looks beside the one before it.
///
/// # Errors
/// The store's.
pub async fn accept(store: &Store, id: &str) -> Result<(), PostgresError> {
    let key = format!("{FOLDER}{id}{ACCEPTED}");
    let body = bytes::Bytes::from_static(b"{}");
    store.put(&key, body, PutMode::Overwrite, None).await?;
    Ok(())
}

fn is_accepted(objects: &[ObjectInfo], manifest_key: &str) -> bool {
    let key = manifest_key
        .strip_suffix(FILE)
        .map(|k| format!("{k}{ACCEPTED}"));
    objects.iter().any(|o| Some(&o.key) == key.as_ref())
}

/// The manifests among the objects of a listing.
pub(super) async fn read_all(
    store: &Store,
    objects: &[ObjectInfo],
) -> Result<Dumps, PostgresError> {
    let manifests = objects.iter().filter(|o| o.key.ends_with(FILE));
    let keys: Vec<String> = manifests.map(|o| o.key.clone()).collect();
    let reads = keys.into_iter().map(|key| async move {
        let bytes = store.get(&key).await;
        (key, bytes)
    });
    let read: Vec<_> = futures::stream::iter(reads)
        .buffered(READS_AT_ONCE)
        .collect()
        .await;
    let mut found = Dumps::default();
    for (key, bytes) in read {
        let id = key.strip_prefix(FOLDER);
        let Some(id) = id.and_then(|name| name.strip_suffix(FILE)) else {
            continue;
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            // Deleted since the listing.
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e.into()),
        };
        match serde_json::from_slice::<Manifest>(&bytes) {
            Ok(mut manifest) if manifest.id == id => {
                if is_accepted(objects, &key) {
                    manifest.anomalies.clear();
                }
                found.dumps.push(manifest);
            }
            _ => {
                tracing::warn!(
                    dump = id,
                    store = store.display(),
                    "the manifest of this dump cannot be read"
                );
                found.damaged.push(id.to_owned());
            }
        }
    }
    found
        .dumps
        .sort_by(|a, b| (a.began, &a.id).cmp(&(b.began, &b.id)));
    Ok(found)
}
