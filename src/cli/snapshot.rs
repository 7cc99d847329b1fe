use std::sync::Arc;
use std::time::{Duration, Instant};

use super::args::SnapshotArgs;
use super::files::{self, Rest};
use super::{Failure, ok};
use crate::config::{Config, Databases, FilesConfig, OnDeploy, parse_duration};
use crate::daemon::control::{Client, Request};
use crate::daemon::fleet::{COMMAND_PATIENCE, Fleet, socket_path};
use crate::daemon::snapshot::{Snapshot, TargetSnapshot, Wanted, snapshot as take, write_manifest};
use crate::files::NewLabel;
use crate::labels;
use crate::observe::facts::Board;

/// The daemon bounds its answer itself; a connection that is silent for this much longer is dead.
const GRACE: Duration = Duration::from_secs(5);
/// What is not durable after the time that was given is not waited for once more at the end: local files keep it.
const STOP_AFTER_FAILURE: Duration = Duration::from_secs(2);
/// Files that were just in time: the last small object of the set is not given up for a moment.
const FINISH_WITHIN: Duration = Duration::from_secs(4);

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
    let deadline = Instant::now() + timeout;
    // Databases first, then files: no row points at a file that is missing.
    let (mine, rest) = files::split(&config, &args.targets)?;
    let rest = match rest {
        Rest::None if args.targets.is_empty() && !config.postgres.is_empty() => Rest::All,
        rest => rest,
    };
    let wanted = Wanted {
        targets: Vec::new(),
        version: args
            .deploy
            .filter(|v| !v.is_empty())
            .or_else(|| labels::version_of(&label)),
        label,
        timeout_ms: milliseconds(timeout),
        files: mine.iter().map(|f| f.name.clone()).collect(),
    };
    let mut done = match rest.names() {
        None if mine.is_empty() => return Err(failure(&Snapshot::default())),
        None => Snapshot {
            ok: true,
            label: Some(files::free_label(&config, &mine, &wanted.label, deadline).await?),
            ..Snapshot::default()
        },
        Some(targets) => {
            let wanted = Wanted {
                targets,
                ..wanted.clone()
            };
            let done =
                anywhere(config.clone(), wanted.clone(), timeout, STOP_AFTER_FAILURE).await?;
            if done.ok && done.files != wanted.files {
                return Err(Failure::new(
                    1,
                    "the running daemon is of an older version, which knows no files in a set; the databases are pinned, the files are not",
                    Some(
                        "restart the daemon with this version, and take the snapshot again".into(),
                    ),
                ));
            }
            done
        }
    };
    if !json {
        done.targets.iter().for_each(show);
    }
    let of_files = with_files(&config, &wanted, &mut done, (&mine, deadline), json).await;
    if json {
        println!("{}", serde_json::to_string(&done).unwrap_or_default());
    }
    match (&done.label, of_files) {
        (Some(label), None) if done.ok => {
            let targets = done.targets.len();
            ok(&format!("snapshot label={label} targets={targets} durable"));
            Ok(())
        }
        // Nothing but one target of files: what failed says it best.
        (_, Some(failure)) if mine.len() == 1 && done.targets.len() == 1 => Err(Failure {
            message: format!("{}: {}", mine[0].name, failure.message),
            ..failure
        }),
        (_, of_files) => {
            let failure = failure(&done);
            let hint = of_files.and_then(|f| f.hint).or(failure.hint);
            Err(Failure { hint, ..failure })
        }
    }
}

/// Backs up the files of a set, and writes its manifest. Returns why not all of them are safe.
async fn with_files(
    config: &Config,
    wanted: &Wanted,
    done: &mut Snapshot,
    (mine, deadline): (&[FilesConfig], Instant),
    json: bool,
) -> Option<Failure> {
    let label = done.label.clone().filter(|_| done.ok);
    let (Some(label), false) = (label, mine.is_empty()) else {
        // Without all databases they are of no use to the set.
        done.targets.extend(mine.iter().map(|files| TargetSnapshot {
            error: Some("not tried, because not every database is pinned".into()),
            ..nothing_of(&files.name)
        }));
        return None;
    };
    let home = done.targets.last().map(|t| t.target.clone());
    let label = NewLabel {
        name: label,
        version: wanted.version.clone(),
    };
    let (targets, failure) = files::back_up_as(config, mine, &label, deadline, json).await;
    if !json {
        let failed = targets.iter().filter(|t| t.error.is_some());
        failed.for_each(show);
    }
    done.targets.extend(targets);
    done.ok = failure.is_none();
    if let (Some(home), true) = (home, done.ok) {
        let written = finish(config, wanted, done, &home);
        let written = tokio::time::timeout_at((deadline + FINISH_WITHIN).into(), written).await;
        let why = match written {
            Ok(written) => written.err().map(|f| f.message),
            Err(_) => Some("the store did not answer in time".into()),
        };
        done.ok = why.is_none();
        done.error = why.map(|why| format!("the manifest of the set was not written: {why}"));
    }
    failure
}

/// The manifest of a set with files, which comes after them.
async fn finish(
    config: &Config,
    wanted: &Wanted,
    done: &Snapshot,
    home: &str,
) -> Result<(), Failure> {
    let (stores, failed) = super::labels::homes(config, home).await?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    Ok(write_manifest(wanted, &config.instance, done, &stores).await?)
}

/// By the daemon, or by this process if there is none; locks keep two from capturing at once.
pub(super) async fn anywhere(
    mut config: Config,
    mut wanted: Wanted,
    timeout: Duration,
    stop_after_failure: Duration,
) -> Result<Snapshot, Failure> {
    let begun = Instant::now();
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
    let started = Fleet::start(
        Arc::new(config),
        Arc::new(Board::default()),
        COMMAND_PATIENCE.min(timeout),
    );
    let late = |_| {
        Failure::new(
            1,
            "the databases could not be opened within --timeout; nothing is pinned",
            Some("look whether the stores answer: `lifeboat doctor`".into()),
        )
    };
    let fleet = tokio::time::timeout(timeout, started)
        .await
        .map_err(late)??;
    wanted.timeout_ms = milliseconds(timeout.saturating_sub(begun.elapsed()));
    let done = take(&fleet, &wanted, &instance).await;
    let wait = if done.ok {
        wait
    } else {
        wait.min(stop_after_failure)
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
        error: Some("the running daemon does not know it: restart that, or set `watch: true` for its folder".into()),
        ..nothing_of(name)
    }
}

fn nothing_of(name: &str) -> TargetSnapshot {
    TargetSnapshot {
        target: name.to_owned(),
        pin: None,
        at: None,
        ms: 0,
        stores: 0,
        error: None,
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
        "`lifeboat doctor` looks at every store, and says what to do; then run it again: a second label is appended, not replaced"
    };
    Failure::new(1, message, Some(hint.into()))
}

fn show(t: &TargetSnapshot) {
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
