//! What a replica will cost: requests and bytes of a month. Pure.

mod copies;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use crate::config::{RetentionConfig, SqliteOptions};
use crate::restore::plan::Catalog;
use crate::types::Millis;

pub(super) use copies::Copies;

const DAY: f64 = 86_400.0;
const MONTH_DAYS: f64 = 30.44;
/// A shorter history says nothing about a month.
const HISTORY_MIN_SECONDS: f64 = 3600.0;
/// The last week is what the next month looks like.
const HISTORY_MAX_SECONDS: f64 = 7.0 * DAY;
/// Full copies are compressed: databases of text shrink to a third or half.
const COMPRESSED: f64 = 0.5;

/// Prices that the sums are made with, as in docs/cost.md.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Prices {
    million_writes: f64,
    million_reads: f64,
    gigabyte_month: f64,
}

pub(super) const PRICES: Prices = Prices {
    million_writes: 5.0,
    million_reads: 0.4,
    gigabyte_month: 0.023,
};

pub(super) fn explanation() -> String {
    format!(
        "at {:.2} per million writes, {:.2} per million reads, {} per GB; `lifeboat doctor --json` has the numbers for your store's prices",
        PRICES.million_writes, PRICES.million_reads, PRICES.gigabyte_month
    )
}

/// One replica's month.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Bill {
    target: String,
    kind: &'static str,
    store: String,
    /// Requests that write; `None` before there is a history.
    writes: Option<u64>,
    /// If something is committed in every interval.
    writes_at_most: u64,
    reads: u64,
    bytes_now: u64,
    /// When every point that retention keeps is there.
    bytes_in_the_long_run: u64,
    /// Dumps or snapshots, where a target has those.
    full_copies: u64,
    /// In the long run, with the writes of the history; `None` for a folder, which nobody bills.
    cost: Option<f64>,
    cost_at_most: Option<f64>,
}

/// What it is worked out from.
pub(super) struct Facts<'a> {
    pub(super) target: &'a str,
    pub(super) store: &'a str,
    pub(super) options: &'a SqliteOptions,
    pub(super) store_check: Duration,
    /// Bytes of the database now.
    pub(super) database: u64,
    pub(super) catalog: &'a Catalog,
    pub(super) now: Millis,
}

impl Bill {
    pub(super) fn of(facts: &Facts<'_>) -> Self {
        let month = MONTH_DAYS * DAY;
        let captures = captures_a_day(facts).map(|n| n * MONTH_DAYS);
        let most = month / facts.options.sync_interval.as_secs_f64().max(0.001);
        let full = Duration::as_secs_f64(&facts.options.snapshot_interval).max(1.0);
        let writes = |captures: f64| captures + roll_ups(captures, month) + month / full;
        let entries = facts.catalog.entries();
        let newest_base = entries
            .iter()
            .filter(|e| e.span.is_base())
            .max_by_key(|e| e.span.max());
        let copy = newest_base.map_or(facts.database as f64 * COMPRESSED, |e| e.size as f64);
        let copies = full_copies(facts.options.retention, full);
        let retention = facts.options.retention;
        let days =
            retention.point_in_time.as_secs_f64() / DAY + f64::from(retention.daily.min(366));
        let steady = copies as f64 * copy + changes_a_day(facts) * days;
        let reads = month / facts.store_check.as_secs_f64().max(1.0);
        let billed = !facts.store.starts_with("file://");
        let cost = |writes: f64| {
            writes * PRICES.million_writes / 1e6
                + reads * PRICES.million_reads / 1e6
                + steady * PRICES.gigabyte_month / 1e9
        };
        Self {
            target: facts.target.to_owned(),
            kind: "sqlite",
            store: facts.store.to_owned(),
            writes: captures.map(|c| writes(c) as u64),
            writes_at_most: writes(most) as u64,
            reads: reads as u64,
            bytes_now: entries.iter().map(|e| e.size).sum(),
            bytes_in_the_long_run: steady as u64,
            full_copies: copies,
            cost: captures.filter(|_| billed).map(|c| cost(writes(c))),
            cost_at_most: billed.then(|| cost(writes(most))),
        }
    }

    pub(super) fn costs(&self) -> bool {
        self.cost_at_most.is_some()
    }

    pub(super) fn words(&self) -> String {
        let requests = match self.writes {
            // By a schedule.
            Some(writes) if writes == self.writes_at_most => {
                format!(
                    "about {} writes, {} reads",
                    count(writes),
                    count(self.reads)
                )
            }
            Some(writes) => format!(
                "{} writes (at most {}), {} reads",
                count(writes),
                count(self.writes_at_most),
                count(self.reads)
            ),
            None => format!(
                "at most {} writes, {} reads",
                count(self.writes_at_most),
                count(self.reads)
            ),
        };
        let cost = match (self.cost, self.cost_at_most) {
            (Some(cost), Some(most)) if cost == most => format!("; about {cost:.2}"),
            (Some(cost), Some(most)) => format!("; about {cost:.2}, at most {most:.2}"),
            (None, Some(most)) => format!("; at most {most:.2}"),
            _ => String::new(),
        };
        let copies = match self.kind {
            "sqlite" => format!("full copies: {}, and changes", self.full_copies),
            "files" => format!("snapshots: {}", self.full_copies),
            _ => format!("dumps: {}", self.full_copies),
        };
        format!(
            "{} in {}: {requests}; {} now, about {} in the long run ({copies}){cost}",
            self.target,
            self.store,
            size(self.bytes_now),
            size(self.bytes_in_the_long_run),
        )
    }
}

/// Captures in the last week, by day; `None` if the history is too short to tell.
fn captures_a_day(facts: &Facts<'_>) -> Option<f64> {
    let points = facts.catalog.points();
    let newest = points.last()?;
    let begin = points.iter().find(|p| {
        let age = facts.now.0.saturating_sub(p.at.0) as f64 / 1e3;
        age <= HISTORY_MAX_SECONDS
    })?;
    let seconds = facts.now.0.saturating_sub(begin.at.0) as f64 / 1e3;
    let captures = newest.txid.get().saturating_sub(begin.txid.get());
    (seconds >= HISTORY_MIN_SECONDS).then(|| captures as f64 * DAY / seconds)
}

/// Bytes of changes that are stored, by day of history.
fn changes_a_day(facts: &Facts<'_>) -> f64 {
    let points = facts.catalog.points();
    let Some(oldest) = points.first() else {
        return 0.0;
    };
    let seconds = facts.now.0.saturating_sub(oldest.at.0) as f64 / 1e3;
    let changes = facts.catalog.entries().iter().filter(|e| !e.span.is_base());
    let bytes: u64 = changes.map(|e| e.size).sum();
    bytes as f64 * DAY / seconds.max(DAY)
}

/// Objects of the levels of 30 s, 5 min, 1 h and 24 h: one for each period in which something was captured.
fn roll_ups(captures: f64, month: f64) -> f64 {
    [30.0, 300.0, 3600.0, DAY]
        .iter()
        .map(|period| captures.min(month / period))
        .sum()
}

/// Full copies that the points to be kept begin from, one copy each `interval` seconds.
fn full_copies(retention: RetentionConfig, interval: f64) -> u64 {
    let mut copies = BTreeSet::new();
    let mut point = |age: f64| copies.insert((age / interval) as u64);
    point(0.0);
    let window = retention.point_in_time.as_secs_f64();
    for n in 0..=((window / interval) as u32).min(10_000) {
        point(f64::from(n) * interval);
    }
    let tiers = [
        (retention.hourly, 3600.0),
        (retention.daily, DAY),
        (retention.weekly, 7.0 * DAY),
        (retention.monthly, MONTH_DAYS * DAY),
        (retention.yearly, 365.25 * DAY),
    ];
    for (count, period) in tiers {
        for n in 0..count {
            point(f64::from(n) * period);
        }
    }
    copies.len() as u64
}

fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in decimal units, as stores bill them.
pub(in crate::cli) fn size(bytes: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(unit, _)| bytes as f64 >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retention(days: u64, daily: u32, weekly: u32, monthly: u32) -> RetentionConfig {
        RetentionConfig {
            daily,
            weekly,
            monthly,
            ..RetentionConfig::plain(Duration::from_secs(days * 86_400))
        }
    }

    #[test]
    fn the_documentations_examples() {
        let week = 7.0 * DAY;
        // "about 20", "about four".
        assert_eq!(full_copies(retention(7, 30, 8, 12), week), 18);
        assert_eq!(full_copies(retention(7, 14, 0, 0), week), 2);
        assert_eq!(full_copies(retention(1, 0, 0, 0), week), 1);
        assert_eq!(full_copies(retention(30, 0, 0, 0), DAY), 31);
        let month = 30.0 * DAY;
        let all = roll_ups(f64::MAX, month) as u64;
        assert_eq!(all, 86_400 + 8_640 + 720 + 30, "95,800 a month");
        assert_eq!(roll_ups(10.0, month) as u64, 40);
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(count(2_592_000), "2,592,000");
        assert_eq!(count(720), "720");
        assert_eq!(size(999), "999 bytes");
        assert_eq!(size(1_540_000_000), "1.5 GB");
    }
}
