//! Reading back and checking everything that a restore of the newest snapshot would need.

use std::time::{Duration, Instant};

use rustic_core::repofile::SnapshotFile;
use rustic_core::{CheckOptions, CheckResults, TreeId};

use super::error::{FilesError, plain};
use super::lock::{Lock, Mode};
use super::points::{Goal, Point, all_snapshots, find};
use super::read_back::read_back;
use super::repository::Repo;
use super::{Backend, PATIENCE_BACKUP, Target, repository};
use crate::memory::give_back;

/// How long is spent on finding out which snapshots lack something.
const LOOK_FOR: Duration = Duration::from_secs(60);
/// Findings in words.
const NAMED: usize = 5;

/// Checks the newest complete snapshot: every folder, every pack with its content. Other snapshots are checked for missing pieces.
///
/// # Errors
/// [`FilesError::Damaged`] with the first findings, and the rest.
pub fn verify(target: &Target) -> Result<Point, FilesError> {
    let backend = target.backend(PATIENCE_BACKUP);
    let repo = repository::open(&backend, &target.config.password)?;
    let _lock = Lock::take(&backend, &target.runtime, &repo, Mode::Shared)?;
    let all = all_snapshots(&backend, &repo)?;
    let mut points: Vec<Point> = all.iter().map(Point::of).collect();
    let newest = find(&points, &Goal::Newest)?;
    whole(&backend, &repo, &all.iter().collect::<Vec<_>>())?;
    let (key, tree) = (repository::key(&backend, &repo)?, all[newest].tree);
    drop(all);
    give_back();
    read_back(&backend, repo, &key, tree)?;
    Ok(points.swap_remove(newest))
}

/// Looks for every folder and every piece of snapshots in the index and the store.
///
/// # Errors
/// [`FilesError::Damaged`] with the first findings and the snapshots that lack something, and the store's.
pub(super) fn whole(
    backend: &Backend,
    repo: &Repo,
    snapshots: &[&SnapshotFile],
) -> Result<(), FilesError> {
    let check = |trees: Vec<TreeId>| {
        let found = repo
            .check_with_trees(CheckOptions::default(), trees)
            .map_err(|e| FilesError::of("checking", backend, &e))?;
        judge(backend, &found)
    };
    let Err(error) = check(snapshots.iter().map(|s| s.tree).collect()) else {
        return Ok(());
    };
    let FilesError::Damaged { store, mut what } = error else {
        return Err(error);
    };
    // Which ones: each is looked at by itself, the newest first.
    let (begun, mut lacking, mut left) = (Instant::now(), Vec::new(), snapshots.len());
    for snapshot in snapshots.iter().rev() {
        if begun.elapsed() > LOOK_FOR {
            break;
        }
        left -= 1;
        match check(vec![snapshot.tree]) {
            Ok(()) => {}
            Err(FilesError::Damaged { .. }) => lacking.push(Point::of(snapshot).short().to_owned()),
            Err(error) => return Err(error),
        }
    }
    what += &match (lacking.len(), snapshots.len()) {
        // A pack that cannot be read at all may be everybody's.
        (0, _) => String::new(),
        (some, all) => format!(
            "; {some} of {all} snapshots lack something: {}",
            lacking.join(", ")
        ),
    };
    if left > 0 {
        what += &format!(" ({left} older ones were not looked at one by one)");
    }
    Err(FilesError::Damaged { store, what })
}

/// A pack that was marked for deletion is gone before its time: stock restic knows no marks, and deletes at once what no index names. Or its size
/// is not the one in the index: of what a killed run left rustic keeps the mark without it.
fn is_harmless(finding: &str) -> bool {
    finding.contains("marked to-delete: true") && finding.contains("but not present")
        || finding.contains("marked to delete: true") && finding.contains("size computed by index")
}

/// Findings as an error. A store that failed is no damage.
pub(super) fn judge(backend: &Backend, found: &CheckResults) -> Result<(), FilesError> {
    if found.is_ok().is_ok() {
        return Ok(());
    }
    match FilesError::over(backend) {
        Some(FilesError::Store(failure)) if failure.is_not_found() => {}
        Some(over) => return Err(over),
        None => {}
    }
    // The type of the level is not exported; its word is.
    let errors: Vec<String> = found
        .0
        .iter()
        .filter(|(level, _)| format!("{level:?}") == "Error")
        .map(|(_, error)| error.to_string())
        .filter(|error| !is_harmless(error))
        .map(|error| plain(&error))
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    let more = errors.len().saturating_sub(NAMED);
    let mut what = errors[..errors.len().min(NAMED)].join("; ");
    if more > 0 {
        what += &format!("; and {more} more");
    }
    Err(FilesError::Damaged {
        store: backend.store().display(),
        what,
    })
}
