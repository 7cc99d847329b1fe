//! Databases in folders of this machine, known by their first bytes.

use std::path::{Path, PathBuf};

use crate::cli::doctor::is_sqlite;

/// Folders under a volume.
const DEPTH_MAX: usize = 4;
/// Where volumes of apps are mounted, most likely first.
pub(super) const USUAL: [&str; 4] = ["/rails/storage", "/data", "/storage", "/app/storage"];

/// A database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// What a look under folders gave, by path.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) databases: Vec<Found>,
    /// Files named like databases, which are none: a folder with one cannot be taken whole.
    pub(super) impostors: Vec<PathBuf>,
}

/// Whether `dir` would take a file by its name.
pub(super) fn matches_pattern(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e == "sqlite3" || e == "db")
}

/// Looks under a folder. Links are not followed; hidden folders are not looked into.
pub(super) fn look(folder: &Path, scan: &mut Scan) {
    walk(folder, 0, scan);
    scan.databases.sort_by(|a, b| a.path.cmp(&b.path));
    scan.databases.dedup();
    scan.impostors.sort();
    scan.impostors.dedup();
}

fn walk(folder: &Path, depth: usize, scan: &mut Scan) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(meta)) = (entry.path(), entry.metadata()) else {
            continue;
        };
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if meta.is_dir() && depth < DEPTH_MAX {
            walk(&path, depth + 1, scan);
        } else if meta.is_file() && is_sqlite(&path) {
            let bytes = meta.len();
            scan.databases.push(Found { path, bytes });
        } else if meta.is_file() && meta.len() > 0 && matches_pattern(&path) {
            scan.impostors.push(path);
        }
    }
}
