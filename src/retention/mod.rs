//! What to keep and why. Pure but for `execute`: catalog, policy and time in; a decision and a reason for each object out.
//!
//! Invariants
//! 1. What is kept is the union of the restore plans of all kept points. Everything else is deleted.
//! 2. Kept always: the newest restorable point, the newest level-0 file (Litestream goes on behind it), every label, the points that the
//!    tiers name, and inside the point-in-time window the newest point of each bucket of the resolution for its age, with the
//!    point in force when the window begins.
//! 3. A bucket is aligned to the epoch, and coarser buckets end where finer ones do: a point that a coarser rule wants was kept by
//!    every finer rule before it. So running this often or seldom promises the same points.
//! 4. Before anything is deleted, each kept point is looked for again in what would remain, by another way
//!    ([`prove`]); one that is missing refuses the whole plan. So does a clock that disagrees.
//! 5. Deletions and kept plans are disjoint: a crash after any number of deletions leaves every kept point restorable. They go from the
//!    highest TXID down, so that what is left of a chain is never beyond a hole.
//! 6. Before the first delete the store is listed again, capture times that only a listing told are read from the objects, and the
//!    store's clock is asked: memory of what is there, a copied replica's times and a wrong clock must not delete.
//! 7. A file from the future (a clock was wrong once) counts as captured when the next one was, or now; it holds nothing up. Only if the
//!    newest file is from the future and no store's clock says who is right, nothing is deleted.

pub mod copies;
mod execute;
mod prove;
mod tiers;

pub use execute::{Ending, Pins, Planned, PruneError, Pruned, plan_for, prepare, run};
pub use prove::prove;
pub use tiers::Held;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};
use thiserror::Error;

use crate::config::RetentionConfig;
use crate::restore::plan::{Catalog, Goal, Planner, Point};
use crate::types::{Entry, Level, Millis, Span, Txid};

/// Every capture is a point for this long.
const EVERY_CAPTURE_MS: i64 = 60 * 60 * 1000;
/// Then one point in 30 s, up to this age: the files of level 1.
const FINE_MS: i64 = 24 * 60 * 60 * 1000;
/// Bucket of the fine part.
const FINE_BUCKET_MS: i64 = 30 * 1000;
/// Bucket of the rest of the window: the files of level 2.
const COARSE_BUCKET_MS: i64 = 5 * 60 * 1000;
/// A clock that is off by more than this may not delete.
const CLOCK_LIMIT_MS: i64 = 5 * 60 * 1000;
const HOUR_MS: i64 = 60 * 60 * 1000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// Why an object is kept or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The newest point needs it.
    Newest,
    /// Litestream goes on behind the newest level-0 file.
    NewestCapture,
    /// A moment in the window needs it.
    PointInTime,
    /// A tier needs it.
    Tier(&'static str, String),
    /// A label needs it.
    Label(String),
    /// It lies beyond a missing file: not restorable now, and not known to be superfluous.
    BeyondGap,
    /// No kept point needs it.
    Unneeded,
}

impl Reason {
    /// The tier, in one word.
    fn tier(&self) -> &'static str {
        match self {
            Self::Newest | Self::NewestCapture => "newest",
            Self::PointInTime => "point-in-time",
            Self::Tier(tier, _) => tier,
            Self::Label(_) => "label",
            Self::BeyondGap => "beyond-gap",
            Self::Unneeded => "other",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => write!(f, "newest point"),
            Self::NewestCapture => write!(f, "newest level-0 file"),
            Self::PointInTime => write!(f, "point in time"),
            Self::Tier(tier, name) => write!(f, "{tier} {name}"),
            Self::Label(label) => write!(f, "label {label}"),
            Self::BeyondGap => write!(f, "beyond a missing file"),
            Self::Unneeded => write!(f, "no kept point needs it"),
        }
    }
}

/// One object and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The object.
    pub entry: Entry,
    /// Kept, with every reason; or deleted.
    pub keep: bool,
    /// At least one.
    pub reasons: Vec<Reason>,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.keep { "keep" } else { "delete" };
        let reasons: Vec<String> = self
            .reasons
            .iter()
            .take(3)
            .map(ToString::to_string)
            .collect();
        let more = if self.reasons.len() > 3 {
            format!(" and {} more", self.reasons.len() - 3)
        } else {
            String::new()
        };
        write!(
            f,
            "{word} {} {} bytes of {}: {}{more}",
            self.entry.span,
            self.entry.size,
            self.entry.created,
            reasons.join(", ")
        )
    }
}

/// Every object, decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// By TXID.
    pub decisions: Vec<Decision>,
    /// Points that stay restorable.
    pub kept: BTreeSet<Txid>,
    /// Labelled points that were not restorable even before: reported, never dropped silently.
    pub lost: Vec<(Txid, String)>,
}

impl RetentionPlan {
    /// What is kept, by tier; with what would be deleted if `all`.
    pub fn held(&self, all: bool) -> Held {
        let mut held = Held::default();
        for decision in self.decisions.iter().filter(|d| d.keep || all) {
            let tiers = decision.reasons.iter().map(Reason::tier);
            held.add(tiers, decision.entry.size);
        }
        held
    }

    /// What to delete, from the highest TXID down.
    pub fn deletions(&self) -> impl Iterator<Item = &Entry> {
        let mut gone: Vec<&Entry> = self
            .decisions
            .iter()
            .filter(|d| !d.keep)
            .map(|d| &d.entry)
            .collect();
        gone.sort_by_key(|e| std::cmp::Reverse((e.span.max(), e.span.min())));
        gone.into_iter()
    }
}

/// Why nothing may be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// A kept point would be lost. Never seen but by a defect: report it.
    #[error("deleting would lose the kept point TXID {0}; nothing was deleted")]
    WouldLose(Txid),
    /// The clock here is behind the newest capture, or far from the store's.
    #[error(
        "the clock says {now}, but the newest capture or the store says {other}; nothing was deleted"
    )]
    Clock {
        /// Here.
        now: Millis,
        /// There.
        other: Millis,
    },
}

impl Refused {
    /// The next step for a person.
    pub fn hint(&self) -> String {
        match self {
            Self::WouldLose(_) => {
                "please report this with the output of `lifeboat prune --dry-run --json`".into()
            }
            Self::Clock { .. } => "set the clock of this host right (NTP)".into(),
        }
    }
}

/// Plans retention. `labels` are pinned points with their names; `store_now` is the store's clock where it is known.
pub fn plan(
    catalog: &Catalog,
    labels: &[(Txid, String)],
    policy: &RetentionConfig,
    now: Millis,
    store_now: Option<Millis>,
) -> Result<RetentionPlan, Refused> {
    check_clock(catalog, now, store_now)?;
    let planner = Planner::new(catalog);
    let points = sensible(planner.points(), now);
    let wanted = wanted(&points, labels, policy, now);
    let mut reasons: BTreeMap<Span, Vec<Reason>> = BTreeMap::new();
    for (txid, why) in &wanted {
        let Ok(files) = planner.plan(Goal::Txid(*txid)) else {
            return Err(Refused::WouldLose(*txid));
        };
        for file in files.files {
            let list = reasons.entry(file.span).or_default();
            list.extend(
                why.iter()
                    .filter(|r| !list.contains(r))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
        }
    }
    let captures = catalog
        .entries()
        .iter()
        .filter(|e| e.span.level() == Level::CAPTURE);
    if let Some(newest) = captures.max_by_key(|e| e.span.max()) {
        reasons
            .entry(newest.span)
            .or_default()
            .push(Reason::NewestCapture);
    }
    // What lies beyond a hole in the chain cannot be restored now, but might be when the missing file comes back.
    let newest = planner.points().last().map(|p| p.txid);
    for entry in catalog
        .entries()
        .iter()
        .filter(|e| newest.is_some_and(|n| e.span.max() > n))
    {
        reasons
            .entry(entry.span)
            .or_default()
            .push(Reason::BeyondGap);
    }
    // Without one restorable point nothing is known to be superfluous.
    let nothing_known = wanted.is_empty();
    let decide = |entry: &Entry| match reasons.get(&entry.span) {
        Some(why) => Decision {
            entry: *entry,
            keep: true,
            reasons: why.clone(),
        },
        None => Decision {
            entry: *entry,
            keep: nothing_known,
            reasons: vec![Reason::Unneeded],
        },
    };
    let known: BTreeSet<Txid> = planner.points().iter().map(|p| p.txid).collect();
    let lost = labels
        .iter()
        .filter(|(txid, _)| !known.contains(txid))
        .cloned()
        .collect();
    let result = RetentionPlan {
        decisions: catalog.entries().iter().map(decide).collect(),
        kept: wanted.into_keys().collect(),
        lost,
    };
    prove(&result)?;
    Ok(result)
}

fn check_clock(catalog: &Catalog, now: Millis, store_now: Option<Millis>) -> Result<(), Refused> {
    let wrong = match store_now {
        Some(store) => Some(store).filter(|t| t.since(now).abs() > CLOCK_LIMIT_MS),
        // The capture that was made last: an older file from the future says nothing about the clock now.
        None => {
            let newest = catalog
                .entries()
                .iter()
                .filter(|e| !e.span.is_base())
                .max_by_key(|e| (e.span.max(), std::cmp::Reverse(e.created)));
            let only_bases = || catalog.entries().iter().max_by_key(|e| e.span.max());
            let newest = newest.or_else(only_bases);
            newest
                .map(|e| e.created)
                .filter(|t| t.since(now) > CLOCK_LIMIT_MS)
        }
    };
    match wrong {
        Some(other) => Err(Refused::Clock { now, other }),
        None => Ok(()),
    }
}

/// Points of the future count as captured when the next point was, or now. A point that looks older than an earlier one was captured under a
/// clock that was slow: it counts as captured with that one. So no wrong clock makes a point look older than it is.
fn sensible(points: &[Point], now: Millis) -> Vec<Point> {
    let mut sensible: Vec<Point> = points.to_vec();
    let mut newest = Millis(i64::MIN);
    for point in sensible.iter_mut().filter(|p| p.at <= now) {
        point.at = point.at.max(newest);
        newest = point.at;
    }
    let mut next = now;
    for point in sensible.iter_mut().rev() {
        if point.at > now {
            point.at = next;
        } else {
            next = point.at;
        }
    }
    sensible
}

/// The points to keep, with reasons.
fn wanted(
    points: &[Point],
    labels: &[(Txid, String)],
    policy: &RetentionConfig,
    now: Millis,
) -> BTreeMap<Txid, Vec<Reason>> {
    let mut wanted: BTreeMap<Txid, Vec<Reason>> = BTreeMap::new();
    let mut want = |txid: Txid, reason: Reason| {
        let list = wanted.entry(txid).or_default();
        if !list.contains(&reason) {
            list.push(reason);
        }
    };
    if let Some(newest) = points.last() {
        want(newest.txid, Reason::Newest);
    }
    let window = i64::try_from(policy.point_in_time.as_millis()).unwrap_or(i64::MAX);
    let begin = now.0.saturating_sub(window);
    for point in window_points(points, begin, now.0) {
        want(point.txid, Reason::PointInTime);
    }
    // By TXID: the last state of a period, also where a clock went back.
    let times = points.iter().map(|p| (timestamp(p.at), p.txid));
    tiers::each(times, policy, &TimeZone::UTC, |tier, period, txid| {
        want(txid, Reason::Tier(tier, period));
    });
    let known: BTreeSet<Txid> = points.iter().map(|p| p.txid).collect();
    for (txid, label) in labels.iter().filter(|(t, _)| known.contains(t)) {
        want(*txid, Reason::Label(label.clone()));
    }
    wanted
}

/// In the window the newest point of each bucket, and the last point before it begins. A clock that was slow once makes points in the middle
/// of the window look older than it: then there is more than one such point.
fn window_points(points: &[Point], begin: i64, now: i64) -> Vec<Point> {
    let before = |i: usize| points.get(i).is_some_and(|p| p.at.0 <= begin);
    let mut kept: Vec<Point> = (0..points.len())
        .filter(|i| before(*i) && !before(i + 1))
        .map(|i| points[i])
        .collect();
    let mut last_bucket = None;
    for point in points.iter().rev().filter(|p| p.at.0 > begin) {
        let width = match now - point.at.0 {
            age if age <= EVERY_CAPTURE_MS => 1,
            age if age <= FINE_MS => FINE_BUCKET_MS,
            _ => COARSE_BUCKET_MS,
        };
        let bucket = (width, point.at.0.div_euclid(width));
        if last_bucket != Some(bucket) || width == 1 {
            kept.push(*point);
        }
        last_bucket = Some(bucket);
    }
    kept
}

fn timestamp(at: Millis) -> Timestamp {
    Timestamp::from_millisecond(at.0).unwrap_or_default()
}

/// How often a replica is worth a look: nothing becomes superfluous faster than this.
pub const EVERY: Duration = Duration::from_millis((DAY_MS / 24) as u64);

#[cfg(test)]
mod tests;
