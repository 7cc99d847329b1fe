//! From a dump back to a database or a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{AfterSql, Clients, Connection, Manifest, Part, PostgresError, QueueJobs, Stop};
use crate::store::{Store, StoreError, reader};

/// Bytes decompressed at once. As many are kept back until the whole dump was found to be right: `pg_restore` cannot end without them.
const READ_BYTES: usize = 256 * 1024;

/// A dump in a store.
#[derive(Clone)]
pub struct Source {
    /// Where it lies.
    pub store: Store,
    /// What it is.
    pub manifest: Manifest,
    /// For requests of threads that block.
    pub runtime: tokio::runtime::Handle,
}

/// How `pg_restore` works.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Connections that restore at the same time; above 1 the dump is stored in a temporary file first.
    pub jobs: u32,
    /// Everything belongs to who restores.
    pub no_owner: bool,
    /// No GRANTs.
    pub no_privileges: bool,
    /// What happens to jobs of Solid Queue, where the database takes the live one's name.
    pub queue: QueueJobs,
    /// Runs on the restored database before it appears.
    pub after: Option<AfterSql>,
    /// A live database that has something in it is replaced; otherwise it is left alone, whoever filled it in the meantime.
    pub replace: bool,
    /// Ends the work.
    pub stop: Stop,
}

impl RestoreOptions {
    fn arguments(&self) -> Vec<&'static str> {
        // Without -d the script would go to stdout: an empty connection string takes everything from the environment.
        let mut arguments = vec!["--exit-on-error", "-w", "-d", ""];
        if self.no_owner {
            arguments.push("--no-owner");
        }
        if self.no_privileges {
            arguments.push("--no-privileges");
        }
        arguments
    }
}

/// Writes the dump as `pg_restore` reads it (`-Fc`) to a new file. Blocks.
///
/// # Errors
/// No file is left then. [`PostgresError::Damaged`] if the bytes are not the manifest's.
pub fn to_file(source: &Source, path: &Path) -> Result<(), PostgresError> {
    let failed = |e| PostgresError::Io("writing the file", e);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let mut file =
        tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(failed)?;
    copy(source, &mut file)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(path).map_err(|e| failed(e.error))?;
    File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

/// Reads a dump in full and compares it with its manifest. Blocks.
///
/// # Errors
/// [`PostgresError::Damaged`]; the store's.
pub fn read_back(source: &Source) -> Result<(), PostgresError> {
    copy(source, &mut io::sink())?;
    if source.manifest.globals.is_some() {
        globals(source)?;
    }
    Ok(())
}

/// Roles and tablespaces of a dump, as SQL; `None` if it has none. Blocks.
///
/// # Errors
/// [`PostgresError::Damaged`]; the store's.
pub fn globals(source: &Source) -> Result<Option<String>, PostgresError> {
    let Some(part) = &source.manifest.globals else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    copy_part(source, &source.manifest.globals_key(), part, &mut bytes)?;
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|e| damaged(source, e.to_string()))
}

/// Fills an empty database. With one job the dump streams; nothing after its last byte is done unless all of it is right. Blocks.
///
/// # Errors
/// The database is filled in part then; in one transaction it is as it was.
pub(super) fn fill(
    source: &Source,
    target: &Connection,
    clients: &Clients,
    options: &RestoreOptions,
    more: &[&str],
) -> Result<(), PostgresError> {
    let clients = clients.stopped_by(&options.stop);
    let mut arguments = options.arguments();
    arguments.extend(more);
    if options.jobs > 1 {
        let failed = |e| PostgresError::Io("writing the dump to a temporary file", e);
        let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
        copy(source, &mut file)?;
        let (jobs, path) = (options.jobs.to_string(), file.path().to_string_lossy());
        arguments.extend(["-j", &jobs, &path]);
        return clients
            .start("pg_restore", &arguments, Some(target))?
            .finish();
    }
    let mut running = clients.start("pg_restore", &arguments, Some(target))?;
    let copied = match running.child.stdin.take() {
        Some(stdin) => copy(source, &mut Tolerant(Some(stdin))),
        None => Ok(()),
    };
    match copied {
        // It ended early and says why.
        Err(PostgresError::Io("writing the dump", e)) => {
            running.finish()?;
            Err(PostgresError::Io("writing the dump", e))
        }
        Err(error) => Err(error),
        Ok(()) => running.finish(),
    }
}

/// A program that has read what it needs closes its input: the rest is still compared. Its exit status says whether it was content.
struct Tolerant(Option<std::process::ChildStdin>);

impl Write for Tolerant {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let Some(stdin) = &mut self.0 else {
            return Ok(data.len());
        };
        match stdin.write_all(data) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.0 = None,
            other => other?,
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A store that is away damages nothing.
fn unread(source: &Source, error: io::Error) -> PostgresError {
    match error.downcast::<StoreError>() {
        Ok(store) if !store.is_not_found() => store.into(),
        Ok(gone) => damaged(source, gone.to_string()),
        Err(other) => damaged(source, other.to_string()),
    }
}

fn damaged(source: &Source, why: String) -> PostgresError {
    PostgresError::Damaged {
        id: source.manifest.id.clone(),
        why,
    }
}

/// Decompresses the whole dump into `out` and compares it with the manifest.
fn copy(source: &Source, out: &mut impl Write) -> Result<(), PostgresError> {
    let manifest = &source.manifest;
    copy_part(source, &manifest.dump_key(), &manifest.dump, out)
}

fn copy_part(
    source: &Source,
    key: &str,
    part: &Part,
    out: &mut impl Write,
) -> Result<(), PostgresError> {
    let damaged = |why: String| damaged(source, why);
    let stored = match source.runtime.block_on(source.store.head(key)) {
        Err(e) if e.is_not_found() => return Err(damaged("it is gone".into())),
        stored => stored?,
    };
    if stored.size != part.size {
        let why = format!("the store holds {} of {} bytes", stored.size, part.size);
        return Err(damaged(why));
    }
    let compressed = Hashing {
        inner: reader(&source.store, key, part.size, &source.runtime),
        sha256: Sha256::new(),
    };
    let mut decoder = zstd::Decoder::new(compressed)
        .map_err(|e| PostgresError::Io("starting decompression", e))?;
    let mut raw = Sha256::new();
    let (mut buffer, mut kept, mut bytes) = (vec![0; READ_BYTES], Vec::new(), 0_u64);
    let writing = |e| PostgresError::Io("writing the dump", e);
    loop {
        let n = decoder.read(&mut buffer).map_err(|e| unread(source, e))?;
        if n == 0 {
            break;
        }
        bytes += n as u64;
        if bytes > part.raw_size {
            return Err(damaged(format!(
                "it is longer than {} bytes",
                part.raw_size
            )));
        }
        raw.update(&buffer[..n]);
        out.write_all(&kept).map_err(writing)?;
        kept.clear();
        kept.extend_from_slice(&buffer[..n]);
    }
    if bytes != part.raw_size || hex::encode(raw.finalize()) != part.raw_sha256 {
        return Err(damaged("its content is not what was dumped".into()));
    }
    let mut rest = decoder.finish();
    io::copy(&mut rest, &mut io::sink()).map_err(|e| unread(source, e))?;
    if hex::encode(rest.into_inner().sha256.finalize()) != part.sha256 {
        return Err(damaged("its bytes are not what was stored".into()));
    }
    out.write_all(&kept).map_err(writing)
}

struct Hashing<R> {
    inner: R,
    sha256: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.sha256.update(&buf[..n]);
        Ok(n)
    }
}
