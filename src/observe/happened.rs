//! What happened once and is worth telling, and how telling went.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::notify::Event;

/// More than these between two looks are nothing that anybody reads.
const KEPT: usize = 64;

/// Events with rising numbers; the newest are kept.
#[derive(Debug, Default)]
pub struct Happened(Mutex<(u64, VecDeque<(u64, Event)>)>);

impl Happened {
    /// Adds one.
    pub fn add(&self, event: Event) {
        let mut kept = lock(&self.0);
        kept.0 += 1;
        let number = kept.0;
        kept.1.push_back((number, event));
        if kept.1.len() > KEPT {
            kept.1.pop_front();
        }
    }

    /// Those that are kept.
    pub fn all(&self) -> Vec<(u64, Event)> {
        lock(&self.0).1.iter().cloned().collect()
    }
}

/// Counters of one channel.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// By result: sent, failed (a try), dropped.
    pub results: BTreeMap<&'static str, u64>,
    /// Waiting to be sent.
    pub pending: u64,
}

/// Counters of notifications by channel.
#[derive(Debug, Default)]
pub struct Notifications(Mutex<BTreeMap<String, Told>>);

impl Notifications {
    /// Adds to a counter.
    pub fn count(&self, channel: &str, result: &'static str, number: u64) {
        let mut all = lock(&self.0);
        let told = all.entry(channel.to_owned()).or_default();
        *told.results.entry(result).or_default() += number;
    }

    /// Sets how many wait.
    pub fn pending(&self, channel: &str, number: u64) {
        lock(&self.0).entry(channel.to_owned()).or_default().pending = number;
    }

    /// All channels.
    pub fn all(&self) -> BTreeMap<String, Told> {
        lock(&self.0).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
