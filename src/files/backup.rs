//! One run: from the folders to a snapshot.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustic_core::repofile::{NodeType, SnapshotFile, StringList};
use rustic_core::{
    BackupOptions, IndexedTree, ParentOptions, RepairIndexOptions, Repository, SnapshotOptions,
};

use super::error::FilesError;
use super::lock::{Lock, Mode};
use super::place::exchanges;
use super::points::{LABEL, OURS, PARTIAL, Point, snapshots};
use super::repository::{self, Repo};
use super::source::Source;
use super::{Backend, PATIENCE_BACKUP, Target};

/// Names of unreadable files that go into the snapshot itself.
const NAMES_IN_SNAPSHOT: usize = 100;

/// What a run did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Backup {
    /// The snapshot.
    pub point: Point,
    /// Files that could not be read, or changed meanwhile, with the reason: the first thousand.
    pub unreadable: std::collections::BTreeMap<PathBuf, String>,
    /// How many of them there are.
    pub unreadable_count: u64,
    /// Files that were deleted between listing and reading.
    pub vanished: u64,
    /// Databases that were left out, and whether each is a target of its own.
    pub databases: std::collections::BTreeMap<PathBuf, bool>,
    /// Files that are new, changed and as they were.
    pub new: u64,
    /// Changed.
    pub changed: u64,
    /// As they were.
    pub unmodified: u64,
    /// Bytes that went to the store.
    pub uploaded: u64,
    /// Something of an unfinished run was found and used.
    pub resumed: bool,
    /// The repository was made.
    pub created: bool,
    /// How long it took.
    #[serde(serialize_with = "super::seconds")]
    pub took: Duration,
}

/// Makes a snapshot. Runs for as long as it takes; `begun` gets what [`Backend::stop`] ends it with.
///
/// # Errors
/// Any [`FilesError`]; nothing was recorded then.
pub fn backup(
    target: &Target,
    label: Option<&str>,
    begun: impl FnOnce(Backend),
) -> Result<Backup, FilesError> {
    let started = Instant::now();
    be_nice();
    let config = &target.config;
    let backend = target.backend(PATIENCE_BACKUP);
    begun(backend.clone());
    let uploaded = backend.store().stats().bytes_out();
    let roots = Roots::look(&config.paths)?;
    let (repo, created) = if config.create {
        repository::open_or_create(&backend, &config.password)?
    } else {
        (repository::open(&backend, &config.password)?, false)
    };
    let lock = Lock::take(&backend, &target.runtime, &repo, Mode::Shared)?;
    let earlier = snapshots(&backend, &repo)?;
    let resumed =
        (lock.others || earlier.is_empty()) && !created && index_unfinished(&backend, &repo)?;
    let repo = repo
        .to_indexed_ids()
        .map_err(|e| FilesError::of("reading the index of", &backend, &e))?;
    let latest = earlier.last();
    if !config.allow_empty
        && let Some(latest) = latest
    {
        roots.refuse_emptied(&repo, latest)?;
    }
    let exchanged = roots.exchanges()?;
    let source = Source::new(
        roots.present(),
        config.exclude.clone(),
        target.left_out.clone(),
        backend.clone(),
    );
    let record = source.record();
    for path in roots.missing() {
        record.fail(path, "is not there");
    }
    let mut snapshot = archive(target, &backend, &repo, &source, latest, label)?;
    roots.still_there()?;
    if roots.exchanges()? != exchanged {
        return Err(FilesError::Refused(
            "the folder was restored in the middle of the backup; nothing was recorded".into(),
        ));
    }
    let arrived = snapshot
        .summary
        .as_ref()
        .map_or(0, |s| s.total_files_processed);
    if let Some(lost) = record.expected().checked_sub(arrived).filter(|n| *n > 0) {
        record.fail(
            Path::new(""),
            format!("{lost} entries did not reach the snapshot"),
        );
    }
    let before = latest
        .and_then(|l| l.summary.as_ref())
        .map_or(0, |s| s.total_files_processed);
    if arrived == 0 && before > 0 && !config.allow_empty {
        return Err(FilesError::Emptied {
            path: config.paths[0].clone(),
            now: "without files",
        });
    }
    let unreadable = record.names();
    if record.unreadable() > 0 {
        snapshot.tags.add(PARTIAL.into());
        let names = unreadable.iter().take(NAMES_IN_SNAPSHOT);
        let names: Vec<String> = names
            .map(|(p, why)| format!("{}: {why}", p.display()))
            .collect();
        snapshot.description = Some(format!("not in this snapshot:\n{}", names.join("\n")));
    }
    if lock.is_lost() || backend.is_over() {
        return Err(backend
            .failure()
            .map_or(FilesError::Stopped, FilesError::Store));
    }
    repo.save_snapshots(vec![snapshot.clone()])
        .map_err(|e| FilesError::of("recording the snapshot in", &backend, &e))?;
    snapshot.id = backend.snapshot().unwrap_or_default().into();
    drop(lock);
    let summary = snapshot.summary.clone().unwrap_or_default();
    Ok(Backup {
        point: Point::of(&snapshot),
        unreadable,
        unreadable_count: record.unreadable(),
        vanished: record.vanished(),
        databases: record
            .databases()
            .into_iter()
            .map(|d| (d.clone(), target.left_out.databases.contains(&d)))
            .collect(),
        new: summary.files_new,
        changed: summary.files_changed,
        unmodified: summary.files_unmodified,
        uploaded: backend.store().stats().bytes_out() - uploaded,
        resumed,
        created,
        took: started.elapsed(),
    })
}

/// Everything but the snapshot itself, which is held.
fn archive<S: rustic_core::IndexedIds>(
    target: &Target,
    backend: &Backend,
    repo: &Repository<S>,
    source: &Source,
    latest: Option<&SnapshotFile>,
    label: Option<&str>,
) -> Result<SnapshotFile, FilesError> {
    let failed = |e: Box<rustic_core::RusticError>| FilesError::of("writing to", backend, &e);
    let options = SnapshotOptions::default()
        .host(target.instance.clone())
        .command(format!("lifeboat {}", target.config.name));
    let mut snapshot = SnapshotFile::from_options(&options).map_err(failed)?;
    let mut tags = StringList::default();
    tags.add(OURS.into());
    if let Some(label) = label {
        tags.add(format!("{LABEL}{label}"));
    }
    snapshot.tags = tags;
    // The newest, whoever made it: host names change with every deploy.
    let mut parent = ParentOptions::default();
    match latest {
        Some(latest) => parent.parents = vec![latest.id.to_hex().to_string()],
        None => parent.force = true,
    }
    let mut options = BackupOptions::default();
    options.no_scan = true;
    options.parent_opts = parent;
    backend.hold_snapshots(true);
    let result = repo.archive(&options, source, snapshot, &target.config.paths);
    backend.hold_snapshots(false);
    match backend.failure() {
        Some(failure) => Err(FilesError::Store(failure)),
        None if backend.is_over() => Err(FilesError::Stopped),
        None => result.map_err(failed),
    }
}

/// Puts packs into the index that an unfinished run uploaded. Does nothing to a repository with missing packs: that is for a person.
fn index_unfinished(backend: &Backend, repo: &Repo) -> Result<bool, FilesError> {
    use rustic_core::repofile::IndexFile;
    let failed =
        |e: Box<rustic_core::RusticError>| FilesError::of("reading the index of", backend, &e);
    let mut missing = 0_u64;
    let mut packs: std::collections::HashMap<rustic_core::Id, bool> =
        rustic_core::ReadBackend::list(backend, rustic_core::FileType::Pack)
            .map_err(failed)?
            .into_iter()
            .map(|id| (id, false))
            .collect();
    for file in repo.stream_files::<IndexFile>().map_err(failed)? {
        let (_, index) = file.map_err(failed)?;
        for pack in index.packs.iter().chain(&index.packs_to_delete) {
            match packs.get_mut(&pack.id.into_inner()) {
                Some(indexed) => *indexed = true,
                None => missing += 1,
            }
        }
    }
    if missing > 0 {
        tracing::warn!(
            missing,
            "the index names packs that are not in the store; `lifeboat verify` says which files are damaged"
        );
        return Ok(false);
    }
    let unindexed = packs.values().filter(|indexed| !**indexed).count();
    if unindexed == 0 {
        return Ok(false);
    }
    tracing::info!(
        packs = unindexed,
        "an earlier run was not finished; what it uploaded is used"
    );
    repo.repair_index(&RepairIndexOptions::default(), false)
        .map_err(failed)?;
    Ok(true)
}

/// The configured paths at the start of a run.
struct Roots(Vec<(PathBuf, Option<(u64, u64)>)>);

fn identity(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|m| (m.dev(), m.ino()))
}

impl Roots {
    fn look(paths: &[PathBuf]) -> Result<Self, FilesError> {
        let roots: Vec<_> = paths.iter().map(|p| (p.clone(), identity(p))).collect();
        match roots.iter().all(|(_, id)| id.is_none()) {
            // Whether it was full before is not asked: there is nothing to record in any case.
            true => Err(FilesError::Missing(roots[0].0.clone())),
            false => Ok(Self(roots)),
        }
    }

    fn present(&self) -> Vec<PathBuf> {
        let present = self.0.iter().filter(|(_, id)| id.is_some());
        present.map(|(p, _)| p.clone()).collect()
    }

    fn missing(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.iter().filter(|(_, id)| id.is_none()).map(|(p, _)| p)
    }

    /// A volume that is not mounted looks like an empty folder.
    fn refuse_emptied<S: IndexedTree>(
        &self,
        repo: &Repository<S>,
        latest: &SnapshotFile,
    ) -> Result<(), FilesError> {
        for (path, id) in &self.0 {
            let now = match id {
                None => "not there",
                Some(_) if is_empty_folder(path) => "empty",
                Some(_) => continue,
            };
            let was_full = path
                .to_str()
                .and_then(|p| repo.node_from_snapshot_and_path(latest, p).ok())
                .is_some_and(|node| match (&node.node_type, node.subtree) {
                    (NodeType::Dir, Some(tree)) => {
                        repo.get_tree(&tree).is_ok_and(|t| !t.nodes.is_empty())
                    }
                    (NodeType::Dir, None) => false,
                    _ => true,
                });
            if was_full {
                return Err(FilesError::Emptied {
                    path: path.clone(),
                    now,
                });
            }
        }
        Ok(())
    }

    /// Restores in place so far. A folder in which one was interrupted lacks files that are not lost: it is not recorded.
    fn exchanges(&self) -> Result<Vec<PathBuf>, FilesError> {
        let mut all = Vec::new();
        for path in self.present().iter().filter(|p| p.is_dir()) {
            match exchanges(path).map_err(|e| FilesError::io(path, e))? {
                Some(done) => all.extend(done),
                None => {
                    return Err(FilesError::Refused(format!(
                        "a restore of {} was interrupted, or is running; nothing was recorded (run the restore again, or `lifeboat restore --undo`)",
                        path.display()
                    )));
                }
            }
        }
        Ok(all)
    }

    fn still_there(&self) -> Result<(), FilesError> {
        let swapped = |p: &Path, id| {
            p.is_dir() && identity(p) != id || p.symlink_metadata().is_err() && id.is_some()
        };
        match self.0.iter().find(|(p, id)| swapped(p, *id)) {
            Some((path, _)) => Err(FilesError::Replaced(path.clone())),
            None => Ok(()),
        }
    }
}

fn is_empty_folder(path: &Path) -> bool {
    path.is_dir() && std::fs::read_dir(path).is_ok_and(|mut items| items.next().is_none())
}

/// This thread and those that it starts give way to the app.
fn be_nice() {
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::debug!(%error, "the backup runs at normal priority");
    }
}
