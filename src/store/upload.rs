//! Writing objects that do not fit in memory, in parts.
//!
//! - Nothing is visible at the key before the last step, and nothing at all after a failure: the upload
//!   is aborted, also when the caller drops the future.
//! - Memory: the part being filled and, while parts are at most 16 MiB, one on its way.
//! - A part whose request fails is repeated for [`PART_PATIENCE`]: a snapshot of hours survives an
//!   outage of a minute.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::client::HttpErrorKind;
use object_store::path::Path;
use object_store::retry::{RetryContext, RetryFailure, RetryPolicy};
use object_store::{MultipartUpload, PutMultipartOptions, PutPayload};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::error::{Class, Op, StoreError};
use super::sum::{StoreSum, Sum};
use super::{PutMode, Store, request_timeout};
use crate::types::Millis;

const MIB: u64 = 1024 * 1024;

/// Objects up to this are one request. At least 5 MiB, S3's smallest part.
pub const SINGLE_PUT_MAX_BYTES: u64 = 8 * MIB;

/// S3's limit; Azure's is 50,000, Google's is S3's.
const MAX_PARTS: u64 = 10_000;

/// Parts above this are sent one at a time, to hold one of them in memory and not two.
const OVERLAP_MAX_BYTES: u64 = 16 * MIB;

/// How long a failing part is tried again before the upload is given up.
const PART_PATIENCE: Duration = Duration::from_secs(90);

/// Pause between two tries of a part; the client has already repeated quickly before.
const PART_PAUSE: Duration = Duration::from_secs(2);

/// Putting thousands of parts together takes S3 up to minutes.
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(180);

/// An abort is a courtesy to the bill: not worth waiting long for.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

/// A file is read in pieces of this size.
const READ_BYTES: usize = MIB as usize;

/// One message of a stream that becomes an object. Only [`Piece::End`] finishes it: a sender that
/// fails or goes away without it leaves nothing in the store.
#[derive(Debug)]
pub enum Piece {
    /// The next bytes.
    Data(Bytes),
    /// The object is complete.
    End,
    /// The source failed; the upload is aborted.
    Failed(io::Error),
}

/// Passed to [`DirectoryStore`](super::file::DirectoryStore), which alone can finish a multipart upload
/// on the condition that the name is free.
#[derive(Clone, Copy, Debug)]
pub(super) struct CreateOnly;

/// Bytes of the `index`-th part (from 0).
///
/// With the size known, all parts are equal (Cloudflare R2 demands that) and as small as the limit of
/// 10,000 allows. Unknown, they grow: 8 MiB up to 7.8 GiB of object, then doubling, so that 10,000
/// parts hold more than 1 TiB. Memory stays within 32 MiB up to 78 GiB of object.
fn part_bytes(index: u64, expected: Option<u64>) -> u64 {
    match expected {
        Some(total) => total.div_ceil(MAX_PARTS).div_ceil(MIB).max(8) * MIB,
        None => {
            MIB * match index {
                0..1000 => 8,
                1000..2500 => 16,
                2500..4000 => 32,
                4000..5500 => 64,
                5500..7000 => 128,
                _ => 256,
            }
        }
    }
}

/// Tries parts again through short outages.
#[derive(Debug)]
struct Patience;

#[async_trait]
impl RetryPolicy for Patience {
    async fn retry(&self, context: RetryContext) -> bool {
        let outage = match context.failure {
            RetryFailure::Status(status) => {
                status.is_server_error() || matches!(status.as_u16(), 408 | 429)
            }
            RetryFailure::Transport(kind) => kind != HttpErrorKind::Decode,
            _ => false,
        };
        let again = outage && context.elapsed < PART_PATIENCE;
        if again {
            tokio::time::sleep(PART_PAUSE).await;
        }
        again
    }
}

impl Store {
    /// Writes a file's content. Up to 8 MiB it is one request, above that parts; returns the bytes.
    ///
    /// With [`PutMode::Create`] above 8 MiB only `file://` decides atomically who was first. Elsewhere
    /// the key is looked at before the upload and right before its last step: two writers within that
    /// one request are not excluded, and callers need the owner's epoch besides.
    ///
    /// # Errors
    /// As [`Store::put`]; [`Class::Other`] if the file cannot be read or changes meanwhile.
    pub async fn put_file(
        &self,
        key: &str,
        path: &FsPath,
        mode: PutMode,
        created: Option<Millis>,
    ) -> Result<u64, StoreError> {
        let failed = |e: io::Error| {
            let reason = format!("reading {}: {e}", path.display());
            self.error(Op::Put, key, Class::Other, reason)
        };
        let owned = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let file = File::open(owned)?;
            let bytes = file.metadata()?.len();
            Ok((file, bytes))
        });
        let (file, bytes) = opened
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(failed)?;
        let (pieces, rx) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || send_file(file, bytes, &pieces));
        self.upload(key, rx, mode, created, Some(bytes), None).await
    }

    /// Writes what a channel brings until [`Piece::End`], replacing what is at the key; returns the
    /// bytes. For sources of unknown size; see [`Store::put_stream_sized`] for large ones on R2.
    ///
    /// # Errors
    /// As [`Store::put`]; [`Class::Other`] if the sender fails or goes away early.
    pub async fn put_stream(
        &self,
        key: &str,
        rx: mpsc::Receiver<Piece>,
        created: Option<Millis>,
    ) -> Result<u64, StoreError> {
        self.upload(key, rx, PutMode::Overwrite, created, None, None)
            .await
    }

    /// [`Store::put_stream`] that refuses a key that is taken, as [`Store::put_file`] does with [`PutMode::Create`].
    ///
    /// # Errors
    /// As [`Store::put_stream`]; [`Class::Exists`].
    pub async fn put_stream_new(
        &self,
        key: &str,
        rx: mpsc::Receiver<Piece>,
        created: Option<Millis>,
    ) -> Result<u64, StoreError> {
        self.upload(key, rx, PutMode::Create, created, None, None)
            .await
    }

    /// [`Store::put_stream_new`] that hashes what it sends and holds the store's own checksum against it.
    ///
    /// # Errors
    /// As [`Store::put_stream_new`]. A checksum that differs is no error here.
    pub async fn put_stream_summed(
        &self,
        key: &str,
        rx: mpsc::Receiver<Piece>,
    ) -> Result<StoreSum, StoreError> {
        let mut checked = (Sum::default(), StoreSum::Unknown);
        self.upload(key, rx, PutMode::Create, None, None, Some(&mut checked))
            .await?;
        Ok(checked.1)
    }

    /// [`Store::put_stream`] with an upper bound of the size, which makes all parts equal.
    ///
    /// # Errors
    /// As [`Store::put_stream`]; [`Class::Other`] if more bytes come than announced.
    pub async fn put_stream_sized(
        &self,
        key: &str,
        rx: mpsc::Receiver<Piece>,
        created: Option<Millis>,
        at_most: u64,
    ) -> Result<u64, StoreError> {
        self.upload(key, rx, PutMode::Overwrite, created, Some(at_most), None)
            .await
    }

    async fn upload(
        &self,
        key: &str,
        mut rx: mpsc::Receiver<Piece>,
        mode: PutMode,
        created: Option<Millis>,
        expected: Option<u64>,
        mut checked: Option<&mut (Sum, StoreSum)>,
    ) -> Result<u64, StoreError> {
        let location = self.location(Op::Put, key)?;
        let mut buffer = Buffer::default();
        let mut parts: Option<Parts<'_>> = None;
        let outcome = loop {
            match rx.recv().await {
                None => break Err("the source went away before the end".to_owned()),
                Some(Piece::Failed(e)) => break Err(format!("the source failed: {e}")),
                Some(Piece::End) => break Ok(()),
                Some(Piece::Data(bytes)) => buffer.push(bytes),
            }
            let index = parts.as_ref().map_or(0, |parts| parts.count);
            let size = part_bytes(index, expected);
            // More than one part, not just full: an object of exactly one part is a single request.
            while buffer.bytes > size {
                let started = match parts.take() {
                    Some(parts) => parts,
                    None => Parts::start(self, key, &location, mode, created).await?,
                };
                let payload = buffer.take(size);
                if let Some((sum, _)) = &mut checked {
                    sum.add(&payload).await;
                }
                parts = Some(started.send(payload).await?);
            }
        };
        if let Err(reason) = outcome {
            if let Some(parts) = parts {
                parts.abort().await;
            }
            return Err(self.error(Op::Put, key, Class::Other, reason));
        }
        let rest = buffer.bytes;
        let payload = buffer.take(rest);
        if let Some((sum, _)) = &mut checked
            && (rest > 0 || parts.is_none())
        {
            sum.add(&payload).await;
        }
        let (bytes, e_tag) = match parts {
            None => (rest, self.put_payload(key, payload, mode, created).await?),
            Some(parts) if rest == 0 => parts.finish().await?,
            Some(parts) => parts.send(payload).await?.finish().await?,
        };
        if let Some((sum, verdict)) = checked {
            *verdict = sum.judge(self.kind(), e_tag.as_deref());
        }
        Ok(bytes)
    }
}

/// Runs on a blocking thread. An upload that ended early has closed the channel: nothing to do then.
fn send_file(mut file: File, expected: u64, pieces: &mpsc::Sender<Piece>) {
    let mut sent = 0;
    let last = loop {
        let mut chunk = Vec::with_capacity(READ_BYTES);
        match file
            .by_ref()
            .take(READ_BYTES as u64)
            .read_to_end(&mut chunk)
        {
            Ok(0) if sent == expected => break Piece::End,
            Ok(0) => break Piece::Failed(io::Error::other("the file changed while it was read")),
            Ok(n) => sent += n as u64,
            Err(e) => break Piece::Failed(e),
        }
        if pieces.blocking_send(Piece::Data(chunk.into())).is_err() {
            return;
        }
    };
    let _ = pieces.blocking_send(last);
}

/// Bytes waiting to become a part; never copied.
#[derive(Default)]
struct Buffer {
    chunks: std::collections::VecDeque<Bytes>,
    bytes: u64,
}

impl Buffer {
    fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.bytes += chunk.len() as u64;
            self.chunks.push_back(chunk);
        }
    }

    /// The first `bytes`, or all there are.
    fn take(&mut self, bytes: u64) -> PutPayload {
        let mut out = Vec::new();
        let mut missing = bytes.min(self.bytes);
        self.bytes -= missing;
        while missing > 0
            && let Some(mut chunk) = self.chunks.pop_front()
        {
            if chunk.len() as u64 > missing {
                // Fits: it is less than the chunk's length.
                let rest = chunk.split_off(missing as usize);
                self.chunks.push_front(rest);
            }
            missing -= chunk.len() as u64;
            out.push(chunk);
        }
        out.into_iter().collect()
    }
}

/// A multipart upload under way. Every error path aborts it; dropping it does so in the background.
struct Parts<'a> {
    store: &'a Store,
    key: &'a str,
    location: &'a Path,
    mode: PutMode,
    upload: Option<Box<dyn MultipartUpload>>,
    sending: JoinSet<(u64, object_store::Result<()>)>,
    count: u64,
    bytes: u64,
}

impl<'a> Parts<'a> {
    async fn start(
        store: &'a Store,
        key: &'a str,
        location: &'a Path,
        mode: PutMode,
        created: Option<Millis>,
    ) -> Result<Self, StoreError> {
        let mut options = PutMultipartOptions {
            attributes: store.attributes(created),
            ..Default::default()
        }
        .with_retry_policy(Arc::new(Patience));
        if mode == PutMode::Create {
            refuse_existing(store, key).await?;
            options.extensions.insert(CreateOnly);
        }
        let request = store.inner().put_multipart_opts(location, options);
        let upload = store
            .bounded(Op::Put, key, request_timeout(0), request)
            .await?;
        Ok(Self {
            store,
            key,
            location,
            mode,
            upload: Some(upload),
            sending: JoinSet::new(),
            count: 0,
            bytes: 0,
        })
    }

    async fn send(mut self, payload: PutPayload) -> Result<Self, StoreError> {
        let bytes = payload.content_length() as u64;
        if self.count >= MAX_PARTS {
            let reason = format!("more than {MAX_PARTS} parts");
            let error = self.store.error(Op::Part, self.key, Class::Other, reason);
            self.abort().await;
            return Err(error);
        }
        self = self.settle().await?;
        let Some(upload) = self.upload.as_mut() else {
            return Err(self
                .store
                .error(Op::Part, self.key, Class::Other, "upload has ended"));
        };
        let part = upload.put_part(payload);
        self.count += 1;
        self.bytes += bytes;
        let limit = PART_PATIENCE + request_timeout(bytes);
        self.sending.spawn(async move {
            let done = tokio::time::timeout(limit, part).await;
            (bytes, done.unwrap_or_else(|_| Err(timed_out(limit))))
        });
        if bytes > OVERLAP_MAX_BYTES {
            self = self.settle().await?;
        }
        Ok(self)
    }

    /// Waits for the parts on their way.
    async fn settle(mut self) -> Result<Self, StoreError> {
        while let Some(joined) = self.sending.join_next().await {
            let (bytes, result) = match joined {
                Ok(done) => done,
                Err(e) => (0, Err(e.into())),
            };
            self.store.stats().count(Op::Part, 1);
            match result {
                Ok(()) => self.store.stats().count_out(bytes),
                Err(e) => {
                    let error = self.store.failed(Op::Part, self.key, &e);
                    self.abort().await;
                    return Err(error);
                }
            }
        }
        Ok(self)
    }

    /// Bytes and ETag.
    async fn finish(mut self) -> Result<(u64, Option<String>), StoreError> {
        self = self.settle().await?;
        if self.mode == PutMode::Create
            && let Err(error) = refuse_existing(self.store, self.key).await
        {
            self.abort().await;
            return Err(error);
        }
        let Some(mut upload) = self.upload.take() else {
            return Err(self
                .store
                .error(Op::Put, self.key, Class::Other, "upload has ended"));
        };
        let (store, key) = (self.store, self.key);
        let done = store
            .bounded(Op::Put, key, COMPLETE_TIMEOUT, upload.complete())
            .await;
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                self.upload = Some(upload);
                self.abort().await;
                return Err(error);
            }
        };
        tracing::debug!(key = %self.location, parts = self.count, bytes = self.bytes, "uploaded");
        Ok((self.bytes, done.e_tag))
    }

    /// Failing is only logged: the caller has a better error to report.
    async fn abort(mut self) {
        self.sending.shutdown().await;
        if let Some(upload) = self.upload.take() {
            give_up(upload, self.location.to_string()).await;
        }
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(give_up(upload, self.location.to_string()));
        }
    }
}

async fn give_up(mut upload: Box<dyn MultipartUpload>, key: String) {
    match tokio::time::timeout(ABORT_TIMEOUT, upload.abort()).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => tracing::warn!(
            key,
            "an unfinished upload could not be aborted; a lifecycle rule for incomplete uploads removes it"
        ),
    }
}

fn timed_out(limit: Duration) -> object_store::Error {
    let reason = format!("no answer within {} s", limit.as_secs());
    object_store::Error::Generic {
        store: "any",
        source: Box::new(io::Error::new(io::ErrorKind::TimedOut, reason)),
    }
}

async fn refuse_existing(store: &Store, key: &str) -> Result<(), StoreError> {
    match store.head(key).await {
        Ok(_) => Err(store.error(Op::Put, key, Class::Exists, "the key is taken")),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ten_thousand_parts_hold_a_tebibyte() {
        const TIB: u64 = 1 << 40;
        let total: u64 = (0..MAX_PARTS).map(|n| part_bytes(n, None)).sum();
        assert!(total > TIB, "{total}");
        let modest: u64 = (0..4000).map(|n| part_bytes(n, None)).sum();
        assert!(modest > 78_000 * MIB, "within 32 MiB of memory: {modest}");
        for known in [0, 1, 8 * MIB, 78 << 30, TIB, 40 * TIB] {
            let size = part_bytes(0, Some(known));
            assert_eq!(size, part_bytes(9_999, Some(known)), "all parts equal");
            assert!(size >= 8 * MIB && size * MAX_PARTS >= known);
        }
    }

    proptest! {
        #[test]
        fn a_buffer_gives_back_what_it_got(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20),
            sizes in prop::collection::vec(0u64..120, 0..20),
        ) {
            let mut buffer = Buffer::default();
            for chunk in &chunks {
                buffer.push(chunk.clone().into());
            }
            let mut out = Vec::new();
            for size in sizes.into_iter().chain([u64::MAX]) {
                let before = buffer.bytes;
                let taken = Bytes::from(buffer.take(size));
                prop_assert_eq!(taken.len() as u64, size.min(before));
                out.extend_from_slice(&taken);
            }
            prop_assert_eq!(out, chunks.concat());
        }
    }
}
