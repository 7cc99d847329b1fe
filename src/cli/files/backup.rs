//! `lifeboat snapshot` of files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{NAMED, blocking, each};
use crate::cli::{Failure, ok, run};
use crate::config::{Config, FilesConfig};
use crate::daemon::files::{open_in, place};
use crate::daemon::snapshot::TargetSnapshot;
use crate::files::{self, Backup, NewLabel, Point, Target};
use crate::labels::Pin;
use crate::types::Millis;

/// After the time that was given a run has so long to end in order.
const END_WITHIN: Duration = Duration::from_secs(4);
const PARTIAL_HINT: &str = "make them readable for this process, or exclude them";

/// Databases first, then files: no row points at a file that is missing.
pub(in crate::cli) async fn snapshot(
    config: Config,
    targets: Vec<String>,
    timeout: &str,
    as_json: bool,
) -> Result<(), Failure> {
    let dumps = crate::cli::postgres::split(&config, &targets);
    let (mine, rest) = dumps.files(&config)?;
    let names = rest.names();
    let mut count = mine.len();
    if !dumps.is_empty() {
        count += crate::cli::postgres::dump(&config, &dumps, as_json).await?;
    }
    if let Some(names) = names {
        count += run::make_durable(config.clone(), names, timeout, as_json).await?;
    }
    back_up(&config, &mine, as_json).await?;
    ok(&format!("snapshot targets={count} durable"));
    Ok(())
}

/// The label, numbered if snapshots of files have it already: nothing is ever replaced. Where databases belong to the set, they decide.
pub(in crate::cli) async fn free_label(
    config: &Config,
    mine: &[FilesConfig],
    label: &str,
    deadline: Instant,
) -> Result<String, Failure> {
    let mut points = Vec::new();
    for files in mine {
        for store in &files.stores {
            let list = async {
                let target = open_in(config, files, store).await?;
                match tokio::task::spawn_blocking(move || files::list(&target)).await {
                    Ok(Ok(found)) => Ok(found),
                    // The first backup makes it, or says why not; a store that is away is said by the backup, too.
                    Ok(Err(_)) => Ok(Vec::new()),
                    Err(e) => Err(Failure::new(1, format!("the work broke off: {e}"), None)),
                }
            };
            match tokio::time::timeout_at(deadline.into(), list).await {
                Ok(found) => points.extend(found?),
                Err(_) => {
                    let place = place(store, &files.name, None);
                    return Err(Failure::new(
                        1,
                        format!(
                            "which labels there are was not to be learned from {place} within --timeout; nothing is pinned"
                        ),
                        Some("look whether the store answers: `lifeboat doctor`".into()),
                    ));
                }
            }
        }
    }
    Ok(files::free_label(&points, label))
}

/// Whether a whole snapshot of a target has a label; `None` if nobody knows.
pub(in crate::cli) async fn has_label(
    config: &Config,
    files: &FilesConfig,
    label: &str,
) -> Option<bool> {
    let mut is_known = true;
    for store in &files.stores {
        let Ok(target) = open_in(config, files, store).await else {
            is_known = false;
            continue;
        };
        let is_it = |p: &Point| !p.partial && p.labels.iter().any(|l| l == label);
        match blocking(move || files::list(&target)).await {
            Ok(points) if points.iter().any(is_it) => return Some(true),
            Ok(_) => {}
            // No repository yet: no snapshot.
            Err(failure) => is_known &= failure.code == 3,
        }
    }
    is_known.then_some(false)
}

/// Backs up files. A partial backup is a failure.
async fn back_up(config: &Config, mine: &[FilesConfig], as_json: bool) -> Result<(), Failure> {
    let mut partial = 0;
    each(config, mine, async |files, target| {
        let backup = one(target, None, None).await?;
        partial += u64::from(backup.point.partial);
        show(&files.name, &backup, as_json);
        Ok(())
    })
    .await?;
    match partial {
        0 => Ok(()),
        n => Err(Failure::new(
            1,
            format!("{n} snapshots are partial: the files above are not in them"),
            Some(PARTIAL_HINT.into()),
        )),
    }
}

/// Backs up files under a label until a deadline, and says what became of each target; with it the first that is no success. What is partial is
/// none.
pub(in crate::cli) async fn back_up_as(
    config: &Config,
    mine: &[FilesConfig],
    label: &NewLabel,
    deadline: Instant,
    as_json: bool,
) -> (Vec<TargetSnapshot>, Option<Failure>) {
    let (mut targets, mut first) = (Vec::new(), None);
    for files in mine {
        let begun = Instant::now();
        let mut made = Vec::new();
        let work = each(
            config,
            std::slice::from_ref(files),
            async |files, target| {
                let backup = one(target, Some(label.clone()), Some(deadline)).await?;
                if !as_json {
                    show(&files.name, &backup, false);
                }
                made.push(backup);
                Ok(())
            },
        );
        // A run is told to end, and its last request may wait for a store that is silent.
        let done = tokio::time::timeout_at((deadline + END_WITHIN).into(), work).await;
        let mut failure = done.unwrap_or_else(|_| Err(late())).err();
        if let Some(partial) = made.iter().find(|b| b.point.partial) {
            failure.get_or_insert_with(|| {
                Failure::new(
                    1,
                    format!(
                        "its snapshot is partial: {} files are not in it",
                        partial.unreadable_count
                    ),
                    Some(PARTIAL_HINT.into()),
                )
            });
        }
        let point = made.first().map(|b| &b.point).filter(|_| failure.is_none());
        targets.push(TargetSnapshot {
            target: files.name.clone(),
            pin: point.map(|p| Pin::Files {
                snapshot: p.id.clone(),
            }),
            at: point.map(|p| Millis(p.time.as_millisecond()).to_string()),
            ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            stores: made.len(),
            error: failure.as_ref().map(|f| f.message.clone()),
        });
        first = first.or(failure);
    }
    (targets, first)
}

fn late() -> Failure {
    Failure::new(
        1,
        "it could not be backed up within --timeout; what was uploaded is kept, and the next run goes on from it",
        Some("give it more --timeout, or run `lifeboat snapshot` without a label first".into()),
    )
}

/// One backup; an interrupt ends it in order, and those that would come after it; so does the deadline.
async fn one(
    target: Target,
    label: Option<NewLabel>,
    deadline: Option<Instant>,
) -> Result<Backup, Failure> {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(Failure::new(1, "interrupted before it began", None));
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let over_now = Arc::clone(&is_over);
    let (started, backend) = tokio::sync::oneshot::channel();
    let work = blocking(move || {
        files::backup(&target, label.as_ref(), |backend| {
            // Nobody waits for it after an interrupt.
            let _ = started.send(backend);
        })
    });
    let stop = async move {
        let backend = backend.await;
        let over = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
            over_now.store(true, Ordering::Relaxed);
        };
        let told = tokio::select! {
            told = tokio::signal::ctrl_c() => {
                INTERRUPTED.store(told.is_ok(), Ordering::Relaxed);
                told.is_ok()
            }
            () = over => true,
        };
        if let (true, Ok(backend)) = (told, backend) {
            tracing::info!("ending the backup");
            backend.stop();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = work => match result {
            Err(_) if is_over.load(Ordering::Relaxed) => Err(late()),
            result => result,
        },
        () = stop => Err(Failure::new(1, "interrupted", None)),
    }
}

fn show(name: &str, backup: &Backup, as_json: bool) {
    if as_json {
        println!(
            "{}",
            json!({ "target": name, "kind": "files", "backup": backup })
        );
        return;
    }
    let point = &backup.point;
    println!(
        "{name}: snapshot {} of {} files, {} bytes ({} new, {} changed; {} bytes uploaded in {:.1} s){}",
        point.short(),
        point.files,
        point.bytes,
        backup.new,
        backup.changed,
        backup.uploaded,
        backup.took.as_secs_f64(),
        if point.partial { ": PARTIAL" } else { "" },
    );
    for (path, why) in backup.unreadable.iter().take(NAMED) {
        println!("    not in it: {}: {why}", path.display());
    }
    if backup.unreadable_count > NAMED as u64 {
        println!(
            "    and {} more; --json names them",
            backup.unreadable_count - NAMED as u64
        );
    }
    for (path, replicated) in &backup.databases {
        let note = if *replicated {
            "it is a target of its own"
        } else {
            "a copy of an open database is no backup: list it under `sqlite:`"
        };
        println!("    left out the database {}: {note}", path.display());
    }
}
