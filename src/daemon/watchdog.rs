//! Ends the process when capture hangs while it holds a read transaction: the app's WAL would grow without a bound, and nothing else
//! would free it. What supervises the process starts it again; what was reported durable is not affected.
//!
//! A thread of its own, so that a runtime that hangs does not stop it.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::sqlite::beat::Beat;

/// Longer than any single step between two signs of life takes: one read or write of a file, one lock wait.
const LIMIT: Duration = Duration::from_secs(300);
/// Between looks.
const EVERY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub struct Watchdog {
    beats: Mutex<Vec<(String, Weak<Beat>)>>,
}

impl Watchdog {
    /// Starts the thread; it ends with the last other holder.
    pub fn start() -> Arc<Self> {
        let watchdog = Arc::new(Self::default());
        let weak = Arc::downgrade(&watchdog);
        let watch = move || {
            while let Some(watchdog) = weak.upgrade() {
                if let Some((target, silent)) = watchdog.hung(LIMIT) {
                    tracing::error!(
                        target_name = target,
                        silent_s = silent.as_secs(),
                        hint = "check the volume: a read or write of the database does not return; what was reported durable is not affected",
                        "capture hangs while it holds the WAL; ending the process so that the app is freed"
                    );
                    std::process::exit(1);
                }
                drop(watchdog);
                std::thread::sleep(EVERY);
            }
        };
        if let Err(error) = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(watch)
        {
            tracing::warn!(%error, "no watchdog: a capture that hangs would go unnoticed");
        }
        watchdog
    }

    /// Watches the work on one attached database, until its beat is dropped.
    pub fn watch(&self, target: &str, beat: &Arc<Beat>) {
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.retain(|(_, b)| b.strong_count() > 0);
        beats.push((target.to_owned(), Arc::downgrade(beat)));
    }

    /// A target whose work has not got on for `limit`.
    fn hung(&self, limit: Duration) -> Option<(String, Duration)> {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.iter().find_map(|(target, beat)| {
            let silent = beat.upgrade()?.silent()?;
            (silent >= limit).then(|| (target.clone(), silent))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silent_work_hangs() {
        let (dog, idle, stuck) = (Watchdog::default(), Arc::default(), Arc::default());
        dog.watch("idle", &idle);
        dog.watch("stuck", &stuck);
        assert_eq!(dog.hung(Duration::ZERO), None, "nothing is at work");
        stuck.touch();
        assert_eq!(
            dog.hung(Duration::from_secs(3600)),
            None,
            "it has just begun"
        );
        assert_eq!(
            dog.hung(Duration::ZERO).map(|h| h.0).as_deref(),
            Some("stuck")
        );
        drop(stuck);
        assert_eq!(dog.hung(Duration::ZERO), None, "let go");
    }
}
