//! One dump of a server.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use jiff::Timestamp;

use super::{Connection, Rdb, RdbError};
use crate::postgres::{
    Clients, Compressor, DumpOptions, Dumped, Fan, Kind, Manifest, Part, PostgresError, Properties,
    Stop, StopOnDrop, commit_all, compare, id_at, upload,
};
use crate::store::Store;

const PROGRAM: &str = "redis-cli";
/// Bytes read at once.
const READ_BYTES: usize = 256 * 1024;
/// What the server says about itself is a few KiB.
const INFO_MAX_BYTES: u64 = 1024 * 1024;

/// What the server says about itself.
#[derive(Clone, Debug, Default)]
struct Info {
    version: String,
    memory: u64,
    /// By database.
    keys: BTreeMap<String, u64>,
}

/// Dumps a server into its stores, all at once. Returns when the manifests are acknowledged. `previous` is the dump before it, for comparison.
/// Dropping the future ends the program at work.
///
/// # Errors
/// Nothing is listed in any store then.
pub async fn dump(
    stores: &[Store],
    connection: &Connection,
    bin_dir: Option<&Path>,
    options: &DumpOptions,
    previous: Option<&Manifest>,
    now: Timestamp,
) -> Result<Dumped, PostgresError> {
    let (now, id) = id_at(now);
    let stop = StopOnDrop(Stop::default());
    let work = {
        let (connection, options) = (connection.clone(), options.clone());
        let clients = Clients::any(bin_dir).stopped_by(&stop.0);
        move |fan: &mut Fan| {
            let info = info(&clients, &connection)?;
            let version = client_version(&clients)?;
            let part = stream(&clients, &connection, &options, fan)?;
            Ok((info, version, part))
        }
    };
    let (done, uploaded) = upload(stores, &Kind::Redis.dump_key(&id), work).await?;
    let (info, client_version, part) = done;
    let mut manifest = Manifest {
        id,
        kind: Kind::Redis,
        database: String::new(),
        began: now,
        ended: Timestamp::now().max(now),
        dump: part,
        server_version: info.version,
        client_version,
        database_bytes: info.memory,
        extensions: BTreeMap::new(),
        rows: BTreeMap::new(),
        counts: info.keys,
        unsound: Vec::new(),
        properties: Properties::default(),
        globals: None,
        anomalies: Vec::new(),
        label: options.label.clone(),
    };
    if let Some(previous) = previous {
        manifest.anomalies = compare(previous, &manifest);
    }
    let stores = commit_all(stores, uploaded, &manifest, None).await?;
    Ok(Dumped { manifest, stores })
}

/// Finds out whether a dump can work. Blocks.
///
/// # Errors
/// The server's; [`PostgresError::Cannot`].
pub fn preflight(connection: &Connection, bin_dir: Option<&Path>) -> Result<(), PostgresError> {
    let clients = Clients::any(bin_dir);
    client_version(&clients)?;
    info(&clients, connection).map(|_| ())
}

fn client_version(clients: &Clients) -> Result<String, PostgresError> {
    let mut running = clients.spawn(PROGRAM, |command| {
        command.arg("--version");
    })?;
    let text = read(&mut running.child.stdout)?;
    running.finish()?;
    Ok(text.trim().to_owned())
}

fn read(out: &mut Option<std::process::ChildStdout>) -> Result<String, PostgresError> {
    let mut bytes = Vec::new();
    if let Some(out) = out {
        out.take(INFO_MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|e| PostgresError::Io("reading from redis-cli", e))?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The text of INFO.
pub(super) fn say_info(
    clients: &Clients,
    connection: &Connection,
) -> Result<String, PostgresError> {
    let mut running = clients.spawn(PROGRAM, |command| {
        connection.apply(command);
        command.arg("INFO");
    })?;
    let text = read(&mut running.child.stdout)?;
    running.finish()?;
    Ok(text)
}

/// `redis-cli` ends well although the server refused.
pub(super) fn failed(text: &str) -> PostgresError {
    PostgresError::Failed {
        program: PROGRAM,
        why: text.trim().lines().next().unwrap_or("no answer").to_owned(),
    }
}

fn info(clients: &Clients, connection: &Connection) -> Result<Info, PostgresError> {
    let text = say_info(clients, connection)?;
    let mut found = Info::default();
    let mut loading = false;
    for (key, value) in text.lines().filter_map(|line| line.trim().split_once(':')) {
        match key {
            "redis_version" => value.clone_into(&mut found.version),
            "used_memory" => found.memory = value.parse().unwrap_or(0),
            "loading" => loading = value != "0",
            _ if key
                .strip_prefix("db")
                .is_some_and(|n| n.parse::<u32>().is_ok()) =>
            {
                let keys = value.split(',').find_map(|part| part.strip_prefix("keys="));
                let keys = keys.and_then(|n| n.parse().ok()).unwrap_or(0);
                found.keys.insert(key.to_owned(), keys);
            }
            _ => {}
        }
    }
    if found.version.is_empty() {
        return Err(failed(&text));
    }
    if loading {
        return Err(PostgresError::Cannot {
            what: format!("{} is loading its own data", connection.display()),
            hint: "wait until it is done: `redis-cli INFO persistence`".into(),
        });
    }
    Ok(found)
}

fn stream(
    clients: &Clients,
    connection: &Connection,
    options: &DumpOptions,
    fan: &mut Fan,
) -> Result<Part, PostgresError> {
    let mut running = clients.spawn(PROGRAM, |command| {
        connection.apply(command);
        command.args(["--rdb", "-"]);
    })?;
    let missing = || PostgresError::Io("starting the dump", io::ErrorKind::BrokenPipe.into());
    let mut out = Compressor::new(options, fan)?;
    let mut rdb = Rdb::default();
    let mut buffer = vec![0; READ_BYTES];
    let input = running.child.stdout.as_mut().ok_or_else(missing)?;
    let mut found = Ok(());
    loop {
        let n = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(PostgresError::Io("reading from redis-cli", e)),
        };
        match rdb.push(&buffer[..n]) {
            Ok(certain) => out.write(&certain)?,
            Err(error) => {
                found = Err(error);
                break;
            }
        }
    }
    // What it says is worth more than what is wrong with the stream.
    if found.is_ok() {
        running.finish()?;
    }
    let last = found.and_then(|()| rdb.finish()).map_err(refused)?;
    out.write(&last)?;
    out.finish()
}

fn refused(error: RdbError) -> PostgresError {
    match error {
        RdbError::NoChecksum => PostgresError::Cannot {
            what: error.to_string(),
            hint: "without it nobody can say that a copy is right: set `rdbchecksum yes` in redis.conf and restart the server".into(),
        },
        RdbError::Head | RdbError::Checksum => PostgresError::Failed {
            program: PROGRAM,
            why: error.to_string(),
        },
    }
}
