//! Reading back what a snapshot needs: every byte of its packs is hashed, every piece decrypted, decompressed and hashed.
//!
//! rustic_core's own way holds whole packs for each core, and panics where its readers have not ended within 100 ms, as on a busy machine. Here
//! few readers hold one run and one piece of it each.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};

use rustic_core::repofile::IndexPack;
use rustic_core::{Id, IndexedFull, PackedId, Repository, TreeId};
use sha2::{Digest, Sha256};

use super::backend::{Asked, Backend};
use super::contents::{RUN_MAX_BYTES, opened};
use super::error::FilesError;
use super::folders::{Budget, walk};
use super::index::Index;
use super::record::hold;
use super::repository::Repo;
use crate::memory::give_back;

/// Of folders that are read at the same time.
const FOLDERS_BYTES: u64 = 48 << 20;
/// A folder's text and what it is decoded to.
const DECODED_TIMES: u64 = 3;
/// Packs that are read at a time; each holds one run and one piece of it.
const PACK_READERS: usize = 4;

/// Reads every pack that the folders and files of a snapshot are in.
///
/// # Errors
/// [`FilesError::Damaged`], and the store's.
pub(super) fn read_back(
    backend: &Backend,
    repo: Repo,
    key: &[u8; 64],
    tree: TreeId,
) -> Result<(), FilesError> {
    let indexed = repo
        .to_indexed()
        .map_err(|e| FilesError::of("reading the index of", backend, &e))?;
    let mut packs = needed(backend, &indexed, tree)?;
    // It is not needed any more, and large.
    let repo = indexed.drop_index();
    give_back();
    let failed: Failed = Mutex::default();
    let (jobs, work) = sync_channel::<IndexPack>(1);
    let work = Mutex::new(work);
    std::thread::scope(|scope| {
        for _ in 0..PACK_READERS {
            scope.spawn(|| read_packs(backend, key, &work, &failed));
        }
        // Dropped in any case: its end is theirs.
        let jobs = jobs;
        let index = Index::of(backend, &repo)?;
        for file in index.files()? {
            for pack in index.read(&file)?.packs {
                // One that is in two files of the index is read once.
                if packs.remove(&pack.id.into_inner()) && jobs.send(pack).is_err() {
                    return Ok::<(), FilesError>(());
                }
            }
        }
        Ok(())
    })?;
    let failed = failed.into_inner();
    if let Some(error) = failed.unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    match packs.iter().next() {
        None => Ok(()),
        Some(pack) => Err(damaged(backend, pack, "left the index meanwhile")),
    }
}

type Failed = Mutex<Option<FilesError>>;

fn damaged(backend: &Backend, pack: &Id, what: &str) -> FilesError {
    FilesError::Damaged {
        store: backend.store().display(),
        what: format!("pack {} {what}", pack.to_hex().as_str()),
    }
}

/// The packs that a snapshot needs.
fn needed<S: IndexedFull + Sync>(
    backend: &Backend,
    repo: &Repository<S>,
    root: TreeId,
) -> Result<HashSet<Id>, FilesError> {
    let (packs, budget) = (Mutex::new(HashSet::new()), Budget::new(FOLDERS_BYTES));
    walk([root], |id| {
        let mut its = HashSet::from([pack(backend, repo, id)?]);
        let length = repo.get_index_entry(id).map_or(0, |e| e.data_length());
        let _share = budget.take(DECODED_TIMES * u64::from(length));
        let tree = repo.get_tree(id).map_err(|e| {
            match FilesError::of("reading a folder of", backend, &e) {
                FilesError::Store(e) if !e.is_not_found() => FilesError::Store(e),
                FilesError::Stopped => FilesError::Stopped,
                other => FilesError::Damaged {
                    store: backend.store().display(),
                    what: other.to_string(),
                },
            }
        })?;
        for piece in tree.nodes.iter().flat_map(|n| n.content.iter().flatten()) {
            its.insert(pack(backend, repo, piece)?);
        }
        hold(&packs).extend(its);
        Ok(tree.nodes.iter().filter_map(|n| n.subtree).collect())
    })?;
    Ok(packs.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The pack that something is in.
fn pack<S: IndexedFull, T: PackedId>(
    backend: &Backend,
    repo: &Repository<S>,
    id: &T,
) -> Result<Id, FilesError> {
    let found = repo.get_index_entry(id);
    let entry = found.map_err(|_| FilesError::Damaged {
        store: backend.store().display(),
        what: "something of the newest snapshot is in no pack".into(),
    })?;
    Ok(entry.pack.into_inner())
}

/// Reads packs for as long as some come.
fn read_packs(
    backend: &Backend,
    key: &[u8; 64],
    work: &Mutex<Receiver<IndexPack>>,
    failed: &Failed,
) {
    loop {
        let Ok(pack) = hold(work).recv() else { return };
        // What is left is taken and dropped, so that whoever sends it does not wait.
        if hold(failed).is_some() {
            continue;
        }
        if let Err(error) = read_pack(backend, key, pack) {
            hold(failed).get_or_insert(error);
        }
    }
}

/// Reads one pack in runs. Its name is the hash of all of it.
fn read_pack(backend: &Backend, key: &[u8; 64], mut pack: IndexPack) -> Result<(), FilesError> {
    let (id, size) = (pack.id.into_inner(), pack.pack_size());
    let damaged = |what: &str| damaged(backend, &id, what);
    pack.blobs.sort_unstable_by_key(|b| b.location.offset);
    let mut hash = Sha256::new();
    let (mut at, mut next) = (0_u32, 0);
    while at < size {
        // Whole pieces; behind the last of them stands the list of what is in the pack.
        let mut end = at;
        let first = next;
        while let Some(piece) = pack.blobs.get(next) {
            let location = &piece.location;
            if location.offset != end {
                return Err(damaged("is not what the index says"));
            }
            let with = end.saturating_add(location.length);
            if next > first && with - at > RUN_MAX_BYTES {
                break;
            }
            (end, next) = (with, next + 1);
        }
        if next == first {
            end = size;
        }
        let bytes = match backend.pack_range(&id, at, end - at) {
            Ok(bytes) if bytes.len() == (end - at) as usize => bytes,
            Ok(_) => return Err(damaged("is cut short")),
            Err(Asked::Store(e)) if e.is_not_found() => return Err(damaged("is missing")),
            Err(Asked::Store(_)) if backend.is_shorter(&id, end) => {
                return Err(damaged("is cut short"));
            }
            Err(error) => return Err(error.into()),
        };
        hash.update(&bytes);
        for piece in &pack.blobs[first..next] {
            let start = (piece.location.offset - at) as usize;
            let sealed = bytes.get(start..start + piece.location.length as usize);
            let plain = piece.location.uncompressed_length;
            if sealed.is_none_or(|sealed| opened(key, sealed, plain, &piece.id).is_none()) {
                return Err(damaged("holds a piece that is not what was put there"));
            }
        }
        at = end;
    }
    match *id.to_hex() == *hex::encode(hash.finalize()) {
        true => Ok(()),
        false => Err(damaged("is not what was put there")),
    }
}
