//! In place: the old content steps aside, the restored one takes its place, by renames inside one file system.
//!
//! Inside the folder P, which itself stays because it is often a mount point; `S` is the time of the restore, with `-2` and so on for its further
//! paths:
//! - `.lifeboat-restored-S` holds what is being restored. Alone it is what a killed restore left: nobody needs it, the next one removes it.
//! - `.lifeboat-old-S.moving` fills with the old content. While it is there the exchange is not decided: [`mend`] takes it back.
//! - `.lifeboat-old-S` holds all of the old content. From this rename on the exchange is decided: [`mend`] finishes it.
//! - `.lifeboat-undone-S` is for an undo what `.lifeboat-old-S` is for a restore; what comes in is then `.lifeboat-old-S`. The undo of a
//!   restore that is not finished does not finish it first: what could not come in stays in `.lifeboat-restored-S`, which nobody needs then.
//! - `.lifeboat-met-S` holds what the app made in the middle, under names that the incoming content needs; and what comes in under names that
//!   backups leave out: a database, its WAL, what is excluded. Those stay as they are.
//!
//! Where nothing was, `.lifeboat-old-S` is an empty folder, and for a single file `.lifeboat-oldfile-S.absent` holds an empty file of its
//! name: every restore, and every undo, leaves a stamp, so that an undo never takes what an earlier restore replaced for the newest one's.
//!
//! Nothing but `.lifeboat-restored-*` and empty folders of ours is ever deleted. One exchange at a time: P is locked meanwhile.
//! What a backup leaves out is not moved: a folder that contains such things is gone through, not renamed.

use std::fs::{DirEntry, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{FlockOperation, flock, syncfs};

use super::attributes;
use super::error::FilesError;
use super::filter::Filter;
use super::opened::{Opened, put_aside, remove, rename, rename_to_free};
use crate::config::FilesConfig;

/// Names of ours inside folders; backups leave them out.
pub(super) const OURS: &str = ".lifeboat-";
/// Before the time of a restore.
pub(super) const RESTORED: &str = ".lifeboat-restored-";
/// The same.
pub(super) const OLD: &str = ".lifeboat-old-";
/// The same.
pub(super) const UNDONE: &str = ".lifeboat-undone-";
/// The old content of a single file.
pub(super) const OLD_FILE: &str = ".lifeboat-oldfile-";
/// The same, for what an undo replaced.
pub(super) const UNDONE_FILE: &str = ".lifeboat-undonefile-";
const MET: &str = ".lifeboat-met-";
/// Behind the name of a folder for a single file: nothing was there.
pub(super) const ABSENT: &str = ".absent";
/// Behind the name of a folder that is being filled.
const MOVING: &str = ".moving";

/// A folder in which things are exchanged, locked.
pub(super) struct Locked {
    /// Which.
    pub(super) base: PathBuf,
    file: File,
    /// Its attributes before the first of our folders changed its time.
    was: Metadata,
}

impl Locked {
    /// Locks a folder.
    ///
    /// # Errors
    /// [`FilesError::Running`], [`FilesError::Io`].
    pub(super) fn take(base: &Path) -> Result<Self, FilesError> {
        let io = |e| FilesError::io(base, e);
        let file = File::open(base).map_err(io)?;
        let was = file.metadata().map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => Err(FilesError::Running(base.into())),
            // Some network file systems cannot.
            Ok(()) | Err(_) => Ok(Self {
                base: base.into(),
                file,
                was,
            }),
        }
    }

    /// Locks the folder of a restore in place, which is made if it is not there, and mends what a killed restore left.
    ///
    /// # Errors
    /// [`FilesError::Io`], [`FilesError::Running`].
    pub(super) fn begin(base: &Path, filter: &Filter) -> Result<Self, FilesError> {
        std::fs::create_dir_all(base).map_err(|e| FilesError::io(base, e))?;
        let folder = Self::take(base)?;
        let io = |e| FilesError::io(base, e);
        mend(&folder, filter).map_err(io)?;
        for dead in named(base, RESTORED).map_err(io)? {
            remove_unneeded(&dead);
        }
        Ok(folder)
    }

    /// Everything written so far is on disk.
    fn sync(&self) -> io::Result<()> {
        Ok(syncfs(&self.file)?)
    }
}

/// The places of one path of a restore.
pub(super) struct Aside {
    /// Several files of one folder share it.
    folder: Rc<Locked>,
    /// What is restored of it: all, or one name.
    only: Option<PathBuf>,
    /// Where the restored content is first.
    pub(super) restored: PathBuf,
    stamp: String,
}

impl Aside {
    /// Makes the places in a folder from [`Locked::begin`].
    ///
    /// # Errors
    /// [`FilesError::Io`].
    pub(super) fn begin(
        folder: Rc<Locked>,
        only: Option<PathBuf>,
        stamp: String,
    ) -> Result<Self, FilesError> {
        let restored = folder.base.join(format!("{RESTORED}{stamp}"));
        let made = Opened::new(&folder.base).and_then(|_open| std::fs::create_dir(&restored));
        made.map_err(|e| FilesError::io(&folder.base, e))?;
        Ok(Self {
            restored: match &only {
                Some(name) => restored.join(name),
                None => restored,
            },
            stamp,
            folder,
            only,
        })
    }

    /// Takes away what was restored so far.
    pub(super) fn forget(&self) {
        let folder = match &self.only {
            Some(_) => self.restored.parent(),
            None => Some(self.restored.as_path()),
        };
        folder.into_iter().for_each(remove_unneeded);
    }

    /// Exchanges; returns where the old content is, if there was any.
    ///
    /// # Errors
    /// The system's; the old content is then back where it was, as far as the system allows, and nothing is lost.
    pub(super) fn swap(&self, filter: &Filter) -> io::Result<Option<PathBuf>> {
        self.folder.sync()?;
        match &self.only {
            Some(name) => {
                let _open = Opened::new(&self.folder.base)?;
                let kept = self.folder.base.join(format!("{OLD_FILE}{}", self.stamp));
                let kept = replace(
                    &self.restored,
                    &self.folder.base.join(name),
                    &kept.join(name),
                )?;
                if let Some(folder) = self.restored.parent() {
                    std::fs::remove_dir(folder)?;
                }
                self.folder.sync()?;
                Ok(kept)
            }
            None => exchange(&self.folder, filter, &self.stamp, &self.restored, OLD),
        }
    }
}

/// The time of a restore that begins, as the names of its folders have it.
pub(super) fn time_of_now() -> String {
    let now = jiff::Timestamp::now();
    now.strftime("%Y%m%dT%H%M%S%9fZ").to_string()
}

/// The time of a restore, of a stamp.
pub(super) fn time_of(stamp: &str) -> &str {
    stamp.split(['-', '.']).next().unwrap_or(stamp)
}

/// Removes a folder of ours that nobody needs; one that stays is in nobody's way.
pub(super) fn remove_unneeded(folder: &Path) {
    let base = folder.parent().unwrap_or(folder);
    if let Err(error) = Opened::new(base).and_then(|_open| remove(folder)) {
        tracing::warn!(folder = %folder.display(), %error, "what a restore left stays behind, and nobody needs it; the next restore tries to remove it");
    }
}

/// The folder where a path is exchanged, and its name if it is a single file.
pub(super) fn base_of(path: &Path, is_dir: bool) -> (PathBuf, Option<PathBuf>) {
    match (is_dir, path.parent()) {
        (false, Some(parent)) => (parent.to_owned(), path.file_name().map(PathBuf::from)),
        _ => (path.to_owned(), None),
    }
}

/// A folder that became a link leads out of the configured path: nothing is exchanged behind it.
///
/// # Errors
/// [`FilesError::Refused`].
pub(super) fn refuse_links(
    config: &FilesConfig,
    path: &Path,
    is_dir: bool,
) -> Result<(), FilesError> {
    let Some(root) = config.paths.iter().find(|root| path.starts_with(root)) else {
        return Ok(());
    };
    let (base, _) = base_of(path, is_dir);
    let mut below = base
        .ancestors()
        .take_while(|folder| *folder != root && folder.starts_with(root));
    match below.find(|folder| folder.is_symlink()) {
        None => Ok(()),
        Some(link) => Err(FilesError::Refused(format!(
            "{} is a link, and what lies behind it may be outside of {}; nothing was changed (restore the folder that the link is in, or give a folder with -o)",
            link.display(),
            root.display()
        ))),
    }
}

/// Folders of ours in `base`, by time.
pub(super) fn named(base: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(base)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|n| n.starts_with(prefix)) && entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Exchanges in a folder that were decided or are under way, by name; `None` if one of them is not finished.
pub(super) fn exchanges(base: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    let (done, pending) = by_state(base)?;
    Ok(pending.is_empty().then_some(done))
}

/// Stamps of exchanges that are not finished.
pub(super) fn pending(base: &Path) -> io::Result<Vec<String>> {
    Ok(by_state(base)?.1)
}

fn by_state(base: &Path) -> io::Result<(Vec<PathBuf>, Vec<String>)> {
    let (mut done, mut pending) = (Vec::new(), Vec::new());
    for (word, incoming) in [(OLD, RESTORED), (UNDONE, OLD)] {
        for kept in named(base, word)? {
            let name = kept.file_name().unwrap_or_default().to_string_lossy();
            let stamp = name.trim_start_matches(word);
            if stamp.ends_with(MOVING) || base.join(format!("{incoming}{stamp}")).is_dir() {
                pending.push(stamp.to_owned());
            } else {
                done.push(kept);
            }
        }
    }
    Ok((done, pending))
}

/// Says that nothing was there which could be kept.
pub(super) fn mark_absent(kept: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (kept.parent(), kept.file_name()) else {
        return Ok(());
    };
    let mut mark = folder.as_os_str().to_owned();
    mark.push(ABSENT);
    std::fs::create_dir_all(&mark)?;
    File::create(Path::new(&mark).join(name)).map(drop)
}

/// Puts `file` in the place of another, which is kept. At no moment is the old one without a name.
pub(super) fn replace(file: &Path, place: &Path, kept: &Path) -> io::Result<Option<PathBuf>> {
    let was = place.symlink_metadata().ok();
    if let Some(was) = &was {
        if let Some(folder) = kept.parent() {
            std::fs::create_dir_all(folder)?;
        }
        match std::fs::hard_link(place, kept) {
            // A folder has one name only, and some file systems have no links.
            Err(_) if was.is_dir() || kept.symlink_metadata().is_err() => {
                rename(place, kept)?;
            }
            // Linked by a run that was killed.
            Ok(()) | Err(_) => {}
        }
    } else {
        mark_absent(kept)?;
    }
    std::fs::rename(file, place)?;
    Ok(was.map(|_| kept.into()))
}

/// Everything that a backup takes of the folder moves to `<word><stamp>`, then what is in `incoming` takes its place.
pub(super) fn exchange(
    folder: &Locked,
    filter: &Filter,
    stamp: &str,
    incoming: &Path,
    word: &str,
) -> io::Result<Option<PathBuf>> {
    let base = &folder.base;
    let kept = base.join(format!("{word}{stamp}"));
    let moving = base.join(format!("{word}{stamp}{MOVING}"));
    let done = set_aside(filter, base, &folder.was, &moving)
        .and_then(|_| folder.sync())
        .and_then(|()| Opened::new(base).and_then(|_open| rename(&moving, &kept)))
        .and_then(|()| bring(filter, incoming, base, &base.join(format!("{MET}{stamp}"))))
        .and_then(|()| folder.sync());
    if let Err(error) = done {
        // What was not decided is taken back, what was is finished: here if that is possible, or by the next run.
        if let Err(error) = mend(folder, filter) {
            tracing::warn!(folder = %base.display(), %error, "the exchange is neither taken back nor finished; the next restore, or --undo, goes on with it");
        }
        return Err(error);
    }
    Ok((!is_empty(&kept)?).then_some(kept))
}

/// Of a folder of ours: nothing was there.
pub(super) fn is_empty(folder: &Path) -> io::Result<bool> {
    let _open = Opened::new(folder)?;
    Ok(std::fs::read_dir(folder)?.next().is_none())
}

/// Remembers the undo of an exchange that was taken back.
pub(super) fn mark_undone(base: &Path, stamp: &str) -> io::Result<()> {
    let _open = Opened::new(base)?;
    std::fs::create_dir_all(base.join(format!("{UNDONE}{stamp}")))
}

/// A restore that was not decided: its stamp.
pub(super) fn undecided(base: &Path) -> io::Result<Option<String>> {
    let stamp = |kept: PathBuf| {
        let name = kept.file_name().unwrap_or_default().to_string_lossy();
        let stamp = name.trim_start_matches(OLD).strip_suffix(MOVING)?;
        Some(stamp.to_owned())
    };
    Ok(named(base, OLD)?.into_iter().rev().find_map(stamp))
}

/// A restore that was decided and is not finished: what it kept. If its undo was decided, that counts.
pub(super) fn unfinished(base: &Path) -> io::Result<Option<PathBuf>> {
    let is_unfinished = |kept: &PathBuf| {
        let name = kept.file_name().unwrap_or_default().to_string_lossy();
        let is_there = |word| base.join(name.replacen(OLD, word, 1)).is_dir();
        is_there(RESTORED) && !is_there(UNDONE)
    };
    Ok(named(base, OLD)?.into_iter().rfind(is_unfinished))
}

/// Takes back or finishes what a killed run left. `true` if things are by that as they were before a restore.
pub(super) fn mend(folder: &Locked, filter: &Filter) -> io::Result<bool> {
    let base = &folder.base;
    let mut back = false;
    // An undo first: of a restore that was not finished it leaves nothing to finish.
    for (word, incoming) in [(UNDONE, OLD), (OLD, RESTORED)] {
        for kept in named(base, word)? {
            let name = kept.file_name().unwrap_or_default().to_string_lossy();
            let stamp = name.trim_start_matches(word);
            let met = base.join(format!("{MET}{}", stamp.trim_end_matches(MOVING)));
            let incoming = base.join(format!("{incoming}{stamp}"));
            if stamp.ends_with(MOVING) {
                tracing::info!(folder = %base.display(), "an exchange of files was interrupted before it was decided; taking it back");
                bring(filter, &kept, base, &met)?;
                back |= word == OLD;
            } else if incoming.is_dir() {
                tracing::info!(folder = %base.display(), "an exchange of files was interrupted; finishing it");
                bring(filter, &incoming, base, &met)?;
                back |= word == UNDONE;
            }
        }
    }
    folder.sync()?;
    Ok(back)
}

/// Moves everything that a backup takes out of `from`. `to` gets the attributes of `from`.
fn set_aside(filter: &Filter, from: &Path, was: &Metadata, to: &Path) -> io::Result<()> {
    // The first `to` is in `from` itself.
    let _from = Opened::new(from)?;
    match std::fs::create_dir(to) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    // Now, too: a run that is killed in between is taken back from here.
    attributes::copy(from, was, to)?;
    let _to = Opened::new(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let is_dir = entry.file_type()?.is_dir();
        if !filter.takes_path(&path, is_dir) {
            continue;
        }
        if is_dir && holds_left_out(filter, &path)? {
            set_aside(filter, &path, &path.metadata()?, &to)?;
        } else {
            rename(&path, &to)?;
        }
    }
    attributes::copy(from, was, to)
}

fn holds_left_out(filter: &Filter, folder: &Path) -> io::Result<bool> {
    let _open = Opened::new(folder)?;
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

/// Moves everything in `from` to `to`, whose attributes become those of `from`; folders that are there are filled. What else is in the way
/// moves to `met`; what a backup leaves out stays, and what would take its place moves to `met`.
fn bring(filter: &Filter, from: &Path, to: &Path, met: &Path) -> io::Result<()> {
    let was = from.metadata()?;
    let (source, place_of_all) = (Opened::new(from)?, Opened::new(to)?);
    for entry in std::fs::read_dir(from)? {
        bring_one(filter, &entry?, to, met)?;
    }
    attributes::copy(from, &was, to)?;
    place_of_all.settled();
    Opened::new(to).and_then(|_open| std::fs::remove_dir(from))?;
    source.settled();
    // What was removed may have been in it.
    attributes::set_times_as(&was, to);
    Ok(())
}

fn bring_one(filter: &Filter, entry: &DirEntry, to: &Path, met: &Path) -> io::Result<()> {
    let place = to.join(entry.file_name());
    loop {
        match place.symlink_metadata().ok() {
            there if filter.keeps(&place, there.as_ref()) => {
                tracing::warn!(file = %place.display(), restored = %met.display(), "a backup leaves it out, so a restore leaves it as it is; what was in the snapshot is kept aside");
                return put_aside(&entry.path(), met);
            }
            Some(there) if there.is_dir() && entry.file_type()?.is_dir() => {
                return bring(filter, &entry.path(), &place, &met.join(entry.file_name()));
            }
            Some(_) => {
                tracing::warn!(file = %place.display(), kept = %met.display(), "came into being during the restore; it is kept aside");
                match put_aside(&place, met) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
            None => match rename_to_free(&entry.path(), &place) {
                // This very moment; it is looked at.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other,
            },
        }
    }
}
