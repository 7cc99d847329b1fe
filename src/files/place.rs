//! In place: the old content steps aside, the restored one takes its place, by renames inside one file system.
//!
//! - `P/.lifeboat-restored-<time>` holds what was restored, `P/.lifeboat-old-<time>` what was there. The folder P itself stays, because it is
//!   often a mount point. A crash in between leaves every file in one of the three.
//! - What a backup leaves out is not moved: a folder that contains such things is gone through, not renamed.

use std::io;
use std::path::{Path, PathBuf};

use super::Target;
use super::error::FilesError;
use super::source::Filter;

/// Names of ours inside folders; backups leave them out.
pub(super) const OURS: &str = ".lifeboat-";

/// The places of one restore.
pub(super) struct Aside {
    /// The folder where things are exchanged.
    base: PathBuf,
    /// What is restored of it: all, or one name.
    only: Option<PathBuf>,
    /// Where the restored content is first.
    pub(super) restored: PathBuf,
    old: PathBuf,
}

impl Aside {
    /// Makes the places.
    ///
    /// # Errors
    /// [`FilesError::Io`].
    pub(super) fn begin(path: &Path, is_dir: bool) -> Result<Self, FilesError> {
        let name = path.file_name().map(PathBuf::from);
        let (base, only) = match (is_dir, path.parent()) {
            (false, Some(parent)) => (parent.to_owned(), name.clone()),
            _ => (path.to_owned(), None),
        };
        let io = |source| FilesError::Io {
            path: base.clone(),
            source,
        };
        std::fs::create_dir_all(&base).map_err(io)?;
        let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%fZ");
        let folder = base.join(format!("{OURS}restored-{stamp}"));
        std::fs::create_dir(&folder).map_err(io)?;
        let old = base.join(format!("{OURS}old-{stamp}"));
        let restored = match &only {
            Some(name) => folder.join(name),
            None => folder,
        };
        Ok(Self {
            base,
            only,
            restored,
            old,
        })
    }
}

/// Exchanges; returns where the old content is, if there was any.
///
/// # Errors
/// The system's; every file is then in one of the three places.
pub(super) fn swap(aside: &Aside, target: &Target) -> io::Result<Option<PathBuf>> {
    let filter = Filter::of(&aside.base, &target.config.exclude, &target.left_out);
    match &aside.only {
        Some(name) => {
            let place = aside.base.join(name);
            if place.symlink_metadata().is_ok() {
                std::fs::create_dir(&aside.old)?;
                std::fs::rename(&place, aside.old.join(name))?;
            }
            std::fs::rename(&aside.restored, &place)?;
            if let Some(folder) = aside.restored.parent() {
                std::fs::remove_dir(folder)?;
            }
        }
        None => {
            set_aside(&filter, &aside.base, &aside.old)?;
            bring(&aside.restored, &aside.base)?;
        }
    }
    Ok(aside.old.exists().then(|| aside.old.clone()))
}

/// Moves everything that a backup takes out of `from`. `true` if something stays.
fn set_aside(filter: &Filter, from: &Path, old: &Path) -> io::Result<bool> {
    let mut stays = false;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, to) = (entry.path(), old.join(entry.file_name()));
        let is_dir = entry.file_type()?.is_dir();
        if !filter.takes_path(&path, is_dir) {
            stays = true;
        } else if is_dir && holds_left_out(filter, &path)? {
            stays |= set_aside(filter, &path, &to)?;
        } else {
            std::fs::create_dir_all(old)?;
            std::fs::rename(&path, &to)?;
        }
    }
    Ok(stays)
}

fn holds_left_out(filter: &Filter, folder: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let is_dir = entry.file_type()?.is_dir();
        if !filter.takes_path(&entry.path(), is_dir)
            || is_dir && holds_left_out(filter, &entry.path())?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Moves what was restored to its place; folders that stayed are filled.
fn bring(restored: &Path, to: &Path) -> io::Result<()> {
    let times = restored.metadata()?.modified()?;
    for entry in std::fs::read_dir(restored)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() && place.is_dir() {
            bring(&entry.path(), &place)?;
        } else if place.symlink_metadata().is_ok() {
            return Err(io::Error::other(format!(
                "{} came into being during the restore; what was restored is in {}",
                place.display(),
                restored.display()
            )));
        } else {
            std::fs::rename(entry.path(), &place)?;
        }
    }
    let (permissions, owner) = {
        use std::os::unix::fs::MetadataExt;
        let found = restored.metadata()?;
        (found.permissions(), (found.uid(), found.gid()))
    };
    std::fs::remove_dir(restored)?;
    std::os::unix::fs::chown(to, Some(owner.0), Some(owner.1))?;
    std::fs::set_permissions(to, permissions)?;
    std::fs::File::open(to)?.set_modified(times)
}
