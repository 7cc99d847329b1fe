//! Why a file was not put in place, and what a person does next.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Begins the reason where processes are known that have a database open.
pub(in crate::restore) const OPEN_IN: &str = "open in ";

/// Why a file was not put in place.
#[derive(Debug, Error)]
pub enum SwapError {
    /// Something is there.
    #[error("{0} exists already; nothing was changed")]
    Exists(PathBuf),
    /// Nobody may have it open.
    #[error("{path} is in use: {reason}; nothing was changed")]
    InUse {
        /// The database.
        path: PathBuf,
        /// SQLite's words.
        reason: String,
    },
    /// What it holds cannot be brought into one file, and apart from its WAL it would lack commits.
    #[error(
        "the WAL of {path} cannot be brought into the database file ({reason}); nothing was changed"
    )]
    WalStays {
        /// The database.
        path: PathBuf,
        /// SQLite's words.
        reason: String,
    },
    /// The last restore in place replaced nothing.
    #[error(
        "there was no database at {0} before its last restore, so there is nothing to put back; nothing was changed"
    )]
    NothingThere(PathBuf),
    /// The last thing that happened here was an undo.
    #[error(
        "the last restore of {path} is undone already; {older} is what an earlier restore replaced; nothing was changed"
    )]
    Undone {
        /// The database.
        path: PathBuf,
        /// The newest copy that a restore kept.
        older: PathBuf,
    },
    /// Not enough room.
    #[error("{path} needs {need} bytes, but its volume has {free} free; nothing was changed")]
    NoSpace {
        /// The target.
        path: PathBuf,
        /// Bytes needed.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// Another restore is at work on the same place.
    #[error("another restore of {0} is running; nothing was changed by this one")]
    Running(PathBuf),
    /// Nothing to swap back.
    #[error("{0} has no kept copy from before a restore")]
    NothingKept(PathBuf),
    /// The folder of the place is not there, or may not be written to.
    #[error("cannot write to the folder {path}: {source}; nothing was changed")]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl SwapError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Exists(_) => {
                "choose one: `-o OTHER-PATH`, where nothing is; `--if-not-exists` to leave it; without -o, `--in-place` to replace the target's own database and keep the old one for --undo".into()
            }
            Self::InUse { reason, .. } if is_ours(reason) => {
                "wait for that command to end; a daemon of another configuration must be stopped; then restore again".into()
            }
            Self::InUse { .. } => {
                "stop the app (with Kamal: `kamal app stop`), then restore again".into()
            }
            Self::WalStays { path, .. } => format!(
                "make it possible (free space, rights of the folder); if the database is beyond repair, move {0}, {0}-wal and {0}-shm away together, then restore with --in-place again",
                path.display()
            ),
            Self::Undone { path, older } => format!(
                "to go back further: `lifeboat restore --at TIME`, or with the app stopped rename {} to {}",
                older.display(),
                path.display()
            ),
            Self::NoSpace { .. } => "free space, or restore to another volume with -o".into(),
            Self::Running(_) => "wait for it, or stop it, then restore again".into(),
            Self::NothingThere(path) => format!(
                "copies that earlier restores replaced lie beside it, as {}.before-restore-<time>",
                path.display()
            ),
            Self::NothingKept(_) => {
                "only `restore --in-place` keeps a copy that --undo can swap back".into()
            }
            Self::Folder { path, source } if source.kind() == io::ErrorKind::NotFound => {
                format!(
                    "make it first (mkdir -p {}), or mount the volume",
                    path.display()
                )
            }
            Self::Folder { .. } => {
                "restore as a user who may write there, or to another place with -o".into()
            }
            Self::Io { .. } => return None,
        })
    }

    /// A refusal, as opposed to a failure.
    pub fn is_refusal(&self) -> bool {
        !matches!(
            self,
            Self::Io { .. } | Self::Folder { .. } | Self::NoSpace { .. } | Self::WalStays { .. }
        )
    }
}

/// Nobody but Lifeboat has it open: no app is to be stopped.
fn is_ours(reason: &str) -> bool {
    let holders = reason.strip_prefix(OPEN_IN);
    holders.is_some_and(|names| names.split(", ").all(|name| name.starts_with("lifeboat (")))
}
