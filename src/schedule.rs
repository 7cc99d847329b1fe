//! When scheduled work is due. Pure: time comes in as an argument.
//!
//! The expression is cron's (five fields, or `@hourly`, `@daily` and so on), read by a library; the words are of a wall clock in a zone. When
//! that clock jumps forward, a fixed time inside the jump runs right behind it; when it goes back, a fixed time runs once, while one with a
//! wildcard hour runs in both hours.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use thiserror::Error;

/// Years that a search without result covers: 29 February on one weekday comes every 28 years, every 40 around a missing leap year.
const HORIZON_YEARS: i16 = 41;

/// Why an expression is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScheduleError {
    /// Not cron's syntax.
    #[error("\"{expression}\" is no schedule: {why}")]
    Syntax {
        /// What was given.
        expression: String,
        /// What is wrong with it.
        why: String,
    },
    /// Right, but no such day exists, as 30 February.
    #[error("\"{0}\" never comes: no such day exists")]
    Never(String),
}

impl ScheduleError {
    /// The next step for a person.
    pub fn hint(&self) -> &'static str {
        "five fields: minute hour day month weekday, as \"15 3 * * *\" for 03:15 each day; or @hourly, @daily, @weekly, @monthly"
    }
}

/// A cron expression on the clock of one zone.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

impl Schedule {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`ScheduleError::Syntax`]; [`ScheduleError::Never`] for one that would not run within a lifetime.
    pub fn parse(expr: &str, zone: &TimeZone) -> Result<Self, ScheduleError> {
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser
            .parse(expr.trim())
            .map_err(|e| ScheduleError::Syntax {
                expression: expr.to_owned(),
                why: e.to_string(),
            })?;
        let schedule = Self {
            cron,
            zone: zone.clone(),
        };
        // Any moment does: a calendar repeats itself within the horizon.
        match schedule.next_after(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleError::Never(expr.to_owned())),
        }
    }

    /// The first moment later than `after`; `None` if there is none within 41 years.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let start = after.to_zoned(self.zone.clone());
        let found = self.cron.find_next_occurrence(&start, false).ok()?;
        let near = found.year() - start.year() <= HORIZON_YEARS;
        (near && found.timestamp() > after).then(|| found.timestamp())
    }

    /// How old what began at `at` may become before somebody must know: until the second run after it has passed, too. Nights, weekends and
    /// whatever else a schedule leaves out are no delay. What began between two runs has twice the shorter of the times between the next.
    pub fn allowed_age(&self, at: Timestamp) -> Duration {
        let mut next = Some(at);
        let mut runs = std::iter::from_fn(|| {
            next = self.next_after(next?);
            next
        });
        let (first, second, third) = (runs.next(), runs.next(), runs.next());
        let between = |a: Option<Timestamp>, b: Option<Timestamp>| {
            Duration::try_from(b?.duration_since(a?)).ok()
        };
        let gaps = [between(first, second), between(second, third)];
        let shortest = gaps.into_iter().flatten().min().unwrap_or_default();
        let until = between(Some(at), second).unwrap_or_default();
        until.max(shortest * 2)
    }

    /// When to run next, given when the last run began: `now` if at least one run was missed since (one run makes up for all of them),
    /// otherwise the next moment. Without a last run nothing was missed. A last run in the future (a clock was wrong once) counts as now.
    pub fn next_run(&self, last: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        let missed = last
            .and_then(|last| self.next_after(last.min(now)))
            .is_some_and(|due| due <= now);
        if missed {
            Some(now)
        } else {
            self.next_after(now)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn schedule(expr: &str, zone: &str) -> Schedule {
        Schedule::parse(expr, &TimeZone::get(zone).unwrap()).unwrap()
    }

    /// Moments after `start`, each as UTC.
    #[track_caller]
    fn assert_runs(expr: &str, zone: &str, start: &str, expected: &[&str]) {
        let schedule = schedule(expr, zone);
        let mut time = at(start);
        for want in expected {
            time = schedule.next_after(time).unwrap();
            assert_eq!(time, at(want), "{expr} in {zone}");
        }
    }

    #[test]
    fn plain_times() {
        let cases: [(&str, &str, &[&str]); 6] = [
            (
                "15 * * * *",
                "2026-11-20T10:15:00Z",
                &["2026-11-20T11:15:00Z", "2026-11-20T12:15:00Z"],
            ),
            ("@hourly", "2026-11-20T10:15:01Z", &["2026-11-20T11:00:00Z"]),
            ("@daily", "2026-11-20T00:00:00Z", &["2026-11-21T00:00:00Z"]),
            (
                "@monthly",
                "2026-12-20T00:00:00Z",
                &["2027-01-01T00:00:00Z"],
            ),
            (
                "*/20 4 * * mon-fri",
                "2026-11-20T04:20:00Z",
                &["2026-11-20T04:40:00Z", "2026-11-23T04:00:00Z"],
            ),
            (
                "0 0 29 2 *",
                "2026-01-01T00:00:00Z",
                &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"],
            ),
        ];
        for (expr, start, expected) in cases {
            assert_runs(expr, "UTC", start, expected);
        }
    }

    #[test]
    fn what_a_schedule_leaves_out_is_no_delay() {
        let hours = |expr: &str, began: &str| {
            let allowed = schedule(expr, "UTC").allowed_age(at(began));
            allowed.as_secs_f64() / 3600.0
        };
        // Two periods, whenever in them it began.
        assert_eq!(hours("0 * * * *", "2026-11-20T10:00:00Z"), 2.0);
        assert_eq!(hours("0 * * * *", "2026-11-20T10:00:07Z"), 2.0);
        assert_eq!(hours("0 * * * *", "2026-11-20T10:55:00Z"), 2.0);
        assert_eq!(hours("0 4 * * *", "2026-11-20T04:00:00Z"), 48.0);
        // A Friday: the next run is on Monday, and Tuesday's is the second.
        assert_eq!(hours("0 9 * * mon-fri", "2026-11-20T09:00:00Z"), 96.0);
        assert_eq!(hours("0 9 * * mon-fri", "2026-11-19T09:00:00Z"), 96.0);
        assert_eq!(hours("0 9 * * mon-fri", "2026-11-17T09:00:00Z"), 48.0);
        // By day only.
        assert_eq!(hours("0 8-20 * * *", "2026-11-20T20:00:00Z"), 13.0);
        assert_eq!(hours("0 8-20 * * *", "2026-11-20T12:00:00Z"), 2.0);
    }

    #[test]
    fn a_clock_that_jumps_forward_runs_a_fixed_time_once() {
        // Berlin, 29 March 2026: 02:00 becomes 03:00 at 01:00 UTC.
        assert_runs(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00:00Z",
            &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        );
        assert_runs(
            "15 * * * *",
            "Europe/Berlin",
            "2026-03-29T00:00:00Z",
            &["2026-03-29T00:15:00Z", "2026-03-29T01:15:00Z"],
        );
    }

    #[test]
    fn a_clock_that_goes_back_runs_a_fixed_time_once_and_each_hour_hourly() {
        // Berlin, 25 October 2026: 03:00 becomes 02:00 at 01:00 UTC.
        assert_runs(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        );
        assert_runs(
            "15 * * * *",
            "Europe/Berlin",
            "2026-10-25T00:00:00Z",
            &[
                "2026-10-25T00:15:00Z",
                "2026-10-25T01:15:00Z",
                "2026-10-25T02:15:00Z",
            ],
        );
    }

    #[test]
    fn a_zone_without_a_midnight_still_runs_daily() {
        // Beirut, 29 March 2026: midnight does not exist, the day begins at 01:00 (22:00 UTC the day before).
        assert_runs(
            "@daily",
            "Asia/Beirut",
            "2026-03-28T00:00:00Z",
            &["2026-03-28T22:00:00Z", "2026-03-29T21:00:00Z"],
        );
    }

    #[test]
    fn what_is_no_schedule() {
        let utc = TimeZone::UTC;
        for bad in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "0 24 * * *",
            "@sometimes",
            "daily",
            "* * 0 * *",
        ] {
            let error = Schedule::parse(bad, &utc).unwrap_err();
            assert!(
                matches!(error, ScheduleError::Syntax { .. }),
                "{bad}: {error}"
            );
        }
        for never in ["0 0 30 2 *", "0 0 31 4,6,9,11 *"] {
            assert_eq!(
                Schedule::parse(never, &utc).unwrap_err(),
                ScheduleError::Never(never.into())
            );
        }
    }

    #[test]
    fn missed_runs_are_caught_up_once() {
        let hourly = schedule("15 * * * *", "UTC");
        let now = at("2026-11-20T10:20:00Z");
        let next = at("2026-11-20T11:15:00Z");
        for (last, expected) in [
            (None, next),
            (Some("2026-11-20T10:15:00Z"), next),
            (Some("2026-11-20T10:14:59Z"), now),
            (Some("2026-11-18T00:00:00Z"), now),
            (Some("2030-01-01T00:00:00Z"), next),
        ] {
            assert_eq!(
                hourly.next_run(last.map(at), now),
                Some(expected),
                "{last:?}"
            );
        }
        assert_eq!(
            hourly.next_run(Some(now), now),
            Some(next),
            "the catch-up itself is the last run then"
        );
    }

    proptest::proptest! {
        #[test]
        fn next_is_later_and_nothing_lies_between(minute in 0_u32..60, hour in 0_u32..24, start in 1_700_000_000_i64..1_900_000_000) {
            for zone in ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"] {
                let schedule = schedule(&format!("{minute} {hour} * * *"), zone);
                let start = Timestamp::from_second(start).unwrap();
                let next = schedule.next_after(start).unwrap();
                proptest::prop_assert!(next > start);
                // At most one day, one hour of clock change and the rest of a jump.
                proptest::prop_assert!(next.as_second() - start.as_second() <= 26 * 3600);
                let before = Timestamp::from_second(next.as_second() - 1).unwrap();
                proptest::prop_assert_eq!(schedule.next_after(before), Some(next));
            }
        }
    }
}
