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
    vanished: AtomicU64,
    names: Mutex<BTreeMap<PathBuf, String>>,
    pub(super) databases: Mutex<BTreeSet<PathBuf>>,
    /// Folders with something of a restore in them, or in which something was not there any more.
    disturbed: Mutex<BTreeSet<PathBuf>>,
    away: Mutex<Option<PathBuf>>,
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

    /// One below `root` that is not there any more.
    pub(super) fn vanish(&self, root: &Path, path: &Path) {
        self.vanished.fetch_add(1, Ordering::Relaxed);
        let above = path.ancestors().skip(1);
        let below_root = above.take_while(|folder| folder.starts_with(root));
        hold(&self.disturbed).extend(below_root.map(Path::to_owned));
    }

    /// Something of a restore is in this folder.
    pub(super) fn meet_restore(&self, folder: &Path) {
        hold(&self.disturbed).insert(folder.to_owned());
    }

    /// Folders that a restore may have changed meanwhile.
    pub(super) fn disturbed(&self) -> BTreeSet<PathBuf> {
        hold(&self.disturbed).clone()
    }

    /// A configured path is not there any more, or is another one.
    pub(super) fn leave(&self, root: &Path) {
        hold(&self.away).get_or_insert_with(|| root.to_owned());
    }

    /// The first of them.
    pub(super) fn away(&self) -> Option<PathBuf> {
        hold(&self.away).clone()
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
    pub(super) fn lose(&self, root: &Path, path: &Path, error: &io::Error) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        if error.kind() == io::ErrorKind::NotFound {
            self.vanish(root, path);
        } else {
            self.fail(path, error);
        }
    }
}

pub(super) fn hold<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing in here is left half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
