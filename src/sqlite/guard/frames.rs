//! Committed frames behind a cursor.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::error::{GapReason, GuardError, io_error};
use super::{Cursor, Guard, Index};
use crate::sqlite::pages::WalPosition;
use crate::sqlite::wal::{FRAME_HEADER_BYTES, FrameHeader, WalHeader, frame_checksum};
use crate::types::{Pgno, page_hash};

/// Committed frames after a cursor, not yet written anywhere.
#[derive(Debug)]
pub struct Changes {
    /// Where the cursor is after them.
    pub position: WalPosition,
    /// Header of the life that they belong to.
    pub header: WalHeader,
    /// First frame of them.
    pub first_frame: u32,
    /// Commits among them.
    pub commits: u32,
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

/// Fills `buf` from `at`; what lies beyond the end of the file is zero.
pub(in crate::sqlite) fn read_or_zero(
    file: &File,
    mut at: u64,
    mut buf: &mut [u8],
) -> io::Result<()> {
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

/// WAL bytes read at once while checking frames: large beside a system call, small beside the memory bound.
const READ_BYTES: usize = 256 << 10;

impl Guard {
    /// What was committed after `cursor`. Reads and checks every such frame; keeps nothing of what lies behind `mxFrame`.
    pub fn look(&self, cursor: &Cursor) -> Result<Look, GuardError> {
        self.look_until(cursor, &self.observe()?)
    }

    /// The same up to an index that was observed before.
    pub fn look_until(&self, cursor: &Cursor, index: &Index) -> Result<Look, GuardError> {
        let from = cursor.position;
        if self.overwritten()? {
            return Ok(Look::Gap(GapReason::FileOverwritten));
        }
        let Some(header) = index.header else {
            return Ok(if !cursor.sealed {
                Look::Gap(GapReason::WalTruncated)
            } else if self.marked.is_none() {
                Look::Nothing
            } else {
                Look::Gap(self.lock_lost())
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
        } else if self.marked.is_some_and(|life| life != header.salt) {
            return Ok(Look::Gap(self.lock_lost()));
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

    /// R is on a mark, and yet the WAL restarted: its lock is gone. Something in this process closed a descriptor of the database or its
    /// WAL-index, or the kernel lost it.
    fn lock_lost(&self) -> GapReason {
        tracing::error!(
            path = %self.path.display(),
            hint = "nothing is lost: every page is compared now; please report it",
            "the WAL restarted under our read lock"
        );
        GapReason::LockLost
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
        let mut commits = 0;
        while frame < last {
            self.beat().touch();
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
                commits += u32::from(commit != 0);
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
            commits,
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
}
