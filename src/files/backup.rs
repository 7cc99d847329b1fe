//! One run: from the folders to a snapshot.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustic_core::repofile::{SnapshotFile, StringList};
use rustic_core::{BackupOptions, IndexedTree, ParentOptions, Repository, SnapshotOptions, TreeId};

use super::error::FilesError;
use super::lock::{Lock, Mode};
use super::points::{NewLabel, OURS, PARTIAL, Point, snapshots};
use super::record::Record;
use super::repository;
use super::roots::{Roots, TICK, restored_meanwhile, undisturbed};
use super::source::Source;
use super::{Backend, PATIENCE_BACKUP, Target, nicely, unfinished};

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
    label: Option<&NewLabel>,
    begun: impl FnOnce(Backend) + Send,
) -> Result<Backup, FilesError> {
    nicely(|| {
        let backend = target.backend(PATIENCE_BACKUP);
        begun(backend.clone());
        let done = record(target, label, &backend);
        if done.is_err() {
            unfinished::mark(&backend);
        }
        done
    })
}

fn record(
    target: &Target,
    label: Option<&NewLabel>,
    backend: &Backend,
) -> Result<Backup, FilesError> {
    let started = Instant::now();
    let config = &target.config;
    let uploaded = backend.store().stats().bytes_out();
    let roots = Roots::look(&config.paths)?;
    let (repo, created) = if config.create {
        repository::open_or_create(backend, &config.password)?
    } else {
        (repository::open(backend, &config.password)?, false)
    };
    let lock = Lock::take(backend, &target.runtime, &repo, Mode::Shared)?;
    let earlier = snapshots(backend, &repo)?;
    let was_left = lock.others || earlier.is_empty() || unfinished::is_marked(backend)?;
    let resumed = was_left && !created && unfinished::index(backend, &repo)?;
    let indexed =
        |e: Box<rustic_core::RusticError>| FilesError::of("reading the index of", backend, &e);
    let mut repo = repo.to_indexed_ids().map_err(indexed)?;
    if !config.allow_empty {
        roots.refuse_emptied(&repo, &earlier)?;
    }
    warn_of_others(target, &earlier);
    // What was restored or undone right before is told from what is restored from now on, although file systems' clocks are coarse.
    std::thread::sleep(TICK);
    let begun = SystemTime::now();
    let exchanged = roots.exchanges()?;
    let source = |roots: &Roots| {
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
        source
    };
    let mut files = source(&roots);
    files.refuse_databases()?;
    let latest = earlier.last();
    let (mut snapshot, all_loaded) = archive(target, backend, &repo, &files, latest, label)?;
    if !all_loaded && !latest.is_some_and(|latest| is_whole(&repo, latest.tree)) {
        if let Some(over) = FilesError::over(backend) {
            return Err(over);
        }
        tracing::warn!(
            "folders of the last snapshot are in no pack; every file is read again, and what is not in the store is uploaded"
        );
        // With what was uploaded so far.
        repo = repo.drop_index().to_indexed_ids().map_err(indexed)?;
        files = source(&roots);
        (snapshot, _) = archive(target, backend, &repo, &files, None, label)?;
    }
    let record = files.record();
    roots.still_there()?;
    if roots.exchanges()? != exchanged {
        return Err(restored_meanwhile());
    }
    undisturbed(&record, begun)?;
    judge(config.allow_empty, &roots, &earlier, &record, &mut snapshot)?;
    if let Some(over) = FilesError::over(backend) {
        return Err(over);
    }
    repo.save_snapshots(vec![snapshot.clone()])
        .map_err(|e| FilesError::of("recording the snapshot in", backend, &e))?;
    snapshot.id = backend.snapshot().unwrap_or_default().into();
    drop(lock);
    let summary = snapshot.summary.clone().unwrap_or_default();
    Ok(Backup {
        point: Point::of(&snapshot),
        unreadable: record.names(),
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

/// Complete, or partial with the names of what is missing, or nothing that is recorded.
fn judge(
    allow_empty: bool,
    roots: &Roots,
    earlier: &[SnapshotFile],
    record: &Record,
    snapshot: &mut SnapshotFile,
) -> Result<(), FilesError> {
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
    if arrived == 0 && !allow_empty && roots.files_before(earlier) > 0 {
        return Err(FilesError::Emptied {
            path: roots.present().swap_remove(0),
            now: "without files",
        });
    }
    if record.unreadable() > 0 {
        snapshot.tags.add(PARTIAL.into());
        let names = record.names();
        let names = names.iter().take(NAMES_IN_SNAPSHOT);
        let names: Vec<String> = names
            .map(|(p, why)| format!("{}: {why}", p.display()))
            .collect();
        snapshot.description = Some(format!("not in this snapshot:\n{}", names.join("\n")));
    }
    Ok(())
}

/// Another instance records here since this one does: perhaps it took the store along with a copy of the configuration.
fn warn_of_others(target: &Target, earlier: &[SnapshotFile]) {
    let points = earlier.iter().map(Point::of).filter(|p| p.ours);
    let is_mine = |p: &Point| p.host == target.instance;
    let since = points.skip_while(|p| !is_mine(p));
    if let Some(other) = since.filter(|p| !is_mine(p)).last() {
        tracing::warn!(
            target_name = target.config.name,
            instance = other.host,
            last = %other.time,
            "another instance records into this repository, too; if that is not meant, give one of them a store or a name of its own"
        );
    }
}

/// Whether every folder of a snapshot can be loaded.
fn is_whole<S: IndexedTree>(repo: &Repository<S>, root: TreeId) -> bool {
    let (mut left, mut seen) = (vec![root], HashSet::from([root]));
    while let Some(id) = left.pop() {
        let Ok(tree) = repo.get_tree(&id) else {
            return false;
        };
        let below = tree.nodes.iter().filter_map(|node| node.subtree);
        left.extend(below.filter(|id| seen.insert(*id)));
    }
    true
}

/// Everything but the snapshot itself, which is held. `false` if perhaps not every folder of `latest` was loaded: rustic_core takes one that looks as
/// it did for one that is there, and without it the snapshot would not be whole.
fn archive<S: rustic_core::IndexedIds>(
    target: &Target,
    backend: &Backend,
    repo: &Repository<S>,
    source: &Source,
    latest: Option<&SnapshotFile>,
    label: Option<&NewLabel>,
) -> Result<(SnapshotFile, bool), FilesError> {
    let failed = |e: Box<rustic_core::RusticError>| FilesError::of("writing to", backend, &e);
    let options = SnapshotOptions::default()
        .host(target.instance.clone())
        .command(format!("lifeboat {}", target.config.name));
    let mut snapshot = SnapshotFile::from_options(&options).map_err(failed)?;
    let mut tags = StringList::default();
    tags.add(OURS.into());
    label
        .into_iter()
        .flat_map(NewLabel::tags)
        .for_each(|tag| tags.add(tag));
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
    let before = backend.parts_read();
    backend.hold_snapshots(true);
    let result = repo.archive(&options, source, snapshot, &target.config.paths);
    backend.hold_snapshots(false);
    if let Some(over) = FilesError::over(backend) {
        return Err(over);
    }
    let snapshot = result.map_err(failed)?;
    // Nothing else is read from packs meanwhile: each folder that `latest` has, once. A file that became a folder counts as one that was not.
    let read = backend.parts_read() - before;
    let summary = snapshot.summary.as_ref();
    let known = summary.map_or(0, |s| s.dirs_changed + s.dirs_unmodified);
    Ok((snapshot, known <= read))
}
