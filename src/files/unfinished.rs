//! What an unfinished run left: packs that it uploaded and did not come to list in the index. They are listed now, and used.
//!
//! A run that was killed is known by its lock. One that ended in order takes that away, and leaves a mark instead.
//!
//! Only ever adds. rustic_core's own repair writes files of the index anew without the packs that its listing lacks, and another run may have
//! uploaded those after the listing: then a snapshot that was just recorded would lack them. So the index is read first, the packs are listed
//! after it, and no file of the index is touched; a pack that stands in two of them is no harm.

use std::collections::HashSet;

use bytes::Bytes;
use rustic_core::{FileType, Id, ReadBackend, RusticError};
use serde::Serialize;

use super::backend::{Asked, Backend};
use super::error::FilesError;
use super::index::{Index, PIECES_MAX};
use super::repository::{Repo, unseal};
use crate::store::PutMode;

/// Of a pack's end, read at once: the list of what is in it, unless the pieces are very small.
const TAIL_BYTES: u32 = 16 << 10;
/// Behind the list stands its length.
const LENGTH_BYTES: u32 = 4;

/// Beside the repository: a run ended before its snapshot, and what it uploaded is in no index.
const MARK: &str = "lifeboat/unfinished";

/// Leaves the mark, if something was uploaded; a store that is away gets none, and the next run uploads again.
pub(super) fn mark(backend: &Backend) {
    if !backend.has_uploaded() {
        return;
    }
    let put = || {
        backend
            .store()
            .put(MARK, Bytes::new(), PutMode::Overwrite, None)
    };
    if let Err(error) = backend.finally(put) {
        tracing::debug!(%error, "what this run uploaded is not found by the next one");
    }
}

/// Whether a run left it.
///
/// # Errors
/// The store's.
pub(super) fn is_marked(backend: &Backend) -> Result<bool, FilesError> {
    match backend.ask(|| backend.store().head(MARK)) {
        Ok(_) => Ok(true),
        Err(Asked::Store(e)) if e.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[derive(Serialize)]
struct Listing {
    packs: Vec<Pack>,
}

#[derive(Serialize)]
struct Pack {
    id: String,
    blobs: Vec<Piece>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Piece {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    offset: u32,
    length: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    uncompressed_length: Option<u32>,
}

/// Lists packs in the index that no file of it has; `true` if there were some. Does nothing to a repository with missing packs: that is for a
/// person.
///
/// # Errors
/// [`FilesError::Damaged`], and the store's.
pub(super) fn index(backend: &Backend, repo: &Repo) -> Result<bool, FilesError> {
    let failed = |e: Box<RusticError>| FilesError::of("reading the index of", backend, &e);
    let (mut listed, mut marked) = (HashSet::new(), HashSet::new());
    let index = Index::of(backend, repo)?;
    for file in index.files()? {
        let file = index.read(&file)?;
        listed.extend(file.packs.iter().map(|pack| pack.id.into_inner()));
        marked.extend(file.packs_to_delete.iter().map(|p| p.id.into_inner()));
    }
    let packs = backend.list_with_size(FileType::Pack).map_err(failed)?;
    let there: HashSet<Id> = packs.iter().map(|(id, _)| *id).collect();
    // One that was marked for deletion may be gone: stock restic deletes it at once.
    let missing = listed.difference(&there).count();
    if missing > 0 {
        tracing::warn!(
            missing,
            "the index names packs that are not in the store; `lifeboat verify` says which files are damaged"
        );
        return Ok(false);
    }
    let is_new = |id: &Id| !listed.contains(id) && !marked.contains(id);
    let (mut found, mut pieces, mut used) = (Vec::new(), 0, 0_u64);
    for (id, size) in packs.into_iter().filter(|(id, _)| is_new(id)) {
        let Some(blobs) = content(backend, index.key(), &id, size)? else {
            tracing::warn!(pack = %id.to_hex().as_str(), "an unfinished run left a pack that cannot be read; it is not used");
            continue;
        };
        used += 1;
        pieces += blobs.len();
        found.push(Pack {
            id: id.to_hex().to_string(),
            blobs,
        });
        if pieces >= PIECES_MAX {
            let packs = std::mem::take(&mut found);
            index.write(&Listing { packs })?;
            pieces = 0;
        }
    }
    if !found.is_empty() {
        index.write(&Listing { packs: found })?;
    }
    // If it stays, the next run looks once more.
    let _ = backend.finally(|| backend.store().delete(MARK));
    if used > 0 {
        tracing::info!(
            packs = used,
            "an earlier run was not finished; what it uploaded is used"
        );
    }
    Ok(used > 0)
}

/// What is in a pack, by the list at its end; `None` if that is not whole.
fn content(
    backend: &Backend,
    key: &[u8; 64],
    id: &Id,
    size: u32,
) -> Result<Option<Vec<Piece>>, FilesError> {
    let tail = size.min(TAIL_BYTES);
    let Some(end) = part(backend, id, size - tail, tail)? else {
        return Ok(None);
    };
    let Some((before, length)) = end.split_last_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length);
    let Some(begin) = length
        .checked_add(LENGTH_BYTES)
        .and_then(|both| size.checked_sub(both))
    else {
        return Ok(None);
    };
    let list = match before.len().checked_sub(length as usize) {
        Some(at) => Bytes::copy_from_slice(&before[at..]),
        None => match part(backend, id, begin, length)? {
            Some(list) => list,
            None => return Ok(None),
        },
    };
    let pieces = unseal(key, &list).and_then(|plain| pieces(&plain));
    Ok(pieces
        .filter(|(_, end)| *end == begin)
        .map(|(pieces, _)| pieces))
}

fn part(backend: &Backend, id: &Id, offset: u32, length: u32) -> Result<Option<Bytes>, FilesError> {
    if length == 0 {
        return Ok(None);
    }
    match backend.pack_range(id, offset, length) {
        Ok(bytes) => Ok(Some(bytes).filter(|b| b.len() == length as usize)),
        Err(Asked::Store(e)) if e.is_not_found() => Ok(None),
        Err(Asked::Store(_)) if backend.is_shorter(id, offset + length) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The pieces of a pack, and where they end.
fn pieces(mut list: &[u8]) -> Option<(Vec<Piece>, u32)> {
    let (mut all, mut offset) = (Vec::new(), 0_u32);
    while let Some((kind, rest)) = list.split_first() {
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (uncompressed_length, rest) = match kind {
            0 | 1 => (None, rest),
            2 | 3 => {
                let (plain, rest) = rest.split_first_chunk::<4>()?;
                (Some(u32::from_le_bytes(*plain)), rest)
            }
            _ => return None,
        };
        let (id, rest) = rest.split_first_chunk::<32>()?;
        let length = u32::from_le_bytes(*length);
        all.push(Piece {
            id: hex::encode(id),
            kind: if kind % 2 == 0 { "data" } else { "tree" },
            offset,
            length,
            uncompressed_length,
        });
        offset = offset.checked_add(length)?;
        list = rest;
    }
    (!all.is_empty()).then_some((all, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_packs_are_read_as_restic_writes_them() {
        let mut list = vec![2];
        list.extend(300_u32.to_le_bytes());
        list.extend(1000_u32.to_le_bytes());
        list.extend([7; 32]);
        list.push(1);
        list.extend(50_u32.to_le_bytes());
        list.extend([8; 32]);
        let (all, end) = pieces(&list).unwrap();
        assert_eq!(end, 350);
        let expected = [
            Piece {
                id: "07".repeat(32),
                kind: "data",
                offset: 0,
                length: 300,
                uncompressed_length: Some(1000),
            },
            Piece {
                id: "08".repeat(32),
                kind: "tree",
                offset: 300,
                length: 50,
                uncompressed_length: None,
            },
        ];
        assert_eq!(all, expected);
        for cut in 1..list.len() {
            let whole = cut == 41;
            assert_eq!(pieces(&list[..cut]).is_some(), whole, "{cut}");
        }
        assert!(pieces(&[]).is_none());
        assert!(pieces(&[9; 41]).is_none(), "of no known kind");
    }
}
