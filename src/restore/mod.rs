//! From a replica to a database file: plan, fetch, apply, verify, swap.

pub mod plan;
