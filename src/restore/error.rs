//! Why a restore failed, and what a person does next.

use thiserror::Error;

use super::edit::EditError;
use super::plan::{self, PlanError, Point};
use super::swap::SwapError;
use super::{apply, v03};
use crate::store::StoreError;

/// What to do where files are gone that were there.
pub(crate) const GONE: &str = "look for a lifecycle rule or another program that deletes there; a bucket with versioning or another store may still hold them. To begin anew, move the replica away";

/// Why a restore failed. Nothing was changed unless the message says so.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The store.
    #[error("{0}; nothing was changed")]
    Store(#[from] StoreError),
    /// No such point.
    #[error("{0}")]
    Plan(#[from] PlanError),
    /// Files were there and are gone: this is no new replica.
    #[error(
        "the replica holds no files any more, but {0} tells of points that were there; nothing was changed"
    )]
    Lost(String),
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
    /// A file is missing in the middle: what is restorable is older than what was asked for.
    #[error(
        "the chain ends at TXID {} of {}: TXID {} is missing, and {} later files up to TXID {} cannot be applied without it; nothing was changed",
        .0.reaches.txid, .0.reaches.at, .0.missing, .0.files, .0.newest
    )]
    Hole(plan::Hole),
    /// A replica of Litestream 0.3.
    #[error("{0}; nothing was changed")]
    V03(#[from] v03::Error),
    /// Changing the restored copy.
    #[error("{0}; nothing was changed")]
    Edit(#[from] EditError),
    /// No point is sound.
    #[error(
        "none of {points} restore points was found sound: {tried} were restored and checked, from the newest to the oldest; nothing was changed"
    )]
    NoneSound {
        /// Points that were restored.
        tried: usize,
        /// Points that there are.
        points: usize,
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
            Self::Lost(_) => Some(GONE.into()),
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
            Self::V03(e) => e.hint(),
            Self::Hole(hole) => Some(format!(
                "to have the last point before it: --txid {}; a bucket with versioning or another store may still hold the missing file",
                hole.reaches.txid
            )),
            Self::Edit(e) => e.hint(),
            Self::NoneSound { .. } => Some(
                "`--verify none -o PATH` restores the newest point as it is; `sqlite3 PATH .recover` may save rows of it"
                    .into(),
            ),
            Self::Swap(e) => e.hint(),
            Self::Local(_) => None,
        }
    }

    /// Exit code (see the design: 3 nothing to restore, 4 refusal, 5 verification failed).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Plan(_) | Self::V03(v03::Error::NoSnapshot(_) | v03::Error::NoTxids) => 3,
            Self::V03(e) if e.is_corrupt() => 5,
            Self::Swap(e) if e.is_refusal() => 4,
            Self::Lost(_)
            | Self::Corrupt { .. }
            | Self::Hole(_)
            | Self::Checksum { .. }
            | Self::Damaged { .. }
            | Self::NoneSound { .. } => 5,
            Self::Store(_) | Self::V03(_) | Self::Edit(_) | Self::Swap(_) | Self::Local(_) => 1,
        }
    }
}
