//! The steady loop: wait, capture, checkpoint, roll up, answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::establish::gap_capture;
use super::work::{Due, all_cuts, squeeze, work};
use super::{Command, Ended, Inspect, Session, SyncAsk, Target, blocking};
use crate::daemon::uploader::Ask;
use crate::replica::compact;
use crate::replica::spool::Spool;
use crate::sqlite::capture::Capture;
use crate::sqlite::guard::{Barrier, GapReason};
use crate::types::Txid;

/// Looks after a wake-up that found nothing: the commit's frames come before its entry in the WAL-index, by an fsync at most.
const SETTLE: [Duration; 7] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(8),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(150),
];

/// Poll beside inotify: what is missed is noticed within it.
const POLL: Duration = Duration::from_secs(5);

/// Poll without inotify.
const POLL_ALONE: Duration = Duration::from_millis(200);

/// Between checkpoints under load: each costs the app a barrier of about a millisecond.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(500);
/// The same while the WAL grows faster than that, and looks for it.
const CHECKPOINT_URGENT: Duration = Duration::from_millis(100);

/// Without a commit for so long, what is left in the WAL is checkpointed; and again so long after, if a reader of the app was in the way.
const QUIET_AFTER: Duration = Duration::from_secs(10);

/// While R is on read lock 0 under load, looks at how soon it can leave.
const LOCK_ZERO_POLL: Duration = Duration::from_millis(5);

impl Target {
    /// The steady loop.
    pub(super) async fn follow(
        &mut self,
        session: &mut Session,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<(), Ended> {
        if let Some(ask) = self.deferred.take() {
            self.sync_now(session, ask).await?;
        }
        loop {
            self.step(session, false).await?;
            let sleep = self.sleep_for(session);
            self.arm(session);
            if self.pending(session)? {
                let since = session.last_capture.elapsed();
                if since >= self.options.sync_interval {
                    continue;
                }
            }
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    None | Some(Command::Stop) => {
                        self.step(session, true).await?;
                        return Ok(());
                    }
                    Some(Command::Sync(ask)) => self.sync_now(session, ask).await?,
                    Some(Command::Inspect(ask)) => self.inspect(session, ask).await?,
                    Some(Command::Release(done, until)) => {
                        self.step(session, true).await?;
                        return Err(Ended::Released(done, until));
                    }
                },
                Some(ask) = session.asks.recv() => self.answer(session, ask).await?,
                () = session.wake.notified() => self.settle(session).await?,
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    async fn sync_now(&mut self, session: &mut Session, ask: SyncAsk) -> Result<(), Ended> {
        let result = self.step(session, true).await;
        let txid = *session.captured.borrow();
        let answer = match &result {
            Ok(()) if ask.pin => self.cut(session, txid, None).map(|()| txid),
            Ok(()) => Ok(txid),
            Err(e) => Err(e.to_string()),
        };
        // Whoever asked may be gone.
        let _ = ask.reply.send(answer);
        result
    }

    /// What cannot be read is the asker's to know; only a connection that is not as it was ends the session.
    async fn inspect(&self, session: &mut Session, ask: Inspect) -> Result<(), Ended> {
        self.with_capture(session, move |capture, _| {
            Ok(capture.inspect(ask.budget, ask.read)?)
        })
        .await
    }

    /// Before the next capture: no file will span this point.
    fn cut(&self, session: &Session, txid: Txid, label: Option<String>) -> Result<(), String> {
        self.cuts
            .add(txid, label, &session.spool.entries(), (self.now)())
            .map_err(|e| format!("recording the point in the state directory: {e}"))
    }

    fn sleep_for(&self, session: &Session) -> Duration {
        let Some(capture) = session.capture.as_ref() else {
            return POLL;
        };
        let poll = if self.watcher.is_some() {
            POLL
        } else {
            POLL_ALONE
        };
        let until_capture = self
            .options
            .sync_interval
            .saturating_sub(session.last_capture.elapsed());
        if !capture.pending().unwrap_or(true) {
            return poll;
        }
        if capture.guard().on_lock_zero() {
            until_capture.min(LOCK_ZERO_POLL)
        } else {
            until_capture.min(poll).min(CHECKPOINT_URGENT)
        }
    }

    fn arm(&self, session: &Session) {
        let (Some(watcher), Some(capture)) = (&self.watcher, &session.capture) else {
            return;
        };
        let pending = capture.pending().unwrap_or(true);
        // Under load the next capture is due by the clock: no wake-up for every commit.
        if pending && !capture.guard().on_lock_zero() {
            return;
        }
        let mut wal = self.path.as_os_str().to_owned();
        wal.push("-wal");
        if let Err(error) = watcher.arm(std::path::Path::new(&wal), &session.wake) {
            tracing::debug!(target_name = self.name, %error, "inotify cannot watch the WAL; polling");
        }
    }

    fn pending(&self, session: &Session) -> Result<bool, Ended> {
        match &session.capture {
            Some(capture) => {
                capture.guard().check_files()?;
                Ok(capture.pending()?)
            }
            None => Err(Ended::Lost),
        }
    }

    /// After a wake-up: waits for the commit to reach the WAL-index.
    async fn settle(&self, session: &mut Session) -> Result<(), Ended> {
        for pause in SETTLE {
            if self.pending(session)? {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// Leaves lock 0, captures if it is due (or `now`), checkpoints, rolls up.
    async fn step(&mut self, session: &mut Session, now: bool) -> Result<(), Ended> {
        let urgent = self.urgent(session)?;
        let due = now || urgent || session.last_capture.elapsed() >= self.options.sync_interval;
        let checkpoint = urgent || session.last_checkpoint.elapsed() >= CHECKPOINT_EVERY;
        let roll_up = session.last_roll_up.elapsed() >= Duration::from_secs(1);
        let pending = self.pending(session)?;
        let at = (self.now)();
        self.board.update(|f| {
            f.last_look = Some(at);
            f.uncaptured_since = pending.then(|| f.uncaptured_since.unwrap_or(at));
        });
        let quiet = !pending && self.is_quiet(session);
        if !(pending || quiet || roll_up && self.roll_up_due(session)) {
            return Ok(());
        }
        self.board.update(|f| f.busy_since = Some(at));
        let (table, db_bytes) = (self.state.table(), self.board.update(|f| f.db_bytes));
        let (stores, cuts) = (self.stores.len() as u32, Arc::clone(&self.cuts));
        let done = self
            .with_capture(session, move |capture, spool| {
                work(
                    capture,
                    spool,
                    &table,
                    &cuts,
                    at,
                    Due {
                        capture: due && pending,
                        checkpoint,
                        quiet,
                        roll_up,
                        db_bytes,
                        stores,
                    },
                )
            })
            .await;
        self.board.update(|f| f.busy_since = None);
        let done = done?;
        if done.looked {
            session.last_capture = Instant::now();
            self.board.update(|f| f.uncaptured_since = None);
        }
        if let Some(barrier) = done.barrier {
            session.last_checkpoint = Instant::now();
            session.last_barrier = barrier;
            let word = match barrier {
                Barrier::Sealed => "sealed",
                Barrier::Partial => "partial",
                Barrier::Busy => "busy",
            };
            self.board
                .update(|f| *f.barriers.entry(word).or_default() += 1);
        }
        if roll_up {
            session.last_roll_up = Instant::now();
        }
        for captured in &done.captured {
            self.note(captured);
        }
        if let Some((reason, pages)) = done.gap {
            tracing::info!(
                target_name = self.name,
                reason = reason.word(),
                pages,
                "gap capture"
            );
            self.board
                .update(|f| *f.gaps.entry(reason.word()).or_default() += 1);
        }
        self.keep_floor(session)?;
        self.sizes(session);
        if let Some(capture) = &session.capture {
            session.captured.send_replace(capture.txid());
        }
        Ok(())
    }

    /// Only after a barrier that worked: one that an app's reader holds up costs writers more than a large WAL does.
    fn urgent(&self, session: &Session) -> Result<bool, Ended> {
        match &session.capture {
            Some(capture)
                if session.last_barrier == Barrier::Sealed
                    && session.last_checkpoint.elapsed() >= CHECKPOINT_URGENT =>
            {
                Ok(capture.is_urgent()?)
            }
            _ => Ok(false),
        }
    }

    /// The app has paused, and frames wait in the WAL: they go into the database file once, so that the file alone is the database, as a person
    /// who copies files about expects, and nobody may write it unseen ([`Guard::overwritten`](crate::sqlite::guard::Guard::overwritten)).
    fn is_quiet(&self, session: &Session) -> bool {
        let unsealed = session.capture.as_ref().is_some_and(Capture::is_unsealed);
        unsealed
            && session.last_capture.elapsed() >= QUIET_AFTER
            && session.last_checkpoint.elapsed() >= QUIET_AFTER
    }

    fn roll_up_due(&self, session: &Session) -> bool {
        !compact::due(
            &session.spool.entries(),
            &all_cuts(&session.spool, &self.cuts),
            (self.now)(),
        )
        .is_empty()
    }

    fn sizes(&self, session: &Session) {
        let Some(capture) = &session.capture else {
            return;
        };
        let entries = session.spool.entries();
        self.board.update(|f| {
            f.wal_bytes = capture.guard().wal_bytes();
            f.db_bytes = capture.guard().db_bytes();
            f.spool_bytes = entries.iter().map(|e| e.size).sum();
            f.spool_files = entries.len() as u64;
            for store in &mut f.stores {
                let pending = entries
                    .iter()
                    .filter(|e| store.durable.is_none_or(|d| e.span.max() > d));
                store.pending_bytes = pending.map(|e| e.size).sum();
            }
        });
    }

    pub(super) async fn answer(&self, session: &mut Session, ask: Ask) -> Result<(), Ended> {
        let at = (self.now)();
        match ask {
            Ask::Base(reply) => {
                let result = self
                    .with_capture(session, move |capture, spool| {
                        let (view, captured) = capture.view(spool, at)?;
                        Ok((view, capture.base_header(at), captured))
                    })
                    .await;
                match result {
                    Ok((view, header, captured)) => {
                        if let Some(captured) = captured {
                            self.note(&captured);
                        }
                        let _ = reply.send(Ok((view, header)));
                    }
                    Err(e) => {
                        let _ = reply.send(Err(e.to_string()));
                        return Err(e);
                    }
                }
            }
            Ask::Rebase(epoch, reply) => {
                let first = self.past.rebased.fetch_max(epoch, Ordering::Relaxed) < epoch;
                // The uploader may be gone.
                let _ = reply.send(first);
                if first {
                    // Only the position is given up: the identity says that this is the owner.
                    std::fs::remove_file(self.state.table())?;
                    return Err(Ended::Rebased);
                }
            }
            Ask::Compare => {
                let (table, cuts) = (self.state.table(), Arc::clone(&self.cuts));
                let report = self
                    .with_capture(session, move |capture, spool| {
                        let reason = GapReason::Drifted;
                        gap_capture(capture, reason, &table, spool, &cuts, at).map_err(Ended::from)
                    })
                    .await?;
                self.board
                    .update(|f| *f.gaps.entry(GapReason::Drifted.word()).or_default() += 1);
                if let Some(captured) = report.captured {
                    self.note(&captured);
                }
            }
            Ask::Squeeze(reply) => {
                let cuts = Arc::clone(&self.cuts);
                self.with_capture(session, move |capture, spool| {
                    squeeze(capture, spool, &all_cuts(spool, &cuts)).map_err(Ended::from)
                })
                .await?;
                let _ = reply.send(());
            }
        }
        if let Some(capture) = &session.capture {
            session.captured.send_replace(capture.txid());
        }
        Ok(())
    }

    /// The one door to blocking work on a capture. If it panics, the capture is lost and the session ends.
    async fn with_capture<T: Send + 'static>(
        &self,
        session: &mut Session,
        work: impl FnOnce(&mut Capture, &Spool) -> Result<T, Ended> + Send + 'static,
    ) -> Result<T, Ended> {
        let mut capture = session.capture.take().ok_or(Ended::Lost)?;
        let spool = Arc::clone(&session.spool);
        let (capture, result) = blocking(move || {
            capture.guard().beat().touch();
            let result = work(&mut capture, &spool);
            capture.guard().beat().rest();
            (capture, result)
        })
        .await?;
        session.capture = Some(capture);
        result
    }
}
