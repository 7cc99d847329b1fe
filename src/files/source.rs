//! What is read: the configured paths, without what must not be copied, with a record of everything that could not be read.
//!
//! rustic_core drops what it cannot read and says so only in its log. Here every such file is kept by name, and the number of entries that
//! were handed over is compared with the number that arrived, so that no run is called complete that is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use ignore::{DirEntry, Walk, WalkBuilder};
use rustic_core::{
    ErrorKind, LocalSourceSaveOptions, ReadSource, ReadSourceEntry, ReadSourceOpen, RusticError,
    RusticResult,
};

use crate::sqlite::files::{PlainFile, is_attached};

use super::backend::Backend;

/// Names kept of files that could not be read; more are only counted.
const NAMES_KEPT: usize = 1000;
/// First bytes of every SQLite database.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// File names that databases go by. An upload without such a name is an upload, whatever it holds.
const DATABASE_NAMES: [&str; 3] = ["sqlite3", "sqlite", "db"];
/// What stands beside a database.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What is left out besides the exclude patterns.
#[derive(Clone, Debug, Default)]
pub struct LeftOut {
    /// Databases that are targets: they have a copy of their own.
    pub databases: BTreeSet<PathBuf>,
    /// Local state and local stores: a backup of the backup grows for ever.
    pub folders: Vec<PathBuf>,
}

/// What a run could not take, or took with a remark.
#[derive(Debug, Default)]
pub(super) struct Record {
    entries: AtomicU64,
    lost: AtomicU64,
    unreadable: AtomicU64,
    vanished: AtomicU64,
    names: Mutex<BTreeMap<PathBuf, String>>,
    databases: Mutex<BTreeSet<PathBuf>>,
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
        self.unreadable.fetch_add(1, Ordering::Relaxed);
        let mut names = hold(&self.names);
        if names.len() < NAMES_KEPT {
            names.insert(path.to_owned(), reason.to_string());
        }
    }

    /// One that was handed over and is dropped by rustic_core.
    fn lose(&self, path: &Path, error: &io::Error) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        if error.kind() == io::ErrorKind::NotFound {
            self.vanished.fetch_add(1, Ordering::Relaxed);
        } else {
            self.fail(path, error);
        }
    }
}

fn hold<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing in here is left half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The configured paths as a [`ReadSource`].
pub(super) struct Source {
    paths: Vec<PathBuf>,
    exclude: Vec<String>,
    left_out: LeftOut,
    record: Arc<Record>,
    backend: Backend,
}

impl Source {
    /// `paths` exist and are sorted. Patterns were checked by the configuration.
    pub(super) fn new(
        paths: Vec<PathBuf>,
        exclude: Vec<String>,
        left_out: LeftOut,
        backend: Backend,
    ) -> Self {
        Self {
            paths,
            exclude,
            left_out,
            record: Arc::default(),
            backend,
        }
    }

    /// What could not be taken.
    pub(super) fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record)
    }

    fn walk(&self, root: &Path) -> Walk {
        let filter = Filter {
            record: Arc::clone(&self.record),
            ..Filter::of(root, &self.exclude, &self.left_out)
        };
        let mut builder = WalkBuilder::new(root);
        builder
            .standard_filters(false)
            .follow_links(false)
            .sort_by_file_name(std::ffi::OsStr::cmp)
            .filter_entry(move |entry| filter.takes(entry));
        builder.build()
    }
}

fn patterns(root: &Path, exclude: &[String]) -> Gitignore {
    let mut builder = GitignoreBuilder::new(root);
    for pattern in exclude {
        // The configuration has tried it.
        let _ = builder.add_line(None, pattern);
    }
    builder.build().unwrap_or_else(|_| Gitignore::empty())
}

/// What a backup takes of a folder.
pub(super) struct Filter {
    excluded: Gitignore,
    left_out: LeftOut,
    record: Arc<Record>,
}

impl Filter {
    /// For a look at what is there, without a backup.
    pub(super) fn of(root: &Path, exclude: &[String], left_out: &LeftOut) -> Self {
        Self {
            excluded: patterns(root, exclude),
            left_out: left_out.clone(),
            record: Arc::default(),
        }
    }

    fn takes(&self, entry: &DirEntry) -> bool {
        let is_dir = entry.file_type().is_some_and(|t| t.is_dir());
        entry.depth() == 0 || self.takes_path(entry.path(), is_dir)
    }

    /// Whether something below the root is taken.
    pub(super) fn takes_path(&self, path: &Path, is_dir: bool) -> bool {
        if self.excluded.matched(path, is_dir).is_ignore() {
            return false;
        }
        if is_dir {
            let ours = path
                .file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.starts_with(super::place::OURS));
            return !ours && !self.left_out.folders.iter().any(|f| path.starts_with(f));
        }
        match self.database_of(path) {
            None => true,
            Some(database) => {
                hold(&self.record.databases).insert(database);
                false
            }
        }
    }

    /// The database that a file is or belongs to.
    fn database_of(&self, path: &Path) -> Option<PathBuf> {
        let name = path.file_name()?.to_str()?;
        let base = COMPANIONS.iter().find_map(|c| name.strip_suffix(c));
        let candidate = path.with_file_name(base.unwrap_or(name));
        // A WAL-index is never opened: closing it would drop the locks of a database that is attached here.
        let known = self.left_out.databases.contains(&candidate)
            || name.ends_with("-shm")
            || is_attached(&candidate);
        (known || is_database(&candidate)).then_some(candidate)
    }
}

/// A database by its name and its first bytes.
fn is_database(path: &Path) -> bool {
    let named = path
        .extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| DATABASE_NAMES.contains(&e.to_ascii_lowercase().as_str()));
    let mut first = [0; 16];
    named
        && path.symlink_metadata().is_ok_and(|m| m.is_file())
        && File::open(path)
            .map(PlainFile::new)
            .and_then(|f| (&*f).read_exact(&mut first))
            .is_ok()
        && &first == SQLITE_MAGIC
}

impl ReadSource for Source {
    type Open = Open;
    type Iter = Entries;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }

    fn entries(&self) -> Entries {
        let walks: Vec<Walk> = self
            .paths
            .iter()
            .rev()
            .map(|root| self.walk(root))
            .collect();
        Entries {
            walks,
            record: Arc::clone(&self.record),
            backend: self.backend.clone(),
        }
    }
}

/// Everything below the paths, by path.
pub(super) struct Entries {
    walks: Vec<Walk>,
    record: Arc<Record>,
    backend: Backend,
}

impl Iterator for Entries {
    type Item = RusticResult<ReadSourceEntry<Open>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // Nothing that is read now could be uploaded any more.
            if self.backend.is_over() {
                return None;
            }
            let Some(found) = self.walks.last_mut()?.next() else {
                self.walks.pop();
                continue;
            };
            match found {
                Err(error) => self.refused(&error),
                Ok(entry) => {
                    let path = entry.path().to_owned();
                    if let Some(item) = self.item(entry, &path) {
                        return Some(Ok(item));
                    }
                }
            }
        }
    }
}

impl Entries {
    fn refused(&self, error: &ignore::Error) {
        if error.io_error().map(io::Error::kind) == Some(io::ErrorKind::NotFound) {
            self.record.vanished.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let path = path_of(error).unwrap_or_default();
        let reason = match error.io_error() {
            Some(io) => io.to_string(),
            None => error.to_string(),
        };
        self.record.fail(&path, reason);
    }

    fn item(&self, entry: DirEntry, path: &Path) -> Option<ReadSourceEntry<Open>> {
        let mapped = match LocalSourceSaveOptions::default().map_entry(entry) {
            Ok(mapped) => mapped,
            Err(error) => {
                match path.symlink_metadata() {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {
                        self.record.vanished.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => self.record.fail(path, error),
                }
                return None;
            }
        };
        let node = mapped.node;
        if !node.is_dir() {
            self.record.entries.fetch_add(1, Ordering::Relaxed);
        }
        let open = Some(Open {
            path: mapped.path.clone(),
            size: node.meta.size,
            modified: node.meta.mtime,
            record: Arc::clone(&self.record),
        });
        Some(ReadSourceEntry {
            path: mapped.path,
            node,
            open,
        })
    }
}

fn path_of(error: &ignore::Error) -> Option<PathBuf> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path.clone()),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => {
            path_of(err)
        }
        _ => None,
    }
}

/// A file that is about to be read.
pub(super) struct Open {
    path: PathBuf,
    size: u64,
    modified: Option<jiff::Timestamp>,
    record: Arc<Record>,
}

impl ReadSourceOpen for Open {
    type Reader = Reader;

    fn open(self) -> RusticResult<Reader> {
        // A pipe that took the place of the file must not block the run, a link must not lead it elsewhere.
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
        let opened = File::options()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(&self.path)
            .map(PlainFile::new);
        let opened = opened.and_then(|file| match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("is no file any more")),
        });
        match opened {
            Ok(file) => Ok(Reader {
                file,
                left: self.size,
                of: self,
            }),
            Err(error) => {
                self.record.lose(&self.path, &error);
                Err(RusticError::with_source(
                    ErrorKind::InputOutput,
                    "cannot open",
                    error,
                ))
            }
        }
    }
}

/// Reads exactly as many bytes as the file had when it was listed: what is appended meanwhile belongs to the next run, and a file that
/// became shorter is an error.
pub(super) struct Reader {
    file: PlainFile,
    left: u64,
    of: Open,
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let want = usize::try_from(self.left).map_or(buf.len(), |left| left.min(buf.len()));
        let result = match (&*self.file).read(&mut buf[..want]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
            Ok(0) if want > 0 => Err(io::Error::other("became shorter while it was read")),
            other => other,
        };
        match result {
            Ok(n) => {
                self.left -= n as u64;
                if self.left == 0 {
                    self.look_again();
                }
                Ok(n)
            }
            Err(error) => {
                self.of.record.lose(&self.of.path, &error);
                Err(error)
            }
        }
    }
}

impl Reader {
    /// A file that was written to in the middle may be half old and half new.
    fn look_again(&self) {
        let Ok(now) = self.file.metadata() else {
            return;
        };
        let modified = now
            .modified()
            .ok()
            .and_then(|t| jiff::Timestamp::try_from(t).ok());
        if now.size() == self.of.size && modified != self.of.modified {
            self.of.record.fail(
                &self.of.path,
                "changed while it was read; the next run reads it again",
            );
        }
    }
}
