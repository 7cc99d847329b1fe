//! One dump: from the server through a full decode, hashes and zstd into the store.

use std::io::{self, Read, Write};

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::client::Running;
use super::manifest::dump_key;
use super::{Clients, Connection, Manifest, Part, PostgresError};
use crate::store::{Piece, Store};

/// Bytes read from `pg_dump` at once.
const READ_BYTES: usize = 256 * 1024;
/// Compressed bytes are sent in pieces of this size.
const PIECE_BYTES: usize = 1024 * 1024;
/// Pieces on their way to the uploader: the bound on what a slow store holds in memory here.
const PIECES_AHEAD: usize = 4;

/// How a dump is made.
#[derive(Clone, Debug)]
pub struct DumpOptions {
    /// Of zstd.
    pub level: i32,
    /// Of zstd, beside the thread that reads.
    pub threads: u32,
    /// A dump that waits longer for a table's lock gives up, so that it does not queue the app behind a migration.
    pub lock_wait_ms: u32,
    /// Passed to `pg_dump`.
    pub extra: Vec<String>,
    /// Pins the dump.
    pub label: Option<String>,
}

impl Default for DumpOptions {
    fn default() -> Self {
        Self {
            level: 3,
            threads: 1,
            lock_wait_ms: 10_000,
            extra: Vec::new(),
            label: None,
        }
    }
}

#[derive(Deserialize)]
struct About {
    server_version: String,
    database_bytes: u64,
    extensions: std::collections::BTreeMap<String, String>,
    rows: std::collections::BTreeMap<String, i64>,
}

const ABOUT: &str = "SELECT json_build_object(
 'server_version', current_setting('server_version'),
 'database_bytes', pg_database_size(current_database()),
 'extensions', (SELECT coalesce(json_object_agg(extname, extversion), '{}') FROM pg_extension),
 'rows', (SELECT coalesce(json_object_agg(n.nspname || '.' || c.relname, c.reltuples::bigint), '{}')
   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'))::text;
";

/// Dumps one database into its store. Returns when the manifest is acknowledged.
///
/// # Errors
/// Nothing is listed then: bytes that may have arrived have no manifest.
pub async fn dump(
    store: &Store,
    connection: &Connection,
    clients: &Clients,
    options: &DumpOptions,
    now: Timestamp,
) -> Result<Manifest, PostgresError> {
    let id = now.strftime("%Y%m%dT%H%M%S.%3fZ").to_string();
    let key = dump_key(&id);
    let (pieces, received) = mpsc::channel(PIECES_AHEAD);
    let worker = {
        let (connection, clients, options) = (connection.clone(), clients.clone(), options.clone());
        tokio::task::spawn_blocking(move || {
            let result = stream(&connection, &clients, &options, &pieces);
            let last = match &result {
                Ok(_) => Piece::End,
                Err(e) => Piece::Failed(io::Error::other(e.to_string())),
            };
            // An upload that failed first has closed the channel, and says why itself.
            let _ = pieces.blocking_send(last);
            result
        })
    };
    let uploaded = store.put_stream_new(&key, received, None).await;
    let streamed = worker
        .await
        .map_err(|e| PostgresError::Io("dumping", io::Error::other(e)))?;
    let (about, part) = match (streamed, uploaded) {
        (Ok(done), Ok(_)) => done,
        // The store's refusal is the cause of a broken pipe here.
        (Err(PostgresError::Io(..)), Err(store)) | (Ok(_), Err(store)) => return Err(store.into()),
        (Err(error), _) => return Err(error),
    };
    let stored = store.head(&key).await?;
    if stored.size != part.size {
        let why = format!("the store holds {} of {} bytes", stored.size, part.size);
        return Err(PostgresError::Damaged { id, why });
    }
    let manifest = Manifest {
        id,
        database: connection.database().to_owned(),
        began: now,
        ended: Timestamp::now().max(now),
        dump: part,
        server_version: about.server_version,
        client_version: clients.version.clone(),
        database_bytes: about.database_bytes,
        extensions: about.extensions,
        rows: about.rows,
        label: options.label.clone(),
    };
    manifest.write(store).await?;
    Ok(manifest)
}

fn stream(
    connection: &Connection,
    clients: &Clients,
    options: &DumpOptions,
    pieces: &mpsc::Sender<Piece>,
) -> Result<(About, Part), PostgresError> {
    let about = clients.sql(connection, ABOUT, &[])?;
    let about = serde_json::from_str(&about)
        .map_err(|e| PostgresError::Io("reading the catalogue", e.into()))?;
    let wait = format!("--lock-wait-timeout={}", options.lock_wait_ms);
    let mut arguments = vec!["-Fc", "-Z0", "-w", &wait];
    arguments.extend(options.extra.iter().map(String::as_str));
    let mut source = clients.start("pg_dump", &arguments, Some(connection))?;
    let mut proof = clients.start("pg_restore", &["-f", "/dev/null"], None)?;
    let part = pump(&mut source, &mut proof, options, pieces);
    if part.is_err() {
        // What broke the pipe says why, if it ended by itself: the dump first, then its reader.
        drop(proof.child.stdin.take());
        drop(source.child.stdout.take());
        if let Ok(Some(status)) = source.child.try_wait()
            && !status.success()
        {
            source.finish()?;
        }
        if let Ok(Some(_)) = proof.child.try_wait() {
            proof.finish()?;
        }
        return part.map(|part| (about, part));
    }
    source.finish()?;
    // Its input has ended: it has now read everything, or says what is wrong with it.
    drop(proof.child.stdin.take());
    proof.finish()?;
    part.map(|part| (about, part))
}

fn pump(
    source: &mut Running,
    proof: &mut Running,
    options: &DumpOptions,
    pieces: &mpsc::Sender<Piece>,
) -> Result<Part, PostgresError> {
    let failed = |what| move |e| PostgresError::Io(what, e);
    let missing = || PostgresError::Io("starting the dump", io::ErrorKind::BrokenPipe.into());
    let mut input = source.child.stdout.take().ok_or_else(missing)?;
    let reader = proof.child.stdin.as_mut().ok_or_else(missing)?;
    let sink = Sink {
        pieces,
        buffer: Vec::with_capacity(PIECE_BYTES),
        sha256: Sha256::new(),
        bytes: 0,
    };
    let mut encoder =
        zstd::Encoder::new(sink, options.level).map_err(failed("starting compression"))?;
    encoder
        .multithread(options.threads)
        .and_then(|()| encoder.include_checksum(true))
        .map_err(failed("starting compression"))?;
    let (mut raw, mut raw_size) = (Sha256::new(), 0_u64);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let n = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(PostgresError::Io("reading from pg_dump", e)),
        };
        raw.update(&buffer[..n]);
        raw_size += n as u64;
        reader
            .write_all(&buffer[..n])
            .map_err(failed("decoding the dump"))?;
        encoder
            .write_all(&buffer[..n])
            .map_err(failed("sending the dump"))?;
    }
    let mut sink = encoder.finish().map_err(failed("sending the dump"))?;
    sink.flush().map_err(failed("sending the dump"))?;
    Ok(Part {
        size: sink.bytes,
        sha256: hex(&sink.sha256.finalize()),
        raw_size,
        raw_sha256: hex(&raw.finalize()),
    })
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Compressed bytes, hashed and handed to the uploader.
struct Sink<'a> {
    pieces: &'a mpsc::Sender<Piece>,
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
        self.pieces
            .blocking_send(Piece::Data(Bytes::from(piece)))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
