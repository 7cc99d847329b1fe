//! The whole database at one moment, read beside the app: the file, overlaid with the committed frames of this life of the WAL.
//!
//! A view pins the WAL with a read transaction of its own, begun before the WAL-index was looked at. Until it drops, checkpoints
//! copy at most what the overlay holds, and the WAL does not restart; it grows, so a view that is read slowly is a
//! [`LiveView`](super::live::LiveView).

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rusqlite::Connection;

use super::beat::Beat;
use super::files::DbFile;
use super::guard::{self, Guard, GuardError, Index};
use super::pages::WalPosition;
use super::wal::{FRAME_HEADER_BYTES, HEADER_BYTES, WalHeader};
use crate::types::{PageSize, Pgno, page_hash};

/// Bytes of the database file read at once.
const READ_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub struct View {
    /// Held for its read transaction alone.
    pin: Option<Connection>,
    wal: File,
    header: Option<WalHeader>,
    overlay: HashMap<u32, u32>,
    commit: u32,
    page_size: PageSize,
    position: WalPosition,
    complete: bool,
    path: PathBuf,
    beat: Option<std::sync::Arc<Beat>>,
    // Last: closed after the connection.
    db: DbFile,
}

impl View {
    /// Begins the pin. Call before [`Guard::observe`].
    pub fn pin(guard: &Guard) -> Result<Connection, GuardError> {
        let pin = guard::open(guard.path())?;
        guard::begin_read(&pin).map_err(|e| guard::sqlite_error(guard.path(), e))?;
        Ok(pin)
    }

    /// The database as of `index`, which was observed after `pin` began. `None` if the WAL does not hold what the index says.
    pub fn at(guard: &Guard, pin: Connection, index: &Index) -> Result<Option<Self>, GuardError> {
        let wal = guard
            .wal_file()
            .try_clone()
            .map_err(|e| guard::io_error(guard.path(), e))?;
        let mut view = Self {
            pin: Some(pin),
            wal,
            header: index.header,
            overlay: HashMap::new(),
            commit: 0,
            page_size: guard.page_size(),
            position: WalPosition {
                salt: (0, 0),
                frame: 0,
                cksum: (0, 0),
            },
            complete: index.max_frame == index.backfilled,
            path: guard.path().to_owned(),
            beat: Some(std::sync::Arc::clone(guard.beat())),
            db: guard.db_file().clone(),
        };
        if let Some(header) = index.header {
            let start = WalPosition {
                salt: header.salt,
                frame: 0,
                cksum: header.cksum,
            };
            view.position = start;
            if index.max_frame > 0 {
                // Also when all of it is in the file already: the checksum at its end is the position to go on from.
                let Some(changes) = guard.read_frames(&header, start, index.max_frame)? else {
                    return Ok(None);
                };
                view.position = changes.position;
                view.commit = changes.commit;
                if !view.complete {
                    view.overlay = changes
                        .pages
                        .iter()
                        .map(|p| (p.page.get(), p.frame))
                        .collect();
                }
            }
        }
        if view.commit == 0 {
            view.commit = view.pages_in_file()?;
        }
        Ok(Some(view))
    }

    /// The WAL may neither restart nor be backfilled behind the view.
    pub(super) fn is_pinned(&self) -> bool {
        self.pin.is_some()
    }

    /// Lets the WAL go. From now on pages that changed must come from elsewhere.
    pub(super) fn unpin(&mut self) {
        self.pin = None;
    }

    /// No sign of the capture's life: the reader waits for a store.
    #[must_use]
    pub(super) fn without_beat(mut self) -> Self {
        self.beat = None;
        self
    }

    /// Reads pages in a row from `first`, `buf` full. Without the pin the WAL may have restarted, which needs all of it backfilled: then the
    /// overlay is in the database file.
    pub(super) fn run(&mut self, first: u32, buf: &mut [u8]) -> Result<(), GuardError> {
        loop {
            self.read_run(first, buf)?;
            // The header changes before the first frame of a new life is written: unchanged after the read means that the frames were ours.
            if self.overlay.is_empty() || self.is_pinned() || self.same_life()? {
                return Ok(());
            }
            self.overlay.clear();
        }
    }

    fn read_run(&self, first: u32, buf: &mut [u8]) -> Result<(), GuardError> {
        let size = self.page_size.bytes();
        let at = u64::from(first - 1) * size as u64;
        guard::read_or_zero(&self.db, at, buf).map_err(|e| guard::io_error(&self.path, e))?;
        if self.overlay.is_empty() {
            return Ok(());
        }
        for (number, data) in (first..=u32::MAX).zip(buf.chunks_exact_mut(size)) {
            if let (Some(page), true) = (Pgno::new(number), self.overlay.contains_key(&number)) {
                match self.page(page, data) {
                    // Truncated: a restart, which the caller sees.
                    Err(GuardError::Io { source, .. })
                        if source.kind() == std::io::ErrorKind::UnexpectedEof
                            && !self.is_pinned() => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    fn same_life(&self) -> Result<bool, GuardError> {
        let mut bytes = [0; HEADER_BYTES];
        match self.wal.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(WalHeader::parse(&bytes) == self.header),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(guard::io_error(&self.path, e)),
        }
    }

    /// Database size in pages.
    pub fn commit(&self) -> u32 {
        self.commit
    }

    /// Page size.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Where in the WAL the view ends.
    pub fn position(&self) -> WalPosition {
        self.position
    }

    /// Everything committed is in the database file: capture may go on sealed, given a read transaction held since before.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Reads one page.
    pub fn page(&self, page: Pgno, buf: &mut [u8]) -> Result<(), GuardError> {
        let result = match (self.overlay.get(&page.get()), self.header) {
            (Some(frame), Some(header)) => self
                .wal
                .read_exact_at(buf, header.frame_offset(*frame) + FRAME_HEADER_BYTES as u64),
            _ => guard::read_or_zero(&self.db, self.page_size.offset(page), buf),
        };
        result.map_err(|e| guard::io_error(&self.path, e))
    }

    /// Calls `each` with every page but the lock page, ascending. The file is read in large pieces.
    pub fn pages<E: From<GuardError>>(
        &self,
        mut each: impl FnMut(Pgno, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let size = self.page_size.bytes();
        let batch = (READ_BYTES / size) as u32;
        let mut buf = vec![0; batch as usize * size];
        let lock_page = self.page_size.lock_page();
        let mut first = 1;
        while first <= self.commit {
            if let Some(beat) = &self.beat {
                beat.touch();
            }
            let count = batch.min(self.commit - first + 1);
            let bytes = &mut buf[..count as usize * size];
            self.read_run(first, bytes)?;
            for (number, data) in (first..=u32::MAX).zip(bytes.chunks_exact(size)) {
                match Pgno::new(number) {
                    Some(page) if page != lock_page => each(page, data)?,
                    _ => {}
                }
            }
            first = match first.checked_add(count) {
                Some(next) => next,
                None => break,
            };
        }
        Ok(())
    }

    /// Calls `each` with the hash of every page.
    pub fn hashes<E: From<GuardError>>(
        &self,
        mut each: impl FnMut(Pgno, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        self.pages(|page, data| each(page, page_hash(page, data)))
    }

    /// Size in pages as the database header says, if it is to be believed
    /// (<https://sqlite.org/fileformat2.html#in_header_database_size>), else as the file's length says.
    fn pages_in_file(&self) -> Result<u32, GuardError> {
        let mut head = [0; 100];
        guard::read_or_zero(&self.db, 0, &mut head).map_err(|e| guard::io_error(&self.path, e))?;
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if word(28) != 0 && word(24) == word(92) {
            return Ok(word(28));
        }
        let bytes = self
            .db
            .metadata()
            .map_err(|e| guard::io_error(&self.path, e))?
            .len();
        Ok(u32::try_from(bytes / u64::from(self.page_size.get())).unwrap_or(u32::MAX))
    }
}
