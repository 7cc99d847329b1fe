//! Tiers: the newest point of each of the newest periods. Pure; one rule for every kind of target.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};

use crate::config::RetentionConfig;

/// Tiers in the order in which a copy that several want counts: `other` is what a run of retention has still to look at, for its label or
/// its deletion.
const ORDER: [&str; 12] = [
    "newest",
    "point-in-time",
    "hourly",
    "daily",
    "weekly",
    "monthly",
    "yearly",
    "label",
    "proven",
    "foreign",
    "beyond-gap",
    "other",
];

/// What is kept in one store, by tier. Each copy counts once, so that all tiers together are all that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held(BTreeMap<usize, (u64, u64)>);

impl Held {
    /// Adds a copy that these tiers want.
    pub fn add(&mut self, tiers: impl Iterator<Item = &'static str>, bytes: u64) {
        let place = |word| ORDER.iter().position(|o| *o == word);
        let first = tiers.filter_map(place).min().unwrap_or(ORDER.len() - 1);
        let (copies, all) = self.0.entry(first).or_default();
        *copies += 1;
        *all += bytes;
    }

    /// Every tier.
    pub const TIERS: [&'static str; 12] = ORDER;

    /// Tier, copies, bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let all = self.0.iter();
        all.filter_map(|(place, (copies, bytes))| Some((*ORDER.get(*place)?, *copies, *bytes)))
    }
}

/// Calls `keep` with tier, period and point for each point that a tier keeps. `points` are in the order in which the later one of a period
/// takes the place of the earlier one; periods are those of `zone`.
pub(super) fn each<T: Copy>(
    points: impl Iterator<Item = (Timestamp, T)> + Clone,
    policy: &RetentionConfig,
    zone: &TimeZone,
    mut keep: impl FnMut(&'static str, String, T),
) {
    for (tier, count, format) in [
        ("hourly", policy.hourly, "%Y-%m-%dT%H"),
        ("daily", policy.daily, "%Y-%m-%d"),
        ("weekly", policy.weekly, "%G-W%V"),
        ("monthly", policy.monthly, "%Y-%m"),
        ("yearly", policy.yearly, "%Y"),
    ] {
        if count == 0 {
            continue;
        }
        let mut periods: BTreeMap<String, T> = BTreeMap::new();
        for (at, point) in points.clone() {
            let local = at.to_zoned(zone.clone());
            periods.insert(local.strftime(format).to_string(), point);
        }
        for (period, point) in periods.into_iter().rev().take(count as usize) {
            keep(tier, period, point);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_copy_counts_once_in_the_first_tier_that_wants_it() {
        let mut held = Held::default();
        held.add(["monthly", "daily", "label"].into_iter(), 7);
        held.add(["daily"].into_iter(), 1);
        held.add(["label"].into_iter(), 2);
        held.add(std::iter::empty(), 4);
        let all: Vec<_> = held.iter().collect();
        assert_eq!(all, [("daily", 2, 8), ("label", 1, 2), ("other", 1, 4)]);
    }
}
