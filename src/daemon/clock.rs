//! Looks at the clock: see [`crate::observe::clock`].

use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::fleet::system_now;
use crate::observe::facts::Board;

/// Between looks: the verdicts of a moment may be off for so long.
const EVERY: Duration = Duration::from_secs(2);

/// Time since boot, with the time that the host slept.
fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // It never runs backwards, and its parts are not negative.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Runs until it is aborted.
pub(super) async fn run(board: Arc<Board>) {
    loop {
        let now = system_now();
        if let Some(step) = board.clock().look(now, since_boot()) {
            if step.by_ms < 0 {
                board.set_back(now);
            }
            tracing::warn!(
                seconds = step.by_ms as f64 / 1000.0,
                hint = "check the host's time server; nothing is lost by it",
                "the clock was set"
            );
        }
        tokio::time::sleep(EVERY).await;
    }
}
