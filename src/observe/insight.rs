//! What was read of the app beside its backup, as plain data: one entry for each database, whatever it runs on.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Solid Queue, where its tables are.
    pub queue: Option<QueueFacts>,
    /// Solid Cache, where its table is.
    pub cache: Option<CacheFacts>,
    /// Solid Cable, where its table is.
    pub cable: Option<CableFacts>,
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

/// Kinds of jobs, as Solid Queue keeps them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Jobs {
    /// A worker may take them.
    Ready,
    /// Their time has not come.
    Scheduled,
    /// A worker has them.
    Claimed,
    /// A limit of concurrency holds them back.
    Blocked,
    /// They raised an error and wait for a person.
    Failed,
}

impl Jobs {
    /// Every kind, for metrics.
    pub const ALL: [Self; 5] = [
        Self::Ready,
        Self::Scheduled,
        Self::Claimed,
        Self::Blocked,
        Self::Failed,
    ];

    /// The word in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Scheduled => "scheduled",
            Self::Claimed => "claimed",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
        }
    }
}

/// Solid Queue. What is `None`, or not in `counted`, took longer than it may.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueFacts {
    /// Jobs by queue; a kind that was counted and is not here is 0.
    pub queues: BTreeMap<String, BTreeMap<Jobs, u64>>,
    /// Kinds that were counted.
    pub counted: BTreeSet<Jobs>,
    /// Queues that somebody paused.
    pub paused: BTreeSet<String>,
    /// Since when the oldest ready job of a queue that is not paused waits; `Some(None)`: there is none.
    pub oldest_ready: Option<Option<Millis>>,
    /// When the next scheduled job is due; `Some(None)`: there is none.
    pub next_scheduled: Option<Option<Millis>>,
    /// Last heartbeats of the processes of each kind.
    pub processes: Option<BTreeMap<String, Vec<Millis>>>,
}

/// What Solid Queue calls the processes that run jobs.
const WORKER: &str = "Worker";

impl QueueFacts {
    /// Processes of a kind whose heartbeat is not older than `limit`.
    pub fn fresh(&self, kind: &str, limit: Duration, now: Millis) -> usize {
        let limit = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
        let beats = self.processes.as_ref().and_then(|p| p.get(kind));
        let beats = beats.map_or(&[][..], Vec::as_slice);
        beats.iter().filter(|at| now.since(**at) <= limit).count()
    }

    /// Workers whose heartbeat is not older than `limit`; `None` if nobody knows.
    pub fn workers(&self, limit: Duration, now: Millis) -> Option<usize> {
        self.processes.as_ref()?;
        Some(self.fresh(WORKER, limit, now))
    }
}

/// Solid Cache.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CacheFacts {
    /// Entries, estimated if there are many.
    pub entries: Option<u64>,
    /// Their bytes as Solid Cache counts them.
    pub bytes: Option<u64>,
    /// When the oldest was written; `Some(None)`: there is none.
    pub oldest: Option<Option<Millis>>,
}

/// Solid Cable.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CableFacts {
    /// Messages, estimated if there are many.
    pub messages: u64,
    /// When the oldest was sent.
    pub oldest: Option<Millis>,
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
