//! Panics, caught: of one target's or uploader's session where its errors are dealt with, of what runs beside them ([`again`]) in its task.
//!
//! A session may begin anew after a panic as it does after an error. Unwinding drops what a return drops (connections, locks, requests, uploads
//! in parts), in the same order; a session hands nothing to the next but the state directory and the store, which that reads and proves anew; what is
//! shared in memory (facts, the list of local files, cuts) changes by single steps under locks that no panic makes unusable. Ending the process instead
//! would stop the capture of every other target, too, and again at each start if the panic comes from what one of them holds.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

/// What to do about a panic.
pub(super) const HINT: &str = "a fault of lifeboat itself: report it with the lines of the log before it; nothing that was reported durable is affected";

/// Runs a session; `Err` says how it panicked.
pub(super) async fn caught<T>(session: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(session)
        .catch_unwind()
        .await
        .map_err(|panic| words(&*panic))
}

/// Pause after the first panic of a task in a row, and the longest.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Runs what nobody waits for: notifications, drills, looks at the app. After a panic it begins anew, as the next start of the process would
/// begin it; ended for good, it would be missed by nobody until the day it is needed.
pub(super) async fn again<F: Future<Output = ()>>(what: &'static str, start: impl FnMut() -> F) {
    again_after(what, PAUSE_MIN, start).await;
}

async fn again_after<F: Future<Output = ()>>(
    what: &'static str,
    first_pause: Duration,
    mut start: impl FnMut() -> F,
) {
    let mut pause = first_pause;
    loop {
        let begun = Instant::now();
        let Err(panic) = caught(start()).await else {
            return;
        };
        if begun.elapsed() > PAUSE_MAX {
            pause = first_pause;
        }
        tracing::error!(
            task = what,
            panic,
            seconds = pause.as_secs(),
            hint = HINT,
            "it broke off by a panic, and begins anew after a pause"
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// What a panic says.
pub(super) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without words")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_panics_begins_anew_and_what_ends_does_not() {
        let mut starts = 0;
        again_after("test", Duration::from_millis(1), || {
            starts += 1;
            let count = starts;
            async move { assert!(count > 4, "once more") }
        })
        .await;
        assert_eq!(starts, 5);
    }
}
