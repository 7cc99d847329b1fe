//! What dumps and snapshots of files will cost: whole copies by a schedule. Pure.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::{Bill, DAY, MONTH_DAYS, PRICES, full_copies};
use crate::config::RetentionConfig;
use crate::schedule::Schedule;

/// Parts of an upload; smaller objects are one request.
const PART_BYTES: f64 = 8.0 * 1024.0 * 1024.0;
/// Packs of a repository of files.
const PACK_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
/// Beginning and end of an upload in parts, roles, manifest.
const DUMP_WRITES: f64 = 4.0;
/// Retention lists dumps, labels and drills; after each dump, and every six hours.
const PRUNE_LISTS: f64 = 3.0;
const PRUNES_A_DAY: f64 = 4.0;
/// Locks, lists, index and snapshot of a run of files.
const RUN_WRITES: f64 = 10.0;
/// Key, configuration, index, and folders of the snapshot before.
const RUN_READS: f64 = 20.0;

/// What is kept in one store.
pub(in crate::cli::doctor) struct Copies<'a> {
    pub(in crate::cli::doctor) target: &'a str,
    pub(in crate::cli::doctor) store: &'a str,
    pub(in crate::cli::doctor) kind: &'static str,
    pub(in crate::cli::doctor) schedule: &'a str,
    pub(in crate::cli::doctor) time_zone: &'a TimeZone,
    pub(in crate::cli::doctor) retention: RetentionConfig,
    /// Copies that are there.
    pub(in crate::cli::doctor) points: usize,
    /// Bytes of everything in the store.
    pub(in crate::cli::doctor) bytes_now: u64,
    /// Bytes that one more copy takes.
    pub(in crate::cli::doctor) each: u64,
}

impl Copies<'_> {
    /// `None` where the schedule never comes.
    pub(in crate::cli::doctor) fn bill(&self, now: Timestamp) -> Option<Bill> {
        let period = period(self.schedule, self.time_zone, now)?;
        let runs = MONTH_DAYS * DAY / period;
        let kept = full_copies(self.retention, period);
        let each = self.each as f64;
        // What is there already is not paid for twice.
        let missing = (kept as f64 - self.points as f64).max(0.0);
        let (writes, reads, steady) = match self.kind {
            "files" => {
                let writes = runs * ((each / PACK_BYTES).ceil() + RUN_WRITES);
                (
                    writes,
                    runs * RUN_READS,
                    self.bytes_now as f64 + missing * each,
                )
            }
            _ => {
                let prunes = runs + PRUNES_A_DAY * MONTH_DAYS;
                let parts = (each / PART_BYTES).ceil();
                let writes = runs * (parts + DUMP_WRITES) + prunes * PRUNE_LISTS;
                // It reads each manifest.
                (writes, prunes * kept as f64, kept as f64 * each)
            }
        };
        let cost = writes * PRICES.million_writes / 1e6
            + reads * PRICES.million_reads / 1e6
            + steady * PRICES.gigabyte_month / 1e9;
        let cost = (!self.store.starts_with("file://")).then_some(cost);
        Some(Bill {
            target: self.target.to_owned(),
            kind: self.kind,
            store: self.store.to_owned(),
            writes: Some(writes as u64),
            writes_at_most: writes as u64,
            reads: reads as u64,
            bytes_now: self.bytes_now,
            bytes_in_the_long_run: steady as u64,
            full_copies: kept,
            cost,
            cost_at_most: cost,
        })
    }
}

/// Seconds between two runs, on average of a month.
fn period(schedule: &str, zone: &TimeZone, now: Timestamp) -> Option<f64> {
    let schedule = Schedule::parse(schedule, zone).ok()?;
    let end = now.saturating_add(SignedDuration::from_hours(731)).ok()?;
    let first = schedule.next_after(now)?;
    let (mut last, mut runs) = (schedule.next_after(first)?, 1.0);
    while let Some(next) = schedule.next_after(last).filter(|at| *at <= end) {
        (last, runs) = (next, runs + 1.0);
    }
    Some((last.duration_since(first).as_secs_f64() / runs).max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn bill(kind: &'static str, schedule: &str) -> Bill {
        let copies = Copies {
            target: "app",
            store: "s3://b/app",
            kind,
            schedule,
            time_zone: &TimeZone::UTC,
            retention: RetentionConfig {
                hourly: 24,
                daily: 30,
                ..RetentionConfig::plain(Duration::ZERO)
            },
            points: 3,
            bytes_now: 3_000_000_000,
            each: 1_000_000_000,
        };
        copies
            .bill("2026-11-21T12:34:56Z".parse().unwrap())
            .unwrap()
    }

    #[test]
    fn dumps_by_their_schedule_and_tiers() {
        let hourly = bill("postgres", "@hourly");
        // 730.56 runs of 120 parts and four more; three lists after each and every six hours.
        assert_eq!(hourly.writes, Some(93_146));
        // The newest of each of 24 hours and of 30 days; the last day is among them.
        assert_eq!(hourly.full_copies, 53);
        assert_eq!(hourly.bytes_in_the_long_run, 53_000_000_000);
        let cost = hourly.cost.unwrap();
        assert!((1.69..1.72).contains(&cost), "{cost}");
        assert_eq!(hourly.cost_at_most, hourly.cost);
        let words = hourly.words();
        assert!(
            words.contains("about 93,146 writes") && words.ends_with("(dumps: 53); about 1.70"),
            "{words}"
        );
        let daily = bill("redis", "15 3 * * *");
        assert_eq!(daily.full_copies, 30);
        let monthly = bill("postgres", "15 3 1 * *");
        assert!(monthly.writes.unwrap() < 600, "{monthly:?}");
    }

    #[test]
    fn files_grow_by_what_each_snapshot_adds() {
        let daily = bill("files", "@daily");
        assert_eq!(daily.writes, Some(7_579));
        assert_eq!(daily.bytes_in_the_long_run, 30_000_000_000);
        assert!(daily.words().contains("(snapshots: 30)"));
    }
}
