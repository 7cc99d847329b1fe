//! What a restore of a target that is dumped does once the dump and the place are known.

use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::args::{Global, QueueArg, RestoreArgs};
use super::postgres_choose::nothing;
use super::restore_options::script;
use super::{Failure, counted};
use crate::daemon::fleet::system_now;
use crate::daemon::postgres::{Database, blocking};
use crate::labels::age;
use crate::postgres::{
    self, AfterSql, Clients, Connection, Kind, Manifest, PostgresError, QueueJobs, RestoreOptions,
    Source,
};
use crate::restore::edit::Script;
use crate::store::Store;
use crate::types::Millis;

/// Where to.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The database that is dumped.
    Live,
    /// A new one on its server.
    New(String),
    /// Another one.
    Url(Connection),
    /// A file.
    File(PathBuf),
    /// Some tables in a new one.
    Tables(String, Vec<String>),
}

/// What will be done, how old it is, and what is lost.
pub(super) fn say(
    global: &Global,
    database: &Database,
    manifest: &Manifest,
    place: &Place,
    dry: bool,
) {
    let old = age(Millis(manifest.began.as_millisecond()), system_now());
    let to = match place {
        Place::Live => format!("the live database {}", database.origin.display()),
        Place::New(name) => format!("a new database {name}"),
        Place::Url(url) => url.display(),
        Place::File(path) => path.display().to_string(),
        Place::Tables(name, tables) => format!("{} in a new database {name}", tables.join(", ")),
    };
    if dry && global.json {
        println!(
            "{}",
            json!({ "target": database.name, "kind": manifest.kind, "dump": manifest, "to": to })
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
pub(super) struct Done(Value, Vec<String>);

impl Done {
    fn with_sql(mut self, options: &RestoreOptions) -> Self {
        if let Some(after) = &options.after {
            self.0["after_sql"] = json!(after.name);
            self.1.push(was_run(&after.name));
        }
        self
    }
}

fn was_run(script: &str) -> String {
    format!("{script} was run on it")
}

/// What came of the work.
pub(super) enum Step {
    /// All of it is done.
    Done(Done),
    /// A database is ready to take the live one's name.
    Ready(Box<postgres::Prepared>),
}

impl Step {
    /// What is left to do: a rename.
    pub(super) async fn finish(self) -> Result<Done, PostgresError> {
        match self {
            Self::Done(done) => Ok(done),
            Self::Ready(prepared) => {
                blocking(move || {
                    let name = prepared.database().to_owned();
                    let swapped = prepared.swap(Timestamp::now())?;
                    Ok(in_place(&name, &swapped))
                })
                .await
            }
        }
    }

    /// Takes away what was made, for something else went wrong.
    pub(super) async fn discard(self) {
        if let Self::Ready(prepared) = self {
            let _ = blocking(move || {
                drop(prepared);
                Ok(())
            })
            .await;
        }
    }
}

/// Everything but the swap of a live database.
pub(super) async fn work(
    database: &Database,
    manifest: Manifest,
    stores: Vec<Store>,
    place: Place,
    live: Option<Connection>,
    args: &RestoreArgs,
) -> Result<Step, Failure> {
    let options = RestoreOptions {
        jobs: args.jobs,
        no_owner: args.no_owner,
        no_privileges: args.no_privileges,
        queue: queue(args, &place)?,
        after: script(args)?.map(|Script { name, sql }| AfterSql { name, sql }),
        replace: args.in_place,
        ..RestoreOptions::default()
    };
    let server = match &place {
        Place::Url(url) => Some(url.clone()),
        _ => live,
    };
    let clients = match (&place, &server) {
        (Place::File(_), _) | (_, None) => None,
        (Place::Url(url), _) => Some(clients_of(database, url).await?),
        (_, Some(server)) => Some(database.clients(&aside_of(database, server).await?).await?),
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
                server.as_ref(),
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
                    Ok(Step::Done(done)) => Ok(Step::Done(done)),
                    left => {
                        if let Ok(ready) = left {
                            ready.discard().await;
                        }
                        Err(Failure::new(1, "interrupted; the live database was not changed", None))
                    }
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

/// Jobs wait by default when everything comes back, or comes from elsewhere: somebody else may have done them.
fn queue(args: &RestoreArgs, place: &Place) -> Result<QueueJobs, Failure> {
    let wanted = match args.queue {
        Some(QueueArg::Keep) => QueueJobs::Keep,
        Some(QueueArg::Paused) => QueueJobs::Paused,
        Some(QueueArg::Empty) => QueueJobs::Empty,
        None if args.all || args.from.is_some() => QueueJobs::Paused,
        None => QueueJobs::Keep,
    };
    match place {
        Place::Live => Ok(wanted),
        // A folder of everything: SQLite databases in it are held back, and a dump is as it was.
        _ if args.all || args.queue.is_none() => Ok(QueueJobs::Keep),
        _ => Err(Failure::new(
            2,
            "--queue holds back the jobs of a PostgreSQL database that is restored --in-place; nothing was changed",
            Some("leave it out, or restore with --in-place".into()),
        )),
    }
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
    server: Option<&Connection>,
    clients: Option<&Clients>,
    options: &RestoreOptions,
    with_globals: bool,
) -> Result<Step, PostgresError> {
    if let Place::File(path) = place {
        postgres::to_file(source, path)?;
        let lines = match source.manifest.kind {
            Kind::Postgres => vec![format!(
                "{} holds the dump as pg_restore reads it: pg_restore -d DATABASE {0}",
                path.display()
            )],
            Kind::Redis => start_redis(path, &source.manifest),
        };
        let roles = match with_globals {
            true => postgres::globals(source)?,
            false => None,
        };
        if let Some(roles) = roles {
            let beside = path.with_extension("globals.sql");
            std::fs::write(&beside, roles)
                .map_err(|e| PostgresError::Io("writing the roles", e))?;
        }
        return Ok(Step::Done(Done(json!({ "path": path }), lines)));
    }
    let (Some(clients), Some(server)) = (clients, server) else {
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
                "{name}: {}, {} counted and right",
                counted(checked.tables as u64, "table"),
                counted(checked.rows, "row")
            );
            let done = json!({ "database": name, "checked": checked });
            Ok(Step::Done(Done(done, vec![line]).with_sql(options)))
        }
        Place::Url(url) => {
            let checked = postgres::into_url(source, url, clients, options)?;
            let line = format!(
                "{}: {}, {} counted and right",
                url.display(),
                counted(checked.tables as u64, "table"),
                counted(checked.rows, "row")
            );
            let done = json!({ "database": url.display(), "checked": checked });
            Ok(Step::Done(Done(done, vec![line]).with_sql(options)))
        }
        Place::Live => postgres::prepare(source, server, clients, options, Timestamp::now())
            .map(|prepared| Step::Ready(Box::new(prepared))),
        Place::Tables(name, tables) => {
            let restored = postgres::tables(source, server, clients, name, tables, options)?;
            let lines = restored
                .iter()
                .map(|t| copy_back(name, server.database(), t));
            let done = json!({ "database": name, "tables": restored });
            Ok(Step::Done(Done(done, lines.collect())))
        }
    }
}

fn in_place(database: &str, done: &postgres::Swapped) -> Done {
    let mut lines = vec![format!(
        "{database}: {}, {} counted and right, then swapped",
        counted(done.checked.tables as u64, "table"),
        counted(done.checked.rows, "row")
    )];
    if done.sessions > 0 {
        let sessions = counted(done.sessions, "session");
        lines.push(format!(
            "the swap ended {sessions} of the database that was replaced: whoever had them connects again"
        ));
    }
    lines.extend(done.held.iter().map(held));
    lines.extend(done.after_sql.as_deref().map(was_run));
    if let Some(kept) = &done.kept {
        let quoted = kept.replace('"', "\"\"");
        lines.push(format!(
            "the database that was replaced is kept as {kept}; --undo swaps it back"
        ));
        lines.push(format!(
            "when it is not needed any more: DROP DATABASE \"{quoted}\""
        ));
    }
    Done(json!(done), lines)
}

/// What was done to jobs of Solid Queue, and how they go on.
fn held(held: &postgres::Held) -> String {
    match (held.removed, held.paused.is_empty()) {
        (0, true) => "every queue of Solid Queue is paused already, or no job was there".into(),
        (0, false) => format!(
            "QUEUES PAUSED: {}. When they may run: `bin/rails runner 'SolidQueue::Pause.where(queue_name: %w[{}]).delete_all'`",
            held.paused.join(", "),
            held.paused.join(" ")
        ),
        (removed, _) => format!("removed {}", counted(removed, "job")),
    }
}

/// How a server takes over an RDB.
fn start_redis(path: &std::path::Path, manifest: &Manifest) -> Vec<String> {
    let keys: u64 = manifest.counts.values().sum();
    let path = path.display();
    vec![
        format!("{path} is the RDB of Redis {}, about {keys} keys", manifest.server_version),
        "to start a server from it: stop Redis without saving (redis-cli SHUTDOWN NOSAVE)".into(),
        "copy the file over `dbfilename` in `dir` of redis.conf, usually /var/lib/redis/dump.rdb, readable for Redis' user".into(),
        "with `appendonly yes` Redis would read its append-only files instead: move appendonlydir away, start once with `--appendonly no`, then redis-cli CONFIG SET appendonly yes".into(),
        "start Redis, and compare: redis-cli INFO keyspace".into(),
    ]
}

fn copy_back(name: &str, live: &str, t: &postgres::Restored) -> String {
    let shell = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    // What looks like a connection string would be taken as one.
    let psql = |name: &str| match name.contains('=') || name.contains("://") {
        true => format!("PGDATABASE={} psql", shell(name)),
        false => format!("psql -d {}", shell(name)),
    };
    let out = format!(
        r"\copy (SELECT {} FROM {} WHERE true) TO STDOUT",
        t.columns, t.table
    );
    let back = format!(r"\copy {} ({}) FROM STDIN", t.table, t.columns);
    format!(
        "{}: {} rows in database {name}; to copy rows back (edit the WHERE):\n    {} -c {} | {} -c {}",
        t.table,
        t.rows,
        psql(name),
        shell(&out),
        psql(live),
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

pub(super) fn told(global: &Global, database: &Database, manifest: &Manifest, done: &Done) {
    if global.json {
        let mut value = json!({ "target": database.name, "kind": manifest.kind, "dump": manifest.id, "as_of": manifest.began });
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

/// What an undo would put back.
pub(super) async fn kept(
    database: &Database,
    live: &Connection,
) -> Result<postgres::Kept, PostgresError> {
    let clients = database.clients(&aside_of(database, live).await?).await?;
    let live = live.clone();
    blocking(move || postgres::kept_for_undo(&live, &clients)).await
}

pub(super) async fn undo(
    global: &Global,
    database: &Database,
    live: Connection,
    dry_run: bool,
) -> Result<(), Failure> {
    let clients = database.clients(&aside_of(database, &live).await?).await?;
    let connection = live.clone();
    if dry_run {
        let back = blocking(move || postgres::kept_for_undo(&connection, &clients)).await?;
        let back = back.name;
        if global.json {
            println!(
                "{}",
                json!({ "target": database.name, "kind": "postgres", "dry-run": true, "back": back })
            );
        } else {
            println!(
                "{}: {back} would be {} again; nothing was changed",
                database.name,
                live.database()
            );
        }
        return Ok(());
    }
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
pub(super) async fn aside_of(
    database: &Database,
    live: &Connection,
) -> Result<Connection, PostgresError> {
    let aside = live.with_database("postgres");
    match database.clients(&aside).await {
        Ok(_) => Ok(aside),
        Err(PostgresError::Failed { .. }) => Ok(live.clone()),
        Err(other) => Err(other),
    }
}
