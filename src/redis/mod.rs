//! Redis: the server's RDB, streamed through `redis-cli --rdb -` into the stores, as dumps like those of PostgreSQL.
//!
//! Invariants
//! 1. A dump is listed only if `redis-cli` ended well, the stream is one RDB to its last byte, and the CRC-64 that the server wrote at its end
//!    is that of what was read.
//! 2. Nothing but the RDB is stored: the mark that ends a transfer without a known length is left out.
//! 3. The password reaches `redis-cli` in its environment, never on a command line.

mod connection;
mod dump;
mod rdb;
mod stats;

pub use connection::{Connection, UrlError};
pub use dump::{dump, preflight};
pub use rdb::{Rdb, RdbError};
pub use stats::{ServerStats, stats};
