//! What a restore does besides restoring: looks for a sound point, holds jobs back, runs SQL, reads a foreign replica.

use std::path::Path;

use super::args::{QueueArg, RestoreArgs, VerifyArg};
use super::restore_sources::no_plan;
use super::{Failure, counted};
use crate::daemon::fleet::system_now;
use crate::restore::edit::{Edit, Edited, Queue, Script};
use crate::restore::plan::{Goal, PlanError};
use crate::restore::{RestoreError, Tried, Verify, catalog, last_good, planned};
use crate::store::Store;

/// Flags that mean nothing elsewhere would be ignored in silence. Queues are in PostgreSQL, too.
pub(super) fn refuse_of_sqlite(args: &RestoreArgs, is_dump: bool) -> Result<(), Failure> {
    let both = "SQLite and PostgreSQL";
    let flags = [
        ("--last-good", args.last_good, "SQLite"),
        ("--queue", args.queue.is_some() && !is_dump, both),
        ("--after-sql", args.after_sql.is_some() && !is_dump, both),
        ("--from", args.from.is_some() && !is_dump, both),
    ];
    match flags.into_iter().find(|(_, given, _)| *given) {
        None => Ok(()),
        Some((flag, _, of)) => Err(Failure::new(
            2,
            format!("{flag} is for {of} targets"),
            Some("`lifeboat config show` lists the targets".into()),
        )),
    }
}

/// What is changed in the copy. Jobs wait by default when everything comes back, or comes from elsewhere: somebody else may have done them.
pub(super) fn edit(args: &RestoreArgs, foreign: bool) -> Result<Edit, Failure> {
    let queue = match args.queue {
        Some(QueueArg::Keep) => Queue::Keep,
        Some(QueueArg::Paused) => Queue::Paused,
        Some(QueueArg::Empty) => Queue::Empty,
        None if args.all || foreign => Queue::Paused,
        None => Queue::Keep,
    };
    Ok(Edit {
        queue,
        script: script(args)?,
    })
}

/// The SQL of `--after-sql`.
pub(super) fn script(args: &RestoreArgs) -> Result<Option<Script>, Failure> {
    let read = |path: &std::path::PathBuf| {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(sql) => Ok(Script { name, sql }),
            Err(e) => Err(Failure::new(
                2,
                format!("--after-sql: {name}: {e}; nothing was changed"),
                Some("name a file of SQL in UTF-8 that this user may read".into()),
            )),
        }
    };
    args.after_sql.as_ref().map(read).transpose()
}

/// SQLite's checks of the copy that appears.
pub(super) fn verify(args: &RestoreArgs) -> Verify {
    match args.verify {
        VerifyArg::Full => Verify::Full,
        _ if args.last_good => Verify::Integrity,
        VerifyArg::Quick => Verify::Quick,
        VerifyArg::None => Verify::None,
    }
}

/// What would be changed, in words.
pub(super) fn announce(name: &str, edit: &Edit) {
    match edit.queue {
        Queue::Keep => {}
        Queue::Paused => println!("{name}: jobs of Solid Queue, if it has any, would be paused"),
        Queue::Empty => println!("{name}: jobs of Solid Queue, if it has any, would be removed"),
    }
    if let Some(script) = &edit.script {
        println!("{name}: then {} would be run on it", script.name);
    }
}

/// What was changed, in words.
pub(super) fn tell(name: &str, edited: &Edited, args: &RestoreArgs) {
    match &edited.queue {
        Some(jobs) if jobs.removed > 0 || matches!(args.queue, Some(QueueArg::Empty)) => {
            println!("{name}: removed {}", counted(jobs.removed, "job"));
        }
        Some(jobs) if jobs.paused.is_empty() => println!(
            "{name}: every queue is paused already; waiting: {}",
            counted(jobs.unfinished, "job")
        ),
        Some(jobs) => println!(
            "{name}: QUEUES PAUSED: {}; waiting: {}. When they may run: `bin/rails runner 'SolidQueue::Pause.where(queue_name: %w[{}]).delete_all'`",
            jobs.paused.join(", "),
            counted(jobs.unfinished, "job"),
            jobs.paused.join(" "),
        ),
        // With `keep` nobody looked.
        None if matches!(args.queue, Some(QueueArg::Paused | QueueArg::Empty)) && !args.all => {
            println!("{name}: it has no Solid Queue; --queue changed nothing");
        }
        None => {}
    }
    if let Some(statements) = edited.statements {
        println!(
            "{name}: {} of SQL ran on it",
            counted(statements as u64, "statement")
        );
    }
}

/// The newest sound point of the store that went furthest; where that has none, of the next.
pub(super) async fn newest_good(
    name: &str,
    stores: &[Store],
    path: &Path,
    args: &RestoreArgs,
) -> Result<(Goal, Vec<Tried>), Failure> {
    let mut failed: Option<Failure> = None;
    let mut readable = Vec::new();
    for store in stores {
        let newest = async {
            let catalog = catalog(store, Goal::Newest).await?;
            let newest = catalog.points().last().map(|p| p.txid);
            if newest.is_none() {
                planned(store, Goal::Newest).await?;
            }
            Ok(newest)
        };
        match newest.await {
            Ok(newest) => readable.extend(newest.map(|txid| (txid, store))),
            Err(error) => {
                eprintln!("{name}: {}: {error}", store.display());
                failed = Some(Failure::of_stores(failed, no_plan(error)));
            }
        }
    }
    // Stable: of equal ones the first.
    readable.sort_by_key(|(txid, _)| std::cmp::Reverse(*txid));
    for (_, store) in readable {
        let mut tried = Vec::new();
        let told = |t: &Tried| {
            let verdict = t.wrong.as_deref().unwrap_or("sound");
            eprintln!("{name}: TXID {} of {}: {verdict}", t.point.txid, t.point.at);
            tried.push(t.clone());
        };
        match last_good(store, path, verify(args), system_now(), told).await {
            Ok(point) => return Ok((Goal::Txid(point.txid), tried)),
            Err(error) => {
                eprintln!("{name}: {}: {error}", store.display());
                failed = Some(Failure::of_stores(failed, error.into()));
            }
        }
    }
    Err(failed.unwrap_or_else(|| RestoreError::from(PlanError::Empty).into()))
}
