//! What is in the files of a restore: pieces of packs, read in long runs and written to where they belong.
//!
//! rustic_core would hold the pieces of all files at once and read twenty packs at a time. Here a part of the files is written at a
//! time, by few readers, so that memory is bounded whatever the size of the snapshot; and the content of each piece is hashed before it is
//! written, because its name is its hash.

use std::fs::File;
use std::num::NonZeroU32;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustic_core::{DataId, Id};
use sha2::{Digest, Sha256};

use super::backend::{Asked, Backend};
use super::error::FilesError;
use super::repository::unseal;

/// Pieces of one part: a hundred bytes each. More of them find more neighbours in the same pack.
pub(super) const PIECES_MAX: usize = 1 << 15;
/// Readers at a time; each holds one run and one piece of it. Enough for a store that answers within 50 ms to fill a Gbit line.
const READERS: usize = 4;
/// Bytes of one run: half a pack of ours. Only a longer piece makes a longer one.
pub(super) const RUN_MAX_BYTES: u32 = 2 << 20;
/// Bytes between two pieces that are cheaper to read than to ask again.
const GAP_MAX_BYTES: u32 = 128 << 10;

/// Where a piece is and where it belongs.
struct Piece {
    pack: Id,
    offset: u32,
    length: u32,
    /// Its length when decompressed, if it is compressed.
    plain: Option<NonZeroU32>,
    id: DataId,
    file: usize,
    at: u64,
}

/// A part of the files of a restore. The files exist, with their length; what is not written is a hole.
pub(super) struct Pieces {
    key: [u8; 64],
    files: Vec<PathBuf>,
    list: Vec<Piece>,
}

/// Where one piece is, as the index says.
pub(super) struct Located {
    pub(super) pack: Id,
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) plain: Option<NonZeroU32>,
}

impl Pieces {
    pub(super) fn new(key: [u8; 64]) -> Self {
        Self {
            key,
            files: Vec::new(),
            list: Vec::new(),
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// A file that pieces are added to.
    pub(super) fn file(&mut self, path: &Path) -> usize {
        self.files.push(path.to_owned());
        self.files.len() - 1
    }

    /// Adds a piece of a file.
    pub(super) fn add(&mut self, file: usize, at: u64, id: DataId, located: &Located) {
        self.list.push(Piece {
            pack: located.pack,
            offset: located.offset,
            length: located.length,
            plain: located.plain,
            id,
            file,
            at,
        });
    }

    /// Writes everything that waits. `file` numbers end with it.
    ///
    /// # Errors
    /// [`FilesError::Damaged`], the store's, and those of the local files.
    pub(super) fn write(&mut self, backend: &Backend) -> Result<(), FilesError> {
        let mut list = std::mem::take(&mut self.list);
        let files = std::mem::take(&mut self.files);
        list.sort_unstable_by_key(|p| (p.pack, p.offset, p.file, p.at));
        let work = Work {
            backend,
            key: &self.key,
            files: &files,
            list: &list,
            runs: runs(&list),
            next: AtomicUsize::new(0),
            failed: Mutex::new(None),
        };
        std::thread::scope(|scope| {
            for _ in 0..READERS.min(work.runs.len()) {
                scope.spawn(|| work.all());
            }
        });
        let failed = work.failed.into_inner();
        match failed.unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Neighbours in one pack. `list` is sorted.
fn runs(list: &[Piece]) -> Vec<std::ops::Range<usize>> {
    let mut runs = Vec::new();
    let mut begin = 0;
    for next in 1..=list.len() {
        let goes_on = list.get(next).is_some_and(|piece| {
            let (first, last) = (&list[begin], &list[next - 1]);
            piece.pack == first.pack
                && piece.offset <= last.offset.saturating_add(last.length + GAP_MAX_BYTES)
                && piece.offset.saturating_add(piece.length) - first.offset <= RUN_MAX_BYTES
        });
        if !goes_on {
            runs.push(begin..next);
            begin = next;
        }
    }
    runs
}

/// A piece: decrypted, decompressed to `plain` bytes if it is compressed, and proven by its hash, which is its name.
pub(super) fn opened(
    key: &[u8; 64],
    sealed: &[u8],
    plain: Option<NonZeroU32>,
    id: &Id,
) -> Option<Vec<u8>> {
    let mut text = unseal(key, sealed)?;
    if let Some(length) = plain {
        text = zstd::bulk::decompress(&text, length.get() as usize).ok()?;
    }
    (*id.to_hex() == *hex::encode(Sha256::digest(&text))).then_some(text)
}

struct Work<'a> {
    backend: &'a Backend,
    key: &'a [u8; 64],
    files: &'a [PathBuf],
    list: &'a [Piece],
    runs: Vec<std::ops::Range<usize>>,
    next: AtomicUsize,
    failed: Mutex<Option<FilesError>>,
}

impl Work<'_> {
    fn all(&self) {
        loop {
            let failed = || self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            let run = self.runs.get(self.next.fetch_add(1, Ordering::Relaxed));
            let Some(run) = run.filter(|_| failed().is_none()) else {
                return;
            };
            if let Err(error) = self.run(&self.list[run.clone()]) {
                failed().get_or_insert(error);
            }
        }
    }

    fn damaged(&self, piece: &Piece, what: &str) -> FilesError {
        FilesError::Damaged {
            store: self.backend.store().display(),
            what: format!(
                "a piece of {} in pack {} {what}",
                self.files[piece.file].display(),
                piece.pack.to_hex().as_str()
            ),
        }
    }

    fn run(&self, pieces: &[Piece]) -> Result<(), FilesError> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return Ok(());
        };
        let length = last.offset + last.length - first.offset;
        let bytes = match self.backend.pack_range(&first.pack, first.offset, length) {
            Ok(bytes) if bytes.len() == length as usize => bytes,
            Ok(_) => return Err(self.damaged(last, "is cut short")),
            Err(Asked::Store(e)) if e.is_not_found() => {
                return Err(self.damaged(first, "is missing with it"));
            }
            // Not every store answers with what there is of a range.
            Err(Asked::Store(_))
                if self
                    .backend
                    .is_shorter(&first.pack, last.offset + last.length) =>
            {
                return Err(self.damaged(last, "is cut short"));
            }
            Err(error) => return Err(error.into()),
        };
        let mut plain: Option<(u32, Vec<u8>)> = None;
        for piece in pieces {
            // The same piece in several places is read once.
            if plain.as_ref().map(|(at, _)| *at) != Some(piece.offset) {
                let start = (piece.offset - first.offset) as usize;
                let sealed = bytes.get(start..start + piece.length as usize);
                let opened =
                    sealed.and_then(|sealed| opened(self.key, sealed, piece.plain, &piece.id));
                let Some(opened) = opened else {
                    return Err(self.damaged(piece, "is not what was put there"));
                };
                plain = Some((piece.offset, opened));
            }
            if let Some((_, content)) = &plain {
                self.put(piece, content)?;
            }
        }
        Ok(())
    }

    fn put(&self, piece: &Piece, content: &[u8]) -> Result<(), FilesError> {
        // Holes stay holes.
        if content.iter().all(|b| *b == 0) {
            return Ok(());
        }
        let path = &self.files[piece.file];
        let written = File::options()
            .write(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .and_then(|file| file.write_all_at(content, piece.at));
        written.map_err(|source| FilesError::io(path, source))
    }
}
