//! One LTX file: encoded, made durable, entered in the checksum table.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};

use super::{CaptureError, Captured, Identity};
use crate::ltx;
use crate::replica::spool::{Draft, Spool};
use crate::sqlite::guard::{Changes, Cursor, Guard, GuardError};
use crate::sqlite::live::LiveView;
use crate::sqlite::pages::{Described, PageTable};
use crate::types::{DbChecksum, Entry, Level, Millis, Pgno, RollingChecksum, Span};

/// Writes committed frames as the next TXID.
pub(super) fn write_changes(
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
        stamp: 0,
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
    let (entry, schema) = write_file(guard, spool, &header, &updates, read)?;
    guard.beat().touch();
    table.apply(&updates, about)?;
    *cursor = Cursor {
        position: changes.position,
        sealed: false,
    };
    Ok(Captured {
        entry,
        pages: updates.len() as u32,
        commits: changes.commits,
        frames: changes.position.frame + 1 - changes.first_frame,
        commit: about.commit,
        schema,
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

pub(super) fn level_zero_header(
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

/// Writes one local file durably; every page must be what its hash in `updates` says. With the schema cookie, if page 1 is in it (the database header of SQLite's file format, offset 40).
pub(super) fn write_file(
    guard: &Guard,
    spool: &Spool,
    header: &ltx::Header,
    updates: &[(Pgno, u64)],
    mut read: impl FnMut(Pgno, &mut [u8]) -> Result<(), GuardError>,
) -> Result<(Entry, Option<u32>), CaptureError> {
    let Some(span) = Span::new(Level::CAPTURE, header.min, header.max) else {
        return Err(CaptureError::Local(io::Error::other("TXIDs out of order")));
    };
    let mut draft: Draft = spool.draft(span)?;
    let mut buf = vec![0; header.page_size.bytes()];
    let mut schema = None;
    {
        let out = BufWriter::with_capacity(WRITE_BUFFER_BYTES, draft.file());
        let mut encoder = ltx::Encoder::new(out, header)?;
        for (done, &(page, hash)) in updates.iter().enumerate() {
            if done % BEAT_PAGES == 0 {
                guard.beat().touch();
            }
            read(page, &mut buf)?;
            if crate::types::page_hash(page, &buf) != hash {
                return Err(CaptureError::Drift(format!(
                    "page {} changed between two reads",
                    page.get()
                )));
            }
            if page == Pgno::FIRST {
                schema = Some(u32::from_be_bytes([buf[40], buf[41], buf[42], buf[43]]));
            }
            encoder.page(page, &buf)?;
        }
        let (mut out, _) = encoder.finish()?;
        out.flush()?;
    }
    guard.beat().touch();
    Ok((spool.keep(draft, header.timestamp)?, schema))
}

/// Streams a base to `out`. What it holds must have the checksum that its header claims.
///
/// # Errors
/// [`CaptureError::Drift`] before the end of the file is written: `out` holds no complete base then.
pub fn write_base<W: Write>(
    view: &LiveView,
    header: &ltx::Header,
    out: W,
) -> Result<W, CaptureError> {
    let mut encoder = ltx::Encoder::new(out, header)?;
    let mut sum = RollingChecksum::default();
    view.pages(|page, data| {
        sum.add(crate::types::page_hash(page, data));
        Ok::<_, CaptureError>(encoder.page(page, data)?)
    })?;
    let found = sum.finish();
    if let Some(claimed) = header.post.filter(|post| *post != found) {
        return Err(CaptureError::Drift(format!(
            "the pages of TXID {} have checksum {:016x}, but {:016x} was captured",
            header.max,
            found.get(),
            claimed.get()
        )));
    }
    Ok(encoder.finish()?.0)
}

/// Litestream takes over only behind a level-0 file whose WAL offset is at least the WAL header's size.
const WAL_OFFSET_MIN: i64 = 32;
/// Pages between two signs of life.
const BEAT_PAGES: usize = 1024;

/// Buffer of a file being written.
const WRITE_BUFFER_BYTES: usize = 256 << 10;
