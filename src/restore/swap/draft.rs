//! The temporary file of a restore, beside the place that it is for.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::{NamedTempFile, TempPath};

use super::{SwapError, at, folder};

/// A temporary file beside `path`, with room for `need` bytes on its volume.
pub fn temporary(path: &Path, need: u64) -> Result<NamedTempFile, SwapError> {
    let folder = folder(path);
    // First: what a killed restore left takes room.
    let draft = draft(path)?;
    let stat = rustix::fs::statvfs(folder).map_err(|e| SwapError::Io {
        path: folder.to_owned(),
        source: e.into(),
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if need > free {
        return Err(SwapError::NoSpace {
            path: path.to_owned(),
            need,
            free,
        });
    }
    Ok(draft)
}

/// Bytes on disk that a killed restore to this place left, and the next one takes over.
pub fn left_over(path: &Path) -> u64 {
    const BLOCK_BYTES: u64 = 512;
    let left = fs::symlink_metadata(draft_of(path));
    left.map_or(0, |m| m.blocks().saturating_mul(BLOCK_BYTES))
}

fn draft_of(path: &Path) -> PathBuf {
    beside(path, "lifeboat-restore")
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    folder(path).join(format!(".{name}.{what}"))
}

/// While it lives, no other restore in place or undo of the same database begins.
#[derive(Debug)]
pub struct Held {
    _file: NamedTempFile,
}

/// Holds the place of a database. `None` in a folder that cannot be written to: what comes next says so.
///
/// # Errors
/// [`SwapError::Running`], [`SwapError::Io`].
pub fn hold(path: &Path) -> Result<Option<Held>, SwapError> {
    match locked(path, beside(path, "lifeboat-restore-lock")) {
        Ok(file) => Ok(Some(Held { _file: file })),
        Err(SwapError::Folder { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The temporary file of a place, empty and locked.
fn draft(path: &Path) -> Result<NamedTempFile, SwapError> {
    locked(path, draft_of(path))
}

/// A file for a place, empty and locked.
fn locked(path: &Path, draft: PathBuf) -> Result<NamedTempFile, SwapError> {
    let folder = folder(path);
    loop {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&draft)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::ReadOnlyFilesystem => SwapError::Folder {
                    path: folder.to_owned(),
                    source,
                },
                _ => at(&draft)(source),
            })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SwapError::Running(path.to_owned())),
            Err(e) => return Err(at(&draft)(e.into())),
        }
        // Whoever held the lock may have renamed or removed what was opened.
        let own = file.metadata().map_err(at(&draft))?;
        let there = match fs::symlink_metadata(&draft) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(at(&draft)(e)),
        };
        if (own.dev(), own.ino()) != (there.dev(), there.ino()) {
            continue;
        }
        file.set_len(0).map_err(at(&draft))?;
        let path = TempPath::try_from_path(&draft).map_err(at(&draft))?;
        return Ok(NamedTempFile::from_parts(file, path));
    }
}
