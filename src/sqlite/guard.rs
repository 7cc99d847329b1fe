//! Holds one database's WAL without writing to the database, and checkpoints it without losing a frame.
//!
//! Connections: `read` (R) has an open read transaction from [`Guard::attach`] to drop, so no other connection can
//! restart the WAL over frames that were not captured; `spare` (R2) takes over from it; `write` (W) takes the write lock in
//! a barrier and never writes; `check` (C) asks for the WAL-index and runs PASSIVE checkpoints.
//!
//! Invariants
//! 1. Nothing is read past `mxFrame` of the WAL-index (`wal_checkpoint(NOOP)`): frames behind it may be phantoms.
//! 2. R is open at every moment between attach and drop, but inside a barrier, while W holds the write lock.
//! 3. [`Cursor::sealed`] is set under the write lock with everything captured, `nBackfill = mxFrame`, and R open again before W ends; or by
//!    [`Guard::renew`] and [`Guard::reseal`], each with its proof. While that R is held, the next life of the WAL continues ours whatever its salts. Any captured frame clears it.
//! 4. Salts that change while not sealed are a gap. So is a last captured frame that changed or lies past `mxFrame`, and a checksum
//!    mismatch at or before `mxFrame`.
//! 5. R does not rest on read lock 0: [`Guard::leave_lock_zero`] moves it to a mark at the first new frame.
//! 6. No descriptor of the database file is closed while a connection is open (POSIX would drop SQLite's locks), and -shm is
//!    never opened. `db` is one raw descriptor that outlives the connections: fields drop in order of declaration.
//!
//! Proof of 3 for read lock 0: R on lock 0 reads the database file alone, so every backfill must wait for it. Frames committed
//! after the seal are therefore not backfilled, and a WAL with frames that are not backfilled is never restarted. Hence the WAL can
//! only restart at exactly the state that was captured.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, ffi};
use thiserror::Error;

use super::files::{DbFile, lock_holder};
use super::pages::WalPosition;
use super::wal::{FRAME_HEADER_BYTES, FrameHeader, HEADER_BYTES, WalHeader, frame_checksum};
use crate::types::{PageSize, Pgno, page_hash};

/// Oldest SQLite without the WAL-reset bug that a separate checkpointing process triggers (3.51.3).
const SQLITE_MIN_VERSION: i32 = 3_051_003;
/// Retries of reading WAL header and index until both belong to one life; a writer would have to restart the WAL each time.
const OBSERVE_TRIES: u32 = 100;
/// How long a barrier may hold the write lock for another's checkpoint to end: the app's writers wait meanwhile.
const BARRIER_BUDGET: Duration = Duration::from_millis(40);
/// WAL bytes read at once while checking frames: large beside a system call, small beside the memory bound.
const READ_BYTES: usize = 256 << 10;
/// Page cache of each connection in KiB. They read page 1 and nothing else.
const CACHE_KIB: i32 = 64;

/// Why the database cannot be watched.
#[derive(Debug, Error)]
pub enum GuardError {
    /// The bundled SQLite is too old.
    #[error("sqlite {0} has the WAL-reset bug; 3.51.3 or later is needed")]
    OldSqlite(&'static str),
    /// No such file.
    #[error("{0}: no such database file")]
    Missing(PathBuf),
    /// A file of zero bytes: SQLite has not written anything yet.
    #[error("{0}: the file is empty; no app has created a database in it yet")]
    Empty(PathBuf),
    /// Not SQLite's header: another kind of file, or an encrypted database.
    #[error("{0}: not a SQLite database, or an encrypted one")]
    NotADatabase(PathBuf),
    /// The database is in rollback-journal mode.
    #[error("{0}: journal mode is \"{1}\", not WAL")]
    NotWal(PathBuf, String),
    /// Another sidecar on this host has it.
    #[error("{0}: another sidecar on this host replicates this database: {1}")]
    Held(PathBuf, String),
    /// Locked by someone in exclusive mode, or for longer than our patience.
    #[error("{0}: the database is locked by another process")]
    Locked(PathBuf),
    /// The file or its directory cannot be written, which SQLite's shared WAL-index needs.
    #[error("{0}: no permission to write here ({1})")]
    ReadOnly(PathBuf, String),
    /// The database or WAL file under our descriptors is not the one at the path any more.
    #[error("{0}: the file was replaced or deleted")]
    Replaced(PathBuf),
    /// Reading a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Anything else that SQLite said.
    #[error("{path}: {source}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// SQLite's own words.
        source: rusqlite::Error,
    },
}

impl GuardError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::OldSqlite(_) => "rebuild Lifeboat with its bundled SQLite".into(),
            Self::Missing(_) => "check the path, and that the volume is mounted here".into(),
            Self::Empty(_) => "nothing to do: replication starts with the first write of the app".into(),
            Self::NotADatabase(_) => "check the path; encrypted databases cannot be replicated".into(),
            Self::NotWal(path, _) => format!(
                "run: sqlite3 {} 'PRAGMA journal_mode=WAL' - or list it by path without `ensure-wal: false`",
                path.display()
            ),
            Self::Held(..) => "stop one of the two; nothing was changed".into(),
            Self::Locked(_) => "an app with locking_mode=EXCLUSIVE or a long write blocks the sidecar; it is retried".into(),
            Self::ReadOnly(..) => "mount the volume read-write and run as the user who owns the database".into(),
            Self::Replaced(_) => "nothing to do: the new file is compared with the last capture".into(),
            Self::Io { .. } | Self::Sqlite { .. } => return None,
        })
    }
}

/// Why continuity could not be proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The sidecar was not running, or did not record where it was.
    NotWatching,
    /// The WAL started a new life that does not continue what was captured.
    WalRestarted,
    /// The WAL is empty although not everything in it is known to be captured.
    WalTruncated,
    /// The WAL-index lies before the last captured frame.
    IndexWentBack,
    /// The last captured frame is not the one that was captured.
    FrameChanged,
    /// A frame at or before `mxFrame` fails its checksum.
    BadChecksum,
    /// The database or WAL file was replaced or deleted.
    FileReplaced,
    /// The spool was dropped to leave the app its disk space.
    SpoolDropped,
    /// The checksum table was rebuilt from the store.
    StateRebuilt,
}

impl GapReason {
    /// All reasons, for metrics.
    pub const ALL: [GapReason; 9] = [
        Self::NotWatching,
        Self::WalRestarted,
        Self::WalTruncated,
        Self::IndexWentBack,
        Self::FrameChanged,
        Self::BadChecksum,
        Self::FileReplaced,
        Self::SpoolDropped,
        Self::StateRebuilt,
    ];

    /// The word in logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotWatching => "not-watching",
            Self::WalRestarted => "wal-restarted",
            Self::WalTruncated => "wal-truncated",
            Self::IndexWentBack => "index-went-back",
            Self::FrameChanged => "frame-changed",
            Self::BadChecksum => "bad-checksum",
            Self::FileReplaced => "file-replaced",
            Self::SpoolDropped => "spool-dropped",
            Self::StateRebuilt => "state-rebuilt",
        }
    }
}

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

/// Committed frames after a cursor, not yet written anywhere.
#[derive(Debug)]
pub struct Changes {
    /// Where the cursor is after them.
    pub position: WalPosition,
    /// Header of the life that they belong to.
    pub header: WalHeader,
    /// First frame of them.
    pub first_frame: u32,
    /// Database size in pages after the last commit.
    pub commit: u32,
    /// For each changed page, ascending: the last frame that holds it and the page's hash.
    pub pages: Vec<ChangedPage>,
}

/// The last version of one page in a run of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedPage {
    /// Page number.
    pub page: Pgno,
    /// Frame that holds it.
    pub frame: u32,
    /// [`page_hash`] of its content.
    pub hash: u64,
}

/// What follows a cursor.
#[derive(Debug)]
pub enum Look {
    /// Nothing new was committed.
    Nothing,
    /// Frames to capture.
    Changes(Changes),
    /// Continuity cannot be proven.
    Gap(GapReason),
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
    path: PathBuf,
    wal_path: PathBuf,
    page_size: PageSize,
    on_lock_zero: bool,
    // Last: closed after every connection (invariant 6).
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
        let guard = Self {
            read,
            spare,
            write,
            check,
            wal,
            wal_id,
            path: path.to_owned(),
            wal_path,
            page_size,
            on_lock_zero: true,
            db,
        };
        guard.check_files()?;
        Ok((guard, turned_on))
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
        for (path, expected) in [(&self.path, self.db.id()), (&self.wal_path, self.wal_id)] {
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

    /// One consistent look at WAL header and index.
    ///
    /// A writer that restarts the WAL first sets `mxFrame` to 0, then writes the header, then frames, then `mxFrame`. So an index read
    /// between two equal headers belongs to that header's life or is 0.
    pub fn observe(&self) -> Result<Index, GuardError> {
        let mut before = self.wal_header()?;
        for _ in 0..OBSERVE_TRIES {
            let (max_frame, backfilled) = self
                .check
                .query_row("PRAGMA wal_checkpoint(NOOP)", [], |r| {
                    Ok((r.get::<_, i64>(1)?, r.get::<_, i64>(2)?))
                })
                .map_err(|e| self.sqlite(e))?;
            let after = self.wal_header()?;
            if before == after && (after.is_some() || max_frame <= 0) {
                let frames = |n: i64| u32::try_from(n).unwrap_or(0);
                return Ok(Index {
                    header: after,
                    max_frame: frames(max_frame),
                    backfilled: frames(backfilled),
                });
            }
            before = after;
        }
        Err(GuardError::Locked(self.path.clone()))
    }

    /// What was committed after `cursor`. Reads and checks every such frame; keeps nothing of what lies behind `mxFrame`.
    pub fn look(&self, cursor: &Cursor) -> Result<Look, GuardError> {
        self.look_until(cursor, &self.observe()?)
    }

    /// The same up to an index that was observed before.
    pub fn look_until(&self, cursor: &Cursor, index: &Index) -> Result<Look, GuardError> {
        let from = cursor.position;
        let Some(header) = index.header else {
            return Ok(if cursor.sealed {
                Look::Nothing
            } else {
                Look::Gap(GapReason::WalTruncated)
            });
        };
        if header.page_size != self.page_size {
            return Ok(Look::Gap(GapReason::FileReplaced));
        }
        let start = if header.salt == from.salt {
            if index.max_frame < from.frame {
                let restarting = index.max_frame == 0 && cursor.sealed;
                return Ok(if restarting {
                    Look::Nothing
                } else {
                    Look::Gap(GapReason::IndexWentBack)
                });
            }
            if !self.is_at(&header, &from)? {
                return Ok(Look::Gap(GapReason::FrameChanged));
            }
            from
        } else if cursor.sealed {
            WalPosition {
                salt: header.salt,
                frame: 0,
                cksum: header.cksum,
            }
        } else {
            return Ok(Look::Gap(GapReason::WalRestarted));
        };
        if index.max_frame == start.frame {
            return Ok(Look::Nothing);
        }
        Ok(match self.read_frames(&header, start, index.max_frame)? {
            Some(changes) => Look::Changes(changes),
            None => Look::Gap(GapReason::BadChecksum),
        })
    }

    /// The frame at `position` is the one that was captured.
    pub fn is_at(&self, header: &WalHeader, position: &WalPosition) -> Result<bool, GuardError> {
        if position.frame == 0 {
            return Ok(position.cksum == header.cksum);
        }
        let mut bytes = [0; FRAME_HEADER_BYTES];
        match self
            .wal
            .read_exact_at(&mut bytes, header.frame_offset(position.frame))
        {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(io_error(&self.wal_path, e)),
        }
        Ok(FrameHeader::parse(&bytes)
            .is_some_and(|f| f.salt == position.salt && f.cksum == position.cksum))
    }

    /// Reads and checks frames after `start` up to `last`; `None` if one fails its salts or checksum, or `last` ends no commit.
    pub fn read_frames(
        &self,
        header: &WalHeader,
        start: WalPosition,
        last: u32,
    ) -> Result<Option<Changes>, GuardError> {
        let frame_bytes = header.frame_bytes();
        let batch = (READ_BYTES / frame_bytes).max(1);
        let mut buf = vec![0; batch.min((last - start.frame) as usize) * frame_bytes];
        let mut seen: std::collections::HashMap<u32, (u32, u64)> = std::collections::HashMap::new();
        let (mut frame, mut cksum, mut commit) = (start.frame, start.cksum, 0);
        while frame < last {
            let count = batch.min((last - frame) as usize);
            let bytes = &mut buf[..count * frame_bytes];
            match self
                .wal
                .read_exact_at(bytes, header.frame_offset(frame + 1))
            {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(e) => return Err(io_error(&self.wal_path, e)),
            }
            for one in bytes.chunks_exact(frame_bytes) {
                frame += 1;
                cksum = frame_checksum(header.big_endian, one, cksum);
                let Some(head) = FrameHeader::parse(one) else {
                    return Ok(None);
                };
                let Some(page) = Pgno::new(head.pgno) else {
                    return Ok(None);
                };
                if head.salt != header.salt || head.cksum != cksum {
                    return Ok(None);
                }
                commit = head.commit;
                seen.insert(
                    page.get(),
                    (frame, page_hash(page, &one[FRAME_HEADER_BYTES..])),
                );
            }
        }
        if commit == 0 {
            return Ok(None);
        }
        let mut pages: Vec<ChangedPage> = seen
            .into_iter()
            .filter(|(page, _)| *page <= commit && *page != header.page_size.lock_page().get())
            .filter_map(|(page, (frame, hash))| {
                Some(ChangedPage {
                    page: Pgno::new(page)?,
                    frame,
                    hash,
                })
            })
            .collect();
        pages.sort_unstable_by_key(|p| p.page);
        let position = WalPosition {
            salt: header.salt,
            frame: last,
            cksum,
        };
        Ok(Some(Changes {
            position,
            header: *header,
            first_frame: start.frame + 1,
            commit,
            pages,
        }))
    }

    /// Reads the page in a frame.
    pub fn frame_page(
        &self,
        header: &WalHeader,
        frame: u32,
        buf: &mut [u8],
    ) -> Result<(), GuardError> {
        let at = header.frame_offset(frame) + FRAME_HEADER_BYTES as u64;
        self.wal
            .read_exact_at(buf, at)
            .map_err(|e| io_error(&self.wal_path, e))
    }

    /// Reads a page of the database file; what lies beyond its end is zero, as SQLite takes it.
    pub fn file_page(&self, page: Pgno, buf: &mut [u8]) -> Result<(), GuardError> {
        read_or_zero(&self.db, self.page_size.offset(page), buf)
            .map_err(|e| io_error(&self.path, e))
    }

    /// Moves R to a fresh read transaction, so that checkpoints may copy everything up to now, and seals `cursor`. The caller must have
    /// captured since the old R began, so that everything up to its mark is captured.
    ///
    /// Proof of the seal: the old R ends only after the new one began, so until then no more than its mark was backfilled, and all of that
    /// is captured. If the new R is on a mark, the WAL cannot restart at all. If it is on lock 0, everything was backfilled when it began,
    /// hence captured, and nothing is backfilled from then on: the WAL can restart only at the captured state.
    pub fn renew(&mut self, cursor: &mut Cursor) -> Result<(), GuardError> {
        self.swap_reader()?;
        cursor.sealed = true;
        Ok(())
    }

    fn swap_reader(&mut self) -> Result<(), GuardError> {
        begin_read(&self.spare).map_err(|e| self.sqlite(e))?;
        std::mem::swap(&mut self.read, &mut self.spare);
        self.on_lock_zero = true;
        end(&self.spare).map_err(|e| self.sqlite(e))
    }

    /// Seals without the write lock if everything is captured and backfilled, and R has been open since before this look.
    ///
    /// On lock 0 nothing can have been backfilled since R began, so equal counts mean that nothing was committed since; on a mark
    /// the WAL cannot restart at all. Either way it can restart only at the captured state.
    pub fn reseal(&self, cursor: &mut Cursor) -> Result<(), GuardError> {
        let index = self.observe()?;
        let at = match index.header {
            None => cursor.sealed,
            Some(header) => {
                header.salt == cursor.position.salt
                    && index.max_frame == cursor.position.frame
                    && index.max_frame == index.backfilled
                    && self.is_at(&header, &cursor.position)?
            }
        };
        cursor.sealed |= at;
        Ok(())
    }

    /// Leaves read lock 0 if frames exist that make a mark possible. `true` if R is on a mark now.
    ///
    /// While R is on lock 0 nothing can be backfilled, so with `mxFrame > nBackfill` a new read transaction gets a mark.
    pub fn leave_lock_zero(&mut self) -> Result<bool, GuardError> {
        if !self.on_lock_zero {
            return Ok(true);
        }
        let index = self.observe()?;
        if index.max_frame > index.backfilled {
            self.swap_reader()?;
            self.on_lock_zero = false;
        }
        Ok(!self.on_lock_zero)
    }

    /// Copies what may be copied into the database file without blocking anyone. `false`: another connection is checkpointing now.
    pub fn checkpoint_passive(&self) -> Result<bool, GuardError> {
        match self
            .check
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |r| r.get::<_, i64>(0))
        {
            Ok(busy) => Ok(busy == 0),
            Err(e) if is_busy(&e) => Ok(false),
            Err(e) => Err(self.sqlite(e)),
        }
    }

    /// The barrier: takes the write lock (waiting at most `patience`), captures the rest through `capture`, checkpoints, renews R
    /// and lets go. `capture` must make durable locally what it captures and bring `cursor` to its end; what it returns as an
    /// error ends the barrier without sealing.
    pub fn barrier<E: From<GuardError>>(
        &mut self,
        cursor: &mut Cursor,
        patience: Duration,
        capture: impl FnOnce(&Guard, &mut Cursor) -> Result<(), E>,
    ) -> Result<Barrier, E> {
        self.write
            .busy_timeout(patience)
            .map_err(|e| self.sqlite(e))?;
        match self.write.execute_batch("BEGIN IMMEDIATE") {
            Ok(()) => {}
            Err(e) if is_busy(&e) => return Ok(Barrier::Busy),
            Err(e) => return Err(self.sqlite(e).into()),
        }
        let result = capture(self, cursor).and_then(|()| self.seal(cursor).map_err(E::from));
        let ended = end(&self.write).map_err(|e| self.sqlite(e));
        let outcome = result?;
        ended?;
        Ok(outcome)
    }

    /// Under the write lock, everything captured.
    fn seal(&mut self, cursor: &mut Cursor) -> Result<Barrier, GuardError> {
        cursor.sealed = false;
        end(&self.read).map_err(|e| self.sqlite(e))?;
        // An app's own autocheckpoint may be at work: it ends by itself, and soon, since the cheap part was done before.
        let begun = std::time::Instant::now();
        let mut checkpoint = self.checkpoint_passive();
        while matches!(checkpoint, Ok(false)) && begun.elapsed() < BARRIER_BUDGET {
            std::thread::sleep(Duration::from_millis(1));
            checkpoint = self.checkpoint_passive();
        }
        begin_read(&self.read).map_err(|e| self.sqlite(e))?;
        self.on_lock_zero = true;
        checkpoint?;
        let index = self.observe()?;
        let captured_all = match index.header {
            None => true,
            Some(header) => {
                index.max_frame == 0
                    || (header.salt == cursor.position.salt
                        && index.max_frame == cursor.position.frame)
            }
        };
        let backfilled = index.max_frame == index.backfilled || index.max_frame == 0;
        self.on_lock_zero = backfilled;
        if !(captured_all && backfilled) {
            return Ok(Barrier::Partial);
        }
        cursor.sealed = true;
        Ok(Barrier::Sealed)
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

/// Fills `buf` from `at`; what lies beyond the end of the file is zero.
pub(super) fn read_or_zero(file: &File, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, at) {
            Ok(0) => {
                buf.fill(0);
                return Ok(());
            }
            Ok(n) => {
                buf = &mut buf[n..];
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

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
fn require_wal(conn: &Connection, path: &Path, ensure_wal: bool) -> Result<bool, GuardError> {
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
pub(super) fn begin_read(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("BEGIN")?;
    match conn.query_row("PRAGMA schema_version", [], |_| Ok(())) {
        Ok(()) => Ok(()),
        Err(e) => {
            conn.execute_batch("ROLLBACK")?;
            Err(e)
        }
    }
}

fn end(conn: &Connection) -> rusqlite::Result<()> {
    if conn.is_autocommit() {
        Ok(())
    } else {
        conn.execute_batch("ROLLBACK")
    }
}

fn check_magic(db: &File, path: &Path) -> Result<(), GuardError> {
    let mut magic = [0; 16];
    read_or_zero(db, 0, &mut magic).map_err(|e| io_error(path, e))?;
    if &magic == b"SQLite format 3\0" {
        Ok(())
    } else {
        Err(GuardError::NotADatabase(path.to_owned()))
    }
}

fn id(meta: &std::fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(
        error.sqlite_error_code(),
        Some(DatabaseBusy | DatabaseLocked)
    )
}

pub(super) fn io_error(path: &Path, source: io::Error) -> GuardError {
    match source.kind() {
        io::ErrorKind::NotFound => GuardError::Missing(path.to_owned()),
        io::ErrorKind::PermissionDenied => {
            GuardError::ReadOnly(path.to_owned(), source.to_string())
        }
        _ => GuardError::Io {
            path: path.to_owned(),
            source,
        },
    }
}

pub(super) fn sqlite_error(path: &Path, source: rusqlite::Error) -> GuardError {
    use rusqlite::ErrorCode::{CannotOpen, NotADatabase, PermissionDenied, ReadOnly};
    match source.sqlite_error_code() {
        _ if is_busy(&source) => GuardError::Locked(path.to_owned()),
        Some(NotADatabase) => GuardError::NotADatabase(path.to_owned()),
        Some(ReadOnly | PermissionDenied | CannotOpen) => {
            GuardError::ReadOnly(path.to_owned(), source.to_string())
        }
        _ => GuardError::Sqlite {
            path: path.to_owned(),
            source,
        },
    }
}
