//! Full copies that take the place of older ones, and fail.

use std::time::Duration;

use tokio::time::Instant;

use super::Uploader;

/// After a full copy that failed while an older one is there, the next try waits so long, and twice as long after each further one.
const RENEW_AGAIN_MIN: Duration = Duration::from_secs(10);
/// At the longest: each try may send the whole database.
const RENEW_AGAIN_MAX: Duration = Duration::from_secs(3600);

/// Tries of a full copy that failed.
#[derive(Debug, Default)]
pub struct Renewals {
    // Not before, and how long that was since the last try.
    next: Option<(Instant, Duration)>,
    // A panic in the middle of one is a failure of it, too.
    pub(super) is_under_way: bool,
}

impl Renewals {
    pub(super) fn may_begin(&self, now: Instant) -> bool {
        self.next.is_none_or(|(at, _)| at <= now)
    }

    fn failed(&mut self, now: Instant) {
        let wait = self.next.map_or(RENEW_AGAIN_MIN, |(_, wait)| wait * 2);
        let wait = wait.min(RENEW_AGAIN_MAX);
        self.next = Some((now + wait, wait));
    }
}

impl Uploader {
    /// The older one is there: files go on meanwhile, and hide nothing by it.
    pub(super) fn not_renewed(&mut self, why: &str) {
        self.renewals.failed(Instant::now());
        let now = (self.now)();
        self.facts(|f| {
            let since = f.renewal.as_ref().map_or(now, |(since, _)| *since);
            f.renewal = Some((since, why.to_owned()));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_copy_that_fails_is_not_sent_again_and_again() {
        let (mut renewals, begun) = (Renewals::default(), Instant::now());
        let mut now = begun;
        for tries in 0..20 {
            assert!(renewals.may_begin(now), "{tries}");
            renewals.failed(now);
            assert!(!renewals.may_begin(now + RENEW_AGAIN_MIN / 2));
            while !renewals.may_begin(now) {
                now += Duration::from_secs(5);
            }
        }
        let hours = now.duration_since(begun).as_secs() / 3600;
        assert!((10..=13).contains(&hours), "{hours}");
    }
}
