//! Files of a repository's index, read and written one at a time: rustic_core's own streams hold several at once, each decoded and as text.
//!
//! The format is restic's: JSON, compressed behind a byte 2 where the repository's version has that, sealed with the master key, named by its
//! hash (<https://restic.readthedocs.io/en/stable/100_references.html#repository-format>).

use bytes::Bytes;
use rustic_core::repofile::IndexFile;
use rustic_core::{FileType, Id, ReadBackend};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::backend::{Asked, Backend};
use super::error::FilesError;
use super::repository::{self, Repo, seal, unseal};
use crate::store::PutMode;

/// Pieces in one file, as others have it. One is in memory at a time, some 10 MB with its text.
pub(super) const PIECES_MAX: usize = 50_000;
/// From this version of the format on files may be compressed.
const COMPRESSED_SINCE: u32 = 2;
/// What a file begins with that is compressed.
const COMPRESSED: u8 = 2;

/// The index of one repository.
pub(super) struct Index<'a> {
    backend: &'a Backend,
    key: [u8; 64],
    compress: bool,
}

impl<'a> Index<'a> {
    pub(super) fn of(backend: &'a Backend, repo: &Repo) -> Result<Self, FilesError> {
        Ok(Self {
            backend,
            key: repository::key(backend, repo)?,
            compress: repo.config().version >= COMPRESSED_SINCE,
        })
    }

    /// The repository's master key.
    pub(super) fn key(&self) -> &[u8; 64] {
        &self.key
    }

    /// Its files. Always in the same order, so that one look at them meets what another one met.
    pub(super) fn files(&self) -> Result<Vec<Id>, FilesError> {
        let listed = self
            .backend
            .list_with_size(FileType::Index)
            .map_err(|e| FilesError::of("listing the index of", self.backend, &e))?;
        let mut files: Vec<Id> = listed.into_iter().map(|(id, _)| id).collect();
        files.sort_unstable();
        Ok(files)
    }

    /// One file.
    ///
    /// # Errors
    /// [`FilesError::Damaged`], and the store's.
    pub(super) fn read(&self, id: &Id) -> Result<IndexFile, FilesError> {
        let name = id.to_hex();
        let name: &str = &name;
        let damaged = |what: &str| FilesError::Damaged {
            store: self.backend.store().display(),
            what: format!("file {name} of its index {what}"),
        };
        let key = format!("index/{name}");
        let sealed = match self.backend.ask(|| self.backend.store().get(&key)) {
            Ok(sealed) => sealed,
            Err(Asked::Store(e)) if e.is_not_found() => return Err(damaged("is missing")),
            Err(error) => return Err(error.into()),
        };
        if hex::encode(Sha256::digest(&sealed)) != name {
            return Err(damaged("is not what was put there"));
        }
        let plain = unseal(&self.key, &sealed);
        drop(sealed);
        let read = plain.and_then(|plain| match plain.split_first() {
            Some((&COMPRESSED, packed)) => {
                serde_json::from_slice(&zstd::stream::decode_all(packed).ok()?).ok()
            }
            _ => serde_json::from_slice(&plain).ok(),
        });
        read.ok_or_else(|| damaged("cannot be read"))
    }

    /// Writes a further file.
    pub(super) fn write(&self, file: &impl Serialize) -> Result<(), FilesError> {
        let wrong = |reason: String| FilesError::Repository {
            doing: "writing the index of",
            store: self.backend.store().display(),
            reason,
        };
        let mut plain = serde_json::to_vec(file).map_err(|e| wrong(e.to_string()))?;
        if self.compress {
            let packed = zstd::bulk::compress(&plain, 0).map_err(|e| wrong(e.to_string()))?;
            plain = [&[COMPRESSED], packed.as_slice()].concat();
        }
        let body = Bytes::from(seal(&self.key, &plain).map_err(wrong)?);
        let name = format!("index/{}", hex::encode(Sha256::digest(&body)));
        let put = || {
            let store = self.backend.store();
            store.put(&name, body.clone(), PutMode::Overwrite, None)
        };
        Ok(self.backend.ask(put)?)
    }

    /// Removes a file. One that is gone is as it should be.
    pub(super) fn remove(&self, id: &Id) -> Result<(), FilesError> {
        self.backend.remove_file(FileType::Index, id)
    }
}
