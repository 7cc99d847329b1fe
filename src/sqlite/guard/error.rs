//! Why a database cannot be watched, and why continuity could not be proven.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the database cannot be watched.
#[derive(Debug, Error)]
pub enum GuardError {
    /// The bundled SQLite is too old.
    #[error("sqlite {0} has the WAL-reset bug; 3.51.3 or later is needed")]
    OldSqlite(&'static str),
    /// No such file.
    #[error("{0}: no such database file")]
    Missing(PathBuf),
    /// A file of zero bytes: SQLite has not written anything yet.
    #[error("{0}: the file is empty; no app has created a database in it yet")]
    Empty(PathBuf),
    /// Not SQLite's header: another kind of file, or an encrypted database.
    #[error("{0}: not a SQLite database, or an encrypted one")]
    NotADatabase(PathBuf),
    /// The database is in rollback-journal mode.
    #[error("{0}: journal mode is \"{1}\", not WAL")]
    NotWal(PathBuf, String),
    /// Another sidecar on this host has it.
    #[error("{0}: another sidecar on this host replicates this database: {1}")]
    Held(PathBuf, String),
    /// Locked by someone in exclusive mode, or for longer than our patience.
    #[error("{0}: the database is locked by another process")]
    Locked(PathBuf),
    /// The file or its directory cannot be written, which SQLite's shared WAL-index needs.
    #[error("{0}: no permission to write here ({1})")]
    ReadOnly(PathBuf, String),
    /// The database or WAL file under our descriptors is not the one at the path any more.
    #[error("{0}: the file was replaced or deleted")]
    Replaced(PathBuf),
    /// Reading a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Anything else that SQLite said.
    #[error("{path}: {source}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// SQLite's own words.
        source: rusqlite::Error,
    },
}

impl GuardError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::OldSqlite(_) => "rebuild Lifeboat with its bundled SQLite".into(),
            Self::Missing(_) => "check the path, and that the volume is mounted here".into(),
            Self::Empty(_) => "nothing to do: replication starts with the first write of the app".into(),
            Self::NotADatabase(_) => "check the path; encrypted databases cannot be replicated".into(),
            Self::NotWal(path, _) => format!(
                "run: sqlite3 {} 'PRAGMA journal_mode=WAL' - or list it by path without `ensure-wal: false`",
                path.display()
            ),
            Self::Held(..) => "stop one of the two; nothing was changed".into(),
            Self::Locked(_) => "an app with locking_mode=EXCLUSIVE or a long write blocks the sidecar; it is retried".into(),
            Self::ReadOnly(..) => "mount the volume read-write and run as the user who owns the database".into(),
            Self::Replaced(_) => "nothing to do: the new file is compared with the last capture".into(),
            Self::Io { .. } | Self::Sqlite { .. } => return None,
        })
    }
}

/// Why continuity could not be proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The sidecar was not running, or did not record where it was.
    NotWatching,
    /// The WAL started a new life that does not continue what was captured.
    WalRestarted,
    /// The WAL is empty although not everything in it is known to be captured.
    WalTruncated,
    /// The WAL-index lies before the last captured frame.
    IndexWentBack,
    /// The last captured frame is not the one that was captured.
    FrameChanged,
    /// A frame at or before `mxFrame` fails its checksum.
    BadChecksum,
    /// The database or WAL file was replaced or deleted.
    FileReplaced,
    /// Another file was copied over the database file.
    FileOverwritten,
    /// The WAL restarted although a read transaction forbids it.
    LockLost,
    /// The database file is not what was captured.
    Drifted,
    /// The spool was dropped to leave the app its disk space.
    SpoolDropped,
    /// The checksum table was rebuilt from the store.
    StateRebuilt,
}

impl GapReason {
    /// All reasons, for metrics.
    pub const ALL: [GapReason; 12] = [
        Self::NotWatching,
        Self::WalRestarted,
        Self::WalTruncated,
        Self::IndexWentBack,
        Self::FrameChanged,
        Self::BadChecksum,
        Self::FileReplaced,
        Self::FileOverwritten,
        Self::LockLost,
        Self::Drifted,
        Self::SpoolDropped,
        Self::StateRebuilt,
    ];

    /// The word in logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotWatching => "not-watching",
            Self::WalRestarted => "wal-restarted",
            Self::WalTruncated => "wal-truncated",
            Self::IndexWentBack => "index-went-back",
            Self::FrameChanged => "frame-changed",
            Self::BadChecksum => "bad-checksum",
            Self::FileReplaced => "file-replaced",
            Self::FileOverwritten => "file-overwritten",
            Self::LockLost => "lock-lost",
            Self::Drifted => "drifted",
            Self::SpoolDropped => "spool-dropped",
            Self::StateRebuilt => "state-rebuilt",
        }
    }
}

pub(in crate::sqlite) fn io_error(path: &Path, source: io::Error) -> GuardError {
    match source.kind() {
        io::ErrorKind::NotFound => GuardError::Missing(path.to_owned()),
        io::ErrorKind::PermissionDenied => {
            GuardError::ReadOnly(path.to_owned(), source.to_string())
        }
        _ => GuardError::Io {
            path: path.to_owned(),
            source,
        },
    }
}

pub(in crate::sqlite) fn sqlite_error(path: &Path, source: rusqlite::Error) -> GuardError {
    use rusqlite::ErrorCode::{CannotOpen, NotADatabase, PermissionDenied, ReadOnly};
    match source.sqlite_error_code() {
        _ if is_busy(&source) => GuardError::Locked(path.to_owned()),
        Some(NotADatabase) => GuardError::NotADatabase(path.to_owned()),
        Some(ReadOnly | PermissionDenied | CannotOpen) => {
            GuardError::ReadOnly(path.to_owned(), source.to_string())
        }
        _ => GuardError::Sqlite {
            path: path.to_owned(),
            source,
        },
    }
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(
        error.sqlite_error_code(),
        Some(DatabaseBusy | DatabaseLocked)
    )
}
