//! Moving the read transaction on, and sealing: the steps after which the WAL may restart. The invariants and the proof for read lock 0 stand in
//! the module above.

use std::time::{Duration, Instant};

use super::connect::{begin_read, end};
use super::error::is_busy;
use super::{Barrier, Cursor, Guard, GuardError, Index};

/// How long a barrier may hold the write lock for another's checkpoint to end: the app's writers wait meanwhile.
const BARRIER_BUDGET: Duration = Duration::from_millis(10);

impl Guard {
    /// Begins a fresh read transaction beside R; [`Guard::finish_renewal`] makes it the new R. Until then both hold the WAL.
    pub fn begin_renewal(&self) -> Result<(), GuardError> {
        begin_read(&self.spare).map_err(|e| self.sqlite(e))
    }

    /// Back to the old R.
    pub fn cancel_renewal(&self) -> Result<(), GuardError> {
        end(&self.spare).map_err(|e| self.sqlite(e))
    }

    /// Makes the fresh read transaction the new R, so that checkpoints may copy everything up to its mark, and seals `cursor`. The caller must
    /// have captured since the old R began, so that everything up to its mark is captured.
    ///
    /// Proof of the seal: the old R ends only after the new one began, so until then no more than its mark was backfilled, and all of that
    /// is captured. If the new R is on a mark, the WAL cannot restart at all. If it is on lock 0, everything was backfilled when it began,
    /// hence captured, and nothing is backfilled from then on: the WAL can restart only at the captured state. That more was captured since
    /// changes nothing: in the first case there is no restart, in the second those frames are not backfilled.
    pub fn finish_renewal(&mut self, cursor: &mut Cursor) -> Result<(), GuardError> {
        self.swap_reader()?;
        cursor.sealed = true;
        Ok(())
    }

    fn swap_reader(&mut self) -> Result<(), GuardError> {
        std::mem::swap(&mut self.read, &mut self.spare);
        self.on_lock_zero = true;
        self.marked = None;
        self.frozen = None;
        end(&self.spare).map_err(|e| self.sqlite(e))
    }

    /// Seals without the write lock if everything is captured and backfilled, and R has been open since before this look.
    ///
    /// On lock 0 nothing can have been backfilled since R began, so equal counts mean that nothing was committed since; on a mark
    /// the WAL cannot restart at all. Either way it can restart only at the captured state.
    pub fn reseal(&mut self, cursor: &mut Cursor) -> Result<(), GuardError> {
        let stamp = self.stamp()?;
        let index = self.observe()?;
        let at = match index.header {
            None => cursor.sealed,
            Some(header) => {
                header.salt == cursor.position.salt
                    && index.max_frame == cursor.position.frame
                    && index.max_frame == index.backfilled
                    && self.is_at(&header, &cursor.position)?
            }
        };
        cursor.sealed |= at;
        if at {
            self.freeze(stamp);
        }
        Ok(())
    }

    /// R is on lock 0, and frames exist that make a mark possible for the next one.
    ///
    /// While R is on lock 0 nothing can be backfilled, so with `mxFrame > nBackfill` a new read transaction gets a mark.
    pub fn can_leave_lock_zero(&self) -> Result<bool, GuardError> {
        if !self.on_lock_zero {
            return Ok(false);
        }
        // Twice: the two numbers of one look may lie on both sides of a restart of the WAL. Then the second look shows another life, or none.
        let (first, second) = (self.observe()?, self.observe()?);
        let leaves = |i: &Index| i.max_frame > i.backfilled;
        Ok(first.header == second.header && leaves(&first) && leaves(&second))
    }

    /// After [`Guard::begin_renewal`]: the new R is on a mark.
    pub fn finish_leaving(&mut self) -> Result<(), GuardError> {
        // Both readers are open: no life ends here.
        let life = self.observe()?.header.map(|h| h.salt);
        self.swap_reader()?;
        self.on_lock_zero = false;
        self.marked = life;
        Ok(())
    }

    /// Copies what may be copied into the database file without blocking anyone. `false`: another connection is checkpointing now.
    pub fn checkpoint_passive(&self) -> Result<bool, GuardError> {
        match self
            .check
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |r| r.get::<_, i64>(0))
        {
            Ok(busy) => Ok(busy == 0),
            Err(e) if is_busy(&e) => Ok(false),
            Err(e) => Err(self.sqlite(e)),
        }
    }

    /// The barrier: takes the write lock (waiting at most `patience`), captures the rest through `capture`, checkpoints, renews R
    /// and lets go. `capture` must make durable locally what it captures and bring `cursor` to its end; what it returns as an
    /// error ends the barrier without sealing, and so does `false`: there was too much to do while writers wait.
    pub fn barrier<E: From<GuardError>>(
        &mut self,
        cursor: &mut Cursor,
        patience: Duration,
        capture: impl FnOnce(&Guard, &mut Cursor) -> Result<bool, E>,
    ) -> Result<Barrier, E> {
        self.write
            .busy_timeout(patience)
            .map_err(|e| self.sqlite(e))?;
        match self.write.execute_batch("BEGIN IMMEDIATE") {
            Ok(()) => {}
            Err(e) if is_busy(&e) => return Ok(Barrier::Busy),
            Err(e) => return Err(self.sqlite(e).into()),
        }
        let begun = Instant::now();
        let from = cursor.position.frame;
        let captured = capture(self, cursor);
        let capturing = begun.elapsed();
        let result = match captured {
            Ok(true) => self.seal(cursor).map_err(E::from),
            Ok(false) => Ok(Barrier::Busy),
            Err(e) => Err(e),
        };
        let ended = end(&self.write).map_err(|e| self.sqlite(e));
        self.held = begun.elapsed();
        tracing::debug!(
            path = %self.path.display(),
            held_us = self.held.as_micros() as u64,
            capturing_us = capturing.as_micros() as u64,
            frames = cursor.position.frame.saturating_sub(from),
            sealed = cursor.sealed,
            "barrier"
        );
        let outcome = result?;
        ended?;
        Ok(outcome)
    }

    /// Frames of this life of the WAL that are committed and not captured. Under the write lock the number stays.
    pub fn waiting(&self, cursor: &Cursor) -> Result<u32, GuardError> {
        let index = self.observe()?;
        let same = index.header.is_some_and(|h| h.salt == cursor.position.salt);
        let from = if same { cursor.position.frame } else { 0 };
        Ok(index.max_frame.saturating_sub(from))
    }

    /// Under the write lock, everything captured.
    fn seal(&mut self, cursor: &mut Cursor) -> Result<Barrier, GuardError> {
        cursor.sealed = false;
        self.frozen = None;
        self.marked = None;
        end(&self.read).map_err(|e| self.sqlite(e))?;
        // An app's own autocheckpoint may be at work: it ends by itself, and soon, since the cheap part was done before.
        let begun = Instant::now();
        let mut checkpoint = self.checkpoint_passive();
        while matches!(checkpoint, Ok(false)) && begun.elapsed() < BARRIER_BUDGET {
            std::thread::sleep(Duration::from_millis(1));
            checkpoint = self.checkpoint_passive();
        }
        begin_read(&self.read).map_err(|e| self.sqlite(e))?;
        self.on_lock_zero = true;
        checkpoint?;
        let index = self.observe()?;
        let captured_all = match index.header {
            None => true,
            Some(header) => {
                index.max_frame == 0
                    || (header.salt == cursor.position.salt
                        && index.max_frame == cursor.position.frame)
            }
        };
        let backfilled = index.max_frame == index.backfilled || index.max_frame == 0;
        self.on_lock_zero = backfilled;
        self.marked = index.header.map(|h| h.salt).filter(|_| !backfilled);
        if !(captured_all && backfilled) {
            return Ok(Barrier::Partial);
        }
        cursor.sealed = true;
        // R is on lock 0, and the write lock is still held.
        let stamp = self.stamp()?;
        self.freeze(stamp);
        Ok(Barrier::Sealed)
    }
}
