//! From a replica to a database file: plan, fetch, apply, verify, swap.
//!
//! What a restore promises: the file that appears equals the database at the restore point, byte for byte, or nothing appears. What it
//! does **not** promise: that a point captured by Litestream is checked by a database checksum; such files carry none.

pub mod apply;
pub mod plan;
pub mod swap;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use thiserror::Error;

use crate::ltx;
use crate::replica::layout::Layout;
use crate::replica::upload::Replica;
use crate::store::{Store, StoreError};
use crate::types::{DbChecksum, Entry, Millis};
use plan::{Catalog, Goal, Plan, PlanError, Point};
use swap::SwapError;

/// How much is checked beyond checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Checksums only.
    None,
    /// SQLite's quick_check.
    Quick,
    /// SQLite's integrity_check and foreign_key_check.
    Full,
}

/// Where the database goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A path where nothing is.
    New(PathBuf),
    /// A database that nobody has open; the old one is kept.
    InPlace(PathBuf),
}

impl Output {
    /// The path.
    pub fn path(&self) -> &Path {
        match self {
            Self::New(path) | Self::InPlace(path) => path,
        }
    }
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was read.
    pub plan: Plan,
    /// Database bytes written.
    pub bytes: u64,
    /// Checksum of the restored file.
    pub checksum: DbChecksum,
    /// The replica knew the checksum, and it is the same.
    pub checksum_known: bool,
    /// Where the old database is kept.
    pub kept: Option<PathBuf>,
    /// How long it took.
    pub took: Duration,
}

/// Why a restore failed. Nothing was changed unless the message says so.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The store.
    #[error("{0}; nothing was changed")]
    Store(#[from] StoreError),
    /// No such point.
    #[error("{0}")]
    Plan(#[from] PlanError),
    /// A damaged file.
    #[error("{file}: {source}; nothing was changed")]
    Corrupt {
        /// Which object.
        file: String,
        /// What is wrong with it.
        source: apply::Fault,
        /// The newest point that does without it.
        instead: Option<Point>,
    },
    /// The restored file is not what the replica says.
    #[error(
        "the restored database has checksum {found:016x}, but the replica recorded {expected:016x}; nothing was changed"
    )]
    Checksum {
        /// Of the restored file.
        found: u64,
        /// In the last LTX file.
        expected: u64,
    },
    /// SQLite's own check.
    #[error("SQLite's {check} of the restored database says: {message}; nothing was changed")]
    Damaged {
        /// Which check.
        check: &'static str,
        /// Its first words.
        message: String,
    },
    /// Putting it in place.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// The local file system.
    #[error("writing the restored database: {0}; nothing was changed")]
    Local(#[from] std::io::Error),
}

impl RestoreError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(e) => e.hint(),
            Self::Plan(e) => Some(e.hint()),
            Self::Corrupt {
                instead: Some(point),
                ..
            } => Some(format!(
                "the newest point without this file is {} of {}: --txid {}",
                point.txid, point.at, point.txid
            )),
            Self::Corrupt { instead: None, .. } => {
                Some("no point can be restored without this file".into())
            }
            Self::Checksum { .. } | Self::Damaged { .. } => {
                Some("try an earlier point; `lifeboat list` shows them".into())
            }
            Self::Swap(e) => e.hint(),
            Self::Local(_) => None,
        }
    }

    /// Exit code (see the design: 3 nothing to restore, 4 refusal, 5 verification failed).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Plan(_) => 3,
            Self::Swap(e) if e.is_refusal() => 4,
            Self::Corrupt { .. } | Self::Checksum { .. } | Self::Damaged { .. } => 5,
            Self::Store(_) | Self::Swap(_) | Self::Local(_) => 1,
        }
    }
}

/// Lists a replica for a goal. Listings of S3, Azure and Google tell when an object arrived, not when its newest change was captured;
/// for a goal in time the capture times around it are read from the files' headers, by bisection.
pub async fn catalog(store: &Store, goal: Goal) -> Result<Catalog, RestoreError> {
    let mut entries: Vec<Entry> = Replica::list(store).await?.into_values().collect();
    if let (Goal::At(at), false) = (goal, store.kind() == crate::store::Kind::File) {
        entries.sort_unstable_by_key(|e| (e.span.max(), e.span.level()));
        let (mut low, mut high) = (0, entries.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let header = read_header(store, &entries[middle]).await?;
            entries[middle].created = header.timestamp;
            if header.timestamp <= at {
                low = middle + 1
            } else {
                high = middle
            }
        }
        for entry in &mut entries[..low] {
            entry.created = entry.created.min(at);
        }
        for entry in &mut entries[low..] {
            entry.created = entry.created.max(Millis(at.0.saturating_add(1)));
        }
    }
    Ok(Catalog::new(entries))
}

/// The header of a file in a store.
pub async fn read_header(store: &Store, entry: &Entry) -> Result<ltx::Header, RestoreError> {
    let key = Layout::for_kind(store.kind()).key(entry.span);
    let bytes = store.get_range(&key, 0..ltx::Header::LEN as u64).await?;
    ltx::Header::decode(&bytes).map_err(|source| RestoreError::Corrupt {
        file: format!("{}/{key}", store.display()),
        source: source.into(),
        instead: None,
    })
}

/// Opens the files of a plan for a blocking thread, each fetched ahead.
pub fn opener(
    store: &Store,
) -> impl FnMut(&Entry) -> std::io::Result<Box<dyn std::io::Read + Send>> + Send + use<> {
    let store = store.clone();
    let runtime = tokio::runtime::Handle::current();
    let layout = Layout::for_kind(store.kind());
    move |entry| {
        let key = layout.key(entry.span);
        let reader = crate::store::reader(&store, &key, entry.size, &runtime);
        Ok(Box::new(std::io::BufReader::with_capacity(
            64 << 10,
            reader,
        )))
    }
}

/// Restores one point of a replica. `progress` is called with bytes of pages written.
pub async fn restore(
    store: &Store,
    goal: Goal,
    output: Output,
    verify: Verify,
    now: Millis,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Report, RestoreError> {
    let begun = Instant::now();
    let path = output.path().to_owned();
    if matches!(output, Output::New(_)) && path.exists() {
        return Err(SwapError::Exists(path).into());
    }
    let catalog = catalog(store, goal).await?;
    let plan = plan::plan(&catalog, goal)?;
    let header = read_header(store, &plan.files[plan.files.len() - 1]).await?;
    let need = u64::from(header.commit) * u64::from(header.page_size.get());
    let temporary = swap::temporary(&path, need)?;
    let open = opener(store);
    let files = plan.files.clone();
    let work = move || -> Result<_, RestoreError> {
        let applied =
            apply::to_file(&files, open, temporary.as_file(), &progress).map_err(|e| {
                // A store that fails in the middle is no damage.
                if e.source.is_corrupt() {
                    RestoreError::Corrupt {
                        file: e.entry.span.to_string(),
                        source: e.source,
                        instead: without(&catalog, e.entry),
                    }
                } else {
                    RestoreError::Local(std::io::Error::other(e))
                }
            })?;
        let found = apply::checksum(
            temporary.as_file(),
            applied.last.page_size,
            applied.last.commit,
        )?;
        if let Some(expected) = applied.expected.filter(|e| *e != found) {
            return Err(RestoreError::Checksum {
                found: found.get(),
                expected: expected.get(),
            });
        }
        sqlite_check(temporary.path(), verify)?;
        let kept = match output {
            Output::New(path) => swap::put_new(temporary, &path, now).map(|()| None),
            Output::InPlace(path) => swap::put_in_place(temporary, &path, now),
        }?;
        Ok((found, applied.expected.is_some(), kept))
    };
    let (checksum, checksum_known, kept) = tokio::task::spawn_blocking(work)
        .await
        .map_err(std::io::Error::other)??;
    Ok(Report {
        plan,
        bytes: need,
        checksum,
        checksum_known,
        kept,
        took: begun.elapsed(),
    })
}

fn without(catalog: &Catalog, entry: Entry) -> Option<Point> {
    catalog
        .without(&BTreeSet::from([entry.span]))
        .points()
        .last()
        .copied()
}

/// SQLite's own checks, on a file that nobody else knows of yet. Opened immutable: not a byte changes, no `-wal` or `-shm` appears.
pub fn sqlite_check(path: &Path, verify: Verify) -> Result<(), RestoreError> {
    let check = match verify {
        Verify::None => return Ok(()),
        Verify::Quick => "quick_check",
        Verify::Full => "integrity_check",
    };
    let run = || -> rusqlite::Result<Option<String>> {
        let mut uri = url::Url::from_file_path(path)
            .map_err(|()| rusqlite::Error::InvalidPath(path.to_owned()))?;
        uri.set_query(Some("immutable=1"));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let conn = Connection::open_with_flags(uri.as_str(), flags)?;
        let answer: String = conn.query_row(&format!("PRAGMA {check}(1)"), [], |r| r.get(0))?;
        if answer != "ok" {
            return Ok(Some(answer));
        }
        if verify == Verify::Full {
            let broken = conn
                .prepare("PRAGMA foreign_key_check")?
                .query_map([], |r| r.get::<_, String>(0))?
                .next()
                .transpose()?;
            return Ok(broken.map(|table| format!("a row of table {table} breaks a foreign key")));
        }
        Ok(None)
    };
    match run() {
        Ok(None) => Ok(()),
        Ok(Some(message)) => Err(RestoreError::Damaged { check, message }),
        Err(e) => Err(RestoreError::Damaged {
            check,
            message: e.to_string(),
        }),
    }
}
