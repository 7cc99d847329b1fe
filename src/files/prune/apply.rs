//! Does what a plan says.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use rustic_core::repofile::{BlobType, IndexBlob, IndexFile, IndexPack};
use rustic_core::{FileType, Id};
use sha2::{Digest, Sha256};

use super::plan::{File, Plan, ToDo, all_packs};
use crate::files::backend::{Asked, Backend};
use crate::files::contents::{RUN_MAX_BYTES, opened};
use crate::files::error::FilesError;
use crate::files::folders::for_each;
use crate::files::index::{Index, PIECES_MAX};
use crate::files::repository::{DATA_PACK_BYTES, TREE_PACK_BYTES, seal};

/// After so long a run that is broken off has not copied in vain.
const FLUSH_EVERY: Duration = Duration::from_mins(5);

/// What may be done before anything is forgotten, and takes nothing from any snapshot: deletes packs that were marked long ago, because a full store
/// needs the room; marks what no file of the index names; copies what is needed of packs that will be given up.
///
/// # Errors
/// [`FilesError::Damaged`] if a piece that is to be copied is not what it should be, and the store's.
pub(super) fn prepare<'a>(
    plan: &mut Plan,
    backend: &Backend,
    index: &'a Index<'_>,
) -> Result<NewIndex<'a>, FilesError> {
    let gone = plan.packs.iter().filter(|(_, p)| p.to_do == ToDo::Delete);
    let gone: Vec<Id> = gone.map(|(id, _)| *id).collect();
    for_each(&gone, |id| backend.remove_file(FileType::Pack, id))?;
    for folder in 0..=u8::MAX {
        backend
            .store()
            .remove_unfinished(&format!("data/{folder:02x}"));
    }
    let mut new = NewIndex {
        index,
        file: IndexFile::default(),
        entries: 0,
        flushed: Instant::now(),
    };
    for (id, size) in &plan.unlisted {
        new.mark(IndexPack {
            id: (*id).into(),
            blobs: Vec::new(),
            time: Some(plan.now),
            size: Some(*size),
        })?;
    }
    new.flush()?;
    copy(plan, backend, index, &mut new)?;
    Ok(new)
}

/// Carries out the rest of a plan, in an order in which every step may be the last: new files of the index, then the old ones go.
///
/// # Errors
/// The store's. What was there before holds until the end.
pub(super) fn exchange(
    plan: &Plan,
    mut new: NewIndex<'_>,
    index: &Index<'_>,
    now: Timestamp,
) -> Result<(), FilesError> {
    let mut settled: HashSet<Id> = plan.settled().collect();
    for file in plan.files.iter().filter(|f| f.stale) {
        let read = index.read(&file.id)?;
        let packs = read.packs.into_iter().map(|p| (p, false));
        let marked = read.packs_to_delete.into_iter().map(|p| (p, true));
        for (pack, marked) in packs.chain(marked) {
            let id = pack.id.into_inner();
            let Some(known) = plan.packs.get(&id) else {
                continue;
            };
            // Of one that is in use, the entry that says so; of several, one.
            if known.listed == marked || !settled.insert(id) {
                continue;
            }
            match known.to_do {
                ToDo::Keep | ToDo::Recover => new.list(IndexPack { time: None, ..pack })?,
                ToDo::Repack | ToDo::Mark | ToDo::Wait => new.mark(IndexPack {
                    time: Some(known.marked_at(now)),
                    ..pack
                })?,
                ToDo::Delete | ToDo::Drop => {}
            }
        }
    }
    new.flush()?;
    let stale: Vec<&File> = plan.files.iter().filter(|f| f.stale).collect();
    for_each(&stale, |file| index.remove(&file.id))
}

/// Copies what is needed of packs that are given up, and shows that nothing else is lost with them.
fn copy(
    plan: &mut Plan,
    backend: &Backend,
    index: &Index<'_>,
    new: &mut NewIndex<'_>,
) -> Result<(), FilesError> {
    let repacked = |plan: &Plan, pack: &IndexPack| {
        let known = plan.packs.get(&pack.id.into_inner());
        known.is_some_and(|p| p.to_do == ToDo::Repack)
    };
    if !plan.files.iter().any(|f| plan.has(f, &[ToDo::Repack])) {
        return Ok(());
    }
    plan.needed.forget_claims();
    // Of each pack the entry that counted in the plan, and stays.
    let mut seen = HashSet::new();
    for file in &plan.files {
        if !plan.has(file, &[ToDo::Keep, ToDo::Recover]) {
            continue;
        }
        let read = index.read(&file.id)?;
        for (pack, marked) in all_packs(&read) {
            let id = pack.id.into_inner();
            let stays = plan.packs.get(&id).is_some_and(|p| {
                matches!(p.to_do, ToDo::Keep | ToDo::Recover) && p.listed != marked
            });
            if stays && seen.insert(id) && plan.packs[&id].is_whole(pack) {
                for piece in &pack.blobs {
                    plan.needed.claim(&piece.id, piece.tpe);
                }
            }
        }
    }
    let mut copier = Copier {
        backend,
        key: index.key(),
        open: [NewPack::default(), NewPack::default()],
    };
    for file in &plan.files {
        if !plan.has(file, &[ToDo::Repack]) {
            continue;
        }
        for pack in index.read(&file.id)?.packs {
            if !repacked(plan, &pack) {
                continue;
            }
            let id = pack.id.into_inner();
            let mut pieces = pack.blobs;
            pieces.retain(|piece| plan.needed.claim(&piece.id, piece.tpe));
            copier.copy(&id, pieces, new)?;
        }
    }
    copier.finish(new)?;
    plan.nothing_is_missing(backend)
}

/// Files of the index that are written.
pub(super) struct NewIndex<'a> {
    index: &'a Index<'a>,
    file: IndexFile,
    entries: usize,
    flushed: Instant,
}

impl NewIndex<'_> {
    fn list(&mut self, pack: IndexPack) -> Result<(), FilesError> {
        self.entries += 1 + pack.blobs.len();
        self.file.packs.push(pack);
        self.flush_if_due()
    }

    fn mark(&mut self, pack: IndexPack) -> Result<(), FilesError> {
        self.entries += 1 + pack.blobs.len();
        self.file.packs_to_delete.push(pack);
        self.flush_if_due()
    }

    fn flush_if_due(&mut self) -> Result<(), FilesError> {
        match self.entries >= PIECES_MAX || self.flushed.elapsed() > FLUSH_EVERY {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), FilesError> {
        let file = std::mem::take(&mut self.file);
        (self.entries, self.flushed) = (0, Instant::now());
        if file.packs.is_empty() && file.packs_to_delete.is_empty() {
            return Ok(());
        }
        self.index.write(&file)
    }
}

/// Copies pieces as they are, sealed, after a look into each.
struct Copier<'a> {
    backend: &'a Backend,
    key: &'a [u8; 64],
    /// For files and for folders: two kinds are not put into one pack.
    open: [NewPack; 2],
}

/// A pack that is filled.
#[derive(Default)]
struct NewPack {
    bytes: Vec<u8>,
    pieces: Vec<IndexBlob>,
}

impl Copier<'_> {
    /// Copies pieces of one pack, in long runs.
    fn copy(
        &mut self,
        pack: &Id,
        mut pieces: Vec<IndexBlob>,
        new: &mut NewIndex<'_>,
    ) -> Result<(), FilesError> {
        pieces.sort_unstable_by_key(|piece| piece.location.offset);
        let mut left = pieces.as_slice();
        while let Some(first) = left.first() {
            let begin = first.location.offset;
            let end =
                |piece: &IndexBlob| piece.location.offset.saturating_add(piece.location.length);
            let fits = |piece: &&IndexBlob| end(piece) - begin <= RUN_MAX_BYTES;
            let (run, rest) = left.split_at(left.iter().take_while(fits).count().max(1));
            left = rest;
            let length = run.iter().map(end).max().unwrap_or(begin) - begin;
            let bytes = self.read(pack, begin, length)?;
            for piece in run {
                let start = (piece.location.offset - begin) as usize;
                let sealed = bytes.get(start..start + piece.location.length as usize);
                let plain = piece.location.uncompressed_length;
                let good = sealed.filter(|s| opened(self.key, s, plain, &piece.id).is_some());
                let Some(sealed) = good else {
                    return Err(self.damaged(pack, "holds a piece that is not what was put there"));
                };
                self.add(piece, sealed, new)?;
            }
        }
        Ok(())
    }

    fn read(&self, pack: &Id, offset: u32, length: u32) -> Result<Bytes, FilesError> {
        match self.backend.pack_range(pack, offset, length) {
            Ok(bytes) => Ok(bytes),
            Err(Asked::Store(e)) if e.is_not_found() => Err(self.damaged(pack, "is missing")),
            Err(Asked::Store(_)) if self.backend.is_shorter(pack, offset + length) => {
                Err(self.damaged(pack, "is cut short"))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn damaged(&self, pack: &Id, what: &str) -> FilesError {
        FilesError::Damaged {
            store: self.backend.store().display(),
            what: format!("pack {} {what}", pack.to_hex().as_str()),
        }
    }

    fn add(
        &mut self,
        piece: &IndexBlob,
        sealed: &[u8],
        new: &mut NewIndex<'_>,
    ) -> Result<(), FilesError> {
        let (open, usual) = match piece.tpe {
            BlobType::Data => (&mut self.open[0], DATA_PACK_BYTES),
            BlobType::Tree => (&mut self.open[1], TREE_PACK_BYTES),
        };
        let mut piece = *piece;
        // A pack never grows beyond the usual size by more than one piece.
        piece.location.offset = open.bytes.len() as u32;
        open.bytes.extend_from_slice(sealed);
        open.pieces.push(piece);
        if open.bytes.len() as u64 >= usual {
            let full = std::mem::take(open);
            self.upload(full, new)?;
        }
        Ok(())
    }

    fn finish(mut self, new: &mut NewIndex<'_>) -> Result<(), FilesError> {
        for open in std::mem::take(&mut self.open) {
            self.upload(open, new)?;
        }
        Ok(())
    }

    /// Behind the pieces stands the list of them, sealed, and its length.
    fn upload(&self, pack: NewPack, new: &mut NewIndex<'_>) -> Result<(), FilesError> {
        let NewPack { mut bytes, pieces } = pack;
        if pieces.is_empty() {
            return Ok(());
        }
        let wrong = |reason: String| FilesError::Repository {
            doing: "writing a pack of",
            store: self.backend.store().display(),
            reason,
        };
        let list = seal(self.key, &list(&pieces)).map_err(wrong)?;
        bytes.extend_from_slice(&list);
        let length = u32::try_from(list.len()).map_err(|e| wrong(e.to_string()))?;
        bytes.extend_from_slice(&length.to_le_bytes());
        let id = Id::new(Sha256::digest(&bytes).into());
        self.backend.put_pack(&id, &Bytes::from(bytes))?;
        new.list(IndexPack {
            id: id.into(),
            blobs: pieces,
            time: None,
            size: None,
        })
    }
}

/// What is in a pack, as restic writes it: type, length, length when decompressed, id.
fn list(pieces: &[IndexBlob]) -> Vec<u8> {
    let mut list = Vec::new();
    for piece in pieces {
        let compressed = piece.location.uncompressed_length;
        let kind = u8::from(piece.tpe == BlobType::Tree) + 2 * u8::from(compressed.is_some());
        list.push(kind);
        list.extend(piece.location.length.to_le_bytes());
        if let Some(length) = compressed {
            list.extend(length.get().to_le_bytes());
        }
        let hex = piece.id.to_hex();
        let mut id = [0; 32];
        // An id has 64 digits, so this cannot fail.
        let _ = hex::decode_to_slice(hex.as_bytes(), &mut id);
        list.extend(id);
    }
    list
}
