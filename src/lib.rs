//! Lifeboat: continuous replication of SQLite databases to object storage, and restore to any moment.
//!
//! Arrows point one way: `cli -> daemon -> {sqlite, restore, retention} -> replica -> store -> ltx -> types`.

pub mod types;

pub mod ltx;

pub mod store;

pub mod replica;

pub mod labels;

pub mod retention;

pub mod restore;

pub mod drills;

pub mod sqlite;

pub mod schedule;

pub mod memory;

pub mod files;

pub mod postgres;
pub mod probe;

pub mod redis;

pub mod notify;

pub mod observe;

pub mod config;

pub mod insight;

pub mod http;

pub mod daemon;

pub mod cli;
