//! Files, with stock restic as referee.
#![allow(missing_docs)]

mod boot;
mod care;
mod churn;
mod closed;
mod daemon;
mod damage;
mod every_request;
mod faults;
mod in_place;
mod kills;
mod lab;
mod locks;
mod makers;
mod memory;
#[path = "../common/mount.rs"]
mod mount;
mod mounts;
mod odd;
#[allow(unreachable_pub, reason = "shared with other binaries")]
#[path = "../common/port.rs"]
mod port;
mod prune;
mod refusals;
mod round_trip;
mod site;
mod stores;
#[allow(dead_code, reason = "this binary needs a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod together;
mod unfinished;
