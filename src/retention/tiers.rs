//! Tiers: the newest point of each of the newest periods. Pure; one rule for every kind of target.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};

use crate::config::RetentionConfig;

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
