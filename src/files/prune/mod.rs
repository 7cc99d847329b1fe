//! Forgetting snapshots and deleting what no kept one needs.
//!
//! Planned, proven, then done, under the exclusive lock. Before anything is forgotten, every folder of every kept snapshot is read, every piece is
//! found in a pack of the store that has the right size, and what is copied is read and hashed; afterwards everything is looked for again. Packs that nobody needs are marked first and deleted by
//! a run a day later, so that a mistake can still be mended, and a reader that was at work is not hurt. Marks are those of rustic: restic knows
//! none, takes no notice of them, and deletes at once what no index names.

mod apply;
mod needed;
mod plan;

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rustic_core::repofile::SnapshotFile;
use rustic_core::{FileType, Id, ReadBackend};

use super::error::FilesError;
use super::index::Index;
use super::lock::{Lock, Mode};
use super::points::{Point, all_snapshots, written};
use super::{Backend, PATIENCE_BACKUP, Target, drill, repository, verify};
use crate::labels::{Expiry, Label, Pin, Rules, expired};
use crate::memory::give_back;
use crate::retention::copies::{Candidate, Decision, decide};
use crate::types::Millis;
use apply::{exchange, prepare};
use plan::Plan;

/// A clock that is off by more than this may not delete.
const CLOCK_LIMIT: SignedDuration = SignedDuration::from_mins(5);

fn candidate(point: &Point, ended: &[Ending]) -> Candidate {
    let pins = |l: &&String| {
        let is_it = |(label, _): &Ending| label.label == **l && pinned(label) == point.id;
        !ended.iter().any(is_it)
    };
    Candidate {
        id: point.id.clone(),
        began: point.time,
        good: !point.partial,
        ours: point.ours,
        labels: point.labels.iter().filter(pins).cloned().collect(),
    }
}

/// A label that pins no longer, and why.
type Ending = (Label, Expiry);

/// The snapshot that a label of files pins.
fn pinned(label: &Label) -> &str {
    match &label.pin {
        Pin::Files { snapshot } => snapshot,
        Pin::Sqlite { .. } | Pin::Postgres { .. } => "",
    }
}

/// Labels of these snapshots that pin them no longer. They are tags and cannot be taken off: each goes with its snapshot, once no other rule keeps it.
fn ended<'a>(
    points: impl Iterator<Item = &'a Point>,
    written: &BTreeMap<String, Millis>,
    rules: &Rules,
    now: Timestamp,
) -> Vec<Ending> {
    let of_one = |point: &'a Point| {
        point.labels.iter().map(|label| Label {
            format: 1,
            label: label.clone(),
            at: point.time.to_string(),
            pin: Pin::Files {
                snapshot: point.id.clone(),
            },
            version: point.version(label).map(str::to_owned),
            instance: point.host.clone(),
            set: None,
            written: written.get(&point.id).copied(),
        })
    };
    // What is not ours is kept anyway, and must not push out what is.
    let labels: Vec<Label> = points.filter(|p| p.ours).flat_map(of_one).collect();
    let ended = expired(&labels, rules, Millis(now.as_millisecond()));
    ended.into_iter().map(|(l, why)| (l.clone(), why)).collect()
}

/// What was decided and done.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// The snapshots as they were.
    pub points: Vec<Point>,
    /// What became of each.
    pub decisions: Vec<Decision>,
    /// Labels that end with their snapshots, and why.
    pub ending: Vec<(Label, Expiry)>,
    /// Bytes that were marked for deletion, or rewritten to get rid of the rest of their pack.
    pub marked_bytes: u64,
    /// Bytes that an earlier run had marked and that are gone now.
    pub deleted_bytes: u64,
}

/// Applies retention; with `dry_run` only says what it would do.
///
/// # Errors
/// [`FilesError::Locked`], [`FilesError::Damaged`] (no snapshot was forgotten), [`FilesError::Refused`] for a wrong clock, and the rest.
pub fn prune(target: &Target, zone: &TimeZone, dry_run: bool) -> Result<Pruned, FilesError> {
    prune_until(target, zone, dry_run, drop)
}

/// [`prune`], with a way to end it: `begun` gets what [`Backend::stop`] does it with. A lock that keeps everybody out must not stay behind.
///
/// # Errors
/// As [`prune`].
pub fn prune_until(
    target: &Target,
    zone: &TimeZone,
    dry_run: bool,
    begun: impl FnOnce(Backend),
) -> Result<Pruned, FilesError> {
    let backend = target.backend(PATIENCE_BACKUP);
    begun(backend.clone());
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
    let proven = BTreeSet::from_iter(drill::newest_proven(&backend, &points)?);
    let retention = &target.config.retention;
    let written = written(&backend)?;
    let mut ending = Vec::new();
    let decisions = decide_each(&points, |line| {
        let ended = ended(line.iter().copied(), &written, &retention.labels, now);
        let candidates: Vec<Candidate> = line.iter().map(|p| candidate(p, &ended)).collect();
        ending.extend(ended);
        decide(&candidates, retention, &proven, now, zone)
    });
    let (keep, forget): (Vec<&Decision>, Vec<_>) = decisions.iter().partition(|d| d.keeps());
    let forget: Vec<_> = forget.iter().map(|d| all[d.index].id).collect();
    let goes = |id: &str| forget.iter().any(|f| f.to_hex().as_str() == id);
    ending.retain(|(label, _)| goes(pinned(label)));
    let mut pruned = Pruned {
        ending,
        points,
        marked_bytes: 0,
        deleted_bytes: 0,
        decisions: decisions.clone(),
    };
    if keep.is_empty() {
        return Ok(pruned);
    }
    let kept: Vec<_> = keep.iter().map(|d| &all[d.index]).collect();
    let index = Index::of(&backend, &repo)?;
    let roots: Vec<_> = kept.iter().map(|s| s.tree).collect();
    let mut plan = Plan::of(&backend, &index, &roots, now);
    if dry_run && matches!(plan, Err(FilesError::Damaged { .. })) {
        // Files of the index may have been exchanged meanwhile, by a prune that has the lock.
        plan = Plan::of(&backend, &index, &roots, now);
    }
    let mut plan = match plan {
        // The check says which snapshots lack something, if it finds that, too.
        Err(error @ FilesError::Damaged { .. }) => {
            verify::whole(&backend, &repo, &kept)?;
            return Err(error);
        }
        plan => plan?,
    };
    (pruned.marked_bytes, pruned.deleted_bytes) = plan.bytes();
    if dry_run {
        return Ok(pruned);
    }
    let new = prepare(&mut plan, &backend, &index)?;
    repo.delete_snapshots(&forget).map_err(failed)?;
    nothing_new(&backend, &all)?;
    // Copying may have taken hours: readers have a day from here.
    exchange(&plan, new, &index, Timestamp::now())?;
    drop(plan);
    give_back();
    verify::whole(&backend, &repo, &kept)?;
    Ok(pruned)
}

/// The plan holds for the snapshots that it was made for. One that was written in spite of the lock may need what it gives up.
fn nothing_new(backend: &Backend, all: &[SnapshotFile]) -> Result<(), FilesError> {
    let there = backend
        .list_with_size(FileType::Snapshot)
        .map_err(|e| FilesError::of("listing the snapshots of", backend, &e))?;
    // A listing may still show one that was just forgotten.
    let known: BTreeSet<Id> = all.iter().map(|s| s.id.into_inner()).collect();
    match there.iter().find(|(id, _)| !known.contains(id)) {
        None => Ok(()),
        Some((id, _)) => Err(FilesError::Refused(format!(
            "snapshot {} was written to {} in spite of the lock; nothing was given up, and the next run takes it into account",
            id.to_hex().as_str(),
            backend.store().display()
        ))),
    }
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

/// Decides on the snapshots of each line apart from those of the others.
fn decide_each(
    points: &[Point],
    mut decide: impl FnMut(&[&Point]) -> Vec<Decision>,
) -> Vec<Decision> {
    let mut all = Vec::new();
    for line in lines(points) {
        let these: Vec<&Point> = line.iter().map(|i| &points[*i]).collect();
        all.extend(decide(&these).into_iter().map(|decision| Decision {
            index: line[decision.index],
            ..decision
        }));
    }
    all.sort_by_key(|decision| decision.index);
    all
}

/// Instances that write at the same time, as a staging host with production's store does, are kept apart: no snapshot of one takes the place of one
/// of the other. One that came after the last snapshot of another goes on with its line: names of hosts change with every deploy. Positions, by
/// time; `points` are by time, too.
fn lines(points: &[Point]) -> Vec<Vec<usize>> {
    let mut hosts: Vec<(&str, usize, usize)> = Vec::new();
    for (at, point) in points.iter().enumerate().filter(|(_, p)| p.ours) {
        match hosts.iter_mut().find(|(host, ..)| *host == point.host) {
            Some((_, _, last)) => *last = at,
            None => hosts.push((&point.host, at, at)),
        }
    }
    // By their first snapshots, each to the first line that has ended.
    let mut ends: Vec<usize> = Vec::new();
    let mut line_of: Vec<(&str, usize)> = Vec::new();
    for (host, first, last) in hosts {
        let line = ends.iter().position(|end| *end < first);
        let line = line.unwrap_or_else(|| {
            ends.push(0);
            ends.len() - 1
        });
        ends[line] = last;
        line_of.push((host, line));
    }
    let mut lines = vec![Vec::new(); ends.len().max(1)];
    for (at, point) in points.iter().enumerate() {
        let known = line_of.iter().find(|(host, _)| *host == point.host);
        // What is not ours is kept anyway.
        let line = known.filter(|_| point.ours).map_or(0, |(_, line)| *line);
        lines[line].push(at);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(host: &str, ours: bool) -> Point {
        Point {
            id: String::new(),
            time: Timestamp::UNIX_EPOCH,
            host: host.into(),
            paths: Vec::new(),
            files: 0,
            bytes: 0,
            added: 0,
            partial: false,
            ours,
            labels: Vec::new(),
            version: None,
        }
    }

    #[test]
    fn who_writes_at_the_same_time_is_a_line_of_its_own() {
        let lines_of = |hosts: &str| {
            let points: Vec<Point> = hosts
                .chars()
                .map(|c| point(&c.to_string(), c != '-'))
                .collect();
            lines(&points)
        };
        assert_eq!(lines_of("aabbcc"), [vec![0, 1, 2, 3, 4, 5]]);
        assert_eq!(lines_of("ababa"), [vec![0, 2, 4], vec![1, 3]]);
        // Whoever came for one snapshot only is no longer line than that; what is not ours is in the first.
        assert_eq!(lines_of("axa-ya"), [vec![0, 2, 3, 5], vec![1, 4]]);
        assert_eq!(lines_of("abab-cc"), [vec![0, 2, 4, 5, 6], vec![1, 3]]);
        assert_eq!(lines_of(""), [Vec::<usize>::new()]);
    }

    #[test]
    fn two_instances_at_once_push_out_nothing_of_each_other() {
        let begin: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let points: Vec<Point> = (0..20)
            .map(|n| Point {
                id: n.to_string(),
                // Both each day, staging a little later.
                time: begin + SignedDuration::from_hours(24 * (n / 2) + n % 2),
                ..point(if n % 2 == 0 { "production" } else { "staging" }, true)
            })
            .collect();
        let daily = crate::config::RetentionConfig {
            daily: 5,
            ..crate::config::RetentionConfig::plain(std::time::Duration::ZERO)
        };
        let now = begin + SignedDuration::from_hours(24 * 10);
        let decisions = decide_each(&points, |line| {
            let candidates: Vec<Candidate> = line.iter().map(|p| candidate(p, &[])).collect();
            decide(&candidates, &daily, &BTreeSet::new(), now, &TimeZone::UTC)
        });
        assert_eq!(decisions.len(), points.len());
        let kept = decisions.iter().filter(|d| d.keeps()).map(|d| d.index);
        assert_eq!(kept.collect::<Vec<_>>(), (10..20).collect::<Vec<_>>());
    }

    /// A label of files ends as every label does, and pins its snapshot until then.
    #[test]
    fn labels_end_by_their_rules_in_each_line() {
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let at = |days: i64| now - SignedDuration::from_hours(24 * days);
        let labelled = |host: &str, days: i64, label: &str| Point {
            id: format!("{host}-{label}"),
            time: at(days),
            labels: vec![label.to_owned()],
            ..point(host, true)
        };
        let mut points = vec![
            labelled("production", 200, "by-hand"),
            labelled("production", 190, "slow"),
            labelled("production", 180, "before-v1"),
            labelled("production", 170, "before-v2"),
            Point {
                version: Some("v3".into()),
                ..labelled("production", 160, "release")
            },
            Point {
                ours: false,
                ..labelled("stranger", 150, "before-v9")
            },
        ];
        // Staging deploys all day, which is no reason to let go of production's.
        points.extend((0..25).map(|n| Point {
            time: at(165) + SignedDuration::from_hours(n),
            ..labelled("staging", 165, &format!("before-s{n:02}"))
        }));
        points.sort_by_key(|p| p.time);
        let written = BTreeMap::from([("production-slow".into(), Millis(now.as_millisecond()))]);
        let mut names = Vec::new();
        let policy = crate::config::RetentionConfig {
            labels: Rules::DEFAULT,
            ..crate::config::RetentionConfig::plain(std::time::Duration::ZERO)
        };
        let decisions = decide_each(&points, |line| {
            let ended = ended(line.iter().copied(), &written, &policy.labels, now);
            names.extend(ended.iter().map(|(l, _)| l.label.clone()));
            let candidates: Vec<Candidate> = line.iter().map(|p| candidate(p, &ended)).collect();
            decide(&candidates, &policy, &BTreeSet::new(), now, &TimeZone::UTC)
        });
        names.sort();
        let staging = (0..23).map(|n| format!("before-s{n:02}"));
        let mut expected: Vec<String> = staging.chain(["by-hand".into()]).collect();
        expected.push("before-v1".into());
        expected.sort();
        assert_eq!(names, expected);
        let goes = decisions.iter().filter(|d| !d.keeps());
        let goes: BTreeSet<&str> = goes.map(|d| points[d.index].labels[0].as_str()).collect();
        assert_eq!(goes, expected.iter().map(String::as_str).collect());
    }
}
