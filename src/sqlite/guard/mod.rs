//! Holds one database's WAL without writing to the database, and checkpoints it without losing a frame.
//!
//! Connections: `read` (R) has an open read transaction from [`Guard::attach`] to drop, so no other connection can
//! restart the WAL over frames that were not captured; `spare` (R2) takes over from it; `write` (W) takes the write lock in
//! a barrier and never writes; `check` (C) asks for the WAL-index, runs PASSIVE checkpoints,
//! and reads for [`Guard::inspect`].
//!
//! Invariants
//! 1. Nothing is read past `mxFrame` of the WAL-index (`wal_checkpoint(NOOP)`): frames behind it may be phantoms.
//! 2. R is open at every moment between attach and drop, but inside a barrier, while W holds the write lock.
//! 3. [`Cursor::sealed`] is set under the write lock with everything captured, `nBackfill = mxFrame`, and R open again before W ends; or by
//!    [`Guard::finish_renewal`] and [`Guard::reseal`], each with its proof. While that R is held, the next life of the WAL continues ours whatever its salts. Any captured frame clears it.
//! 4. Salts that change while not sealed are a gap. So is a last captured frame that changed or lies past `mxFrame`, and a checksum
//!    mismatch at or before `mxFrame`.
//! 5. R does not rest on read lock 0: `Capture::leave_lock_zero` moves it to a mark at the first new frame.
//! 6. While everything captured is backfilled and R has been open since before, no SQLite process may write the database file: on lock 0
//!    nothing is backfilled at all, on a mark nothing beyond it. So `stat` of the file must not change until R moves ([`Guard::overwritten`]);
//!    if it does, somebody copied another file over it.
//! 7. No descriptor of the database file is closed while a connection is open (POSIX would drop SQLite's locks), and -shm is
//!    never opened. `db` is one raw descriptor that outlives the connections: fields drop in order of declaration.
//!
//! Proof of 3 for read lock 0: R on lock 0 reads the database file alone, so every backfill must wait for it. Frames committed
//! after the seal are therefore not backfilled, and a WAL with frames that are not backfilled is never restarted. Hence the WAL can
//! only restart at exactly the state that was captured.

mod connect;
mod error;
mod frames;
mod inspect;
mod renew;

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

pub(super) use self::connect::begin_read;
pub(crate) use self::connect::open;
use self::connect::{check_magic, end, require_wal};
pub use self::error::{GapReason, GuardError};
pub(super) use self::error::{io_error, sqlite_error};
pub(super) use self::frames::read_or_zero;
pub use self::frames::{ChangedPage, Changes, Look};
pub use self::inspect::{ReadError, Reader, Rows};
use super::beat::Beat;
use super::files::{DbFile, lock_holder};
use super::pages::WalPosition;
use super::wal::{HEADER_BYTES, Salt, WalHeader};
use crate::types::PageSize;

/// Oldest SQLite without the WAL-reset bug that a separate checkpointing process triggers (3.51.3).
const SQLITE_MIN_VERSION: i32 = 3_051_003;
/// Retries of reading WAL header and index until both belong to one life; a writer would have to restart the WAL each time.
const OBSERVE_TRIES: u32 = 100;

/// How far capture is, and whether the next life of the WAL continues it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// End of the last capture.
    pub position: WalPosition,
    /// See invariant 3.
    pub sealed: bool,
}

/// One consistent look at WAL header and WAL-index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// `None`: the WAL is empty.
    pub header: Option<WalHeader>,
    /// Last committed frame of this life; 0 if none.
    pub max_frame: u32,
    /// Frames already copied to the database file.
    pub backfilled: u32,
}

/// What a barrier came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Everything is captured and backfilled; the next writer restarts the WAL.
    Sealed,
    /// Some frames could not be backfilled (another reader needs them); the WAL goes on.
    Partial,
    /// A writer held the lock; try later.
    Busy,
}

/// See the module.
#[derive(Debug)]
pub struct Guard {
    read: Connection,
    spare: Connection,
    write: Connection,
    check: Connection,
    wal: File,
    wal_id: (u64, u64),
    shm_path: PathBuf,
    shm_id: (u64, u64),
    frozen: Option<NonZeroU64>,
    path: PathBuf,
    wal_path: PathBuf,
    page_size: PageSize,
    on_lock_zero: bool,
    /// Salts of the life in which R sits on a mark: no other life can begin before R moves.
    marked: Option<Salt>,
    beat: Arc<Beat>,
    held: Duration,
    // Last: closed after every connection (invariant 7).
    db: DbFile,
}

impl Guard {
    /// Opens the database and its WAL and begins the read transaction that holds the WAL.
    ///
    /// `ensure_wal` turns WAL mode on in a database in rollback mode; otherwise that is an error.
    pub fn attach(path: &Path, ensure_wal: bool) -> Result<(Self, bool), GuardError> {
        if rusqlite::version_number() < SQLITE_MIN_VERSION {
            return Err(GuardError::OldSqlite(rusqlite::version()));
        }
        let io_error = |source: io::Error| io_error(path, source);
        let db = match DbFile::open(path) {
            Ok(db) => db,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let holder =
                    lock_holder(path).unwrap_or_else(|| "a process in another container".into());
                return Err(GuardError::Held(path.to_owned(), holder));
            }
            Err(e) => return Err(io_error(e)),
        };
        let meta = db.metadata().map_err(io_error)?;
        if meta.len() == 0 {
            return Err(GuardError::Empty(path.to_owned()));
        }
        check_magic(&db, path)?;
        let write = open(path)?;
        let turned_on = require_wal(&write, path, ensure_wal)?;
        let (read, spare, check) = (open(path)?, open(path)?, open(path)?);
        begin_read(&read).map_err(|e| sqlite_error(path, e))?;
        let page_size: u32 = check
            .query_row("PRAGMA page_size", [], |r| r.get(0))
            .map_err(|e| sqlite_error(path, e))?;
        let page_size =
            PageSize::new(page_size).ok_or_else(|| GuardError::NotADatabase(path.to_owned()))?;
        let mut wal_path = path.as_os_str().to_owned();
        wal_path.push("-wal");
        let wal_path = PathBuf::from(wal_path);
        let wal = File::open(&wal_path).map_err(io_error)?;
        let wal_id = id(&wal.metadata().map_err(io_error)?);
        let mut shm_path = path.as_os_str().to_owned();
        shm_path.push("-shm");
        let shm_path = PathBuf::from(shm_path);
        // `stat` alone: see invariant 7. It is there while R is open.
        let shm_id = id(&std::fs::metadata(&shm_path).map_err(io_error)?);
        let guard = Self {
            read,
            spare,
            write,
            check,
            wal,
            wal_id,
            shm_path,
            shm_id,
            frozen: None,
            path: path.to_owned(),
            wal_path,
            page_size,
            on_lock_zero: true,
            marked: None,
            beat: Arc::default(),
            held: Duration::ZERO,
            db,
        };
        guard.check_files()?;
        Ok((guard, turned_on))
    }

    /// Signs of life of work on this database.
    pub fn beat(&self) -> &Arc<Beat> {
        &self.beat
    }

    /// The database's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Page size in force when the guard attached.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Device and inode of the database file.
    pub fn file_id(&self) -> (u64, u64) {
        self.db.id()
    }

    /// Raw descriptor of the database file, for page reads beside SQLite.
    pub fn db_file(&self) -> &DbFile {
        &self.db
    }

    /// Raw descriptor of the WAL.
    pub fn wal_file(&self) -> &File {
        &self.wal
    }

    /// R may be on read lock 0: every commit past the app's autocheckpoint threshold pays for it.
    pub fn on_lock_zero(&self) -> bool {
        self.on_lock_zero
    }

    /// How long the last barrier held the write lock: an app's writers waited for as long.
    pub fn held(&self) -> Duration {
        self.held
    }

    /// Bytes of the WAL file now.
    pub fn wal_bytes(&self) -> u64 {
        self.wal.metadata().map_or(0, |m| m.len())
    }

    /// Bytes of the database file now.
    pub fn db_bytes(&self) -> u64 {
        self.db.metadata().map_or(0, |m| m.len())
    }

    /// The paths still lead to the files that are open here.
    pub fn check_files(&self) -> Result<(), GuardError> {
        for (path, expected) in [
            (&self.path, self.db.id()),
            (&self.wal_path, self.wal_id),
            // Another WAL-index: what the app does would not be seen here, and our locks would hold nobody.
            (&self.shm_path, self.shm_id),
        ] {
            match std::fs::metadata(path) {
                Ok(meta) if id(&meta) == expected => {}
                Ok(_) => return Err(GuardError::Replaced(path.clone())),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(GuardError::Replaced(path.clone()));
                }
                Err(e) => return Err(io_error(path, e)),
            }
        }
        Ok(())
    }

    /// What `stat` says of the database file, in one word: size and times.
    pub fn stamp(&self) -> Result<NonZeroU64, GuardError> {
        let meta = self.db.metadata().map_err(|e| io_error(&self.path, e))?;
        let words = [
            i64::try_from(meta.len()).unwrap_or(i64::MAX),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        ];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let word = xxhash_rust::xxh3::xxh3_64(&bytes);
        Ok(NonZeroU64::new(word).unwrap_or(NonZeroU64::MIN))
    }

    /// From now on the file must stay as it was when `stamp` was taken: see invariant 6, which the caller has established.
    pub fn freeze(&mut self, stamp: NonZeroU64) {
        self.frozen = Some(stamp);
    }

    /// The file may change again.
    pub fn thaw(&mut self) {
        self.frozen = None;
    }

    /// The stamp that holds now; `None` where the file may change.
    pub fn frozen(&self) -> Option<NonZeroU64> {
        self.frozen
    }

    /// The database file was written although no SQLite process may write it: another file was copied over it. What is in the WAL does not
    /// continue it.
    pub fn overwritten(&self) -> Result<bool, GuardError> {
        match self.frozen {
            Some(stamp) => Ok(self.stamp()? != stamp),
            None => Ok(false),
        }
    }

    /// One consistent look at WAL header and index.
    ///
    /// A writer that restarts the WAL first sets `mxFrame` to 0, then writes the header, then frames, then `mxFrame`. So an index read
    /// between two equal headers belongs to that header's life or is 0.
    pub fn observe(&self) -> Result<Index, GuardError> {
        let mut before = self.wal_header()?;
        for tried in 0..OBSERVE_TRIES {
            let (max_frame, backfilled) = self
                .check
                .query_row("PRAGMA wal_checkpoint(NOOP)", [], |r| {
                    Ok((r.get::<_, i64>(1)?, r.get::<_, i64>(2)?))
                })
                .map_err(|e| self.sqlite(e))?;
            let after = self.wal_header()?;
            // -1: the index was being written just then. Taken for 0 it would look like a WAL that went back.
            if let (Ok(max_frame), Ok(backfilled)) =
                (u32::try_from(max_frame), u32::try_from(backfilled))
                && before == after
                && (after.is_some() || max_frame == 0)
            {
                return Ok(Index {
                    header: after,
                    max_frame,
                    backfilled,
                });
            }
            before = after;
            if tried > OBSERVE_TRIES / 10 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Err(GuardError::Locked(self.path.clone()))
    }

    /// SQLite's schema cookie: it changes with every change of the schema.
    pub fn schema_cookie(&self) -> Result<u32, GuardError> {
        self.check
            .query_row("PRAGMA schema_version", [], |r| r.get(0))
            .map_err(|e| self.sqlite(e))
    }

    fn wal_header(&self) -> Result<Option<WalHeader>, GuardError> {
        let mut bytes = [0; HEADER_BYTES];
        match self.wal.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(WalHeader::parse(&bytes)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(io_error(&self.wal_path, e)),
        }
    }

    fn sqlite(&self, source: rusqlite::Error) -> GuardError {
        sqlite_error(&self.path, source)
    }
}

fn id(meta: &std::fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}
