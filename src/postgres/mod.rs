//! PostgreSQL: dumps that are proven while they stream out, and restores into fresh databases.
//!
//! Invariants
//! 1. The manifest is written last, and only after `pg_dump` ended well, `pg_restore` decoded the whole stream, and the store holds as many
//!    bytes as were sent. A dump without a manifest does not exist for any reader.
//! 2. A dump's key is used once: nothing overwrites a dump.
//! 3. A restore writes into a database that it made itself, or into an empty one in one transaction, and drops what it made if anything
//!    fails. No other database is touched; `swap` says how one takes the name of another.
//! 4. Passwords reach the clients in their environment, never on a command line.
//!
//! Blocking work runs on threads that may block. SQL goes through `psql`, so that what preflight learns about TLS, sockets and passwords
//! holds for `pg_dump` too: both are libpq.

mod after;
mod alone;
mod anomaly;
mod ask;
mod budget;
mod catalog;
mod check;
mod client;
mod connection;
mod count;
mod damage;
mod drill;
mod dump;
mod error;
mod fresh;
mod manifest;
mod preflight;
mod prune;
mod queue;
mod restore;
mod roles;
mod stats;
mod stream;
mod swap;

pub use after::AfterSql;
pub use anomaly::compare;
pub use ask::{Answers, Asked, look};
pub use budget::ReadBacks;
pub use catalog::databases;
pub use check::{Checked, check};
pub use client::{Clients, Stop, StopOnDrop};
pub(crate) use connection::decode;
pub use connection::{Connection, Parts};
pub use damage::{Listed, listed};
pub use drill::{Drill, drill, drills};
pub(crate) use dump::id_at;
pub use dump::{DumpOptions, Dumped, dump};
pub use error::PostgresError;
pub use fresh::{Restored, has_data, into_new, into_url, tables};
pub use manifest::{Dumps, Kind, Manifest, Part, Properties, accept, dumps, list, newest_good};
pub use preflight::preflight;
pub use prune::{Pruned, prune};
pub use queue::{Held, QueueJobs};
pub use restore::{RestoreOptions, Source, globals, read_back, to_file};
pub use roles::apply_globals;
pub use stats::{Activity, DatabaseStats, ServerStats, Slot};
pub(crate) use stream::{Compressor, Fan, commit_all, upload};
pub use swap::{Kept, Prepared, Swapped, kept_for_undo, prepare, undo};
