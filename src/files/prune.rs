//! Forgetting snapshots and deleting what no kept one needs.
//!
//! Planned, proven, then done, under the exclusive lock: before anything is forgotten, every folder and every piece of every kept
//! snapshot is looked for in the index and the store; afterwards again. Packs that nobody needs are marked first and deleted by
//! a run a day later, so that a mistake can still be mended, and a reader that was at work is not hurt.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rustic_core::PruneOptions;

use super::error::FilesError;
use super::lock::{Lock, Mode};
use super::points::{Point, all_snapshots};
use super::{Backend, PATIENCE_BACKUP, Target, drill, repository, verify};
use crate::memory::give_back;
use crate::retention::copies::{Candidate, Decision, decide};

/// A clock that is off by more than this may not delete.
const CLOCK_LIMIT: SignedDuration = SignedDuration::from_mins(5);

fn candidate(point: &Point) -> Candidate {
    Candidate {
        id: point.id.clone(),
        began: point.time,
        good: !point.partial,
        ours: point.ours,
        labels: point.labels.clone(),
    }
}

/// What was decided and done.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// The snapshots as they were.
    pub points: Vec<Point>,
    /// What became of each.
    pub decisions: Vec<Decision>,
    /// Bytes that were marked for deletion, or rewritten to get rid of the rest of their pack.
    pub marked_bytes: u64,
    /// Bytes that an earlier run had marked and that are gone now.
    pub deleted_bytes: u64,
}

/// Applies retention; with `dry_run` only says what it would do.
///
/// # Errors
/// [`FilesError::Locked`], [`FilesError::Damaged`] (nothing was deleted), [`FilesError::Refused`] for a wrong clock, and the rest.
pub fn prune(target: &Target, zone: &TimeZone, dry_run: bool) -> Result<Pruned, FilesError> {
    let backend = target.backend(PATIENCE_BACKUP);
    let failed = |e: Box<rustic_core::RusticError>| FilesError::of("pruning", &backend, &e);
    let repo = repository::open(&backend, &target.config.password)?;
    // A look takes no lock: it may stand beside a backup.
    let lock = match dry_run {
        true => None,
        false => Some(Lock::take(&backend, &target.runtime, &repo, Mode::Alone)?),
    };
    let all = all_snapshots(&backend, &repo)?;
    let points: Vec<Point> = all.iter().map(Point::of).collect();
    let now = Timestamp::now();
    check_clock(now, points.last(), lock.as_ref())?;
    let candidates: Vec<Candidate> = points.iter().map(candidate).collect();
    let proven = BTreeSet::from_iter(drill::newest_proven(&backend, &points)?);
    let retention = &target.config.retention;
    let decisions = decide(&candidates, retention, &proven, now, zone);
    let (keep, forget): (Vec<&Decision>, Vec<_>) = decisions.iter().partition(|d| d.keeps());
    let forget: Vec<_> = forget.iter().map(|d| all[d.index].id).collect();
    let mut options = PruneOptions::default();
    options.ignore_snaps = forget.clone();
    let mut pruned = Pruned {
        points,
        marked_bytes: 0,
        deleted_bytes: 0,
        decisions: decisions.clone(),
    };
    if keep.is_empty() {
        return Ok(pruned);
    }
    let kept: Vec<_> = keep.iter().map(|d| &all[d.index]).collect();
    verify::whole(&backend, &repo, &kept)?;
    give_back();
    let stats = repo.prune_plan(&options).map_err(failed)?.stats;
    let size = stats.size_sum();
    pruned.marked_bytes = size.remove + size.repackrm;
    pruned.deleted_bytes = stats.size_to_delete.remove;
    if dry_run {
        return Ok(pruned);
    }
    if lock.as_ref().is_some_and(Lock::is_lost) {
        return Err(lost(&backend));
    }
    repo.delete_snapshots(&forget).map_err(failed)?;
    // Planned again on what is there now: nothing is assumed of the first plan, which is gone by now. One is large.
    give_back();
    let options = PruneOptions::default();
    let plan = repo.prune_plan(&options).map_err(failed)?;
    repo.prune(&options, plan).map_err(failed)?;
    give_back();
    verify::whole(&backend, &repo, &kept)?;
    Ok(pruned)
}

/// What is old is decided by the clock of this host: it must not be behind the newest snapshot, nor far from the store's, which wrote down
/// when the lock came. A look without a lock only knows the first.
fn check_clock(
    now: Timestamp,
    newest: Option<&Point>,
    lock: Option<&Lock>,
) -> Result<(), FilesError> {
    let refused = |what: String| {
        Err(FilesError::Refused(format!(
            "the clock says {now}, but {what}; nothing was deleted (set the clock of this host right, with NTP)"
        )))
    };
    if let Some(ahead) = newest.filter(|p| p.time.duration_since(now) > CLOCK_LIMIT) {
        return refused(format!("the newest snapshot is of {}", ahead.time));
    }
    match lock.map(|lock| lock.store_ahead) {
        Some(None) => refused("the store does not list the lock that was just written".into()),
        Some(Some(ahead)) if ahead.abs() > CLOCK_LIMIT => refused(format!(
            "the store's says {}",
            now.saturating_add(ahead).unwrap_or(now)
        )),
        _ => Ok(()),
    }
}

fn lost(backend: &Backend) -> FilesError {
    backend
        .failure()
        .map_or(FilesError::Stopped, FilesError::Store)
}
