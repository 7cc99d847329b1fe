//! SQL of the user on a restored database, before it appears under its name.

use std::io::Write;
use std::process::Stdio;

use super::{Clients, Connection, PostgresError, RestoreOptions};

/// A file of SQL, as `psql` reads it.
#[derive(Clone, Debug)]
pub struct AfterSql {
    /// Its path, for messages.
    pub name: String,
    /// What is in it.
    pub sql: String,
}

/// Runs it in one transaction, up to the first error. Blocks.
///
/// # Errors
/// [`PostgresError::Script`] with the statement that failed; the database is of no use then.
pub(super) fn run(
    clients: &Clients,
    target: &Connection,
    options: &RestoreOptions,
) -> Result<(), PostgresError> {
    let Some(script) = &options.after else {
        return Ok(());
    };
    let arguments = [
        "-XAqw",
        "--echo-errors",
        "--single-transaction",
        "-v",
        "ON_ERROR_STOP=1",
        "-f",
        "-",
    ];
    let clients = clients.stopped_by(&options.stop);
    let mut psql = clients.spawn("psql", |command| {
        // What its queries answer may be more than anybody reads.
        command.args(arguments).stdout(Stdio::null());
        target.apply(command);
    })?;
    if let Some(mut stdin) = psql.child.stdin.take() {
        // A psql that ended at an error reads no more: its exit status says why.
        let _ = stdin.write_all(script.sql.as_bytes());
    }
    psql.finish().map_err(|error| match error {
        PostgresError::Failed { why, .. } => PostgresError::Script {
            name: script.name.clone(),
            why: why.replace("psql:<stdin>:", &format!("{}:", script.name)),
        },
        other => other,
    })
}
