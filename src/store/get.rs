//! Reading objects.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::{GetOptions, GetResult, GetResultPayload, ObjectStoreExt};

use super::error::{Class, Op, StoreError};
use super::{ObjectInfo, REQUEST_TIMEOUT, Store, created_in, request_timeout};

/// A download that brings nothing for this long is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes read from a local file at once: few enough trips to the blocking pool to run at disk speed.
const FILE_CHUNK_BYTES: u64 = 1024 * 1024;

impl Store {
    /// A whole object, in memory: for small ones.
    ///
    /// # Errors
    /// [`Class::NotFound`] and the rest; [`Class::Unreachable`] if the download ends early.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let (info, chunks) = self.get_stream(key).await?;
        let chunks: Vec<Bytes> = chunks.try_collect().await?;
        match <[Bytes; 1]>::try_from(chunks) {
            Ok([only]) => Ok(only),
            Err(chunks) => {
                // Bounded by what was received, not by what the server claims.
                let mut whole = Vec::with_capacity(chunks.iter().map(Bytes::len).sum());
                chunks
                    .iter()
                    .for_each(|chunk| whole.extend_from_slice(chunk));
                debug_assert_eq!(whole.len() as u64, info.size);
                Ok(whole.into())
            }
        }
    }

    /// An object and its bytes as they arrive. Ends with an error, never silently, before
    /// [`ObjectInfo::size`] bytes came. Content is not verified beyond its length.
    ///
    /// # Errors
    /// As [`Store::get`], also inside the stream.
    pub async fn get_stream(
        &self,
        key: &str,
    ) -> Result<(ObjectInfo, BoxStream<'static, Result<Bytes, StoreError>>), StoreError> {
        let location = self.location(Op::Get, key)?;
        let request = self.inner().get_opts(&location, GetOptions::default());
        let result = self.bounded(Op::Get, key, REQUEST_TIMEOUT, request).await?;
        let info = self.described(Op::Get, key, &result)?;
        let whole = Download {
            store: self.clone(),
            key: key.to_owned(),
            size: info.size,
            received: 0,
            chunks: chunks(result),
        };
        let checked = stream::try_unfold(whole, Download::next);
        Ok((info, checked.boxed()))
    }

    /// Part of an object, in memory.
    ///
    /// # Errors
    /// As [`Store::get`]; [`Class::Other`] if the object ends before the range does.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let wanted = range.end.saturating_sub(range.start);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let location = self.location(Op::Get, key)?;
        let request = self.inner().get_range(&location, range);
        let bytes = self
            .bounded(Op::Get, key, request_timeout(wanted), request)
            .await?;
        self.stats().count_in(bytes.len() as u64);
        match bytes.len() as u64 == wanted {
            true => Ok(bytes),
            false => {
                let reason = format!("{} of {wanted} bytes of the range", bytes.len());
                Err(self.error(Op::Get, key, Class::Other, reason))
            }
        }
    }

    /// Size and times of an object.
    ///
    /// # Errors
    /// [`Class::NotFound`] and the rest. A missing bucket also reads as [`Class::NotFound`] where the
    /// answer has no body; [`Store::check`] tells them apart.
    pub async fn head(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        let location = self.location(Op::Head, key)?;
        let options = GetOptions {
            head: true,
            ..Default::default()
        };
        let request = self.inner().get_opts(&location, options);
        let result = self
            .bounded(Op::Head, key, REQUEST_TIMEOUT, request)
            .await?;
        self.described(Op::Head, key, &result)
    }

    fn described(&self, op: Op, key: &str, result: &GetResult) -> Result<ObjectInfo, StoreError> {
        let created = created_in(&result.attributes);
        self.info(result.meta.clone(), created).ok_or_else(|| {
            let reason = "the store answered with another object";
            self.error(op, key, Class::Other, reason)
        })
    }
}

struct Download {
    store: Store,
    key: String,
    size: u64,
    received: u64,
    chunks: BoxStream<'static, object_store::Result<Bytes>>,
}

impl Download {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, StoreError> {
        let (op, key) = (Op::Get, self.key.as_str());
        let chunk = match tokio::time::timeout(IDLE_TIMEOUT, self.chunks.try_next()).await {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(e)) => return Err(self.store.failed(op, key, &e)),
            Err(_) => return Err(self.store.timed_out(op, key, IDLE_TIMEOUT)),
        };
        match chunk {
            Some(chunk) => {
                self.received += chunk.len() as u64;
                self.store.stats().count_in(chunk.len() as u64);
                Ok(Some((chunk, self)))
            }
            None if self.received == self.size => Ok(None),
            None => {
                let reason = format!("ended after {} of {} bytes", self.received, self.size);
                Err(self.store.error(op, key, Class::Unreachable, reason))
            }
        }
    }
}

/// Local files in large pieces; the client's own are 8 KiB.
fn chunks(result: GetResult) -> BoxStream<'static, object_store::Result<Bytes>> {
    match result.payload {
        GetResultPayload::Stream(stream) => stream,
        GetResultPayload::File(file, _) => {
            let start = (std::sync::Arc::new(file), result.range);
            stream::try_unfold(start, |(file, range)| async move {
                if range.is_empty() {
                    return Ok(None);
                }
                let end = range.end.min(range.start + FILE_CHUNK_BYTES);
                let handle = std::sync::Arc::clone(&file);
                let read = tokio::task::spawn_blocking(move || read_at(&handle, range.start..end));
                let bytes = read.await?.map_err(|source| object_store::Error::Generic {
                    store: "file",
                    source: Box::new(source),
                })?;
                Ok(Some((bytes, (file, end..range.end))))
            })
            .boxed()
        }
    }
}

fn read_at(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    // At most FILE_CHUNK_BYTES.
    let mut buffer = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut buffer, range.start)?;
    Ok(buffer.into())
}
