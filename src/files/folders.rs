//! Walks through the folders of snapshots.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustic_core::TreeId;

use super::error::FilesError;
use super::record::hold;

/// Folders that are read at a time: each is a request of its own.
const READERS: usize = 16;

/// Reads one level of folders after the other, each folder once, however many snapshots have it. `read` looks at one and gives what is below it.
///
/// # Errors
/// The first of `read`; nothing more is read after it.
pub(super) fn walk(
    roots: impl IntoIterator<Item = TreeId>,
    read: impl Fn(&TreeId) -> Result<Vec<TreeId>, FilesError> + Sync,
) -> Result<(), FilesError> {
    let mut seen = HashSet::new();
    let mut level: Vec<TreeId> = roots.into_iter().filter(|id| seen.insert(*id)).collect();
    while !level.is_empty() {
        let (next, at) = (Mutex::new(HashSet::new()), AtomicUsize::new(0));
        let failed = Mutex::new(None);
        let folders = || {
            while let Some(folder) = level.get(at.fetch_add(1, Ordering::Relaxed)) {
                if hold(&failed).is_some() {
                    return;
                }
                match read(folder) {
                    Ok(below) => hold(&next).extend(below),
                    Err(error) => {
                        hold(&failed).get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..READERS.min(level.len()) {
                scope.spawn(folders);
            }
        });
        if let Some(error) = hold(&failed).take() {
            return Err(error);
        }
        let next = std::mem::take(&mut *hold(&next));
        level = next.into_iter().filter(|id| seen.insert(*id)).collect();
    }
    Ok(())
}
