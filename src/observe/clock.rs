//! Was the clock set? The time of the wall against the time since boot, which nobody can set and which goes on while a host sleeps.
//!
//! A clock that is wrong by minutes makes stores refuse requests and retention refuse to delete; by hours it dates restore points wrongly. Whoever
//! looks for a point of that time must know.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::services::Service;
use crate::types::Millis;

/// Less is what time servers correct. Retention refuses at five minutes, S3 at fifteen.
const STEP_MS: i64 = 10_000;
/// It is worth a warning for so long.
const RECENT_MS: i64 = 3_600_000;

/// The clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When, by the new time.
    pub at: Millis,
    /// The new time less the old one, milliseconds.
    pub by_ms: i64,
    /// Time since boot, which says how long ago that was.
    seen: Duration,
}

/// What was seen of the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockFacts {
    /// How often it was set.
    pub steps: u64,
    /// The last time.
    pub last: Option<Step>,
    /// The time of the wall less the time since boot.
    offset_ms: Option<i64>,
    up: Duration,
}

impl ClockFacts {
    /// One look. Returns a step that was seen now. Pure.
    pub fn look(&mut self, now: Millis, up: Duration) -> Option<Step> {
        let offset = now.0 - i64::try_from(up.as_millis()).unwrap_or(i64::MAX);
        self.up = up;
        let before = self.offset_ms.replace(offset)?;
        let by_ms = offset - before;
        if by_ms.abs() < STEP_MS {
            // Slow corrections add up to no step.
            return None;
        }
        let step = Step {
            at: now,
            by_ms,
            seen: up,
        };
        self.steps += 1;
        self.last = Some(step);
        Some(step)
    }

    /// The service to show: none unless the clock was set lately.
    pub fn verdict(&self) -> Option<Service> {
        let step = self.last?;
        let ago = self.up.saturating_sub(step.seen);
        let recent = i64::try_from(ago.as_millis()).is_ok_and(|ago| ago < RECENT_MS);
        recent.then(|| Service {
            kind: "clock",
            name: "clock".into(),
            address: "the clock of this host".into(),
            state: "up",
            since: Some(step.at.to_string()),
            reasons: Vec::new(),
            warnings: vec![step.words()],
            hints: vec![
                "nothing is lost by it; points of the time before may be dated wrongly, and retention deletes nothing while the store's clock disagrees: check the host's time server".into(),
            ],
        })
    }
}

impl Step {
    /// What happened.
    pub fn words(&self) -> String {
        let seconds = self.by_ms.unsigned_abs().div_ceil(1000);
        let way = if self.by_ms > 0 { "ahead" } else { "back" };
        format!("it was set {way} by {seconds} s at {}", self.at)
    }
}

/// Facts that one task writes.
#[derive(Debug, Default)]
pub struct ClockBoard(Mutex<ClockFacts>);

impl ClockBoard {
    /// One look.
    pub fn look(&self, now: Millis, up: Duration) -> Option<Step> {
        let mut facts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        facts.look(now, up)
    }

    /// What was seen.
    pub fn get(&self) -> ClockFacts {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_step_is_told_for_an_hour() {
        let mut clock = ClockFacts::default();
        let start = 1_700_000_000_000;
        assert_eq!(clock.look(Millis(start), seconds(50)), None);
        assert_eq!(clock.look(Millis(start + 5_000), seconds(55)), None);
        assert_eq!(clock.verdict(), None);
        let step = clock.look(Millis(start - 590_000), seconds(60)).unwrap();
        assert_eq!(step.by_ms, -600_000);
        let told = clock.verdict().unwrap();
        assert!(told.warnings[0].starts_with("it was set back by 600 s at 2023-11-14T22:0"));
        assert!(told.is_up() && !told.is_bad());
        // An hour by the time that nobody sets.
        let later = |s: u64| Millis(start - 590_000 + i64::try_from(s).unwrap() * 1000);
        clock.look(later(3_599), seconds(60 + 3_599));
        assert!(clock.verdict().is_some());
        clock.look(later(3_600), seconds(60 + 3_600));
        assert_eq!(clock.verdict(), None);
        assert_eq!(clock.steps, 1);
    }

    proptest! {
        /// Whatever a time server corrects slowly, and however long a host sleeps, is no step; every step is one, and exactly so large.
        #[test]
        fn steps_and_only_steps_count(moves in prop::collection::vec((0_u64..1_000_000, -9_000_i64..9_000, prop::option::weighted(0.2, 20_000_i64..100_000_000)), 1..50)) {
            let (mut wall, mut up) = (1_700_000_000_000_i64, 0_u64);
            let mut clock = ClockFacts::default();
            clock.look(Millis(wall), Duration::from_millis(up));
            let mut steps = 0;
            for (passed, slew, step) in moves {
                up += passed;
                wall += i64::try_from(passed).unwrap() + step.unwrap_or(slew);
                let seen = clock.look(Millis(wall), Duration::from_millis(up));
                prop_assert_eq!(seen.map(|s| s.by_ms), step);
                steps += u64::from(step.is_some());
                prop_assert_eq!(clock.steps, steps);
            }
        }
    }
}
