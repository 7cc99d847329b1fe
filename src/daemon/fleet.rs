//! All targets of one process: started, asked, stopped together.

mod look;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::control::Client;
use super::cuts::Cuts;
use super::state::StateDir;
use super::target::{Command, Inspect, Past, SyncAsk, Target};
use super::watchdog::Watchdog;
use crate::config::{Config, SqliteOptions, StoreConfig, TargetConfig};
use crate::observe::facts::{Board, State, StoreFacts, TargetFacts};
use crate::sqlite::files::lock_holder;
use crate::sqlite::guard::{ReadError, Reader};
use crate::sqlite::watch::Watcher;
use crate::store::{Store, StoreError, StoreSpec};
use crate::types::{Millis, Txid};

/// A lag below this is never an alarm.
const OBJECTIVE_MIN: Duration = Duration::from_secs(30);
/// Of the sync interval: so many missed uploads are an alarm.
const OBJECTIVE_INTERVALS: u32 = 10;

/// Bases uploaded and local states rebuilt at once, over all targets: each holds a blocking thread and a few MiB while it waits for a
/// store.
const HEAVY_JOBS: usize = 4;

/// How long a daemon waits for a state directory that a command has: such a command ends after 60 s by default, most in one or two.
pub const DAEMON_PATIENCE: Duration = Duration::from_secs(90);
/// How long another command waits for it.
pub const COMMAND_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks whether it is free.
const STATE_POLL: Duration = Duration::from_millis(100);

/// Why the targets could not be started or asked.
#[derive(Debug, Error)]
pub enum FleetError {
    /// A store's configuration.
    #[error("target {target}: {source}")]
    Store {
        /// Which target.
        target: String,
        /// Why.
        source: StoreError,
    },
    /// State directory.
    #[error("state directory {path}: {source}")]
    State {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has the state directory.
    #[error("state directory {path} is in use by {holder}; nothing was done")]
    InUse {
        /// Where.
        path: PathBuf,
        /// Who.
        holder: String,
    },
    /// No such target.
    #[error("no target is named \"{0}\"")]
    Unknown(String),
    /// A target could not do it.
    #[error("target {target}: {reason}")]
    Failed {
        /// Which target.
        target: String,
        /// Why.
        reason: String,
    },
}

impl FleetError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store { source, .. } => source.hint(),
            Self::InUse { .. } => {
                Some("stop that one, or give this one a state-dir of its own".into())
            }
            Self::State { .. } => {
                Some("set state-dir to a folder that this user may write to".into())
            }
            Self::Unknown(_) => Some("`lifeboat config show` lists the targets".into()),
            Self::Failed { .. } => Some("`lifeboat status` shows why".into()),
        }
    }
}

/// What a sync made durable.
#[derive(Clone, Debug)]
pub struct Synced {
    /// Target.
    pub target: String,
    /// Everything up to here is in every store.
    pub txid: Txid,
    /// How long it took.
    pub took: Duration,
}

struct Member {
    config: TargetConfig,
    commands: mpsc::Sender<Command>,
    durable: Vec<watch::Receiver<Option<Txid>>>,
    stores: Vec<Store>,
    task: JoinHandle<()>,
}

/// See the module.
pub struct Fleet {
    members: Mutex<BTreeMap<String, Member>>,
    board: Arc<Board>,
    watcher: Option<Arc<Watcher>>,
    config: Arc<Config>,
    heavy: Arc<Semaphore>,
    /// Who looks into the watched folders: one at a time, or two would start one target.
    looking: Semaphore,
    watchdog: Arc<Watchdog>,
    patience: Duration,
}

/// The clock of a running process.
pub fn system_now() -> Millis {
    Millis(jiff::Timestamp::now().as_millisecond())
}

/// Where a target keeps its local state.
pub fn state_path(config: &Config, target: &TargetConfig) -> PathBuf {
    match &config.state_dir {
        Some(dir) => dir.join(&target.name),
        None => beside(&target.path).join(&target.name),
    }
}

/// The socket on which the daemon of this configuration listens.
pub fn socket_path(config: &Config) -> PathBuf {
    let folder = config
        .state_dir
        .clone()
        .or_else(|| config.targets.first().map(|t| beside(&t.path)));
    folder
        .or_else(|| config.dirs.first().map(|d| d.dir.join(".lifeboat")))
        .unwrap_or_default()
        .join("lifeboat.sock")
}

fn beside(database: &Path) -> PathBuf {
    database
        .parent()
        .unwrap_or(Path::new("."))
        .join(".lifeboat")
}

/// Opens the replica of a target in one store.
pub async fn open_replica(store: &StoreConfig, name: &str) -> Result<Store, StoreError> {
    let secret = |s: &Option<crate::config::Secret>| s.as_ref().map(|s| s.reveal().to_owned());
    let spec = StoreSpec {
        url: store.url.clone(),
        endpoint: store.endpoint.clone(),
        region: store.region.clone(),
        access_key_id: secret(&store.access_key_id),
        secret_access_key: secret(&store.secret_access_key),
        session_token: secret(&store.session_token),
        profile: store.profile.clone(),
        force_path_style: store.force_path_style,
        account_name: store.account_name.clone(),
        account_key: secret(&store.account_key),
        sas_token: secret(&store.sas_token),
        google_credentials: secret(&store.google_credentials),
    };
    let mut root = Store::open(&spec).await?;
    if let (true, Some(endpoint)) = (store.tells_endpoint, &store.endpoint) {
        root = root.told_apart(endpoint);
    }
    Ok(if store.prefix_is_exact {
        root
    } else {
        root.child(name)
    })
}

impl Fleet {
    /// Starts every target. A target that cannot start now (no database yet, store away) is started all the same and keeps trying;
    /// only what no waiting mends is an error. A state directory that another command has is waited for, `patience` at most.
    pub async fn start(
        config: Arc<Config>,
        board: Arc<Board>,
        patience: Duration,
    ) -> Result<Self, FleetError> {
        let watcher = match Watcher::start() {
            Ok(watcher) => Some(Arc::new(watcher)),
            Err(error) => {
                tracing::warn!(%error, "inotify does not work here; polling instead");
                None
            }
        };
        let fleet = Self {
            members: Mutex::default(),
            board,
            watcher,
            config: Arc::clone(&config),
            watchdog: Watchdog::start(),
            patience,
            heavy: Arc::new(Semaphore::new(HEAVY_JOBS)),
            looking: Semaphore::new(1),
        };
        for target in &config.targets {
            fleet.add(target).await?;
        }
        Ok(fleet)
    }

    /// Starts one more.
    pub async fn add(&self, target: &TargetConfig) -> Result<(), FleetError> {
        let config = &self.config;
        let mut stores = Vec::new();
        for store in &target.options.stores {
            let opened = open_replica(store, &target.name).await;
            stores.push(opened.map_err(|source| FleetError::Store {
                target: target.name.clone(),
                source,
            })?);
        }
        let path = state_path(config, target);
        let state = self.open_state(path).await?;
        let board = self.board.add(TargetFacts {
            name: target.name.clone(),
            path: target.path.clone(),
            explicit: target.explicit,
            state: State::Waiting,
            objective: objective(&target.options),
            stores: stores.iter().map(store_facts).collect(),
            ..TargetFacts::default()
        });
        let durable: Vec<_> = stores.iter().map(|_| watch::Sender::new(None)).collect();
        let receivers = durable.iter().map(watch::Sender::subscribe).collect();
        let cuts = Arc::new(Cuts::open(state.path()));
        let kept = stores.clone();
        let (commands, received) = mpsc::channel(8);
        let target_task = Target {
            name: target.name.clone(),
            path: target.path.clone(),
            options: target.options.clone(),
            stores,
            state,
            board,
            instance: config.instance.clone(),
            watcher: self.watcher.clone(),
            min_free: config.min_free,
            store_check: config.store_check,
            durable,
            now: system_now,
            deferred: None,
            heavy: Arc::clone(&self.heavy),
            watchdog: Arc::clone(&self.watchdog),
            past: Past::default(),
            cuts,
        };
        let task = tokio::spawn(target_task.run(received));
        self.members.lock().await.insert(
            target.name.clone(),
            Member {
                config: target.clone(),
                commands,
                durable: receivers,
                stores: kept,
                task,
            },
        );
        Ok(())
    }

    /// A database that is to be kept and cannot be: it is shown, and red, until it can.
    pub fn not_started(&self, target: &TargetConfig, error: &FleetError) {
        self.board.add(TargetFacts {
            name: target.name.clone(),
            path: target.path.clone(),
            explicit: target.explicit,
            state: State::Failed,
            detail: Some(format!("nothing of it is kept: {error}")),
            hint: error.hint(),
            objective: objective(&target.options),
            ..TargetFacts::default()
        });
    }

    /// A command that does its work without the daemon (`sync`, `snapshot`) holds the directory for seconds: that is waited for. A daemon holds
    /// it for good.
    async fn open_state(&self, path: PathBuf) -> Result<StateDir, FleetError> {
        let begun = std::time::Instant::now();
        let mut said = false;
        loop {
            match StateDir::open(&path) {
                Ok(state) => return Ok(state),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(source) => return Err(FleetError::State { path, source }),
            }
            let holder =
                lock_holder(&path.join("lock")).unwrap_or_else(|| "another process".into());
            let socket = socket_path(&self.config);
            let is_daemon = matches!(Client::connect(&socket).await, Ok(Some(_)));
            if is_daemon || begun.elapsed() > self.patience {
                return Err(FleetError::InUse { path, holder });
            }
            if !said {
                let seconds = self.patience.as_secs();
                tracing::info!(state = %path.display(), "in use by {holder}; waiting for it, {seconds} s at most");
                said = true;
            }
            tokio::time::sleep(STATE_POLL).await;
        }
    }

    /// What a target has failed at last, with the next step; `None` if nothing fails now.
    pub fn trouble(&self, name: &str) -> Option<String> {
        let facts = self.board.target(name)?.facts();
        let store = facts.stores.into_iter().find(|s| s.failing_since.is_some());
        let (what, hint) = match store {
            Some(store) => (store.last_error?, store.hint),
            // It may not have come so far as to write to one.
            None => (facts.detail?, Some(facts.hint?)),
        };
        let hint = hint.map(|h| format!(" (hint: {h})"));
        Some(format!("{what}{}", hint.unwrap_or_default()))
    }

    /// Names of all targets.
    pub async fn names(&self) -> Vec<String> {
        self.members.lock().await.keys().cloned().collect()
    }

    /// What each target was started with: those of the configuration, and databases that appeared since.
    pub async fn targets(&self) -> Vec<TargetConfig> {
        let members = self.members.lock().await;
        members.values().map(|m| m.config.clone()).collect()
    }

    /// Stops a target without a last upload: its database vanished.
    pub async fn remove(&self, name: &str) {
        if let Some(member) = self.members.lock().await.remove(name) {
            member.task.abort();
        }
        self.board.remove(name);
    }

    /// Reads a target's database between two captures. `None`: it is not attached now, or busy; nothing waits for it for long.
    pub async fn inspect<T: Send + 'static>(
        &self,
        name: &str,
        budget: Duration,
        patience: Duration,
        read: impl FnOnce(Result<&Reader, ReadError>) -> T + Send + 'static,
    ) -> Option<T> {
        let commands = self.member(name, |m| m.commands.clone()).await.ok()?;
        let (reply, answer) = oneshot::channel();
        let read = move |reader: Result<&Reader, ReadError>| {
            if !reply.is_closed() {
                // Whoever asked may have gone since.
                let _ = reply.send(read(reader));
            }
        };
        let read = Box::new(read);
        commands
            .try_send(Command::Inspect(Inspect { budget, read }))
            .ok()?;
        tokio::time::timeout(patience, answer).await.ok()?.ok()
    }

    /// Makes everything committed so far durable in every store; returns when it is. The caller bounds the time.
    pub async fn sync(&self, name: &str) -> Result<Synced, FleetError> {
        let begun = std::time::Instant::now();
        let txid = self.capture(name, false).await?;
        // What was asked for may have gone up inside a merge: the point that holds it is where the store stands then.
        let point = self.wait_durable(name, txid).await?;
        Ok(Synced {
            target: name.to_owned(),
            txid: point.unwrap_or(txid),
            took: begun.elapsed(),
        })
    }

    /// Captures everything committed so far, and makes roll-up end a file there.
    pub async fn pin(&self, name: &str) -> Result<Txid, FleetError> {
        self.capture(name, true).await
    }

    async fn capture(&self, name: &str, pin: bool) -> Result<Txid, FleetError> {
        let commands = self.member(name, |m| m.commands.clone()).await?;
        let (reply, answer) = oneshot::channel();
        let stopped = |_| failed(name, "it has stopped".into());
        commands
            .send(Command::Sync(SyncAsk { pin, reply }))
            .await
            .map_err(|_| failed(name, "it has stopped".into()))?;
        answer
            .await
            .map_err(stopped)?
            .map_err(|reason| failed(name, reason))
    }

    /// Waits until every store has everything up to a TXID; returns the least of their positions then. The caller bounds the time.
    pub async fn wait_durable(&self, name: &str, txid: Txid) -> Result<Option<Txid>, FleetError> {
        let mut point: Option<Txid> = None;
        for mut position in self.member(name, |m| m.durable.clone()).await? {
            let reached = *position
                .wait_for(|d| d.is_some_and(|d| d >= txid))
                .await
                .map_err(|_| failed(name, "uploads have stopped".into()))?;
            point = point.min(reached).or(reached);
        }
        Ok(point)
    }

    /// Roots of a target's replicas.
    pub async fn stores(&self, name: &str) -> Result<Vec<Store>, FleetError> {
        self.member(name, |m| m.stores.clone()).await
    }

    /// A permit for long work, bounded over all targets.
    pub async fn heavy(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        Arc::clone(&self.heavy).acquire_owned().await.ok()
    }

    /// The configuration that it runs.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where facts go.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    async fn member<T>(&self, name: &str, get: impl FnOnce(&Member) -> T) -> Result<T, FleetError> {
        let members = self.members.lock().await;
        members
            .get(name)
            .map(get)
            .ok_or_else(|| FleetError::Unknown(name.into()))
    }

    /// Makes a target let go of its database until the returned guard is dropped.
    pub async fn release(&self, name: &str) -> Result<oneshot::Sender<()>, FleetError> {
        let commands = {
            let members = self.members.lock().await;
            members
                .get(name)
                .ok_or_else(|| FleetError::Unknown(name.into()))?
                .commands
                .clone()
        };
        let failed = || FleetError::Failed {
            target: name.to_owned(),
            reason: "it has stopped".into(),
        };
        let (done, released) = oneshot::channel();
        let (guard, until) = oneshot::channel();
        commands
            .send(Command::Release(done, until))
            .await
            .map_err(|_| failed())?;
        released.await.map_err(|_| failed())?;
        Ok(guard)
    }

    /// Last captures and uploads, then stops. `true` if everything was done within `timeout`.
    pub async fn stop(&self, timeout: Duration) -> bool {
        self.looking.close();
        let members = std::mem::take(&mut *self.members.lock().await);
        let aborts: Vec<_> = members.values().map(|m| m.task.abort_handle()).collect();
        let stops = members.into_values().map(|member| async move {
            // A target that has ended needs no word.
            let _ = member.commands.send(Command::Stop).await;
            // It panicked: said by the panic itself.
            let _ = member.task.await;
        });
        let done = tokio::time::timeout(timeout, futures::future::join_all(stops))
            .await
            .is_ok();
        aborts.iter().for_each(tokio::task::AbortHandle::abort);
        // A target that was between two tries ends at once, with what it could not upload.
        let waiting = |f: &TargetFacts| f.stores.iter().any(|s| s.oldest_pending.is_some());
        done && !self.board.snapshot().iter().any(waiting)
    }
}

fn store_facts(store: &Store) -> StoreFacts {
    StoreFacts {
        store: store.display().to_owned(),
        stats: Some(store.stats_handle()),
        ..StoreFacts::default()
    }
}

fn objective(options: &SqliteOptions) -> Duration {
    let default = OBJECTIVE_MIN.max(options.sync_interval * OBJECTIVE_INTERVALS);
    options.max_lag.unwrap_or(default)
}

fn failed(target: &str, reason: String) -> FleetError {
    FleetError::Failed {
        target: target.to_owned(),
        reason,
    }
}
