//! Bringing the captured WAL into the database file: what is possible beside the writers first, then a barrier for the rest.

use std::sync::Weak;
use std::time::Duration;

use super::write::write_changes;
use super::{Capture, CaptureError, Captured, tell};
use crate::replica::spool::Spool;
use crate::sqlite::guard::{Barrier, Look};
use crate::types::Millis;

/// WAL size above which a checkpoint is worth a barrier, in frames: SQLite's own autocheckpoint threshold.
const CHECKPOINT_FRAMES: u32 = 1000;
/// How long a barrier waits for the write lock. Writers of the app queue behind each other, not behind us.
const BARRIER_PATIENCE: Duration = Duration::from_millis(20);
/// Barriers in a row while they come out partial: with every read mark taken our own write lock sits on an old one, which the next try
/// usually does not. Each holds the lock for about a millisecond.
const BARRIER_TRIES: u32 = 6;
/// Frames that a barrier captures while writers wait; with more it lets go, and captures them first. Some 10 ms of work.
const BARRIER_FRAMES: u32 = 1000;
/// Times in a row that it lets go so: an app that writes faster than that would never be sealed.
const BARRIER_LET_GO: u32 = 3;
/// How long a checkpoint beside the app's own may take before the barrier is tried all the same.
const BACKFILL_PATIENCE: Duration = Duration::from_millis(500);
/// WAL size at which a barrier may wait longer, because something always held the lock: ten times the usual.
const URGENT_FRAMES: u32 = 10 * CHECKPOINT_FRAMES;
/// The longer wait.
const URGENT_PATIENCE: Duration = Duration::from_millis(500);

impl Capture {
    /// The WAL grows faster than captures come: a checkpoint must not wait for the next. Whoever of the app's writers meets a large WAL next
    /// pays for its fsync.
    pub fn is_urgent(&self) -> Result<bool, CaptureError> {
        let index = self.guard.observe()?;
        Ok(!self.cursor.sealed && index.max_frame >= URGENT_FRAMES)
    }

    /// Checkpoints if the WAL is large enough for it: the cheap part first, then the barrier for the rest.
    /// Returns what the barrier came to, or `None` if there was no need, and the files that were captured on the way.
    pub fn checkpoint(
        &mut self,
        spool: &Spool,
        now: Millis,
        force: bool,
    ) -> Result<(Option<Barrier>, Vec<Captured>), CaptureError> {
        let frames = self.cursor.position.frame;
        if self.cursor.sealed || (frames < CHECKPOINT_FRAMES && !force) {
            return Ok((None, Vec::new()));
        }
        let begun = std::time::Instant::now();
        let mut captured = Vec::from_iter(self.capture_gapless(spool, now)?);
        let first = begun.elapsed();
        for view in self.views.iter().filter_map(Weak::upgrade) {
            view.unpin();
        }
        let done = self.backfill(spool, now, &mut captured)?;
        tracing::debug!(
            frames,
            now = self.cursor.position.frame,
            first_ms = first.as_millis() as u64,
            backfill_ms = (begun.elapsed() - first).as_millis() as u64,
            done,
            "checkpoint"
        );
        let patience = if frames >= URGENT_FRAMES || force {
            URGENT_PATIENCE
        } else {
            BARRIER_PATIENCE
        };
        let mut outcome = Barrier::Busy;
        for round in 0..BARRIER_TRIES {
            let Self {
                guard,
                table,
                cursor,
                identity,
                last_created,
                views,
            } = self;
            let created = now.not_before(*last_created);
            *last_created = created;
            let mut let_go = false;
            outcome = guard.barrier(cursor, patience, |guard, cursor| {
                if round < BARRIER_LET_GO && guard.waiting(cursor)? > BARRIER_FRAMES {
                    let_go = true;
                    return Ok(false);
                }
                match guard.look(cursor)? {
                    Look::Nothing => Ok(true),
                    Look::Gap(reason) => Err(CaptureError::Gap(reason)),
                    Look::Changes(changes) => {
                        let one = write_changes(
                            guard, table, cursor, *identity, &changes, spool, created,
                        )?;
                        tell(views, &changes);
                        captured.push(one);
                        Ok(true)
                    }
                }
            })?;
            if outcome != Barrier::Partial && !let_go {
                break;
            }
            self.backfill(spool, now, &mut captured)?;
        }
        if outcome == Barrier::Sealed {
            self.remember_seal()?;
        }
        Ok((Some(outcome), captured))
    }

    /// Brings what is captured into the database file while writers go on, as far as that is possible. An app's own checkpoint may be at
    /// it: waiting for it here costs nobody anything, and under the write lock it would stop every writer. `false`: it still is.
    fn backfill(
        &mut self,
        spool: &Spool,
        now: Millis,
        captured: &mut Vec<Captured>,
    ) -> Result<bool, CaptureError> {
        let begun = std::time::Instant::now();
        loop {
            captured.extend(self.renew(spool, now)?);
            captured.extend(self.capture_gapless(spool, now)?);
            let mut done = self.guard.checkpoint_passive()?;
            while !done && begun.elapsed() < BACKFILL_PATIENCE {
                std::thread::sleep(Duration::from_millis(2));
                done = self.guard.checkpoint_passive()?;
            }
            let few = self.guard.waiting(&self.cursor)? <= BARRIER_FRAMES;
            if few || begun.elapsed() >= BACKFILL_PATIENCE {
                return Ok(done);
            }
        }
    }
}
