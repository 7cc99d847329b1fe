//! What the app is doing, read beside its backup: sizes, queues, caches. It only reads, and never the same thing more than once in
//! `insight: { every: ... }`.
//!
//! Invariants
//! - A SQLite database is read between two captures, on a connection of its guard (`sqlite::guard::Guard::inspect`), so what was
//!   let go of is not read, and no file is opened or closed. One database at a time, each for at most `sqlite::BUDGET`.
//! - What cannot be read or takes too long has no value; the backup does not depend on anything here.
//! - A server is asked by its own client program, in its own task, and that program is ended with the look.
//! - Names that the app chose (queues) are bounded in number: a label never grows with the app's data.

mod servers;
pub mod solid;
mod sqlite;

use std::sync::Arc;

use crate::config::Config;
use crate::daemon::fleet::Fleet;
use crate::observe::facts::Board;

/// Looks at everything that is configured, until dropped.
pub async fn run(config: Arc<Config>, fleet: Arc<Fleet>, board: Arc<Board>) {
    let databases = sqlite::run(&config, &fleet, &board);
    let servers = servers::run(&config, &board);
    tokio::join!(databases, servers);
}
