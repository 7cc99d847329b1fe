//! LTX files out of one database: captures of what was committed, gap captures of what differs, and the base.
//!
//! Invariants
//! - A TXID is used for a file only once, and rises by one.
//! - Order of one capture: LTX file durable locally, checksum table, cursor. A crash between them repeats the capture or ends in a gap
//!   capture; it never skips frames.
//! - Every file carries the database checksum before and after it.
//! - After an error the cursor is where it was: the caller may try again or drop the capture and resume.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::guard::{Barrier, Changes, Cursor, GapReason, Guard, GuardError, Index, Look};
use super::pages::{Described, PageTable, WalPosition};
use super::view::View;
use crate::ltx;
use crate::replica::spool::{Draft, Spool, SpoolError};
use crate::types::{DbChecksum, Entry, Level, Lineage, Millis, PageSize, Pgno, Span, Txid};

/// WAL size above which a checkpoint is worth a barrier, in frames: SQLite's own autocheckpoint threshold.
const CHECKPOINT_FRAMES: u32 = 1000;
/// How long a barrier waits for the write lock. Writers of the app queue behind each other, not behind us.
const BARRIER_PATIENCE: Duration = Duration::from_millis(20);
/// Barriers in a row while they come out partial: with every read mark taken our own write lock sits on an old one, which the next try
/// usually does not. Each holds the lock for about a millisecond.
const BARRIER_TRIES: u32 = 6;
/// WAL size at which a barrier may wait longer, because something always held the lock: ten times the usual.
const URGENT_FRAMES: u32 = 10 * CHECKPOINT_FRAMES;
/// The longer wait.
const URGENT_PATIENCE: Duration = Duration::from_millis(500);
/// Attempts to see a consistent WAL before a view is given up.
const VIEW_TRIES: u32 = 5;
/// Litestream takes over only behind a level-0 file whose WAL offset is at least the WAL header's size.
const WAL_OFFSET_MIN: i64 = 32;
/// Buffer of a file being written.
const WRITE_BUFFER_BYTES: usize = 256 << 10;

/// Why a capture failed. Nothing was lost: see the module.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The database.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// Writing a local LTX file or the checksum table.
    #[error("writing local state: {0}")]
    Local(#[from] io::Error),
    /// Encoding.
    #[error("writing a local LTX file: {0}")]
    Ltx(#[from] ltx::Error),
    /// Rolling up.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The WAL kept changing under every attempt to read it whole.
    #[error("{0}: no consistent view of the database could be read")]
    NoView(std::path::PathBuf),
    /// A gap was found where no gap capture can run.
    #[error("continuity was lost ({})", .0.word())]
    Gap(GapReason),
}

impl CaptureError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Guard(e) => e.hint(),
            Self::Local(e) if e.kind() == io::ErrorKind::StorageFull => Some(
                "free space on the volume of the state directory; capture goes on by itself".into(),
            ),
            _ => None,
        }
    }
}

/// A file that a capture wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The local file.
    pub entry: Entry,
    /// Pages in it.
    pub pages: u32,
    /// Database size after it, in pages.
    pub commit: u32,
}

/// What one look came to.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing was committed.
    Nothing,
    /// A file was written.
    Captured(Captured),
    /// Call [`Capture::gap`].
    Gap(GapReason),
}

/// What a gap capture came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GapReport {
    /// The file with the pages that differ; `None` if none does.
    pub captured: Option<Captured>,
    /// Pages that are as the last capture left them.
    pub same: u64,
    /// Pages compared.
    pub compared: u64,
    /// The page size changed: nothing before this TXID can be continued, every store needs a new base.
    pub new_base: bool,
}

/// Identity that goes into every file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// History.
    pub lineage: Lineage,
    /// Owner's epoch.
    pub epoch: u32,
}

/// Capture of one database.
#[derive(Debug)]
pub struct Capture {
    guard: Guard,
    table: PageTable,
    cursor: Cursor,
    identity: Identity,
    last_created: Millis,
}

impl Capture {
    /// Begins a history: hashes the whole database as TXID 1 and writes the level-0 file of TXID 2 beside it, which holds page 1 again.
    /// The base itself is streamed from [`Capture::view`].
    pub fn begin(
        guard: Guard,
        table_path: &Path,
        spool: &Spool,
        identity: Identity,
        now: Millis,
    ) -> Result<Self, CaptureError> {
        let view = view_now(&guard)?;
        let table = build_table(&guard, &view, table_path, identity.lineage, Txid::FIRST)?;
        let cursor = Cursor {
            position: view.position(),
            sealed: view.is_complete(),
        };
        let mut capture = Self {
            guard,
            table,
            cursor,
            identity,
            last_created: now,
        };
        capture.write_page_one(&view, spool, now)?;
        Ok(capture)
    }

    /// Goes on from a trusted table. If the WAL still holds the position that the table names, nothing needs comparing; otherwise the
    /// reason for the gap capture that the caller owes is returned.
    pub fn resume(
        guard: Guard,
        table: PageTable,
        identity: Identity,
        last_created: Millis,
    ) -> Result<(Self, Option<GapReason>), CaptureError> {
        let position = table.about().position;
        let mut gap = None;
        if table.about().file_id != guard.file_id() || table.about().page_size != guard.page_size()
        {
            gap = Some(GapReason::FileReplaced);
        }
        let cursor = Cursor {
            position: position.unwrap_or(WalPosition {
                salt: (0, 0),
                frame: 0,
                cksum: (0, 0),
            }),
            sealed: false,
        };
        let mut capture = Self {
            guard,
            table,
            cursor,
            identity,
            last_created,
        };
        if gap.is_none() {
            gap = capture.find_gap(position)?;
        }
        if gap.is_none() {
            capture.guard.reseal(&mut capture.cursor)?;
        }
        Ok((capture, gap))
    }

    fn find_gap(&self, position: Option<WalPosition>) -> Result<Option<GapReason>, CaptureError> {
        let index = self.guard.observe()?;
        let same_life = match (position, index.header) {
            (Some(position), Some(header)) => {
                header.salt == position.salt
                    && position.frame > 0
                    && position.frame <= index.max_frame
                    && self.guard.is_at(&header, &position)?
            }
            _ => false,
        };
        Ok((!same_life).then_some(GapReason::NotWatching))
    }

    /// The last captured TXID.
    pub fn txid(&self) -> Txid {
        self.table.about().txid
    }

    /// Checksum of the database at [`Capture::txid`].
    pub fn checksum(&self) -> DbChecksum {
        self.table.checksum()
    }

    /// What the table describes.
    pub fn about(&self) -> &Described {
        self.table.about()
    }

    /// The guard, for sizes and files.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Makes the checksum table durable.
    pub fn sync_table(&self) -> io::Result<()> {
        self.table.sync()
    }

    /// New owner's epoch or lineage for the files to come.
    pub fn set_identity(&mut self, identity: Identity) -> io::Result<()> {
        self.identity = identity;
        let about = Described {
            lineage: identity.lineage,
            ..*self.table.about()
        };
        self.table.describe(about)
    }

    /// Captures what was committed since the last capture, as one TXID.
    pub fn capture(&mut self, spool: &Spool, now: Millis) -> Result<Outcome, CaptureError> {
        self.guard.check_files()?;
        let index = self.guard.observe()?;
        self.capture_until(&index, spool, now)
    }

    fn capture_gapless(
        &mut self,
        spool: &Spool,
        now: Millis,
    ) -> Result<Option<Captured>, CaptureError> {
        match self.capture(spool, now)? {
            Outcome::Gap(reason) => Err(CaptureError::Gap(reason)),
            Outcome::Captured(captured) => Ok(Some(captured)),
            Outcome::Nothing => Ok(None),
        }
    }

    fn capture_until(
        &mut self,
        index: &Index,
        spool: &Spool,
        now: Millis,
    ) -> Result<Outcome, CaptureError> {
        match self.guard.look_until(&self.cursor, index)? {
            Look::Nothing => Ok(Outcome::Nothing),
            Look::Gap(reason) => Ok(Outcome::Gap(reason)),
            Look::Changes(changes) => {
                let created = now.max(self.last_created);
                let captured = write_changes(
                    &self.guard,
                    &mut self.table,
                    &mut self.cursor,
                    self.identity,
                    &changes,
                    spool,
                    created,
                )?;
                self.last_created = created;
                Ok(Outcome::Captured(captured))
            }
        }
    }

    /// Whether anything was committed that is not captured: a cheap look at the WAL-index.
    pub fn pending(&self) -> Result<bool, CaptureError> {
        let index = self.guard.observe()?;
        Ok(match index.header {
            None => !self.cursor.sealed,
            Some(header) if header.salt == self.cursor.position.salt => {
                index.max_frame != self.cursor.position.frame
                    && !(index.max_frame == 0 && self.cursor.sealed)
            }
            Some(_) => index.max_frame > 0 || !self.cursor.sealed,
        })
    }

    /// Moves the read transaction off lock 0 as soon as that is possible. `false`: still on it, ask again soon after the next write.
    pub fn leave_lock_zero(&mut self) -> Result<bool, CaptureError> {
        Ok(self.guard.leave_lock_zero()?)
    }

    /// Checkpoints if the WAL is large enough for it: the cheap part first, then the barrier for the rest.
    /// Returns what the barrier came to, or `None` if there was no need, and the files that were captured on the way.
    pub fn checkpoint(
        &mut self,
        spool: &Spool,
        now: Millis,
        force: bool,
    ) -> Result<(Option<Barrier>, Vec<Captured>), CaptureError> {
        let frames = self.cursor.position.frame;
        if self.cursor.sealed || (frames < CHECKPOINT_FRAMES && !force) {
            return Ok((None, Vec::new()));
        }
        let mut captured = Vec::from_iter(self.capture_gapless(spool, now)?);
        self.guard.renew(&mut self.cursor)?;
        captured.extend(self.capture_gapless(spool, now)?);
        self.guard.checkpoint_passive()?;
        let patience = if frames >= URGENT_FRAMES || force {
            URGENT_PATIENCE
        } else {
            BARRIER_PATIENCE
        };
        let Self {
            guard,
            table,
            cursor,
            identity,
            last_created,
        } = self;
        let created = now.max(*last_created);
        let mut outcome = Barrier::Busy;
        for _ in 0..BARRIER_TRIES {
            outcome = guard.barrier(cursor, patience, |guard, cursor| {
                match guard.look(cursor)? {
                    Look::Nothing => Ok(()),
                    Look::Gap(reason) => Err(CaptureError::Gap(reason)),
                    Look::Changes(changes) => {
                        let one = write_changes(
                            guard, table, cursor, *identity, &changes, spool, created,
                        )?;
                        captured.push(one);
                        Ok(())
                    }
                }
            })?;
            if outcome != Barrier::Partial {
                break;
            }
            guard.renew(cursor)?;
        }
        *last_created = created;
        Ok((Some(outcome), captured))
    }

    /// Compares every page of the live database with the table and writes one file with the pages that differ.
    pub fn gap(
        &mut self,
        table_path: &Path,
        spool: &Spool,
        now: Millis,
    ) -> Result<GapReport, CaptureError> {
        let view = view_now(&self.guard)?;
        let created = now.max(self.last_created);
        let txid = self.txid().next();
        if view.page_size() != self.table.about().page_size {
            self.table = build_table(&self.guard, &view, table_path, self.identity.lineage, txid)?;
            self.cursor = Cursor {
                position: view.position(),
                sealed: view.is_complete(),
            };
            let captured = self.write_page_one(&view, spool, created)?;
            let compared = u64::from(view.commit());
            return Ok(GapReport {
                captured: Some(captured),
                same: 0,
                compared,
                new_base: true,
            });
        }
        let differing = self.differing(&view)?;
        let compared = u64::from(view.commit().max(self.table.about().commit));
        let same = u64::from(view.commit().min(self.table.about().commit))
            .saturating_sub(differing.len() as u64);
        let mut captured = None;
        let about = self.described(&view, txid);
        if differing.is_empty() && view.commit() == self.table.about().commit {
            self.table.describe(Described {
                txid: self.txid(),
                ..about
            })?;
        } else {
            let mut updates = differing;
            if updates.is_empty() {
                let one = first_page(&view)?;
                updates.push((FIRST_PAGE, one.0));
            }
            captured = Some(self.write_view(&view, &updates, about, spool, created)?);
        }
        self.cursor = Cursor {
            position: view.position(),
            sealed: view.is_complete(),
        };
        drop(view);
        self.last_created = created;
        Ok(GapReport {
            captured,
            same,
            compared,
            new_base: false,
        })
    }

    /// How many pages are as the table says, of how many; writes nothing.
    pub fn compare(&self) -> Result<(u64, u64), CaptureError> {
        let view = view_now(&self.guard)?;
        let compared = u64::from(view.commit().max(self.table.about().commit));
        if view.page_size() != self.table.about().page_size {
            return Ok((0, compared));
        }
        let common = u64::from(view.commit().min(self.table.about().commit));
        let beyond = u64::from(view.commit()).saturating_sub(common);
        let differing = (self.differing(&view)?.len() as u64).saturating_sub(beyond);
        Ok((common.saturating_sub(differing), compared))
    }

    /// Everything committed so far captured, and the whole database at exactly that TXID. The WAL is pinned while the view lives.
    pub fn view(
        &mut self,
        spool: &Spool,
        now: Millis,
    ) -> Result<(View, Option<Captured>), CaptureError> {
        let pin = View::pin(&self.guard)?;
        self.guard.check_files()?;
        let index = self.guard.observe()?;
        let captured = match self.capture_until(&index, spool, now)? {
            Outcome::Gap(reason) => return Err(CaptureError::Gap(reason)),
            Outcome::Captured(c) => Some(c),
            Outcome::Nothing => None,
        };
        match View::at(&self.guard, pin, &index)? {
            Some(view) => Ok((view, captured)),
            None => Err(CaptureError::NoView(self.guard.path().to_owned())),
        }
    }

    /// Header of a base of the current TXID.
    pub fn base_header(&self, now: Millis) -> ltx::Header {
        let about = self.table.about();
        ltx::Header {
            page_size: about.page_size,
            commit: about.commit,
            min: Txid::FIRST,
            max: about.txid,
            timestamp: now.max(self.last_created),
            wal_offset: 0,
            wal_size: 0,
            salt: (0, 0),
            lineage: Some(self.identity.lineage),
            pre: None,
            post: Some(self.table.checksum()),
            epoch: self.identity.epoch,
        }
    }

    fn described(&self, view: &View, txid: Txid) -> Described {
        Described {
            lineage: self.identity.lineage,
            txid,
            page_size: view.page_size(),
            commit: view.commit(),
            position: Some(view.position()),
            file_id: self.guard.file_id(),
        }
    }

    fn differing(&self, view: &View) -> Result<Vec<(Pgno, u64)>, CaptureError> {
        let mut differing = Vec::new();
        let mut known = vec![0_u64; 0];
        let mut known_from = 1_u32;
        /// Entries fetched at once.
        const BATCH_ENTRIES: u32 = 8192;
        view.hashes(|page, hash| -> Result<(), CaptureError> {
            let number = page.get();
            if number >= known_from + known.len() as u32 {
                known_from = number;
                known.clear();
                let last = number.saturating_add(BATCH_ENTRIES - 1);
                let have = last.min(self.table.about().commit);
                self.table
                    .scan(number, have, |_, entry| known.push(entry))?;
                known.resize(BATCH_ENTRIES as usize, 0);
            }
            if known.get((number - known_from) as usize) != Some(&hash) {
                differing.push((page, hash));
            }
            Ok(())
        })?;
        Ok(differing)
    }

    /// The level-0 file that follows a base: page 1 again, one TXID after the table's.
    fn write_page_one(
        &mut self,
        view: &View,
        spool: &Spool,
        now: Millis,
    ) -> Result<Captured, CaptureError> {
        let (hash, _) = first_page(view)?;
        let about = self.described(view, self.txid().next());
        self.write_view(view, &[(FIRST_PAGE, hash)], about, spool, now)
    }

    fn write_view(
        &mut self,
        view: &View,
        updates: &[(Pgno, u64)],
        about: Described,
        spool: &Spool,
        created: Millis,
    ) -> Result<Captured, CaptureError> {
        let post = self.table.checksum_after(updates, about.commit)?;
        let header = level_zero_header(&about, self.identity, &self.table, post, created);
        let entry = write_file(spool, &header, updates.iter().map(|u| u.0), |page, buf| {
            view.page(page, buf)
        })?;
        self.table.apply(updates, about)?;
        Ok(Captured {
            entry,
            pages: updates.len() as u32,
            commit: about.commit,
        })
    }
}

const FIRST_PAGE: Pgno = Pgno::FIRST;

fn first_page(view: &View) -> Result<(u64, Vec<u8>), CaptureError> {
    let mut buf = vec![0; view.page_size().bytes()];
    view.page(FIRST_PAGE, &mut buf)?;
    Ok((crate::types::page_hash(FIRST_PAGE, &buf), buf))
}

/// A view without a capture before it: for the first table and for gaps.
fn view_now(guard: &Guard) -> Result<View, CaptureError> {
    for _ in 0..VIEW_TRIES {
        let pin = View::pin(guard)?;
        let index = guard.observe()?;
        if let Some(view) = View::at(guard, pin, &index)? {
            return Ok(view);
        }
    }
    Err(CaptureError::NoView(guard.path().to_owned()))
}

/// A table of everything in a view. The old one is replaced only when the new one is complete.
fn build_table(
    guard: &Guard,
    view: &View,
    path: &Path,
    lineage: Lineage,
    txid: Txid,
) -> Result<PageTable, CaptureError> {
    /// Updates applied at once.
    const BATCH: usize = 8192;
    let about = Described {
        lineage,
        txid,
        page_size: view.page_size(),
        commit: view.commit(),
        position: Some(view.position()),
        file_id: guard.file_id(),
    };
    let draft = path.with_extension("new");
    let mut table = PageTable::create(&draft, about)?;
    let mut batch = Vec::with_capacity(BATCH);
    view.hashes(|page, hash| -> Result<(), CaptureError> {
        batch.push((page, hash));
        if batch.len() == BATCH {
            table.apply(&batch, about)?;
            batch.clear();
        }
        Ok(())
    })?;
    table.apply(&batch, about)?;
    table.sync()?;
    std::fs::rename(&draft, path)?;
    Ok(table)
}

/// Writes committed frames as the next TXID.
fn write_changes(
    guard: &Guard,
    table: &mut PageTable,
    cursor: &mut Cursor,
    identity: Identity,
    changes: &Changes,
    spool: &Spool,
    created: Millis,
) -> Result<Captured, CaptureError> {
    let before = *table.about();
    let about = Described {
        lineage: identity.lineage,
        txid: before.txid.next(),
        page_size: guard.page_size(),
        commit: changes.commit,
        position: Some(changes.position),
        file_id: guard.file_id(),
    };
    let mut frames: HashMap<u32, u32> = HashMap::with_capacity(changes.pages.len());
    let mut updates: Vec<(Pgno, u64)> = Vec::with_capacity(changes.pages.len());
    for p in &changes.pages {
        frames.insert(p.page.get(), p.frame);
        updates.push((p.page, p.hash));
    }
    add_grown_pages(guard, before.commit, changes.commit, &frames, &mut updates)?;
    let post = table.checksum_after(&updates, about.commit)?;
    let mut header = level_zero_header(&about, identity, table, post, created);
    let end = changes.header.end_offset(changes.position.frame);
    let start = changes.header.end_offset(changes.first_frame - 1);
    header.wal_offset = i64::try_from(start).unwrap_or(WAL_OFFSET_MIN);
    header.wal_size = i64::try_from(end - start).unwrap_or(0);
    header.salt = changes.header.salt;
    let read = |page: Pgno, buf: &mut [u8]| match frames.get(&page.get()) {
        Some(frame) => guard.frame_page(&changes.header, *frame, buf),
        None => guard.file_page(page, buf),
    };
    let entry = write_file(spool, &header, updates.iter().map(|u| u.0), read)?;
    table.apply(&updates, about)?;
    *cursor = Cursor {
        position: changes.position,
        sealed: false,
    };
    Ok(Captured {
        entry,
        pages: updates.len() as u32,
        commit: about.commit,
    })
}

/// A commit may grow the database by pages that have no frame (freed again before the commit). They are what the file holds
/// there, zero beyond its end; a base must have them.
fn add_grown_pages(
    guard: &Guard,
    before: u32,
    after: u32,
    frames: &HashMap<u32, u32>,
    updates: &mut Vec<(Pgno, u64)>,
) -> Result<(), CaptureError> {
    let mut buf = vec![0; guard.page_size().bytes()];
    let mut added = false;
    for page in (before.saturating_add(1)..=after).filter_map(Pgno::new) {
        if frames.contains_key(&page.get()) || page == guard.page_size().lock_page() {
            continue;
        }
        guard.file_page(page, &mut buf)?;
        updates.push((page, crate::types::page_hash(page, &buf)));
        added = true;
    }
    if added {
        updates.sort_unstable_by_key(|u| u.0);
    }
    Ok(())
}

fn level_zero_header(
    about: &Described,
    identity: Identity,
    before: &PageTable,
    post: DbChecksum,
    created: Millis,
) -> ltx::Header {
    ltx::Header {
        page_size: about.page_size,
        commit: about.commit,
        min: about.txid,
        max: about.txid,
        timestamp: created,
        wal_offset: WAL_OFFSET_MIN,
        wal_size: 0,
        salt: about.position.map_or((0, 0), |p| p.salt),
        lineage: Some(identity.lineage),
        pre: Some(before.checksum()),
        post: Some(post),
        epoch: identity.epoch,
    }
}

/// Writes one local file durably.
fn write_file(
    spool: &Spool,
    header: &ltx::Header,
    pages: impl Iterator<Item = Pgno>,
    mut read: impl FnMut(Pgno, &mut [u8]) -> Result<(), GuardError>,
) -> Result<Entry, CaptureError> {
    let Some(span) = Span::new(Level::CAPTURE, header.min, header.max) else {
        return Err(CaptureError::Local(io::Error::other("TXIDs out of order")));
    };
    let mut draft: Draft = spool.draft(span)?;
    let mut buf = vec![0; header.page_size.bytes()];
    {
        let out = BufWriter::with_capacity(WRITE_BUFFER_BYTES, draft.file());
        let mut encoder = ltx::Encoder::new(out, header)?;
        for page in pages {
            read(page, &mut buf)?;
            encoder.page(page, &buf)?;
        }
        let (mut out, _) = encoder.finish()?;
        out.flush()?;
    }
    Ok(spool.keep(draft, header.timestamp)?)
}

/// Streams a base to `out`.
pub fn write_base<W: Write>(view: &View, header: &ltx::Header, out: W) -> Result<W, CaptureError> {
    let mut encoder = ltx::Encoder::new(out, header)?;
    view.pages(|page, data| -> Result<(), CaptureError> { Ok(encoder.page(page, data)?) })?;
    Ok(encoder.finish()?.0)
}

/// Opens the table of checksums and brings it up to the local files that follow it. `None`: it must be rebuilt.
pub fn open_table(
    path: &Path,
    spool: &Spool,
    page_size: PageSize,
) -> Result<Option<PageTable>, CaptureError> {
    let Some((mut table, mut trusted)) = PageTable::open(path)? else {
        return Ok(None);
    };
    if table.about().page_size != page_size {
        return Ok(trusted.then_some(table));
    }
    let mut entries = spool.entries();
    entries.sort_unstable_by_key(|e| (e.span.max(), e.span.min()));
    for entry in entries.iter().filter(|e| !e.span.is_base()) {
        let txid = table.about().txid;
        if entry.span.max() <= txid || entry.span.min() > txid.next() {
            continue;
        }
        let file = std::fs::File::open(spool.path(entry.span))?;
        let mut decoder = ltx::Decoder::new(io::BufReader::new(file))?;
        let header = *decoder.header();
        let mut updates = Vec::new();
        let mut buf = Vec::new();
        while let Some(page) = decoder.next_page(&mut buf)? {
            updates.push((page, crate::types::page_hash(page, &buf)));
        }
        // The position in the WAL is not in the file: a gap capture follows.
        let about = Described {
            txid: header.max,
            commit: header.commit,
            position: None,
            ..*table.about()
        };
        table.apply(&updates, about)?;
        trusted = header.post == Some(table.checksum());
    }
    Ok(trusted.then_some(table))
}
