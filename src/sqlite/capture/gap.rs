//! Gap captures: every page compared, what differs written.

use std::path::Path;

use super::table::build_table;
use super::write::{level_zero_header, write_file};
use super::{Capture, CaptureError, Captured, view_now};
use crate::replica::spool::Spool;
use crate::sqlite::guard::Cursor;
use crate::sqlite::pages::Described;
use crate::sqlite::view::View;
use crate::types::{Millis, Pgno, Txid};

fn first_page(view: &View) -> Result<(u64, Vec<u8>), CaptureError> {
    let mut buf = vec![0; view.page_size().bytes()];
    view.page(FIRST_PAGE, &mut buf)?;
    Ok((crate::types::page_hash(FIRST_PAGE, &buf), buf))
}

const FIRST_PAGE: Pgno = Pgno::FIRST;

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

impl Capture {
    /// Compares every page of the live database with the table and writes one file with the pages that differ.
    pub fn gap(
        &mut self,
        table_path: &Path,
        spool: &Spool,
        now: Millis,
    ) -> Result<GapReport, CaptureError> {
        self.abandon_views("continuity was lost");
        // Before the first page is read: a copy that is still going on shows again at the next look.
        let stamp = self.guard.stamp()?;
        let view = view_now(&self.guard)?;
        let created = now.not_before(self.last_created);
        let txid = self.txid().next();
        if view.page_size() != self.table.about().page_size {
            self.table = build_table(&self.guard, &view, table_path, self.identity.lineage, txid)?;
            self.cursor = Cursor {
                position: view.position(),
                sealed: view.is_complete(),
            };
            let captured = self.write_page_one(&view, spool, created)?;
            self.settle(&view, stamp)?;
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
        self.settle(&view, stamp)?;
        drop(view);
        self.last_created = created;
        Ok(GapReport {
            captured,
            same,
            compared,
            new_base: false,
        })
    }

    /// After everything in a view was captured: from now on the file may not change, if all of it was in the file.
    fn settle(&mut self, view: &View, stamp: std::num::NonZeroU64) -> Result<(), CaptureError> {
        if view.is_complete() {
            self.guard.freeze(stamp);
        } else {
            self.guard.thaw();
        }
        self.remember_seal()?;
        Ok(())
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
    pub(super) fn write_page_one(
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
        let (entry, schema) = write_file(&self.guard, spool, &header, updates, |page, buf| {
            view.page(page, buf)
        })?;
        self.table.apply(updates, about)?;
        Ok(Captured {
            entry,
            pages: updates.len() as u32,
            commits: 0,
            frames: 0,
            commit: about.commit,
            schema,
        })
    }

    fn described(&self, view: &View, txid: Txid) -> Described {
        Described {
            lineage: self.identity.lineage,
            txid,
            page_size: view.page_size(),
            commit: view.commit(),
            position: Some(view.position()),
            file_id: self.guard.file_id(),
            stamp: 0,
        }
    }
}
