//! Changes of a restored copy before anybody sees it: jobs held back, SQL of the user.
//!
//! Invariants
//! - Only the temporary file is written. What fails here leaves nothing behind, for the file is dropped.
//! - The file ends in the journal mode that it came with, and no `-wal` or `-journal` is left beside it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::{Batch, Connection, OpenFlags};
use serde::Serialize;
use thiserror::Error;

/// What happens to the jobs of Solid Queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// They run when the app starts.
    Keep,
    /// They wait: every queue is paused, as Solid Queue itself pauses one.
    Paused,
    /// They are gone. Failed and finished jobs stay.
    Empty,
}

/// SQL to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Where it came from, for messages.
    pub name: String,
    /// Statements. Not run in one transaction: `VACUUM` is allowed.
    pub sql: String,
}

/// What is to be done, the queue first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Jobs.
    pub queue: Queue,
    /// The user's own.
    pub script: Option<Script>,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Edited {
    /// Solid Queue, if it is in this database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<Jobs>,
    /// Statements of the script that ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statements: Option<usize>,
}

/// Jobs of a restored queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Jobs {
    /// Jobs that had not ended: waiting, planned, blocked or at work at the restore point.
    pub unfinished: u64,
    /// Queues that were paused here; those that were paused before are not named.
    pub paused: Vec<String>,
    /// Jobs that were removed.
    pub removed: u64,
}

/// Why it was not done.
#[derive(Debug, Error)]
pub enum EditError {
    /// The user's SQL.
    #[error("{name}: {message} (in: {statement})")]
    Script {
        /// Of the script.
        name: String,
        /// SQLite's words.
        message: String,
        /// The statement's beginning.
        statement: String,
    },
    /// A transaction that nobody would commit.
    #[error("{0} ends within a transaction")]
    Open(String),
    /// A Solid Queue from before queues could be paused.
    #[error("its Solid Queue has no table solid_queue_pauses")]
    NoPauses,
    /// SQLite.
    #[error("holding back the jobs of Solid Queue: {0}")]
    Queue(rusqlite::Error),
    /// Opening or closing the copy.
    #[error("opening the restored copy: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file.
    #[error("preparing the restored copy: {0}")]
    Io(#[from] io::Error),
}

impl EditError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Script { .. } => Some("mend the statement and restore again".into()),
            Self::Open(_) => Some("end it with COMMIT".into()),
            Self::NoPauses => {
                Some("`--queue empty` removes the jobs, `--queue keep` leaves them to run".into())
            }
            Self::Queue(_) => {
                Some("`--queue keep` leaves the jobs alone: they run when the app starts".into())
            }
            Self::Sqlite(_) | Self::Io(_) => None,
        }
    }
}

impl Edit {
    /// Nothing is to be done.
    pub fn is_nothing(&self) -> bool {
        self.queue == Queue::Keep && self.script.is_none()
    }

    /// Changes the database at `path`, which nobody else knows of.
    ///
    /// # Errors
    /// As [`EditError`]; the file is then of no use.
    pub fn apply(&self, path: &Path) -> Result<Edited, EditError> {
        if self.is_nothing() {
            return Ok(Edited::default());
        }
        in_rollback_mode(path, |conn| self.run(conn))
    }

    fn run(&self, conn: &mut Connection) -> Result<Edited, EditError> {
        // A copy that fails is dropped, and one that does not is synced when it is put in place.
        conn.pragma_update(None, "journal_mode", "memory")?;
        conn.pragma_update(None, "synchronous", "off")?;
        // As Rails has it.
        conn.pragma_update(None, "foreign_keys", "on")?;
        let queue = queue(conn, self.queue)?;
        let statements = match &self.script {
            Some(script) => Some(run(conn, script)?),
            None => None,
        };
        Ok(Edited { queue, statements })
    }
}

/// Opens a copy that nobody else knows of for writing, without a file appearing beside it: in WAL mode SQLite would make some. The file ends in
/// the mode that it had, unless `act` fails.
pub(super) fn in_rollback_mode<T, E: From<rusqlite::Error> + From<io::Error>>(
    path: &Path,
    act: impl FnOnce(&mut Connection) -> Result<T, E>,
) -> Result<T, E> {
    let file = File::options().read(true).write(true).open(path)?;
    let mode = journal_mode(&file)?;
    if mode.is_some() {
        file.write_all_at(&ROLLBACK, MODE_AT)?;
    }
    let opened = || -> Result<T, E> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut conn = Connection::open_with_flags(path, flags)?;
        let done = act(&mut conn)?;
        conn.close().map_err(|(_, e)| e)?;
        Ok(done)
    };
    let result = opened();
    // A script may have turned WAL mode on, or may have broken off.
    for companion in ["-journal", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(companion);
        match std::fs::remove_file(&name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    let done = result?;
    if let Some(mode) = mode {
        file.write_all_at(&mode, MODE_AT)?;
    }
    Ok(done)
}

/// Offset of the two bytes of the file header that say how the file is written.
const MODE_AT: u64 = 18;
const ROLLBACK: [u8; 2] = [1, 1];

/// `None`: an empty file, which is a database without tables.
fn journal_mode(file: &File) -> io::Result<Option<[u8; 2]>> {
    if file.metadata()?.len() == 0 {
        return Ok(None);
    }
    let mut mode = [0; 2];
    file.read_exact_at(&mut mode, MODE_AT)?;
    Ok(Some(mode))
}

fn run(conn: &Connection, script: &Script) -> Result<usize, EditError> {
    let failed = |message: String, statement: &str| EditError::Script {
        name: script.name.clone(),
        message,
        statement: beginning(statement),
    };
    let mut batch = Batch::new(conn, &script.sql);
    let mut done = 0;
    loop {
        let mut statement = match batch.next() {
            Ok(Some(statement)) => statement,
            Ok(None) => break,
            // What was left to run: the statement stands first. Where in it SQLite gave up may be its end.
            Err(rusqlite::Error::SqlInputError { msg, sql, .. }) => return Err(failed(msg, &sql)),
            Err(error) => {
                let which = format!("statement {}", done + 1);
                return Err(failed(error.to_string(), &which));
            }
        };
        let text = statement.expanded_sql().unwrap_or_default();
        let mut step = || -> rusqlite::Result<()> {
            let mut rows = statement.raw_query();
            while rows.next()?.is_some() {}
            Ok(())
        };
        step().map_err(|e| failed(e.to_string(), &text))?;
        done += 1;
    }
    if conn.is_autocommit() {
        return Ok(done);
    }
    Err(EditError::Open(script.name.clone()))
}

/// The first words of a statement, on one line.
fn beginning(sql: &str) -> String {
    let words: Vec<&str> = sql.split_whitespace().collect();
    let line: String = words.join(" ").chars().take(80).collect();
    line
}

/// Tables whose rows Solid Queue takes as work to be done.
const EXECUTIONS: [&str; 4] = ["ready", "scheduled", "blocked", "claimed"];

fn queue(conn: &mut Connection, wanted: Queue) -> Result<Option<Jobs>, EditError> {
    if wanted == Queue::Keep {
        return Ok(None);
    }
    let work = conn.transaction().map_err(EditError::Queue)?;
    let has = |table: &str| -> Result<bool, EditError> {
        let query = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        let found: i64 = work
            .query_row(query, [format!("solid_queue_{table}")], |r| r.get(0))
            .map_err(EditError::Queue)?;
        Ok(found > 0)
    };
    if !has("jobs")? {
        return Ok(None);
    }
    // Tables came and went with the versions of Solid Queue.
    let mut present = Vec::new();
    for kind in EXECUTIONS {
        let table = format!("{kind}_executions");
        if has(&table)? {
            present.push(format!("solid_queue_{table}"));
        }
    }
    let pauses = has("pauses")?;
    if wanted == Queue::Paused && !pauses {
        return Err(EditError::NoPauses);
    }
    let mut sources = vec!["solid_queue_jobs"];
    if has("recurring_tasks")? {
        sources.push("solid_queue_recurring_tasks");
    }
    let (failed, semaphores) = (has("failed_executions")?, has("semaphores")?);
    let recurring = has("recurring_executions")?;
    let act = || -> rusqlite::Result<Jobs> {
        let mut open = "finished_at IS NULL".to_owned();
        if failed {
            open += " AND id NOT IN (SELECT job_id FROM solid_queue_failed_executions)";
        }
        let count = format!("SELECT count(*) FROM solid_queue_jobs WHERE {open}");
        let mut jobs = Jobs {
            unfinished: work
                .query_row(&count, [], |r| r.get::<_, i64>(0))?
                .unsigned_abs(),
            paused: Vec::new(),
            removed: 0,
        };
        if wanted == Queue::Paused {
            jobs.paused = pause(&work, &sources)?;
            return Ok(jobs);
        }
        for table in &present {
            work.execute(&format!("DELETE FROM {table}"), [])?;
        }
        let removed = work.execute(&format!("DELETE FROM solid_queue_jobs WHERE {open}"), [])?;
        jobs.removed = removed as u64;
        if recurring {
            work.execute(
                "DELETE FROM solid_queue_recurring_executions WHERE job_id NOT IN (SELECT id FROM solid_queue_jobs)",
                [],
            )?;
        }
        if semaphores {
            // They count jobs that are no more.
            work.execute("DELETE FROM solid_queue_semaphores", [])?;
        }
        Ok(jobs)
    };
    let jobs = act().map_err(EditError::Queue)?;
    work.commit().map_err(EditError::Queue)?;
    Ok(Some(jobs))
}

/// Pauses every queue that a job or a recurring task names; returns those that were not paused.
fn pause(work: &Connection, sources: &[&str]) -> rusqlite::Result<Vec<String>> {
    let names: Vec<String> = sources
        .iter()
        .map(|table| format!("SELECT queue_name FROM {table} WHERE queue_name <> ''"))
        // Recurring tasks without a queue go there.
        .chain(["SELECT 'default'".into()])
        .collect();
    let names = names.join(" UNION ");
    let query = format!(
        "INSERT INTO solid_queue_pauses(queue_name, created_at)
         SELECT queue_name, strftime('%Y-%m-%d %H:%M:%f000', 'now') FROM ({names})
         WHERE queue_name NOT IN (SELECT queue_name FROM solid_queue_pauses) ORDER BY 1
         RETURNING queue_name"
    );
    let mut insert = work.prepare(&query)?;
    let paused = insert.query_map([], |r| r.get(0))?;
    paused.collect()
}
