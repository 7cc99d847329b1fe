//! Which files give the database at a moment. Pure.
//!
//! A restore point exists at the last TXID of a file. A plan is a base (a file from TXID 1) and then files that each begin at or
//! before the next TXID and reach further. Overlap is right: a file of TXIDs a to b holds the last version of each page changed in
//! them, so applying it to any state from a-1 to b gives the state at b.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::types::{Entry, Millis, Span, Txid};

/// Where to restore to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The last point.
    Newest,
    /// Exactly this one.
    Txid(Txid),
    /// The last one captured at or before this time.
    At(Millis),
}

/// Files to apply, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The first is a base.
    pub files: Vec<Entry>,
    /// The point that it gives.
    pub reaches: Txid,
    /// When that point was captured.
    pub as_of: Millis,
}

impl Plan {
    /// Bytes to read.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|e| e.size).sum()
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// No LTX file at all.
    #[error("the replica holds no files")]
    Empty,
    /// Files, but none that begins a chain.
    #[error("the replica holds no complete base")]
    NoBase,
    /// The goal is older than everything.
    #[error("the oldest restorable point is TXID {txid} of {at}")]
    BeforeFirst {
        /// First point.
        txid: Txid,
        /// Its time.
        at: Millis,
    },
    /// No such point.
    #[error("TXID {wanted} is no restorable point; {}", nearest(*before, *after))]
    NoSuchPoint {
        /// What was asked for.
        wanted: Txid,
        /// The last point before it.
        before: Option<Txid>,
        /// The first point after it.
        after: Option<Txid>,
    },
}

fn nearest(before: Option<Txid>, after: Option<Txid>) -> String {
    match (before, after) {
        (Some(b), Some(a)) => format!("the nearest are {b} and {a}"),
        (Some(b), None) => format!("the last one is {b}"),
        (None, Some(a)) => format!("the first one is {a}"),
        (None, None) => "there is none".into(),
    }
}

impl PlanError {
    /// The next step for a person.
    pub fn hint(&self) -> String {
        match self {
            Self::Empty | Self::NoBase => {
                "check the store's URL and the target's name with `lifeboat list`".into()
            }
            Self::BeforeFirst { .. } | Self::NoSuchPoint { .. } => {
                "see what can be restored with `lifeboat list`".into()
            }
        }
    }
}

/// One restorable point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Position.
    pub txid: Txid,
    /// When it was captured.
    pub at: Millis,
}

/// Files that lie behind a missing one: later changes than a plan reaches, which it should have reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The last point before it.
    pub reaches: Point,
    /// The first TXID that no file can be applied for.
    pub missing: Txid,
    /// Files behind it, up to the goal.
    pub files: usize,
    /// The last TXID in them.
    pub newest: Txid,
}

/// The LTX files of one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    // By first TXID, then last: what a chain can be walked in.
    entries: Vec<Entry>,
}

impl Catalog {
    /// Any order; duplicates are dropped.
    pub fn new(entries: impl IntoIterator<Item = Entry>) -> Self {
        let mut entries: Vec<Entry> = entries.into_iter().collect();
        entries.sort_unstable_by_key(|e| (e.span.min(), e.span.max(), e.span.level()));
        entries.dedup_by_key(|e| e.span);
        Self { entries }
    }

    /// Every file, by first and last TXID.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The same without some files.
    #[must_use]
    pub fn without(&self, gone: &BTreeSet<Span>) -> Self {
        Self {
            entries: self
                .entries
                .iter()
                .filter(|e| !gone.contains(&e.span))
                .copied()
                .collect(),
        }
    }

    /// Whether a plan stops short of its goal because a file is missing. Not for an exact TXID: that is what was asked for.
    pub fn hole(&self, plan: &Plan, goal: Goal) -> Option<Hole> {
        let points = self.points();
        let reachable = |txid| points.binary_search_by_key(&txid, |p| p.txid).is_ok();
        let wanted = |e: &&Entry| match goal {
            Goal::Newest => true,
            Goal::At(at) => e.created <= at,
            Goal::Txid(_) => false,
        };
        let behind: Vec<Txid> = self
            .entries
            .iter()
            .filter(wanted)
            .map(|e| e.span.max())
            .filter(|max| *max > plan.reaches && !reachable(*max))
            .collect();
        Some(Hole {
            reaches: Point {
                txid: plan.reaches,
                at: plan.as_of,
            },
            missing: plan.reaches.next(),
            files: behind.len(),
            newest: behind.into_iter().max()?,
        })
    }

    /// Points later than the plan's that were captured at or before the moment that was asked for, too: one in between is dated after it, as by a
    /// clock that was fast.
    pub fn passed_over(&self, plan: &Plan, goal: Goal) -> usize {
        let Goal::At(at) = goal else {
            return 0;
        };
        let later = |p: &&Point| p.txid > plan.reaches && p.at <= at;
        self.points().iter().filter(later).count()
    }

    /// Every TXID that can be restored exactly, ascending.
    ///
    /// A point is restorable if a file ends there and begins at or before the TXID after a restorable point, or is a base.
    pub fn points(&self) -> Vec<Point> {
        let mut by_end: Vec<&Entry> = self.entries.iter().collect();
        by_end.sort_unstable_by_key(|e| e.span.max());
        let mut points: Vec<Point> = Vec::new();
        for entry in by_end {
            let (min, max) = (entry.span.min(), entry.span.max());
            // The last restorable point before `max` is the best start.
            let start = points[..points.partition_point(|p| p.txid < max)].last();
            if !(entry.span.is_base() || start.is_some_and(|p| min <= p.txid.next())) {
                continue;
            }
            match points.last_mut() {
                // Of two files with one end the earlier time is the capture's; the other is a snapshot taken later.
                Some(last) if last.txid == max => last.at = last.at.min(entry.created),
                _ => points.push(Point {
                    txid: max,
                    at: entry.created,
                }),
            }
        }
        points
    }
}

/// Plans a restore.
pub fn plan(catalog: &Catalog, goal: Goal) -> Result<Plan, PlanError> {
    Planner::new(catalog).plan(goal)
}

/// A catalog made ready for many plans: each then costs little more than its length.
#[derive(Debug)]
pub struct Planner {
    points: Vec<Point>,
    // Of the files that end at a TXID and can be applied there: the one that begins earliest.
    longest: BTreeMap<Txid, Entry>,
    bases: BTreeMap<Txid, Entry>,
    is_empty: bool,
}

impl Planner {
    /// Indexes a catalog.
    pub fn new(catalog: &Catalog) -> Self {
        let points = catalog.points();
        let mut longest: BTreeMap<Txid, Entry> = BTreeMap::new();
        let mut bases: BTreeMap<Txid, Entry> = BTreeMap::new();
        let better = |a: &Entry, b: &Entry| (a.span.min(), a.size) < (b.span.min(), b.size);
        for entry in &catalog.entries {
            let end = entry.span.max();
            let index = if entry.span.is_base() {
                &mut bases
            } else {
                &mut longest
            };
            let can_be_applied = entry.span.is_base() || start_of(&points, entry).is_some();
            if can_be_applied && index.get(&end).is_none_or(|known| better(entry, known)) {
                index.insert(end, *entry);
            }
        }
        Self {
            points,
            longest,
            bases,
            is_empty: catalog.entries.is_empty(),
        }
    }

    /// Every restorable point, ascending.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Plans one restore.
    pub fn plan(&self, goal: Goal) -> Result<Plan, PlanError> {
        if self.is_empty {
            return Err(PlanError::Empty);
        }
        let points = &self.points;
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return Err(PlanError::NoBase);
        };
        let target = match goal {
            Goal::Newest => *last,
            Goal::Txid(wanted) => match points.binary_search_by_key(&wanted, |p| p.txid) {
                Ok(i) => points[i],
                Err(i) => {
                    let before = i.checked_sub(1).map(|i| points[i].txid);
                    return Err(PlanError::NoSuchPoint {
                        wanted,
                        before,
                        after: points.get(i).map(|p| p.txid),
                    });
                }
            },
            // The clock may have jumped: the point just before the first one captured after the moment never holds a later change.
            Goal::At(at) => match points.iter().position(|p| p.at > at) {
                Some(0) => {
                    return Err(PlanError::BeforeFirst {
                        txid: first.txid,
                        at: first.at,
                    });
                }
                Some(i) => points[i - 1],
                None => *last,
            },
        };
        let files = self.files(target.txid).ok_or(PlanError::NoBase)?;
        Ok(Plan {
            files,
            reaches: target.txid,
            as_of: target.at,
        })
    }

    /// Backwards from the target: of the files that end at a point, the one that begins earliest continues the most. It is always right
    /// to prefer it, because whatever a shorter file could follow, an earlier point can be followed by the longer one. The newest base
    /// ends the walk, so that the least is read.
    fn files(&self, target: Txid) -> Option<Vec<Entry>> {
        let (base_end, base) = self.bases.range(..=target).next_back()?;
        let mut at = target;
        let mut files = Vec::new();
        while at > *base_end {
            let longest = self.longest.get(&at)?;
            files.push(*longest);
            // The earliest point that this file can follow, but not before the newest base.
            at = start_of(&self.points, longest)?.max(*base_end);
        }
        files.push(*base);
        files.reverse();
        Some(files)
    }
}

/// The earliest restorable point that a file can be applied to.
fn start_of(points: &[Point], entry: &Entry) -> Option<Txid> {
    let i = points.partition_point(|p| p.txid.next() < entry.span.min());
    points
        .get(i)
        .map(|p| p.txid)
        .filter(|start| *start < entry.span.max())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Level;
    use proptest::prelude::*;

    fn entry(level: u8, min: u64, max: u64) -> Entry {
        let t = |n| Txid::new(n).unwrap();
        let span = Span::new(Level::new(level).unwrap(), t(min), t(max)).unwrap();
        Entry {
            span,
            size: 10,
            created: Millis(max as i64 * 1000),
        }
    }

    fn spans(plan: &Plan) -> Vec<(u8, u64, u64)> {
        plan.files
            .iter()
            .map(|e| (e.span.level().get(), e.span.min().get(), e.span.max().get()))
            .collect()
    }

    fn example() -> Catalog {
        Catalog::new([
            entry(9, 1, 1),
            entry(0, 2, 2),
            entry(0, 3, 3),
            entry(1, 2, 3),
            entry(0, 4, 4),
            entry(9, 1, 4),
            entry(0, 5, 5),
            entry(1, 4, 5),
            entry(0, 6, 6),
        ])
    }

    #[test]
    fn a_missing_file_is_no_silent_end() {
        let whole = example();
        let t = |n| Txid::new(n).unwrap();
        for goal in [Goal::Newest, Goal::At(Millis(4000)), Goal::Txid(t(3))] {
            let found = plan(&whole, goal).unwrap();
            assert_eq!(whole.hole(&found, goal), None, "{goal:?}");
        }
        // TXID 5 is gone at every level: 6 can be applied to nothing.
        let gone = [entry(0, 5, 5), entry(1, 4, 5)].map(|e| e.span);
        let broken = whole.without(&BTreeSet::from(gone));
        let newest = plan(&broken, Goal::Newest).unwrap();
        let hole = broken.hole(&newest, Goal::Newest).unwrap();
        assert_eq!((hole.reaches.txid, hole.missing), (t(4), t(5)));
        assert_eq!((hole.files, hole.newest), (1, t(6)));
        let before = Goal::At(Millis(5500));
        let found = plan(&broken, before).unwrap();
        assert_eq!(broken.hole(&found, before), None, "before the hole");
        let exact = Goal::Txid(t(4));
        assert_eq!(broken.hole(&plan(&broken, exact).unwrap(), exact), None);
    }

    #[test]
    fn what_a_fast_clock_hides_is_counted() {
        let mut fast = entry(0, 3, 3);
        fast.created = Millis(9_000);
        let catalog = Catalog::new([entry(9, 1, 1), entry(0, 2, 2), fast, entry(0, 4, 4)]);
        for (at, reaches, hidden) in [(4_500, 2, 1), (2_500, 2, 0), (9_500, 4, 0)] {
            let goal = Goal::At(Millis(at));
            let found = plan(&catalog, goal).unwrap();
            assert_eq!(found.reaches.get(), reaches);
            assert_eq!(catalog.passed_over(&found, goal), hidden, "{at}");
        }
    }

    #[test]
    fn takes_the_newest_base_and_the_longest_files() {
        assert_eq!(
            spans(&plan(&example(), Goal::Newest).unwrap()),
            [(9, 1, 4), (1, 4, 5), (0, 6, 6)]
        );
        assert_eq!(
            spans(&plan(&example(), Goal::Txid(Txid::new(3).unwrap())).unwrap()),
            [(9, 1, 1), (1, 2, 3)]
        );
        assert_eq!(
            spans(&plan(&example(), Goal::Txid(Txid::new(2).unwrap())).unwrap()),
            [(9, 1, 1), (0, 2, 2)]
        );
        assert_eq!(
            spans(&plan(&example(), Goal::At(Millis(4999))).unwrap()),
            [(9, 1, 4)]
        );
    }

    #[test]
    fn says_what_there_is_instead() {
        assert_eq!(
            plan(&Catalog::default(), Goal::Newest),
            Err(PlanError::Empty)
        );
        assert_eq!(
            plan(&Catalog::new([entry(0, 2, 2)]), Goal::Newest),
            Err(PlanError::NoBase)
        );
        assert!(matches!(
            plan(&example(), Goal::At(Millis(999))),
            Err(PlanError::BeforeFirst { .. })
        ));
        let holes = Catalog::new([entry(9, 1, 1), entry(1, 2, 5), entry(0, 8, 8)]);
        let error = plan(&holes, Goal::Txid(Txid::new(3).unwrap())).unwrap_err();
        assert_eq!(
            error,
            PlanError::NoSuchPoint {
                wanted: Txid::new(3).unwrap(),
                before: Txid::new(1),
                after: Txid::new(5)
            }
        );
        assert_eq!(
            plan(&holes, Goal::Newest).unwrap().reaches.get(),
            5,
            "TXID 8 has no chain"
        );
    }

    /// What a set of states can reach, by trying everything.
    fn brute_force(entries: &[Entry]) -> BTreeSet<u64> {
        let mut reached: BTreeSet<u64> = BTreeSet::new();
        loop {
            let before = reached.len();
            for e in entries {
                let (min, max) = (e.span.min().get(), e.span.max().get());
                if min == 1 || reached.iter().any(|r| *r < max && r + 1 >= min) {
                    reached.insert(max);
                }
            }
            if reached.len() == before {
                return reached;
            }
        }
    }

    proptest! {
        #[test]
        fn every_point_has_a_plan_that_is_a_chain(
            list in prop::collection::vec((0u8..=9, 1u64..12, 0u64..6), 0..14)
        ) {
            let entries: Vec<Entry> = list.iter().map(|(l, min, n)| entry(*l, *min, min + n)).collect();
            let catalog = Catalog::new(entries.clone());
            let points: BTreeSet<u64> = catalog.points().iter().map(|p| p.txid.get()).collect();
            prop_assert_eq!(&points, &brute_force(&entries));
            for wanted in points {
                let plan = plan(&catalog, Goal::Txid(Txid::new(wanted).unwrap())).unwrap();
                prop_assert!(plan.files[0].span.is_base());
                for pair in plan.files.windows(2) {
                    prop_assert!(pair[1].span.min() <= pair[0].span.max().next());
                    prop_assert!(pair[1].span.max() > pair[0].span.max());
                }
                prop_assert_eq!(plan.files.last().unwrap().span.max().get(), wanted);
                prop_assert_eq!(plan.reaches.get(), wanted);
            }
        }
    }
}
