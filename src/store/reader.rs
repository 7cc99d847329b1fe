//! An object as a blocking reader.

use std::io::{self, Read};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::{Store, StoreError};

/// Bytes of one ranged read.
const READ_BYTES: u64 = 4 << 20;
/// Reads under way at once: the bound on memory is one more than this.
const READS_AHEAD: usize = 3;
/// Times a ranged read is asked for.
const READ_TRIES: u32 = 4;

/// An object, fetched ahead by a few ranged reads, for threads that may block; must not run on an async worker. A failed range is asked for
/// again from where it was. Dropping it ends the download.
pub fn reader(
    store: &Store,
    key: &str,
    size: u64,
    runtime: &tokio::runtime::Handle,
) -> impl Read + Send + use<> {
    let (tx, rx) = mpsc::channel::<Result<Bytes, StoreError>>(1);
    let (store, key) = (store.clone(), key.to_owned());
    runtime.spawn(async move {
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
            Err(e) if tries < READ_TRIES && e.is_retryable() => {
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
