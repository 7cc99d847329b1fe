//! A folder of a snapshot, written to disk in one walk over it, in parts of bounded size.
//!
//! - Folders and empty files of the right length come first, then content, then attributes; those of a folder after everything in it.
//! - What cannot be made (a name that is too long, a device without root) is named, and the rest goes on. A full or failing disk ends it.
//! - Nothing is written through a link: what is below a name that could not be made a folder is left out.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use rustic_core::repofile::Node;
use rustic_core::{IndexedFull, LsOptions, Repository, RusticError};

use super::attributes::{differences, make_special, set};
use super::backend::Backend;
use super::contents::{Located, PIECES_MAX, Pieces};
use super::error::FilesError;

/// Entries of one part: about a kilobyte each.
const ENTRIES_MAX: usize = 1 << 13;
/// Differences that are named; more are only counted.
const NAMED: usize = 100;

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Files.
    pub(super) files: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// What is not as in the snapshot: the first hundred.
    pub(super) differences: Vec<String>,
    /// How many there are.
    pub(super) differences_count: u64,
}

impl Written {
    fn note(&mut self, path: &Path, found: impl IntoIterator<Item = String>) {
        for what in found {
            self.differences_count += 1;
            if self.differences.len() < NAMED {
                self.differences.push(format!("{}: {what}", path.display()));
            }
        }
    }
}

/// A walk. `to` is an empty folder, or for a file a name that is free.
pub(super) struct Writer<'a, S> {
    backend: &'a Backend,
    repo: &'a Repository<S>,
    /// First name of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    /// Folders that the walk is in.
    open: Vec<(PathBuf, Node)>,
    /// What waits for its attributes: everything in a folder before it.
    waiting: Vec<(PathBuf, Node)>,
    pieces: Pieces,
    /// A folder that could not be made.
    without: Option<PathBuf>,
    /// What was made at the top, if somebody wants to know.
    made: Option<&'a mut Vec<PathBuf>>,
    written: Written,
}

impl<'a, S: IndexedFull> Writer<'a, S> {
    /// `key` is the repository's.
    pub(super) fn new(
        backend: &'a Backend,
        repo: &'a Repository<S>,
        key: [u8; 64],
        made: Option<&'a mut Vec<PathBuf>>,
    ) -> Self {
        Self {
            backend,
            repo,
            links: HashMap::new(),
            open: Vec::new(),
            waiting: Vec::new(),
            pieces: Pieces::new(key),
            without: None,
            made,
            written: Written::default(),
        }
    }

    /// Writes a folder or a file.
    ///
    /// # Errors
    /// [`FilesError::Damaged`], the store's, and those of the local disk.
    pub(super) fn write(mut self, node: &Node, to: &Path) -> Result<Written, FilesError> {
        if !node.is_dir() {
            self.entry(to.to_owned(), node.clone())?;
            self.settle()?;
            return Ok(self.written);
        }
        let options = LsOptions::default();
        let below = self.repo.ls(node, &options).map_err(|e| self.failed(&e))?;
        for item in below {
            let (relative, node) = item.map_err(|e| self.failed(&e))?;
            let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
            if !relative.components().all(plain) {
                return Err(self.damaged(format!("a name leads out: {}", relative.display())));
            }
            let path = to.join(relative);
            self.leave(&path);
            // Below what was made here as a folder, and nowhere else: a link leads out, too.
            let parent = path.parent();
            let made = self.open.last().map_or(to, |(folder, _)| folder);
            let without = |w: &PathBuf| path.starts_with(w);
            if parent != Some(made) && !self.without.as_ref().is_some_and(without) {
                return Err(self.damaged(format!("{} is in no folder", path.display())));
            }
            self.entry(path, node)?;
            if self.waiting.len() >= ENTRIES_MAX || self.pieces.len() >= PIECES_MAX {
                self.settle()?;
            }
        }
        self.leave(Path::new(""));
        self.settle()?;
        set(node, to);
        self.written.note(to, differences(node, to));
        Ok(self.written)
    }

    /// Folders that `path` is not in are complete.
    fn leave(&mut self, path: &Path) {
        while let Some(done) = self.open.pop_if(|(folder, _)| !path.starts_with(folder)) {
            self.waiting.push(done);
        }
    }

    fn entry(&mut self, path: PathBuf, mut node: Node) -> Result<(), FilesError> {
        if self.without.as_ref().is_some_and(|w| path.starts_with(w)) {
            self.written.note(&path, ["could not be restored".into()]);
            return Ok(());
        }
        let made = if node.is_dir() {
            std::fs::DirBuilder::new().create(&path)
        } else if node.is_file() {
            self.file(&path, &mut node)?
        } else {
            make_special(&node, &path)
        };
        if let (Ok(()), true, Some(all)) = (&made, self.open.is_empty(), &mut self.made) {
            all.push(path.clone());
        }
        match made {
            Ok(()) if node.is_dir() => self.open.push((path, node)),
            Ok(()) => self.waiting.push((path, node)),
            Err(error) if ends_all(&error) => return Err(FilesError::io(&path, error)),
            Err(error) => {
                self.written
                    .note(&path, [format!("could not be restored: {error}")]);
                if node.is_dir() {
                    self.without = Some(path);
                }
            }
        }
        Ok(())
    }

    /// An empty file of the right length, or another name of one; its pieces wait.
    fn file(&mut self, path: &Path, node: &mut Node) -> Result<io::Result<()>, FilesError> {
        let meta = &node.meta;
        let content = node.content.take().unwrap_or_default();
        let link = (meta.links > 1 && meta.inode != 0).then_some((meta.device_id, meta.inode));
        if let Some(first) = link.and_then(|l| self.links.get(&l)) {
            let made = std::fs::hard_link(first, path);
            if made.is_ok() {
                self.count(meta.size);
            }
            return Ok(made);
        }
        let made = std::fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|file| file.set_len(meta.size));
        if let Err(error) = made {
            return Ok(Err(error));
        }
        if let Some(link) = link {
            self.links.insert(link, path.to_owned());
        }
        self.count(meta.size);
        let (size, mut at) = (meta.size, 0);
        let mut file = None;
        for id in content {
            let entry = self.repo.get_index_entry(&id).map_err(|_| {
                self.damaged(format!("a piece of {} is in no pack", path.display()))
            })?;
            let location = entry.location;
            let located = Located {
                pack: entry.pack.into_inner(),
                offset: location.offset,
                length: location.length,
                plain: location.uncompressed_length,
            };
            let number = *file.get_or_insert_with(|| self.pieces.file(path));
            self.pieces.add(number, at, id, &located);
            at += u64::from(location.data_length());
            if self.pieces.len() >= PIECES_MAX {
                self.pieces.write(self.backend)?;
                file = None;
            }
        }
        if at != size {
            let what = format!("{} has {at} bytes of {size}", path.display());
            return Err(self.damaged(what));
        }
        Ok(Ok(()))
    }

    fn count(&mut self, bytes: u64) {
        self.written.files += 1;
        self.written.bytes += bytes;
    }

    /// Content, then attributes, of everything that waits.
    fn settle(&mut self) -> Result<(), FilesError> {
        self.pieces.write(self.backend)?;
        for (path, node) in self.waiting.drain(..) {
            set(&node, &path);
            self.written.note(&path, differences(&node, &path));
        }
        Ok(())
    }

    fn damaged(&self, what: String) -> FilesError {
        FilesError::Damaged {
            store: self.backend.store().display(),
            what,
        }
    }

    /// A folder that cannot be read is damage, unless the store failed.
    fn failed(&self, error: &RusticError) -> FilesError {
        match FilesError::of("restoring from", self.backend, error) {
            FilesError::Store(e) if e.is_not_found() => self.damaged(e.to_string()),
            FilesError::Repository { reason, .. } => self.damaged(reason),
            other => other,
        }
    }
}

/// A disk that is full or failing: the next file would fare no better.
fn ends_all(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let failing = rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::IO);
    failing
        || matches!(
            error.kind(),
            Kind::StorageFull | Kind::QuotaExceeded | Kind::ReadOnlyFilesystem
        )
}
