//! One database: attach, capture, checkpoint, roll up, hand over to its uploaders. One task for each, one operation in flight.
//!
//! States of a session: attach → establish (who owns the replica, what is already there) → loop { capture, leave lock 0, checkpoint, roll up,
//! sleep }. Any failure ends the session, a panic too: every connection closes, and a new one begins after a pause with what the state directory
//! proves.

mod establish;
mod steady;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::caught::{self, caught};
use super::cuts::Cuts;
use super::state::StateDir;
use super::uploader::{Ask, Renewals, Uploader};
use super::watchdog::Watchdog;
use crate::config::{MinFree, SqliteOptions};
use crate::observe::facts::{State, TargetBoard};
use crate::replica::owner::{Local, Owner, Refusal};
use crate::replica::spool::Spool;
use crate::sqlite::capture::{Capture, CaptureError, Captured};
use crate::sqlite::guard::{Barrier, Guard, GuardError, ReadError, Reader};
use crate::sqlite::watch::Watcher;
use crate::store::{Store, StoreError};
use crate::types::{Millis, Txid};

/// First pause after a failed session.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Pause while another instance owns the replica: each look costs a few requests.
const PAUSE_REFUSED: Duration = Duration::from_secs(30);
/// Pause after a comparison that failed: each reads the whole replica.
const PAUSE_DIFFERENT: Duration = Duration::from_secs(10 * 60);
/// After everything is durable: how long labels that are still to be written hold the end up.
const LABELS_AT_STOP: Duration = Duration::from_secs(5);
/// Between two looks whether they are.
const LABELS_POLL: Duration = Duration::from_millis(10);

/// What a target is asked.
pub enum Command {
    /// Capture everything committed so far; answers with its TXID.
    Sync(SyncAsk),
    /// Let go of the database, until the sender of the second channel is dropped.
    Release(oneshot::Sender<()>, oneshot::Receiver<()>),
    /// Read the app's tables between two captures.
    Inspect(Inspect),
    /// Stop after a last capture.
    Stop,
}

/// What is read between two captures. It is dropped unasked where no database is attached.
pub struct Inspect {
    /// At most so long.
    pub budget: Duration,
    /// Runs on a blocking thread; keeps what it finds.
    pub read: Read,
}

/// Work with a reader, or with the reason why there is none.
pub type Read = Box<dyn FnOnce(Result<&Reader, ReadError>) + Send>;

/// A capture that somebody waits for.
pub struct SyncAsk {
    /// Make roll-up end a file there: a label follows.
    pub pin: bool,
    /// Where the TXID goes.
    pub reply: oneshot::Sender<Result<Txid, String>>,
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
    pub deferred: Option<SyncAsk>,
    /// Ends the process if capture hangs.
    pub watchdog: Arc<Watchdog>,
    /// Bounds long work over all targets.
    pub heavy: Arc<Semaphore>,
    /// What local history did that a second time would be a fight.
    pub past: Past,
    /// Points that roll-up may not merge over.
    pub cuts: Arc<Cuts>,
}

/// What a target remembers across sessions, so that nothing costly or contested is repeated for ever.
#[derive(Debug, Default)]
pub struct Past {
    // The highest owner's epoch under which local state was given up for the store's. Epochs start at 1.
    rebased: AtomicU32,
    gave_up: Option<GaveUp>,
}

/// A comparison or rebuild that failed: it reads the whole replica, so it is repeated only when something changed or much later.
#[derive(Debug)]
struct GaveUp {
    /// What was looked at.
    about: About,
    /// Not before.
    until: Instant,
    /// The pause that ends then.
    wait: Duration,
    /// What was found.
    why: GaveUpWhy,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct About {
    owner: Option<Owner>,
    objects: usize,
    newest: Option<Txid>,
    file_id: (u64, u64),
}

#[derive(Clone, Debug)]
enum GaveUpWhy {
    Different(Refusal),
    Unusable(String),
}

impl From<GaveUpWhy> for Ended {
    fn from(why: GaveUpWhy) -> Self {
        match why {
            GaveUpWhy::Different(refusal) => Self::Refused(refusal),
            GaveUpWhy::Unusable(reason) => Self::Unusable(reason),
        }
    }
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
    #[error(
        "local state is lost and the replica cannot be read back: {0}; nothing was uploaded or changed"
    )]
    Unusable(String),
    /// The store went on without this state.
    #[error("going on from the replica's newest point")]
    Rebased,
    #[error("local state: {0}")]
    Local(#[from] std::io::Error),
    #[error("a capture step was lost")]
    Lost,
    #[error("it broke off by a panic: {0}")]
    Panicked(String),
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
    last_barrier: Barrier,
    last_roll_up: Instant,
}

impl Target {
    /// Runs until [`Command::Stop`] or until the sender of commands is gone.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut pause = PAUSE_MIN;
        loop {
            let begun = Instant::now();
            let ended = match caught(self.session(&mut commands)).await {
                Ok(Ok(())) => return,
                Ok(Err(ended)) => ended,
                Err(panic) => Ended::Panicked(panic),
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
            if let Some(ask) = self.deferred.take() {
                // Whoever asked may be gone.
                let _ = ask.reply.send(Err(ended.to_string()));
            }
            let pause_now = match &ended {
                Ended::Refused(Refusal::TooDifferent { .. }) | Ended::Unusable(_) => {
                    PAUSE_DIFFERENT
                }
                Ended::Refused(_) => PAUSE_REFUSED,
                Ended::Rebased => Duration::ZERO,
                _ => pause,
            };
            if self.pause(pause_now, &mut commands).await {
                return;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Between two sessions. `true`: stop.
    async fn pause(&mut self, pause: Duration, commands: &mut mpsc::Receiver<Command>) -> bool {
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return false,
                command = commands.recv() => match command {
                    None | Some(Command::Stop) => return true,
                    Some(Command::Inspect(_)) => {}
                    // Worth a try at once: someone may have mended what was wrong.
                    Some(Command::Sync(ask)) => {
                        self.deferred = Some(ask);
                        return false;
                    }
                    Some(Command::Release(done, until)) => {
                        let _ = done.send(());
                        let _ = until.await;
                        return false;
                    }
                },
            }
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
                // In this process or in one before it: a volume that is not mounted after a restart of the host is no database to wait for.
                let was_there = self.board.update(|f| f.captured.is_some())
                    || self.state.identity().is_some();
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
            Ended::Refused(e) => {
                let hint = e.hint().replace("TARGET", &self.name);
                (State::NotOwner, Some(hint))
            }
            Ended::Rebased => (State::Gap, None),
            Ended::Unusable(_) => (
                State::Failed,
                Some("`lifeboat verify` names the damaged object; move the replica away, and a new one begins with a full copy".into()),
            ),
            Ended::Panicked(_) => (State::Failed, Some(caught::HINT.into())),
            Ended::Rebuild(_) | Ended::Local(_) | Ended::Lost | Ended::Released(..) => {
                (State::Failed, None)
            }
        };
        // The first of a row of equal reports is news.
        let news = self
            .board
            .update(|f| f.detail.as_deref() != Some(&ended.to_string()));
        if let Ended::Panicked(_) = ended {
            tracing::error!(target_name = self.name, hint, "{ended}; attaching again");
        } else if news {
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
        let now = (self.now)();
        self.board.update(|f| {
            f.errors += u64::from(!matches!(state, State::Waiting | State::Gap));
            if state == State::Gap {
                // What the app commits until the comparison has ended is captured by nobody.
                f.uncaptured_since.get_or_insert(now);
            }
        });
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
        self.watchdog.watch(&self.name, guard.beat());
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
            last_barrier: Barrier::Sealed,
            last_roll_up: Instant::now(),
        };
        self.set(State::Steady, None, None);
        let result = self.follow(&mut session, commands).await;
        if result.is_ok() {
            self.drain(&mut session).await;
        }
        session.capture = None;
        // Aborted, as they are after a panic: two of them would write to one store.
        drop(uploaders);
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
            let labels = async {
                while self.cuts.any_wanted() {
                    tokio::time::sleep(LABELS_POLL).await;
                }
            };
            // What is not written by then is in the state directory, and is written at the next start.
            let _ = tokio::time::timeout(LABELS_AT_STOP, labels).await;
        };
        tokio::pin!(done);
        loop {
            tokio::select! {
                () = &mut done => return,
                Some(ask) = session.asks.recv() => {
                    // Not done: whoever waits for the end is told so by the clock.
                    if let Err(error) = self.answer(session, ask).await {
                        tracing::warn!(target_name = self.name, %error, "the last upload needs the database");
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
    ) -> JoinSet<()> {
        self.stores
            .iter()
            .zip(&self.durable)
            .zip(0..)
            .map(|((store, durable), number)| {
                // Each session finds out anew: a history that began anew must not inherit the old one's position.
                durable.send_replace(None);
                let uploader = Uploader {
                    name: self.name.clone(),
                    number,
                    store: store.clone(),
                    spool: Arc::clone(spool),
                    board: Arc::clone(&self.board),
                    local,
                    instance: self.instance.clone(),
                    database: self.path.clone(),
                    from: *captured.borrow(),
                    captured: captured.clone(),
                    durable: durable.clone(),
                    cuts: Arc::clone(&self.cuts),
                    stores: self.stores.len() as u32,
                    ask: ask.clone(),
                    check_every: self.store_check,
                    base_every: self.options.snapshot_interval,
                    heavy: Arc::clone(&self.heavy),
                    policy: self.options.retention,
                    now: self.now,
                    renewals: Renewals::default(),
                };
                uploader.run()
            })
            .collect()
    }

    fn note(&self, captured: &Captured) {
        self.board.update(|f| {
            f.captures += 1;
            f.captured_bytes += captured.entry.size;
            f.captured_pages += u64::from(captured.pages);
            f.commits += u64::from(captured.commits);
            f.changed_pages += u64::from(captured.frames);
            f.captured = Some(captured.entry.span.max());
            f.captured_at = Some(captured.entry.created);
            f.pending(captured.entry);
        });
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Ended> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|lost| match lost.try_into_panic() {
            Ok(panic) => Ended::Panicked(caught::words(&*panic)),
            Err(_) => Ended::Lost,
        })
}
