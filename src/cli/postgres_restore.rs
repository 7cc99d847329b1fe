//! `lifeboat restore` of a target that is dumped.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;

use jiff::Timestamp;

use super::args::{Global, RestoreArgs};
use super::postgres::split;
use super::postgres_choose::find;
use super::postgres_work::{Place, Step, aside_of, kept, say, told, undo, work};
use super::restore::Changed;
use super::restore_all::{Planned, leave};
use super::restore_options::script;
use super::{Failure, ok, restore_undo};
use crate::config::{Config, OnDeploy};
use crate::daemon::postgres::{Ask, Database, blocking};
use crate::postgres::PostgresError;
use crate::postgres::{self, Connection, Manifest};
use crate::store::{Store, StoreSpec};

/// A restore whose dump was found.
pub(super) struct Job {
    database: Database,
    /// How the live database is reached; `None` for Redis.
    live: Option<Connection>,
    /// `None`: swap the kept database back.
    dump: Option<(Manifest, Vec<Store>, Place)>,
    /// When that was replaced.
    replaced: Option<String>,
}

impl Job {
    pub(super) fn name(&self) -> &str {
        &self.database.name
    }

    /// When what an undo would put back was replaced.
    pub(super) fn replaced(&self) -> Option<&str> {
        self.replaced.as_deref()
    }

    /// The file that it writes, and the target's name.
    pub(super) fn file(&self) -> Option<(PathBuf, String)> {
        match &self.dump {
            Some((_, _, Place::File(path))) => Some((path.clone(), self.database.name.clone())),
            _ => None,
        }
    }

    /// The live database that another one takes the place of.
    fn swapped(&self) -> Option<String> {
        match &self.dump {
            None | Some((_, _, Place::Live)) => self.live.as_ref().map(Connection::display),
            Some(_) => None,
        }
    }

    /// Does everything but the last step: a live database is not touched.
    pub(super) async fn prepare(
        self,
        global: &Global,
        args: &RestoreArgs,
    ) -> Result<Ready, Failure> {
        let Self {
            database,
            live,
            dump,
            ..
        } = self;
        let Some((manifest, stores, place)) = dump else {
            let live = live.map_or_else(|| database.connection().cloned(), Ok)?;
            return Ok(Ready {
                database,
                next: Next::Undo(live),
            });
        };
        say(global, &database, &manifest, &place, args.dry_run);
        let dump = Box::new(manifest.clone());
        let step = match args.dry_run {
            true => None,
            false => {
                if let (true, Place::File(path)) = (args.all, &place)
                    && let Some(folder) = path.parent()
                {
                    std::fs::create_dir_all(folder)
                        .map_err(|e| Failure::new(1, format!("{}: {e}", folder.display()), None))?;
                }
                Some(work(&database, manifest, stores, place, live, args).await?)
            }
        };
        Ok(Ready {
            database,
            next: Next::Finish(dump, step),
        })
    }
}

/// A restore with nothing but its last step left to do.
pub(super) struct Ready {
    database: Database,
    next: Next,
}

enum Next {
    Undo(Connection),
    /// Of this dump; `None` for a dry run.
    Finish(Box<Manifest>, Option<Step>),
}

impl Ready {
    pub(super) fn name(&self) -> &str {
        &self.database.name
    }

    /// Does it; returns what to say of it.
    ///
    /// # Errors
    /// The live database is as it was then, unless `changed` says that this is not certain: the answer to a COMMIT may be lost.
    pub(super) async fn finish(
        self,
        global: &Global,
        args: &RestoreArgs,
        changed: &mut Changed,
    ) -> Result<String, Failure> {
        let before = changed.0;
        changed.0 |= !args.dry_run;
        let result = self.end(global, args).await;
        if result.as_ref().is_err_and(|f| matches!(f.code, 3 | 4)) {
            // Refused before anything was done.
            changed.0 = before;
        }
        result
    }

    async fn end(self, global: &Global, args: &RestoreArgs) -> Result<String, Failure> {
        let Self { database, next } = self;
        match next {
            Next::Undo(live) => {
                undo(global, &database, live, args.dry_run).await?;
                let what = if args.dry_run { "" } else { " undone" };
                Ok(format!("target={}{what}", database.name))
            }
            Next::Finish(manifest, step) => {
                if let Some(step) = step {
                    told(global, &database, &manifest, &step.finish().await?);
                }
                Ok(format!("target={} dump={}", database.name, manifest.id))
            }
        }
    }

    /// Takes away what was made.
    pub(super) async fn discard(self) {
        if let Next::Finish(_, Some(step)) = self.next {
            step.discard().await;
        }
    }
}

fn live_of(database: &Database) -> Option<Connection> {
    let own = database.connection().ok()?;
    let other = database.server.restore.as_ref();
    Some(other.map_or_else(|| own.clone(), |r| r.with_database(own.database())))
}

pub(super) async fn restore(
    global: &Global,
    config: &Config,
    name: &str,
    args: &RestoreArgs,
    changed: &mut Changed,
) -> Result<(), Failure> {
    let mut database = one(config, name).await?;
    if let Some(url) = &args.from {
        // Only read: another's dumps, as of production.
        database.stores = vec![Store::open(&StoreSpec::from_text(url)?).await?];
    }
    let dump = match args.undo {
        true => None,
        false => match find(config, &database, args).await {
            Err(failure) if args.if_replica_exists && failure.code == 3 => {
                leave(global, &database.name, "absent", &failure.message);
                ok(&format!(
                    "restore target={} nothing-to-restore",
                    database.name
                ));
                return Ok(());
            }
            found => {
                let (manifest, stores) = found?;
                let place = place(&database, args)?;
                after_sql(&database.name, &place, args)?;
                Some((manifest, stores, place))
            }
        },
    };
    let live = live_of(&database);
    let job = Job {
        database,
        live,
        dump,
        replaced: None,
    };
    let ready = job.prepare(global, args).await?;
    restore_undo::begin(config, args);
    let words = ready.finish(global, args, changed).await?;
    let note = if args.dry_run { " dry-run" } else { "" };
    ok(&format!("restore {words}{note}"));
    Ok(())
}

/// Whether there is a database that the SQL can run on.
fn after_sql(name: &str, place: &Place, args: &RestoreArgs) -> Result<(), Failure> {
    let Some(script) = script(args)? else {
        return Ok(());
    };
    if matches!(place, Place::File(_) | Place::Tables(..)) {
        return Err(Failure::new(
            2,
            "--after-sql changes a whole PostgreSQL database; nothing was changed",
            Some("restore with --in-place, --into-new NAME or --into URL".into()),
        ));
    }
    if args.dry_run {
        println!("{name}: then {} would be run on it", script.name);
    }
    Ok(())
}

/// Every database of the configuration, for `--all`. Without a place only databases that are not there are restored.
pub(super) async fn plan_all(
    config: &Config,
    args: &RestoreArgs,
) -> Result<Vec<Planned<Job>>, Failure> {
    let (mut all, mut seen) = (Vec::new(), BTreeMap::<String, String>::new());
    for database in split(config, &[]).databases(config, Ask::Stores).await? {
        let name = database.name.clone();
        let planned = plan(config, database, args).await;
        let planned = planned.map_err(|failure| failure.of(&name))?;
        // Two targets may dump one database: what the first put there is not for the second to replace, nor an undo to be undone.
        let swapped = match &planned {
            Planned::Job(job) => job.swapped(),
            _ => None,
        };
        let first = swapped.and_then(|live| match seen.entry(live) {
            Entry::Occupied(first) => Some(first.get().clone()),
            Entry::Vacant(free) => {
                free.insert(name.clone());
                None
            }
        });
        all.push(match first {
            Some(first) => Planned::Absent(name, format!("its database is that of {first}, too")),
            None => planned,
        });
    }
    Ok(all)
}

async fn plan(
    config: &Config,
    database: Database,
    args: &RestoreArgs,
) -> Result<Planned<Job>, Failure> {
    let (name, live) = (database.name.clone(), live_of(&database));
    if live.is_none() && args.output.is_none() {
        return Ok(Planned::Absent(
            name,
            "left as it is: Redis is restored to a file, with `-o`".into(),
        ));
    }
    let place = match &args.output {
        Some(folder) => {
            let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
            // A database's own name may hold anything.
            let file: String = name
                .chars()
                .map(|c| if c == '/' || c == '\0' { '_' } else { c })
                .collect();
            Place::File(folder.join(format!("{file}.{}", database.origin.kind().extension())))
        }
        None => Place::Live,
    };
    if let (true, Some(server)) = (args.undo, &live) {
        let replaced = match kept(&database, server).await {
            Ok(kept) if kept.is_by_undo() => {
                return Ok(Planned::Absent(
                    name,
                    "its last restore is undone already".into(),
                ));
            }
            Ok(kept) => Some(kept.at),
            Err(PostgresError::Nothing(why)) => {
                return Ok(Planned::Absent(name, why));
            }
            Err(error) => return Err(error.into()),
        };
        return Ok(Planned::Job(Job {
            database,
            live,
            dump: None,
            replaced,
        }));
    }
    // Without a dump the server need not even be there.
    let (manifest, stores) = match find(config, &database, args).await {
        Ok(found) => found,
        Err(failure) if failure.code == 3 && args.if_replica_exists => {
            return Ok(Planned::Absent(name, failure.message));
        }
        // A snapshot of all leaves it out on purpose.
        Err(failure)
            if failure.code == 3
                && args.label.is_some()
                && database.server.on_deploy == OnDeploy::Skip =>
        {
            let why = format!(
                "left as it is: {}, and `on-deploy: skip` keeps it out of snapshots",
                failure.message
            );
            return Ok(Planned::Absent(name, why));
        }
        // What is there is left alone, whatever became of its dumps.
        Err(failure)
            if failure.code == 5
                && args.if_not_exists
                && matches!(place, Place::Live)
                && is_full(&database, &live).await.unwrap_or(false) =>
        {
            tracing::error!(
                target_name = name,
                reason = failure.message,
                hint = failure.hint,
                "the database is there, and its backup is damaged"
            );
            return Ok(Planned::Exists(name, "it exists".into()));
        }
        Err(failure) => return Err(failure),
    };
    let is_there = match &place {
        Place::File(path) => path.exists(),
        _ if args.in_place => false,
        _ => is_full(&database, &live).await?,
    };
    if is_there && args.if_not_exists {
        return Ok(Planned::Exists(name, "it exists".into()));
    }
    if is_there {
        return Err(Failure::new(
            4,
            format!("{name} exists; nothing was changed"),
            Some("--in-place replaces it and keeps the old one; -o FOLDER writes files; --if-not-exists leaves it alone".into()),
        ));
    }
    Ok(Planned::Job(Job {
        database,
        live,
        dump: Some((manifest, stores, place)),
        replaced: None,
    }))
}

/// Whether the live database is there and has anything in it.
async fn is_full(database: &Database, live: &Option<Connection>) -> Result<bool, Failure> {
    let Some(live) = live.clone() else {
        return Ok(false);
    };
    let clients = database.clients(&aside_of(database, &live).await?).await?;
    Ok(blocking(move || postgres::has_data(&clients, &live)).await?)
}

async fn one(config: &Config, name: &str) -> Result<Database, Failure> {
    let mut all = split(config, &[name.to_owned()])
        .databases(config, Ask::Stores)
        .await?;
    match (all.pop(), all.is_empty()) {
        (Some(database), true) => Ok(database),
        (None, _) => Err(Failure::new(
            3,
            format!("no database of {name} was dumped yet"),
            Some("`lifeboat status` says why".into()),
        )),
        (Some(last), false) => {
            let names = all.iter().chain([&last]).map(|d| d.name.as_str());
            Err(Failure::new(
                2,
                format!("{name} has several databases; nothing was changed"),
                Some(format!(
                    "name one of: {}",
                    names.collect::<Vec<_>>().join(", ")
                )),
            ))
        }
    }
}

fn place(database: &Database, args: &RestoreArgs) -> Result<Place, Failure> {
    let usage = |text: String, hint: &str| Failure::new(2, text, Some(hint.into()));
    if let Some(path) = args
        .output
        .as_ref()
        .filter(|_| database.connection().is_err())
    {
        return Ok(Place::File(
            std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        ));
    }
    let live = database.connection()?.database();
    if !args.table.is_empty() {
        let own = || {
            let now = Timestamp::now().strftime("%Y%m%dt%H%M%Sz");
            let short: String = live.chars().take(20).collect();
            format!("{short}_tables_{now}")
        };
        let name = args.into_new.clone().unwrap_or_else(own);
        return Ok(Place::Tables(name, args.table.clone()));
    }
    match (&args.into_new, &args.into, &args.output, args.in_place) {
        (Some(name), ..) if name == live => Err(usage(
            format!("{name} is the live database"),
            "--in-place replaces it, and keeps the old one",
        )),
        (Some(name), ..) => Ok(Place::New(name.clone())),
        (_, Some(url), ..) => Connection::from_url(url)
            .map(Place::Url)
            .map_err(Failure::from),
        (_, _, Some(path), _) => Ok(Place::File(
            std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        )),
        (.., true) => Ok(Place::Live),
        _ => Err(usage(
            format!("where should \"{}\" be restored?", database.name),
            "add --in-place (keeps the old database), --into-new NAME, --into URL or -o FILE",
        )),
    }
}
