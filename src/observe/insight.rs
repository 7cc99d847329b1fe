//! What was read of the app beside its backup, as plain data: one entry for each database, whatever it runs on.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::types::Millis;

/// Looks that may fail in a row before what they found is too old to be shown.
const LOOKS: u32 = 3;
/// What was found holds at least so long, in milliseconds: a deploy takes a database away for less.
const CURRENT_MS: i64 = 60_000;

/// Of one database.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppFacts {
    /// When it was read last.
    pub at: Option<Millis>,
    /// Why it could not be read at the last look.
    pub failed: Option<String>,
    /// Questions that took longer than they may, and have no answer for it.
    pub given_up: u64,
    /// How long all looks took together, in seconds.
    pub seconds: f64,
    /// SQLite's own.
    pub sqlite: Option<SqliteFacts>,
}

/// What SQLite says of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SqliteFacts {
    /// Bytes of a page.
    pub page_size: u64,
    /// Pages that hold nothing.
    pub free_pages: u64,
    /// The schema cookie: every change of the schema changes it.
    pub schema_version: u64,
}

impl AppFacts {
    /// What was found is of now, or of so short ago that it still tells something.
    pub fn is_current(&self, every: Duration, now: Millis) -> bool {
        let every = i64::try_from((every * LOOKS).as_millis()).unwrap_or(i64::MAX);
        self.at
            .is_some_and(|at| now.since(at) <= every.max(CURRENT_MS))
    }
}

/// Shared between who reads and who asks.
#[derive(Debug, Default)]
pub struct InsightBoard(Mutex<BTreeMap<String, AppFacts>>);

impl InsightBoard {
    /// Changes the facts of a database, which are empty at first.
    pub fn update<T>(&self, target: &str, change: impl FnOnce(&mut AppFacts) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(target.to_owned()).or_default())
    }

    /// Drops a database that is no target any more.
    pub fn remove(&self, target: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(target);
    }

    /// A copy, by target.
    pub fn all(&self) -> BTreeMap<String, AppFacts> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.clone()
    }
}
