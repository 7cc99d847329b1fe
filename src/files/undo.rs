//! Swapping back what the last restore in place kept.
//!
//! Of several paths those that the newest restore replaced; the others stay as they are. Every path is locked and looked at before the first is
//! changed.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::LeftOut;
use super::error::FilesError;
use super::filter::Filter;
use super::opened::{Opened, rename};
use super::place::{
    ABSENT, Locked, OLD, OLD_FILE, RESTORED, UNDONE, UNDONE_FILE, base_of, exchange, is_empty,
    mark_absent, mark_undone, mend, named, pending, refuse_links, remove_unneeded, replace,
    time_of, undecided, unfinished,
};
use crate::config::FilesConfig;

/// Names of such files.
const PLACEHOLDERS: [&str; 2] = [".keep", ".gitkeep"];

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
    /// When the restore began that replaced it: date and time in UTC, as the place is named.
    pub time: String,
}

/// Swaps back what the newest restore replaced, of each path or of one; what is there is kept in turn. A restore that was killed in the middle is
/// taken back or finished first. Needs no store.
///
/// # Errors
/// [`FilesError::NothingKept`], [`FilesError::UndoneAlready`], [`FilesError::Running`]: nothing was changed. [`FilesError::Io`]: said again, it goes
/// on with the paths that are left.
pub fn undo(
    config: &FilesConfig,
    left_out: &LeftOut,
    path: Option<&Path>,
) -> Result<Vec<Undone>, FilesError> {
    let wanted = wanted(config, path);
    for path in &wanted {
        refuse_links(config, path, path.is_dir())?;
    }
    let mut folders: Vec<Rc<Locked>> = Vec::new();
    for path in &wanted {
        let (base, _) = base_of(path, path.is_dir());
        if base.is_dir() && !folders.iter().any(|f| f.base == base) {
            folders.push(Rc::new(Locked::take(&base)?));
        }
    }
    let mut done: Vec<Undone> = Vec::new();
    for seen in chosen(&wanted)? {
        let Some(folder) = folders.iter().find(|f| f.base == seen.base) else {
            continue;
        };
        match one(config, left_out, &seen, folder) {
            Ok(one) => done.push(one),
            Err(error) => {
                for one in done {
                    tracing::warn!(path = %one.path.display(), kept = ?one.kept, "is as it was before the restore already; the next --undo goes on with the others");
                }
                return Err(FilesError::io(&seen.path, error));
            }
        }
    }
    Ok(done)
}

/// What [`undo`] would swap back.
///
/// # Errors
/// [`FilesError::NothingKept`], [`FilesError::UndoneAlready`], [`FilesError::Io`].
pub fn kept(config: &FilesConfig, path: Option<&Path>) -> Result<Vec<Back>, FilesError> {
    let mut all = Vec::new();
    for seen in chosen(&wanted(config, path))? {
        let kept = match seen.step {
            Step::Swap(kept) => {
                let is_absent = match &seen.only {
                    Some(_) => is_mark(&kept),
                    None => is_empty(&kept).map_err(|e| FilesError::io(&kept, e))?,
                };
                (!is_absent).then_some(kept)
            }
            // In the middle of an exchange.
            _ => Some(seen.path.clone()),
        };
        let (path, time) = (seen.path, seen.time);
        all.push(Back { path, kept, time });
    }
    Ok(all)
}

/// Whether a backup would find a file at one of the configured paths. Databases, what is excluded and empty folders are no content: where only they
/// are, as when a restore of everything was cut short between the two, the files are still to come. The same holds for what a restore of
/// files left that was killed in the middle: the next one finishes it or takes it back, and restores all.
pub fn has_content(config: &FilesConfig, left_out: &LeftOut, path: &Path) -> bool {
    if !path.is_dir() {
        return path.symlink_metadata().is_ok();
    }
    let filter = Filter::at(path, config, left_out);
    pending(path).is_ok_and(|stamps| stamps.is_empty()) && holds_a_file(&filter, path)
}

/// What cannot be looked at counts: it must not be taken for nothing.
fn holds_a_file(filter: &Filter, folder: &Path) -> bool {
    let Ok(mut entries) = std::fs::read_dir(folder) else {
        return true;
    };
    entries.any(|entry| {
        let Ok(entry) = entry else { return true };
        let path = entry.path();
        match entry.file_type() {
            Err(_) => true,
            Ok(kind) if !filter.takes_path(&path, kind.is_dir()) => false,
            Ok(kind) if kind.is_dir() => holds_a_file(filter, &path),
            Ok(_) => !is_placeholder(&path),
        }
    })
}

/// An empty file that keeps an empty folder in an image.
fn is_placeholder(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    PLACEHOLDERS.iter().any(|p| name == *p)
        && path
            .symlink_metadata()
            .is_ok_and(|m| m.is_file() && m.len() == 0)
}

fn wanted(config: &FilesConfig, path: Option<&Path>) -> Vec<PathBuf> {
    match (path, config.paths.as_slice()) {
        (None, all) => all.to_vec(),
        // An absolute path replaces what it is joined to.
        (Some(path), [only]) => vec![only.join(path)],
        (Some(path), _) => vec![path.to_owned()],
    }
}

/// What an undo of a path has to do.
enum Step {
    /// No restore in place was here.
    Nothing,
    /// An exchange is not finished.
    Mend,
    /// This comes back.
    Swap(PathBuf),
    /// It was done; with what an earlier restore replaced.
    Done(Option<PathBuf>),
}

/// A path as it is before an undo.
struct Seen {
    path: PathBuf,
    /// The folder where it is exchanged, and its name there if it is a single file.
    base: PathBuf,
    only: Option<PathBuf>,
    step: Step,
    /// Of the newest restore, undone or not; empty without one.
    time: String,
}

/// The paths that the newest restore of all of them replaced; the others are named.
fn chosen(wanted: &[PathBuf]) -> Result<Vec<Seen>, FilesError> {
    let seen = wanted.iter().map(|path| {
        let (base, only) = base_of(path, path.is_dir());
        let found = match base.is_dir() {
            true => look(&base, only.as_deref()).map_err(|e| FilesError::io(path, e))?,
            false => (Step::Nothing, String::new()),
        };
        Ok(Seen {
            path: path.clone(),
            base,
            only,
            step: found.0,
            time: found.1,
        })
    });
    let seen = seen.collect::<Result<Vec<_>, FilesError>>()?;
    let newest = seen.iter().map(|s| s.time.clone()).max();
    let newest = newest.unwrap_or_default();
    let is_of_it = |s: &Seen| s.time == newest && matches!(s.step, Step::Mend | Step::Swap(_));
    let (of_it, others): (Vec<Seen>, Vec<Seen>) = seen.into_iter().partition(is_of_it);
    if of_it.is_empty() {
        return Err(refusal(wanted, others, &newest));
    }
    for other in others {
        let path = other.path.display();
        match other.step {
            Step::Nothing => {
                tracing::warn!(%path, "nothing of it was replaced by a restore; it stays as it is")
            }
            Step::Done(_) => {
                tracing::warn!(%path, "its last restore is undone already; it stays as it is")
            }
            Step::Mend => {
                tracing::warn!(%path, "an earlier restore of it was interrupted; it stays as it is (--path takes that one back)")
            }
            Step::Swap(kept) => {
                tracing::warn!(%path, kept = %kept.display(), "an earlier restore replaced it; it stays as it is (--path swaps it back)")
            }
        }
    }
    Ok(of_it)
}

/// Nothing is of the newest restore any more.
fn refusal(wanted: &[PathBuf], seen: Vec<Seen>, newest: &str) -> FilesError {
    let undone = seen.iter().find(|s| s.time == newest && !newest.is_empty());
    let path = undone.map(|s| s.path.clone());
    let older = seen.into_iter().find_map(|s| match s.step {
        Step::Swap(kept) | Step::Done(Some(kept)) => Some(kept),
        _ => None,
    });
    match (path, older) {
        (Some(path), Some(older)) => FilesError::UndoneAlready { path, older },
        (path, _) => {
            let first = path.or_else(|| wanted.first().cloned());
            FilesError::NothingKept(first.unwrap_or_default())
        }
    }
}

/// What the last restore of a folder, or of one file in it, replaced. What an earlier one did stays where it is: an undo that is asked for twice must
/// not go back to that.
fn look(base: &Path, file: Option<&Path>) -> io::Result<(Step, String)> {
    let (old, undone) = match file {
        Some(_) => (OLD_FILE, UNDONE_FILE),
        None => (OLD, UNDONE),
    };
    let pending = match file {
        Some(_) => Vec::new(),
        None => pending(base)?,
    };
    if let Some(time) = pending.iter().map(|stamp| time_of(stamp)).max() {
        return Ok((Step::Mend, time.to_owned()));
    }
    let last = |word| -> io::Result<Option<(PathBuf, String)>> {
        let folders = named(base, word)?.into_iter().rev();
        let mut found = folders.map(|folder| {
            let time = time_of(&stamp_of(&folder, word).1).to_owned();
            match file {
                Some(name) => (folder.join(name), time),
                None => (folder, time),
            }
        });
        Ok(found.find(|(path, _)| path.symlink_metadata().is_ok()))
    };
    Ok(match (last(old)?, last(undone)?) {
        (Some((kept, time)), Some((_, undone))) if undone > time => {
            (Step::Done(Some(kept)), undone)
        }
        (Some((kept, time)), _) => (Step::Swap(kept), time),
        (None, Some((_, undone))) => (Step::Done(None), undone),
        (None, None) => (Step::Nothing, String::new()),
    })
}

fn one(
    config: &FilesConfig,
    left_out: &LeftOut,
    seen: &Seen,
    folder: &Locked,
) -> io::Result<Undone> {
    let (base, path) = (&seen.base, &seen.path);
    let of = |kept| Undone {
        path: path.clone(),
        kept,
    };
    if let (Some(name), Step::Swap(kept)) = (&seen.only, &seen.step) {
        return file(base, name, kept, path).map(of);
    }
    let filter = Filter::at(base, config, left_out);
    if let Some(kept) = unfinished(base)? {
        // Back from here, without finishing: what stopped it may stop it again.
        let (kept, stamp) = stamp_of(&kept, OLD);
        let replaced = exchange(folder, &filter, &stamp, &kept, UNDONE)?;
        remove_unneeded(&base.join(format!("{RESTORED}{stamp}")));
        return Ok(of(replaced));
    }
    let undecided = undecided(base)?;
    if mend(folder, &filter)? {
        if let Some(stamp) = undecided {
            mark_undone(base, &stamp)?;
        }
        return Ok(of(None));
    }
    match look(base, None)?.0 {
        Step::Swap(kept) => {
            let (kept, stamp) = stamp_of(&kept, OLD);
            exchange(folder, &filter, &stamp, &kept, UNDONE).map(of)
        }
        _ => Ok(of(None)),
    }
}

fn file(base: &Path, name: &Path, kept: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let _open = Opened::new(base)?;
    let (from, stamp) = stamp_of(kept.parent().unwrap_or(base), OLD_FILE);
    let undone = base.join(format!("{UNDONE_FILE}{stamp}")).join(name);
    let replaced = match is_mark(kept) {
        true => take_away(path, &undone)?,
        false => replace(kept, path, &undone)?,
    };
    // The mark; or what a rename to another name of the same file leaves.
    if kept.symlink_metadata().is_ok() {
        std::fs::remove_file(kept)?;
    }
    std::fs::remove_dir(from)?;
    Ok(replaced)
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
