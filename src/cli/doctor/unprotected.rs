//! What lies on the volumes and is protected by nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::bill::size;
use super::{Findings, host};
use crate::config::{Config, StoreKind};
use crate::daemon::fleet::state_path;

/// Entries looked at: a volume with more is told as far as it was seen.
const ENTRIES_MAX: u64 = 2_000_000;
/// Folders that are named.
const NAMED: usize = 5;

/// What was seen.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Volume {
    folders: Vec<PathBuf>,
    /// SQLite databases that are no target.
    databases: Vec<PathBuf>,
    /// Caches, which discovery leaves out on purpose.
    caches: Vec<PathBuf>,
    /// Other files that no target holds.
    files: u64,
    bytes: u64,
    /// Of those, files laid out as Active Storage lays out uploads.
    uploads: u64,
    /// Where they are: bytes by folder, the largest.
    largest: Vec<(PathBuf, u64)>,
    /// Databases that restores kept back.
    kept: u64,
    kept_bytes: u64,
    /// There was more than could be looked at.
    cut_short: bool,
    unreadable: Vec<PathBuf>,
    #[serde(skip)]
    by_folder: BTreeMap<PathBuf, u64>,
    #[serde(skip)]
    entries: u64,
}

struct Known {
    databases: Vec<PathBuf>,
    /// Protected, or none of the app's.
    folders: Vec<PathBuf>,
}

/// Walks the folders of the targets, or those that were named. Links and other file systems are not followed.
pub(super) fn look(config: &Config, named: Vec<PathBuf>) -> Volume {
    let mut roots = named;
    if roots.is_empty() {
        roots.extend(
            config
                .targets
                .iter()
                .map(|t| host::folder(&t.path).to_owned()),
        );
        roots.extend(config.dirs.iter().map(|d| d.dir.clone()));
    }
    let mut roots: Vec<PathBuf> = roots
        .iter()
        .filter_map(|r| r.canonicalize().ok())
        .filter(|r| r.parent().is_some())
        .collect();
    roots.sort();
    roots.dedup();
    let all = roots.clone();
    roots.retain(|r| !all.iter().any(|other| r != other && r.starts_with(other)));
    let known = known(config);
    let mut volume = Volume {
        folders: roots.clone(),
        ..Volume::default()
    };
    for root in &roots {
        let device = fs::metadata(root).map(|m| m.dev()).ok();
        volume.walk(root, root, device, &known);
    }
    let mut largest: Vec<(PathBuf, u64)> = volume.by_folder.clone().into_iter().collect();
    largest.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    largest.truncate(NAMED);
    volume.largest = largest;
    volume
}

fn known(config: &Config) -> Known {
    let real = |p: &Path| p.canonicalize().unwrap_or_else(|_| p.to_owned());
    let stores = config
        .targets
        .iter()
        .flat_map(|t| &t.options.stores)
        .chain(config.dirs.iter().flat_map(|d| &d.options.stores))
        .chain(config.files.iter().flat_map(|f| &f.stores))
        .chain(config.postgres.iter().flat_map(|p| &p.stores))
        .filter(|s| s.kind() == StoreKind::File)
        .filter_map(|s| s.url.to_file_path().ok());
    let state = config.targets.iter().map(|t| state_path(config, t));
    let files = config.files.iter().flat_map(|f| f.paths.clone());
    let folders = stores
        .chain(state)
        .chain(files)
        .chain(config.state_dir.clone());
    Known {
        databases: config.targets.iter().map(|t| real(&t.path)).collect(),
        folders: folders.map(|p| real(&p)).collect(),
    }
}

impl Volume {
    fn walk(&mut self, root: &Path, folder: &Path, device: Option<u64>, known: &Known) {
        let Ok(entries) = fs::read_dir(folder) else {
            self.unreadable.push(folder.to_owned());
            return;
        };
        for entry in entries.flatten() {
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                self.cut_short = true;
                return;
            }
            let path = entry.path();
            let Ok(meta) = entry.metadata() else {
                continue;
            };
            if meta.is_dir() {
                let ours = entry.file_name() == ".lifeboat" || known.folders.contains(&path);
                if !ours && Some(meta.dev()) == device {
                    self.walk(root, &path, device, known);
                }
            } else if meta.is_file() && !known.databases.contains(&path) {
                self.file(root, path, meta.len(), known);
            }
        }
    }

    fn file(&mut self, root: &Path, path: PathBuf, bytes: u64, known: &Known) {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for companion in ["-wal", "-shm", "-journal"] {
            let base = name.strip_suffix(companion).map(|n| path.with_file_name(n));
            if base.is_some_and(|b| b.exists() || known.databases.contains(&b)) {
                return;
            }
        }
        if name.contains(".before-restore-") || name.contains(".before-undo-") {
            self.kept += 1;
            self.kept_bytes += bytes;
            return;
        }
        if name.contains(".lifeboat-") || name == "lifeboat.sock" {
            return;
        }
        if host::is_sqlite(&path) {
            let stem = name.split('.').next().unwrap_or_default();
            let list = match stem.ends_with("_cache") {
                true => &mut self.caches,
                false => &mut self.databases,
            };
            list.push(path);
            return;
        }
        self.files += 1;
        self.bytes += bytes;
        self.uploads += u64::from(is_upload(&path));
        let inside = path.strip_prefix(root).unwrap_or(&path);
        let mut parts = inside.components();
        let top = match (parts.next(), parts.next()) {
            (Some(first), Some(_)) if first.as_os_str().len() > 2 => root.join(first),
            _ => root.to_owned(),
        };
        *self.by_folder.entry(top).or_default() += bytes;
    }
}

/// Active Storage keeps `ab/cd/abcd...`.
fn is_upload(path: &Path) -> bool {
    let names: Vec<&str> = path
        .iter()
        .rev()
        .take(3)
        .filter_map(|n| n.to_str())
        .collect();
    match names[..] {
        [file, b, a] => {
            a.len() == 2 && b.len() == 2 && file.len() >= 20 && file.starts_with(&format!("{a}{b}"))
        }
        _ => false,
    }
}

pub(super) fn judge(found: &mut Findings, volume: &Volume) {
    for path in &volume.databases {
        found.warn(
            "unprotected",
            &path.display().to_string(),
            "a SQLite database that no target protects",
            "add it to `sqlite:` by its `path`, or take its folder with `dir`; if nobody needs it, delete it",
        );
    }
    for path in &volume.unreadable {
        found.warn(
            "unprotected",
            &path.display().to_string(),
            "could not be looked at",
            "run the sidecar as the app's user",
        );
    }
    if volume.kept > 0 {
        found.ok(
            "kept",
            "",
            format!(
                "{} databases that restores kept back take {}; delete them when you are sure",
                volume.kept,
                size(volume.kept_bytes)
            ),
        );
    }
    let shown: Vec<String> = volume
        .folders
        .iter()
        .map(|f| f.display().to_string())
        .collect();
    let shown = shown.join(", ");
    let more = if volume.cut_short { " and more" } else { "" };
    if volume.files == 0 {
        if !volume.folders.is_empty() && volume.databases.is_empty() {
            found.ok("unprotected", &shown, format!("nothing{more}"));
        }
        return;
    }
    let folders: Vec<String> = volume
        .largest
        .iter()
        .map(|(folder, bytes)| format!("{} {}", folder.display(), size(*bytes)))
        .collect();
    let uploads = match volume.uploads {
        0 => String::new(),
        n => format!("; {n} of them look like uploads of Active Storage"),
    };
    found.warn(
        "unprotected",
        &shown,
        format!(
            "{} files{more} with {} that no target protects{uploads}; largest: {}",
            volume.files,
            size(volume.bytes),
            folders.join(", ")
        ),
        "add a `files:` target for what is worth keeping (docs/files.md)",
    );
}
