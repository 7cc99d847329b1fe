//! Why a copy cannot be followed on.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::restore::RestoreError;
use crate::types::Txid;

/// Why a copy cannot be followed on.
#[derive(Debug, Error)]
pub enum FollowError {
    /// Reading the replica, or restoring the first copy.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Something is there that this did not make.
    #[error("{0} is there, and is no copy that `follow` made; nothing was changed")]
    NotOurs(PathBuf),
    /// Somebody wrote to it.
    #[error("{0} was changed by somebody else since it was followed last; nothing was changed now")]
    Changed(PathBuf),
    /// It was made from another replica.
    #[error("{path} follows {theirs}, not {ours}; nothing was changed")]
    OtherReplica {
        /// The copy.
        path: PathBuf,
        /// What it was made from.
        theirs: String,
        /// What was asked for.
        ours: String,
    },
    /// Another process follows into the same copy.
    #[error("another process follows into {0}")]
    Running(PathBuf),
    /// The replica's history was replaced by a shorter one.
    #[error(
        "the replica ends at TXID {ends}, before TXID {at} of {path}: it is another history now; the copy stays as it is"
    )]
    Behind {
        /// The copy.
        path: PathBuf,
        /// Its position.
        at: Txid,
        /// The replica's last point.
        ends: Txid,
    },
    /// The database was made anew with other pages.
    #[error(
        "the database has pages of {theirs} bytes now, {path} has {ours}; the copy stays as it is"
    )]
    PageSize {
        /// The copy.
        path: PathBuf,
        /// Of the replica.
        theirs: u32,
        /// Of the copy.
        ours: u32,
    },
    /// What was applied is not what was captured; it was rolled back.
    #[error(
        "TXID {txid} applied to {path} is not the database that was captured; it was rolled back"
    )]
    Checksum {
        /// The copy.
        path: PathBuf,
        /// Which.
        txid: Txid,
    },
    /// SQLite, on the copy.
    #[error("{path}: {source}; what was not committed was rolled back")]
    Sqlite {
        /// The copy.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
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

impl FollowError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        let anew = |path: &Path| {
            Some(format!(
                "to begin anew, stop its readers and delete {0}, {0}-wal and {0}-shm",
                path.display()
            ))
        };
        match self {
            Self::Restore(e) => e.hint(),
            Self::NotOurs(_) => Some("choose another -o, or move what is there away".into()),
            Self::OtherReplica { .. } => Some("give each replica a copy of its own with -o".into()),
            Self::Running(_) => Some("one is enough; stop the other one first".into()),
            Self::Changed(path)
            | Self::Behind { path, .. }
            | Self::PageSize { path, .. }
            | Self::Checksum { path, .. } => anew(path),
            Self::Sqlite { .. } => {
                Some("look for a reader that keeps a transaction open, and for free space".into())
            }
            Self::Io { .. } => None,
        }
    }

    /// See the design.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Restore(e) => e.exit_code(),
            Self::Checksum { .. } => 5,
            Self::Sqlite { .. } | Self::Io { .. } => 1,
            _ => 4,
        }
    }

    /// Trying again later may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Restore(e) => matches!(e.exit_code(), 1 | 3),
            Self::Sqlite { .. } | Self::Io { .. } => true,
            _ => false,
        }
    }
}
