//! Wires targets, stores and schedules together.
//!
//! Reading order: [`state`] (local state), [`target`] (one database), [`uploader`] (one store of it), [`fleet`] (all of them),
//! [`cuts`] and [`snapshot`] (labels), [`control`] (the socket), [`run`] (the process).

mod caught;
mod clock;
pub mod control;
pub mod cuts;
pub mod drills;
pub mod files;
mod files_drills;
pub mod files_jobs;
pub mod fleet;
pub mod postgres;
pub mod postgres_jobs;
pub mod probes;
pub mod snapshot;
pub mod state;
pub mod target;
pub mod uploader;
mod wait;
pub mod watchdog;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::observe::facts::Board;
use crate::observe::view::Settings;
use fleet::{Fleet, FleetError};

/// Between looks for databases that appear and vanish in a folder.
const DISCOVER_EVERY: Duration = Duration::from_secs(5);
/// A database must be gone this many looks in a row: a restore or a deploy takes it away for a moment.
const VANISHED_LOOKS: u32 = 3;

/// Why the daemon ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// Starting.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// HTTP.
    #[error("cannot listen on {address}: {source}")]
    Http {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Signals.
    #[error("cannot handle signals: {0}")]
    Signals(std::io::Error),
    /// The last upload.
    #[error(
        "not everything was uploaded within shutdown-timeout; it is in the state directory and goes up at the next start"
    )]
    Unfinished,
}

impl RunError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Fleet(e) => e.hint(),
            Self::Http { .. } => {
                Some("choose another address with `http: { listen: ... }` or $LIFEBOAT_HTTP_LISTEN; `off` serves nothing".into())
            }
            Self::Signals(_) | Self::Unfinished => None,
        }
    }
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<(), RunError> {
    raise_file_limit();
    let mut term = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut int = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let config = Arc::new(config);
    let board = Arc::new(Board::default());
    board.settings().set(Settings {
        instance: config.instance.clone(),
        state_dir: config.state_dir.clone(),
        min_free: config.min_free,
        insight: config.insight,
    });
    let listener = match config.http {
        Some(address) => {
            let bound = tokio::net::TcpListener::bind(address).await;
            Some(bound.map_err(|source| RunError::Http { address, source })?)
        }
        None => None,
    };
    let fleet = Arc::new(
        Fleet::start(
            Arc::clone(&config),
            Arc::clone(&board),
            fleet::DAEMON_PATIENCE,
        )
        .await?,
    );
    let jobs = files_jobs::Jobs::start(&config, &board);
    let dumps = postgres_jobs::Jobs::start(&config, &board);
    let mut tasks = Vec::new();
    if let Some(listener) = listener {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "serving /metrics, /readyz and the status page");
        }
        let serving = crate::http::serve(
            listener,
            Arc::clone(&config),
            Arc::clone(&fleet),
            Arc::clone(&board),
        );
        tasks.push(tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "HTTP ended");
            }
        }));
    }
    let socket = fleet::socket_path(&config);
    tasks.extend(beside(&config, &fleet, &board, &socket));
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: last capture and upload"),
        _ = int.recv() => tracing::info!("SIGINT: last capture and upload"),
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    futures::future::join_all(tasks).await;
    if let Err(error) = std::fs::remove_file(&socket) {
        tracing::debug!(%error, "removing the control socket");
    }
    let (stopped, (), ()) = tokio::join!(
        fleet.stop(config.shutdown_timeout),
        jobs.stop(config.shutdown_timeout),
        dumps.stop()
    );
    if stopped {
        Ok(())
    } else {
        Err(RunError::Unfinished)
    }
}

/// What runs beside the targets, each begun anew after a panic.
fn beside(
    config: &Arc<Config>,
    fleet: &Arc<Fleet>,
    board: &Arc<Board>,
    socket: &Path,
) -> Vec<tokio::task::JoinHandle<()>> {
    let all = || (Arc::clone(config), Arc::clone(fleet), Arc::clone(board));
    let mut tasks = Vec::new();
    let (_, f, _) = all();
    let socket = socket.to_owned();
    let control = move || {
        let (fleet, socket) = (Arc::clone(&f), socket.clone());
        async move {
            if let Err(error) = control::listen(&socket, fleet).await {
                tracing::warn!(socket = %socket.display(), %error, "the control socket does not work; commands cannot reach this process");
            }
        }
    };
    tasks.push(tokio::spawn(caught::again("control", control)));
    let (c, f, b) = all();
    let drills = move || drills::run(Arc::clone(&c), Arc::clone(&f), Arc::clone(&b));
    tasks.push(tokio::spawn(caught::again("drills", drills)));
    let (c, _, b) = all();
    let probes = move || probes::run(Arc::clone(&c), Arc::clone(&b));
    tasks.push(tokio::spawn(caught::again("probes", probes)));
    let (c, _, b) = all();
    let notify = move || crate::notify::run(Arc::clone(&c), Arc::clone(&b));
    tasks.push(tokio::spawn(caught::again("notifications", notify)));
    let (_, _, b) = all();
    let clock = move || clock::run(Arc::clone(&b));
    tasks.push(tokio::spawn(caught::again("clock", clock)));
    let (c, f, b) = all();
    let insight = move || crate::insight::run(Arc::clone(&c), Arc::clone(&f), Arc::clone(&b));
    tasks.push(tokio::spawn(caught::again("insight", insight)));
    if config.dirs.iter().any(|d| d.watch) {
        let (_, f, _) = all();
        let folders = move || discover(Arc::clone(&f));
        tasks.push(tokio::spawn(caught::again("folders", folders)));
    }
    tasks
}

/// Starts targets for databases that appear and stops those that vanish.
async fn discover(fleet: Arc<Fleet>) {
    let mut missing = std::collections::BTreeMap::new();
    let mut refused = std::collections::BTreeSet::new();
    loop {
        tokio::time::sleep(DISCOVER_EVERY).await;
        // Said there, and shown; tried again by the next look.
        refused.extend(fleet.look().await.into_iter().map(|(name, _)| name));
        let targets = fleet.targets().await;
        refused.retain(|name: &String| {
            let is_started = targets.iter().any(|t| t.name == *name);
            let path = fleet.board().target(name).map(|t| t.facts().path);
            let is_there = path.is_some_and(|path| path.exists());
            if !is_started && !is_there {
                fleet.board().remove(name);
            }
            !is_started && is_there
        });
        for target in targets.iter().filter(|t| !t.explicit) {
            let looks = missing.entry(target.name.clone()).or_insert(0_u32);
            *looks = if target.path.exists() { 0 } else { *looks + 1 };
            if *looks == VANISHED_LOOKS {
                tracing::info!(
                    target_name = target.name,
                    "the database vanished; its replica stays in the store"
                );
                fleet.remove(&target.name).await;
            }
        }
    }
}

/// Each database needs a dozen descriptors; a thousand databases need more than the usual soft limit.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "raising the limit of open files");
    }
}
