//! Reading back and checking everything that a restore of the newest snapshot would need.

use rustic_core::{CheckOptions, CheckResults};

use super::error::FilesError;
use super::lock::{Lock, Mode};
use super::points::{Goal, Point, all_snapshots, find};
use super::{Backend, PATIENCE_BACKUP, Target, repository};

/// Findings in words.
const NAMED: usize = 5;

/// Checks the newest complete snapshot: every folder, every pack with its content. Other snapshots are checked for missing pieces.
///
/// # Errors
/// [`FilesError::Damaged`] with the first findings, and the rest.
pub fn verify(target: &Target) -> Result<Point, FilesError> {
    let backend = target.backend(PATIENCE_BACKUP);
    let failed = |e: Box<rustic_core::RusticError>| FilesError::of("checking", &backend, &e);
    let repo = repository::open(&backend, &target.config.password)?;
    let _lock = Lock::take(&backend, &target.runtime, &repo, Mode::Shared)?;
    let all = all_snapshots(&backend, &repo)?;
    let mut points: Vec<Point> = all.iter().map(Point::of).collect();
    let newest = find(&points, &Goal::Newest)?;
    let trees = all.iter().map(|s| s.tree).collect();
    let found = repo
        .check_with_trees(CheckOptions::default(), trees)
        .map_err(failed)?;
    judge(&backend, &found)?;
    let mut options = CheckOptions::default();
    options.read_data = true;
    let found = repo
        .check_with_trees(options, vec![all[newest].tree])
        .map_err(failed)?;
    judge(&backend, &found)?;
    Ok(points.swap_remove(newest))
}

/// Findings as an error. A store that failed is no damage.
pub(super) fn judge(backend: &Backend, found: &CheckResults) -> Result<(), FilesError> {
    if found.is_ok().is_ok() {
        return Ok(());
    }
    match backend.failure() {
        Some(failure) if !failure.is_not_found() => return Err(FilesError::Store(failure)),
        _ => {}
    }
    // The type of the level is not exported; its word is.
    let errors: Vec<String> = found
        .0
        .iter()
        .filter(|(level, _)| format!("{level:?}") == "Error")
        .map(|(_, error)| error.to_string().replace('\n', " "))
        .collect();
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
