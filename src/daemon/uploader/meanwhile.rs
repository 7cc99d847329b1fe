//! What goes on while a full copy is on its way that takes the place of an older one: over a slow link it takes hours, and the recovery point
//! must not wait for it.
//!
//! Invariants
//! - A file goes up beside a base only if the replica has a base already, and everything up to the TXID of the new one is durable.
//! - Nothing is deleted: retention waits until the base has ended, and so does whatever else plans from a new listing.
//! - A request that has begun is waited for, also when the base has ended: nothing is sent twice without need.
//! - A file that fails ends no base, which may have taken hours: it is told at once, and tried again after a growing pause. What still fails
//!   when the base has ended fails the session by its next try. A refusal ends the base, too.

use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::time::Instant;

use super::{PAUSE_MAX, PAUSE_MIN, Uploader};
use crate::replica::upload::{Next, Replica, UploadError};
use crate::retention;
use crate::types::Txid;

/// When a session looked whether what it uploaded is still there.
pub(super) struct Audits {
    last: Instant,
    round: usize,
}

impl Audits {
    pub(super) fn new() -> Self {
        Self {
            last: Instant::now(),
            round: 0,
        }
    }

    pub(super) fn due_in(&self, every: Duration) -> Duration {
        every.saturating_sub(self.last.elapsed())
    }

    /// The number of the round that is due now.
    pub(super) fn take(&mut self, every: Duration) -> Option<usize> {
        if self.last.elapsed() < every {
            return None;
        }
        self.last = Instant::now();
        self.round += 1;
        Some(self.round - 1)
    }
}

impl Uploader {
    /// Waits for a part of a base, and does meanwhile what the session would do. `base`: the TXID of the base, once that is known.
    ///
    /// # Errors
    /// A refusal; what `work` comes to is given back as it is.
    pub(super) async fn beside<T>(
        &mut self,
        replica: &mut Replica,
        audits: &mut Audits,
        base: Option<Txid>,
        work: impl Future<Output = T>,
    ) -> Result<T, UploadError> {
        let mut work = pin!(work);
        if replica.base().is_none() {
            return Ok(work.await);
        }
        let (mut pause, mut target_is_there) = (PAUSE_MIN, true);
        loop {
            let mut done = None;
            let step = self.step_beside(replica, audits, base);
            let step = both(work.as_mut(), &mut done, step).await;
            let wait = match step {
                Ok(true) => {
                    pause = PAUSE_MIN;
                    Some(Duration::ZERO)
                }
                Ok(false) => None,
                Err(refused @ UploadError::Refused(_)) => return Err(refused),
                Err(error) => {
                    self.failed(&error);
                    let wait = pause;
                    pause = (pause * 2).min(PAUSE_MAX);
                    Some(wait)
                }
            };
            if let Some(done) = done {
                return Ok(done);
            }
            let idle = audits.due_in(self.check_every).min(retention::EVERY);
            tokio::select! {
                done = &mut work => return Ok(done),
                // After a failure the clock alone says when to go on.
                changed = self.captured.changed(), if wait.is_none() && target_is_there => {
                    target_is_there = changed.is_ok();
                }
                () = tokio::time::sleep(wait.unwrap_or(idle)) => {}
            }
        }
    }

    /// One step of the session, without bases and retention. `true`: there may be more to do.
    async fn step_beside(
        &mut self,
        replica: &mut Replica,
        audits: &mut Audits,
        base: Option<Txid>,
    ) -> Result<bool, UploadError> {
        self.audit_if_due(replica, audits).await?;
        let captured = *self.captured.borrow_and_update();
        if replica.durable() < base {
            return Ok(false);
        }
        match replica.next(&self.spool, captured)? {
            Next::File(span) => {
                self.send(replica, span).await?;
                Ok(true)
            }
            // This one or the next.
            Next::Base => Ok(false),
            Next::Nothing => {
                self.write_labels(replica).await?;
                self.works();
                Ok(false)
            }
        }
    }
}

/// Goes on with both until `step` has ended; what `work` came to meanwhile is in `done`.
async fn both<T, U>(
    mut work: Pin<&mut impl Future<Output = T>>,
    done: &mut Option<T>,
    step: impl Future<Output = U>,
) -> U {
    let mut step = pin!(step);
    loop {
        tokio::select! {
            ended = &mut step => return ended,
            ended = &mut work, if done.is_none() => *done = Some(ended),
        }
    }
}
