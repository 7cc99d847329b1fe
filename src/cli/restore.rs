use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::absent::with_absent;
use super::args::{Global, RestoreArgs};
use super::restore_all::Others;
use super::restore_options as options;
use super::{Failure, load_for, ok};
use crate::config::{Config, TargetConfig, parse_time};
use crate::daemon::control::{Client, Request};
use crate::daemon::fleet::{open_replica, socket_path, system_now};
use crate::daemon::snapshot::Wanted;
use crate::labels;
use crate::restore::edit::Edit;
use crate::restore::plan::{Goal, PlanError};
use crate::restore::swap::{SwapError, kept_for_undo, undo};
use crate::restore::{Output, Planned, Report, RestoreError, Tried, Verify, planned};
use crate::store::{Store, StoreSpec};
use crate::types::Txid;

/// The bound on pinning the present state before a restore in place.
const PIN_TIMEOUT_MS: u64 = 30_000;

struct Job {
    name: String,
    /// Those that could be opened.
    stores: Vec<Store>,
    output: Output,
    /// What was looked at for the last good point.
    tried: Vec<Tried>,
}

/// What a job reads, the best first: the newest point, and of equal ones the first store.
struct Source {
    store: Store,
    goal: Goal,
    plan: Planned,
}

pub(super) async fn restore(global: &Global, args: RestoreArgs) -> Result<(), Failure> {
    let is_url = args.source.as_deref().is_some_and(is_url);
    let config = if is_url || args.source.is_none() && args.from.is_some() {
        None
    } else {
        let config = load_for(global, args.source.as_slice())?;
        Some(with_absent(config, args.source.as_deref()).await?)
    };
    let tz = config
        .as_ref()
        .map_or(jiff::tz::TimeZone::UTC, |c| c.time_zone.clone());
    if let (Some(config), Some(source)) = (&config, &args.source)
        && let Some(files) = config.files.iter().find(|f| f.name == *source)
    {
        options::refuse_of_sqlite(&args)?;
        return super::files::restore(global, config, files, &args).await;
    }
    if let (Some(config), Some(source)) = (&config, &args.source)
        && super::postgres::is_target(config, source)
    {
        options::refuse_of_sqlite(&args)?;
        return super::postgres_restore::restore(global, config, source, &args).await;
    }
    refuse_of_postgres(&args)?;
    let goal = goal(&args, tz)?;
    let edit = options::edit(&args, is_url || args.from.is_some())?;
    let mut jobs = Vec::new();
    let mut others = Others::none();
    match (&config, args.source.as_ref().or(args.from.as_ref())) {
        (None, Some(url)) => jobs.push(from_url(url, &args).await?),
        (Some(config), Some(source)) => jobs.push(job(find(config, source)?, &args, false).await?),
        (Some(config), None) => {
            for target in &config.targets {
                jobs.push(job(target, &args, true).await?);
            }
            others = Others::plan(config, &args).await?;
            if others.count.targets > 0 && (args.last_good || args.after_sql.is_some()) {
                options::refuse_of_sqlite(&args)?;
            }
        }
        (None, None) => {}
    }
    // An app that has none yet is fine in a start-up script.
    if jobs.is_empty() && others.count.targets == 0 && !args.if_replica_exists {
        return Err(Failure::new(
            3,
            "there is no target to restore",
            Some("`lifeboat config show` lists the targets".into()),
        ));
    }
    no_two_to_one_place(&jobs, &others)?;
    let many = jobs.len() + others.count.targets;
    let (mut existing, mut absent) = (0, 0);
    // All are planned before the first is written.
    let mut planned = Vec::new();
    for mut job in jobs {
        if args.if_not_exists && job.output.path().exists() {
            println!(
                "{}: {} exists; nothing to do",
                job.name,
                job.output.path().display()
            );
            existing += 1;
            continue;
        }
        if args.undo {
            planned.push((job, Vec::new()));
            continue;
        }
        match sources(&mut job, &args, config.as_ref(), goal).await {
            Ok(sources) => planned.push((job, sources)),
            Err(failure) if args.if_replica_exists && failure.code == 3 => {
                println!("{}: {}; nothing to do", job.name, failure.message);
                absent += 1;
            }
            Err(failure) => return Err(failure),
        }
    }
    let mut done = 0;
    for (job, sources) in planned {
        if one(global, &args, config.as_ref(), job, sources, &edit).await? {
            done += 1;
        } else {
            absent += 1;
        }
    }
    let count = others.run(global, &args).await?;
    done += count.done;
    existing += count.existing;
    absent += count.absent;
    // With --dry-run this tells a script whether anything would be left to restore.
    let (word, note) = if args.dry_run {
        ("pending", " dry-run")
    } else {
        ("restored", "")
    };
    ok(&format!(
        "restore targets={many} {word}={done} existing={existing} absent={absent}{note}"
    ));
    Ok(())
}

/// A database's name may hold `://`, but only behind the name of its target.
fn is_url(source: &str) -> bool {
    let scheme = source.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|s| !s.contains('/'))
}

/// Flags that mean nothing here would be ignored in silence.
fn refuse_of_postgres(args: &RestoreArgs) -> Result<(), Failure> {
    let flags = [
        ("--dump", args.dump.is_some()),
        ("--into-new", args.into_new.is_some()),
        ("--into", args.into.is_some()),
        ("--table", !args.table.is_empty()),
        ("--globals", args.globals),
    ];
    match flags.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) => Err(Failure::new(
            2,
            format!("{flag} is for PostgreSQL targets"),
            Some("`lifeboat config show` lists the targets".into()),
        )),
    }
}

fn no_two_to_one_place(jobs: &[Job], others: &Others) -> Result<(), Failure> {
    let mut seen = std::collections::BTreeMap::new();
    let own = jobs.iter();
    let own = own.map(|job| (job.output.path().to_owned(), job.name.clone()));
    for (path, name) in own.chain(others.places()) {
        if let Some(other) = seen.insert(path.clone(), name.clone()) {
            return Err(Failure::new(
                2,
                format!(
                    "{other} and {name} would both be restored to {}; nothing was changed",
                    path.display()
                ),
                Some("restore them one by one, each with its own -o".into()),
            ));
        }
    }
    Ok(())
}

/// Plans from every store that answers.
async fn sources(
    job: &mut Job,
    args: &RestoreArgs,
    config: Option<&Config>,
    mut goal: Goal,
) -> Result<Vec<Source>, Failure> {
    if args.last_good {
        let path = job.output.path();
        if matches!(job.output, Output::New(_)) && path.exists() {
            return Err(RestoreError::from(SwapError::Exists(path.to_owned())).into());
        }
        (goal, job.tried) = options::newest_good(&job.name, &job.stores, path, args).await?;
    }
    let mut found = Vec::new();
    let mut first_failure = None;
    // The newest file behind a hole in a chain, and what was said of it.
    let mut torn: Option<(Txid, Failure)> = None;
    for store in &job.stores {
        let source = async {
            let goal = match &args.label {
                Some(label) => super::labels::goal(store, label, config, args.all).await?,
                None => goal,
            };
            Ok::<_, Failure>((goal, planned(store, goal).await))
        };
        let source = match source.await {
            Ok((goal, Ok((plan, _)))) => Ok(Source {
                store: store.clone(),
                goal,
                plan,
            }),
            Ok((_, Err(error))) => {
                if let RestoreError::Hole(hole) = &error
                    && torn
                        .as_ref()
                        .is_none_or(|(newest, _)| *newest < hole.newest)
                {
                    torn = Some((hole.newest, RestoreError::Hole(*hole).into()));
                }
                Err(error.into())
            }
            Err(failure) => Err(failure),
        };
        match source {
            Ok(source) => found.push(source),
            Err(failure) => {
                if job.stores.len() > 1 {
                    eprintln!("{}: {}: {}", job.name, store.display(), failure.message);
                }
                first_failure.get_or_insert(failure);
            }
        }
    }
    // Stable: of equal points the first store's.
    found.sort_by_key(|s| std::cmp::Reverse((s.plan.as_of(), s.plan.txid())));
    let Some(best) = found.first() else {
        return first_failure.map_or(Ok(found), Err);
    };
    // Another store is as good only if it reaches as far.
    match (torn, best.plan.txid()) {
        (Some((newest, mut failure)), Some(txid)) if txid < newest => {
            failure.hint = Some(format!(
                "to have the last point that can be restored, from {}: --txid {txid}",
                best.store.display()
            ));
            Err(failure)
        }
        _ => Ok(found),
    }
}

fn goal(args: &RestoreArgs, tz: jiff::tz::TimeZone) -> Result<Goal, Failure> {
    let usage =
        |text: String| Failure::new(2, text, Some("`lifeboat list` shows what there is".into()));
    if let Some(at) = &args.at {
        return match parse_time(at, jiff::Timestamp::now(), &tz) {
            Ok(time) => Ok(Goal::At(time)),
            Err(e) => Err(usage(format!("--at: {e}"))),
        };
    }
    if let Some(txid) = &args.txid {
        let parsed = u64::from_str_radix(txid, 16).ok().and_then(Txid::new);
        return parsed
            .map(Goal::Txid)
            .ok_or_else(|| usage(format!("--txid: \"{txid}\" is no hexadecimal TXID")));
    }
    Ok(Goal::Newest)
}

fn find<'a>(config: &'a Config, source: &str) -> Result<&'a TargetConfig, Failure> {
    let path = std::path::absolute(source).unwrap_or_else(|_| source.into());
    let real = path.canonicalize().unwrap_or_else(|_| path.clone());
    let found = config
        .targets
        .iter()
        .find(|t| t.name == source || t.path == path || t.path == real);
    found.ok_or_else(|| {
        let names: Vec<&str> = config.targets.iter().map(|t| t.name.as_str()).collect();
        let hint = format!("targets are: {}; or give a replica's URL", names.join(", "));
        Failure::new(
            2,
            format!("no target is named \"{source}\", and none has that path"),
            Some(hint),
        )
    })
}

async fn from_url(url: &str, args: &RestoreArgs) -> Result<Job, Failure> {
    let spec = StoreSpec::from_text(url)?;
    let store = Store::open(&spec).await?;
    let output = args.output.clone().ok_or_else(|| {
        Failure::new(
            2,
            "restoring from a URL needs a place",
            Some("add -o PATH".into()),
        )
    })?;
    Ok(Job {
        name: url.to_owned(),
        stores: vec![store],
        output: Output::New(output),
        tried: Vec::new(),
    })
}

async fn job(target: &TargetConfig, args: &RestoreArgs, all: bool) -> Result<Job, Failure> {
    let mut stores = Vec::new();
    let mut failed = None;
    let own = match &args.from {
        Some(url) => {
            stores.push(Store::open(&StoreSpec::from_text(url)?).await?);
            &[]
        }
        None => target.options.stores.as_slice(),
    };
    for store in own {
        match open_replica(store, &target.name).await {
            Ok(store) => stores.push(store),
            Err(error) => {
                eprintln!("{}: {error}", target.name);
                failed.get_or_insert(error);
            }
        }
    }
    if let (Some(error), true) = (failed, stores.is_empty()) {
        return Err(error.into());
    }
    let output = match &args.output {
        Some(folder) if all => {
            Output::New(folder.join(target.path.file_name().unwrap_or_default()))
        }
        Some(path) => Output::New(path.clone()),
        None if args.in_place || args.undo => Output::InPlace(target.path.clone()),
        None => Output::New(target.path.clone()),
    };
    Ok(Job {
        name: target.name.clone(),
        stores,
        output,
        tried: Vec::new(),
    })
}

/// Whether it was restored; not, with --if-replica-exists, if the replica vanished meanwhile.
async fn one(
    global: &Global,
    args: &RestoreArgs,
    config: Option<&Config>,
    job: Job,
    sources: Vec<Source>,
    edit: &Edit,
) -> Result<bool, Failure> {
    let path = job.output.path().to_owned();
    if args.undo && args.dry_run {
        let back = kept_for_undo(&path).map_err(RestoreError::from)?;
        println!(
            "{}: {} would be put back; nothing was changed",
            job.name,
            back.display()
        );
        return Ok(true);
    }
    if let (Some(config), Output::InPlace(_), false) = (config, &job.output, args.dry_run) {
        pin_present(config, &job.name, &path).await;
    }
    // The daemon lets go of the database until this ends.
    let _released = match (config, &job.output) {
        (Some(config), Output::InPlace(_)) if !args.dry_run => release(config, &job.name).await?,
        _ => None,
    };
    if args.undo {
        let (back, kept) = undo(&path, system_now()).map_err(RestoreError::from)?;
        println!(
            "{}: {} is back; the database that it replaced is {}",
            job.name,
            back.display(),
            kept.display()
        );
        return Ok(true);
    }
    if args.dry_run {
        dry_run(global, &job, &sources)?;
        if !global.json {
            options::announce(&job.name, edit);
        }
        return Ok(true);
    }
    if let Some(folder) = path
        .parent()
        .filter(|p| args.all && !p.as_os_str().is_empty())
    {
        std::fs::create_dir_all(folder)
            .map_err(|e| Failure::new(1, format!("{}: {e}", folder.display()), None))?;
    }
    let report = match from_any(&job, sources, options::verify(args), edit).await {
        Err(RestoreError::Plan(e)) if args.if_replica_exists => {
            println!("{}: {e}; nothing to do", job.name);
            return Ok(false);
        }
        result => result?,
    };
    if global.json {
        let value = json!({
            "target": job.name, "path": path, "txid": report.plan.txid().map(|t| t.to_string()), "as_of": report.plan.as_of().to_string(),
            "bytes": report.bytes, "files": report.plan.objects().len(), "checksum": format!("{:016x}", report.checksum.get()),
            "checksum_recorded": report.checksum_known, "edited": report.edited, "tried": tried(&job), "kept": report.kept, "seconds": report.took.as_secs_f64(),
        });
        println!("{value}");
        return Ok(true);
    }
    println!(
        "{}: {} is the database at {} ({} bytes from {} files in {:.1} s; checksum {})",
        job.name,
        path.display(),
        report.plan.point(),
        report.bytes,
        report.plan.objects().len(),
        report.took.as_secs_f64(),
        if report.checksum_known {
            "equals the recorded one"
        } else {
            "not recorded by the replica"
        },
    );
    if let (Some(newest), true) = (job.tried.first(), args.last_good) {
        match newest.wrong {
            None => println!("{}: this is the newest point, and it is sound", job.name),
            Some(_) => println!(
                "{}: the newest sound point of {} that were tried; what was committed later is not in it",
                job.name,
                job.tried.len()
            ),
        }
    }
    options::tell(&job.name, &report.edited, args);
    if let Some(kept) = report.kept {
        println!(
            "{}: the old database is kept as {}; `lifeboat restore {} --undo` swaps it back",
            job.name,
            kept.display(),
            job.name
        );
    }
    Ok(true)
}

fn tried(job: &Job) -> Vec<serde_json::Value> {
    let one = |t: &Tried| json!({ "txid": t.point.txid.to_string(), "at": t.point.at.to_string(), "wrong": t.wrong });
    job.tried.iter().map(one).collect()
}

/// What is there now stays restorable from the store, too. At 3 a.m. a store or database that does not allow it must not stop a restore: the
/// old files are kept beside the database in any case.
async fn pin_present(config: &Config, name: &str, path: &Path) {
    if !path.exists() {
        return;
    }
    let wanted = Wanted {
        targets: vec![name.to_owned()],
        label: labels::auto("before-restore", system_now()),
        version: None,
        timeout_ms: PIN_TIMEOUT_MS,
    };
    let timeout = Duration::from_millis(PIN_TIMEOUT_MS);
    let why = match super::snapshot::anywhere(config.clone(), wanted, timeout).await {
        Ok(done) => match (done.label, done.targets.into_iter().find_map(|t| t.error)) {
            (Some(label), None) => {
                eprintln!("{name}: what is there now is pinned as {label}");
                return;
            }
            (_, Some(error)) => error,
            (None, None) => done.error.unwrap_or_else(|| "no answer".into()),
        },
        Err(failure) => failure.message,
    };
    eprintln!(
        "{name}: what is there now could not be pinned in the store ({why}); the old files are kept beside the database"
    );
}

async fn release(config: &Config, name: &str) -> Result<Option<Client>, Failure> {
    let failed = |why: String| {
        Failure::new(
            4,
            format!("the daemon did not let go of {name}: {why}; nothing was changed"),
            Some("stop it, then restore again".into()),
        )
    };
    let Some(mut client) = Client::connect(&socket_path(config))
        .await
        .map_err(|e| failed(e.to_string()))?
    else {
        return Ok(None);
    };
    let answer = client
        .ask(&Request::Release {
            target: name.to_owned(),
        })
        .await
        .map_err(|e| failed(e.to_string()))?;
    match answer.targets.into_iter().find_map(|t| t.error) {
        Some(error) => Err(failed(error)),
        None => Ok(Some(client)),
    }
}

/// From the best store; where it fails, from another one that holds the same point. An older point is for a person to choose.
async fn from_any(
    job: &Job,
    sources: Vec<Source>,
    verify: Verify,
    edit: &Edit,
) -> Result<Report, RestoreError> {
    let mut sources = sources.into_iter().peekable();
    loop {
        let source = sources.next().ok_or(PlanError::Empty)?;
        let (bar, output) = (progress(), job.output.clone());
        let ticks = bar.clone();
        let count = move |n| ticks.inc(n);
        let (store, goal, now) = (&source.store, source.goal, system_now());
        let edit = edit.clone();
        let result =
            crate::restore::restore_edited(store, goal, output, verify, edit, now, count).await;
        bar.finish_and_clear();
        let is_stores_fault = matches!(
            result,
            Err(RestoreError::Store(_)
                | RestoreError::Corrupt { .. }
                | RestoreError::Hole(_)
                | RestoreError::Checksum { .. })
        );
        let same = |other: &Source| {
            source.plan.txid().is_some() && other.plan.txid() == source.plan.txid()
        };
        match result {
            Err(error) if is_stores_fault && sources.peek().is_some_and(same) => {
                eprintln!(
                    "{}: {}: {error}; trying the next store, which holds the same point",
                    job.name,
                    store.display()
                );
            }
            result => return result,
        }
    }
}

fn dry_run(global: &Global, job: &Job, sources: &[Source]) -> Result<(), Failure> {
    let Some(Source { store, plan, .. }) = sources.first() else {
        return Ok(());
    };
    let objects = plan.objects();
    let bytes: u64 = objects.iter().map(|o| o.1).sum();
    let path = job.output.path();
    if matches!(job.output, Output::New(_)) && path.exists() {
        return Err(RestoreError::from(SwapError::Exists(path.to_owned())).into());
    }
    if global.json {
        let files: Vec<_> = objects
            .iter()
            .map(|(name, bytes)| json!({ "file": name, "bytes": bytes }))
            .collect();
        println!(
            "{}",
            json!({ "target": job.name, "store": store.display(), "txid": plan.txid().map(|t| t.to_string()), "as_of": plan.as_of().to_string(), "bytes": bytes, "files": files })
        );
        return Ok(());
    }
    println!(
        "{}: {} to {}: {bytes} bytes to read from {}",
        job.name,
        plan.point(),
        path.display(),
        store.display(),
    );
    for (name, bytes) in &objects {
        println!("  {name} {bytes} bytes");
    }
    Ok(())
}

fn progress() -> indicatif::ProgressBar {
    if std::io::stderr().is_terminal() {
        indicatif::ProgressBar::new_spinner()
    } else {
        indicatif::ProgressBar::hidden()
    }
}
