//! From a dump back to a database or a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::dump::hex;
use super::{Clients, Connection, Manifest, PostgresError};
use crate::store::{Store, reader};

const READ_BYTES: usize = 256 * 1024;

/// Writes the dump as `pg_restore` reads it (`-Fc`) to a new file. Blocks.
///
/// # Errors
/// No file is left then. [`PostgresError::Damaged`] if the bytes are not the manifest's.
pub fn to_file(
    store: &Store,
    manifest: &Manifest,
    path: &Path,
    runtime: &tokio::runtime::Handle,
) -> Result<(), PostgresError> {
    let failed = |e| PostgresError::Io("writing the file", e);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let mut file =
        tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(failed)?;
    copy(store, manifest, &mut file, runtime)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(path).map_err(|e| failed(e.error))?;
    File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

/// Restores into a database that must not exist yet, and analyses it. Any error of `pg_restore` is fatal. Blocks.
///
/// # Errors
/// The new database is dropped then; no other was touched.
pub fn into_new(
    store: &Store,
    manifest: &Manifest,
    server: &Connection,
    clients: &Clients,
    name: &str,
    runtime: &tokio::runtime::Handle,
) -> Result<(), PostgresError> {
    clients.sql(
        server,
        "CREATE DATABASE :\"name\" TEMPLATE template0;",
        &[("name", name)],
    )?;
    let result = fill(
        store,
        manifest,
        &server.with_database(name),
        clients,
        runtime,
    );
    if let Err(error) = result {
        if let Err(left) = clients.sql(
            server,
            "DROP DATABASE :\"name\" WITH (FORCE);",
            &[("name", name)],
        ) {
            tracing::warn!(database = name, error = %left, "the unfinished database could not be dropped");
        }
        return Err(error);
    }
    Ok(())
}

fn fill(
    store: &Store,
    manifest: &Manifest,
    target: &Connection,
    clients: &Clients,
    runtime: &tokio::runtime::Handle,
) -> Result<(), PostgresError> {
    // Without -d the script would go to stdout: the name comes from the environment, and an empty connection string takes it from there.
    let arguments = ["--exit-on-error", "-w", "-d", ""];
    let mut running = clients.start("pg_restore", &arguments, Some(target))?;
    let copied = match running.child.stdin.take() {
        Some(mut stdin) => copy(store, manifest, &mut stdin, runtime),
        None => Ok(()),
    };
    match copied {
        // It ended early and says why.
        Err(PostgresError::Io("writing the dump", e)) => {
            running.finish()?;
            return Err(PostgresError::Io("writing the dump", e));
        }
        result => result?,
    }
    running.finish()?;
    clients.sql(target, "ANALYZE;", &[])?;
    Ok(())
}

/// Decompresses the whole dump into `out` and compares it with the manifest.
fn copy(
    store: &Store,
    manifest: &Manifest,
    out: &mut impl Write,
    runtime: &tokio::runtime::Handle,
) -> Result<(), PostgresError> {
    let damaged = |why: String| PostgresError::Damaged {
        id: manifest.id.clone(),
        why,
    };
    let (size, raw_size) = (manifest.dump.size, manifest.dump.raw_size);
    let compressed = Hashing {
        inner: reader(store, &manifest.dump_key(), size, runtime),
        sha256: Sha256::new(),
    };
    let mut decoder = zstd::Decoder::new(compressed)
        .map_err(|e| PostgresError::Io("starting decompression", e))?;
    let mut raw = Sha256::new();
    let (mut buffer, mut bytes) = (vec![0; READ_BYTES], 0_u64);
    loop {
        let n = decoder
            .read(&mut buffer)
            .map_err(|e| damaged(e.to_string()))?;
        if n == 0 {
            break;
        }
        bytes += n as u64;
        if bytes > raw_size {
            return Err(damaged(format!("it is longer than {raw_size} bytes")));
        }
        raw.update(&buffer[..n]);
        out.write_all(&buffer[..n])
            .map_err(|e| PostgresError::Io("writing the dump", e))?;
    }
    if bytes != raw_size || hex(&raw.finalize()) != manifest.dump.raw_sha256 {
        return Err(damaged("its content is not what was dumped".into()));
    }
    let mut rest = decoder.finish();
    io::copy(&mut rest, &mut io::sink()).map_err(|e| damaged(e.to_string()))?;
    if hex(&rest.into_inner().sha256.finalize()) != manifest.dump.sha256 {
        return Err(damaged("its bytes are not what was stored".into()));
    }
    Ok(())
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
