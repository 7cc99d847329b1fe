//! Signs of life of blocking work on a database, for the watchdog.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds of a clock that never jumps, from 1.
fn monotonic() -> u64 {
    u64::try_from(START.elapsed().as_millis()).map_or(u64::MAX, |ms| ms.saturating_add(1))
}

/// When work that holds a read transaction last got on; nothing if none is at work.
#[derive(Debug, Default)]
pub struct Beat(AtomicU64);

impl Beat {
    /// Work begins, or gets on.
    pub fn touch(&self) {
        self.0.store(monotonic(), Ordering::Relaxed);
    }

    /// Work has ended.
    pub fn rest(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// For how long work has not got on.
    pub fn silent(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            at => Some(Duration::from_millis(monotonic().saturating_sub(at))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_only_while_work_runs() {
        let beat = Beat::default();
        assert_eq!(beat.silent(), None);
        beat.touch();
        std::thread::sleep(Duration::from_millis(5));
        assert!(beat.silent().is_some_and(|s| s >= Duration::from_millis(4)));
        beat.touch();
        let again = beat.silent();
        assert!(again.is_some_and(|s| s < Duration::from_secs(5)));
        beat.rest();
        assert_eq!(beat.silent(), None);
    }
}
