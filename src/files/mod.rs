//! Folders of files, kept as a restic repository in each store. The chunks, packs and index are rustic_core's; the requests are ours.
//!
//! Invariants
//! 1. A snapshot is written last, once, after the run was looked at: it is complete, or it carries the tag `partial` and the names of what is
//!    missing. A killed run leaves data without a snapshot, which the next run finds and uses.
//! 2. A folder that was full is not recorded as empty, and nothing is recorded for a folder that was swapped away during the run.
//! 3. Data is deleted only under an exclusive lock, and only what no kept snapshot needs.
//! 4. Blocking: everything here runs on threads that may block, never on an async worker.

mod attributes;
mod backend;
mod backup;
mod contents;
mod drill;
mod error;
mod filter;
mod folders;
mod index;
mod lock;
mod opened;
mod place;
mod points;
mod prune;
mod read_back;
mod reader;
mod record;
mod repository;
mod restore;
mod roots;
mod source;
mod undo;
mod unfinished;
mod verify;
mod write;

use std::sync::Arc;
use std::time::Duration;

pub use backend::Backend;
pub use backup::{Backup, backup};
pub use drill::{Drill, drill, drills};
pub use error::FilesError;
pub use filter::LeftOut;
pub use points::{Goal, NewLabel, Point, find, free_label, list, locate};
pub use prune::{Pruned, prune, prune_until};
pub use restore::{Output, Restored, restore};
pub use undo::{Back, Undone, has_content, kept, undo};
pub use verify::verify;

use crate::config::FilesConfig;
use crate::store::Store;

/// A request of a backup is tried this long: an outage of minutes does not end a run of hours.
pub const PATIENCE_BACKUP: Duration = Duration::from_secs(5 * 60);
/// A request that a person waits for.
pub const PATIENCE_PERSON: Duration = Duration::from_secs(20);

/// The lowest priority there is.
const LOWEST: i32 = 19;

/// One target in one store.
#[derive(Clone)]
pub struct Target {
    /// How it is kept.
    pub config: Arc<FilesConfig>,
    /// Where: the repository's own place.
    pub store: Store,
    /// Who we are, as snapshots name their host.
    pub instance: String,
    /// What is left out besides the patterns.
    pub left_out: LeftOut,
    /// For requests.
    pub runtime: tokio::runtime::Handle,
}

impl Target {
    fn backend(&self, patience: Duration) -> Backend {
        Backend::new(self.store.clone(), self.runtime.clone(), patience)
    }
}

/// Makes the repository; `false` if it was there.
///
/// # Errors
/// As [`FilesError`].
pub fn create(target: &Target) -> Result<bool, FilesError> {
    let backend = target.backend(PATIENCE_PERSON);
    repository::open_or_create(&backend, &target.config.password).map(|(_, made)| made)
}

/// Does work that gives way to the app, on a thread of its own: one that gave way once does so for ever, whatever it is used for next.
///
/// # Errors
/// Those of the work; the system's, if there can be no thread.
pub fn nicely<T: Send>(
    work: impl FnOnce() -> Result<T, FilesError> + Send,
) -> Result<T, FilesError> {
    let nice = || {
        // This thread and those that it starts.
        if let Err(error) = rustix::process::setpriority_process(None, LOWEST) {
            tracing::debug!(%error, "files are worked on at normal priority");
        }
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("files".into());
        let thread = thread.spawn_scoped(scope, nice);
        let thread = thread.map_err(|e| FilesError::io(std::path::Path::new("a thread"), e))?;
        let done = thread.join();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Durations in JSON are seconds.
fn seconds<S: serde::Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(took.as_secs_f64())
}
