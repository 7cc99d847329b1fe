//! Whether what lies under a taken key is what we were about to write: an earlier upload whose answer was lost.

use std::io::Read;
use std::path::Path;

use super::owner::Refusal;
use super::upload::{Replica, UploadError};
use crate::ltx;
use crate::store::StoreError;
use crate::types::{Entry, Span};

/// Bytes compared at once.
const COMPARE_BYTES: usize = 64 << 10;

impl Replica {
    pub(super) async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        match self.store.head(key).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Before a base is streamed, and after its key was found taken: `Some` if this very base is there already, because the answer to an
    /// earlier upload was lost.
    ///
    /// # Errors
    /// [`Refusal::Taken`] if another one is.
    pub async fn base_is_there(
        &self,
        header: &ltx::Header,
        span: Span,
    ) -> Result<Option<Entry>, UploadError> {
        let info = match self.store.head(&self.key(span)).await {
            Ok(info) => info,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let same = |h: &ltx::Header| {
            let what = |h: &ltx::Header| (h.lineage, h.max, h.page_size, h.commit, h.post);
            what(h) == what(header) && h.post.is_some()
        };
        match self.header(span).await? {
            Some(found) if same(&found) => Ok(Some(Entry {
                span,
                size: info.size,
                created: found.timestamp,
            })),
            _ => Err(Refusal::Taken(span.max()).into()),
        }
    }

    /// A taken key is fine only if it holds the bytes of our file. Compared piece by piece: either may be as large as the database.
    pub(super) async fn accept_only_ours(
        &mut self,
        key: &str,
        path: &Path,
        ours: Entry,
    ) -> Result<(), UploadError> {
        self.read_owner().await?;
        let theirs = self.store.head(key).await?;
        let taken = || UploadError::from(Refusal::Taken(ours.span.max()));
        if theirs.size != ours.size {
            return Err(taken());
        }
        let runtime = tokio::runtime::Handle::current();
        let theirs = crate::store::reader(&self.store, key, theirs.size, &runtime);
        let path = path.to_owned();
        let same =
            tokio::task::spawn_blocking(move || same_bytes(std::fs::File::open(path)?, theirs))
                .await
                .map_err(std::io::Error::other)??;
        if same { Ok(()) } else { Err(taken()) }
    }
}

fn same_bytes(mut a: impl Read, mut b: impl Read) -> std::io::Result<bool> {
    let (mut left, mut right) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(b.read(&mut right)? == 0);
        }
        match b.read_exact(&mut right[..n]) {
            Ok(()) if left[..n] == right[..n] => {}
            Ok(()) => return Ok(false),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}
