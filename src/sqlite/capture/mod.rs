//! LTX files out of one database: captures of what was committed, gap captures of what differs, and the base.
//!
//! Invariants
//! - A TXID is used for a file only once, and rises by one.
//! - Order of one capture: LTX file durable locally, checksum table, cursor. A crash between them repeats the capture or ends in a gap
//!   capture; it never skips frames.
//! - Every file carries the database checksum before and after it.
//! - After an error the cursor is where it was: the caller may try again or drop the capture and resume.

mod checkpoint;
mod error;
mod gap;
mod table;
mod write;

use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

pub use self::error::CaptureError;
pub use self::gap::GapReport;
use self::table::build_table;
pub use self::table::open_table;
pub use self::write::write_base;
use self::write::write_changes;
use super::guard::{Changes, Cursor, GapReason, Guard, Index, Look, ReadError, Reader};
use super::live::LiveView;
use super::pages::{Described, PageTable, WalPosition};
use super::view::View;
use crate::ltx;
use crate::replica::spool::Spool;
use crate::types::{DbChecksum, Entry, Lineage, Millis, Txid};

/// Attempts to see a consistent WAL before a view is given up.
const VIEW_TRIES: u32 = 5;

/// A file that a capture wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The local file.
    pub entry: Entry,
    /// Pages in it.
    pub pages: u32,
    /// Commits in it; 0 if pages were compared, which shows no commits.
    pub commits: u32,
    /// Frames in the WAL that it stands for: pages, each as often as a commit changed it.
    pub frames: u32,
    /// Database size after it, in pages.
    pub commit: u32,
    /// The schema cookie, if page 1 is in it: it changes with every change of the schema.
    pub schema: Option<u32>,
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
    views: Vec<Weak<LiveView>>,
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Before R ends.
        self.abandon_views("the database was let go");
    }
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
    ) -> Result<(Self, Captured), CaptureError> {
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
            views: Vec::new(),
        };
        let captured = capture.write_page_one(&view, spool, now)?;
        Ok((capture, captured))
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
            views: Vec::new(),
        };
        if gap.is_none() {
            gap = capture.find_gap(position)?;
        }
        if gap.is_none() {
            capture.guard.reseal(&mut capture.cursor)?;
            capture.remember_seal()?;
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
        if !same_life {
            return Ok(Some(GapReason::NotWatching));
        }
        // Nothing was committed since the seal, when everything was in the file: no SQLite process had a reason to write it, but to copy the
        // same pages again after the WAL-index was made anew. That costs a comparison.
        let about = self.table.about();
        let is_quiet = position.is_some_and(|p| p.frame == index.max_frame);
        let was = std::num::NonZeroU64::new(about.stamp).filter(|_| is_quiet);
        match was {
            Some(was) if self.guard.stamp()? != was => Ok(Some(GapReason::FileOverwritten)),
            _ => Ok(None),
        }
    }

    /// Notes in the table what the file looked like when it was sealed.
    fn remember_seal(&mut self) -> io::Result<()> {
        let stamp = self.guard.frozen().map_or(0, std::num::NonZeroU64::get);
        if stamp == self.table.about().stamp {
            return Ok(());
        }
        let about = *self.table.about();
        self.table.describe(Described { stamp, ..about })
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

    /// Reads the app's tables, for at most `budget`: [`Guard::inspect`].
    pub fn inspect<T>(
        &mut self,
        budget: Duration,
        read: impl FnOnce(Result<&Reader, ReadError>) -> T,
    ) -> Result<T, CaptureError> {
        Ok(self.guard.inspect(budget, read)?)
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
                let created = now.not_before(self.last_created);
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
                tell(&self.views, &changes);
                Ok(Outcome::Captured(captured))
            }
        }
    }

    /// Whether anything was committed that is not captured: a cheap look at the WAL-index.
    pub fn pending(&self) -> Result<bool, CaptureError> {
        if self.guard.overwritten()? {
            return Ok(true);
        }
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
    /// With what was captured on the way: see [`LiveView`], invariant 2.
    pub fn leave_lock_zero(
        &mut self,
        spool: &Spool,
        now: Millis,
    ) -> Result<(bool, Option<Captured>), CaptureError> {
        // Before the reader moves, and with it what is known of the file.
        if self.guard.overwritten()? {
            return Err(CaptureError::Gap(GapReason::FileOverwritten));
        }
        if !self.guard.can_leave_lock_zero()? {
            return Ok((!self.guard.on_lock_zero(), None));
        }
        let captured = self.begin_renewal(spool, now)?;
        self.guard.finish_leaving()?;
        Ok((true, captured))
    }

    /// Moves R to now and seals.
    fn renew(&mut self, spool: &Spool, now: Millis) -> Result<Option<Captured>, CaptureError> {
        let captured = self.begin_renewal(spool, now)?;
        self.guard.finish_renewal(&mut self.cursor)?;
        Ok(captured)
    }

    fn begin_renewal(
        &mut self,
        spool: &Spool,
        now: Millis,
    ) -> Result<Option<Captured>, CaptureError> {
        self.guard.begin_renewal()?;
        self.views.retain(|v| v.strong_count() > 0);
        if self.views.is_empty() {
            return Ok(None);
        }
        let captured = self.capture_gapless(spool, now);
        if captured.is_err() {
            self.guard.cancel_renewal()?;
        }
        captured
    }

    pub(super) fn abandon_views(&mut self, reason: &str) {
        for view in self.views.drain(..).filter_map(|v| v.upgrade()) {
            view.abandon(reason);
        }
    }

    /// Frames wait in the WAL that are not in the database file.
    pub fn is_unsealed(&self) -> bool {
        !self.cursor.sealed
    }

    /// Everything committed so far captured, and the whole database at exactly that TXID, to be read while captures go on.
    pub fn view(
        &mut self,
        spool: &Spool,
        now: Millis,
    ) -> Result<(Arc<LiveView>, Option<Captured>), CaptureError> {
        let pin = View::pin(&self.guard)?;
        self.guard.check_files()?;
        let index = self.guard.observe()?;
        let captured = match self.capture_until(&index, spool, now)? {
            Outcome::Gap(reason) => return Err(CaptureError::Gap(reason)),
            Outcome::Captured(c) => Some(c),
            Outcome::Nothing => None,
        };
        match View::at(&self.guard, pin, &index)? {
            Some(view) => {
                let view = Arc::new(LiveView::new(view.without_beat(), spool.dir())?);
                self.views.push(Arc::downgrade(&view));
                Ok((view, captured))
            }
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
            timestamp: now.not_before(self.last_created),
            wal_offset: 0,
            wal_size: 0,
            salt: (0, 0),
            lineage: Some(self.identity.lineage),
            pre: None,
            post: Some(self.table.checksum()),
            epoch: self.identity.epoch,
        }
    }
}

/// Tells the views which pages changed, before R moves on.
fn tell(views: &[Weak<LiveView>], changes: &Changes) {
    for view in views.iter().filter_map(Weak::upgrade) {
        view.changed(changes.pages.iter().map(|p| p.page), changes.commit);
    }
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
