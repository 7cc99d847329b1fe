//! Tells people: chat, webhook, healthchecks.io, mail.
//!
//! Reading order: [`conditions`] (what is wrong now, pure), [`ledger`] (what a channel was told, pure), [`message`] and [`send`] (one
//! delivery), [`run`] (the loop). Each channel has its own task and its own file, so that a slow receiver delays nobody else; nothing here
//! is waited for by captures or uploads.
//!
//! What must be told is written to disk before it is sent (a disk that hangs delays it by seconds) and forgotten after it arrived: a message may come twice after a crash (with the
//! same id), and is lost only when every try failed or the disk did.

pub mod conditions;
pub mod event;
pub mod ledger;
pub mod message;
pub mod send;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::{Config, NotifyConfig};
use crate::daemon::fleet::system_now;
use crate::observe::facts::Board;
use crate::observe::view::View;
use crate::types::Millis;
use conditions::{Condition, Seen};
pub use event::{Batch, Event, Kind, Phase};
use ledger::{Ledger, Rules, Tried};
use send::{Ping, SendError, Sender};

/// Between two looks, unless a channel is more impatient.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_AT_LEAST: Duration = Duration::from_millis(100);
/// A look takes milliseconds; after this long the disk hangs.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// A message waits so long for its way to the disk.
const SAVE_LIMIT: Duration = Duration::from_secs(2);
/// Between two tries of a ping that failed.
const PING_AGAIN: i64 = 30_000;

/// Where the channels' files lie.
pub fn folder(config: &Config) -> PathBuf {
    let socket = crate::daemon::fleet::socket_path(config);
    socket.parent().unwrap_or(Path::new("")).join("notify")
}

/// Runs until it is aborted. Returns at once if nobody is to be told.
pub async fn run(config: Arc<Config>, board: Arc<Board>) {
    if config.notify.is_empty() {
        return;
    }
    let folder = folder(&config);
    store::keep_only(&folder, &config.notify);
    let (tell, seen) = watch::channel(Arc::new(Seen::default()));
    let mut channels = tokio::task::JoinSet::new();
    for channel in &config.notify {
        let sender = match Sender::new(channel, &config.instance) {
            Ok(sender) => sender,
            Err(error) => {
                tracing::error!(channel = channel.name, %error, "this channel tells nothing");
                continue;
            }
        };
        let channel = Channel {
            file: store::file(&folder, channel),
            config: channel.clone(),
            sender,
            board: Arc::clone(&board),
            ledger: Ledger::default(),
            pinged: Pinged::default(),
            saving: None,
            unsaved: false,
        };
        channels.spawn(channel.run(seen.clone()));
    }
    let impatient = config.notify.iter().map(|n| n.after / 2).min();
    let every = impatient
        .unwrap_or(LOOK_EVERY)
        .clamp(LOOK_AT_LEAST, LOOK_EVERY);
    let mut eyes = Eyes::default();
    loop {
        let mut seen = eyes.look(&board).await;
        seen.happened = board.happened();
        // Every channel ended: nobody listens.
        if tell.send(Arc::new(seen)).is_err() {
            return;
        }
        tokio::time::sleep(every).await;
    }
}

/// Looks at the facts and at the files' times, on a blocking thread: one at most, however long it takes.
#[derive(Default)]
struct Eyes {
    looking: Option<tokio::task::JoinHandle<Seen>>,
    last: Seen,
}

impl Eyes {
    async fn look(&mut self, board: &Arc<Board>) -> Seen {
        let board = Arc::clone(board);
        let looking = self.looking.get_or_insert_with(|| {
            tokio::task::spawn_blocking(move || Seen::of(&View::take(&board, system_now())))
        });
        match tokio::time::timeout(LOOK_LIMIT, looking).await {
            Ok(result) => {
                self.looking = None;
                match result {
                    Ok(seen) => {
                        self.last = seen;
                        self.last.clone()
                    }
                    // It panicked: said by the panic itself.
                    Err(_) => self.blind("looking at what is known fails; see the log".into()),
                }
            }
            Err(_) => self.blind(format!(
                "looking at the databases' files takes longer than {} s",
                LOOK_LIMIT.as_secs()
            )),
        }
    }

    /// What was seen last, and that there is nothing newer.
    fn blind(&self, why: String) -> Seen {
        let mut seen = self.last.clone();
        let subject = "this host".to_owned();
        let condition = Condition {
            kind: Kind::Unsafe,
            subject: subject.clone(),
            reasons: vec![why],
            hints: vec!["look at the disks of the host; what was durable is not affected".into()],
            patience: Duration::ZERO,
        };
        (seen.now, seen.safe) = (system_now(), false);
        seen.present.insert(subject);
        seen.conditions.insert("unsafe this host".into(), condition);
        seen
    }
}

/// The last pings of a channel that wants them.
#[derive(Default)]
struct Pinged {
    started: bool,
    success: Option<Millis>,
    tried: Option<Millis>,
}

struct Channel {
    config: NotifyConfig,
    sender: Sender,
    board: Arc<Board>,
    file: PathBuf,
    ledger: Ledger,
    pinged: Pinged,
    /// A write that hangs; there is one at most.
    saving: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
    /// The file is older than the ledger.
    unsaved: bool,
}

impl Channel {
    async fn run(mut self, mut seen: watch::Receiver<Arc<Seen>>) {
        self.board.notifications().pending(&self.config.name, 0);
        self.ledger = store::load(&self.file).await;
        self.ledger.resumed(system_now());
        let rules = Rules {
            kinds: self.config.events.clone(),
            after: self.config.after,
            remind: self.config.remind,
        };
        while seen.changed().await.is_ok() {
            let now = Arc::clone(&seen.borrow_and_update());
            let new = self
                .ledger
                .step(&now, &rules, || format!("{:016x}", rand::random::<u64>()));
            let lost = self.ledger.overflow();
            if lost > 0 {
                self.count("dropped", lost as u64);
                tracing::error!(
                    channel = self.config.name,
                    lost,
                    "too many notifications wait: the oldest are dropped"
                );
            }
            if new || self.unsaved {
                self.save().await;
            }
            self.deliver(now.now).await;
            self.ping(&now).await;
            let name = &self.config.name;
            self.board
                .notifications()
                .pending(name, self.ledger.pending() as u64);
        }
    }

    /// Keeps what was told, and waits for it a moment: a disk that hangs is something to tell, not a reason to be silent.
    async fn save(&mut self) {
        self.unsaved = true;
        while self.unsaved {
            let saving = match self.saving.take() {
                // What is being written may be older than what is known by now.
                Some(saving) => saving,
                None => {
                    self.unsaved = false;
                    store::save(&self.file, &self.ledger)
                }
            };
            self.saving = Some(saving);
            let Some(saving) = &mut self.saving else {
                return;
            };
            let result = match tokio::time::timeout(SAVE_LIMIT, saving).await {
                Ok(result) => result.unwrap_or_else(|e| Err(std::io::Error::other(e))),
                Err(_) => {
                    self.unsaved = true;
                    return;
                }
            };
            self.saving = None;
            if let Err(error) = result {
                tracing::warn!(channel = self.config.name, %error, "what was told is not kept; after a restart it is told again");
            }
        }
    }

    fn count(&self, result: &'static str, number: u64) {
        self.board
            .notifications()
            .count(&self.config.name, result, number);
    }

    /// One try of the first batch, if it is due.
    async fn deliver(&mut self, now: Millis) {
        let Some(batch) = self.ledger.due(now).cloned() else {
            return;
        };
        let result = self.sender.send(&batch, system_now()).await;
        match result {
            Ok(()) => {
                self.count("sent", 1);
                self.ledger.delivered();
                if batch.events.iter().any(Event::is_bad) {
                    // The end of it is to be said at once.
                    self.pinged.success = None;
                }
            }
            Err(error) => {
                self.count("failed", 1);
                let (channel, hint) = (&self.config.name, error.hint());
                match self.ledger.failed(now, error.is_refusal()) {
                    Tried::Later => {
                        tracing::warn!(channel, %error, hint, "a notification did not arrive; it is tried again")
                    }
                    Tried::GaveUp => {
                        self.count("dropped", 1);
                        tracing::error!(channel, %error, hint, titles = ?batch.events.iter().map(|e| &e.title).collect::<Vec<_>>(), "a notification did not arrive, however often it was tried, and is dropped");
                    }
                }
            }
        }
        self.save().await;
    }

    /// The heartbeat: a receiver that hears nothing raises the alarm itself.
    async fn ping(&mut self, seen: &Seen) {
        if !self.sender.pings() {
            return;
        }
        let waits = |last: Option<Millis>, millis: i64| {
            last.is_some_and(|t| (0..millis).contains(&seen.now.since(t)))
        };
        let every = i64::try_from(self.config.every.as_millis()).unwrap_or(i64::MAX);
        let well = seen.safe && !self.ledger.is_open() && self.ledger.pending() == 0;
        let (ping, text) = if !self.pinged.started {
            (Ping::Start, "Lifeboat started".to_owned())
        } else if well && !waits(self.pinged.success, every) {
            (Ping::Success, "everything is safe".to_owned())
        } else {
            return;
        };
        if waits(self.pinged.tried, PING_AGAIN.min(every)) {
            return;
        }
        match self.sender.ping(ping, text).await {
            Ok(()) => {
                self.pinged.tried = None;
                match ping {
                    Ping::Success => self.pinged.success = Some(seen.now),
                    _ => self.pinged.started = true,
                }
                self.count("sent", 1);
            }
            Err(error) => {
                self.pinged.tried = Some(seen.now);
                self.count("failed", 1);
                tracing::warn!(channel = self.config.name, %error, hint = error.hint(), "a ping did not arrive");
            }
        }
    }
}

/// Notes that a labelled snapshot was taken, or failed.
pub fn note_snapshot(board: &Board, label: &str, targets: usize, errors: Vec<String>) {
    let mut event = Event::new(Kind::Snapshot, Phase::Once, label, system_now());
    if errors.is_empty() {
        event.title = format!("snapshot {label}: {targets} targets are durable and pinned");
    } else {
        event.title = format!("snapshot {label} failed");
        event.reasons = errors;
        event.hints =
            vec!["`lifeboat status` says more; run it again before the deploy goes on".into()];
    }
    board.happen(event);
}

/// Sends a test through one channel.
///
/// # Errors
/// Whatever keeps it from arriving.
pub async fn test(channel: &NotifyConfig, instance: &str) -> Result<(), SendError> {
    let sender = Sender::new(channel, instance)?;
    let now = system_now();
    let batch = Batch {
        id: format!("{:016x}", rand::random::<u64>()),
        at: now,
        events: vec![Event::new(Kind::Test, Phase::Once, instance, now)],
    };
    sender.send(&batch, now).await
}
