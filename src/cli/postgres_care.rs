//! `lifeboat verify`, `prune` and `drill` of PostgreSQL targets.

use jiff::Timestamp;
use serde_json::json;

use super::Failure;
use super::labels::show_ended;
use super::postgres::Split;
use super::postgres_choose::lost;
use crate::config::Config;
use crate::daemon::postgres::{Ask, Database, blocking};
use crate::postgres::{self, Kind, PostgresError, Source, Stop};
use crate::retention::copies::newest;
use crate::store::Store;

fn source(store: &Store, manifest: postgres::Manifest) -> Source {
    Source {
        store: store.clone(),
        manifest,
        runtime: tokio::runtime::Handle::current(),
    }
}

/// The newest one; that there is none is damage where one was.
async fn there<T>(newest: Option<T>, name: &str, store: &Store) -> Result<T, Failure> {
    if let Some(newest) = newest {
        return Ok(newest);
    }
    let none = Failure::new(
        3,
        format!("{name}: there is no dump in {}", store.display()),
        Some("`lifeboat snapshot` makes one; `lifeboat status` says what is wrong".into()),
    );
    Err(lost(store).await?.map_or(none, |lost| lost.of(name)))
}

/// Reads back the newest dump of each database and store; returns how many databases.
pub(super) async fn verify(
    config: &Config,
    split: &Split,
    as_json: bool,
) -> Result<usize, Failure> {
    let databases = split.databases(config, Ask::Stores).await?;
    let mut damaged = Vec::new();
    for database in &databases {
        for store in &database.stores {
            let found = postgres::dumps(store).await?;
            damaged.extend(
                found
                    .damaged
                    .iter()
                    .map(|id| format!("{}: the manifest of {id}", database.name)),
            );
            let newest = found.dumps.into_iter().next_back();
            let newest = there(newest, &database.name, store).await?;
            let (id, bytes) = (newest.id.clone(), newest.stored_bytes());
            let source = source(store, newest);
            let result = blocking(move || postgres::read_back(&source)).await;
            let why = match result {
                Ok(()) => None,
                Err(error @ PostgresError::Damaged { .. }) => Some(error.to_string()),
                Err(error) => return Err(error.into()),
            };
            if as_json {
                println!(
                    "{}",
                    json!({ "target": database.name, "kind": database.origin.kind(), "store": store.display(), "dump": id, "bytes": bytes, "error": why })
                );
            } else if why.is_none() {
                println!(
                    "{} in {}: every byte of dump {id} read and right ({bytes} bytes)",
                    database.name,
                    store.display()
                );
            }
            damaged.extend(why.map(|w| format!("{} in {}: {w}", database.name, store.display())));
        }
    }
    if damaged.is_empty() {
        return Ok(databases.len());
    }
    Err(Failure::new(
        5,
        damaged.join("; "),
        Some("make a new dump now with `lifeboat snapshot`; `lifeboat list` shows others to restore from".into()),
    ))
}

/// Applies retention; returns how many dumps were deleted, or would be.
pub(super) async fn prune(
    config: &Config,
    split: &Split,
    dry_run: bool,
    accept: bool,
    as_json: bool,
) -> Result<(usize, usize), Failure> {
    let databases = split.databases(config, Ask::Stores).await?;
    let mut forgotten = 0;
    for database in &databases {
        let (policy, zone) = (&database.server.retention, &database.server.time_zone);
        for store in &database.stores {
            if accept && !dry_run {
                let newest = postgres::list(store).await?.pop();
                let newest = there(newest, &database.name, store).await?;
                postgres::accept(store, &newest.id).await?;
                println!("{}: dump {} is accepted as it is", database.name, newest.id);
            }
            let done = postgres::prune(store, policy, zone, Timestamp::now(), dry_run).await?;
            forgotten += done.forgotten();
            show(&database.name, store, &done, dry_run, as_json);
        }
    }
    Ok((databases.len(), forgotten))
}

fn show(name: &str, store: &Store, done: &postgres::Pruned, dry_run: bool, as_json: bool) {
    for decision in &done.decisions {
        let dump = &done.dumps[decision.index];
        let reasons: Vec<String> = decision.reasons.iter().map(ToString::to_string).collect();
        if as_json {
            println!(
                "{}",
                json!({ "target": name, "kind": dump.kind, "store": store.display(), "dump": dump.id, "keep": decision.keeps(), "reasons": reasons })
            );
        } else if dry_run || !decision.keeps() {
            let word = if decision.keeps() { "keep" } else { "delete" };
            println!("{name}: {word} {}: {}", dump.id, reasons.join(", "));
        }
    }
    show_ended(name, &done.ending, as_json);
    for label in &done.lost {
        if as_json {
            println!(
                "{}",
                json!({ "target": name, "label": label, "lost": true })
            );
        } else {
            println!("{name}: label {label} is lost: its dump is gone");
        }
    }
    if as_json {
        return;
    }
    for id in &done.torn {
        println!(
            "{name}: dump {id} is not whole in {}; it keeps no other from staying",
            store.display()
        );
    }
    let word = if dry_run {
        "would be deleted"
    } else {
        "deleted"
    };
    println!(
        "{name}: {} dumps and {} objects of unfinished ones, {} bytes {word}",
        done.forgotten(),
        done.unfinished,
        done.bytes
    );
}

/// Restores the newest dump of each database on its drill server, checks and drops it; returns how many, and what failed.
pub(super) async fn drill(
    config: &Config,
    split: &Split,
    as_json: bool,
) -> Result<(usize, Vec<String>, Option<Failure>), Failure> {
    let databases = split.databases(config, Ask::Stores).await?;
    let (mut failed, mut stopped) = (Vec::new(), None);
    for database in &databases {
        for store in &database.stores {
            match drill_one(database, store, as_json).await {
                Ok(found) => failed.extend(found),
                // The others are drilled in any case.
                Err(failure) => {
                    eprintln!("{}: {}", database.name, failure.message);
                    stopped.get_or_insert(failure);
                }
            }
        }
    }
    Ok((databases.len(), failed, stopped))
}

/// `Some`: what failed.
async fn drill_one(
    database: &Database,
    store: &Store,
    as_json: bool,
) -> Result<Option<String>, Failure> {
    if database.origin.kind() == Kind::Redis {
        return Err(Failure::new(
            2,
            format!(
                "{} is a Redis server: there are no drills of Redis",
                database.name
            ),
            Some("`lifeboat verify` reads its newest dump back, every byte".into()),
        ));
    }
    let Some(server) = database.server.drill.clone() else {
        return Err(Failure::new(
            2,
            format!(
                "{} has no `drill-url`: a drill never runs on the live server unless you say so",
                database.name
            ),
            Some(super::drill::ADD_DRILL_URL.into()),
        ));
    };
    let clients = database.clients(&server).await?;
    let mut dumps = postgres::list(store).await?;
    let at = newest(dumps.iter().map(|m| m.began), Timestamp::now());
    let manifest = at.map(|at| dumps.swap_remove(at));
    let source = source(store, there(manifest, &database.name, store).await?);
    let asserts = database.server.asserts.clone();
    let drill = blocking(move || {
        let (now, stop) = (Timestamp::now(), Stop::default());
        postgres::drill(&source, &server, &clients, &asserts, now, &stop)
    })
    .await?;
    let failure = drill.failure();
    if as_json {
        println!(
            "{}",
            json!({ "target": database.name, "kind": "postgres", "store": store.display(), "drill": drill })
        );
    } else {
        if failure.is_none() {
            println!(
                "{} in {}: dump {} restored in {:.1} s; {} tables, {} rows counted and right",
                database.name,
                store.display(),
                drill.dump,
                drill.restore_seconds,
                drill.tables,
                drill.rows
            );
        }
        for check in drill.checks.iter().filter(|c| c.name == "assert") {
            super::drill::show_check(check);
        }
    }
    Ok(failure.map(|f| format!("{} in {}: {f}", database.name, store.display())))
}
