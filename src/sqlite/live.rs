//! The whole database at one moment, read slowly while the app writes on and its WAL is still checkpointed.
//!
//! A view pins the WAL only until the first checkpoint is due. From then on, pages that change before they were read are kept aside: the
//! page as the view has it goes to a sparse file in the state directory, page for page, before a checkpoint may overwrite it. So a base that
//! uploads for hours costs the app no growing WAL; it costs at most the pages that change meanwhile, once each.
//!
//! Invariants, given that [`Capture`](super::capture::Capture) tells of every change
//! 1. While the pin is open, what the view reads is not overwritten (see [`View`]).
//! 2. When the pin is gone, the guard's reader R ends no later than what was captured: no frame behind it is in the database file. R moves on
//!    only after `LiveView::changed` has seen everything up to its new mark.
//! 3. Hence a page that did not change is, in the WAL's own life, where the view's overlay says, and after a restart of the WAL (which needs all of it
//!    backfilled) in the database file.
//! 4. When nothing protects it any more (gap, end of the capture, no disk space), the view fails; it never gives other pages.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::capture::CaptureError;
use super::view::View;
use crate::types::{PageSize, Pgno};

/// Bytes read at once, under the lock that a checkpoint waits for.
const READ_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub struct LiveView {
    commit: u32,
    page_size: PageSize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    view: View,
    /// Pages kept aside, each at its own place; a hole where none was.
    aside: File,
    /// First page that was not read yet.
    next: u32,
    /// Changed since the view, while it was pinned.
    dirty: Bits,
    /// In `aside`.
    saved: Bits,
    kept: u64,
    failed: Option<String>,
}

impl LiveView {
    /// Pages that are kept aside go to an unnamed file in `dir`.
    pub(super) fn new(view: View, dir: &Path) -> Result<Self, CaptureError> {
        let (commit, page_size) = (view.commit(), view.page_size());
        Ok(Self {
            commit,
            page_size,
            state: Mutex::new(State {
                view,
                aside: tempfile::tempfile_in(dir)?,
                next: 1,
                dirty: Bits::new(commit),
                saved: Bits::new(commit),
                kept: 0,
                failed: None,
            }),
        })
    }

    /// Database size in pages.
    pub fn commit(&self) -> u32 {
        self.commit
    }

    /// Pages that were kept aside so far.
    pub fn kept(&self) -> u64 {
        self.lock().kept
    }

    /// Calls `each` with every page but the lock page, ascending; once.
    pub fn pages(
        &self,
        mut each: impl FnMut(Pgno, &[u8]) -> Result<(), CaptureError>,
    ) -> Result<(), CaptureError> {
        let size = self.page_size.bytes();
        let mut buf = vec![0; (READ_BYTES / size).max(1) * size];
        loop {
            let (first, count) = self.read_next(&mut buf)?;
            if count == 0 {
                return Ok(());
            }
            let read = buf[..count as usize * size].chunks_exact(size);
            for (number, data) in (first..first.saturating_add(count)).zip(read) {
                match Pgno::new(number) {
                    Some(page) if page != self.page_size.lock_page() => each(page, data)?,
                    _ => {}
                }
            }
        }
    }

    /// Reads the next pages: their first number and their count, 0 at the end.
    fn read_next(&self, buf: &mut [u8]) -> Result<(u32, u32), CaptureError> {
        let mut state = self.lock();
        if let Some(reason) = &state.failed {
            return Err(CaptureError::ViewLost(reason.clone()));
        }
        let first = state.next;
        let left = u64::from(self.commit) + 1 - u64::from(first.min(self.commit.saturating_add(1)));
        let size = self.page_size.bytes();
        let count = left.min((buf.len() / size) as u64) as u32;
        if count == 0 || first == 0 {
            return Ok((first, 0));
        }
        let buf = &mut buf[..count as usize * size];
        state.view.run(first, buf)?;
        for (number, data) in (first..=first + (count - 1)).zip(buf.chunks_exact_mut(size)) {
            if state.saved.get(number) {
                state.aside.read_exact_at(data, self.offset(number))?;
            }
        }
        // 0 says: behind the last page number there is.
        state.next = first.checked_add(count).unwrap_or(0);
        Ok((first, count))
    }

    /// Pages were captured anew and may be overwritten in the database file from the next checkpoint on; the database has `commit` pages now.
    pub(super) fn changed(&self, pages: impl Iterator<Item = Pgno>, commit: u32) {
        let mut state = self.lock();
        let dropped = commit.saturating_add(1)..=self.commit;
        for page in pages.chain(dropped.filter_map(Pgno::new)) {
            let number = page.get();
            if number > self.commit || state.next == 0 || number < state.next {
                continue;
            }
            if state.view.is_pinned() {
                state.dirty.set(number);
            } else {
                self.save(&mut state, page);
            }
        }
    }

    /// Lets the WAL go: everything that changed so far is kept aside first.
    pub(super) fn unpin(&self) {
        let mut state = self.lock();
        if !state.view.is_pinned() {
            return;
        }
        if state.next > 0 {
            for page in (state.next..=self.commit).filter_map(Pgno::new) {
                if state.dirty.get(page.get()) {
                    self.save(&mut state, page);
                }
            }
        }
        state.view.unpin();
    }

    /// Nothing protects the view any more.
    pub(super) fn abandon(&self, reason: &str) {
        self.lock().failed.get_or_insert_with(|| reason.to_owned());
    }

    fn save(&self, state: &mut State, page: Pgno) {
        if state.failed.is_some()
            || state.saved.get(page.get())
            || page == self.page_size.lock_page()
        {
            return;
        }
        let mut buf = vec![0; self.page_size.bytes()];
        let kept = match state.view.run(page.get(), &mut buf) {
            Ok(()) => state
                .aside
                .write_all_at(&buf, self.offset(page.get()))
                .map_err(|e| format!("keeping a page aside: {e}")),
            Err(e) => Err(e.to_string()),
        };
        match kept {
            Ok(()) => {
                state.saved.set(page.get());
                state.kept += 1;
            }
            Err(e) => state.failed = Some(e),
        }
    }

    fn offset(&self, page: u32) -> u64 {
        u64::from(page - 1) * u64::from(self.page_size.get())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One bit for each page.
#[derive(Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(pages: u32) -> Self {
        Self(vec![0; pages as usize / 64 + 1])
    }

    fn get(&self, page: u32) -> bool {
        self.0
            .get(page as usize / 64)
            .is_some_and(|word| word & (1 << (page % 64)) != 0)
    }

    fn set(&mut self, page: u32) {
        if let Some(word) = self.0.get_mut(page as usize / 64) {
            *word |= 1 << (page % 64);
        }
    }
}
