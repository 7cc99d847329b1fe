//! Looks at SQLite databases.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::solid;
use crate::config::{Config, InsightConfig};
use crate::daemon::fleet::{Fleet, system_now};
use crate::observe::facts::{Board, State, TargetFacts};
use crate::observe::insight::{AppFacts, SqliteFacts};
use crate::sqlite::guard::{ReadError, Reader};
use crate::types::Txid;

/// A look keeps captures of its database waiting for at most this long.
pub(super) const BUDGET: Duration = Duration::from_millis(100);
/// A database that does not answer is capturing; it is asked again at its next turn.
const PATIENCE: Duration = Duration::from_secs(5);
/// One question of a look may take this long.
const QUESTION: Duration = Duration::from_millis(50);
/// Between looks at two databases, so that a hundred of them are no burst.
const GAP: Duration = Duration::from_millis(10);
/// Between looks for a database whose turn has come: a part of `every`, within these.
const TICK: (u32, Duration, Duration) = (10, Duration::from_millis(100), Duration::from_secs(5));

/// What the last look at one database showed.
#[derive(Debug)]
struct Turn {
    due: Instant,
    captured: Option<Txid>,
}

/// Until dropped.
pub(super) async fn run(config: &Config, fleet: &Fleet, board: &Board) {
    let insight = config.insight;
    if !(insight.sqlite || insight.rails) {
        return;
    }
    let mut turns: BTreeMap<String, Turn> = BTreeMap::new();
    loop {
        let targets = board.snapshot();
        turns.retain(|name, _| targets.iter().any(|t| t.name == *name));
        for target in &targets {
            let turn = turns.entry(target.name.clone()).or_insert_with(|| Turn {
                due: Instant::now(),
                captured: None,
            });
            if turn.due > Instant::now() {
                continue;
            }
            if one(target, turn, insight, fleet, board).await {
                tokio::time::sleep(GAP).await;
            }
        }
        tokio::time::sleep((insight.every / TICK.0).clamp(TICK.1, TICK.2)).await;
    }
}

/// `true`: the database was asked.
async fn one(
    target: &TargetFacts,
    turn: &mut Turn,
    insight: InsightConfig,
    fleet: &Fleet,
    board: &Board,
) -> bool {
    if target.state != State::Steady || target.busy_since.is_some() {
        return false;
    }
    turn.due = Instant::now() + insight.every;
    let captured = target.captured;
    // Nothing was committed since: what was found holds still.
    let same = captured.is_some() && captured == turn.captured;
    if same && target.uncaptured_since.is_none() {
        let now = system_now();
        board.insight().update(&target.name, |f| f.at = Some(now));
        return false;
    }
    let look = move |reader: Result<&Reader, ReadError>| {
        // Without the wait for a capture that was at work.
        let begun = Instant::now();
        let found = reader.and_then(|reader| look(reader, insight));
        (found, begun.elapsed().as_secs_f64())
    };
    let Some((found, seconds)) = fleet.inspect(&target.name, BUDGET, PATIENCE, look).await else {
        return true;
    };
    let now = system_now();
    turn.captured = captured.filter(|_| found.as_ref().is_ok_and(|f| f.given_up == 0));
    board.insight().update(&target.name, |facts| {
        facts.seconds += seconds;
        match found {
            Ok(new) => {
                facts.at = Some(now);
                facts.failed = None;
                facts.given_up += new.given_up;
                facts.sqlite = new.sqlite;
                facts.queue = new.queue;
                facts.cache = new.cache;
                facts.cable = new.cable;
            }
            Err(error) => facts.failed = Some(error.to_string()),
        }
    });
    true
}

/// On a blocking thread, while the database is held anyway.
fn look(reader: &Reader, insight: InsightConfig) -> Result<AppFacts, ReadError> {
    let mut facts = AppFacts::default();
    if insight.sqlite {
        let number = |pragma: &str| -> Result<u64, ReadError> {
            Ok(u64::try_from(reader.pragma(pragma)?).unwrap_or(0))
        };
        facts.sqlite = Some(SqliteFacts {
            page_size: number("page_size")?,
            free_pages: number("freelist_count")?,
            schema_version: number("schema_version")?,
        });
    }
    if insight.rails {
        rails(reader, &mut facts)?;
    }
    Ok(facts)
}

/// Solid Queue, Cache and Cable, where their tables are.
fn rails(reader: &Reader, facts: &mut AppFacts) -> Result<(), ReadError> {
    let names = solid::TABLES.map(|t| format!("'{t}'")).join(",");
    let there = format!("SELECT name FROM sqlite_schema WHERE type='table' AND name IN ({names})");
    let there = reader.rows(&there, QUESTION)?;
    let there = there.into_iter().flatten().flatten().collect();
    solid::read(facts, &there, |question| {
        match reader.rows(question.sql(), QUESTION) {
            Ok(rows) => Ok(Some(rows)),
            Err(error @ ReadError::Broken(_)) => Err(error),
            Err(error) => {
                tracing::debug!(?question, %error, "a question has no answer");
                Ok(None)
            }
        }
    })
}
