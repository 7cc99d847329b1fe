//! A drill of one SQLite replica in one store.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use super::record::{Check, Drill, history};
use super::under_way::UnderWay;
use crate::restore::plan::{Goal, PlanError};
use crate::restore::swap::SwapError;
use crate::restore::{self, Output, Planned, Report, RestoreError, Verify};
use crate::store::{Class, Store, StoreError};
use crate::types::Millis;

/// Warnings of one kind that are listed.
const WARNINGS_MAX: usize = 5;
/// Newest points that are tried, where retention takes one away before it is pinned.
const AIMS_MAX: u32 = 3;

/// How a target is drilled.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the target.
    pub target: String,
    /// Folder for the restored copy; it is made if need be.
    pub scratch: PathBuf,
    /// Free bytes that are left to others on its volume.
    pub reserve: u64,
    /// SQL; the first column of the first row must be true.
    pub asserts: Vec<String>,
    /// Who drills.
    pub instance: String,
}

/// Why there is no record of a drill.
#[derive(Debug, Error)]
pub enum DrillError {
    /// There is nothing to drill, and never was: no file, and no record of a drill.
    #[error("{0}")]
    Nothing(restore::plan::PlanError),
    /// Scratch space.
    #[error("{what} {path}: {source}; nothing was drilled")]
    Scratch {
        /// What failed.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Too little of it.
    #[error(
        "the copy needs {need} bytes, but {path} may take only {free} more; nothing was drilled"
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes needed.
        need: u64,
        /// Bytes that may be taken.
        free: u64,
    },
    /// The store.
    #[error("{0}; the drill is not recorded")]
    Store(#[from] StoreError),
}

impl DrillError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Nothing(e) => Some(e.hint()),
            Self::Scratch { .. } | Self::NoSpace { .. } => {
                Some("name a folder with room: `drill: { scratch-dir: ... }`".into())
            }
            Self::Store(e) => e.hint(),
        }
    }

    /// See the design: 1 failed, 3 nothing to restore.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Nothing(_) => 3,
            _ => 1,
        }
    }
}

/// Restores the newest point, checks it, and records the result: a copy that is not right is a record with `ok: false`, not an error.
///
/// # Errors
/// What kept it from drilling or recording.
pub async fn sqlite(store: &Store, options: &Options, now: Millis) -> Result<Drill, DrillError> {
    let mut pin = None;
    let result = drilled(store, options, now, &mut pin).await;
    if let Some(pin) = pin {
        pin.end().await;
    }
    result
}

async fn drilled(
    store: &Store,
    options: &Options,
    now: Millis,
    pin: &mut Option<UnderWay>,
) -> Result<Drill, DrillError> {
    let begun = Instant::now();
    let scratch = scratch(options)?;
    let copy = scratch.folder.path().join("restored.sqlite3");
    let mut drill = Drill {
        format: 1,
        target: options.target.clone(),
        store: store.display(),
        at: now.to_string(),
        ok: false,
        txid: None,
        as_of: None,
        data_age_seconds: 0.0,
        restore_seconds: 0.0,
        seconds: 0.0,
        bytes: 0,
        checks: Vec::new(),
        warnings: Vec::new(),
        rows: BTreeMap::new(),
        instance: options.instance.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let restored = match restored(store, options, &copy, now, pin).await {
        Ok(report) => Ok(report),
        Err(Misfit::Drill(error)) => return Err(error),
        Err(Misfit::Restore(error)) => Err(error),
    };
    match restored {
        // A replica that lost its files or their base is no new one.
        Err(RestoreError::Plan(e @ PlanError::Empty)) => return Err(DrillError::Nothing(e)),
        // The store does not answer: not a word about what is in it.
        Err(RestoreError::Store(e)) if e.class() != Class::NotFound => return Err(e.into()),
        // A full disk or a folder that is away here says nothing of the copy either.
        Err(RestoreError::Local(source)) => return Err(not_written(options, source)),
        Err(RestoreError::Swap(SwapError::NoSpace { path, need, free })) => {
            return Err(DrillError::NoSpace { path, need, free });
        }
        Err(RestoreError::Swap(error)) => {
            return Err(not_written(options, std::io::Error::other(error)));
        }
        Err(error) => drill
            .checks
            .push(Check::of("restore", Err(error.to_string()))),
        Ok(report) => {
            drill.txid = report.plan.txid().map(|t| t.to_string());
            drill.as_of = Some(report.plan.as_of().to_string());
            drill.data_age_seconds = now.since(report.plan.as_of()).max(0) as f64 / 1000.0;
            drill.restore_seconds = report.took.as_secs_f64();
            drill.bytes = report.bytes;
            let detail = match report.checksum_known {
                true => "equals the recorded one",
                false => "not recorded by the replica",
            };
            drill.checks.push(Check::of("restore", Ok(String::new())));
            drill.checks.push(Check::of("checksum", Ok(detail.into())));
            let asserts = options.asserts.clone();
            let seen = tokio::task::spawn_blocking(move || examine(&copy, &asserts)).await;
            let seen = seen.unwrap_or_else(|e| Seen::failed(e.to_string()));
            drill.checks.extend(seen.checks);
            drill.warnings.extend(seen.warnings);
            drill.rows = seen.rows;
        }
    }
    if let Some(last) = history(store, 1).await?.first() {
        drill.warnings.extend(shrunken(&last.rows, &drill.rows));
    }
    drill.ok = drill.checks.iter().all(|c| c.ok);
    drill.seconds = begun.elapsed().as_secs_f64();
    drill.write(store).await?;
    Ok(drill)
}

fn not_written(options: &Options, source: std::io::Error) -> DrillError {
    DrillError::Scratch {
        what: "writing the copy to",
        path: options.scratch.clone(),
        source,
    }
}

/// Restores the newest point, which is pinned from before the first read of it.
async fn restored(
    store: &Store,
    options: &Options,
    copy: &Path,
    now: Millis,
    pin: &mut Option<UnderWay>,
) -> Result<Report, Misfit> {
    let mut tries = AIMS_MAX;
    loop {
        let planned = fits(store, options).await?;
        let goal = match planned.txid() {
            Some(txid) => {
                let begun = UnderWay::begin(store, &txid.to_string(), now).await;
                let before = pin.replace(begun.map_err(|e| Misfit::Drill(e.into()))?);
                if let Some(before) = before {
                    before.end().await;
                }
                Goal::Txid(txid)
            }
            // Nobody prunes what Litestream 0.3 left.
            None => Goal::Newest,
        };
        let output = Output::New(copy.to_owned());
        let result = restore::restore(store, goal, output, Verify::None, now, |_| {}).await;
        tries -= 1;
        match result {
            // Pruned before the pin was there: a newer one is the newest by now.
            Err(RestoreError::Plan(PlanError::NoSuchPoint { .. })) if tries > 0 => {}
            result => return result.map_err(Misfit::Restore),
        }
    }
}

/// A folder of its own, removed when dropped, and locked until then.
struct Scratch {
    folder: tempfile::TempDir,
    /// Dropped after the folder was removed.
    _lock: File,
}

fn scratch(options: &Options) -> Result<Scratch, DrillError> {
    let failed = |what| {
        move |source| DrillError::Scratch {
            what,
            path: options.scratch.clone(),
            source,
        }
    };
    std::fs::create_dir_all(&options.scratch).map_err(failed("making"))?;
    clear_left(&options.scratch);
    loop {
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&options.scratch)
            .map_err(failed("making a folder in"))?;
        let lock = File::open(folder.path()).map_err(failed("opening a folder in"));
        // A file system without locks: what is left there goes by its age.
        let _ = lock
            .as_ref()
            .map(|l| flock(l, FlockOperation::LockExclusive));
        // Another drill may have taken it for one that was left, before it was locked.
        match lock {
            Ok(lock) if folder.path().exists() => {
                return Ok(Scratch {
                    folder,
                    _lock: lock,
                });
            }
            Err(error) if folder.path().exists() => return Err(error),
            _ => {}
        }
    }
}

const PREFIX: &str = "lifeboat-drill-";
/// A drill does not take so long: where there are no locks, what is older was left by one that was killed.
const STALE_AFTER: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// Removes what killed drills left in a scratch folder: whatever no process has locked. Blocks.
pub fn clear_left(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if !is_ours {
            continue;
        }
        // Held while it is removed: a drill that has just made it then sees that it is gone.
        let Ok(lock) = File::open(&path) else {
            continue;
        };
        let is_left = match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(rustix::io::Errno::WOULDBLOCK) => false,
            Err(_) => {
                let age = entry.metadata().and_then(|m| m.modified());
                age.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE_AFTER))
            }
        };
        if is_left && let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "removing what a killed drill left");
        }
    }
}

enum Misfit {
    Drill(DrillError),
    Restore(RestoreError),
}

/// The newest point, whose copy must leave the reserve free: the volume may be the app's.
async fn fits(store: &Store, options: &Options) -> Result<Planned, Misfit> {
    let (planned, _) = restore::planned(store, Goal::Newest)
        .await
        .map_err(Misfit::Restore)?;
    let need = restore::need(store, &planned)
        .await
        .map_err(Misfit::Restore)?;
    let stat = rustix::fs::statvfs(&options.scratch).map_err(|e| {
        Misfit::Drill(DrillError::Scratch {
            what: "asking for the free space of",
            path: options.scratch.clone(),
            source: e.into(),
        })
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let free = free.saturating_sub(options.reserve);
    if need > free {
        return Err(Misfit::Drill(DrillError::NoSpace {
            path: options.scratch.clone(),
            need,
            free,
        }));
    }
    Ok(planned)
}

#[derive(Default)]
struct Seen {
    checks: Vec<Check>,
    warnings: Vec<String>,
    rows: BTreeMap<String, u64>,
}

impl Seen {
    fn failed(why: String) -> Self {
        Self {
            checks: vec![Check::of("integrity", Err(why))],
            ..Self::default()
        }
    }
}

/// SQLite's own checks, row counts, and the user's assertions.
fn examine(copy: &Path, asserts: &[String]) -> Seen {
    let conn = match Connection::open_with_flags(
        copy,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    ) {
        Ok(conn) => conn,
        Err(e) => return Seen::failed(e.to_string()),
    };
    let mut seen = Seen::default();
    let integrity = conn.query_row("PRAGMA integrity_check(1)", [], |r| r.get::<_, String>(0));
    seen.checks.push(Check::of(
        "integrity",
        match integrity {
            Ok(answer) if answer == "ok" => Ok("ok".into()),
            Ok(answer) => Err(answer),
            Err(e) => Err(e.to_string()),
        },
    ));
    match foreign_keys(&conn) {
        Ok(broken) => seen.warnings.extend(broken),
        Err(e) => seen.warnings.push(format!("foreign_key_check: {e}")),
    }
    match rows(&conn) {
        Ok(rows) => seen.rows = rows,
        Err(e) => seen.warnings.push(format!("counting rows: {e}")),
    }
    for sql in asserts {
        seen.checks.push(Check::of("assert", assertion(&conn, sql)));
    }
    seen
}

/// Rows that break a foreign key are the app's own: SQLite enforces keys only if it is asked to. The copy is right.
fn foreign_keys(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut tables: BTreeMap<String, u64> = BTreeMap::new();
    let mut statement = conn.prepare("PRAGMA foreign_key_check")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        *tables.entry(row.get(0)?).or_default() += 1;
    }
    let words = tables
        .iter()
        .map(|(table, count)| format!("{count} rows of {table} break a foreign key"));
    Ok(words.take(WARNINGS_MAX).collect())
}

fn rows(conn: &Connection) -> rusqlite::Result<BTreeMap<String, u64>> {
    let mut names = conn.prepare(
        "SELECT name FROM sqlite_schema WHERE type='table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND sql NOT LIKE 'CREATE VIRTUAL%'",
    )?;
    let names: Vec<String> = names
        .query_map([], |r| r.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut counts = BTreeMap::new();
    for name in names {
        let sql = format!("SELECT count(*) FROM \"{}\"", name.replace('"', "\"\""));
        let count: i64 = conn.query_row(&sql, [], |r| r.get(0))?;
        counts.insert(name, u64::try_from(count).unwrap_or(0));
    }
    Ok(counts)
}

fn assertion(conn: &Connection, sql: &str) -> Result<String, String> {
    use rusqlite::types::Value;
    let value = conn.query_row(sql, [], |r| r.get::<_, Value>(0));
    match value {
        Ok(Value::Integer(n)) if n != 0 => Ok(sql.into()),
        Ok(Value::Real(x)) if x != 0.0 => Ok(sql.into()),
        Ok(other) => Err(format!("{sql} gives {}", word(&other))),
        Err(rusqlite::Error::QueryReturnedNoRows) => Err(format!("{sql} gives no row")),
        Err(e) => Err(format!("{sql}: {e}")),
    }
}

fn word(value: &rusqlite::types::Value) -> String {
    use rusqlite::types::Value;
    match value {
        Value::Null => "NULL".into(),
        Value::Integer(n) => n.to_string(),
        Value::Real(x) => x.to_string(),
        Value::Text(_) => "a text; true is a number that is not 0".into(),
        Value::Blob(_) => "a blob; true is a number that is not 0".into(),
    }
}

/// Tables that had rows at the last drill and have none now: an accident in the app, or a table that was dropped on purpose.
fn shrunken(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> Vec<String> {
    if now.is_empty() {
        return Vec::new();
    }
    let gone = before
        .iter()
        .filter(|(table, rows)| **rows > 0 && now.get(*table).is_none_or(|n| *n == 0));
    gone.take(WARNINGS_MAX)
        .map(|(table, rows)| format!("{table} had {rows} rows at the last drill and has none now"))
        .collect()
}
