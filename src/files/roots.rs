//! The configured paths, before and after a run: what must not be recorded, however well it can be read.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustic_core::repofile::{NodeType, SnapshotFile};
use rustic_core::{IndexedTree, Repository};

use super::error::FilesError;
use super::place::exchanges;
use super::record::Record;

/// Snapshots that are asked what a path was that is empty now, from the newest on.
const ASKED_MAX: usize = 32;
/// Ticks of file systems' clocks are shorter.
pub(super) const TICK: Duration = Duration::from_millis(20);

/// The configured paths at the start of a run.
pub(super) struct Roots(Vec<(PathBuf, Option<(u64, u64)>)>);

fn identity(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|m| (m.dev(), m.ino()))
}

impl Roots {
    /// # Errors
    /// [`FilesError::Missing`] if none is there.
    pub(super) fn look(paths: &[PathBuf]) -> Result<Self, FilesError> {
        let roots: Vec<_> = paths.iter().map(|p| (p.clone(), identity(p))).collect();
        match roots.iter().all(|(_, id)| id.is_none()) {
            // Whether it was full before is not asked: there is nothing to record in any case.
            true => Err(FilesError::Missing(roots[0].0.clone())),
            false => Ok(Self(roots)),
        }
    }

    pub(super) fn present(&self) -> Vec<PathBuf> {
        let present = self.0.iter().filter(|(_, id)| id.is_some());
        present.map(|(p, _)| p.clone()).collect()
    }

    pub(super) fn missing(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.iter().filter(|(_, id)| id.is_none()).map(|(p, _)| p)
    }

    /// A volume that is not mounted looks like an empty folder. `earlier` are by time.
    ///
    /// # Errors
    /// [`FilesError::Emptied`].
    pub(super) fn refuse_emptied<S: IndexedTree>(
        &self,
        repo: &Repository<S>,
        earlier: &[SnapshotFile],
    ) -> Result<(), FilesError> {
        for (path, id) in &self.0 {
            let now = match id {
                None => "not there",
                Some(_) if is_empty_folder(path) => "empty",
                Some(_) => continue,
            };
            if was_full(repo, earlier, path) {
                return Err(FilesError::Emptied {
                    path: path.clone(),
                    now,
                });
            }
        }
        Ok(())
    }

    /// Files in the newest snapshot that is of one of the paths and says how many it holds.
    pub(super) fn files_before(&self, earlier: &[SnapshotFile]) -> u64 {
        let of_ours = |s: &&SnapshotFile| self.0.iter().any(|(path, _)| is_of(s, path));
        let mut known = earlier.iter().rev().filter(of_ours);
        let newest = known.find_map(|s| s.summary.as_ref());
        newest.map_or(0, |s| s.total_files_processed)
    }

    /// Restores in place so far. A folder in which one was interrupted lacks files that are not lost: it is not recorded.
    ///
    /// # Errors
    /// [`FilesError::Refused`].
    pub(super) fn exchanges(&self) -> Result<Vec<PathBuf>, FilesError> {
        let mut all = Vec::new();
        for path in self.present().iter().filter(|p| p.is_dir()) {
            all.extend(finished(path)?);
        }
        Ok(all)
    }

    /// # Errors
    /// [`FilesError::Replaced`].
    pub(super) fn still_there(&self) -> Result<(), FilesError> {
        let swapped = |p: &Path, id| {
            p.is_dir() && identity(p) != id || p.symlink_metadata().is_err() && id.is_some()
        };
        match self.0.iter().find(|(p, id)| swapped(p, *id)) {
            Some((path, _)) => Err(FilesError::Replaced(path.clone())),
            None => Ok(()),
        }
    }
}

/// Exchanges of a folder, all of which came to their end.
fn finished(folder: &Path) -> Result<Vec<PathBuf>, FilesError> {
    match exchanges(folder).map_err(|e| FilesError::io(folder, e))? {
        Some(done) => Ok(done),
        None => Err(FilesError::Refused(format!(
            "a restore of {} was interrupted, or is running; nothing was recorded (run the restore again, or `lifeboat restore --undo`)",
            folder.display()
        ))),
    }
}

/// The same for folders below the paths, of which one path was restored: those where the run met something of a restore, or missed something.
///
/// # Errors
/// [`FilesError::Refused`]; [`FilesError::Replaced`] if a path was away for a moment.
pub(super) fn undisturbed(record: &Record, begun: SystemTime) -> Result<(), FilesError> {
    if let Some(path) = record.away() {
        return Err(FilesError::Replaced(path));
    }
    let changed = |kept: &PathBuf| {
        let found = kept.symlink_metadata().ok()?;
        let at = Duration::new(
            u64::try_from(found.ctime()).ok()?,
            u32::try_from(found.ctime_nsec()).ok()?,
        );
        Some(SystemTime::UNIX_EPOCH + at + TICK)
    };
    for folder in record.disturbed() {
        if !folder.is_dir() {
            continue;
        }
        if finished(&folder)?
            .iter()
            .any(|kept| changed(kept).is_some_and(|at| at >= begun))
        {
            return Err(restored_meanwhile());
        }
    }
    Ok(())
}

pub(super) fn restored_meanwhile() -> FilesError {
    FilesError::Refused(
        "the folder was restored in the middle of the backup; nothing was recorded".into(),
    )
}

/// Whether a snapshot was made of a path, or of something around or below it.
fn is_of(snapshot: &SnapshotFile, path: &Path) -> bool {
    let mut paths = snapshot.paths.iter().map(Path::new);
    paths.any(|p| path.starts_with(p) || p.starts_with(path))
}

/// As the newest snapshot has it that has it at all: others may be of other folders, or of a time when it was away.
fn was_full<S: IndexedTree>(repo: &Repository<S>, earlier: &[SnapshotFile], path: &Path) -> bool {
    let Some(text) = path.to_str() else {
        return false;
    };
    let of_it = earlier.iter().rev().filter(|s| is_of(s, path));
    let mut nodes = of_it
        .take(ASKED_MAX)
        .filter_map(|s| repo.node_from_snapshot_and_path(s, text).ok());
    nodes
        .next()
        .is_some_and(|node| match (&node.node_type, node.subtree) {
            (NodeType::Dir, Some(tree)) => repo.get_tree(&tree).is_ok_and(|t| !t.nodes.is_empty()),
            (NodeType::Dir, None) => false,
            _ => true,
        })
}

fn is_empty_folder(path: &Path) -> bool {
    path.is_dir() && std::fs::read_dir(path).is_ok_and(|mut items| items.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One folder of several was restored in place while the run went through it, or is in the middle of that.
    #[test]
    fn a_restore_below_a_path_is_met() {
        let dir = tempfile::tempdir().unwrap();
        let (root, below) = (dir.path(), dir.path().join("a/b"));
        std::fs::create_dir_all(&below).unwrap();
        let kept = below.join(".lifeboat-old-20260101T000000000000000Z");
        let begun = |hours: u32| SystemTime::now() - Duration::from_secs(3600) * hours;
        let look = |met: &Path, begun| {
            let record = Record::default();
            record.vanish(root, &met.join("file"));
            undisturbed(&record, begun).map_err(|e| e.to_string())
        };
        look(&below.join("deeper"), begun(0)).unwrap();
        std::fs::create_dir(&kept).unwrap();
        // It was there before.
        look(&below, SystemTime::now() + Duration::from_secs(1)).unwrap();
        for met in [&below, &below.join("deeper")] {
            let refused = look(met, begun(1)).unwrap_err();
            assert!(refused.contains("in the middle"), "{refused}");
        }
        // Elsewhere.
        look(root, begun(1)).unwrap();
        std::fs::rename(&kept, kept.with_extension("moving")).unwrap();
        let refused = look(&below, SystemTime::now()).unwrap_err();
        assert!(refused.contains("interrupted"), "{refused}");
    }
}
