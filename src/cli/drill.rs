//! `lifeboat drill`: restores for real, into scratch space.

use std::time::Duration;

use serde_json::json;

use super::files::{self, Rest};
use super::{Failure, counted, ok};
use crate::config::{Config, FilesConfig, PostgresConfig, TargetConfig};
use crate::daemon::control::{Client, Request};
use crate::daemon::drills::options;
use crate::daemon::fleet::{FleetError, open_replica, socket_path, system_now};
use crate::drills::{self, Check, Drill, DrillError};

/// The daemon reads a few small objects of each target.
const TELL_WITHIN: Duration = Duration::from_secs(30);

impl From<DrillError> for Failure {
    fn from(error: DrillError) -> Self {
        Self::new(error.exit_code(), &error, error.hint())
    }
}

pub(super) async fn drill(
    config: Config,
    targets: Vec<String>,
    as_json: bool,
) -> Result<(), Failure> {
    let mut dumps = super::postgres::split(&config, &targets);
    let mut skipped = Vec::new();
    if targets.is_empty() {
        skipped = dumps.only_with_drill_url();
    }
    for (server, why) in &skipped {
        tell_skipped(server, why, as_json);
    }
    let (mine, rest) = dumps.files(&config)?;
    let databases: Vec<&TargetConfig> = match rest {
        Rest::None => Vec::new(),
        Rest::All => config.targets.iter().collect(),
        Rest::Named(names) => {
            let find = |name: &String| {
                let found = config.targets.iter().find(|t| t.name == *name);
                found.ok_or_else(|| Failure::from(FleetError::Unknown(name.clone())))
            };
            names.iter().map(find).collect::<Result<_, _>>()?
        }
    };
    if databases.is_empty() && mine.is_empty() && dumps.is_empty() {
        return Err(Failure::new(
            3,
            "there is no target to drill",
            Some(match skipped.is_empty() {
                true => "`lifeboat config show` lists the targets".into(),
                false => format!("{ADD_DRILL_URL} (docs/drills.md)"),
            }),
        ));
    }
    let result = all(&config, (&databases, &mine, &dumps), as_json).await;
    // A failure is recorded, too.
    tell_daemon(&config, targets).await;
    let drilled = result?;
    match skipped.len() {
        0 => ok(&format!("drill targets={drilled}")),
        n => ok(&format!("drill targets={drilled} skipped={n}")),
    }
    Ok(())
}

/// What to do about a target of PostgreSQL that has none.
pub(super) const ADD_DRILL_URL: &str = "add `drill-url:` with a role that may create databases there: another server, or the target's own if it can bear a restore";

/// What is not drilled must not look as if it were.
fn tell_skipped(server: &PostgresConfig, why: &str, as_json: bool) {
    if as_json {
        let kind = server.origin.kind();
        println!(
            "{}",
            json!({ "target": server.name, "kind": kind, "not_drilled": why })
        );
    } else {
        println!("{}: not drilled: {why}", server.name);
    }
}

/// A daemon on this host shows what was found at once, instead of at its next start.
async fn tell_daemon(config: &Config, targets: Vec<String>) {
    let tell = async {
        let Some(mut daemon) = Client::connect(&socket_path(config)).await? else {
            return Ok(());
        };
        daemon.ask(&Request::Drilled { targets }).await.map(|_| ())
    };
    let late = || Err(std::io::ErrorKind::TimedOut.into());
    let told = tokio::time::timeout(TELL_WITHIN, tell).await;
    if let Err(error) = told.unwrap_or_else(|_| late()) {
        tracing::warn!(%error, "the daemon did not hear of the drill; it reads the record at its next start");
    }
}

/// Returns how many targets were drilled.
async fn all(
    config: &Config,
    (databases, mine, dumps): (&[&TargetConfig], &[FilesConfig], &super::postgres::Split),
    as_json: bool,
) -> Result<usize, Failure> {
    let mut failed = Vec::new();
    let mut stopped = None;
    for target in databases {
        for store in &target.options.stores {
            match one(config, target, store, as_json).await {
                Ok(None) => {}
                Ok(Some(failure)) => failed.push(failure),
                // The others are drilled in any case.
                Err(failure) => {
                    eprintln!("{}: {}", target.name, failure.message);
                    stopped.get_or_insert(failure);
                }
            }
        }
    }
    let mut dumped = 0;
    match super::postgres_care::drill(config, dumps, as_json).await {
        Ok((count, of_dumps, failure)) => {
            dumped = count;
            failed.extend(of_dumps);
            stopped = stopped.or(failure);
        }
        Err(failure) => {
            stopped.get_or_insert(failure);
        }
    }
    if let Err(failure) = files::drill(config, mine, as_json).await {
        match failure.code {
            files::DAMAGED => failed.push(failure.message),
            _ => {
                stopped.get_or_insert(failure);
            }
        }
    }
    if let Some(failure) = stopped.filter(|_| failed.is_empty()) {
        return Err(failure);
    }
    if !failed.is_empty() {
        return Err(Failure::new(
            5,
            format!("the drill failed: {}", failed.join("; ")),
            Some(
                "a check of the restored data (`integrity`, `assert`): `lifeboat restore NAME --last-good -o PATH` finds the newest sound point of a SQLite database, `lifeboat list` shows earlier ones; a check of the copy (`restore`, `checksum`): `lifeboat verify` names damaged objects".into(),
            ),
        ));
    }
    Ok(databases.len() + mine.len() + dumped)
}

/// `Some`: what failed.
async fn one(
    config: &Config,
    target: &TargetConfig,
    store: &crate::config::StoreConfig,
    as_json: bool,
) -> Result<Option<String>, Failure> {
    let store = open_replica(store, &target.name).await?;
    let drill = drills::sqlite(&store, &options(config, target), system_now()).await?;
    if as_json {
        println!(
            "{}",
            json!({ "target": target.name, "kind": "sqlite", "store": store.display(), "drill": drill })
        );
    } else {
        show(&drill);
    }
    let failure = drill.failure();
    Ok(failure.map(|f| format!("{} in {}: {f}", target.name, store.display())))
}

pub(super) fn show_check(check: &Check) {
    let word = if check.ok { "ok" } else { "FAILED" };
    println!("  {word} {}: {}", check.name, check.detail);
}

fn show(drill: &Drill) {
    let point = match (&drill.txid, &drill.as_of) {
        (Some(txid), Some(at)) => format!("TXID {txid} of {at}"),
        (None, Some(at)) => at.clone(),
        _ => "the newest point".into(),
    };
    println!(
        "{} in {}: {point} ({} bytes) restored in {:.1} s; {}",
        drill.target,
        drill.store,
        drill.bytes,
        drill.restore_seconds,
        if drill.ok { "it is right" } else { "FAILED" }
    );
    drill.checks.iter().for_each(show_check);
    if !drill.rows.is_empty() {
        let total: u64 = drill.rows.values().sum();
        let tables = counted(drill.rows.len() as u64, "table");
        println!("  {} in {tables}", counted(total, "row"));
    }
    for warning in &drill.warnings {
        println!("  look at: {warning}");
    }
}
