//! Swapping back what the last restore in place kept.

use std::io;
use std::path::{Path, PathBuf};

use super::LeftOut;
use super::error::FilesError;
use super::opened::{Opened, rename};
use super::place::{
    ABSENT, Locked, OLD, OLD_FILE, RESTORED, UNDONE, UNDONE_FILE, base_of, exchange, is_empty,
    mark_absent, mark_undone, mend, named, remove_unneeded, replace, undecided, unfinished,
};
use super::source::Filter;
use crate::config::FilesConfig;

/// A path that is as it was.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Undone {
    /// Which.
    pub path: PathBuf,
    /// Where the content is that was there, if there was any.
    pub kept: Option<PathBuf>,
}

/// A path that an undo would change.
#[derive(Clone, Debug)]
pub struct Back {
    /// Which.
    pub path: PathBuf,
    /// What would come back; `None` if nothing was there.
    pub kept: Option<PathBuf>,
}

/// Swaps the newest kept content back, of each path or of one; what is there is kept in turn. A restore that was killed in the middle is
/// taken back or finished first. Needs no store.
///
/// # Errors
/// [`FilesError::NothingKept`], [`FilesError::Running`], [`FilesError::Io`].
pub fn undo(
    config: &FilesConfig,
    left_out: &LeftOut,
    path: Option<&Path>,
) -> Result<Vec<Undone>, FilesError> {
    let wanted = wanted(config, path);
    let mut done = Vec::new();
    for path in &wanted {
        let one = one(config, left_out, path).map_err(|e| e.into_error(path))?;
        done.extend(one);
    }
    match (done.is_empty(), wanted.into_iter().next()) {
        (true, Some(path)) => Err(FilesError::NothingKept(path)),
        _ => Ok(done),
    }
}

/// What [`undo`] would swap back.
///
/// # Errors
/// [`FilesError::NothingKept`], [`FilesError::Io`].
pub fn kept(config: &FilesConfig, path: Option<&Path>) -> Result<Vec<Back>, FilesError> {
    let wanted = wanted(config, path);
    let mut all = Vec::new();
    for path in &wanted {
        let (base, only) = base_of(path, path.is_dir());
        if base.is_dir() {
            let found = newest(&base, only.as_deref(), path);
            let Some(found) = found.map_err(|e| e.into_error(path))? else {
                continue;
            };
            let is_absent = match &only {
                Some(_) => is_mark(&found),
                None => is_empty(&found).map_err(|e| FilesError::io(&found, e))?,
            };
            all.push(Back {
                path: path.clone(),
                kept: (!is_absent).then_some(found),
            });
        }
    }
    match (all.is_empty(), wanted.into_iter().next()) {
        (true, Some(path)) => Err(FilesError::NothingKept(path)),
        _ => Ok(all),
    }
}

fn wanted(config: &FilesConfig, path: Option<&Path>) -> Vec<PathBuf> {
    match (path, config.paths.as_slice()) {
        (None, all) => all.to_vec(),
        // An absolute path replaces what it is joined to.
        (Some(path), [only]) => vec![only.join(path)],
        (Some(path), _) => vec![path.to_owned()],
    }
}

enum Trouble {
    Io(io::Error),
    Other(FilesError),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<FilesError> for Trouble {
    fn from(error: FilesError) -> Self {
        Self::Other(error)
    }
}

impl Trouble {
    fn into_error(self, path: &Path) -> FilesError {
        match self {
            Self::Io(source) => FilesError::io(path, source),
            Self::Other(error) => error,
        }
    }
}

/// What the last restore of a folder, or of one file in it, replaced. What an earlier one did stays where it is: an undo that is asked for twice must
/// not go back to that.
fn newest(base: &Path, file: Option<&Path>, path: &Path) -> Result<Option<PathBuf>, Trouble> {
    let last = |word| -> io::Result<Option<(PathBuf, String)>> {
        let folders = named(base, word)?.into_iter().rev();
        let found = folders.map(|folder| match file {
            Some(name) => (folder.join(name), stamp_of(&folder, word).1),
            None => (folder.clone(), stamp_of(&folder, word).1),
        });
        Ok(found
            .into_iter()
            .find(|(p, _)| p.symlink_metadata().is_ok()))
    };
    let (old, undone) = match file {
        Some(_) => (OLD_FILE, UNDONE_FILE),
        None => (OLD, UNDONE),
    };
    match (last(old)?, last(undone)?) {
        (Some((kept, stamp)), Some((_, undone))) if undone > stamp => {
            Err(Trouble::Other(FilesError::UndoneAlready {
                path: path.to_owned(),
                older: kept,
            }))
        }
        (kept, _) => Ok(kept.map(|(kept, _)| kept)),
    }
}

fn one(config: &FilesConfig, left_out: &LeftOut, path: &Path) -> Result<Option<Undone>, Trouble> {
    let (base, only) = base_of(path, path.is_dir());
    if !base.is_dir() {
        return Ok(None);
    }
    let folder = Locked::take(&base)?;
    let of = |kept| Undone {
        path: path.into(),
        kept,
    };
    if let Some(name) = only {
        let Some(kept) = newest(&base, Some(&name), path)? else {
            return Ok(None);
        };
        let _open = Opened::new(&base)?;
        let (from, stamp) = stamp_of(kept.parent().unwrap_or(&base), OLD_FILE);
        let undone = base.join(format!("{UNDONE_FILE}{stamp}")).join(&name);
        let replaced = match is_mark(&kept) {
            true => take_away(path, &undone)?,
            false => replace(&kept, path, &undone)?,
        };
        // The mark; or what a rename to another name of the same file leaves.
        if kept.symlink_metadata().is_ok() {
            std::fs::remove_file(&kept)?;
        }
        std::fs::remove_dir(from)?;
        return Ok(Some(of(replaced)));
    }
    let filter = Filter::at(&base, config, left_out);
    if let Some(kept) = unfinished(&base)? {
        // Back from here, without finishing: what stopped it may stop it again.
        let (kept, stamp) = stamp_of(&kept, OLD);
        let replaced = exchange(&folder, &filter, &stamp, &kept, UNDONE)?;
        remove_unneeded(&base.join(format!("{RESTORED}{stamp}")));
        return Ok(Some(of(replaced)));
    }
    let undecided = undecided(&base)?;
    if mend(&folder, &filter)? {
        if let Some(stamp) = undecided {
            mark_undone(&base, &stamp)?;
        }
        return Ok(Some(of(None)));
    }
    let Some(kept) = newest(&base, None, path)? else {
        return Ok(None);
    };
    let (kept, stamp) = stamp_of(&kept, OLD);
    Ok(Some(of(exchange(&folder, &filter, &stamp, &kept, UNDONE)?)))
}

/// Nothing was there when the restore came: what is there now steps aside.
fn take_away(place: &Path, undone: &Path) -> io::Result<Option<PathBuf>> {
    // Otherwise a run that was killed has done it, and what is there now came later.
    if undone.symlink_metadata().is_err() {
        if place.symlink_metadata().is_err() {
            mark_absent(undone)?;
            return Ok(None);
        }
        if let Some(folder) = undone.parent() {
            std::fs::create_dir_all(folder)?;
        }
        rename(place, undone)?;
    }
    Ok(Some(undone.into()))
}

/// Instead of a single file that was not there.
fn is_mark(kept: &Path) -> bool {
    let folder = kept.parent().and_then(Path::file_name).unwrap_or_default();
    folder.to_string_lossy().ends_with(ABSENT)
}

fn stamp_of(folder: &Path, word: &str) -> (PathBuf, String) {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let stamp = name.trim_start_matches(word).trim_end_matches(ABSENT);
    (folder.into(), stamp.to_owned())
}
