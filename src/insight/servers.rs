//! Looks at PostgreSQL and Redis servers, each in its own task: one that hangs delays no other, and none is asked twice at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::solid::{self, Question};
use crate::config::{Config, Databases, InsightConfig, Origin, PostgresConfig};
use crate::daemon::fleet::system_now;
use crate::observe::facts::Board;
use crate::observe::insight::AppFacts;
use crate::observe::servers::{Said, ServerFacts};
use crate::postgres::{self, Answers, Asked, Clients, Kind, PostgresError, Stop, StopOnDrop};
use crate::redis;

/// A look that takes longer is ended: a server that answers no statistics for so long answers the app no better.
const LIMIT: Duration = Duration::from_secs(10);

/// Databases of one server that are looked into for the tables of Rails.
const DATABASES_MAX: usize = 50;

/// Until dropped.
pub(super) async fn run(config: &Config, board: &Arc<Board>) {
    let mut tasks = JoinSet::new();
    for server in &config.postgres {
        let wanted = match server.origin.kind() {
            Kind::Postgres => config.insight.postgres || config.insight.rails,
            Kind::Redis => config.insight.redis,
        };
        if wanted {
            tasks.spawn(watch(server.clone(), config.insight, Arc::clone(board)));
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn watch(server: PostgresConfig, insight: InsightConfig, board: Arc<Board>) {
    let mut facts = ServerFacts {
        kind: server.origin.kind(),
        name: server.name.clone(),
        address: server.origin.display(),
        every: insight.every,
        limit: LIMIT,
        ..ServerFacts::default()
    };
    let shown = facts.kind == Kind::Redis || insight.postgres;
    let mut due = tokio::time::interval(insight.every);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if shown {
            board.put_server(facts.clone());
        }
        due.tick().await;
        let targets = targets(&server, &board);
        let begun = Instant::now();
        let found = look(&server, &targets, insight.rails).await;
        let seconds = begun.elapsed().as_secs_f64() / targets.len().max(1) as f64;
        let failure = found.as_ref().err().map(ToString::to_string);
        let (said, apps) = match found {
            Ok((said, apps)) => (Ok(said), apps),
            Err(error) => (Err(error), Vec::new()),
        };
        // Without its client nobody knows anything of the server.
        let reached = !matches!(said, Err(PostgresError::Client(_)));
        for (n, target) in targets.iter().enumerate().filter(|_| reached) {
            let new = match &failure {
                Some(why) => Err(why.clone()),
                None => apps
                    .get(n)
                    .cloned()
                    .unwrap_or_else(|| Ok(AppFacts::default())),
            };
            board
                .insight()
                .update(&target.name, |app| keep(app, new, seconds));
        }
        note(&mut facts, said);
    }
}

/// A database of the server, and its name among the targets.
struct Target {
    name: String,
    database: String,
}

fn targets(server: &PostgresConfig, board: &Board) -> Vec<Target> {
    let Origin::Postgres(connection) = &server.origin else {
        return vec![Target {
            name: server.name.clone(),
            database: String::new(),
        }];
    };
    if server.databases == Databases::Own {
        return vec![Target {
            name: server.name.clone(),
            database: connection.database().to_owned(),
        }];
    }
    let mut names: Vec<String> = board.postgres().into_iter().map(|f| f.name).collect();
    names.dedup();
    let prefix = format!("{}/", server.name);
    let mine = names.into_iter().filter_map(|name| {
        let database = name.strip_prefix(&prefix)?.to_owned();
        Some(Target { name, database })
    });
    mine.take(DATABASES_MAX).collect()
}

fn keep(app: &mut AppFacts, new: Result<AppFacts, String>, seconds: f64) {
    app.seconds += seconds;
    match new {
        Ok(new) => {
            app.at = Some(system_now());
            app.failed = None;
            app.given_up += new.given_up;
            (app.queue, app.cache, app.cable) = (new.queue, new.cache, new.cable);
        }
        Err(why) => app.failed = Some(why),
    }
}

fn note(facts: &mut ServerFacts, found: Result<Said, PostgresError>) {
    let before = facts.up();
    let now = system_now();
    let reached = !matches!(found, Err(PostgresError::Client(_)));
    facts.at = reached.then_some(now);
    (facts.failure, facts.hint) = match &found {
        Ok(_) => (None, None),
        Err(error) => (Some(error.to_string()), error.hint()),
    };
    facts.said = found.ok();
    if facts.up() == before {
        return;
    }
    facts.since = Some(now);
    match &facts.failure {
        Some(why) => tracing::warn!(target_name = facts.name, why, "the server does not answer"),
        None if before.is_some() => {
            tracing::info!(target_name = facts.name, "the server answers again");
        }
        None => {}
    }
}

/// What a server said, and what its databases said of the app, each or why not.
type Found = (Said, Vec<Result<AppFacts, String>>);

/// One look, ended by force after [`LIMIT`], and when this is dropped.
async fn look(
    server: &PostgresConfig,
    targets: &[Target],
    rails: bool,
) -> Result<Found, PostgresError> {
    let stop = StopOnDrop(Stop::default());
    let (server, mine) = (server.clone(), stop.0.clone());
    let databases: Vec<String> = targets.iter().map(|t| t.database.clone()).collect();
    let looking = tokio::task::spawn_blocking(move || ask(&server, &databases, rails, &mine));
    match tokio::time::timeout(LIMIT, looking).await {
        Ok(Ok(said)) => said,
        // It panicked: said by the panic itself.
        Ok(Err(error)) => Err(PostgresError::Io("looking at the server", error.into())),
        Err(_) => {
            let late = format!("no answer within {} s", LIMIT.as_secs());
            let late = std::io::Error::new(std::io::ErrorKind::TimedOut, late);
            Err(PostgresError::Io("looking at the server", late))
        }
    }
}

fn ask(
    server: &PostgresConfig,
    databases: &[String],
    rails: bool,
    stop: &Stop,
) -> Result<Found, PostgresError> {
    let bin_dir = server.bin_dir.as_deref();
    match &server.origin {
        Origin::Postgres(connection) => {
            let clients = Clients::any(bin_dir).stopped_by(stop);
            let asked = |q: &Question| Asked {
                table: q.table(),
                sql: q.sql(),
            };
            let questions: Vec<Asked> = match rails {
                true => Question::ALL.iter().map(asked).collect(),
                false => Vec::new(),
            };
            let (stats, answers) = postgres::look(&clients, connection, databases, &questions)?;
            let apps = answers.iter().map(|a| app(a, rails)).collect();
            Ok((Said::Postgres(Box::new(stats)), apps))
        }
        Origin::Redis(connection) => {
            let stats = redis::stats(connection, bin_dir, stop)?;
            Ok((Said::Redis(Box::new(stats)), Vec::new()))
        }
    }
}

fn app(answers: &Answers, rails: bool) -> Result<AppFacts, String> {
    let mut facts = AppFacts::default();
    if rails {
        let tables = answers.tables.as_ref();
        let tables = tables.ok_or("the database cannot be connected to")?;
        let answer = |question| {
            let number = Question::ALL.iter().position(|q| *q == question);
            Ok::<_, String>(number.and_then(|n| answers.rows.get(&n).cloned()))
        };
        solid::read(&mut facts, tables, answer)?;
    }
    Ok(facts)
}
