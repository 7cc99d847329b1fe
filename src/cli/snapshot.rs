use std::sync::Arc;
use std::time::Duration;

use super::args::SnapshotArgs;
use super::files::{self, Rest};
use super::{Failure, counted, ok};
use crate::config::{Config, Databases, OnDeploy, parse_duration};
use crate::daemon::control::{Client, Request};
use crate::daemon::fleet::{COMMAND_PATIENCE, Fleet, socket_path};
use crate::daemon::snapshot::{Snapshot, TargetSnapshot, Wanted, snapshot as take};
use crate::labels;
use crate::observe::facts::Board;

/// The daemon bounds its answer itself; a connection that is silent for this much longer is dead.
const GRACE: Duration = Duration::from_secs(30);
/// What is not durable after the time that was given is not waited for once more at the end: local files keep it.
const STOP_AFTER_FAILURE: Duration = Duration::from_secs(2);

pub(super) async fn snapshot(
    config: Config,
    args: SnapshotArgs,
    json: bool,
) -> Result<(), Failure> {
    let Some(label) = args.label else {
        return files::snapshot(config, args.targets, &args.timeout, json).await;
    };
    labels::check(&label).map_err(|e| Failure::new(2, &e, Some(e.hint())))?;
    let timeout = parse_duration(&args.timeout).map_err(|e| {
        Failure::new(
            2,
            format!("--timeout: {e}"),
            Some("for example 60s or 5m".into()),
        )
    })?;
    let deadline = std::time::Instant::now() + timeout;
    // Databases first, then files: no row points at a file that is missing.
    let (mine, rest) = files::split(&config, &args.targets)?;
    let rest = match rest {
        Rest::None if args.targets.is_empty() && !config.postgres.is_empty() => Rest::All,
        rest => rest,
    };
    let (label, databases) = match rest {
        Rest::None if mine.is_empty() => return Err(failure(&Snapshot::default())),
        Rest::None => (files::free_label(&config, &mine, &label).await?, 0),
        rest => {
            let wanted = Wanted {
                targets: match rest {
                    Rest::Named(names) => names,
                    Rest::All | Rest::None => Vec::new(),
                },
                version: args.deploy.or_else(|| labels::version_of(&label)),
                label,
                timeout_ms: milliseconds(timeout),
            };
            let done = anywhere(config.clone(), wanted, timeout).await?;
            show(&done, json);
            match (&done.label, done.ok) {
                (Some(label), true) => (label.clone(), done.targets.len()),
                _ => return Err(with_files(failure(&done), &mine)),
            }
        }
    };
    let done = files::back_up(&config, &mine, Some(&label), Some(deadline), json).await;
    done.map_err(|failure| match databases {
        0 => failure,
        n => Failure {
            message: format!(
                "{}; durable and pinned as {label}: {}, but not every target of files",
                failure.message,
                counted(n as u64, "database")
            ),
            ..failure
        },
    })?;
    let targets = databases + mine.len();
    ok(&format!("snapshot label={label} targets={targets} durable"));
    Ok(())
}

/// By the daemon, or by this process if there is none; locks keep two from capturing at once.
pub(super) async fn anywhere(
    mut config: Config,
    mut wanted: Wanted,
    timeout: Duration,
) -> Result<Snapshot, Failure> {
    let begun = std::time::Instant::now();
    let client = Client::connect(&socket_path(&config))
        .await
        .map_err(|e| Failure::new(1, format!("cannot reach the daemon's socket: {e}"), None))?;
    if let Some(mut client) = client {
        let all = wanted.targets.is_empty();
        let request = Request::Snapshot(wanted);
        let answer = tokio::time::timeout(timeout + GRACE, client.ask_for(&request)).await;
        return match answer {
            Ok(Ok(done)) => Ok(with_unasked(done, &config, all)),
            Ok(Err(e)) => Err(unsure(&e.to_string())),
            Err(_) => Err(unsure("it is silent")),
        };
    }
    if !wanted.targets.is_empty() {
        let known = |name: &String| {
            let postgres = |s| crate::daemon::postgres::is_of(s, name);
            config.targets.iter().any(|t| t.name == *name) || config.postgres.iter().any(postgres)
        };
        if let Some(name) = wanted.targets.iter().find(|n| !known(n)) {
            return Err(crate::daemon::fleet::FleetError::Unknown(name.clone()).into());
        }
        config.targets.retain(|t| wanted.targets.contains(&t.name));
    }
    let (wait, instance) = (config.shutdown_timeout, config.instance.clone());
    let fleet = Fleet::start(
        Arc::new(config),
        Arc::new(Board::default()),
        COMMAND_PATIENCE.min(timeout),
    )
    .await?;
    wanted.timeout_ms = milliseconds(timeout.saturating_sub(begun.elapsed()));
    let done = take(&fleet, &wanted, &instance).await;
    let wait = if done.ok {
        wait
    } else {
        wait.min(STOP_AFTER_FAILURE)
    };
    fleet.stop(wait).await;
    Ok(done)
}

/// A daemon speaks of what it was started with; a target that came into the configuration since is not safe.
fn with_unasked(mut done: Snapshot, config: &Config, all: bool) -> Snapshot {
    let databases = config.targets.iter().map(|t| t.name.as_str());
    let servers = config
        .postgres
        .iter()
        .filter(|s| s.databases == Databases::Own && s.on_deploy != OnDeploy::Skip)
        .map(|s| s.name.as_str());
    let known = |name: &str| done.targets.iter().any(|t| t.target == name);
    let unasked = databases.chain(servers).filter(|name| !known(name));
    let unasked: Vec<TargetSnapshot> = unasked.filter(|_| all).map(unasked_of).collect();
    done.ok &= unasked.is_empty();
    done.targets.extend(unasked);
    done
}

fn unasked_of(name: &str) -> TargetSnapshot {
    TargetSnapshot {
        target: name.to_owned(),
        pin: None,
        at: None,
        ms: 0,
        stores: 0,
        error: Some("the running daemon does not know it: restart that, or set `watch: true` for its folder".into()),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn unsure(why: &str) -> Failure {
    Failure::new(
        1,
        format!("the daemon did not answer: {why}; it is not known whether the label was set"),
        Some("see its log, and `lifeboat list`".into()),
    )
}

/// Files come last, so where databases fail they were not tried.
fn with_files(failure: Failure, files: &[crate::config::FilesConfig]) -> Failure {
    if files.is_empty() {
        return failure;
    }
    let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
    Failure {
        message: format!("{}; not tried: {}", failure.message, names.join(", ")),
        ..failure
    }
}

fn failure(done: &Snapshot) -> Failure {
    let names = |failed: bool| {
        let list: Vec<&str> = done
            .targets
            .iter()
            .filter(|t| t.error.is_some() == failed)
            .map(|t| t.target.as_str())
            .collect();
        list.join(", ")
    };
    let message = if done.targets.is_empty() {
        "there is no target to snapshot".to_owned()
    } else if let Some(error) = &done.error {
        error.clone()
    } else if names(false).is_empty() {
        format!("nothing is pinned: {}", names(true))
    } else {
        format!(
            "not pinned: {}; durable and pinned as {}: {}",
            names(true),
            done.label.as_deref().unwrap_or("-"),
            names(false)
        )
    };
    let hint = if done.targets.is_empty() {
        "`lifeboat config show` lists the targets"
    } else {
        "`lifeboat status` says why; run it again: a second label is appended, not replaced"
    };
    Failure::new(1, message, Some(hint.into()))
}

fn show(done: &Snapshot, json: bool) {
    if json {
        println!("{}", serde_json::to_string(done).unwrap_or_default());
        return;
    }
    for t in &done.targets {
        match (&t.error, &t.pin) {
            (None, Some(pin)) => println!(
                "{}: {} durable and pinned in {} ({} ms)",
                t.target,
                pin.describe(),
                match t.stores {
                    1 => "1 store".to_owned(),
                    n => format!("{n} stores"),
                },
                t.ms
            ),
            (error, _) => println!("{}: {}", t.target, error.as_deref().unwrap_or("no answer")),
        }
    }
}
