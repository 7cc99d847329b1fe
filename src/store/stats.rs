//! Counters of one store: what it was asked, what moved, what failed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::{Class, Op};

/// Upper bounds of the latency histogram, in seconds: a local server answers within the first, a request that is given up lies beyond the last.
pub const LATENCY_BOUNDS_SECONDS: [f64; 9] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// A month, for estimates.
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
/// An estimate looks back this far.
const WINDOW: Duration = Duration::from_secs(24 * 3600);
/// Between two positions that an estimate remembers. What happened in a first, shorter time counts as if it had been so much: the first
/// copy is no measure for a month.
const WINDOW_STEP: Duration = Duration::from_secs(3600);

/// How long requests took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Latency {
    /// Requests that took at most each of [`LATENCY_BOUNDS_SECONDS`].
    pub cumulative: [u64; LATENCY_BOUNDS_SECONDS.len()],
    /// All of them.
    pub count: u64,
    /// Their sum.
    pub seconds: f64,
}

/// What a month costs if it goes on like the last day.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Monthly {
    /// Requests of all kinds.
    pub requests: f64,
    /// Bytes uploaded.
    pub bytes_out: f64,
}

#[derive(Debug)]
struct Position {
    at: Instant,
    requests: u64,
    bytes_out: u64,
}

/// Atomic counters, shared by every [`Store`](super::Store) made from one `open`. They only rise.
///
/// They count requests as Lifeboat makes them: repeats inside the HTTP client are not seen, and a
/// listing counts as one request for each started thousand of objects, which is what providers bill.
#[derive(Debug)]
pub struct Stats {
    requests: [AtomicU64; Op::ALL.len()],
    errors: [AtomicU64; Class::ALL.len()],
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// One for each bound, and one beyond the last.
    took: [AtomicU64; LATENCY_BOUNDS_SECONDS.len() + 1],
    took_micros: AtomicU64,
    /// Oldest first; never empty, at most one for each step of the window and two more.
    past: Mutex<VecDeque<Position>>,
}

impl Default for Stats {
    fn default() -> Self {
        let begin = Position {
            at: Instant::now(),
            requests: 0,
            bytes_out: 0,
        };
        Self {
            requests: Default::default(),
            errors: Default::default(),
            bytes_in: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
            took: Default::default(),
            took_micros: AtomicU64::default(),
            past: Mutex::new(VecDeque::from([begin])),
        }
    }
}

impl Stats {
    /// Requests of one kind.
    pub fn requests(&self, op: Op) -> u64 {
        self.requests[op as usize].load(Ordering::Relaxed)
    }

    /// Requests of all kinds.
    pub fn requests_total(&self) -> u64 {
        Op::ALL.iter().map(|op| self.requests(*op)).sum()
    }

    /// Requests by the word of their kind.
    pub fn by_word(&self) -> std::collections::BTreeMap<&'static str, u64> {
        Op::ALL
            .iter()
            .map(|op| (op.as_str(), self.requests(*op)))
            .collect()
    }

    /// Failed operations of one class.
    pub fn errors(&self, class: Class) -> u64 {
        self.errors[class as usize].load(Ordering::Relaxed)
    }

    /// Bytes read from the store.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    /// Bytes written to the store and acknowledged by it, parts of aborted uploads included.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }

    /// How long requests with an answer took; a part of a large upload counts too, a whole download does not.
    pub fn latency(&self) -> Latency {
        let each = self.took.each_ref().map(|n| n.load(Ordering::Relaxed));
        let mut latency = Latency {
            count: each.iter().sum(),
            seconds: self.took_micros.load(Ordering::Relaxed) as f64 / 1e6,
            ..Latency::default()
        };
        let mut so_far = 0;
        for (cumulative, n) in latency.cumulative.iter_mut().zip(each) {
            so_far += n;
            *cumulative = so_far;
        }
        latency
    }

    /// What a month costs if it goes on like the last day, as far as this process has seen it.
    pub fn monthly(&self, now: Instant) -> Monthly {
        let (requests, bytes_out) = (self.requests_total(), self.bytes_out());
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |p: &Position| now.saturating_duration_since(p.at);
        while past.get(1).is_some_and(|p| age(p) >= WINDOW) {
            past.pop_front();
        }
        let Some(first) = past.front() else {
            return Monthly::default();
        };
        let months = age(first).max(WINDOW_STEP).as_secs_f64() / MONTH.as_secs_f64();
        let monthly = Monthly {
            requests: requests.saturating_sub(first.requests) as f64 / months,
            bytes_out: bytes_out.saturating_sub(first.bytes_out) as f64 / months,
        };
        if past.back().is_some_and(|p| age(p) >= WINDOW_STEP) {
            past.push_back(Position {
                at: now,
                requests,
                bytes_out,
            });
        }
        monthly
    }

    pub(super) fn count_latency(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = LATENCY_BOUNDS_SECONDS.iter().position(|b| seconds <= *b);
        self.took[bucket.unwrap_or(LATENCY_BOUNDS_SECONDS.len())].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.took_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn count(&self, op: Op, requests: u64) {
        self.requests[op as usize].fetch_add(requests, Ordering::Relaxed);
    }

    pub(super) fn count_error(&self, class: Class) {
        self.errors[class as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_in(&self, bytes: u64) {
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_out(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_and_class_has_its_own_counter() {
        let stats = Stats::default();
        for (n, op) in Op::ALL.into_iter().enumerate() {
            stats.count(op, n as u64 + 1);
        }
        for (n, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(stats.requests(op), n as u64 + 1);
        }
        for class in Class::ALL {
            stats.count_error(class);
            assert_eq!(stats.errors(class), 1);
        }
    }

    #[test]
    fn latencies_fall_into_cumulative_buckets() {
        let stats = Stats::default();
        for millis in [5, 6, 700, 60_000] {
            stats.count_latency(Duration::from_millis(millis));
        }
        let latency = stats.latency();
        assert_eq!(latency.cumulative, [1, 2, 2, 2, 2, 3, 3, 3, 3]);
        assert_eq!(latency.count, 4);
        assert!((latency.seconds - 60.711).abs() < 1e-9);
    }

    #[test]
    fn a_month_is_told_from_the_last_day() {
        let stats = Stats::default();
        let begin = Instant::now();
        let hours = |n: u64| begin + Duration::from_secs(n * 3600);
        stats.count(Op::Put, 10);
        stats.count_out(1000);
        // In the first minutes as if an hour had passed.
        let first = stats.monthly(begin);
        assert!((first.requests - 7200.0).abs() < 1.0, "{first:?}");
        for hour in 1..=60 {
            stats.count(Op::Put, 1);
            stats.monthly(hours(hour));
        }
        let later = stats.monthly(hours(60));
        assert!((later.requests - 720.0).abs() < 31.0, "{later:?}");
        assert!(later.bytes_out < 1e-9, "the first copy is forgotten");
        let past = stats.past.lock().unwrap().len();
        assert!(past <= 27, "{past}");
    }
}
