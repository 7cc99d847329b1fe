//! Looks at PostgreSQL and Redis servers, each in its own task: one that hangs delays no other, and none is asked twice at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::{Config, InsightConfig, Origin, PostgresConfig};
use crate::daemon::fleet::system_now;
use crate::observe::facts::Board;
use crate::observe::servers::{Said, ServerFacts};
use crate::postgres::{self, Clients, Kind, PostgresError, Stop, StopOnDrop};
use crate::redis;

/// A look that takes longer is ended: a server that answers no statistics for so long answers the app no better.
const LIMIT: Duration = Duration::from_secs(10);

/// Until dropped.
pub(super) async fn run(config: &Config, board: &Arc<Board>) {
    let mut tasks = JoinSet::new();
    for server in &config.postgres {
        let wanted = match server.origin.kind() {
            Kind::Postgres => config.insight.postgres,
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
    board.put_server(facts.clone());
    let mut due = tokio::time::interval(insight.every);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let begun = Instant::now();
        let found = look(&server).await;
        facts.seconds += begun.elapsed().as_secs_f64();
        note(&mut facts, found);
        board.put_server(facts.clone());
    }
}

fn note(facts: &mut ServerFacts, found: Result<Said, PostgresError>) {
    let before = facts.up();
    let now = system_now();
    facts.at = Some(now);
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

/// One look, ended by force after [`LIMIT`], and when this is dropped.
async fn look(server: &PostgresConfig) -> Result<Said, PostgresError> {
    let stop = StopOnDrop(Stop::default());
    let (server, mine) = (server.clone(), stop.0.clone());
    let looking = tokio::task::spawn_blocking(move || ask(&server, &mine));
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

fn ask(server: &PostgresConfig, stop: &Stop) -> Result<Said, PostgresError> {
    let bin_dir = server.bin_dir.as_deref();
    match &server.origin {
        Origin::Postgres(connection) => {
            let clients = Clients::any(bin_dir).stopped_by(stop);
            let stats = postgres::stats(&clients, connection)?;
            Ok(Said::Postgres(Box::new(stats)))
        }
        Origin::Redis(connection) => {
            let stats = redis::stats(connection, bin_dir, stop)?;
            Ok(Said::Redis(Box::new(stats)))
        }
    }
}
