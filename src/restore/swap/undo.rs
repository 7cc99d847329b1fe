//! Taking the last restore in place back.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{
    COMPANIONS, Claim, KEPT, NONE, SwapError, at, claim, folder, keep, sync_folder, with_suffix,
};
use crate::restore::proof::Proof;
use crate::types::Millis;

pub(super) const KEPT_BY_UNDO: &str = ".before-undo-";

/// Swaps the newest kept copy back; the present database, if there is one, is kept in turn.
pub fn undo(path: &Path, now: Millis) -> Result<(PathBuf, Option<PathBuf>), SwapError> {
    let claim = claim_undo(path)?;
    undo_claimed(path, claim, now)
}

/// Claims the database at `path` for an undo: what would be put back is there, and nobody has that open either. Blocks.
///
/// # Errors
/// Those of [`claim`] and [`kept_for_undo`]. Nothing was changed.
pub fn claim_undo(path: &Path) -> Result<Option<Claim>, SwapError> {
    let copy = kept_for_undo(path)?.path;
    // Under its own name: a WAL must never lie beside a database that it does not belong to.
    drop(Proof::take(&copy)?);
    claim(path)
}

/// The same after [`claim_undo`].
pub fn undo_claimed(
    path: &Path,
    claim: Option<Claim>,
    now: Millis,
) -> Result<(PathBuf, Option<PathBuf>), SwapError> {
    let copy = kept_for_undo(path)?.path;
    let was_there = path.exists();
    let kept = keep(path, KEPT_BY_UNDO, now)?;
    fs::rename(&copy, path).map_err(at(path))?;
    for companion in COMPANIONS {
        bring(
            &with_suffix(&copy, companion),
            &with_suffix(path, companion),
        )?;
    }
    sync_folder(path)?;
    drop(claim);
    Ok((copy, Some(kept).filter(|_| was_there)))
}

/// What lies beside a copy goes with it. Only of a file that SQLite cannot read it holds anything; killed right before this, that lies beside
/// under the copy's name.
fn bring(from: &Path, to: &Path) -> Result<(), SwapError> {
    let size = match fs::metadata(from) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(at(from)(e)),
    };
    match size {
        0 => fs::remove_file(from),
        _ => fs::rename(from, to),
    }
    .map_err(at(from))
}

/// A database that a restore in place replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Where it is.
    pub path: PathBuf,
    /// When, as its name says it. Copies that one command made have the same.
    pub stamp: String,
}

/// What [`undo`] would put back: the newest database that a restore in place replaced.
///
/// # Errors
/// [`SwapError::NothingKept`]; [`SwapError::Undone`] if the newest is older than the last undo: a second undo would not repeat the first, but
/// silently go back to the restore before it.
pub fn kept_for_undo(path: &Path) -> Result<Kept, SwapError> {
    let newest = newest(path, KEPT)?.ok_or_else(|| SwapError::NothingKept(path.to_owned()))?;
    if newest.stamp.ends_with(NONE) {
        return Err(SwapError::NothingThere(path.to_owned()));
    }
    match self::newest(path, KEPT_BY_UNDO)? {
        // An undo that was killed before its rename only gave the present database a second name, or found none and left none.
        Some(undone)
            if undone.stamp >= newest.stamp && path.exists() && !is_same(&undone.path, path) =>
        {
            Err(SwapError::Undone {
                path: path.to_owned(),
                older: newest.path,
            })
        }
        _ => Ok(newest),
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

/// By the times in their names: `20261120T101500.123Z`, and `-2` for a second one in the same millisecond.
fn newest(path: &Path, word: &str) -> Result<Option<Kept>, SwapError> {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let prefix = format!("{name}{word}");
    let kept = fs::read_dir(folder(path))
        .map_err(at(path))?
        .filter_map(|item| {
            let path = item.ok()?.path();
            let name = path.file_name()?.to_string_lossy().into_owned();
            let stamp = name.strip_prefix(&prefix)?.to_owned();
            (!COMPANIONS.iter().any(|c| name.ends_with(c))).then_some(Kept { path, stamp })
        });
    Ok(kept.max_by(|a, b| a.stamp.cmp(&b.stamp)))
}
