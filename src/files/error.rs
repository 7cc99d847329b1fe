//! Everything that can go wrong with files.

use std::path::PathBuf;

use thiserror::Error;

use super::backend::{Asked, Backend};
use crate::labels::FindError;
use crate::store::StoreError;

/// Why something with files was not done.
#[derive(Debug, Error)]
pub enum FilesError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no repository, and none may be made.
    #[error("there is no repository in {0}")]
    NoRepository(String),
    /// The password opens none of the repository's keys.
    #[error("the password does not open the repository in {0}; nothing was changed")]
    Password(String),
    /// No key file can be read, or there is none.
    #[error("the repository in {store} cannot be opened: {what}; nothing was changed")]
    Key {
        /// Where.
        store: String,
        /// Which file.
        what: String,
    },
    /// Somebody holds a lock that excludes this.
    #[error("the repository in {store} is locked by {holder} since {since}; nothing was changed")]
    Locked {
        /// Where.
        store: String,
        /// Host and process.
        holder: String,
        /// RFC 3339.
        since: String,
        /// A prune of Lifeboat: what it lets go of can be read for a day.
        by_prune: bool,
    },
    /// A folder that was full is empty or away.
    #[error(
        "{} is {now}, and the last backup of it holds files; nothing was recorded, the earlier snapshots are as they were", path.display()
    )]
    Emptied {
        /// Which.
        path: PathBuf,
        /// `empty` or `not there`.
        now: &'static str,
    },
    /// No path is there, and none was.
    #[error("{} is not there; nothing was recorded", .0.display())]
    Missing(PathBuf),
    /// Another folder lies at a path than at the start.
    #[error(
        "{} was replaced or unmounted during the backup; nothing was recorded, and the next run goes on from what was uploaded", .0.display()
    )]
    Replaced(PathBuf),
    /// Nothing to restore.
    #[error("{0}")]
    NoPoint(String),
    /// A label that names no one snapshot.
    #[error(transparent)]
    Label(#[from] FindError),
    /// A refusal to overwrite.
    #[error("{0}")]
    Refused(String),
    /// Another restore is at work on the same place.
    #[error("another restore to {} is running; nothing was changed by this one", .0.display())]
    Running(PathBuf),
    /// Nothing to swap back.
    #[error("{} has no kept content from before a restore", .0.display())]
    NothingKept(PathBuf),
    /// The last thing that happened here was an undo.
    #[error(
        "the last restore of {path} is undone already; {older} is what an earlier restore replaced; nothing was changed"
    )]
    UndoneAlready {
        /// The path.
        path: PathBuf,
        /// The newest content that a restore replaced.
        older: PathBuf,
    },
    /// What is in the repository is not what was put there.
    #[error("the repository in {store} is damaged: {what}")]
    Damaged {
        /// Where.
        store: String,
        /// The first findings.
        what: String,
    },
    /// The run was stopped.
    #[error("stopped; nothing was recorded, and the next run goes on from what was uploaded")]
    Stopped,
    /// Others may have taken our lock for stale, and be at work.
    #[error(
        "the lock of the repository in {0} was not renewed in time, because this process or its host slept or the store did not answer; others may be at work, so nothing further was recorded or deleted"
    )]
    LockLost(String),
    /// A local file or folder.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// rustic_core says.
    #[error("{doing} the repository in {store}: {reason}")]
    Repository {
        /// What was being done.
        doing: &'static str,
        /// Where.
        store: String,
        /// Its words.
        reason: String,
    },
}

impl FilesError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Store(e) => return e.hint(),
            Self::NoRepository(_) => {
                "set `create: true` for this target, or run `lifeboat files init NAME` once".into()
            }
            Self::Password(_) => {
                "give the password that the repository was made with (`password`, `password-file`, LIFEBOAT_FILES_PASSWORD); without it nobody reads the files".into()
            }
            Self::Locked { .. } => {
                "wait for it to end; a lock that nobody renews is ignored after 30 minutes, and `restic unlock` removes it".into()
            }
            Self::Emptied { .. } => {
                "look whether the volume is mounted; if it is meant to be empty, set `allow-empty: true`".into()
            }
            Self::LockLost(_) => "run it again: it goes on from what is there".into(),
            Self::Missing(_) => "check `paths`, and whether the volume is mounted".into(),
            Self::Replaced(_) => "look whether the volume is mounted".into(),
            Self::NoPoint(_) => "`lifeboat list` shows what there is".into(),
            Self::Label(e) => e.hint(),
            Self::Damaged { .. } => {
                "keep the store as it is and see \"Damage\" in docs/files.md: `restic rebuild-index` (`restic repair index` since restic 0.16) mends the index, and the next backup uploads again what is still here".into()
            }
            Self::Key { .. } => {
                "put the file back from a copy of the store, or restore from another store: without its key nobody reads a repository".into()
            }
            Self::Running(_) => "wait for it, or stop it, then restore again".into(),
            Self::NothingKept(_) => {
                "only `restore --in-place` keeps what --undo can swap back".into()
            }
            Self::UndoneAlready { .. } => {
                "to go back further: `lifeboat restore --at TIME --in-place`, or move the files by hand".into()
            }
            Self::Refused(_) | Self::Stopped | Self::Io { .. } | Self::Repository { .. } => return None,
        })
    }

    /// A local file or folder failed.
    pub(super) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }

    /// Another store would not help.
    pub fn is_local(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::Running(_)
                | Self::NothingKept(_)
                | Self::UndoneAlready { .. }
                | Self::Stopped
                | Self::Io { .. }
        )
    }

    /// Of the process: see the design.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoPoint(_) | Self::NoRepository(_) => 3,
            Self::Label(e) => e.exit_code(),
            Self::Locked { .. }
            | Self::Emptied { .. }
            | Self::Replaced(_)
            | Self::Refused(_)
            | Self::Running(_)
            | Self::NothingKept(_)
            | Self::UndoneAlready { .. } => 4,
            Self::Damaged { .. } | Self::Key { .. } => 5,
            Self::Store(_)
            | Self::Password(_)
            | Self::Missing(_)
            | Self::LockLost(_)
            | Self::Stopped
            | Self::Io { .. }
            | Self::Repository { .. } => 1,
        }
    }

    /// Why requests fail from now on, if they do.
    pub(super) fn over(backend: &Backend) -> Option<Self> {
        match backend.failure() {
            Some(failure) => Some(Self::Store(failure)),
            None if backend.lock_is_lost() => Some(Self::LockLost(backend.store().display())),
            None => backend.is_over().then_some(Self::Stopped),
        }
    }

    /// The plainest words for a failure of rustic_core: the store's own where it was the store.
    pub(super) fn of(
        doing: &'static str,
        backend: &Backend,
        error: &rustic_core::RusticError,
    ) -> Self {
        if error.is_incorrect_password() {
            return Self::Password(backend.store().display());
        }
        if let Some(over) = Self::over(backend) {
            return over;
        }
        let reason = error.display_log();
        let reason = plain(&reason);
        if reason.contains("MAC check failed") || reason.contains("cannot decrypt") {
            return Self::Damaged {
                store: backend.store().display(),
                what: format!("{doing} it, something could not be decrypted"),
            };
        }
        let reason = reason.trim_start_matches("Error: ");
        Self::Repository {
            doing,
            store: backend.store().display(),
            reason: reason.to_owned(),
        }
    }
}

/// What rustic_core says, without what is for its developers.
pub(super) fn plain(text: &str) -> String {
    let text = text.split("Some additional details").next();
    let text = text.unwrap_or_default().replace('\n', " ");
    // Its own name and kinds of errors stand before the message of a nested one.
    let text = match text.split_once("`rustic_core` experienced an error") {
        Some((before, nested)) => {
            let message = nested.split_once("Message:").map_or("", |(_, m)| m);
            format!(
                "{}: {}",
                before.trim_end_matches([' ', ':']),
                message.trim()
            )
        }
        None => text,
    };
    text.trim().to_owned()
}

impl From<Asked> for FilesError {
    fn from(asked: Asked) -> Self {
        match asked {
            Asked::Stopped => Self::Stopped,
            Asked::LockLost(store) => Self::LockLost(store),
            Asked::Store(e) => Self::Store(e),
        }
    }
}
