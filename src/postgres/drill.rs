//! Drills: a dump is really restored on a server that is there for it, checked, dropped, and the result recorded.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::fresh::{Mark, aside, discard, into_fresh, marked};
use super::manifest::ids;
use super::{Clients, Connection, PostgresError, RestoreOptions, Source, Stop};
use crate::drills::{self, Check};
use crate::replica::layout::DRILLS_PREFIX;
use crate::store::{PutMode, Store, StoreError};

/// Begins the name of every database that a drill fills.
const NAME: &str = "lifeboat_drill_";
/// Name of the check that a dump can be restored, and holds what its manifest says.
const RESTORE: &str = "restore";
/// An assertion that takes longer holds up every other drill.
const ASSERT_TIMEOUT_MS: u32 = 5 * 60 * 1000;
/// Rows that psql holds at once, and bytes that are read of an answer: its first line decides.
const ASSERT_ROWS: &str = "FETCH_COUNT=16";
const ANSWER_MAX_BYTES: u64 = 64 * 1024;
/// A database of a drill without sessions that is older than this was left behind by one that was killed.
const LEFT_AFTER: SignedDuration = SignedDuration::from_hours(1);

/// What a drill found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drill {
    /// When it began.
    pub time: Timestamp,
    /// The dump.
    pub dump: String,
    /// When that began.
    pub dump_time: Timestamp,
    /// Tables counted.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// How long the restore took: what a restore in place takes. Older records call it `seconds`.
    #[serde(alias = "seconds")]
    pub restore_seconds: f64,
    /// Age of the dump when the drill began; 0 in older records.
    #[serde(default)]
    pub data_age_seconds: f64,
    /// Each check; none in older records.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// What was wrong; empty if nothing.
    pub findings: Vec<String>,
}

impl Drill {
    /// What was wrong, in words.
    pub fn failure(&self) -> Option<String> {
        (!self.findings.is_empty()).then(|| self.findings.join("; "))
    }

    /// How old the dump was when the drill began.
    pub fn data_age(&self) -> SignedDuration {
        self.time.duration_since(self.dump_time)
    }

    fn note(&mut self, name: &str, result: Result<String, String>) {
        let check = Check::of(name, result);
        if !check.ok {
            self.findings.push(match name {
                RESTORE => check.detail.clone(),
                _ => format!("{name}: {}", check.detail),
            });
        }
        self.checks.push(check);
    }
}

fn name_at(time: Timestamp) -> String {
    format!("{NAME}{}", time.strftime("%Y%m%dt%H%M%Sz"))
}

/// Restores into a database of its own on `server`, checks it and what `asserts` say, drops it and records the result, also a bad one. Blocks.
///
/// # Errors
/// A store or a server that is away, or `stop`: that says nothing about the dump, and nothing is recorded.
pub fn drill(
    source: &Source,
    server: &Connection,
    clients: &Clients,
    asserts: &[String],
    now: Timestamp,
    stop: &Stop,
) -> Result<Drill, PostgresError> {
    let begun = Instant::now();
    let name = name_at(now);
    let options = RestoreOptions {
        // A scratch server need not know the roles.
        no_owner: true,
        no_privileges: true,
        stop: stop.clone(),
        ..RestoreOptions::default()
    };
    let beside = aside(clients, server, &name);
    sweep_left(clients, &beside, now)?;
    let result = into_fresh(source, server, clients, &name, &options);
    let mut drill = Drill {
        time: now,
        dump: source.manifest.id.clone(),
        dump_time: source.manifest.began,
        tables: 0,
        rows: 0,
        restore_seconds: begun.elapsed().as_secs_f64(),
        data_age_seconds: 0.0,
        checks: Vec::new(),
        findings: Vec::new(),
    };
    drill.data_age_seconds = drill.data_age().as_secs_f64();
    match result {
        Ok((checked, _scratch)) => {
            (drill.tables, drill.rows) = (checked.tables, checked.rows);
            let counted = format!("{} tables, {} rows counted", checked.tables, checked.rows);
            drill.note(RESTORE, Ok(counted));
            let restored = server.with_database(&name);
            let stoppable = clients.stopped_by(stop);
            for sql in asserts {
                let said = assertion(&stoppable, &restored, sql)?;
                drill.note("assert", said);
            }
        }
        Err(error) if !stop.is_stopped() && is_verdict(&error, clients, &beside) => {
            drill.note(RESTORE, Err(error.to_string()));
        }
        Err(error) => return Err(error),
    }
    source.runtime.block_on(record(&source.store, &drill))?;
    Ok(drill)
}

/// What one assertion says; an error if it cannot be asked.
fn assertion(
    clients: &Clients,
    restored: &Connection,
    sql: &str,
) -> Result<Result<String, String>, PostgresError> {
    let answer = match first_line(clients, restored, sql) {
        Ok(answer) => answer,
        // A server that still answers has refused this SQL.
        Err(PostgresError::Failed { why, .. })
            if clients.sql(restored, "SELECT 1;", &[]).is_ok() =>
        {
            return Ok(Err(format!("{sql}: {why}")));
        }
        Err(error) => return Err(error),
    };
    let Some(line) = answer else {
        return Ok(Err(format!("{sql} gives no row")));
    };
    let value = line.split(SEPARATOR).next().unwrap_or_default();
    let is_number = |text: &str| text.parse::<f64>().is_ok_and(|n| n != 0.0 && !n.is_nan());
    Ok(match value {
        "t" => Ok(sql.into()),
        number if is_number(number) => Ok(sql.into()),
        "" => Err(format!("{sql} gives NULL")),
        other => Err(format!("{sql} gives {other}")),
    })
}

/// Columns are parted by what is in no number.
const SEPARATOR: char = '|';

/// The first line of an answer, which may be large. Nothing that the SQL does lasts, even in scratch space: other assertions see what was restored.
fn first_line(
    clients: &Clients,
    restored: &Connection,
    sql: &str,
) -> Result<Option<String>, PostgresError> {
    let asked = format!(
        "SET statement_timeout = {ASSERT_TIMEOUT_MS};\nSET default_transaction_read_only = on;\nBEGIN READ ONLY;\n{sql}\n;\n"
    );
    let arguments = [
        "-XAtqw",
        "-v",
        "ON_ERROR_STOP=1",
        "-v",
        ASSERT_ROWS,
        "-f",
        "-",
    ];
    let mut psql = clients.start("psql", &arguments, Some(restored))?;
    if let Some(mut stdin) = psql.child.stdin.take() {
        // A psql that cannot connect reads nothing: its exit status says why.
        let _ = std::io::Write::write_all(&mut stdin, asked.as_bytes());
    }
    let mut out = Vec::new();
    if let Some(stdout) = psql.child.stdout.take() {
        let read = stdout.take(ANSWER_MAX_BYTES).read_to_end(&mut out);
        read.map_err(|e| PostgresError::Io("reading from psql", e))?;
    }
    // A longer answer has its first line: whoever goes on writing it is ended.
    if (out.len() as u64) < ANSWER_MAX_BYTES {
        psql.finish()?;
    }
    let text = String::from_utf8_lossy(&out);
    Ok(text.lines().next().map(str::to_owned))
}

/// Whether an error is one of the dump: a server that still answers is not away.
fn is_verdict(error: &PostgresError, clients: &Clients, beside: &Connection) -> bool {
    match error {
        PostgresError::Damaged { .. } => true,
        PostgresError::Failed { program, .. } => {
            *program == "pg_restore" && clients.sql(beside, "SELECT 1;", &[]).is_ok()
        }
        _ => false,
    }
}

/// Drops what killed drills left behind.
fn sweep_left(clients: &Clients, beside: &Connection, now: Timestamp) -> Result<(), PostgresError> {
    let limit = name_at(now.saturating_sub(LEFT_AFTER).unwrap_or(now));
    for (name, mark, sessions) in marked(clients, beside)? {
        let left = matches!(&mark, Mark::Unfinished { of } if of.starts_with(NAME));
        if left && sessions == 0 && name < limit {
            discard(clients, beside, &name);
        }
    }
    Ok(())
}

async fn record(store: &Store, drill: &Drill) -> Result<(), PostgresError> {
    let text = serde_json::to_vec_pretty(drill)
        .map_err(|e| PostgresError::Io("recording the drill", e.into()))?;
    let time = drill.time.strftime("%Y%m%dT%H%M%S.%3fZ");
    let key = format!("{DRILLS_PREFIX}/{time}.json");
    store
        .put(&key, text.into(), PutMode::Overwrite, None)
        .await?;
    let dumps = async || Ok::<_, StoreError>(ids(store).await?);
    Ok(drills::sweep(store, proves, dumps).await?)
}

/// The dump that a result proves.
fn proves(record: &[u8]) -> Option<String> {
    let drill: Drill = serde_json::from_slice(record).ok()?;
    drill.findings.is_empty().then_some(drill.dump)
}

/// The newest results, newest first; what cannot be read is left out.
///
/// # Errors
/// The store's.
pub async fn drills(store: &Store, most: usize) -> Result<Vec<Drill>, PostgresError> {
    let mut found = Vec::new();
    for key in drills::keys(store).await?.iter().rev().take(most) {
        match store.get(key).await {
            Ok(bytes) => found.extend(serde_json::from_slice(&bytes).ok()),
            // Deleted since the listing.
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(found)
}

/// Id of the newest of these dumps that a drill has restored.
///
/// # Errors
/// The store's.
pub(super) async fn proven(
    store: &Store,
    dumps: &BTreeSet<&str>,
) -> Result<Option<String>, PostgresError> {
    Ok(drills::newest(store, proves, |id| dumps.contains(id)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreSpec;

    async fn put(store: &Store, seconds: i64, dump: &str, finding: Option<&str>) {
        let drill = Drill {
            time: Timestamp::from_second(seconds).unwrap(),
            dump: dump.into(),
            dump_time: Timestamp::UNIX_EPOCH,
            tables: 1,
            rows: 1,
            restore_seconds: 1.0,
            data_age_seconds: 0.0,
            checks: Vec::new(),
            findings: finding.into_iter().map(str::to_owned).collect(),
        };
        record(store, &drill).await.unwrap();
    }

    #[tokio::test]
    async fn the_dump_that_a_drill_proved_is_found_behind_two_months_of_failures() {
        let spec = StoreSpec::from_text("memory://").unwrap();
        let store = Store::open(&spec).await.unwrap();
        for dump in ["older", "good"] {
            let key = format!("dumps/{dump}/manifest.json");
            let body = bytes::Bytes::from_static(b"{}");
            store.put(&key, body, PutMode::Create, None).await.unwrap();
        }
        put(&store, 1, "older", None).await;
        put(&store, 2, "good", None).await;
        put(&store, 3, "deleted since", None).await;
        for second in 4..70 {
            put(&store, second, "bad", Some("damaged")).await;
        }
        let whole = BTreeSet::from(["older", "good", "bad"]);
        let found = proven(&store, &whole).await.unwrap();
        assert_eq!(found.as_deref(), Some("good"));
        assert_eq!(drills(&store, 100).await.unwrap().len(), 62);
        // One that is not whole any more proves nothing.
        put(&store, 70, "bad", None).await;
        put(&store, 71, "good", None).await;
        let whole = BTreeSet::from(["older", "bad"]);
        let found = proven(&store, &whole).await.unwrap();
        assert_eq!(found.as_deref(), Some("bad"));
    }
}
