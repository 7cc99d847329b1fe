//! The checksum table: built from a view, or brought up to the local files.

use std::io;
use std::path::Path;

use super::CaptureError;
use crate::ltx;
use crate::replica::spool::Spool;
use crate::sqlite::guard::Guard;
use crate::sqlite::pages::{Described, PageTable};
use crate::sqlite::view::View;
use crate::types::{Lineage, PageSize, Txid};

/// A table of everything in a view. The old one is replaced only when the new one is complete.
pub(super) fn build_table(
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
        stamp: 0,
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
            stamp: 0,
            ..*table.about()
        };
        table.apply(&updates, about)?;
        trusted = header.post == Some(table.checksum());
    }
    Ok(trusted.then_some(table))
}
