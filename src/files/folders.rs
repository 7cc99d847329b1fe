//! Walks through the folders of snapshots, and other work of many requests.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use rustic_core::TreeId;

use super::error::FilesError;
use super::record::hold;

/// Requests at a time.
const READERS: usize = 16;

/// Does something to each of `all`, several at a time.
///
/// # Errors
/// The first of `one`; nothing more is begun after it.
pub(super) fn for_each<T: Sync>(
    all: &[T],
    one: impl Fn(&T) -> Result<(), FilesError> + Sync,
) -> Result<(), FilesError> {
    let (at, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let some = || {
        while let Some(next) = all.get(at.fetch_add(1, Ordering::Relaxed)) {
            if hold(&failed).is_some() {
                return;
            }
            if let Err(error) = one(next) {
                hold(&failed).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..READERS.min(all.len()) {
            scope.spawn(some);
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), Err)
}

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
        let next = Mutex::new(HashSet::new());
        for_each(&level, |folder| {
            let below = read(folder)?;
            hold(&next).extend(below);
            Ok(())
        })?;
        let next = std::mem::take(&mut *hold(&next));
        level = next.into_iter().filter(|id| seen.insert(*id)).collect();
    }
    Ok(())
}

/// Bounds what readers hold together: a folder of ten thousand files is megabytes of text.
pub(super) struct Budget {
    left: Mutex<u64>,
    more: Condvar,
    all: u64,
}

/// A part of it, given back when dropped.
pub(super) struct Share<'a>(&'a Budget, u64);

impl Budget {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            left: Mutex::new(bytes),
            more: Condvar::new(),
            all: bytes,
        }
    }

    /// Waits for so much. What is larger than all of it goes alone.
    pub(super) fn take(&self, bytes: u64) -> Share<'_> {
        let bytes = bytes.min(self.all);
        let mut left = hold(&self.left);
        while *left < bytes {
            left = self.more.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
        *left -= bytes;
        Share(self, bytes)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *hold(&self.0.left) += self.1;
        self.0.more.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_together_is_bounded() {
        let (budget, now, most) = (Budget::new(100), Mutex::new(0), Mutex::new(0));
        let all: Vec<u64> = (0..200).map(|n| n * 7 % 60).collect();
        for_each(&all, |bytes| {
            let _share = budget.take(*bytes);
            let held = {
                let mut now = hold(&now);
                *now += bytes;
                *now
            };
            let mut most = hold(&most);
            *most = held.max(*most);
            drop(most);
            std::thread::yield_now();
            *hold(&now) -= bytes;
            Ok(())
        })
        .unwrap();
        assert!((60..=100).contains(&*hold(&most)), "{}", hold(&most));
        assert_eq!(*hold(&budget.left), 100);
        // Larger than all of it.
        drop(budget.take(1000));
        assert_eq!(*hold(&budget.left), 100);
    }

    #[test]
    fn the_first_failure_ends_it() {
        let all: Vec<usize> = (0..1000).collect();
        let begun = AtomicUsize::new(0);
        let failed = for_each(&all, |_| {
            begun.fetch_add(1, Ordering::Relaxed);
            Err(FilesError::Stopped)
        });
        assert!(matches!(failed, Err(FilesError::Stopped)));
        assert!(begun.load(Ordering::Relaxed) <= 2 * READERS);
    }
}
