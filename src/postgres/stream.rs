//! One stream through hashes and zstd into several stores at once; and what is written when it is there.

use std::io::{self, Write};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::manifest::globals_key;
use super::{DumpOptions, Manifest, Part, PostgresError, Source, read_back};
use crate::store::{Piece, PutMode, Store, StoreSum};

/// Compressed bytes are sent in pieces of this size.
const PIECE_BYTES: usize = 1024 * 1024;
/// Pieces on their way to an uploader: the bound on what a slow store holds in memory here.
const PIECES_AHEAD: usize = 4;
/// Written and deleted to find out what a checksum of the store is.
const PROBE_KEY: &str = "lifeboat/checksum-probe";

/// What one store said of an upload: its own checksum, or why there is no object.
pub(crate) type Uploaded = Result<StoreSum, PostgresError>;

/// Sends to every store what `work` writes, which runs on a thread of its own; returns its result, and one for each store.
///
/// # Errors
/// Those of `work`, or of the stores if none took it: bytes that may have arrived have no manifest.
pub(crate) async fn upload<T: Send + 'static>(
    stores: &[Store],
    key: &str,
    work: impl FnOnce(&mut Fan) -> Result<T, PostgresError> + Send + 'static,
) -> Result<(T, Vec<Uploaded>), PostgresError> {
    let (senders, receivers): (Vec<_>, Vec<_>) =
        stores.iter().map(|_| mpsc::channel(PIECES_AHEAD)).unzip();
    let worker = tokio::task::spawn_blocking(move || {
        let mut fan = Fan(senders.into_iter().map(Some).collect());
        let result = work(&mut fan);
        match &result {
            Ok(_) => fan.end(|| Piece::End),
            Err(e) => fan.end(|| Piece::Failed(io::Error::other(e.to_string()))),
        }
        result
    });
    let uploads = stores
        .iter()
        .zip(receivers)
        .map(|(store, received)| store.put_stream_summed(key, received));
    let uploaded = futures::future::join_all(uploads).await;
    let streamed = worker
        .await
        .map_err(|e| PostgresError::Io("dumping", io::Error::other(e)))?;
    let uploaded: Vec<Uploaded> = uploaded
        .into_iter()
        .map(|r| r.map_err(PostgresError::from))
        .collect();
    match streamed {
        Ok(done) => Ok((done, uploaded)),
        // The store's refusal is the cause of a broken pipe here.
        Err(PostgresError::Io(..)) if uploaded.iter().all(Result::is_err) => {
            Err(first_error(uploaded))
        }
        Err(error) => Err(error),
    }
}

/// Writes what makes the dump one, in each store that took the stream.
///
/// # Errors
/// The stores', if no store holds the dump.
pub(crate) async fn commit_all(
    stores: &[Store],
    uploaded: Vec<Uploaded>,
    manifest: &Manifest,
    globals: Option<&Bytes>,
) -> Result<Vec<Result<(), PostgresError>>, PostgresError> {
    let mut done = Vec::with_capacity(stores.len());
    for (store, uploaded) in stores.iter().zip(uploaded) {
        done.push(match uploaded {
            Ok(sum) => commit(store, sum, manifest, globals).await,
            Err(error) => Err(error),
        });
    }
    if done.iter().all(Result::is_err) {
        return Err(first_error(done));
    }
    Ok(done)
}

fn first_error<T>(results: Vec<Result<T, PostgresError>>) -> PostgresError {
    let first = results.into_iter().find_map(Result::err);
    first.unwrap_or_else(|| PostgresError::Io("sending the dump", io::ErrorKind::NotFound.into()))
}

/// Looks at what arrived, then writes globals and manifest.
async fn commit(
    store: &Store,
    sum: StoreSum,
    manifest: &Manifest,
    globals: Option<&Bytes>,
) -> Result<(), PostgresError> {
    let stored = store.head(&manifest.dump_key()).await?;
    if stored.size != manifest.dump.size {
        let why = format!(
            "the store holds {} of {} bytes",
            stored.size, manifest.dump.size
        );
        let id = manifest.id.clone();
        return Err(PostgresError::Damaged { id, why });
    }
    if sum == StoreSum::Differs {
        doubt(store, manifest).await?;
    }
    if let Some(bytes) = globals {
        let key = globals_key(&manifest.id);
        store
            .put(&key, bytes.clone(), PutMode::Create, None)
            .await?;
    }
    manifest.write(store).await
}

/// The store's checksum is not that of what was sent. Unless its checksums are of another kind, only reading tells who is right.
async fn doubt(store: &Store, manifest: &Manifest) -> Result<(), PostgresError> {
    if !store.tells_md5(PROBE_KEY).await? {
        return Ok(());
    }
    let mut source = Source {
        store: store.clone(),
        manifest: manifest.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    // They are written after this.
    source.manifest.globals = None;
    let read = tokio::task::spawn_blocking(move || read_back(&source)).await;
    read.map_err(|e| PostgresError::Io("reading back", io::Error::other(e)))??;
    tracing::info!(
        store = store.display(),
        dump = manifest.id,
        "the store's checksum differs and its content does not: it reckons parts in another way"
    );
    Ok(())
}

/// One stream to several uploaders. One that has given up is left out; without any the stream is broken.
pub(crate) struct Fan(Vec<Option<mpsc::Sender<Piece>>>);

impl Fan {
    fn send(&mut self, piece: &Bytes) -> io::Result<()> {
        for sender in &mut self.0 {
            let sent = sender
                .as_ref()
                .map(|s| s.blocking_send(Piece::Data(piece.clone())));
            if let Some(Err(_)) = sent {
                *sender = None;
            }
        }
        if self.0.iter().all(Option::is_none) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    fn end(&mut self, last: impl Fn() -> Piece) {
        for sender in self.0.iter().flatten() {
            // Fails only if its uploader has given up.
            let _ = sender.blocking_send(last());
        }
    }
}

/// Hashes and compresses a stream on its way to the stores.
pub(crate) struct Compressor<'a> {
    encoder: zstd::Encoder<'static, Sink<'a>>,
    raw: Sha256,
    raw_size: u64,
}

impl<'a> Compressor<'a> {
    pub(crate) fn new(options: &DumpOptions, fan: &'a mut Fan) -> Result<Self, PostgresError> {
        let failed = |e| PostgresError::Io("starting compression", e);
        let sink = Sink {
            fan,
            buffer: Vec::with_capacity(PIECE_BYTES),
            sha256: Sha256::new(),
            bytes: 0,
        };
        let mut encoder = zstd::Encoder::new(sink, options.level).map_err(failed)?;
        encoder
            .multithread(options.threads)
            .and_then(|()| encoder.include_checksum(true))
            .map_err(failed)?;
        Ok(Self {
            encoder,
            raw: Sha256::new(),
            raw_size: 0,
        })
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), PostgresError> {
        self.raw.update(data);
        self.raw_size += data.len() as u64;
        self.encoder.write_all(data).map_err(sending)
    }

    pub(crate) fn finish(self) -> Result<Part, PostgresError> {
        let mut sink = self.encoder.finish().map_err(sending)?;
        sink.flush().map_err(sending)?;
        Ok(Part {
            size: sink.bytes,
            sha256: hex::encode(sink.sha256.finalize()),
            raw_size: self.raw_size,
            raw_sha256: hex::encode(self.raw.finalize()),
        })
    }
}

fn sending(error: io::Error) -> PostgresError {
    PostgresError::Io("sending the dump", error)
}

/// Compressed bytes, hashed and handed to the uploaders.
struct Sink<'a> {
    fan: &'a mut Fan,
    buffer: Vec<u8>,
    sha256: Sha256,
    bytes: u64,
}

impl Write for Sink<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES));
        self.sha256.update(&piece);
        self.bytes += piece.len() as u64;
        self.fan.send(&Bytes::from(piece))
    }
}
