//! Scheduled drills: one at a time, every target in each of its stores.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::caught::{self, caught};
use super::files_drills;
use super::fleet::{Fleet, state_path, system_now};
use super::postgres::{Ask, Database, blocking, is_of, open};
use super::wait::{self, Woken};
use crate::config::{Config, TargetConfig};
use crate::drills::{self, Drill, DrillError, Options};
use crate::observe::facts::{Board, DrillFacts, DrillPlan, DrillProblem, note_drill};
use crate::postgres::{self, Connection, PostgresError, Stop, StopOnDrop};
use crate::retention::copies::newest;
use crate::schedule::Schedule;
use crate::store::Store;
use crate::types::Millis;

/// Between looks for records of drills that could not be read.
const REMEMBER_EVERY: Duration = Duration::from_secs(30);

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
    clear_left(&config, &fleet).await;
    let remembered = remembered(&config, &fleet, &board, |_| true).await;
    let rest = async {
        let mut is_whole = remembered.is_whole;
        while !is_whole {
            tokio::time::sleep(REMEMBER_EVERY).await;
            is_whole = self::remembered(&config, &fleet, &board, |_| true)
                .await
                .is_whole;
        }
        board.know_drills();
    };
    tokio::join!(rest, scheduled(&config, &fleet, &board, remembered.oldest));
}

/// A whole copy may lie in the scratch space of a drill that was killed.
async fn clear_left(config: &Config, fleet: &Fleet) {
    let targets = fleet.targets().await;
    let folders = targets.iter().map(|t| options(config, t).scratch);
    let folders: BTreeSet<PathBuf> = folders.collect();
    let clear = tokio::task::spawn_blocking(move || {
        folders.iter().for_each(|f| drills::clear_left(f));
    });
    if let Err(error) = clear.await {
        tracing::warn!(%error, "removing what killed drills left");
    }
}

async fn scheduled(config: &Config, fleet: &Fleet, board: &Board, oldest: Option<Timestamp>) {
    let expr = config.drill.schedule.as_deref();
    let schedule = expr.map(|expr| Schedule::parse(expr, &config.time_zone));
    // The configuration has tried it.
    let Some(Ok(schedule)) = schedule else {
        return;
    };
    for server in config.postgres.iter().filter(|s| s.lacks_drills()) {
        let hint = "give it a `drill-url` (docs/drills.md)";
        tracing::warn!(
            target_name = server.name,
            hint,
            "it is not drilled: it has no `drill-url`"
        );
    }
    let mut last = oldest;
    loop {
        let planned = Timestamp::now();
        let Some(due) = schedule.next_run(last, planned) else {
            return;
        };
        board.plan_drills(DrillPlan {
            next: Millis(due.as_millisecond()),
            objective: schedule.allowed_age(last.unwrap_or(planned)),
        });
        if wait::until(planned, due).await == Woken::SetBack {
            continue;
        }
        last = Some(Timestamp::now());
        // The next round is as far off as ever: one that began again at once would read all that came before the panic.
        if let Err(panic) = caught(all(config, fleet, board)).await {
            tracing::error!(
                panic,
                hint = caught::HINT,
                "the drills broke off by a panic"
            );
        }
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
                for f in board.postgres().iter().filter(|f| is_of(server, &f.name)) {
                    let problem = no_drill(&error, error.hint());
                    board.update_postgres(&f.name, &f.store, |f| f.drill_problem = Some(problem));
                }
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
                    let problem = no_drill(&error, Some(hint));
                    database.update(board, store, |f| f.drill_problem = Some(problem));
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
    let asserts = database.server.asserts.clone();
    let now = Timestamp::now();
    let work =
        blocking(move || postgres::drill(&source, &server, &clients, &asserts, now, &stopped));
    let drill = work.await?;
    match drill.failure() {
        None => tracing::info!(
            target_name = database.name,
            store = store.display(),
            dump = drill.dump,
            restore_seconds = drill.restore_seconds,
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
        restore_seconds: drill.restore_seconds,
        data_age_seconds: drill.data_age().as_secs_f64(),
    };
    database.update(board, store, |f| {
        note_drill(&mut f.drill, &mut f.drill_problem, facts)
    });
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
            let problem = no_drill(&error, Some(hint));
            if let Some(target) = board.target(&target.name) {
                target.update_store(number, |s| s.drill_problem = Some(problem));
            }
        }
    }
}

/// Why there was none, and what to do.
pub(super) fn no_drill(error: &dyn std::fmt::Display, hint: Option<String>) -> DrillProblem {
    let hint = hint.map(|h| format!("; hint: {h}")).unwrap_or_default();
    DrillProblem {
        at: system_now(),
        why: format!("{error}{hint}"),
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
        let new = facts(drill);
        target.update_store(number, |s| {
            note_drill(&mut s.drill, &mut s.drill_problem, new)
        });
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

/// What the stores remember.
pub(super) struct Remembered {
    /// When the oldest of the last drills began.
    pub(super) oldest: Option<Timestamp>,
    /// Every store was read.
    pub(super) is_whole: bool,
}

impl Default for Remembered {
    fn default() -> Self {
        Self {
            oldest: None,
            is_whole: true,
        }
    }
}

impl Remembered {
    /// The last drill of one store, `None` if it has none; or what keeps it from being read.
    pub(super) fn note(&mut self, name: &str, read: Result<Option<Timestamp>, String>) {
        match read {
            Ok(at) => self.oldest = [self.oldest, at].into_iter().flatten().min(),
            Err(error) => {
                self.is_whole = false;
                tracing::debug!(target_name = name, error, "cannot read the last drill");
            }
        }
    }
}

async fn remembered_dumps(
    config: &Config,
    board: &Board,
    wanted: &impl Fn(&str) -> bool,
    all: &mut Remembered,
) {
    for server in config.postgres.iter().filter(|s| s.drill.is_some()) {
        let databases = match open(config, server, Ask::Stores).await {
            Ok(databases) => databases,
            Err(error) => {
                all.note(&server.name, Err(error.to_string()));
                continue;
            }
        };
        let databases = databases.iter();
        for database in databases.filter(|d| wanted(&d.name) || wanted(&server.name)) {
            for store in &database.stores {
                let read = postgres::drills(store, 1).await;
                let read = read.map_err(|e| e.to_string()).map(|drills| {
                    let last = drills.first();
                    last.iter()
                        .for_each(|drill| note_dump(database, store, board, drill));
                    last.map(|drill| drill.time)
                });
                all.note(&database.name, read);
            }
        }
    }
}

/// A command has drilled these targets, all if none is named: what it found becomes known here. A few requests for each.
pub async fn learn(fleet: &Fleet, names: &[String]) {
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    remembered(fleet.config(), fleet, fleet.board(), wanted).await;
}

/// What the stores remember of the drills of `wanted` targets.
async fn remembered(
    config: &Config,
    fleet: &Fleet,
    board: &Board,
    wanted: impl Fn(&str) -> bool,
) -> Remembered {
    let mut all = Remembered::default();
    remembered_dumps(config, board, &wanted, &mut all).await;
    files_drills::remembered(config, board, &wanted, &mut all).await;
    let targets = fleet.targets().await.into_iter();
    for target in targets.filter(|t| wanted(&t.name)) {
        let stores = fleet.stores(&target.name).await.unwrap_or_default();
        for (number, store) in stores.iter().enumerate() {
            let read = drills::history(store, 1).await;
            let read = read.map_err(|e| e.to_string()).map(|drills| {
                let last = drills.first();
                last.iter()
                    .for_each(|drill| note(board, &target.name, number, drill));
                last.and_then(|drill| drill.at.parse().ok())
            });
            all.note(&target.name, read);
        }
    }
    all
}
