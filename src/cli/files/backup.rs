//! `lifeboat snapshot` of files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;

use super::{NAMED, blocking, each};
use crate::cli::{Failure, ok, run};
use crate::config::{Config, FilesConfig};
use crate::daemon::files::open_in;
use crate::files::{self, Backup, Target};

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
    back_up(&config, &mine, None, None, as_json).await?;
    ok(&format!("snapshot targets={count} durable"));
    Ok(())
}

/// The label, numbered if snapshots of files have it already: nothing is ever replaced. Where databases belong to the set, they decide.
pub(in crate::cli) async fn free_label(
    config: &Config,
    mine: &[FilesConfig],
    label: &str,
) -> Result<String, Failure> {
    let mut points = Vec::new();
    for files in mine {
        for store in &files.stores {
            let target = open_in(config, files, store).await?;
            match tokio::task::spawn_blocking(move || files::list(&target)).await {
                Ok(Ok(found)) => points.extend(found),
                // The first backup makes it, or says why not; a store that is away is said by the backup, too.
                Ok(Err(_)) => {}
                Err(e) => return Err(Failure::new(1, format!("the work broke off: {e}"), None)),
            }
        }
    }
    Ok(files::free_label(&points, label))
}

/// Backs up files, under a label if one is given, until a deadline if there is one. A partial backup is a failure.
pub(in crate::cli) async fn back_up(
    config: &Config,
    mine: &[FilesConfig],
    label: Option<&str>,
    deadline: Option<Instant>,
    as_json: bool,
) -> Result<(), Failure> {
    let mut partial = 0;
    each(config, mine, async |files, target| {
        let backup = one(target, label.map(str::to_owned), deadline).await?;
        partial += u64::from(backup.point.partial);
        show(&files.name, &backup, as_json);
        Ok(())
    })
    .await?;
    if partial > 0 {
        return Err(Failure::new(
            1,
            format!("{partial} snapshots are partial: the files above are not in them"),
            Some("make them readable for this process, or exclude them".into()),
        ));
    }
    Ok(())
}

/// One backup; an interrupt ends it in order, and so does the deadline.
async fn one(
    target: Target,
    label: Option<String>,
    deadline: Option<Instant>,
) -> Result<Backup, Failure> {
    let name = target.config.name.clone();
    let late = Arc::new(AtomicBool::new(false));
    let is_late = Arc::clone(&late);
    let (started, backend) = tokio::sync::oneshot::channel();
    let work = blocking(move || {
        files::backup(&target, label.as_deref(), |backend| {
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
            is_late.store(true, Ordering::Relaxed);
        };
        let told = tokio::select! {
            told = tokio::signal::ctrl_c() => told.is_ok(),
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
            Err(_) if late.load(Ordering::Relaxed) => Err(Failure::new(
                1,
                format!("{name} could not be backed up within --timeout; what was uploaded is kept, and the next run goes on from it"),
                Some("give it more --timeout, or run `lifeboat snapshot` without a label first".into()),
            )),
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
