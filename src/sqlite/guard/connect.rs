//! Connections that leave nothing behind in the app's database.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, ffi};

use super::error::{GuardError, io_error, sqlite_error};
use super::frames::read_or_zero;

/// Opens a connection that leaves nothing behind: no checkpoint on close, the WAL file stays, no autocheckpoint.
pub(crate) fn open(path: &Path) -> Result<Connection, GuardError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(|e| sqlite_error(path, e))?;
    let set = || -> rusqlite::Result<()> {
        conn.busy_timeout(Duration::from_secs(1))?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.pragma_update(None, "wal_autocheckpoint", 0)?;
        conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
        Ok(())
    };
    set().map_err(|e| sqlite_error(path, e))?;
    persist_wal(&conn).map_err(|e| sqlite_error(path, e))?;
    Ok(conn)
}

/// SQLITE_FCNTL_PERSIST_WAL: closing the last connection must not delete the WAL that the app may be about to use.
fn persist_wal(conn: &Connection) -> rusqlite::Result<()> {
    let mut on: std::os::raw::c_int = 1;
    // SAFETY: the handle belongs to `conn`, which is borrowed for the whole call and used by this thread only; the name is a
    // NUL-terminated literal; for this opcode SQLite reads and writes one int through the pointer, which outlives the call.
    let code = unsafe {
        ffi::sqlite3_file_control(
            conn.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_PERSIST_WAL,
            std::ptr::from_mut(&mut on).cast(),
        )
    };
    if code == ffi::SQLITE_OK {
        return Ok(());
    }
    Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))
}

/// `Ok(true)` if WAL mode had to be turned on.
pub(super) fn require_wal(
    conn: &Connection,
    path: &Path,
    ensure_wal: bool,
) -> Result<bool, GuardError> {
    let error = |e| sqlite_error(path, e);
    let mode: String = conn
        .query_row("PRAGMA journal_mode", [], |r| r.get(0))
        .map_err(error)?;
    if mode == "wal" {
        return Ok(false);
    }
    if !ensure_wal {
        return Err(GuardError::NotWal(path.to_owned(), mode));
    }
    let mode: String = conn
        .query_row("PRAGMA journal_mode=WAL", [], |r| r.get(0))
        .map_err(error)?;
    if mode == "wal" {
        Ok(true)
    } else {
        Err(GuardError::NotWal(path.to_owned(), mode))
    }
}

/// `PRAGMA schema_version` reads page 1 and nothing else: enough to make the read transaction real.
pub(in crate::sqlite) fn begin_read(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("BEGIN")?;
    match conn.query_row("PRAGMA schema_version", [], |_| Ok(())) {
        Ok(()) => Ok(()),
        Err(e) => {
            conn.execute_batch("ROLLBACK")?;
            Err(e)
        }
    }
}

pub(super) fn end(conn: &Connection) -> rusqlite::Result<()> {
    if conn.is_autocommit() {
        Ok(())
    } else {
        conn.execute_batch("ROLLBACK")
    }
}

pub(super) fn check_magic(db: &File, path: &Path) -> Result<(), GuardError> {
    let mut magic = [0; 16];
    read_or_zero(db, 0, &mut magic).map_err(|e| io_error(path, e))?;
    if &magic == b"SQLite format 3\0" {
        Ok(())
    } else {
        Err(GuardError::NotADatabase(path.to_owned()))
    }
}

/// Page cache of each connection in KiB. They read page 1 and nothing else.
const CACHE_KIB: i32 = 64;
