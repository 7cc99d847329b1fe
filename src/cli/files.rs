//! Commands on folders of files.

use serde_json::json;

use super::args::{FilesAction, Global, RestoreArgs};
use super::restore_all::Planned;
use super::{Failure, ok, run};
use crate::config::{Config, FilesConfig, parse_time};
use crate::daemon::files::open;
use crate::files::{self, Backup, FilesError, Goal, Output, Restored, Target};

/// Files named in a report on one screen.
const NAMED: usize = 20;

/// Targets that are no files.
pub(super) enum Rest {
    /// There are none, or none was meant.
    None,
    /// All of them.
    All,
    /// These.
    Named(Vec<String>),
}

impl Rest {
    /// As names, where none means all; `None` if there is nothing.
    pub(super) fn names(self) -> Option<Vec<String>> {
        match self {
            Self::None => None,
            Self::All => Some(Vec::new()),
            Self::Named(names) => Some(names),
        }
    }
}

/// Which of the targets that were named (all, if none was) are files, and which are not.
pub(super) fn split(
    config: &Config,
    names: &[String],
) -> Result<(Vec<FilesConfig>, Rest), Failure> {
    if names.is_empty() {
        let others = !config.targets.is_empty() || !config.dirs.is_empty();
        let rest = if others { Rest::All } else { Rest::None };
        return Ok((config.files.clone(), rest));
    }
    let is_files = |name: &&String| config.files.iter().any(|f| f.name == **name);
    let (mine, rest): (Vec<_>, Vec<_>) = names.iter().partition(is_files);
    let mine = config.files.iter().filter(|f| mine.contains(&&f.name));
    let rest = match rest.is_empty() {
        true => Rest::None,
        false => Rest::Named(rest.into_iter().cloned().collect()),
    };
    Ok((mine.cloned().collect(), rest))
}

/// Work that blocks, on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FilesError> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(Failure::new(
            1,
            format!("the work broke off: {error}"),
            None,
        )),
    }
}

pub(super) async fn run(config: Config, action: FilesAction) -> Result<(), Failure> {
    let FilesAction::Init { targets } = action;
    let (mine, rest) = split(&config, &targets)?;
    if let Rest::Named(names) = rest {
        return Err(Failure::new(
            2,
            format!("no target of files is named \"{}\"", names.join("\", \"")),
            Some("`lifeboat config show` lists the targets".into()),
        ));
    }
    let mut made = 0;
    for files in &mine {
        for target in open(&config, files).await? {
            let place = target.store.display();
            let new = blocking(move || files::create(&target)).await?;
            made += usize::from(new);
            let word = if new { "made" } else { "was there" };
            println!("{}: the repository in {place} {word}", files.name);
        }
    }
    ok(&format!("files init targets={} made={made}", mine.len()));
    Ok(())
}

/// Databases first, then files: no row points at a file that is missing.
pub(super) async fn snapshot(
    config: Config,
    targets: Vec<String>,
    timeout: &str,
    as_json: bool,
) -> Result<(), Failure> {
    let dumps = super::postgres::split(&config, &targets);
    let (mine, rest) = dumps.files(&config)?;
    let names = rest.names();
    let mut count = mine.len();
    if !dumps.is_empty() {
        count += super::postgres::dump(&config, &dumps, as_json).await?;
    }
    if let Some(names) = names {
        count += run::make_durable(config.clone(), names, timeout, as_json).await?;
    }
    back_up(&config, &mine, None, as_json).await?;
    ok(&format!("snapshot targets={count} durable"));
    Ok(())
}

/// Backs up files, under a label if one is given. A partial backup is a failure.
pub(super) async fn back_up(
    config: &Config,
    mine: &[FilesConfig],
    label: Option<&str>,
    as_json: bool,
) -> Result<(), Failure> {
    let mut partial = 0;
    for files in mine {
        for target in open(config, files).await? {
            let backup = one(target, label.map(str::to_owned)).await?;
            partial += u64::from(backup.point.partial);
            show(&files.name, &backup, as_json);
        }
    }
    if partial > 0 {
        return Err(Failure::new(
            1,
            format!("{partial} snapshots are partial: the files above are not in them"),
            Some("make them readable for this process, or exclude them".into()),
        ));
    }
    Ok(())
}

/// One backup; an interrupt ends it in order.
async fn one(target: Target, label: Option<String>) -> Result<Backup, Failure> {
    let (started, backend) = tokio::sync::oneshot::channel();
    let work = blocking(move || {
        files::backup(&target, label.as_deref(), |backend| {
            // Nobody waits for it after an interrupt.
            let _ = started.send(backend);
        })
    });
    let stop = async move {
        let backend = backend.await;
        if tokio::signal::ctrl_c().await.is_ok()
            && let Ok(backend) = backend
        {
            tracing::info!("interrupted: ending the backup");
            backend.stop();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = work => result,
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

pub(super) async fn list(
    config: &Config,
    mine: &[FilesConfig],
    as_json: bool,
) -> Result<(), Failure> {
    for files in mine {
        for target in open(config, files).await? {
            let store = target.store.display();
            let points = blocking(move || files::list(&target)).await?;
            if as_json {
                println!(
                    "{}",
                    json!({ "target": files.name, "kind": "files", "store": store, "points": points })
                );
                continue;
            }
            println!("{} in {store}: {} snapshots", files.name, points.len());
            for p in &points {
                println!(
                    "  {}  {:.0}  {:>9} files  {:>14} bytes{}{}",
                    p.short(),
                    p.time,
                    p.files,
                    p.bytes,
                    if p.partial { "  PARTIAL" } else { "" },
                    p.labels
                        .iter()
                        .map(|l| format!("  {l}"))
                        .collect::<String>(),
                );
            }
        }
    }
    Ok(())
}

fn goal(config: &Config, args: &RestoreArgs) -> Result<Goal, Failure> {
    let usage = |text: String, hint: &str| Failure::new(2, text, Some(hint.into()));
    let goal = match (&args.at, &args.label, &args.snapshot) {
        (Some(at), _, _) => {
            let at = parse_time(at, jiff::Timestamp::now(), &config.time_zone)
                .map_err(|e| usage(format!("--at: {e}"), "`lifeboat list` shows what there is"))?;
            let at = jiff::Timestamp::from_millisecond(at.0)
                .map_err(|e| usage(format!("--at: {e}"), "`lifeboat list` shows what there is"))?;
            Goal::At(at)
        }
        (_, Some(label), _) => Goal::Label(label.clone()),
        (_, _, Some(id)) => Goal::Id(id.clone()),
        (None, None, None) => Goal::Newest,
    };
    Ok(goal)
}

/// A restore whose snapshot was found.
pub(super) struct Job {
    target: Target,
    id: String,
    output: Output,
}

impl Job {
    /// The folder that it fills, and the target's name.
    pub(super) fn folder(&self) -> Option<(std::path::PathBuf, String)> {
        match &self.output {
            Output::Folder(folder) => Some((folder.clone(), self.target.config.name.clone())),
            Output::InPlace => None,
        }
    }

    /// Does it.
    pub(super) async fn run(self, global: &Global, args: &RestoreArgs) -> Result<(), Failure> {
        let name = self.target.config.name.clone();
        if args.dry_run {
            println!("{name}: would restore snapshot {}", self.id);
            return Ok(());
        }
        let Self { target, id, output } = self;
        let done = blocking(move || files::restore(&target, &Goal::Id(id), None, &output)).await?;
        told(global, &name, &done)
    }
}

/// Every target of files, for `--all`. Without a place only folders that are missing or empty are restored.
pub(super) async fn plan_all(
    config: &Config,
    args: &RestoreArgs,
) -> Result<Vec<Planned<Job>>, Failure> {
    let mut all = Vec::new();
    for files in &config.files {
        let name = &files.name;
        if args.undo {
            let what = "left as they are: the old content is beside them";
            all.push(Planned::Absent(format!("{name}: {what}")));
            continue;
        }
        let output = match &args.output {
            Some(folder) => {
                let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
                Output::Folder(folder.join(name))
            }
            None => Output::InPlace,
        };
        let full = |path: &std::path::PathBuf| {
            std::fs::read_dir(path).map_or(path.exists(), |mut entries| entries.next().is_some())
        };
        let there = match &output {
            Output::Folder(folder) => full(folder),
            Output::InPlace => !args.in_place && files.paths.iter().any(full),
        };
        if there && args.if_not_exists {
            all.push(Planned::Exists(format!("{name}: there are files")));
            continue;
        }
        if there {
            return Err(Failure::new(
                4,
                format!("{name}: there are files; nothing was changed"),
                Some("--in-place keeps them aside; --if-not-exists leaves them alone".into()),
            ));
        }
        all.push(plan(config, files, args, output).await?);
    }
    Ok(all)
}

async fn plan(
    config: &Config,
    files: &FilesConfig,
    args: &RestoreArgs,
    output: Output,
) -> Result<Planned<Job>, Failure> {
    let goal = goal(config, args)?;
    let Some(target) = open(config, files).await?.into_iter().next() else {
        return Ok(Planned::Absent(format!("{}: no store", files.name)));
    };
    let listing = target.clone();
    let found = blocking(move || {
        let points = files::list(&listing)?;
        let id = points[files::find(&points, &goal)?].id.clone();
        Ok(id)
    });
    match found.await {
        Ok(id) => Ok(Planned::Job(Job { target, id, output })),
        Err(failure) if failure.code == 3 && args.if_replica_exists => Ok(Planned::Absent(
            format!("{}: {}", files.name, failure.message),
        )),
        Err(failure) => Err(failure),
    }
}

pub(super) async fn restore(
    global: &Global,
    config: &Config,
    files: &FilesConfig,
    args: &RestoreArgs,
) -> Result<(), Failure> {
    let usage = |text: String, hint: &str| Failure::new(2, text, Some(hint.into()));
    let goal = goal(config, args)?;
    let output = match (&args.output, args.in_place) {
        (Some(folder), _) => {
            Output::Folder(std::path::absolute(folder).unwrap_or_else(|_| folder.clone()))
        }
        (None, true) => Output::InPlace,
        (None, false) => {
            return Err(usage(
                format!("where should \"{}\" be restored?", files.name),
                "add -o FOLDER, or --in-place, which keeps the old content aside",
            ));
        }
    };
    let Some(target) = open(config, files).await?.into_iter().next() else {
        return Ok(());
    };
    if args.dry_run {
        let points = blocking(move || files::list(&target)).await?;
        let point = &points[files::find(&points, &goal)?];
        println!(
            "{}: would restore snapshot {} of {:.0}: {} files, {} bytes",
            files.name,
            point.short(),
            point.time,
            point.files,
            point.bytes
        );
        return Ok(());
    }
    let path = args.path.clone();
    let done = blocking(move || files::restore(&target, &goal, path.as_deref(), &output)).await?;
    told(global, &files.name, &done)?;
    ok(&format!(
        "restore target={} snapshot={} files={} checked",
        files.name,
        done.point.short(),
        done.files
    ));
    Ok(())
}

fn told(global: &Global, name: &str, done: &Restored) -> Result<(), Failure> {
    if global.json {
        println!(
            "{}",
            json!({ "target": name, "kind": "files", "restore": done })
        );
    } else {
        for path in &done.paths {
            println!(
                "{name}: {} is as in snapshot {} of {:.0}",
                path.display(),
                done.point.short(),
                done.point.time
            );
        }
        println!(
            "{name}: {} files, {} bytes in {:.1} s",
            done.files,
            done.bytes,
            done.took.as_secs_f64()
        );
        for kept in &done.kept {
            println!(
                "{name}: the old content is in {}; delete it when it is not needed",
                kept.display()
            );
        }
        for line in done.differences.iter().take(NAMED) {
            println!("    {line}");
        }
    }
    if done.point.partial {
        tracing::warn!(
            snapshot = done.point.short(),
            "this snapshot is partial: some files could not be read when it was made"
        );
    }
    if done.differences_count > 0 {
        return Err(Failure::new(
            5,
            format!(
                "{} things are not as in the snapshot (the content is restored); see above",
                done.differences_count
            ),
            Some("owners can be set by root only: restore as root".into()),
        ));
    }
    Ok(())
}

/// Reads back what the newest restore would need.
pub(super) async fn verify(
    config: &Config,
    mine: &[FilesConfig],
    as_json: bool,
) -> Result<(), Failure> {
    for files in mine {
        for target in open(config, files).await? {
            let store = target.store.display();
            let point = blocking(move || files::verify(&target)).await?;
            if as_json {
                println!(
                    "{}",
                    json!({ "target": files.name, "kind": "files", "store": store, "snapshot": point })
                );
            } else {
                println!(
                    "{} in {store}: everything of snapshot {} of {:.0} read and right",
                    files.name,
                    point.short(),
                    point.time
                );
            }
        }
    }
    Ok(())
}

/// Applies retention; returns how many snapshots were forgotten, or would be.
pub(super) async fn prune(
    config: &Config,
    mine: &[FilesConfig],
    dry_run: bool,
    as_json: bool,
) -> Result<usize, Failure> {
    let mut forgotten = 0;
    for files in mine {
        for target in open(config, files).await? {
            let zone = config.time_zone.clone();
            let pruned = blocking(move || files::prune(&target, &zone, dry_run)).await?;
            for decision in &pruned.decisions {
                let point = &pruned.points[decision.index];
                let reasons: Vec<String> =
                    decision.reasons.iter().map(ToString::to_string).collect();
                forgotten += usize::from(!decision.keeps());
                if as_json {
                    println!(
                        "{}",
                        json!({ "target": files.name, "kind": "files", "snapshot": point.id, "time": point.time, "keep": decision.keeps(), "reasons": reasons })
                    );
                } else if dry_run || !decision.keeps() {
                    let word = if decision.keeps() { "keep" } else { "forget" };
                    println!(
                        "{}: {word} {} of {:.0}: {}",
                        files.name,
                        point.short(),
                        point.time,
                        reasons.join(", ")
                    );
                }
            }
            if !as_json {
                println!(
                    "{}: {} bytes marked, to be deleted a day later; {} bytes marked earlier {}",
                    files.name,
                    pruned.marked_bytes,
                    pruned.deleted_bytes,
                    if dry_run {
                        "would be deleted"
                    } else {
                        "deleted"
                    },
                );
            }
        }
    }
    Ok(forgotten)
}

/// Restores a sample of each into scratch space.
pub(super) async fn drill(
    config: &Config,
    mine: &[FilesConfig],
    as_json: bool,
) -> Result<(), Failure> {
    for files in mine {
        for target in open(config, files).await? {
            let store = target.store.display();
            let drill = blocking(move || {
                let scratch = tempfile::tempdir().map_err(|source| FilesError::Io {
                    path: std::env::temp_dir(),
                    source,
                })?;
                files::drill(&target, scratch.path())
            })
            .await?;
            if as_json {
                println!(
                    "{}",
                    json!({ "target": files.name, "kind": "files", "store": store, "drill": drill })
                );
            } else {
                println!(
                    "{} in {store}: {} files ({} bytes) of the snapshot of {:.0} restored and right in {:.1} s; {} of them equal to those on disk",
                    files.name,
                    drill.files,
                    drill.bytes,
                    drill.snapshot_time,
                    drill.seconds,
                    drill.equal_to_disk
                );
            }
        }
    }
    Ok(())
}
