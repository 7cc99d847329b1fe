//! What is read: the configured paths, without what must not be copied, with a record of everything that could not be read.
//!
//! rustic_core drops what it cannot read and says so only in its log. Here every such file is kept by name, and the number of entries that
//! were handed over is compared with the number that arrived, so that no run is called complete that is not.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use ignore::{DirEntry, Walk, WalkBuilder};
use rustic_core::repofile::Node;
use rustic_core::{LocalSourceSaveOptions, ReadSource, ReadSourceEntry, RusticResult};

use crate::config::FilesConfig;
use crate::sqlite::files::{PlainFile, is_attached};

use super::attributes::extended;
use super::backend::Backend;
use super::reader::{Open, Root};
use super::record::{Record, hold};

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

    /// The same for what is at or below a configured path: patterns begin there.
    pub(super) fn at(path: &Path, config: &FilesConfig, left_out: &LeftOut) -> Self {
        let root = config.paths.iter().find(|root| path.starts_with(root));
        Self::of(
            root.map_or(path, PathBuf::as_path),
            &config.exclude,
            left_out,
        )
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

    /// Whether a restore must leave this path as it is: a backup would not take what is there, or it is or belongs to a database.
    pub(super) fn keeps(&self, path: &Path, there: Option<&std::fs::Metadata>) -> bool {
        match there {
            Some(there) => !self.takes_path(path, there.is_dir()),
            None => self.database_of(path).is_some(),
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
        let mut walks = Vec::new();
        for path in self.paths.iter().rev() {
            match Root::open(path) {
                Ok(root) => walks.push((Arc::new(root), self.walk(path))),
                Err(error) => self.record.fail(path, error),
            }
        }
        Entries {
            walks,
            without: None,
            record: Arc::clone(&self.record),
            backend: self.backend.clone(),
        }
    }
}

/// Everything below the paths, by path.
pub(super) struct Entries {
    walks: Vec<(Arc<Root>, Walk)>,
    /// A folder that was not handed over: nothing below it is.
    without: Option<PathBuf>,
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
            let (root, walk) = self.walks.last_mut()?;
            let Some(found) = walk.next() else {
                self.walks.pop();
                continue;
            };
            let root = Arc::clone(root);
            match found {
                Err(error) => self.refused(&error),
                Ok(entry) => {
                    let path = entry.path().to_owned();
                    if self.without.as_ref().is_some_and(|w| path.starts_with(w)) {
                        continue;
                    }
                    let was_folder = entry.file_type().is_some_and(|t| t.is_dir());
                    if let Some(item) = self.item(&root, entry, &path) {
                        if item.node.is_dir() == was_folder {
                            self.record
                                .entries
                                .fetch_add(u64::from(!was_folder), Ordering::Relaxed);
                            return Some(Ok(item));
                        }
                        self.record.fail(&path, "was replaced while it was listed");
                    }
                    if was_folder {
                        self.without = Some(path);
                    }
                }
            }
        }
    }
}

impl Entries {
    fn refused(&self, error: &ignore::Error) {
        if error.io_error().map(io::Error::kind) == Some(io::ErrorKind::NotFound) {
            self.vanished();
            return;
        }
        let path = path_of(error).unwrap_or_default();
        let reason = match error.io_error() {
            Some(io) => io.to_string(),
            None => error.to_string(),
        };
        self.record.fail(&path, reason);
    }

    fn item(
        &self,
        root: &Arc<Root>,
        entry: DirEntry,
        path: &Path,
    ) -> Option<ReadSourceEntry<Open>> {
        let mapped = match LocalSourceSaveOptions::default().map_entry(entry) {
            Ok(mapped) => mapped,
            Err(error) => {
                match path.symlink_metadata() {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => self.vanished(),
                    _ => self.record.fail(path, error),
                }
                return None;
            }
        };
        let node = mapped.node;
        match root.holds(path, &node) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.vanished();
                return None;
            }
            Err(error) => {
                self.record.fail(path, error);
                return None;
            }
            Ok(()) => self.look_at_attributes(path, &node),
        }
        let open = Some(Open {
            root: Arc::clone(root),
            path: mapped.path.clone(),
            size: node.meta.size,
            inode: node.meta.inode,
            modified: node.meta.mtime,
            record: Arc::clone(&self.record),
        });
        Some(ReadSourceEntry {
            path: mapped.path,
            node,
            open,
        })
    }

    fn vanished(&self) {
        self.record.vanished.fetch_add(1, Ordering::Relaxed);
    }

    /// rustic_core leaves all extended attributes out if one cannot be read, with a line in its log.
    fn look_at_attributes(&self, path: &Path, node: &Node) {
        if !node.meta.extended_attributes.is_empty() {
            return;
        }
        match extended(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let what = format!("its extended attributes cannot be read: {e}");
                self.record.fail(path, what);
            }
            _ => {}
        }
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
