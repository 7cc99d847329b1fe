//! What a backup takes of a folder: not databases, not what is Lifeboat's own, not what is excluded. A restore leaves the same alone.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ignore::DirEntry;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::place::OURS;
use super::record::{Record, hold};
use crate::config::FilesConfig;
use crate::sqlite::files::{PlainFile, is_attached};

/// First bytes of every SQLite database.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// File names that databases go by. An upload without such a name is an upload, whatever it holds.
const DATABASE_NAMES: [&str; 3] = ["sqlite3", "sqlite", "db"];
/// In the names of copies that restores and undos of a database keep beside it, before their time.
const KEPT: [&str; 2] = [".before-restore-", ".before-undo-"];
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

    /// With a record of the databases and restores that it meets.
    pub(super) fn noting(mut self, record: &Arc<Record>) -> Self {
        self.record = Arc::clone(record);
        self
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

    pub(super) fn takes(&self, entry: &DirEntry) -> bool {
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
                .is_some_and(|n| n.starts_with(OURS));
            if let (true, Some(folder)) = (ours, path.parent()) {
                self.record.meet_restore(folder);
            }
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

    /// The database that a file is or belongs to, also as a copy that Lifeboat keeps of it.
    pub(super) fn database_of(&self, path: &Path) -> Option<PathBuf> {
        let name = path.file_name()?.to_str()?;
        let base = COMPANIONS.iter().find_map(|c| name.strip_suffix(c));
        let base = base.unwrap_or(name);
        let copy_of = copy_of(base);
        let candidate = path.with_file_name(copy_of.unwrap_or(base));
        // A WAL-index is never opened: closing it would drop the locks of a database that is attached here.
        let known = self.left_out.databases.contains(&candidate)
            || name.ends_with("-shm")
            || is_attached(&candidate);
        let is_one = || has_database_name(&candidate) && begins_as_database(&candidate);
        let is_copy =
            || copy_of.is_some() && has_database_name(&candidate) && begins_as_database(path);
        (known || is_one() || is_copy()).then_some(candidate)
    }
}

/// The name of the database that something beside it belongs to: what a restore of it replaced, or works on.
fn copy_of(name: &str) -> Option<&str> {
    let kept = KEPT.iter().find_map(|word| name.split_once(word));
    let draft = || name.strip_prefix('.')?.split_once(OURS);
    kept.or_else(draft).map(|(database, _)| database)
}

fn has_database_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| DATABASE_NAMES.contains(&e.to_ascii_lowercase().as_str()))
}

fn begins_as_database(path: &Path) -> bool {
    let mut first = [0; 16];
    path.symlink_metadata().is_ok_and(|m| m.is_file())
        && File::open(path)
            .map(PlainFile::new)
            .and_then(|f| (&*f).read_exact(&mut first))
            .is_ok()
        && &first == SQLITE_MAGIC
}
