//! Counters of one store: what it was asked, what moved, what failed.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{Class, Op};

/// Atomic counters, shared by every [`Store`](super::Store) made from one `open`. They only rise.
///
/// They count requests as Lifeboat makes them: repeats inside the HTTP client are not seen, and a
/// listing counts as one request for each started thousand of objects, which is what providers bill.
#[derive(Debug, Default)]
pub struct Stats {
    requests: [AtomicU64; Op::ALL.len()],
    errors: [AtomicU64; Class::ALL.len()],
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
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

    /// Requests by the word of their kind, for metrics.
    pub fn by_word(&self) -> std::collections::BTreeMap<&'static str, u64> {
        Op::ALL
            .iter()
            .map(|op| (op.as_str(), self.requests(*op)))
            .collect()
    }

    /// Requests of one kind by its word.
    pub fn word(&self, word: &str) -> u64 {
        let op = Op::ALL.iter().find(|op| op.as_str() == word);
        op.map_or(0, |op| self.requests(*op))
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
}
