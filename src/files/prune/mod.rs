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

/// Labels that pin their snapshots no longer. They are tags and cannot be taken off: each goes with its snapshot, once no other rule keeps that.
///
/// Who writes beside whom is guessed from names of hosts. So a label must have ended whichever way they are put together: among all, in its line,
/// and, where there are several lines, among those of its host.
fn ended(
    points: &[Point],
    written: &BTreeMap<String, Millis>,
    rules: &Rules,
    now: Timestamp,
) -> Vec<Ending> {
    // What is not ours is kept anyway, and must not push out what is.
    let ours = |at: &usize| points[*at].ours;
    let lines = lines(points);
    let mut hosts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, point) in points.iter().enumerate() {
        hosts.entry(&point.host).or_default().push(at);
    }
    let mut views = vec![vec![(0..points.len()).collect()]];
    if lines.len() > 1 {
        views.push(hosts.into_values().collect());
    }
    views.push(lines);
    let mut ended: Option<Vec<Ending>> = None;
    for groups in views {
        let of_one = |group: &Vec<usize>| {
            let group: Vec<&Point> = group
                .iter()
                .filter(|at| ours(at))
                .map(|at| &points[*at])
                .collect();
            ended_of(&group, written, rules, now)
        };
        let here: Vec<Ending> = groups.iter().flat_map(of_one).collect();
        let is_here = |ending: &Ending| here.iter().any(|(label, _)| *label == ending.0);
        ended = Some(match ended {
            Some(before) => before.into_iter().filter(is_here).collect(),
            None => here,
        });
    }
    ended.unwrap_or_default()
}

/// The same of some snapshots by themselves. Labels of partial ones take no place of those of complete ones.
fn ended_of(
    points: &[&Point],
    written: &BTreeMap<String, Millis>,
    rules: &Rules,
    now: Timestamp,
) -> Vec<Ending> {
    let labels_of = |with_partial: bool| -> Vec<Label> {
        let points = points.iter().filter(|p| with_partial || !p.partial);
        points.flat_map(|p| labels(p, written)).collect()
    };
    let now = Millis(now.as_millisecond());
    let (complete, all) = (labels_of(false), labels_of(true));
    let of_partial = |(label, _): &(&Label, Expiry)| !complete.contains(label);
    let partial = expired(&all, rules, now).into_iter().filter(of_partial);
    let ended = expired(&complete, rules, now).into_iter().chain(partial);
    ended.map(|(label, why)| (label.clone(), why)).collect()
}

/// The labels of a snapshot as those of other targets are.
fn labels(point: &Point, written: &BTreeMap<String, Millis>) -> impl Iterator<Item = Label> {
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
    let mut ending = ended(&points, &written, &retention.labels, now);
    let decisions = decide_each(&points, &ending, |candidates| {
        decide(candidates, retention, &proven, now, zone)
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
    ended: &[Ending],
    decide: impl Fn(&[Candidate]) -> Vec<Decision>,
) -> Vec<Decision> {
    let mut all = Vec::new();
    for line in lines(points) {
        let these = line.iter().map(|i| candidate(&points[*i], ended));
        let these: Vec<Candidate> = these.collect();
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
        let decisions = decide_each(&points, &[], |candidates| {
            decide(candidates, &daily, &BTreeSet::new(), now, &TimeZone::UTC)
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
        let policy = crate::config::RetentionConfig::plain(std::time::Duration::ZERO);
        let ended = ended(&points, &written, &Rules::DEFAULT, now);
        let decisions = decide_each(&points, &ended, |candidates| {
            decide(candidates, &policy, &BTreeSet::new(), now, &TimeZone::UTC)
        });
        let mut names: Vec<&str> = ended.iter().map(|(l, _)| l.label.as_str()).collect();
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

    fn names(points: &[Point], now: Timestamp) -> Vec<String> {
        let ended = ended(points, &BTreeMap::new(), &Rules::DEFAULT, now);
        let mut names: Vec<String> = ended.into_iter().map(|(l, _)| l.label).collect();
        names.sort();
        names
    }

    /// Each command in a container of its own, and names of hosts that change: lines that are guessed wrongly end nothing.
    #[test]
    fn a_label_ends_only_whichever_way_hosts_are_put_together() {
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let at = |days: i64, host: &str, labels: &[&str]| Point {
            id: format!("{host}-{days}"),
            time: now - SignedDuration::from_hours(24 * days),
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
            ..point(host, true)
        };
        // What serves was deployed on one host, and two that failed were tried on others, of another line.
        let points = [
            at(200, "a", &[]),
            at(199, "x1", &["before-v1"]),
            at(198, "a", &[]),
            at(197, "x2", &["deployed-v1"]),
            at(196, "b", &[]),
            at(195, "x3", &["before-v2"]),
            at(194, "b", &[]),
            at(193, "x4", &["before-v3"]),
            at(192, "b", &[]),
        ];
        assert_eq!(names(&points, now), [""; 0]);
        // Production and staging both get new names, and staging is the first to come back.
        let mut points = vec![
            at(50, "production", &["before-v41"]),
            at(49, "staging", &["before-s1"]),
            at(48, "production", &["deployed-v41"]),
            at(47, "staging", &["deployed-s1"]),
        ];
        for day in (2..46).rev().step_by(2) {
            let label = format!("before-s{:02}", 50 - day);
            points.push(at(day, "staging2", &[&label]));
            points.push(at(day - 1, "production2", &[]));
        }
        let ended = names(&points, now);
        assert!(!ended.iter().any(|l| l.contains("v41")), "{ended:?}");
    }

    /// A run with a file that it could not read fails, and its labels push out none of a run that was well.
    #[test]
    fn labels_of_partial_snapshots_push_out_none_of_complete_ones() {
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let at = |days: i64, label: &str, partial: bool| Point {
            id: label.to_owned(),
            time: now - SignedDuration::from_hours(24 * days),
            labels: vec![label.to_owned()],
            partial,
            ..point("web", true)
        };
        let mut points = vec![at(40, "whole", false)];
        points.extend((0..25).map(|n| at(35 - n, &format!("nightly{n:02}"), true)));
        let first: Vec<String> = (0..5).map(|n| format!("nightly{n:02}")).collect();
        assert_eq!(names(&points, now), first);
    }
}
