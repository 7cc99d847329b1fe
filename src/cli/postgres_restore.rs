//! `lifeboat restore` of a PostgreSQL target.

use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::args::{Global, RestoreArgs};
use super::postgres::split;
use super::restore_all::Planned;
use super::{Failure, ok};
use crate::config::{Config, OnDeploy, parse_time};
use crate::daemon::fleet::system_now;
use crate::daemon::postgres::{Ask, Database, blocking};
use crate::labels::{self, Pin, age};
use crate::postgres::{self, Clients, Connection, Manifest, PostgresError, RestoreOptions, Source};
use crate::store::Store;
use crate::types::Millis;

/// Where to.
#[derive(Clone, PartialEq, Eq)]
enum Place {
    Live,
    New(String),
    Url(Connection),
    File(PathBuf),
    Tables(String, Vec<String>),
}

/// A restore whose dump was found.
pub(super) struct Job {
    database: Database,
    /// How the live database is reached.
    live: Connection,
    /// `None`: swap the kept database back.
    dump: Option<(Manifest, Vec<Store>, Place)>,
}

impl Job {
    /// The file that it writes, and the target's name.
    pub(super) fn file(&self) -> Option<(PathBuf, String)> {
        match &self.dump {
            Some((_, _, Place::File(path))) => Some((path.clone(), self.database.name.clone())),
            _ => None,
        }
    }

    /// Does it; returns what to say of it.
    pub(super) async fn run(self, global: &Global, args: &RestoreArgs) -> Result<String, Failure> {
        let Self {
            database,
            live,
            dump,
        } = self;
        let Some((manifest, stores, place)) = dump else {
            undo(global, &database, live).await?;
            return Ok(format!("target={} undone", database.name));
        };
        say(global, &database, &manifest, &place, args.dry_run);
        let id = manifest.id.clone();
        if !args.dry_run {
            if let (true, Place::File(path)) = (args.all, &place)
                && let Some(folder) = path.parent()
            {
                std::fs::create_dir_all(folder)
                    .map_err(|e| Failure::new(1, format!("{}: {e}", folder.display()), None))?;
            }
            let done = work(&database, manifest.clone(), stores, place, live, args).await?;
            told(global, &database, &manifest, &done);
        }
        Ok(format!("target={} dump={id}", database.name))
    }
}

fn live_of(database: &Database) -> Connection {
    database.server.restore.as_ref().map_or_else(
        || database.connection.clone(),
        |r| r.with_database(database.connection.database()),
    )
}

pub(super) async fn restore(
    global: &Global,
    config: &Config,
    name: &str,
    args: &RestoreArgs,
) -> Result<(), Failure> {
    let database = one(config, name).await?;
    let dump = match args.undo {
        true => None,
        false => match find(config, &database, args).await {
            Err(failure) if args.if_replica_exists && failure.code == 3 => {
                println!("{}: {}; nothing to do", database.name, failure.message);
                ok(&format!(
                    "restore target={} nothing-to-restore",
                    database.name
                ));
                return Ok(());
            }
            found => {
                let (manifest, stores) = found?;
                Some((manifest, stores, place(&database, args)?))
            }
        },
    };
    let live = live_of(&database);
    let job = Job {
        database,
        live,
        dump,
    };
    let words = job.run(global, args).await?;
    if !args.dry_run {
        ok(&format!("restore {words}"));
    }
    Ok(())
}

/// Every database of the configuration, for `--all`. Without a place only databases that are not there are restored.
pub(super) async fn plan_all(
    config: &Config,
    args: &RestoreArgs,
) -> Result<Vec<Planned<Job>>, Failure> {
    let mut all = Vec::new();
    for database in split(config, &[]).databases(config, Ask::Stores).await? {
        all.push(plan(config, database, args).await?);
    }
    Ok(all)
}

async fn plan(
    config: &Config,
    database: Database,
    args: &RestoreArgs,
) -> Result<Planned<Job>, Failure> {
    let (name, live) = (database.name.clone(), live_of(&database));
    let place = match &args.output {
        Some(folder) => {
            let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
            // A database's own name may hold anything.
            let file: String = name
                .chars()
                .map(|c| if c == '/' || c == '\0' { '_' } else { c })
                .collect();
            Place::File(folder.join(format!("{file}.pgc")))
        }
        None => Place::Live,
    };
    if args.undo {
        return Ok(Planned::Job(Job {
            database,
            live,
            dump: None,
        }));
    }
    // Without a dump the server need not even be there.
    let (manifest, stores) = match find(config, &database, args).await {
        Ok(found) => found,
        Err(failure) if failure.code == 3 && args.if_replica_exists => {
            return Ok(Planned::Absent(format!("{name}: {}", failure.message)));
        }
        // A snapshot of all leaves it out on purpose.
        Err(failure)
            if failure.code == 3
                && args.label.is_some()
                && database.server.on_deploy == OnDeploy::Skip =>
        {
            return Ok(Planned::Absent(format!(
                "{name}: left as it is: {}, and `on-deploy: skip` keeps it out of snapshots",
                failure.message
            )));
        }
        Err(failure) => return Err(failure),
    };
    let is_there = match &place {
        Place::File(path) => path.exists(),
        _ if args.in_place => false,
        _ => {
            let clients = database.clients(&aside_of(&database, &live).await?).await?;
            let live = live.clone();
            blocking(move || postgres::database_exists(&clients, &live)).await?
        }
    };
    if is_there && args.if_not_exists {
        return Ok(Planned::Exists(format!("{name}: it exists")));
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
    }))
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

/// The dump that is meant, and the stores that hold it. Stores that are away are passed over.
async fn find(
    config: &Config,
    database: &Database,
    args: &RestoreArgs,
) -> Result<(Manifest, Vec<Store>), Failure> {
    let before = match &args.at {
        Some(at) => {
            let usage = |e: &dyn std::fmt::Display| {
                let hint = Some("`lifeboat list` shows what there is".into());
                Failure::new(2, format!("--at: {e}"), hint)
            };
            let at = parse_time(at, Timestamp::now(), &config.time_zone).map_err(|e| usage(&e))?;
            Some(Timestamp::from_millisecond(at.0).map_err(|e| usage(&e))?)
        }
        None => None,
    };
    let mut found: Option<(Manifest, Vec<Store>)> = None;
    let mut why: Option<Failure> = None;
    for store in &database.stores {
        let chosen = choose(config, store, args, before).await;
        let manifest = match chosen {
            Ok(manifest) => manifest,
            Err(failure) => {
                tracing::warn!(
                    store = store.display(),
                    reason = failure.message,
                    "not restoring from this store"
                );
                why = why.filter(|w| w.code == 3).or(Some(failure));
                continue;
            }
        };
        match &mut found {
            Some((best, stores)) if best.id == manifest.id => stores.push(store.clone()),
            Some((best, _)) if best.began > manifest.began => {}
            _ => found = Some((manifest, vec![store.clone()])),
        }
    }
    found.ok_or_else(|| {
        why.unwrap_or_else(|| Failure::new(3, "there is no store to restore from", None))
    })
}

async fn choose(
    config: &Config,
    store: &Store,
    args: &RestoreArgs,
    before: Option<Timestamp>,
) -> Result<Manifest, Failure> {
    let mut all = postgres::list(store).await?;
    let pinned = match &args.label {
        Some(label) => {
            let known = labels::list(store).await?;
            let label = labels::find(&known, label, system_now())?;
            if args.all {
                super::labels::complete(label, config).await?;
            }
            match &label.pin {
                Pin::Postgres { dump } => Some(dump.clone()),
                other => {
                    return Err(nothing(format!(
                        "\"{}\" pins a {}",
                        label.label,
                        other.describe()
                    )));
                }
            }
        }
        None => args.dump.clone(),
    };
    if let Some(id) = pinned {
        let at = all.iter().position(|m| m.id == id);
        return match at {
            Some(at) => Ok(all.swap_remove(at)),
            None => Err(nothing(format!(
                "there is no dump {id} in {}",
                store.display()
            ))),
        };
    }
    match before {
        Some(time) => all
            .into_iter()
            .rfind(|m| m.began <= time)
            .ok_or_else(|| nothing(format!("no dump is as old as {time}"))),
        None => all
            .pop()
            .ok_or_else(|| nothing(format!("there is no dump in {}", store.display()))),
    }
}

fn nothing(what: String) -> Failure {
    Failure::new(
        3,
        format!("{what}; nothing was changed"),
        Some("`lifeboat list` shows what there is".into()),
    )
}

fn place(database: &Database, args: &RestoreArgs) -> Result<Place, Failure> {
    let usage = |text: String, hint: &str| Failure::new(2, text, Some(hint.into()));
    if !args.table.is_empty() {
        let own = || {
            let now = Timestamp::now().strftime("%Y%m%dt%H%M%Sz");
            let short: String = database.connection.database().chars().take(20).collect();
            format!("{short}_tables_{now}")
        };
        let name = args.into_new.clone().unwrap_or_else(own);
        return Ok(Place::Tables(name, args.table.clone()));
    }
    match (&args.into_new, &args.into, &args.output, args.in_place) {
        (Some(name), ..) if name == database.connection.database() => Err(usage(
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

/// What will be done, how old it is, and what is lost.
fn say(global: &Global, database: &Database, manifest: &Manifest, place: &Place, dry: bool) {
    let old = age(Millis(manifest.began.as_millisecond()), system_now());
    let to = match place {
        Place::Live => format!("the live database {}", database.connection.display()),
        Place::New(name) => format!("a new database {name}"),
        Place::Url(url) => url.display(),
        Place::File(path) => path.display().to_string(),
        Place::Tables(name, tables) => format!("{} in a new database {name}", tables.join(", ")),
    };
    if dry && global.json {
        println!(
            "{}",
            json!({ "target": database.name, "kind": "postgres", "dump": manifest, "to": to })
        );
    } else if dry {
        println!(
            "{}: would restore dump {} ({old} old; {} bytes to read) to {to}",
            database.name,
            manifest.id,
            manifest.stored_bytes()
        );
    } else {
        tracing::info!(
            target_name = database.name,
            dump = manifest.id,
            began = %manifest.began,
            to,
            "restoring a dump that is {old} old: changes after it are not in it"
        );
    }
    for anomaly in &manifest.anomalies {
        tracing::warn!(
            dump = manifest.id,
            anomaly,
            "this dump looks odd beside the one before it: `lifeboat list` shows others"
        );
    }
}

/// What was done: JSON for machines, lines for people.
struct Done(Value, Vec<String>);

async fn work(
    database: &Database,
    manifest: Manifest,
    stores: Vec<Store>,
    place: Place,
    live: Connection,
    args: &RestoreArgs,
) -> Result<Done, Failure> {
    let options = RestoreOptions {
        jobs: args.jobs,
        no_owner: args.no_owner,
        no_privileges: args.no_privileges,
        ..RestoreOptions::default()
    };
    let server = match &place {
        Place::Url(url) => url.clone(),
        _ => live,
    };
    let clients = match &place {
        Place::File(_) => None,
        Place::Url(url) => Some(clients_of(database, url).await?),
        _ => Some(
            database
                .clients(&aside_of(database, &server).await?)
                .await?,
        ),
    };
    let mut failure = None;
    // A dump that is damaged in one store may be whole in another.
    for store in stores {
        let source = Source {
            store,
            manifest: manifest.clone(),
            runtime: tokio::runtime::Handle::current(),
        };
        let (place, server, clients) = (place.clone(), server.clone(), clients.clone());
        let (stop, options, globals) = (options.stop.clone(), options.clone(), args.globals);
        let place_of = source.store.display();
        let mut work = Box::pin(blocking(move || {
            step(
                &source,
                &place,
                &server,
                clients.as_ref(),
                &options,
                globals,
            )
        }));
        let result = tokio::select! {
            result = &mut work => result,
            _ = tokio::signal::ctrl_c() => {
                stop.stop();
                // It drops what it made.
                return match work.await {
                    Ok(done) => Ok(done),
                    Err(_) => Err(Failure::new(1, "interrupted; the live database was not changed", None)),
                };
            }
        };
        match result {
            Ok(done) => return Ok(done),
            Err(error @ (PostgresError::Damaged { .. } | PostgresError::Store(_))) => {
                tracing::warn!(store = place_of, %error, "restoring from this store failed");
                failure = Some(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(failure.map_or_else(|| nothing("no store holds the dump".into()), Failure::from))
}

/// For another server its own major decides; the dump's clients are no measure.
async fn clients_of(database: &Database, url: &Connection) -> Result<Clients, PostgresError> {
    let aside = url.with_database("postgres");
    match database.clients(&aside).await {
        Err(PostgresError::Failed { .. }) => database.clients(url).await,
        other => other,
    }
}

fn step(
    source: &Source,
    place: &Place,
    server: &Connection,
    clients: Option<&Clients>,
    options: &RestoreOptions,
    with_globals: bool,
) -> Result<Done, PostgresError> {
    if let Place::File(path) = place {
        postgres::to_file(source, path)?;
        let line = format!(
            "{} holds the dump as pg_restore reads it: pg_restore -d DATABASE {0}",
            path.display()
        );
        let roles = match with_globals {
            true => postgres::globals(source)?,
            false => None,
        };
        if let Some(roles) = roles {
            let beside = path.with_extension("globals.sql");
            std::fs::write(&beside, roles)
                .map_err(|e| PostgresError::Io("writing the roles", e))?;
        }
        return Ok(Done(json!({ "path": path }), vec![line]));
    }
    let Some(clients) = clients else {
        return Err(PostgresError::Client("no client programs".into()));
    };
    if with_globals {
        apply_globals(source, server, clients)?;
    }
    match place {
        Place::File(_) => Err(PostgresError::Client("no server is needed".into())),
        Place::New(name) => {
            let checked = postgres::into_new(source, server, clients, name, options)?;
            let line = format!(
                "{name}: {} tables, {} rows counted and right",
                checked.tables, checked.rows
            );
            Ok(Done(
                json!({ "database": name, "checked": checked }),
                vec![line],
            ))
        }
        Place::Url(url) => {
            let checked = postgres::into_url(source, url, clients, options)?;
            let line = format!(
                "{}: {} tables, {} rows counted and right",
                url.display(),
                checked.tables,
                checked.rows
            );
            Ok(Done(
                json!({ "database": url.display(), "checked": checked }),
                vec![line],
            ))
        }
        Place::Live => {
            let done = postgres::in_place(source, server, clients, options, Timestamp::now())?;
            let mut lines = vec![format!(
                "{}: {} tables, {} rows counted and right, then swapped",
                server.database(),
                done.checked.tables,
                done.checked.rows
            )];
            if let Some(kept) = &done.kept {
                let quoted = kept.replace('"', "\"\"");
                lines.push(format!(
                    "the database that was replaced is kept as {kept}; --undo swaps it back"
                ));
                lines.push(format!(
                    "when it is not needed any more: DROP DATABASE \"{quoted}\""
                ));
            }
            Ok(Done(json!(done), lines))
        }
        Place::Tables(name, tables) => {
            let restored = postgres::tables(source, server, clients, name, tables, options)?;
            let lines = restored
                .iter()
                .map(|t| copy_back(name, server.database(), t));
            Ok(Done(
                json!({ "database": name, "tables": restored }),
                lines.collect(),
            ))
        }
    }
}

fn copy_back(name: &str, live: &str, t: &postgres::Restored) -> String {
    let shell = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let out = format!(
        r"\copy (SELECT {} FROM {} WHERE true) TO STDOUT",
        t.columns, t.table
    );
    let back = format!(r"\copy {} ({}) FROM STDIN", t.table, t.columns);
    format!(
        "{}: {} rows in database {name}; to copy rows back (edit the WHERE):\n    psql -d {} -c {} | psql -d {} -c {}",
        t.table,
        t.rows,
        shell(name),
        shell(&out),
        shell(live),
        shell(&back),
    )
}

/// Creates what is not there; what is there already is told and left.
fn apply_globals(
    source: &Source,
    server: &Connection,
    clients: &Clients,
) -> Result<(), PostgresError> {
    let Some(sql) = postgres::globals(source)? else {
        return Err(PostgresError::Nothing(
            "this dump has no roles with it; nothing was changed".into(),
        ));
    };
    let left = postgres::apply_globals(clients, server, &sql)?;
    tracing::info!(
        existing = left,
        "roles and tablespaces of the dump were created; those that existed were left as they are"
    );
    Ok(())
}

fn told(global: &Global, database: &Database, manifest: &Manifest, done: &Done) {
    if global.json {
        let mut value = json!({ "target": database.name, "kind": "postgres", "dump": manifest.id, "as_of": manifest.began });
        value["restored"] = done.0.clone();
        println!("{value}");
        return;
    }
    let old = age(Millis(manifest.began.as_millisecond()), system_now());
    println!(
        "{}: restored dump {} of {:.0}, {old} old; changes after it are not in it",
        database.name, manifest.id, manifest.began
    );
    for line in &done.1 {
        println!("{}: {line}", database.name);
    }
}

async fn undo(global: &Global, database: &Database, live: Connection) -> Result<(), Failure> {
    let clients = database.clients(&aside_of(database, &live).await?).await?;
    let connection = live.clone();
    let (back, away) =
        blocking(move || postgres::undo(&connection, &clients, Timestamp::now())).await?;
    if global.json {
        println!(
            "{}",
            json!({ "target": database.name, "kind": "postgres", "back": back, "kept": away })
        );
    } else {
        println!("{}: {back} is {} again", database.name, live.database());
        if let Some(away) = &away {
            println!(
                "{}: the database that it replaced is kept as {away}",
                database.name
            );
        }
    }
    Ok(())
}

/// A database of the server that can be asked although the live one may be gone.
async fn aside_of(database: &Database, live: &Connection) -> Result<Connection, PostgresError> {
    let aside = live.with_database("postgres");
    match database.clients(&aside).await {
        Ok(_) => Ok(aside),
        Err(PostgresError::Failed { .. }) => Ok(live.clone()),
        Err(other) => Err(other),
    }
}
