//! Which copies are kept that stand for themselves: dumps, snapshots of files. Pure.
//!
//! Kept always: the newest, the newest good one, the newest that a drill has restored, every labelled one, and what Lifeboat did not make.
//! Good ones and others fill the tiers apart from each other, so that no number of odd or partial ones takes a good one's place.

use std::collections::BTreeSet;
use std::fmt;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::tiers::{self, Held};
use crate::config::RetentionConfig;

/// A copy, as far as its keeping is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// When it began.
    pub began: Timestamp,
    /// It is complete, looks as it should, and the store holds all of it. Others replace none that does.
    pub good: bool,
    /// Lifeboat made it.
    pub ours: bool,
    /// Labels that pin it.
    pub labels: Vec<String>,
}

/// Why a copy is kept or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The newest.
    Newest,
    /// The newest good one.
    NewestGood,
    /// The newest that a drill has restored.
    Proven,
    /// A label pins it.
    Label(String),
    /// Within `point-in-time`.
    PointInTime,
    /// A tier, and the period.
    Tier(&'static str, String),
    /// Somebody else made it.
    Foreign,
    /// No rule keeps it.
    Unneeded,
}

impl Reason {
    /// The tier, in one word.
    fn tier(&self) -> &'static str {
        match self {
            Self::Newest | Self::NewestGood => "newest",
            Self::Proven => "proven",
            Self::Label(_) => "label",
            Self::PointInTime => "point-in-time",
            Self::Tier(tier, _) => tier,
            Self::Foreign => "foreign",
            Self::Unneeded => "other",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("newest"),
            Self::NewestGood => f.write_str("newest good"),
            Self::Proven => f.write_str("newest proven by a drill"),
            Self::Label(label) => write!(f, "label {label}"),
            Self::PointInTime => f.write_str("point in time"),
            Self::Tier(tier, period) => write!(f, "{tier} {period}"),
            Self::Foreign => f.write_str("not made by lifeboat"),
            Self::Unneeded => f.write_str("no rule keeps it"),
        }
    }
}

/// A copy and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Position among the copies.
    pub index: usize,
    /// At least one; [`Reason::Unneeded`] alone means delete.
    pub reasons: Vec<Reason>,
}

impl Decision {
    /// Whether it stays.
    pub fn keeps(&self) -> bool {
        self.reasons != [Reason::Unneeded]
    }
}

/// What is kept, by tier; `bytes` are those of a copy by its position.
pub fn held(decisions: &[Decision], bytes: impl Fn(usize) -> u64) -> Held {
    let mut held = Held::default();
    for decision in decisions.iter().filter(|d| d.keeps()) {
        let tiers = decision.reasons.iter().map(Reason::tier);
        held.add(tiers, bytes(decision.index));
    }
    held
}

/// A clock that is off by more than this dated a copy wrongly.
const CLOCK_LIMIT: SignedDuration = SignedDuration::from_mins(5);

/// The position of the newest copy, as people mean it: one that a clock which was wrong dated into the future is newer than nothing, unless there is no
/// other. `began` are by time. Pure.
pub fn newest(
    began: impl DoubleEndedIterator<Item = Timestamp> + ExactSizeIterator,
    now: Timestamp,
) -> Option<usize> {
    let mut began = began;
    let all = began.len();
    let sensible = |t: Timestamp| t.duration_since(now) <= CLOCK_LIMIT;
    began.rposition(sensible).or(all.checked_sub(1))
}

/// Decides on every copy. `copies` are by time; `proven` are the ids that drills have restored; periods are those of `zone`.
pub fn decide(
    copies: &[Candidate],
    policy: &RetentionConfig,
    proven: &BTreeSet<String>,
    now: Timestamp,
    zone: &TimeZone,
) -> Vec<Decision> {
    let mut reasons: Vec<Vec<Reason>> = vec![Vec::new(); copies.len()];
    let mut keep = |index: usize, reason| reasons[index].push(reason);
    // What is not ours is kept anyway, and must take the place of nothing that is.
    if let Some(last) = copies.iter().rposition(|c| c.ours) {
        keep(last, Reason::Newest);
    }
    if let Some(good) = copies.iter().rposition(|c| c.good && c.ours) {
        keep(good, Reason::NewestGood);
    }
    if let Some(index) = copies.iter().rposition(|c| proven.contains(&c.id)) {
        keep(index, Reason::Proven);
    }
    let window = SignedDuration::try_from(policy.point_in_time).unwrap_or(SignedDuration::MAX);
    for (i, copy) in copies.iter().enumerate() {
        for label in &copy.labels {
            keep(i, Reason::Label(label.clone()));
        }
        if !copy.ours {
            keep(i, Reason::Foreign);
        }
        if now.duration_since(copy.began) <= window && !window.is_zero() {
            keep(i, Reason::PointInTime);
        }
    }
    for good in [true, false] {
        let all = copies.iter().enumerate();
        let these = all
            .filter(|(_, c)| c.good == good && c.ours)
            .map(|(i, c)| (c.began, i));
        tiers::each(these, policy, zone, |tier, period, i| {
            keep(i, Reason::Tier(tier, period));
        });
    }
    reasons
        .into_iter()
        .enumerate()
        .map(|(index, mut reasons)| {
            if reasons.is_empty() {
                reasons.push(Reason::Unneeded);
            }
            Decision { index, reasons }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn point(began: Timestamp) -> Candidate {
        Candidate {
            id: began.to_string(),
            began,
            good: true,
            ours: true,
            labels: Vec::new(),
        }
    }

    fn policy() -> RetentionConfig {
        RetentionConfig::plain(Duration::ZERO)
    }

    fn kept(points: &[Candidate], policy: &RetentionConfig, now: Timestamp) -> Vec<usize> {
        decide(points, policy, &BTreeSet::new(), now, &TimeZone::UTC)
            .iter()
            .filter(|d| d.keeps())
            .map(|d| d.index)
            .collect()
    }

    #[test]
    fn odd_dumps_never_push_good_ones_out() {
        let days = |n: i64| at("2026-01-01T00:00:00Z") + SignedDuration::from_hours(24 * n);
        let mut points: Vec<Candidate> = (0..40).map(|n| point(days(n))).collect();
        points[10..].iter_mut().for_each(|p| p.good = false);
        let daily = RetentionConfig {
            daily: 7,
            ..policy()
        };
        let kept = kept(&points, &daily, days(41));
        let expected: Vec<usize> = (3..10).chain(33..40).collect();
        assert_eq!(kept, expected, "seven good ones and seven odd ones");
    }

    #[test]
    fn some_are_kept_whatever_the_policy() {
        let hours = |n: i64| at("2020-01-01T00:00:00Z") + SignedDuration::from_hours(n);
        let mut points: Vec<Candidate> = (0..6).map(|n| point(hours(n))).collect();
        points[5].good = false;
        points[1].labels.push("v1".into());
        points[3].ours = false;
        let proven = BTreeSet::from([points[0].id.clone(), points[2].id.clone()]);
        let now = at("2026-01-01T00:00:00Z");
        let decisions = decide(&points, &policy(), &proven, now, &TimeZone::UTC);
        let kept: Vec<usize> = decisions
            .iter()
            .filter(|d| d.keeps())
            .map(|d| d.index)
            .collect();
        assert_eq!(kept, [1, 2, 3, 4, 5]);
        assert!(decide(&[], &policy(), &proven, now, &TimeZone::UTC).is_empty());
    }

    #[test]
    fn a_copy_of_the_future_is_not_the_newest() {
        let now = at("2026-01-02T00:00:00Z");
        let times = |all: &[i64]| {
            let all: Vec<_> = all
                .iter()
                .map(|m| now + SignedDuration::from_mins(*m))
                .collect();
            newest(all.into_iter(), now)
        };
        assert_eq!(times(&[]), None);
        assert_eq!(times(&[-9, -1, 4]), Some(2), "clocks differ a little");
        assert_eq!(times(&[-9, -1, 6, 60]), Some(1));
        assert_eq!(times(&[6, 60]), Some(1), "better than none");
    }

    #[test]
    fn what_others_made_takes_no_place_of_ours() {
        let days = |n: i64| at("2026-01-01T00:00:00Z") + SignedDuration::from_hours(24 * n);
        let hour = SignedDuration::from_hours(23);
        let ours = (0..9).map(|n| point(days(n)));
        let theirs = (0..9).map(|n| Candidate {
            ours: false,
            ..point(days(n) + hour)
        });
        let mut points: Vec<Candidate> = ours.chain(theirs).collect();
        points.sort_by_key(|p| p.began);
        let daily = RetentionConfig {
            daily: 4,
            ..policy()
        };
        let kept = kept(&points, &daily, days(10));
        let (mine, others): (Vec<usize>, Vec<_>) = kept.iter().partition(|i| points[**i].ours);
        assert_eq!(mine, [10, 12, 14, 16], "four days of ours");
        assert_eq!(others.len(), 9, "and everything of theirs");
    }

    #[test]
    fn periods_are_those_of_the_zone() {
        let points = ["2026-11-19T22:30:00Z", "2026-11-19T23:30:00Z"].map(|t| point(at(t)));
        let daily = RetentionConfig {
            daily: 9,
            ..policy()
        };
        let now = at("2026-11-21T12:00:00Z");
        let keeps = |zone: &str| {
            let zone = TimeZone::get(zone).unwrap();
            decide(&points, &daily, &BTreeSet::new(), now, &zone)
                .iter()
                .filter(|d| d.keeps())
                .count()
        };
        assert_eq!(keeps("UTC"), 1);
        assert_eq!(keeps("Europe/Berlin"), 2, "midnight lies between");
    }

    /// A year of dumps with pruning after each one, as the daemon does it, against what the tiers promise.
    fn year(every_minutes: i64, odd: &[bool], policy: &RetentionConfig, zone: &TimeZone) {
        let mut now = at("2026-01-01T00:07:00Z");
        let mut there: Vec<Candidate> = Vec::new();
        let mut all: Vec<Candidate> = Vec::new();
        let (mut i, end) = (0, at("2027-01-01T00:00:00Z"));
        while now < end {
            let mut new = point(now);
            new.good = !odd[i % odd.len()];
            there.push(new.clone());
            all.push(new);
            let decisions = decide(&there, policy, &BTreeSet::new(), now, zone);
            there = decisions
                .iter()
                .filter(|d| d.keeps())
                .map(|d| there[d.index].clone())
                .collect();
            now += SignedDuration::from_mins(every_minutes);
            i += 1;
        }
        // One look at all of them keeps the same as many looks at what was left.
        let once = decide(
            &all,
            policy,
            &BTreeSet::new(),
            all[all.len() - 1].began,
            zone,
        );
        let once: Vec<&Candidate> = once
            .iter()
            .filter(|d| d.keeps())
            .map(|d| &all[d.index])
            .collect();
        assert_eq!(there.iter().collect::<Vec<_>>(), once);
        let most = policy.hourly + policy.daily + policy.weekly + policy.monthly + policy.yearly;
        assert!(there.len() as u32 <= 2 * most + 3, "{}", there.len());
        assert_eq!(there.last(), all.last());
        assert_eq!(
            there.iter().rfind(|p| p.good),
            all.iter().rfind(|p| p.good),
            "the newest good one"
        );
        // The last good dump of each of the newest days with one is there.
        let day = |p: &Candidate| p.began.to_zoned(zone.clone()).date();
        let mut days: BTreeMap<_, &Candidate> = BTreeMap::new();
        all.iter().filter(|p| p.good).for_each(|p| {
            days.insert(day(p), p);
        });
        for point in days.values().rev().take(policy.daily as usize) {
            assert!(there.contains(point), "{point:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

        #[test]
        fn tiers_over_a_year(
            every in 300_i64..3_000,
            odd in prop::collection::vec(prop::bool::weighted(0.3), 1..40),
            hourly in 0_u32..30, daily in 0_u32..40, weekly in 0_u32..10, monthly in 0_u32..14,
        ) {
            let policy = RetentionConfig { hourly, daily, weekly, monthly, yearly: 2, ..policy() };
            for zone in ["UTC", "Europe/Berlin"] {
                year(every, &odd, &policy, &TimeZone::get(zone).unwrap());
            }
        }
    }
}
