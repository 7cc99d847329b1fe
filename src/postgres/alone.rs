//! One restore in place of a database at a time: an advisory lock of the server, held by a session that stays open. A restore that is killed takes
//! its session with it.
//!
//! What this does **not** promise: that the session survives a network that drops idle connections, or a pooler that shares them.

use sha2::{Digest, Sha256};

use super::client::Session;
use super::{Clients, Connection, PostgresError};

/// Nobody else restores to the same database in place while this lives.
pub(super) struct Alone {
    _session: Session,
}

impl Alone {
    /// Takes the lock in `aside`, which every restore of the database `name` chooses alike. Blocks.
    ///
    /// # Errors
    /// [`PostgresError::Refused`] if another restore holds it; the server's.
    pub(super) fn take(
        clients: &Clients,
        aside: &Connection,
        name: &str,
    ) -> Result<Self, PostgresError> {
        let mut session = clients.session(aside)?;
        // The server must not end it while a restore of hours is at work. Servers before 14 do not know that setting.
        let sql = format!(
            "SELECT pg_try_advisory_lock({}) FROM (SELECT count(set_config(name, '0', false)) FROM pg_settings WHERE name = 'idle_session_timeout') s;",
            key(name)
        );
        match session.ask(&sql)?.trim() {
            "t" => Ok(Self { _session: session }),
            _ => Err(PostgresError::Refused {
                what: format!("another restore of {name} is running; nothing was changed"),
                hint: "wait for it, or stop it, then restore again".into(),
            }),
        }
    }
}

/// The same for a name on every host.
fn key(name: &str) -> i64 {
    let digest = Sha256::digest(format!("lifeboat restore {name}"));
    let first = digest.iter().take(8);
    first.fold(0, |key, byte| key << 8 | i64::from(*byte))
}
