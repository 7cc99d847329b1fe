//! SQLite's own checks of a restored file.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use thiserror::Error;

use super::{RestoreError, Verify, edit};

/// SQLite's own checks, on a file that nobody else knows of yet: not a byte is changed in the end, and no `-wal` or `-shm` appears.
pub fn sqlite_check(path: &Path, verify: Verify) -> Result<(), RestoreError> {
    let (check, result) = match verify {
        Verify::None => return Ok(()),
        Verify::Quick => ("quick_check", quick_check(path)),
        // Read-only, SQLite would leave out CHECK constraints.
        Verify::Integrity | Verify::Full => (
            "integrity_check",
            edit::in_rollback_mode(path, |conn| integrity_check(conn, verify)),
        ),
    };
    match result {
        Ok(None) => Ok(()),
        Ok(Some(message)) => Err(RestoreError::Damaged { check, message }),
        Err(CheckError::Io(e)) => Err(e.into()),
        Err(CheckError::Sqlite(e)) => Err(RestoreError::Damaged {
            check,
            message: e.to_string(),
        }),
    }
}

#[derive(Debug, Error)]
enum CheckError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

fn ask(conn: &Connection, check: &str) -> rusqlite::Result<Option<String>> {
    let answer: String = conn.query_row(&format!("PRAGMA {check}(1)"), [], |r| r.get(0))?;
    Ok((answer != "ok").then_some(answer))
}

fn quick_check(path: &Path) -> Result<Option<String>, CheckError> {
    let mut uri = url::Url::from_file_path(path)
        .map_err(|()| rusqlite::Error::InvalidPath(path.to_owned()))?;
    uri.set_query(Some("immutable=1"));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Ok(ask(
        &Connection::open_with_flags(uri.as_str(), flags)?,
        "quick_check",
    )?)
}

fn integrity_check(conn: &Connection, verify: Verify) -> Result<Option<String>, CheckError> {
    let answer = ask(conn, "integrity_check")?;
    if answer.is_some() || verify != Verify::Full {
        return Ok(answer);
    }
    let broken = conn
        .prepare("PRAGMA foreign_key_check")?
        .query_map([], |r| r.get::<_, String>(0))?
        .next()
        .transpose()?;
    Ok(broken.map(|table| format!("a row of table {table} breaks a foreign key")))
}
