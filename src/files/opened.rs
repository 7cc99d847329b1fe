//! Folders that their owner may not write to (mode 0555), as a snapshot may hold them: opened while something in them is renamed or removed.
//!
//! Root is not asked for modes. A run that is killed in between leaves such a folder open to its owner, and nothing else is changed.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

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
    opening(from, to, |from, to| std::fs::rename(from, to))
}

/// Renames to a name that is free: nothing that came into being this very moment is replaced.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], and the system's.
pub(super) fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    opening(from, to, |from, to| {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Some file systems cannot promise it.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match to.symlink_metadata() {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(_) => std::fs::rename(from, to),
            },
            other => Ok(other?),
        }
    })
}

fn opening(
    from: &Path,
    to: &Path,
    rename: impl Fn(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    match rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let opened = Opened::new(from)?;
            rename(from, to)?;
            opened.moved(to)
        }
        other => other,
    }
}

/// Moves something into a folder, under its own name or, if that is taken, with a number behind it.
pub(super) fn put_aside(path: &Path, folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default();
    let mut to = folder.join(name);
    for number in 2_u64.. {
        match rename_to_free(path, &to) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let mut numbered = name.to_owned();
                numbered.push(format!("-{number}"));
                to = folder.join(numbered);
            }
            other => return other,
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_takes_the_place_of_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (met, place) = (dir.path().join("met"), dir.path().join("f"));
        for n in 1..4 {
            std::fs::write(&place, n.to_string()).unwrap();
            put_aside(&place, &met).unwrap();
        }
        std::fs::create_dir(&place).unwrap();
        put_aside(&place, &met).unwrap();
        for (name, content) in [("f", "1"), ("f-2", "2"), ("f-3", "3")] {
            assert_eq!(std::fs::read_to_string(met.join(name)).unwrap(), content);
        }
        assert!(met.join("f-4").is_dir());
        std::fs::write(&place, "new").unwrap();
        let taken = rename_to_free(&place, &met.join("f")).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&place).unwrap(), "new");
    }
}
