//! Scheduled drills: one at a time, every target in each of its stores.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::files_drills;
use super::fleet::{Fleet, state_path, system_now};
use super::postgres::{Ask, Database, blocking, open};
use super::wait::{self, Woken};
use crate::config::{Config, TargetConfig};
use crate::drills::{self, Drill, DrillError, Options};
use crate::observe::facts::{Board, DrillFacts, DrillPlan};
use crate::postgres::{self, Connection, PostgresError, Stop, StopOnDrop};
use crate::retention::copies::newest;
use crate::schedule::Schedule;
use crate::store::Store;
use crate::types::Millis;

/// How a target is drilled under a configuration.
pub fn options(config: &Config, target: &TargetConfig) -> Options {
    let scratch = config.drill.scratch_dir.clone().unwrap_or_else(|| {
        let state = state_path(config, target);
        state
            .parent()
            .map_or_else(|| PathBuf::from("drill"), |folder| folder.join("drill"))
    });
    Options {
        target: target.name.clone(),
        reserve: reserve(config, &scratch),
        scratch,
        asserts: target.options.asserts.clone(),
        instance: config.instance.clone(),
    }
}

/// The floor of free space of the volume that the scratch folder will be on.
fn reserve(config: &Config, scratch: &std::path::Path) -> u64 {
    let there = scratch.ancestors().find(|p| p.exists());
    let stat = there.and_then(|p| rustix::fs::statvfs(p).ok());
    // What cannot be asked for is found out by the drill itself.
    stat.map_or(0, |s| {
        config
            .min_free
            .bytes_of(s.f_blocks.saturating_mul(s.f_frsize))
    })
}

/// Runs until it is aborted. Without a schedule it only reads what the last drills found.
pub async fn run(config: Arc<Config>, fleet: Arc<Fleet>, board: Arc<Board>) {
    let remembered = remembered(&config, &fleet, &board, |_| true);
    let Some(expr) = &config.drill.schedule else {
        remembered.await;
        return;
    };
    let Ok(schedule) = Schedule::parse(expr, &config.time_zone) else {
        // The configuration has tried it.
        return;
    };
    let mut last = remembered.await;
    loop {
        let planned = Timestamp::now();
        let Some(due) = schedule.next_run(last, planned) else {
            return;
        };
        board.plan_drills(plan(&schedule, due));
        if wait::until(planned, due).await == Woken::SetBack {
            continue;
        }
        last = Some(Timestamp::now());
        all(&config, &fleet, &board).await;
    }
}

/// Drills everything that there is now, one after the other.
pub async fn all(config: &Config, fleet: &Fleet, board: &Board) {
    of_dumps(config, fleet, board).await;
    files_drills::all(config, fleet, board).await;
    for target in fleet.targets().await {
        let Ok(stores) = fleet.stores(&target.name).await else {
            // It vanished.
            continue;
        };
        for (number, store) in stores.iter().enumerate() {
            let _permit = fleet.heavy().await;
            one(config, &target, (number, store), board).await;
        }
    }
}

/// Two periods: one drill may be late.
fn plan(schedule: &Schedule, due: Timestamp) -> DrillPlan {
    let period = schedule
        .next_after(due)
        .map(|then| then.duration_since(due));
    let period = period.and_then(|p| Duration::try_from(p).ok());
    DrillPlan {
        next: Millis(due.as_millisecond()),
        objective: period.unwrap_or_default() * 2,
    }
}

/// Dumps of PostgreSQL, where there is a server for it.
async fn of_dumps(config: &Config, fleet: &Fleet, board: &Board) {
    for server in &config.postgres {
        let Some(scratch) = &server.drill else {
            continue;
        };
        let databases = match open(config, server, Ask::Stores).await {
            Ok(databases) => databases,
            Err(error) => {
                tracing::warn!(target_name = server.name, %error, hint = error.hint(), "no drill");
                continue;
            }
        };
        for database in &databases {
            for store in &database.stores {
                let _permit = fleet.heavy().await;
                if let Err(error) = one_dump(database, store, scratch, board).await {
                    let hint = error
                        .hint()
                        .unwrap_or_else(|| "it is tried again at the next scheduled time".into());
                    tracing::warn!(target_name = database.name, store = store.display(), %error, hint, "no drill");
                }
            }
        }
    }
}

async fn one_dump(
    database: &Database,
    store: &Store,
    scratch: &Connection,
    board: &Board,
) -> Result<(), PostgresError> {
    let mut all = postgres::list(store).await?;
    let at = newest(all.iter().map(|m| m.began), Timestamp::now());
    let Some(manifest) = at.map(|at| all.swap_remove(at)) else {
        let why = "the store holds no dump";
        let mut failed = false;
        database.update(board, store, |f| failed = emptied(f.drill.as_mut(), why));
        say_nothing(&database.name, store, &why, failed);
        return Ok(());
    };
    let clients = database.clients(scratch).await?;
    let source = postgres::Source {
        store: store.clone(),
        manifest,
        runtime: tokio::runtime::Handle::current(),
    };
    // Whoever is aborted here ends the programs on the other thread.
    let stop = StopOnDrop(Stop::default());
    let (server, stopped) = (scratch.clone(), stop.0.clone());
    let work =
        blocking(move || postgres::drill(&source, &server, &clients, Timestamp::now(), &stopped));
    let drill = work.await?;
    match drill.failure() {
        None => tracing::info!(
            target_name = database.name,
            store = store.display(),
            dump = drill.dump,
            restore_seconds = drill.seconds,
            rows = drill.rows,
            "drill: restored and right"
        ),
        Some(failure) => tracing::error!(
            target_name = database.name,
            store = store.display(),
            dump = drill.dump,
            failure,
            hint = "`lifeboat verify` names damaged objects",
            "drill failed"
        ),
    }
    note_dump(database, store, board, &drill);
    Ok(())
}

fn note_dump(database: &Database, store: &Store, board: &Board, drill: &postgres::Drill) {
    let facts = DrillFacts {
        at: Millis(drill.time.as_millisecond()),
        ok: drill.findings.is_empty(),
        failure: drill.failure(),
        restore_seconds: drill.seconds,
        data_age_seconds: drill.data_age().as_secs_f64(),
    };
    database.update(board, store, |f| f.drill = Some(facts));
}

async fn one(
    config: &Config,
    target: &TargetConfig,
    (number, store): (usize, &Store),
    board: &Board,
) {
    match drills::sqlite(store, &options(config, target), system_now()).await {
        Ok(drill) => {
            match drill.failure() {
                None => tracing::info!(
                    target_name = target.name,
                    store = store.display(),
                    txid = drill.txid,
                    restore_seconds = drill.restore_seconds,
                    warnings = ?drill.warnings,
                    "drill: restored and right"
                ),
                Some(failure) => tracing::error!(
                    target_name = target.name,
                    store = store.display(),
                    failure,
                    hint = "`lifeboat verify` names damaged objects",
                    "drill failed"
                ),
            }
            note(board, &target.name, number, &drill);
        }
        // A new database: its first copy is on its way, and readiness says so. What was drilled before and is gone is a failed drill.
        Err(DrillError::Nothing(error)) => {
            let failed = board.target(&target.name).and_then(|t| {
                t.update_store(number, |s| emptied(s.drill.as_mut(), &error.to_string()))
            });
            say_nothing(&target.name, store, &error, failed == Some(true));
        }
        Err(error) => {
            let hint = error
                .hint()
                .unwrap_or_else(|| "it is tried again at the next scheduled time".into());
            tracing::warn!(target_name = target.name, store = store.display(), %error, hint, "no drill");
        }
    }
}

/// What was drilled before and is gone, records and all, failed its drill.
fn emptied(last: Option<&mut DrillFacts>, why: &str) -> bool {
    let Some(last) = last else {
        return false;
    };
    last.at = system_now();
    last.ok = false;
    last.failure = Some(format!("{why}, though a drill restored it before"));
    true
}

fn say_nothing(name: &str, store: &Store, why: &dyn std::fmt::Display, failed: bool) {
    if failed {
        let hint = "look for a lifecycle rule or another program that deletes there";
        tracing::error!(target_name = name, store = store.display(), %why, hint, "drill failed");
    } else {
        tracing::info!(target_name = name, %why, "nothing to drill yet");
    }
}

fn note(board: &Board, name: &str, number: usize, drill: &Drill) {
    if let Some(target) = board.target(name) {
        target.update_store(number, |s| s.drill = Some(facts(drill)));
    }
}

fn facts(drill: &Drill) -> DrillFacts {
    DrillFacts {
        at: drill.at(),
        ok: drill.ok,
        failure: drill.failure(),
        restore_seconds: drill.restore_seconds,
        data_age_seconds: drill.data_age_seconds,
    }
}

async fn remembered_dumps(
    config: &Config,
    board: &Board,
    wanted: &impl Fn(&str) -> bool,
) -> Option<Timestamp> {
    let mut oldest: Option<Timestamp> = None;
    for server in config.postgres.iter().filter(|s| s.drill.is_some()) {
        let databases = open(config, server, Ask::Stores).await;
        let databases = databases.iter().flatten();
        for database in databases.filter(|d| wanted(&d.name) || wanted(&server.name)) {
            for store in &database.stores {
                match postgres::drills(store, 1).await.as_deref() {
                    Ok([drill, ..]) => {
                        note_dump(database, store, board, drill);
                        oldest = Some(oldest.map_or(drill.time, |o| o.min(drill.time)));
                    }
                    Ok([]) => {}
                    Err(error) => {
                        tracing::debug!(target_name = database.name, %error, "cannot read the last drill");
                    }
                }
            }
        }
    }
    oldest
}

/// A command has drilled these targets, all if none is named: what it found becomes known here. A few requests for each.
pub async fn learn(fleet: &Fleet, names: &[String]) {
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    remembered(fleet.config(), fleet, fleet.board(), wanted).await;
}

/// What the stores remember of the drills of `wanted` targets; returns when the last run began, as far as they say.
async fn remembered(
    config: &Config,
    fleet: &Fleet,
    board: &Board,
    wanted: impl Fn(&str) -> bool,
) -> Option<Timestamp> {
    let of_dumps = remembered_dumps(config, board, &wanted).await;
    let of_files = files_drills::remembered(config, board, &wanted).await;
    let mut oldest = [of_dumps, of_files].into_iter().flatten().min();
    let targets = fleet.targets().await.into_iter();
    for target in targets.filter(|t| wanted(&t.name)) {
        let stores = fleet.stores(&target.name).await.unwrap_or_default();
        for (number, store) in stores.iter().enumerate() {
            match drills::history(store, 1).await.as_deref() {
                Ok([drill, ..]) => {
                    note(board, &target.name, number, drill);
                    let at = drill.at.parse().ok();
                    oldest = match (oldest, at) {
                        (Some(a), Some(b)) => Some(a.min(b)),
                        (a, b) => a.or(b),
                    };
                }
                Ok([]) => {}
                Err(error) => {
                    tracing::debug!(target_name = target.name, %error, "cannot read the last drill")
                }
            }
        }
    }
    oldest
}
