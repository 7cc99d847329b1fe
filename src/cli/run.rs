use std::sync::Arc;
use std::time::Duration;

use super::{Failure, ok};
use crate::config::{Config, ConfigSource, parse_duration};
use crate::daemon::control::{Answer, Client, Request, TargetAnswer, sync as sync_all};
use crate::daemon::fleet::{COMMAND_PATIENCE, Fleet, FleetError, socket_path, state_path};
use crate::observe::facts::Board;

pub(super) async fn run(config: Config) -> Result<(), Failure> {
    for notice in &config.notices {
        tracing::info!("{notice}");
    }
    for target in &config.targets {
        for store in &target.options.stores {
            tracing::info!(
                target_name = target.name,
                database = %target.path.display(),
                store = %store.url,
                state = %state_path(&config, target).display(),
                "replicating"
            );
        }
    }
    if config.source == ConfigSource::CommandLine {
        tracing::info!("restore with: lifeboat restore DATABASE -o COPY");
    }
    Ok(crate::daemon::run(config).await?)
}

pub(super) async fn sync(
    config: Config,
    targets: Vec<String>,
    timeout: &str,
    json: bool,
) -> Result<(), Failure> {
    let synced = make_durable(config, targets, timeout, json).await?;
    ok(&format!("sync targets={synced} durable"));
    Ok(())
}

/// [`sync`] without its last line; returns how many databases are durable.
pub(super) async fn make_durable(
    config: Config,
    targets: Vec<String>,
    timeout: &str,
    json: bool,
) -> Result<usize, Failure> {
    let timeout = parse_duration(timeout).map_err(|e| {
        Failure::new(
            2,
            format!("--timeout: {e}"),
            Some("for example 60s or 5m".into()),
        )
    })?;
    for name in &targets {
        let others = super::postgres::is_target(&config, name)
            || config.files.iter().any(|f| f.name == *name);
        if others {
            return Err(Failure::new(
                2,
                format!("{name} is no SQLite database; nothing was done"),
                Some(format!("`lifeboat snapshot {name}` makes a copy of it now")),
            ));
        }
        if !config.targets.iter().any(|t| t.name == *name) {
            return Err(FleetError::Unknown(name.clone()).into());
        }
    }
    let mut alone_hint = None;
    let all = targets.is_empty();
    let mine: Vec<String> = config.targets.iter().map(|t| t.name.clone()).collect();
    let answer = match Client::connect(&socket_path(&config)).await {
        Ok(Some(mut client)) => {
            let request = Request::Sync {
                targets,
                timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            };
            let answer = client.ask(&request).await.map_err(|e| {
                Failure::new(
                    1,
                    format!("the daemon did not answer: {e}"),
                    Some("see its log".into()),
                )
            })?;
            with_unasked(answer, if all { mine } else { Vec::new() })
        }
        Ok(None) => {
            alone_hint =
                Some("the lines above say why; nothing is lost: it is done by the next run");
            alone(config, targets, timeout).await?
        }
        Err(e) => {
            return Err(Failure::new(
                1,
                format!("cannot reach the daemon's socket: {e}"),
                None,
            ));
        }
    };
    show(&answer, json);
    if answer.ok {
        return Ok(answer.targets.len());
    }
    let failed: Vec<_> = answer
        .targets
        .iter()
        .filter(|t| t.error.is_some())
        .map(|t| t.target.as_str())
        .collect();
    let (message, hint) = if failed.is_empty() {
        (
            "there is no SQLite database to sync".to_owned(),
            "`lifeboat config show` lists the targets; `lifeboat snapshot` also dumps servers and backs up files",
        )
    } else {
        (
            format!(
                "not everything is durable: {}; what is captured stays in the spool and goes up later",
                failed.join(", ")
            ),
            alone_hint.unwrap_or("`lifeboat status` says why"),
        )
    };
    Err(Failure::new(1, message, Some(hint.into())))
}

/// A daemon speaks of what it was started with; a target that came into the configuration since is not safe.
fn with_unasked(mut answer: Answer, names: Vec<String>) -> Answer {
    for name in names {
        if !answer.targets.iter().any(|t| t.target == name) {
            answer.ok = false;
            answer.targets.push(TargetAnswer {
                target: name,
                txid: None,
                ms: 0,
                error: Some("the running daemon does not know it: restart that, or set `watch: true` for its folder".into()),
            });
        }
    }
    answer
}

/// Without a daemon the command does the work itself; locks keep two from capturing at once.
async fn alone(config: Config, targets: Vec<String>, timeout: Duration) -> Result<Answer, Failure> {
    let wait = config.shutdown_timeout;
    let fleet = Fleet::start(
        Arc::new(config),
        Arc::new(Board::default()),
        COMMAND_PATIENCE,
    )
    .await?;
    let answer = sync_all(&fleet, targets, timeout).await;
    fleet.stop(wait).await;
    Ok(answer)
}

fn show(answer: &Answer, json: bool) {
    if json {
        println!("{}", serde_json::to_string(answer).unwrap_or_default());
        return;
    }
    for t in &answer.targets {
        match (&t.error, &t.txid) {
            (Some(error), _) => println!("{}: {error}", t.target),
            (None, Some(txid)) => println!("{}: durable up to TXID {txid} ({} ms)", t.target, t.ms),
            (None, None) => println!("{}: done", t.target),
        }
    }
}
