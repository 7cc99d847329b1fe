//! Why a capture failed, and what a person does next.

use std::io;

use thiserror::Error;

use crate::ltx;
use crate::replica::spool::SpoolError;
use crate::sqlite::guard::{GapReason, GuardError};

/// Why a capture failed. Nothing was lost: see the module.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The database.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// Writing a local LTX file or the checksum table.
    #[error("writing local state: {0}")]
    Local(#[from] io::Error),
    /// Encoding.
    #[error("writing a local LTX file: {0}")]
    Ltx(#[from] ltx::Error),
    /// Rolling up.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The WAL kept changing under every attempt to read it whole.
    #[error("{0}: no consistent view of the database could be read")]
    NoView(std::path::PathBuf),
    /// What was read is not what was captured.
    #[error("the database file is not what was captured: {0}")]
    Drift(String),
    /// A base cannot be finished: what it still had to read is protected no more.
    #[error("the view of the database was lost: {0}")]
    ViewLost(String),
    /// A gap was found where no gap capture can run.
    #[error("continuity was lost ({})", .0.word())]
    Gap(GapReason),
}

impl CaptureError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Guard(e) => e.hint(),
            Self::Local(e) if e.kind() == io::ErrorKind::StorageFull => Some(
                "free space on the volume of the state directory; capture goes on by itself".into(),
            ),
            _ => None,
        }
    }
}
