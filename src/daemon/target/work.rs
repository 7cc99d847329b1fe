//! What happens on a blocking thread, and the floor of free space.

use std::collections::BTreeSet;

use super::establish::gap_capture;
use super::{Ended, Session, Target};
use crate::daemon::cuts::Cuts;
use crate::replica::compact;
use crate::replica::spool::Spool;
use crate::sqlite::capture::{Capture, CaptureError, Captured, Outcome};
use crate::sqlite::guard::{Barrier, GapReason};
use crate::types::{Level, Millis, Txid};

/// The spool of a small database may grow to this before it is squeezed.
const SPOOL_MIN_BYTES: u64 = 64 << 20;

/// Captures that no store has yet are dropped for disk space only above this: less would not help the app.
const SPOOL_DROP_BYTES: u64 = 16 << 20;

impl Target {
    /// Below the floor of free space local files go: the app's disk is never filled. First those that every store has, which costs only
    /// larger roll-ups; then the rest, and a base follows when there is room.
    pub(super) fn keep_floor(&self, session: &Session) -> Result<(), Ended> {
        let Ok(stat) = rustix::fs::statvfs(self.state.path()) else {
            return Ok(());
        };
        let (free, total) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
        let floor = self.min_free.bytes_of(total);
        if free >= floor {
            return Ok(());
        }
        let Some(capture) = &session.capture else {
            return Ok(());
        };
        capture.sync_table()?;
        let stores = self.stores.len() as u32;
        let (uploaded, pending): (Vec<_>, Vec<_>) = session
            .spool
            .entries()
            .into_iter()
            .partition(|e| session.spool.acknowledged_by_all(e.span, stores));
        let mut freed = 0;
        for entry in uploaded.iter().filter(|e| e.span.max() != capture.txid()) {
            session.spool.remove(entry.span)?;
            freed += entry.size;
        }
        let pending_bytes: u64 = pending.iter().map(|e| e.size).sum();
        if free + freed < floor && pending_bytes > SPOOL_DROP_BYTES {
            tracing::error!(
                target_name = self.name,
                free,
                pending_bytes,
                "too little free space: dropping the spool; a new base follows"
            );
            session.spool.clear()?;
            self.board
                .update(|f| *f.gaps.entry(GapReason::SpoolDropped.word()).or_default() += 1);
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
pub(super) struct Due {
    pub(super) capture: bool,
    pub(super) checkpoint: bool,
    pub(super) quiet: bool,
    pub(super) roll_up: bool,
    pub(super) db_bytes: u64,
    pub(super) stores: u32,
}

#[derive(Default)]
pub(super) struct Done {
    pub(super) looked: bool,
    pub(super) captured: Vec<Captured>,
    pub(super) barrier: Option<Barrier>,
    pub(super) gap: Option<(GapReason, u32)>,
}

/// What one step does on a blocking thread.
pub(super) fn work(
    capture: &mut Capture,
    spool: &Spool,
    table: &std::path::Path,
    cuts: &Cuts,
    now: Millis,
    due: Due,
) -> Result<Done, Ended> {
    let mut done = Done::default();
    match follow(capture, spool, now, due, &mut done) {
        Ok(()) => {}
        Err(CaptureError::Gap(reason)) => {
            let report = gap_capture(capture, reason, table, spool, cuts, now)?;
            done.gap = Some((reason, report.captured.map_or(0, |c| c.pages)));
            done.captured.extend(report.captured);
        }
        Err(e) => return Err(e.into()),
    }
    for captured in &done.captured {
        cuts.schema_seen(captured, &spool.entries(), now)
            .map_err(CaptureError::from)?;
    }
    if due.roll_up {
        let cuts = all_cuts(spool, cuts);
        for merge in compact::due(&spool.entries(), &cuts, now) {
            compact::run(spool, &merge, capture.txid(), || capture.sync_table())
                .map_err(CaptureError::from)?;
        }
        drop_rolled_up(capture, spool, due.stores)?;
        if spool.bytes() > due.db_bytes.max(SPOOL_MIN_BYTES) {
            squeeze(capture, spool, &cuts)?;
        }
    }
    Ok(done)
}

/// Capture and checkpoint, as far as they are due.
fn follow(
    capture: &mut Capture,
    spool: &Spool,
    now: Millis,
    due: Due,
    done: &mut Done,
) -> Result<(), CaptureError> {
    done.captured.extend(capture.leave_lock_zero(spool, now)?.1);
    if due.quiet {
        let (barrier, captured) = capture.checkpoint(spool, now, true)?;
        done.barrier = barrier;
        done.captured.extend(captured);
        return Ok(());
    }
    if !due.capture {
        return Ok(());
    }
    done.looked = true;
    match capture.capture(spool, now)? {
        Outcome::Gap(reason) => return Err(CaptureError::Gap(reason)),
        Outcome::Captured(c) => done.captured.push(c),
        Outcome::Nothing => {}
    }
    if due.checkpoint {
        let (barrier, captured) = capture.checkpoint(spool, now, false)?;
        done.barrier = barrier;
        done.captured.extend(captured);
    }
    Ok(())
}

/// Files of the highest level go once every store has them.
fn drop_rolled_up(capture: &Capture, spool: &Spool, stores: u32) -> Result<(), Ended> {
    let top = Level::new(4);
    let done: Vec<_> = spool
        .entries()
        .into_iter()
        .filter(|e| Some(e.span.level()) == top && spool.acknowledged_by_all(e.span, stores))
        .collect();
    if !done.is_empty() {
        capture.sync_table()?;
    }
    for entry in done {
        spool.remove(entry.span)?;
    }
    Ok(())
}

/// Where no merged file may reach across: where a store stands, and what labels point at.
pub(super) fn all_cuts(spool: &Spool, labels: &Cuts) -> BTreeSet<Txid> {
    spool.cuts().union(&labels.set()).copied().collect()
}

pub(super) fn squeeze(
    capture: &Capture,
    spool: &Spool,
    cuts: &BTreeSet<Txid>,
) -> Result<(), CaptureError> {
    if let Some(merge) = compact::squeeze(&spool.entries(), cuts) {
        compact::run(spool, &merge, capture.txid(), || capture.sync_table())?;
    }
    Ok(())
}
