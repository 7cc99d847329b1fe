//! Folders that their owner may not write to (mode 0555), as a snapshot may hold them: opened while something in them is renamed or removed.
//!
//! Root is not asked for modes. A run that is killed in between leaves such a folder open to its owner, and nothing else is changed.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What the owner needs.
const ALL_OF_OWNER: u32 = 0o700;

/// A folder that its owner can list and change until this is dropped.
pub(super) struct Opened(Option<(PathBuf, Permissions)>);

impl Opened {
    /// Opens a folder of this user; others, and what is no folder, stay as they are, and what is tried next says why it cannot be done.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let was = path.symlink_metadata()?;
        let mode = was.mode() & 0o7777;
        let euid = rustix::process::geteuid();
        let open = mode & ALL_OF_OWNER == ALL_OF_OWNER;
        if open || !was.is_dir() || euid.is_root() || euid.as_raw() != was.uid() {
            return Ok(Self(None));
        }
        std::fs::set_permissions(path, Permissions::from_mode(mode | ALL_OF_OWNER))?;
        Ok(Self(Some((path.to_owned(), was.permissions()))))
    }

    /// The folder has its final mode, or is gone.
    pub(super) fn settled(mut self) {
        self.0 = None;
    }

    fn moved(mut self, to: &Path) -> io::Result<()> {
        match self.0.take() {
            Some((_, mode)) => std::fs::set_permissions(to, mode),
            None => Ok(()),
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some((path, mode)) = self.0.take()
            && let Err(error) = std::fs::set_permissions(&path, mode)
        {
            tracing::warn!(folder = %path.display(), %error, "cannot put the permissions back");
        }
    }
}

/// Renames. A folder that changes its parent must be writable itself, because its `..` changes.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let opened = Opened::new(from)?;
            std::fs::rename(from, to)?;
            opened.moved(to)
        }
        other => other,
    }
}

/// Removes a folder with everything in it.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_all(folder)?;
            std::fs::remove_dir_all(folder)
        }
        other => other,
    }
}

fn open_all(folder: &Path) -> io::Result<()> {
    Opened::new(folder)?.settled();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_all(&entry.path())?;
        }
    }
    Ok(())
}
