//! Proof that nobody has a database open, held until it is dropped.
//!
//! Two signs together, because neither is enough:
//! - SQLite's locks, taken in `locking_mode=EXCLUSIVE`. Every connection in WAL mode that has read once holds a shared lock, even an idle one,
//!   and so does every open transaction in the other journal modes. A plain `BEGIN EXCLUSIVE` would succeed beside an idle reader in WAL mode.
//! - `/proc/*/fd`: a connection in a rollback-journal mode that is idle holds no lock at all. This sees only processes of this PID
//!   namespace, and other users' only as root.
//!
//! What is **not** proven: that no process in another container has the file open in a rollback-journal mode and sits idle; and nothing
//! on network file systems. A process that opens the file while the proof is held waits for the lock, and would then go on with the old file:
//! start the app after the restore, not during it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rusqlite::{Connection, ErrorCode};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::swap::{OPEN_IN, SwapError};
use crate::sqlite::guard::GuardError;

/// A transaction that is just ending may take so long before the database counts as in use.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
/// Processes named in an error.
const HOLDERS_MAX: usize = 5;

/// What holds the lock until it is dropped.
#[derive(Debug)]
enum Lock {
    Sqlite { _conn: Connection },
    File { _file: File },
}

/// A database's lock; see the module.
#[derive(Debug)]
pub(super) struct Proof {
    _lock: Lock,
}

impl Proof {
    /// Locks the database at `path` and brings its WAL home, so that the file alone is the whole database.
    ///
    /// A file that SQLite cannot read (damaged, encrypted) is locked by hand with the same kind of lock; its WAL stays as it is.
    pub(super) fn take(path: &Path) -> Result<Self, SwapError> {
        let io = |source| SwapError::Io {
            path: path.to_owned(),
            source,
        };
        let in_use = |reason: String| SwapError::InUse {
            path: path.to_owned(),
            reason,
        };
        let id = unheld(path)?;
        let lock = match lock(path) {
            Ok(conn) => Lock::Sqlite { _conn: conn },
            Err(e) if e.is_busy() => return Err(in_use(e.to_string())),
            // A full disk, a folder that may not be written: its newest commits are in the WAL, and would be parted from it.
            Err(e) if !e.is_unreadable() => {
                return Err(SwapError::WalStays {
                    path: path.to_owned(),
                    reason: e.to_string(),
                });
            }
            Err(_) => Lock::File {
                _file: by_hand(path).map_err(|e| match e.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied => {
                        in_use("another process has locked it".into())
                    }
                    _ => io(e),
                })?,
            },
        };
        let proof = Self { _lock: lock };
        // Whoever held it while this waited may have given its name to another file.
        match identity(path).map_err(io)? == id {
            true => Ok(proof),
            false => Err(in_use("another file took its name just now".into())),
        }
    }

    /// Whether [`Proof::take`] would find it in use; nothing stays locked, and not a byte is changed.
    pub(super) fn look(path: &Path) -> Result<(), SwapError> {
        unheld(path)?;
        match exclusive(path) {
            Err(e) if e.is_busy() => Err(SwapError::InUse {
                path: path.to_owned(),
                reason: e.to_string(),
            }),
            // The rest is for the claim to tell, which brings the WAL home.
            _ => Ok(()),
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Nobody else has it open, as far as `/proc` tells; which file that was.
fn unheld(path: &Path) -> Result<(u64, u64), SwapError> {
    let id = identity(path).map_err(|source| SwapError::Io {
        path: path.to_owned(),
        source,
    })?;
    let holders = holders(id);
    match holders.is_empty() {
        true => Ok(id),
        false => Err(SwapError::InUse {
            path: path.to_owned(),
            reason: format!("{OPEN_IN}{}", holders.join(", ")),
        }),
    }
}

/// No descriptor of the file may be opened while SQLite has it open in this process: closing one drops SQLite's locks. Here SQLite could not
/// use the file.
fn by_hand(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(path)?;
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Why SQLite did not lock.
#[derive(Debug, thiserror::Error)]
enum LockError {
    #[error(transparent)]
    Open(#[from] GuardError),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("its WAL cannot be checkpointed while somebody reads it")]
    Reader,
}

impl LockError {
    fn is_busy(&self) -> bool {
        match self {
            Self::Reader => true,
            Self::Sqlite(e) => matches!(
                e.sqlite_error_code(),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
            ),
            Self::Open(e) => matches!(e, GuardError::Locked(_)),
        }
    }

    /// SQLite can make nothing of the file, with its WAL or without.
    fn is_unreadable(&self) -> bool {
        let source = match self {
            Self::Sqlite(e) => e,
            Self::Open(GuardError::Sqlite { source, .. }) => source,
            Self::Open(GuardError::NotADatabase(_)) => return true,
            Self::Open(_) | Self::Reader => return false,
        };
        matches!(
            source.sqlite_error_code(),
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
        )
    }
}

/// Locked until the connection is closed. Like every connection of ours it leaves the WAL alone when it closes: by then that name may belong to
/// the restored database.
fn lock(path: &Path) -> Result<Connection, LockError> {
    let conn = exclusive(path)?;
    let (busy, log, done): (i64, i64, i64) =
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    if busy != 0 || done < log {
        return Err(LockError::Reader);
    }
    Ok(conn)
}

fn exclusive(path: &Path) -> Result<Connection, LockError> {
    let conn = crate::sqlite::guard::open(path)?;
    conn.busy_timeout(PATIENCE)?;
    conn.query_row("PRAGMA locking_mode=EXCLUSIVE", [], |_| Ok(()))?;
    conn.execute_batch("PRAGMA synchronous=FULL; BEGIN EXCLUSIVE; COMMIT")?;
    Ok(conn)
}

/// Other processes that have the file open, as `name (pid N)`. What cannot be read is passed over.
fn holders(id: (u64, u64)) -> Vec<String> {
    let own = std::process::id().to_string();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let is_pid = |name: &str| name != own && name.bytes().all(|b| b.is_ascii_digit());
    processes
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_pid))
        .map(|entry| entry.path())
        .filter(|path| has_open(path, id).unwrap_or(false))
        .take(HOLDERS_MAX)
        .map(|path| name(&path))
        .collect()
}

fn has_open(process: &Path, id: (u64, u64)) -> io::Result<bool> {
    for descriptor in std::fs::read_dir(process.join("fd"))? {
        // Follows the link to the open file itself, deleted or not.
        let Ok(meta) = std::fs::metadata(descriptor?.path()) else {
            continue;
        };
        if (meta.dev(), meta.ino()) == id {
            return Ok(true);
        }
    }
    Ok(false)
}

fn name(process: &Path) -> String {
    let pid = process.file_name().unwrap_or_default().to_string_lossy();
    match std::fs::read_to_string(process.join("comm")) {
        Ok(name) => format!("{} (pid {pid})", name.trim_end()),
        Err(_) => format!("pid {pid}"),
    }
}
