//! What a run could not take: rustic_core drops it and says so only in its log.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Names kept of files that could not be read; more are only counted.
const NAMES_KEPT: usize = 1000;

/// What a run could not take, or took with a remark.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) entries: AtomicU64,
    lost: AtomicU64,
    unreadable: AtomicU64,
    pub(super) vanished: AtomicU64,
    names: Mutex<BTreeMap<PathBuf, String>>,
    pub(super) databases: Mutex<BTreeSet<PathBuf>>,
}

impl Record {
    /// Files that could not be read or changed meanwhile, with the reason: the first of them.
    pub(super) fn names(&self) -> BTreeMap<PathBuf, String> {
        hold(&self.names).clone()
    }

    /// How many of them there are.
    pub(super) fn unreadable(&self) -> u64 {
        self.unreadable.load(Ordering::Relaxed)
    }

    /// Files that were deleted between listing and reading.
    pub(super) fn vanished(&self) -> u64 {
        self.vanished.load(Ordering::Relaxed)
    }

    /// Databases that were left out.
    pub(super) fn databases(&self) -> BTreeSet<PathBuf> {
        hold(&self.databases).clone()
    }

    /// Entries other than folders that the snapshot must hold.
    pub(super) fn expected(&self) -> u64 {
        let lost = self.lost.load(Ordering::Relaxed);
        self.entries.load(Ordering::Relaxed).saturating_sub(lost)
    }

    /// One that could not be read.
    pub(super) fn fail(&self, path: &Path, reason: impl ToString) {
        let mut names = hold(&self.names);
        if names.contains_key(path) {
            // Counted already.
            return;
        }
        self.unreadable.fetch_add(1, Ordering::Relaxed);
        if names.len() < NAMES_KEPT {
            names.insert(path.to_owned(), reason.to_string());
        }
    }

    /// One that was handed over and is dropped by rustic_core.
    pub(super) fn lose(&self, path: &Path, error: &io::Error) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        if error.kind() == io::ErrorKind::NotFound {
            self.vanished.fetch_add(1, Ordering::Relaxed);
        } else {
            self.fail(path, error);
        }
    }
}

pub(super) fn hold<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing in here is left half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
