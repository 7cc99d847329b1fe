//! One dump: from the server through a full decode, hashes and zstd into its stores.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::thread::JoinHandle;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::catalog::{About, about};
use super::client::{Running, StopOnDrop};
use super::manifest::{dump_key, globals_key};
use super::{Clients, Connection, Manifest, Part, PostgresError, Stop, count};
use crate::store::{Piece, PutMode, Store};

/// Bytes read from `pg_dump` at once.
const READ_BYTES: usize = 256 * 1024;
/// Compressed bytes are sent in pieces of this size.
const PIECE_BYTES: usize = 1024 * 1024;
/// Pieces on their way to an uploader: the bound on what a slow store holds in memory here.
const PIECES_AHEAD: usize = 4;
/// What failed if the program that decodes the dump takes no more of it.
const DECODING: &str = "decoding the dump";
/// Roles and tablespaces of a server, before compression. Ten thousand roles are a few MiB.
const GLOBALS_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// How a dump is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpOptions {
    /// Of zstd.
    pub level: i32,
    /// Of zstd, beside the thread that reads.
    pub threads: u32,
    /// A dump that waits longer for a table's lock gives up, so that it does not queue the app behind a migration.
    pub lock_wait_ms: u32,
    /// Passed to `pg_dump`.
    pub extra: Vec<String>,
    /// The label that it was made for; label objects pin it.
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

/// A dump that is in at least one store.
#[derive(Debug)]
pub struct Dumped {
    /// What it is.
    pub manifest: Manifest,
    /// One for each store, in their order: whether it holds the dump.
    pub stores: Vec<Result<(), PostgresError>>,
}

/// Dumps one database into its stores, all at once. Returns when the manifests are acknowledged. `previous` is the dump before it, for
/// comparison. Dropping the future ends the programs at work.
///
/// # Errors
/// Nothing is listed in any store then: bytes that may have arrived have no manifest.
pub async fn dump(
    stores: &[Store],
    connection: &Connection,
    clients: &Clients,
    options: &DumpOptions,
    previous: Option<&Manifest>,
    now: Timestamp,
) -> Result<Dumped, PostgresError> {
    // The id says it exactly.
    let now = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
    let id = now.strftime("%Y%m%dT%H%M%S.%3fZ").to_string();
    let key = dump_key(&id);
    let stop = StopOnDrop(Stop::default());
    let (senders, receivers): (Vec<_>, Vec<_>) =
        stores.iter().map(|_| mpsc::channel(PIECES_AHEAD)).unzip();
    let worker = {
        let (connection, options) = (connection.clone(), options.clone());
        let clients = clients.stopped_by(&stop.0);
        tokio::task::spawn_blocking(move || {
            let mut fan = Fan(senders.into_iter().map(Some).collect());
            let result = stream(&connection, &clients, &options, &mut fan);
            match &result {
                Ok(_) => fan.end(|| Piece::End),
                Err(e) => fan.end(|| Piece::Failed(io::Error::other(e.to_string()))),
            }
            result
        })
    };
    let uploads = stores
        .iter()
        .zip(receivers)
        .map(|(store, received)| store.put_stream_new(&key, received, None));
    let uploaded = futures::future::join_all(uploads).await;
    let streamed = worker
        .await
        .map_err(|e| PostgresError::Io("dumping", io::Error::other(e)))?;
    let mut uploaded: Vec<Result<(), PostgresError>> = uploaded
        .into_iter()
        .map(|r| r.map(|_| ()).map_err(PostgresError::from))
        .collect();
    let done = match streamed {
        Ok(done) => done,
        // The store's refusal is the cause of a broken pipe here.
        Err(PostgresError::Io(..)) if uploaded.iter().all(Result::is_err) => {
            return Err(first_error(uploaded));
        }
        Err(error) => return Err(error),
    };
    let manifest = manifest(id, done, connection, clients, options, previous, now);
    for (store, result) in stores.iter().zip(&mut uploaded) {
        if result.is_ok() {
            *result = commit(store, &manifest.0, manifest.1.as_ref()).await;
        }
    }
    if uploaded.iter().all(Result::is_err) {
        return Err(first_error(uploaded));
    }
    Ok(Dumped {
        manifest: manifest.0,
        stores: uploaded,
    })
}

fn first_error(results: Vec<Result<(), PostgresError>>) -> PostgresError {
    let first = results.into_iter().find_map(Result::err);
    first.unwrap_or_else(|| PostgresError::Io("sending the dump", io::ErrorKind::NotFound.into()))
}

struct Streamed {
    about: About,
    unsound: Vec<String>,
    part: Part,
    counts: BTreeMap<String, u64>,
    globals: Option<(Part, Bytes)>,
}

fn manifest(
    id: String,
    done: Streamed,
    connection: &Connection,
    clients: &Clients,
    options: &DumpOptions,
    previous: Option<&Manifest>,
    now: Timestamp,
) -> (Manifest, Option<Bytes>) {
    let (globals, bytes) = done.globals.unzip();
    let mut manifest = Manifest {
        id,
        database: connection.database().to_owned(),
        began: now,
        ended: Timestamp::now().max(now),
        dump: done.part,
        server_version: done.about.server_version,
        client_version: clients.version.clone(),
        database_bytes: done.about.database_bytes,
        extensions: done.about.extensions,
        rows: done.about.rows,
        counts: done.counts,
        unsound: done.unsound,
        properties: done.about.properties,
        globals,
        anomalies: Vec::new(),
        label: options.label.clone(),
    };
    if let Some(previous) = previous {
        manifest.anomalies = super::anomaly::compare(previous, &manifest);
    }
    (manifest, bytes)
}

/// Looks at what arrived, then writes globals and manifest.
async fn commit(
    store: &Store,
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
    if let Some(bytes) = globals {
        let key = globals_key(&manifest.id);
        store
            .put(&key, bytes.clone(), PutMode::Create, None)
            .await?;
    }
    manifest.write(store).await
}

fn stream(
    connection: &Connection,
    clients: &Clients,
    options: &DumpOptions,
    fan: &mut Fan,
) -> Result<Streamed, PostgresError> {
    let about = about(clients, connection)?;
    let unsound = super::check::unsound(clients, connection)?;
    // Before the dump: whoever owns something in it is known.
    let globals = match globals(clients, connection, options) {
        Ok(globals) => Some(globals),
        Err(error) => {
            tracing::warn!(%error, "roles and tablespaces were not dumped; the database is");
            None
        }
    };
    let wait = format!("--lock-wait-timeout={}", options.lock_wait_ms);
    let mut arguments = vec!["-Fc", "-Z0", "-w", &wait];
    arguments.extend(options.extra.iter().map(String::as_str));
    let mut source = clients.start("pg_dump", &arguments, Some(connection))?;
    // Decodes everything; what it writes is counted.
    let mut proof = clients.start("pg_restore", &["--data-only", "-f", "-"], None)?;
    let counting = proof
        .child
        .stdout
        .take()
        .map(|out| std::thread::spawn(move || count::rows(out)));
    let part = pump(&mut source, &mut proof, options, fan);
    let part = match part {
        Ok(part) => part,
        Err(error) => {
            // What broke the pipe says why, if it ended by itself: the dump first, then its reader. Their pipes stay open until they
            // were asked: a program that a closed pipe ends says nothing about the cause.
            if let Ok(Some(status)) = source.child.try_wait()
                && !status.success()
            {
                source.finish()?;
            }
            if matches!(error, PostgresError::Io(DECODING, _)) {
                // It has closed its input, so it ends.
                drop(proof.child.stdin.take());
                proof.finish()?;
            }
            return Err(error);
        }
    };
    source.finish()?;
    // Its input has ended: it has now read everything, or says what is wrong with it.
    drop(proof.child.stdin.take());
    proof.finish()?;
    Ok(Streamed {
        about,
        unsound,
        part,
        counts: counted(counting)?,
        globals,
    })
}

fn counted(
    thread: Option<JoinHandle<io::Result<BTreeMap<String, u64>>>>,
) -> Result<BTreeMap<String, u64>, PostgresError> {
    let joined = thread.map(JoinHandle::join);
    match joined {
        Some(Ok(counts)) => counts.map_err(|e| PostgresError::Io("counting rows", e)),
        _ => Err(PostgresError::Io(
            "counting rows",
            io::ErrorKind::BrokenPipe.into(),
        )),
    }
}

fn globals(
    clients: &Clients,
    connection: &Connection,
    options: &DumpOptions,
) -> Result<(Part, Bytes), PostgresError> {
    let failed = |e| PostgresError::Io("reading roles", e);
    let escaped = connection
        .database()
        .replace('\\', "\\\\")
        .replace('\'', "\\'");
    let database = format!("dbname='{escaped}'");
    let arguments = [
        "--globals-only",
        "--no-role-passwords",
        "-w",
        "-l",
        &database,
    ];
    let mut running = clients.start("pg_dumpall", &arguments, Some(connection))?;
    let mut raw = Vec::new();
    if let Some(out) = running.child.stdout.take() {
        out.take(GLOBALS_MAX_BYTES + 1)
            .read_to_end(&mut raw)
            .map_err(failed)?;
    }
    running.finish()?;
    if raw.len() as u64 > GLOBALS_MAX_BYTES {
        return Err(failed(io::Error::other("they are larger than 64 MiB")));
    }
    let bytes = zstd::encode_all(raw.as_slice(), options.level).map_err(failed)?;
    let part = Part {
        size: bytes.len() as u64,
        sha256: hex(&Sha256::digest(&bytes)),
        raw_size: raw.len() as u64,
        raw_sha256: hex(&Sha256::digest(&raw)),
    };
    Ok((part, bytes.into()))
}

fn pump(
    source: &mut Running,
    proof: &mut Running,
    options: &DumpOptions,
    fan: &mut Fan,
) -> Result<Part, PostgresError> {
    let failed = |what| move |e| PostgresError::Io(what, e);
    let missing = || PostgresError::Io("starting the dump", io::ErrorKind::BrokenPipe.into());
    let input = source.child.stdout.as_mut().ok_or_else(missing)?;
    let reader = proof.child.stdin.as_mut().ok_or_else(missing)?;
    let sink = Sink {
        fan,
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
        reader.write_all(&buffer[..n]).map_err(failed(DECODING))?;
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

/// One stream to several uploaders. One that has given up is left out; without any the stream is broken.
struct Fan(Vec<Option<mpsc::Sender<Piece>>>);

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
