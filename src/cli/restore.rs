//! `lifeboat restore`: which databases, to where, from which store. Everything is planned before the first is read.

use std::path::Path;

use super::absent::with_absent;
use super::args::{Global, RestoreArgs};
use super::restore_all::{Counts, Others, leave};
use super::restore_one::{Pinned, Prepared, blocking, prepared};
use super::restore_options as options;
use super::restore_room::room_for_all;
use super::restore_sources::{from_url, job, sources};
use super::{Failure, load_for, ok, restore_undo};
use crate::config::{Config, TargetConfig, parse_time};
use crate::daemon::fleet::system_now;
use crate::daemon::postgres::Ask;
use crate::daemon::raise_file_limit;
use crate::restore::plan::Goal;
use crate::restore::swap::{hold, kept_for_undo};
use crate::restore::{Output, Planned, RestoreError, Tried};
use crate::store::Store;
use crate::types::Txid;

pub(super) struct Job {
    pub(super) name: String,
    /// Those that could be opened.
    pub(super) stores: Vec<Store>,
    /// Why others could not.
    pub(super) unopened: Option<Failure>,
    pub(super) output: Output,
    /// What was looked at for the last good point.
    pub(super) tried: Vec<Tried>,
}

/// What a job reads, the best first: the newest point, and of equal ones the first store.
pub(super) struct Source {
    pub(super) store: Store,
    pub(super) goal: Goal,
    pub(super) plan: Planned,
}

/// Ends with a line for programs: `lifeboat: ok restore`, or `lifeboat: failed restore changed=no`: only then it is sure that everything is as
/// it was.
pub(super) async fn restore(global: &Global, args: RestoreArgs) -> Result<(), Failure> {
    let mut changed = Changed(false);
    let mut pins = Pins::default();
    let result = run(global, args, &mut changed, &mut pins).await;
    if result.is_err() {
        if let (false, Some(config)) = (changed.0, &pins.config) {
            for pin in pins.all {
                pin.take_back(config).await;
            }
        }
        let word = if changed.0 { "maybe" } else { "no" };
        println!("lifeboat: failed restore changed={word}");
    }
    result
}

/// What was pinned before it is replaced, and where.
#[derive(Default)]
struct Pins {
    config: Option<Config>,
    all: Vec<Pinned>,
}

/// Whether something may be in place that was not there before.
pub(super) struct Changed(pub(super) bool);

async fn run(
    global: &Global,
    mut args: RestoreArgs,
    changed: &mut Changed,
    pins: &mut Pins,
) -> Result<(), Failure> {
    // All databases of `--all` are open at once.
    raise_file_limit();
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
    one_moment(global, &mut args, &tz);
    if let (Some(config), Some(source)) = (&config, &args.source)
        && let Some(files) = config.files.iter().find(|f| f.name == *source)
    {
        options::refuse_of_sqlite(&args, false)?;
        changed.0 = !args.dry_run;
        return super::files::restore(global, config, files, &args).await;
    }
    if let (Some(config), Some(source)) = (&config, &args.source)
        && super::postgres::is_target(config, source)
    {
        options::refuse_of_sqlite(&args, true)?;
        return super::postgres_restore::restore(global, config, source, &args, changed).await;
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
            if let Some(label) = &args.label {
                let wanted = |job: &&Job| !args.if_not_exists || !job.output.path().exists();
                let stores = jobs.iter().filter(wanted).flat_map(|job| &job.stores);
                let mut stores: Vec<Store> = stores.cloned().collect();
                // A set without SQLite.
                if config.targets.is_empty() {
                    let dumps = super::postgres::split(config, &[]);
                    let dumps = dumps.databases(config, Ask::Stores).await?;
                    stores.extend(dumps.into_iter().flat_map(|d| d.stores));
                }
                super::labels::whole(stores.iter(), label, config).await?;
            }
            others = Others::plan(global, config, &args).await?;
            if others.count.targets > 0 && (args.last_good || args.after_sql.is_some()) {
                options::refuse_of_sqlite(&args, false)?;
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
    let mut alone = Vec::new();
    for mut job in jobs {
        let mut was_blank = false;
        if args.if_not_exists && job.output.path().exists() {
            let path = job.output.path().to_owned();
            if args.output.is_some() || !is_blank(&path) {
                let why = format!("{} exists", path.display());
                leave(global, &job.name, "exists", &why);
                existing += 1;
                continue;
            }
            // In its own place: an app that looked for its database left it, and would begin with it. Whoever has it open now is met as at any
            // database.
            job.output = Output::InPlace(path);
            was_blank = true;
        }
        // From before anything is looked at: what another restore puts in place meanwhile would be replaced by this one, and be what --undo goes
        // back to.
        let is_placed = matches!(job.output, Output::InPlace(_)) && !args.dry_run;
        if is_placed && !was_blank {
            alone.extend(hold(job.output.path()).map_err(RestoreError::from)?);
        }
        if args.undo {
            planned.push((job, Vec::new()));
            continue;
        }
        match sources(&mut job, &args, config.as_ref(), goal).await {
            Ok(sources) => {
                let path = job.output.path();
                // There is something to restore, so whoever else starts now may be at it, or be done.
                if is_placed && was_blank {
                    alone.extend(hold(path).map_err(RestoreError::from)?);
                    if path.exists() && !is_blank(path) {
                        let why = format!("{} exists by now", path.display());
                        leave(global, &job.name, "exists", &why);
                        existing += 1;
                        continue;
                    }
                }
                planned.push((job, sources));
            }
            Err(failure) if args.if_replica_exists && failure.code == 3 => {
                leave(global, &job.name, "absent", &failure.message);
                absent += 1;
            }
            Err(failure) if args.all => return Err(failure.of(&job.name)),
            Err(failure) => return Err(failure),
        }
    }
    pins.config.clone_from(&config);
    let config = config.as_ref();
    match config {
        Some(config) if args.undo && args.source.is_none() => {
            planned = restore_undo::of_the_last_restore(global, config, planned, &mut others)?;
        }
        _ if args.undo => {
            for (job, _) in &planned {
                kept_for_undo(job.output.path()).map_err(RestoreError::from)?;
            }
        }
        _ => {}
    }
    if !args.dry_run && planned.len() > 1 {
        room_for_all(&planned).await?;
    }
    // All are read, proven and locked before the first is put in place: what stops one stops all while nothing has changed.
    let mut ready = Vec::new();
    for (job, sources) in planned {
        let name = job.name.clone();
        let one = prepared(global, &args, config, job, sources, &edit, &mut pins.all).await;
        match one.map_err(|failure| match args.all {
            true => failure.of(&name),
            false => failure,
        })? {
            Some(one) => ready.push(one),
            None => absent += 1,
        }
    }
    let ready = blocking(move || {
        for one in &mut ready {
            one.claim()?;
        }
        Ok(ready)
    })
    .await?;
    let is_nothing = ready.is_empty() && others.is_empty();
    // While the SQLite databases lie ready and locked, with nothing but a rename left to do.
    others.prepare(global, &args, changed).await?;
    if let (Some(config), false) = (config, is_nothing) {
        restore_undo::begin(config, &args);
    }
    let mut names = Vec::new();
    let count = put(global, &args, (ready, others), (changed, &mut names)).await;
    let count = count.map_err(|failure| with_names(failure, &names, &args))?;
    let done = names.len();
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

/// Puts everything in its place. Dumps come first: sessions may hold up their swap, and the SQLite databases are locked. `names` are those that
/// are done.
async fn put(
    global: &Global,
    args: &RestoreArgs,
    (ready, mut others): (Vec<Prepared>, Others),
    (changed, names): (&mut Changed, &mut Vec<String>),
) -> Result<Counts, Failure> {
    others.dumps(global, args, changed, names).await?;
    let now = system_now();
    for one in ready {
        changed.0 |= !args.dry_run;
        let name = one.name().to_owned();
        one.finish(global, args, now).await?;
        names.push(name);
    }
    others.files(global, args, changed, names).await?;
    Ok(others.count)
}

/// What failed says what became of itself, but nothing of the others.
fn with_names(mut failure: Failure, names: &[String], args: &RestoreArgs) -> Failure {
    if names.is_empty() || args.dry_run {
        return failure;
    }
    let word = if args.undo { "put back" } else { "restored" };
    let all = names.join(", ");
    failure.message = format!("{}; before that, {word}: {all}", failure.message);
    if args.in_place {
        let own = failure.hint.map(|h| format!("; {h}")).unwrap_or_default();
        failure.hint = Some(format!(
            "`lifeboat restore --all --undo` puts back what was replaced{own}"
        ));
    }
    failure
}

/// A file that SQLite made and nothing was ever written to, as PostgreSQL's image makes an empty database.
pub(super) fn is_blank(path: &Path) -> bool {
    let bytes = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        std::fs::metadata(name).map(|found| found.len())
    };
    let has_content = |suffix| bytes(suffix).is_ok_and(|length| length > 0);
    bytes("").is_ok_and(|length| length == 0) && !has_content("-wal") && !has_content("-journal")
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

/// `10m` ago is one moment for every target, however long some of them take to be planned. A dry run says which, so that what was looked at can be
/// restored by it later. What is no time is reported where it is used.
fn one_moment(global: &Global, args: &mut RestoreArgs, tz: &jiff::tz::TimeZone) {
    let now = jiff::Timestamp::now();
    let later = now.saturating_add(jiff::SignedDuration::from_secs(1));
    let Some(at) = &args.at else {
        return;
    };
    if parse_time(at, now, tz).is_ok_and(|moment| moment.0 > now.as_millisecond()) {
        eprintln!("lifeboat: --at {at} is in the future; restoring the newest");
    }
    let (Ok(moment), Ok(later)) = (
        parse_time(at, now, tz),
        later.map(|l| parse_time(at, l, tz)),
    ) else {
        return;
    };
    if later == Ok(moment) {
        return;
    }
    if args.dry_run && !global.json {
        println!("lifeboat: at {moment} ({at})");
    }
    args.at = Some(moment.to_string());
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
