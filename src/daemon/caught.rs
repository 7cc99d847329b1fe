//! Panics of one target's or uploader's session, caught where its errors are dealt with.
//!
//! A session may begin anew after a panic as it does after an error. Unwinding drops what a return drops (connections, locks, requests, uploads
//! in parts), in the same order; a session hands nothing to the next but the state directory and the store, which that reads and proves anew; what is
//! shared in memory (facts, the list of local files, cuts) changes by single steps under locks that no panic makes unusable. Ending the process instead
//! would stop the capture of every other target, too, and again at each start if the panic comes from what one of them holds.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;

/// What to do about a panic.
pub(super) const HINT: &str = "a fault of lifeboat itself: report it with the lines of the log before it; nothing that was reported durable is affected";

/// Runs a session; `Err` says how it panicked.
pub(super) async fn caught<T>(session: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(session)
        .catch_unwind()
        .await
        .map_err(|panic| words(&*panic))
}

/// What a panic says.
pub(super) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without words")
        .to_owned()
}
