//! Waiting for a time of the wall, on hosts that sleep and whose clock is set.
//!
//! A clock that was wrong and is set back by a year would otherwise hold up every schedule for a year: what is due is planned anew then.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Waits are cut into pieces: a suspended host or a clock that was set must not delay a run.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Less is what time servers correct.
const SET_BACK: SignedDuration = SignedDuration::from_secs(10);

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The time has come.
    Due,
    /// The clock was set back: what is due is to be planned anew.
    SetBack,
}

/// Until `due`, or until the clock was set back since `planned`, when that was reckoned.
pub(super) async fn until(planned: Timestamp, due: Timestamp) -> Woken {
    let mut last = planned;
    loop {
        let now = Timestamp::now();
        if let Some(woken) = look(last, now, due) {
            return woken;
        }
        last = now;
        let left = Duration::try_from(due.duration_since(now)).unwrap_or_default();
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

/// One look at the clock; `last` is that before. Pure.
fn look(last: Timestamp, now: Timestamp, due: Timestamp) -> Option<Woken> {
    if last.duration_since(now) >= SET_BACK {
        return Some(Woken::SetBack);
    }
    (due <= now).then_some(Woken::Due)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_ends_a_wait() {
        let at = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        assert_eq!(look(at(0), at(10), at(11)), None);
        assert_eq!(look(at(0), at(11), at(11)), Some(Woken::Due));
        // A host that slept, a clock that was set ahead.
        assert_eq!(look(at(0), at(86_400), at(11)), Some(Woken::Due));
        assert_eq!(look(at(5), at(0), at(11)), None, "a slow correction");
        assert_eq!(look(at(10), at(0), at(11)), Some(Woken::SetBack));
        assert_eq!(look(at(0), at(-90), at(-91)), Some(Woken::SetBack));
    }
}
