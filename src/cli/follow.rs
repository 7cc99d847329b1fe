//! `lifeboat follow`: keeps a copy current from the store.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::args::{FollowArgs, Global};
use super::{Failure, load, ok};
use crate::config::parse_duration;
use crate::daemon::fleet::{FleetError, open_replica, system_now};
use crate::restore::follow::{self, FollowError, Follower};
use crate::restore::plan::PlanError;
use crate::store::{Store, StoreSpec};

/// Lines for people come at most this often.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Shorter waits cost a core and a request each, and a capture comes no sooner.
const INTERVAL_MIN: Duration = Duration::from_millis(50);
/// Between tries while the store is away.
const RETRY_MAX: Duration = Duration::from_secs(30);

impl From<FollowError> for Failure {
    fn from(error: FollowError) -> Self {
        Self::new(error.exit_code(), &error, error.hint())
    }
}

pub(super) async fn run(global: &Global, args: FollowArgs) -> Result<(), Failure> {
    let interval = parse_duration(&args.interval).map_err(|e| {
        let hint = Some("such as 1s or 500ms".into());
        Failure::new(2, format!("--interval: {e}"), hint)
    })?;
    if interval < INTERVAL_MIN {
        return Err(Failure::new(
            2,
            format!("--interval: \"{}\" is below 50ms", args.interval),
            Some("each look is a request to the store: 1s is the default, 500ms is quick".into()),
        ));
    }
    let store = store(global, &args).await?;
    let failed = |e: std::io::Error| Failure::new(1, format!("cannot wait for signals: {e}"), None);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        done = keep(global, &args, &store, interval) => done,
        _ = term.recv() => stopped(&args.output),
        _ = int.recv() => stopped(&args.output),
    }
}

/// Between two transactions or within one that is then rolled back: the copy is whole either way.
fn stopped(path: &Path) -> Result<(), Failure> {
    ok(&format!("follow path={} stopped", path.display()));
    Ok(())
}

async fn store(global: &Global, args: &FollowArgs) -> Result<Store, Failure> {
    if args.source.contains("://") {
        return Ok(Store::open(&StoreSpec::from_text(&args.source)?).await?);
    }
    let config = load(global, Vec::new())?;
    let target = config.targets.iter().find(|t| t.name == args.source);
    let target = target.ok_or_else(|| FleetError::Unknown(args.source.clone()))?;
    if target.path == std::path::absolute(&args.output).unwrap_or_default() {
        return Err(Failure::new(
            4,
            format!(
                "{} is the database itself; nothing was changed",
                target.path.display()
            ),
            Some("follow into another path with -o".into()),
        ));
    }
    let mut failed = None;
    for config in &target.options.stores {
        match open_replica(config, &target.name).await {
            Ok(store) => return Ok(store),
            Err(error) => failed = Some(error),
        }
    }
    let none = || Failure::from(FollowError::Restore(PlanError::Empty.into()));
    Err(failed.map_or_else(none, Failure::from))
}

async fn keep(
    global: &Global,
    args: &FollowArgs,
    store: &Store,
    interval: Duration,
) -> Result<(), Failure> {
    let mut follower = begin(args, store).await?;
    let mut told = Told::default();
    told.tell(global, args, &follower);
    let mut pause = interval;
    loop {
        let (back, result) = follower.step(store).await;
        follower = back;
        match result {
            Ok(true) => {
                told.tell(global, args, &follower);
                pause = interval;
            }
            Ok(false) => {
                follower.is_current(system_now())?;
                told.current(global, args, &follower);
                if args.once {
                    let at = follower.at();
                    ok(&format!(
                        "follow path={} txid={} current",
                        args.output.display(),
                        at.txid
                    ));
                    return Ok(());
                }
                pause = interval;
                tokio::time::sleep(pause).await;
            }
            Err(error) if error.may_pass() && !args.once => {
                let behind = system_now().since(follower.current_at()) / 1000;
                tracing::warn!(%error, lag_seconds = behind, "cannot follow now; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).clamp(Duration::from_secs(1), RETRY_MAX);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A replica that does not exist yet is waited for.
async fn begin(args: &FollowArgs, store: &Store) -> Result<Follower, Failure> {
    let mut pause = Duration::from_secs(1);
    loop {
        match follow::open(store, &args.output, system_now()).await {
            Err(error) if error.may_pass() && !args.once => {
                tracing::warn!(%error, "cannot begin now; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
            result => return Ok(result?),
        }
    }
}

/// What was said last.
#[derive(Default)]
struct Told {
    at: Option<Instant>,
    /// It was not said yet of what is applied that the copy is current.
    news: bool,
}

impl Told {
    fn tell(&mut self, global: &Global, args: &FollowArgs, follower: &Follower) {
        self.news = true;
        if self.at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        self.at = Some(Instant::now());
        say(global, args, follower, false);
    }

    fn current(&mut self, global: &Global, args: &FollowArgs, follower: &Follower) {
        let due = self.at.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        if self.news && (due || args.once) {
            self.news = false;
            self.at = Some(Instant::now());
            say(global, args, follower, true);
        }
    }
}

fn say(global: &Global, args: &FollowArgs, follower: &Follower, current: bool) {
    let (at, now) = (follower.at(), system_now());
    let age = now.since(at.as_of).max(0) as f64 / 1e3;
    let lag = now.since(follower.current_at()).max(0) as f64 / 1e3;
    if global.json {
        println!(
            "{}",
            json!({
                "path": args.output, "txid": at.txid.to_string(), "as_of": at.as_of.to_string(), "age_seconds": age,
                "current": current, "lag_seconds": if current { 0.0 } else { lag },
            })
        );
        return;
    }
    let note = if current {
        ", as new as the replica"
    } else {
        ""
    };
    println!(
        "{} is the database at TXID {} of {}{note}",
        args.output.display(),
        at.txid,
        at.as_of
    );
}
