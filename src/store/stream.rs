//! Objects larger than memory should hold: multipart uploads, and downloads as a blocking reader.

use std::io::{self, Read};
use std::path::Path;

use bytes::{Bytes, BytesMut};
use object_store::PutPayload;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::{Store, StoreError, count};
use crate::types::Millis;

/// First part size. S3 wants at least 5 MiB.
const PART_BYTES: usize = 8 << 20;
/// Parts grow by half their first size this often, so that S3's 10,000 parts hold far more than 1 TiB.
const PARTS_PER_STEP: usize = 1000;
/// Bytes of one ranged read.
const READ_BYTES: u64 = 4 << 20;
/// Reads under way at once.
const READS_AHEAD: usize = 3;
/// Times a ranged read is asked for again.
const READ_TRIES: u32 = 4;

/// What a blocking thread sends to an upload.
#[derive(Debug)]
pub enum Piece {
    /// More bytes, of any length.
    Data(Bytes),
    /// All there is: the object may become visible.
    End,
}

pub(super) async fn put_file(
    store: &Store,
    key: &str,
    path: &Path,
    created: Option<Millis>,
) -> Result<u64, StoreError> {
    let (tx, rx) = mpsc::channel(1);
    let path = path.to_owned();
    let send = async move {
        let mut file = tokio::fs::File::open(&path)
            .await
            .map_err(|e| StoreError::local(&path, e))?;
        loop {
            let mut buf = BytesMut::with_capacity(1 << 20);
            let n = file
                .read_buf(&mut buf)
                .await
                .map_err(|e| StoreError::local(&path, e))?;
            let piece = if n == 0 {
                Piece::End
            } else {
                Piece::Data(buf.freeze())
            };
            // The receiver is gone if the upload failed: that error is the one to report.
            if tx.send(piece).await.is_err() || n == 0 {
                return Ok(());
            }
        }
    };
    let (sent, stored): (Result<(), StoreError>, _) =
        tokio::join!(send, put_stream(store, key, rx, created));
    sent?;
    stored
}

pub(super) async fn put_stream(
    store: &Store,
    key: &str,
    mut pieces: mpsc::Receiver<Piece>,
    created: Option<Millis>,
) -> Result<u64, StoreError> {
    let mut upload = store.start_multipart(key, created).await?;
    let result = send_parts(store, key, upload.as_mut(), &mut pieces).await;
    match result {
        Ok(bytes) => {
            store
                .timed(
                    "finish writing",
                    key,
                    super::SMALL_TIMEOUT * 6,
                    upload.complete(),
                )
                .await?;
            store.stamp_file(key, created)?;
            count(&store.stats.sent_bytes, bytes);
            Ok(bytes)
        }
        Err(error) => {
            // Best effort: an aborted upload is invisible either way, and stores expire the parts.
            if let Err(e) = upload.abort().await {
                tracing::debug!(store = store.display(), key, error = %e, "aborting an upload failed");
            }
            Err(error)
        }
    }
}

async fn send_parts(
    store: &Store,
    key: &str,
    upload: &mut dyn object_store::MultipartUpload,
    pieces: &mut mpsc::Receiver<Piece>,
) -> Result<u64, StoreError> {
    let mut total = 0;
    let mut parts = 0;
    let mut part: Vec<Bytes> = Vec::new();
    let mut filled = 0;
    loop {
        let ended = match pieces.recv().await {
            Some(Piece::Data(bytes)) => {
                filled += bytes.len();
                part.push(bytes);
                false
            }
            Some(Piece::End) => true,
            None => return Err(StoreError::aborted(store, key)),
        };
        let wanted = PART_BYTES + PART_BYTES / 2 * (parts / PARTS_PER_STEP);
        if filled >= wanted || (ended && (filled > 0 || parts == 0)) {
            count(&store.stats.put, 1);
            let payload: PutPayload = std::mem::take(&mut part).into_iter().collect();
            // One part in flight: memory stays at one part, and the encoder behind the channel works meanwhile.
            let limit = super::SMALL_TIMEOUT * 6;
            store
                .timed("write a part of", key, limit, upload.put_part(payload))
                .await?;
            total += filled as u64;
            parts += 1;
            filled = 0;
        }
        if ended {
            return Ok(total);
        }
    }
}

/// An object as a blocking reader, fetched ahead by a few ranged reads. For threads that may block; must not run on an async worker.
/// A failed range is asked for again from where it was. Dropping it ends the download.
pub fn reader(
    store: &Store,
    key: &str,
    size: u64,
    runtime: &tokio::runtime::Handle,
) -> impl Read + Send + use<> {
    let (tx, rx) = mpsc::channel::<Result<Bytes, StoreError>>(1);
    let (store, key) = (store.clone(), key.to_owned());
    runtime.spawn(async move {
        use futures::StreamExt;
        let ranges = (0..size.div_ceil(READ_BYTES))
            .map(|i| i * READ_BYTES..((i + 1) * READ_BYTES).min(size));
        let mut parts = futures::stream::iter(ranges)
            .map(|range| get_patiently(&store, &key, range))
            .buffered(READS_AHEAD);
        while let Some(part) = parts.next().await {
            let failed = part.is_err();
            if tx.send(part).await.is_err() || failed {
                return;
            }
        }
    });
    ObjectReader {
        parts: rx,
        current: Bytes::new(),
    }
}

async fn get_patiently(
    store: &Store,
    key: &str,
    range: std::ops::Range<u64>,
) -> Result<Bytes, StoreError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match store.get_range(key, range.clone()).await {
            Err(e) if tries < READ_TRIES && !e.is_not_found() => {
                tokio::time::sleep(std::time::Duration::from_millis(200 << tries)).await;
            }
            result => return result,
        }
    }
}

struct ObjectReader {
    parts: mpsc::Receiver<Result<Bytes, StoreError>>,
    current: Bytes,
}

impl Read for ObjectReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.parts.blocking_recv() {
                Some(Ok(bytes)) => self.current = bytes,
                Some(Err(e)) => return Err(io::Error::other(e)),
                None => return Ok(0),
            }
        }
        let n = buf.len().min(self.current.len());
        buf[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}
