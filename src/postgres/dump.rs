//! One dump: from the server through a full decode, hashes and zstd into its stores.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::thread::JoinHandle;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::catalog::{About, about};
use super::client::{Running, StopOnDrop};
use super::manifest::Kind;
use super::stream::{Compressor, Fan, commit_all, upload};
use super::{Clients, Connection, Manifest, Part, PostgresError, Stop, count};
use crate::store::Store;

/// Bytes read from `pg_dump` at once.
const READ_BYTES: usize = 256 * 1024;
/// The first major whose `pg_dump` can dump planner statistics.
const STATISTICS_SINCE: u32 = 18;
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
    /// Planner statistics, too, where the client can.
    pub statistics: bool,
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
            statistics: false,
            extra: Vec::new(),
            label: None,
        }
    }
}

/// The id of a dump that begins now, and the time that it says exactly.
pub(crate) fn id_at(now: Timestamp) -> (Timestamp, String) {
    let now = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
    (now, now.strftime("%Y%m%dT%H%M%S.%3fZ").to_string())
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
    let (now, id) = id_at(now);
    let key = Kind::Postgres.dump_key(&id);
    let stop = StopOnDrop(Stop::default());
    let work = {
        let (connection, options) = (connection.clone(), options.clone());
        let clients = clients.stopped_by(&stop.0);
        move |fan: &mut Fan| stream(&connection, &clients, &options, fan)
    };
    let (done, uploaded) = upload(stores, &key, work).await?;
    let manifest = manifest(id, done, connection, clients, options, previous, now);
    let stores = commit_all(stores, uploaded, &manifest.0, manifest.1.as_ref()).await?;
    Ok(Dumped {
        manifest: manifest.0,
        stores,
    })
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
        kind: Kind::Postgres,
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

/// Of `pg_dump`. Pure.
fn arguments(options: &DumpOptions, major: u32) -> Vec<String> {
    let wait = format!("--lock-wait-timeout={}", options.lock_wait_ms);
    let own = ["-Fc", "-Z0", "-w", &wait].map(str::to_owned);
    let statistics = options.statistics && major >= STATISTICS_SINCE;
    let statistics = statistics.then(|| "--statistics".to_owned());
    let extra = options.extra.iter().cloned();
    own.into_iter().chain(statistics).chain(extra).collect()
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
    if options.statistics && clients.major < STATISTICS_SINCE {
        tracing::warn!(
            client = clients.version,
            "`statistics` needs PostgreSQL 18: dumped without them"
        );
    }
    let arguments = arguments(options, clients.major);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
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
        sha256: hex::encode(Sha256::digest(&bytes)),
        raw_size: raw.len() as u64,
        raw_sha256: hex::encode(Sha256::digest(&raw)),
    };
    Ok((part, bytes.into()))
}

fn pump(
    source: &mut Running,
    proof: &mut Running,
    options: &DumpOptions,
    fan: &mut Fan,
) -> Result<Part, PostgresError> {
    let missing = || PostgresError::Io("starting the dump", io::ErrorKind::BrokenPipe.into());
    let input = source.child.stdout.as_mut().ok_or_else(missing)?;
    let reader = proof.child.stdin.as_mut().ok_or_else(missing)?;
    let mut out = Compressor::new(options, fan)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let n = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(PostgresError::Io("reading from pg_dump", e)),
        };
        reader
            .write_all(&buffer[..n])
            .map_err(|e| PostgresError::Io(DECODING, e))?;
        out.write(&buffer[..n])?;
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `pg_dump --statistics` is there since PostgreSQL 18 (its release notes); older ones would refuse it.
    #[test]
    fn statistics_are_asked_of_clients_that_have_them() {
        let mut options = DumpOptions {
            extra: vec!["--no-comments".into()],
            ..DumpOptions::default()
        };
        let plain = [
            "-Fc",
            "-Z0",
            "-w",
            "--lock-wait-timeout=10000",
            "--no-comments",
        ];
        assert_eq!(arguments(&options, 18), plain);
        options.statistics = true;
        assert_eq!(arguments(&options, 17), plain);
        let all = arguments(&options, 18);
        assert_eq!(all[4..], ["--statistics", "--no-comments"]);
    }
}
