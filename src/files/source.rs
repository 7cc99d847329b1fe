//! What is read: the configured paths, without what must not be copied, with a record of everything that could not be read.
//!
//! rustic_core drops what it cannot read and says so only in its log. Here every such file is kept by name, and the number of entries that
//! were handed over is compared with the number that arrived, so that no run is called complete that is not.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ignore::{DirEntry, Walk, WalkBuilder};
use rustic_core::repofile::Node;
use rustic_core::{LocalSourceSaveOptions, ReadSource, ReadSourceEntry, RusticResult};

use super::attributes::extended;
use super::backend::Backend;
use super::error::FilesError;
use super::filter::{Filter, LeftOut};
use super::reader::{Open, Root};
use super::record::Record;

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

    /// # Errors
    /// [`FilesError::Refused`] if a path is a database itself.
    pub(super) fn refuse_databases(&self) -> Result<(), FilesError> {
        let database = self.paths.iter().find(|path| {
            let filter = Filter::of(path, &self.exclude, &self.left_out);
            !path.is_dir() && filter.database_of(path).is_some()
        });
        match database {
            None => Ok(()),
            Some(path) => Err(FilesError::Refused(format!(
                "{} is a database or belongs to one, and a copy of an open database is no backup; nothing was recorded (list it under `sqlite:`, and take it out of `paths`)",
                path.display()
            ))),
        }
    }

    /// What could not be taken.
    pub(super) fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record)
    }

    fn walk(&self, root: &Path) -> Walk {
        let filter = Filter::of(root, &self.exclude, &self.left_out).noting(&self.record);
        let mut builder = WalkBuilder::new(root);
        builder
            .standard_filters(false)
            .follow_links(false)
            .sort_by_file_name(std::ffi::OsStr::cmp)
            .filter_entry(move |entry| filter.takes(entry));
        builder.build()
    }
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
                Err(error) => self.refused(&root, &error),
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
    fn refused(&self, root: &Root, error: &ignore::Error) {
        let path = path_of(error).unwrap_or_default();
        if error.io_error().map(io::Error::kind) == Some(io::ErrorKind::NotFound) {
            self.vanished(root, &path);
            // A folder that is there again has more in it than one file.
            if path.is_dir() {
                self.record
                    .fail(&path, "was not there for a moment; the next run reads it");
            }
            return;
        }
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
                    Err(e) if e.kind() == io::ErrorKind::NotFound => self.vanished(root, path),
                    _ => self.record.fail(path, error),
                }
                return None;
            }
        };
        let node = mapped.node;
        match root.holds(path, &node) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.vanished(root, path);
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

    /// Deleted since it was listed; or the volume went away, and perhaps comes back before the run ends.
    fn vanished(&self, root: &Root, path: &Path) {
        match root.is_here() {
            true => self.record.vanish(root.path(), path),
            false => self.record.leave(root.path()),
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use object_store::memory::InMemory;

    use super::*;
    use crate::store::{Kind, Store};

    /// A volume that goes away in the middle of a run and is back before its end: what was not there meanwhile was not deleted.
    #[test]
    fn what_was_away_for_a_moment_does_not_count_as_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let (root, away) = (dir.path().join("data"), dir.path().join("away"));
        for n in 0..4 {
            std::fs::create_dir_all(root.join(format!("d{n}"))).unwrap();
            std::fs::write(root.join(format!("d{n}/f")), "content").unwrap();
        }
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = Store::from_object_store(Kind::Memory, Arc::new(InMemory::new()), "".into());
        let backend = Backend::new(store, runtime.handle().clone(), Duration::ZERO);
        let new = || {
            let none = LeftOut::default();
            Source::new(vec![root.clone()], Vec::new(), none, backend.clone())
        };
        // The root, the first folder and its file.
        let begin = |source: &Source| {
            let mut entries = source.entries();
            assert_eq!(entries.by_ref().take(3).count(), 3);
            entries
        };
        let source = new();
        let mut entries = begin(&source);
        std::fs::rename(&root, &away).unwrap();
        assert!(entries.next().is_none_or(|e| e.is_ok()));
        std::fs::rename(&away, &root).unwrap();
        entries.for_each(drop);
        assert_eq!(source.record().away(), Some(root.clone()));
        // What was really deleted is counted, and nothing more is said of it.
        let source = new();
        let entries = begin(&source);
        std::fs::remove_dir_all(root.join("d2")).unwrap();
        entries.for_each(drop);
        let record = source.record();
        assert_eq!((record.away(), record.unreadable()), (None, 0));
        assert!(record.vanished() > 0);
    }
}
