//! One database: attach, capture, checkpoint, roll up, hand over to its uploaders. One task for each, one operation in flight.
//!
//! States of a session: attach → establish (who owns the replica, what is already there) → loop { capture, leave lock 0, checkpoint, roll up,
//! sleep }. Any failure ends the session: every connection closes, and a new one begins after a pause with what the state directory
//! proves.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::state::StateDir;
use super::uploader::{Ask, Uploader};
use crate::config::{MinFree, SqliteOptions};
use crate::observe::facts::{State, StoreFacts, TargetBoard};
use crate::replica::compact;
use crate::replica::owner::{self, Local, Owner, Refusal, Verdict};
use crate::replica::spool::Spool;
use crate::replica::upload::Replica;
use crate::restore::plan::{Catalog, Goal};
use crate::restore::{self, apply};
use crate::retention::Policy;
use crate::sqlite::capture::{Capture, CaptureError, Captured, Identity, Outcome, open_table};
use crate::sqlite::guard::{Barrier, GapReason, Guard, GuardError};
use crate::sqlite::pages::{Described, PageTable};
use crate::sqlite::watch::Watcher;
use crate::store::{PutMode, Store, StoreError};
use crate::types::{Level, Lineage, Millis, Txid};

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
/// While R is on read lock 0 under load, looks at how soon it can leave.
const LOCK_ZERO_POLL: Duration = Duration::from_millis(5);
/// First pause after a failed session.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The spool of a small database may grow to this before it is squeezed.
const SPOOL_MIN_BYTES: u64 = 64 << 20;

/// Captures that no store has yet are dropped for disk space only above this: less would not help the app.
const SPOOL_DROP_BYTES: u64 = 16 << 20;
/// Pause while another instance owns the replica: each look costs a few requests.
const PAUSE_REFUSED: Duration = Duration::from_secs(30);
/// Pause after a comparison that failed: each reads the whole replica.
const PAUSE_DIFFERENT: Duration = Duration::from_secs(10 * 60);

/// What a target is asked.
pub enum Command {
    /// Capture everything committed so far; answers with its TXID.
    Sync(oneshot::Sender<Result<Txid, String>>),
    /// Let go of the database, until the sender of the second channel is dropped.
    Release(oneshot::Sender<()>, oneshot::Receiver<()>),
    /// Stop after a last capture.
    Stop,
}

/// What a target needs.
pub struct Target {
    /// Unique name.
    pub name: String,
    /// The database.
    pub path: PathBuf,
    /// How it is kept.
    pub options: SqliteOptions,
    /// Roots of its replicas.
    pub stores: Vec<Store>,
    /// Local state.
    pub state: StateDir,
    /// Facts.
    pub board: Arc<TargetBoard>,
    /// In `owner.json`.
    pub instance: String,
    /// inotify, if it works here.
    pub watcher: Option<Arc<Watcher>>,
    /// Free space that is left to the app.
    pub min_free: MinFree,
    /// Idle stores are checked this often.
    pub store_check: Duration,
    /// Durable positions, one for each store.
    pub durable: Vec<watch::Sender<Option<Txid>>>,
    /// The clock.
    pub now: fn() -> Millis,
    /// A sync that came during a pause: answered by the next session.
    pub deferred: Option<oneshot::Sender<Result<Txid, String>>>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("rebuilding local state from the store: {0}")]
    Rebuild(String),
    #[error("local state: {0}")]
    Local(#[from] std::io::Error),
    #[error("a capture step was lost")]
    Lost,
    #[error("let go on request")]
    Released(oneshot::Sender<()>, oneshot::Receiver<()>),
}

impl From<GuardError> for Ended {
    fn from(error: GuardError) -> Self {
        Self::Capture(error.into())
    }
}

/// An attached, established database.
struct Session {
    capture: Option<Capture>,
    spool: Arc<Spool>,
    captured: watch::Sender<Txid>,
    asks: mpsc::Receiver<Ask>,
    wake: Arc<Notify>,
    last_capture: Instant,
    last_checkpoint: Instant,
    last_roll_up: Instant,
    views: Arc<()>,
}

impl Target {
    /// Runs until [`Command::Stop`] or until the sender of commands is gone.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut pause = PAUSE_MIN;
        loop {
            let begun = Instant::now();
            let ended = match self.session(&mut commands).await {
                Ok(()) => return,
                Err(ended) => ended,
            };
            if begun.elapsed() > PAUSE_MAX {
                pause = PAUSE_MIN;
            }
            if let Ended::Released(done, until) = ended {
                self.set(State::Released, Some("let go on request".into()), None);
                // Whoever asked is gone already: go on at once.
                let _ = done.send(());
                let _ = until.await;
                continue;
            }
            self.report(&ended, pause);
            if let Some(reply) = self.deferred.take() {
                // Whoever asked may be gone.
                let _ = reply.send(Err(ended.to_string()));
            }
            let pause_now = match &ended {
                Ended::Refused(Refusal::TooDifferent { .. }) => PAUSE_DIFFERENT,
                Ended::Refused(_) => PAUSE_REFUSED,
                _ => pause,
            };
            tokio::select! {
                () = tokio::time::sleep(pause_now) => {}
                command = commands.recv() => match command {
                    None | Some(Command::Stop) => return,
                    // Worth a try at once: someone may have mended what was wrong.
                    Some(Command::Sync(reply)) => self.deferred = Some(reply),
                    Some(Command::Release(done, until)) => {
                        let _ = done.send(());
                        let _ = until.await;
                    }
                },
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn set(&self, state: State, detail: Option<String>, hint: Option<String>) {
        self.board.update(|f| {
            f.state = state;
            f.detail = detail;
            f.hint = hint;
        });
    }

    fn report(&self, ended: &Ended, pause: Duration) {
        let (state, hint) = match ended {
            Ended::Capture(CaptureError::Guard(GuardError::Missing(_) | GuardError::Empty(_))) => {
                let was_there = self.board.update(|f| f.captured.is_some());
                (
                    if was_there {
                        State::Vanished
                    } else {
                        State::Waiting
                    },
                    None,
                )
            }
            Ended::Capture(CaptureError::Guard(GuardError::Replaced(_)) | CaptureError::Gap(_)) => {
                (State::Gap, None)
            }
            Ended::Capture(e) => (State::Failed, e.hint()),
            Ended::Store(e) => (State::Stalled, e.hint()),
            Ended::Refused(e) => (State::NotOwner, Some(e.hint())),
            Ended::Rebuild(_) | Ended::Local(_) | Ended::Lost | Ended::Released(..) => {
                (State::Failed, None)
            }
        };
        // The first of a row of equal reports is news.
        let news = self
            .board
            .update(|f| f.detail.as_deref() != Some(&ended.to_string()));
        if news {
            let hint = hint.as_deref().unwrap_or("it is tried again by itself");
            match state {
                State::Gap => tracing::info!(target_name = self.name, "{ended}; attaching again"),
                State::Waiting => {
                    tracing::info!(target_name = self.name, "{ended}; waiting for it")
                }
                _ => tracing::warn!(
                    target_name = self.name,
                    hint,
                    next_try_ms = pause.as_millis() as u64,
                    "{ended}"
                ),
            }
        }
        self.board
            .update(|f| f.errors += u64::from(!matches!(state, State::Waiting | State::Gap)));
        self.set(state, Some(ended.to_string()), hint);
    }

    /// One attachment to the database. `Ok` after a clean stop.
    async fn session(&mut self, commands: &mut mpsc::Receiver<Command>) -> Result<(), Ended> {
        let (path, ensure_wal, spool_dir) = (
            self.path.clone(),
            self.options.ensure_wal,
            self.state.spool(),
        );
        let (guard, turned_on, spool) = blocking(move || -> Result<_, Ended> {
            let spool = Spool::open(&spool_dir)?;
            let (guard, turned_on) = Guard::attach(&path, ensure_wal)?;
            Ok((guard, turned_on, spool))
        })
        .await??;
        if turned_on {
            tracing::warn!(
                target_name = self.name,
                "turned WAL mode on; it stays on in the database"
            );
        }
        let spool = Arc::new(spool);
        let (capture, local) = self.establish(guard, &spool).await?;
        let (captured, watch_captured) = watch::channel(capture.txid());
        let (ask, asks) = mpsc::channel(4);
        let uploaders = self.start_uploaders(&spool, local, &watch_captured, &ask);
        drop((ask, watch_captured));
        let mut session = Session {
            capture: Some(capture),
            spool,
            captured,
            asks,
            wake: Arc::new(Notify::new()),
            last_capture: Instant::now() - self.options.sync_interval,
            last_checkpoint: Instant::now(),
            last_roll_up: Instant::now(),
            views: Arc::new(()),
        };
        self.set(State::Steady, None, None);
        let result = self.follow(&mut session, commands).await;
        if result.is_ok() {
            self.drain(&mut session).await;
        }
        session.capture = None;
        uploaders.iter().for_each(tokio::task::JoinHandle::abort);
        result
    }

    /// After a last capture: waits until every store has everything, and answers what the uploaders ask meanwhile. The caller bounds it by
    /// `shutdown-timeout`.
    async fn drain(&self, session: &mut Session) {
        let wanted = *session.captured.borrow();
        let mut positions: Vec<_> = self.durable.iter().map(watch::Sender::subscribe).collect();
        let done = async {
            for position in &mut positions {
                // An error means that the sender is gone, and with it whoever could make it durable.
                let _ = position.wait_for(|d| d.is_some_and(|d| d >= wanted)).await;
            }
        };
        tokio::pin!(done);
        loop {
            tokio::select! {
                () = &mut done => return,
                Some(ask) = session.asks.recv() => {
                    if let Err(error) = self.answer(session, ask).await {
                        tracing::warn!(target_name = self.name, %error, "the last upload needs the database");
                        return;
                    }
                }
            }
        }
    }

    fn start_uploaders(
        &self,
        spool: &Arc<Spool>,
        local: Local,
        captured: &watch::Receiver<Txid>,
        ask: &mpsc::Sender<Ask>,
    ) -> Vec<tokio::task::JoinHandle<()>> {
        self.stores
            .iter()
            .zip(&self.durable)
            .zip(0..)
            .map(|((store, durable), number)| {
                let uploader = Uploader {
                    number,
                    store: store.clone(),
                    spool: Arc::clone(spool),
                    board: Arc::clone(&self.board),
                    local,
                    instance: self.instance.clone(),
                    captured: captured.clone(),
                    durable: durable.clone(),
                    ask: ask.clone(),
                    check_every: self.store_check,
                    base_every: self.options.snapshot_interval,
                    policy: policy(&self.options.retention),
                    now: self.now,
                };
                tokio::spawn(uploader.run())
            })
            .collect()
    }

    /// Who owns the replica, and where capture goes on. With trusted local state no store is asked.
    async fn establish(
        &mut self,
        guard: Guard,
        spool: &Arc<Spool>,
    ) -> Result<(Capture, Local), Ended> {
        self.board.update(|f| {
            if f.stores.is_empty() {
                let facts = |s: &Store| StoreFacts {
                    store: s.display().to_owned(),
                    ..StoreFacts::default()
                };
                f.stores = self.stores.iter().map(facts).collect();
            }
        });
        let remembered = self.state.identity();
        if let Some(local) = remembered {
            let (table_path, spool2, size) =
                (self.state.table(), Arc::clone(spool), guard.page_size());
            let table = blocking(move || open_table(&table_path, &spool2, size)).await?;
            match table {
                Ok(Some(table)) if table.about().lineage == local.lineage => {
                    return self.resume(guard, table, local, spool, None).await;
                }
                Ok(_) => tracing::warn!(
                    target_name = self.name,
                    "the checksum table is missing or damaged; rebuilding it from the store"
                ),
                Err(error) => {
                    tracing::warn!(target_name = self.name, %error, "the checksum table cannot be used; rebuilding it from the store")
                }
            }
        }
        self.set(
            State::Seeding,
            Some("asking the store who owns the replica".into()),
            None,
        );
        let store = self.stores[0].clone();
        let remote = owner::read(&store).await?.transpose()?;
        let entries = Replica::list(&store).await?;
        let verdict = match owner::decide(
            remembered,
            remote.as_ref(),
            !entries.is_empty(),
            &self.instance,
        ) {
            Verdict::Continue(local) if entries.is_empty() => {
                // Our owner.json, no file: the first base never arrived.
                return self.begin(guard, spool, local).await;
            }
            Verdict::Continue(local) => Verdict::Rebuild {
                lineage: Some(local.lineage),
                epoch: local.epoch,
                proof: true,
            },
            other => other,
        };
        match verdict {
            Verdict::Refuse(refusal) => Err(refusal.into()),
            Verdict::Fresh | Verdict::Continue(_) => {
                let fresh = Local {
                    lineage: new_lineage(),
                    epoch: 1,
                };
                let local = remote
                    .as_ref()
                    .and_then(|o| {
                        Some(Local {
                            lineage: o.lineage()?,
                            epoch: o.epoch,
                        })
                    })
                    .unwrap_or(fresh);
                if remote.is_none() {
                    let owner =
                        Owner::new(local.lineage, &self.instance, local.epoch, (self.now)());
                    owner::write(&store, &owner, PutMode::Create).await?;
                }
                self.begin(guard, spool, local).await
            }
            Verdict::Rebuild {
                lineage,
                epoch,
                proof,
            } => {
                let local = Local {
                    lineage: lineage.unwrap_or_else(new_lineage),
                    epoch,
                };
                let table = self
                    .rebuild(
                        &store,
                        Catalog::new(entries.into_values()),
                        guard.file_id(),
                        local,
                    )
                    .await?;
                spool.clear()?;
                let result = self.resume(guard, table, local, spool, Some(proof)).await?;
                let owner = Owner::new(local.lineage, &self.instance, local.epoch, (self.now)());
                owner::write(&store, &owner, PutMode::Overwrite).await?;
                Ok(result)
            }
        }
    }

    async fn begin(
        &self,
        guard: Guard,
        spool: &Arc<Spool>,
        local: Local,
    ) -> Result<(Capture, Local), Ended> {
        self.set(
            State::Seeding,
            Some("the first copy is on its way".into()),
            None,
        );
        spool.clear()?;
        self.state.record(local)?;
        let (table, spool, now) = (self.state.table(), Arc::clone(spool), (self.now)());
        let identity = Identity {
            lineage: local.lineage,
            epoch: local.epoch,
        };
        let capture =
            blocking(move || Capture::begin(guard, &table, &spool, identity, now)).await??;
        self.board.update(|f| {
            f.captured = Some(capture.txid());
            f.captured_at = Some(now);
        });
        tracing::info!(target_name = self.name, lineage = %local.lineage, "a new history begins");
        Ok((capture, local))
    }

    /// Goes on from a table. `proof`: the table came from the store, and (if true) half of the pages must match it.
    async fn resume(
        &self,
        guard: Guard,
        table: PageTable,
        local: Local,
        spool: &Arc<Spool>,
        proof: Option<bool>,
    ) -> Result<(Capture, Local), Ended> {
        let (table_path, spool, now) = (self.state.table(), Arc::clone(spool), (self.now)());
        let identity = Identity {
            lineage: local.lineage,
            epoch: local.epoch,
        };
        let (capture, gap, same, compared) = blocking(move || -> Result<_, Ended> {
            let (capture, gap) = Capture::resume(guard, table, identity, now)?;
            let (same, compared) = if proof == Some(true) {
                capture.compare()?
            } else {
                (1, 1)
            };
            Ok((capture, gap, same, compared))
        })
        .await??;
        if same.saturating_mul(2) < compared {
            return Err(Refusal::TooDifferent { same, compared }.into());
        }
        self.state.record(local)?;
        let reason = if proof.is_some() {
            Some(GapReason::StateRebuilt)
        } else {
            gap
        };
        let Some(reason) = reason else {
            self.board.update(|f| f.captured = Some(capture.txid()));
            return Ok((capture, local));
        };
        self.set(
            State::Gap,
            Some(format!("comparing every page: {}", reason.word())),
            None,
        );
        let mut capture = capture;
        let (capture, report) = blocking(move || {
            let report = capture.gap(&table_path, &spool, now);
            (capture, report)
        })
        .await?;
        let report = report?;
        let pages = report.captured.map_or(0, |c| c.pages);
        tracing::info!(
            target_name = self.name,
            reason = reason.word(),
            compared = report.compared,
            pages,
            "gap capture"
        );
        self.board.update(|f| {
            *f.gaps.entry(reason.word()).or_default() += 1;
            f.captured = Some(capture.txid());
        });
        if let Some(captured) = report.captured {
            self.note(&captured);
        }
        Ok((capture, local))
    }

    /// The checksum table of the newest point in the store: every object of the plan is read and verified.
    async fn rebuild(
        &self,
        store: &Store,
        catalog: Catalog,
        file_id: (u64, u64),
        local: Local,
    ) -> Result<PageTable, Ended> {
        self.set(
            State::Seeding,
            Some("rebuilding local state from the store".into()),
            None,
        );
        let plan = restore::plan::plan(&catalog, Goal::Newest)
            .map_err(|e| Ended::Rebuild(e.to_string()))?;
        let open = restore::opener(store);
        let path = self.state.table();
        let table = blocking(move || -> Result<PageTable, Ended> {
            let mut table: Option<PageTable> = None;
            let mut batch = Vec::new();
            let current = std::cell::Cell::new(None::<Described>);
            let cell = std::cell::RefCell::new((&mut table, &mut batch));
            let applied = apply::each(
                &plan.files,
                open,
                |header| {
                    let (table, batch) = &mut *cell.borrow_mut();
                    let about = Described {
                        lineage: local.lineage,
                        txid: header.max,
                        page_size: header.page_size,
                        commit: header.commit,
                        position: None,
                        file_id,
                    };
                    if let (Some(table), Some(before)) = (table.as_mut(), current.get()) {
                        table.apply(batch, before)?;
                        batch.clear();
                    }
                    if table.is_none() {
                        **table = Some(PageTable::create(&path, about)?);
                    }
                    current.set(Some(about));
                    Ok(())
                },
                |page, data| {
                    let (table, batch) = &mut *cell.borrow_mut();
                    batch.push((page, crate::types::page_hash(page, data)));
                    if batch.len() == 8192
                        && let (Some(table), Some(about)) = (table.as_mut(), current.get())
                    {
                        table.apply(batch, about)?;
                        batch.clear();
                    }
                    Ok(())
                },
            )
            .map_err(|e| Ended::Rebuild(e.to_string()))?;
            let (Some(mut table), Some(about)) = (table, current.get()) else {
                return Err(Ended::Rebuild("the plan is empty".into()));
            };
            table.apply(&batch, about)?;
            if applied.expected.is_some_and(|e| e != table.checksum()) {
                return Err(Ended::Rebuild(
                    "the replica's database checksum does not match its pages".into(),
                ));
            }
            Ok(table)
        })
        .await??;
        Ok(table)
    }

    fn note(&self, captured: &Captured) {
        self.board.update(|f| {
            f.captures += 1;
            f.captured_bytes += captured.entry.size;
            f.captured_pages += u64::from(captured.pages);
            f.captured = Some(captured.entry.span.max());
            f.captured_at = Some(captured.entry.created);
            for store in &mut f.stores {
                store.oldest_pending.get_or_insert(captured.entry.created);
            }
        });
    }

    /// The steady loop.
    async fn follow(
        &mut self,
        session: &mut Session,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<(), Ended> {
        if let Some(reply) = self.deferred.take() {
            self.sync_now(session, reply).await?;
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
                    Some(Command::Sync(reply)) => self.sync_now(session, reply).await?,
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

    async fn sync_now(
        &mut self,
        session: &mut Session,
        reply: oneshot::Sender<Result<Txid, String>>,
    ) -> Result<(), Ended> {
        let result = self.step(session, true).await;
        let answer = match &result {
            Ok(()) => Ok(*session.captured.borrow()),
            Err(e) => Err(e.to_string()),
        };
        // Whoever asked may be gone.
        let _ = reply.send(answer);
        result
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
            until_capture.min(poll)
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
        let due = now || session.last_capture.elapsed() >= self.options.sync_interval;
        let checkpoint = session.last_checkpoint.elapsed() >= CHECKPOINT_EVERY
            && Arc::strong_count(&session.views) == 1;
        let roll_up = session.last_roll_up.elapsed() >= Duration::from_secs(1);
        let pending = self.pending(session)?;
        let at = (self.now)();
        self.board.update(|f| f.last_look = Some(at));
        if !(pending || roll_up && self.roll_up_due(session)) {
            return Ok(());
        }
        self.board.update(|f| f.busy_since = Some(at));
        let (table, db_bytes) = (self.state.table(), self.board.update(|f| f.db_bytes));
        let stores = self.stores.len() as u32;
        let done = self
            .with_capture(session, move |capture, spool| {
                work(
                    capture,
                    spool,
                    &table,
                    at,
                    Due {
                        capture: due && pending,
                        checkpoint,
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
        }
        if let Some(barrier) = done.barrier {
            session.last_checkpoint = Instant::now();
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

    fn roll_up_due(&self, session: &Session) -> bool {
        !compact::due(&session.spool.entries(), &BTreeSet::new(), (self.now)()).is_empty()
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
        });
    }

    /// Below the floor of free space local files go: the app's disk is never filled. First those that every store has, which costs only
    /// larger roll-ups; then the rest, and a base follows when there is room.
    fn keep_floor(&self, session: &Session) -> Result<(), Ended> {
        let Ok(stat) = rustix::fs::statvfs(self.state.path()) else {
            return Ok(());
        };
        let (free, total) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
        let floor = self.min_free.bytes_of(total);
        if free >= floor {
            return Ok(());
        }
        let Some(capture) = &session.capture else {
            return Ok(());
        };
        capture.sync_table()?;
        let stores = self.stores.len() as u32;
        let (uploaded, pending): (Vec<_>, Vec<_>) = session
            .spool
            .entries()
            .into_iter()
            .partition(|e| session.spool.acknowledged_by_all(e.span, stores));
        let mut freed = 0;
        for entry in uploaded.iter().filter(|e| e.span.max() != capture.txid()) {
            session.spool.remove(entry.span)?;
            freed += entry.size;
        }
        let pending_bytes: u64 = pending.iter().map(|e| e.size).sum();
        if free + freed < floor && pending_bytes > SPOOL_DROP_BYTES {
            tracing::error!(
                target_name = self.name,
                free,
                pending_bytes,
                "too little free space: dropping the spool; a new base follows"
            );
            session.spool.clear()?;
            self.board
                .update(|f| *f.gaps.entry(GapReason::SpoolDropped.word()).or_default() += 1);
        }
        Ok(())
    }

    async fn answer(&self, session: &mut Session, ask: Ask) -> Result<(), Ended> {
        let at = (self.now)();
        match ask {
            Ask::Base(reply) => {
                let views = Arc::clone(&session.views);
                let result = self
                    .with_capture(session, move |capture, spool| {
                        let (view, captured) = capture.view(spool, at)?;
                        Ok((view.hold(views), capture.base_header(at), captured))
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
            Ask::Squeeze(reply) => {
                self.with_capture(session, |capture, spool| {
                    squeeze(capture, spool).map_err(Ended::from)
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
            let result = work(&mut capture, &spool);
            (capture, result)
        })
        .await?;
        session.capture = Some(capture);
        result
    }
}

#[derive(Clone, Copy)]
struct Due {
    capture: bool,
    checkpoint: bool,
    roll_up: bool,
    db_bytes: u64,
    stores: u32,
}

#[derive(Default)]
struct Done {
    looked: bool,
    captured: Vec<Captured>,
    barrier: Option<Barrier>,
    gap: Option<(GapReason, u32)>,
}

/// What one step does on a blocking thread.
fn work(
    capture: &mut Capture,
    spool: &Spool,
    table: &std::path::Path,
    now: Millis,
    due: Due,
) -> Result<Done, Ended> {
    let mut done = Done::default();
    capture.leave_lock_zero()?;
    if due.capture {
        done.looked = true;
        let outcome = match capture.capture(spool, now)? {
            Outcome::Gap(reason) => Err(reason),
            Outcome::Captured(c) => {
                done.captured.push(c);
                Ok(())
            }
            Outcome::Nothing => Ok(()),
        };
        let outcome = match outcome {
            Ok(()) if due.checkpoint => match capture.checkpoint(spool, now, false) {
                Ok((barrier, captured)) => {
                    done.barrier = barrier;
                    done.captured.extend(captured);
                    Ok(())
                }
                Err(CaptureError::Gap(reason)) => Err(reason),
                Err(e) => return Err(e.into()),
            },
            other => other,
        };
        if let Err(reason) = outcome {
            let report = capture.gap(table, spool, now)?;
            done.gap = Some((reason, report.captured.map_or(0, |c| c.pages)));
            done.captured.extend(report.captured);
        }
    }
    if due.roll_up {
        for merge in compact::due(&spool.entries(), &BTreeSet::new(), now) {
            compact::run(spool, &merge, capture.txid(), || capture.sync_table())
                .map_err(CaptureError::from)?;
        }
        drop_rolled_up(capture, spool, due.stores)?;
        if spool.bytes() > due.db_bytes.max(SPOOL_MIN_BYTES) {
            squeeze(capture, spool)?;
        }
    }
    Ok(done)
}

/// Files of the highest level go once every store has them.
fn drop_rolled_up(capture: &Capture, spool: &Spool, stores: u32) -> Result<(), Ended> {
    let top = Level::new(4);
    let done: Vec<_> = spool
        .entries()
        .into_iter()
        .filter(|e| Some(e.span.level()) == top && spool.acknowledged_by_all(e.span, stores))
        .collect();
    if !done.is_empty() {
        capture.sync_table()?;
    }
    for entry in done {
        spool.remove(entry.span)?;
    }
    Ok(())
}

fn squeeze(capture: &Capture, spool: &Spool) -> Result<(), CaptureError> {
    if let Some(merge) = compact::squeeze(&spool.entries(), &BTreeSet::new()) {
        compact::run(spool, &merge, capture.txid(), || capture.sync_table())?;
    }
    Ok(())
}

/// The configured retention as the rule that is applied.
pub fn policy(config: &crate::config::RetentionConfig) -> Policy {
    Policy {
        point_in_time: config.point_in_time,
        hourly: config.hourly,
        daily: config.daily,
        weekly: config.weekly,
        monthly: config.monthly,
        yearly: config.yearly,
    }
}

fn new_lineage() -> Lineage {
    loop {
        if let Some(lineage) = Lineage::new(rand::random()) {
            return lineage;
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Ended> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Ended::Lost)
}
