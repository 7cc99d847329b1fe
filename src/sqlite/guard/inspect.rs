//! Reading the app's tables, on a connection that is open anyway.
//!
//! Why it cannot hurt, neither the app nor a capture:
//! - It is the connection C, opened at attach and closed at detach: no descriptor is opened or closed (POSIX would drop locks),
//!   nothing can be opened by a path that leads to another file by now, and nothing can outlive the guard.
//! - It takes `&mut Guard`: no barrier, renewal or capture runs meanwhile. Its read transaction begins after R's and ends before any
//!   other step, so whatever it holds of the WAL, R holds already; the app's checkpoints meet nothing new. On read lock 0
//!   it may rest for the budget, which is shorter than R itself needs to move there.
//! - `query_only` refuses every write, and C never checkpoints in here: a checkpoint inside a transaction is an error of SQLite's own.
//! - Time is bounded by the budget: SQLite asks a handler every few thousand steps, and whoever overstays is interrupted.
//! - If the transaction cannot be ended, that is an error of the guard: the caller lets go of the database, and with it of C.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode};
use thiserror::Error;

use super::{Guard, GuardError};

/// Steps of SQLite's machine between two looks at the clock: some microseconds, or a few pages of a disk that is slow.
const STEPS: std::os::raw::c_int = 200;
/// More rows than any question here has answers; each is text in memory.
const ROWS_MAX: usize = 10_000;

/// Why something could not be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    /// It took longer than it may.
    #[error("it took longer than it may")]
    Budget,
    /// The statement does not fit the schema.
    #[error("{0}")]
    Statement(String),
    /// The database cannot be read.
    #[error("{0}")]
    Broken(String),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => Self::Budget,
            Some(
                ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied,
            ) => Self::Broken(error.to_string()),
            _ => Self::Statement(error.to_string()),
        }
    }
}

/// Values of a result as text; `None` for NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// Reads inside one read transaction.
pub struct Reader<'a> {
    conn: &'a Connection,
    clock: &'a Clock,
}

/// Shared with SQLite's progress handler.
struct Clock {
    begun: Instant,
    total: Duration,
    /// Microseconds after `begun`.
    until: Arc<AtomicU64>,
}

impl Clock {
    fn micros(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// At most `budget` from now, and never beyond the total.
    fn allow(&self, budget: Duration) {
        let now = self.begun.elapsed();
        let until = (now + budget).min(self.total).as_micros();
        let until = u64::try_from(until).unwrap_or(u64::MAX);
        self.until.store(until, Ordering::Relaxed);
    }
}

impl Reader<'_> {
    /// A number that a pragma without argument answers.
    pub fn pragma(&self, name: &str) -> Result<i64, ReadError> {
        let sql = format!("PRAGMA {name}");
        Ok(self.conn.query_row(&sql, [], |row| row.get(0))?)
    }

    /// Every row of a query that must end within `budget`.
    pub fn rows(&self, sql: &str, budget: Duration) -> Result<Rows, ReadError> {
        self.clock.allow(budget);
        if self.clock.micros() >= self.clock.until.load(Ordering::Relaxed) {
            return Err(ReadError::Budget);
        }
        let mut statement = self.conn.prepare(sql)?;
        let columns = statement.column_count();
        let mut found = statement.query([])?;
        let mut rows = Rows::new();
        while let Some(row) = found.next()? {
            if rows.len() == ROWS_MAX {
                break;
            }
            let values = (0..columns).map(|i| Ok(text(row.get_ref(i)?)));
            rows.push(values.collect::<rusqlite::Result<_>>()?);
        }
        Ok(rows)
    }
}

fn text(value: ValueRef) -> Option<String> {
    match value {
        ValueRef::Null | ValueRef::Blob(_) => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
    }
}

impl Guard {
    /// Reads the database as it is now, for at most `budget` in all; see the module.
    ///
    /// # Errors
    /// Only if the connection is not as it was before: let go of the database then.
    pub fn inspect<T>(
        &mut self,
        budget: Duration,
        read: impl FnOnce(Result<&Reader, ReadError>) -> T,
    ) -> Result<T, GuardError> {
        let until = Arc::new(AtomicU64::new(0));
        let clock = Clock {
            begun: Instant::now(),
            total: budget,
            until: Arc::clone(&until),
        };
        clock.allow(budget);
        let begun = clock.begun;
        let late = move || begun.elapsed().as_micros() >= u128::from(until.load(Ordering::Relaxed));
        let begun = begin(&mut self.check, late);
        let reader = Reader {
            conn: &self.check,
            clock: &clock,
        };
        let result = read(begun.map(|()| &reader));
        end(&mut self.check).map_err(|e| self.sqlite(e))?;
        Ok(result)
    }
}

fn begin(
    conn: &mut Connection,
    late: impl FnMut() -> bool + Send + 'static,
) -> Result<(), ReadError> {
    // The app's schema is the app's: no function in it runs here, and what is sorted stays in memory.
    conn.execute_batch("PRAGMA trusted_schema=0; PRAGMA temp_store=MEMORY; PRAGMA query_only=1")?;
    conn.progress_handler(STEPS, Some(late))?;
    super::begin_read(conn)?;
    Ok(())
}

/// As it was before: no transaction, no handler, and neither schema nor pages in memory, which for a hundred databases would be felt.
fn end(conn: &mut Connection) -> rusqlite::Result<()> {
    conn.progress_handler(0, None::<fn() -> bool>)?;
    super::end(conn)?;
    conn.execute_batch("PRAGMA query_only=0; PRAGMA writable_schema=RESET; PRAGMA shrink_memory")
}
