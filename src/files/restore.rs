//! From a snapshot back to folders.
//!
//! - Into a new or empty folder: what is there when it fails is the part that was restored; nothing else is touched.
//! - In place: everything is restored and checked beside the folder's content first; then the old content is moved aside, entry by entry,
//!   and the restored one takes its place. Nothing is deleted. What a backup leaves out (databases, local state, excluded files) stays where it is.
//! - What is on disk afterwards is compared with the snapshot.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustic_core::repofile::{Node, SnapshotFile};
use rustic_core::{IndexedFull, Repository};

use super::attributes::set;
use super::error::FilesError;
use super::filter::Filter;
use super::lock::{Lock, Mode};
use super::opened::remove;
use super::place::{Aside, Locked, base_of, refuse_links, time_of_now};
use super::points::{Goal, Point, find_among, read};
use super::repository::Repo;
use super::write::Writer;
use super::{Backend, PATIENCE_BACKUP, Target, repository};

/// How long a restore waits for somebody who has the repository alone.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A folder that is not there, or is empty.
    Folder(PathBuf),
    /// Where it was; the old content is kept aside.
    InPlace,
}

/// What a restore did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Restored {
    /// The snapshot.
    pub point: Point,
    /// Where it is now.
    pub paths: Vec<PathBuf>,
    /// Where the old content is, in place.
    pub kept: Vec<PathBuf>,
    /// Files and their bytes.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
    /// Attributes that are not as in the snapshot: the first hundred.
    pub differences: Vec<String>,
    /// How many there are.
    pub differences_count: u64,
    /// How long it took.
    #[serde(serialize_with = "super::seconds")]
    pub took: Duration,
}

/// Restores a snapshot, or one path of it. With `again`, what a failure leaves is taken away, so that another store can be asked.
///
/// # Errors
/// [`FilesError::NoPoint`], [`FilesError::Refused`], and the rest.
pub fn restore(
    target: &Target,
    goal: &Goal,
    path: Option<&Path>,
    output: &Output,
    again: bool,
) -> Result<Restored, FilesError> {
    match output {
        Output::InPlace => from_store(target, goal, path, output, None),
        Output::Folder(folder) => into_folder(target, goal, path, folder, again),
    }
}

/// Into a folder that is locked and empty. With `again` only what this run made in it is taken away after a failure.
fn into_folder(
    target: &Target,
    goal: &Goal,
    path: Option<&Path>,
    folder: &Path,
    again: bool,
) -> Result<Restored, FilesError> {
    let io = |e| FilesError::io(folder, e);
    refuse_full(folder)?;
    let is_new = !folder.is_dir();
    std::fs::create_dir_all(folder).map_err(io)?;
    let _lock = Locked::take(folder)?;
    refuse_full(folder)?;
    let mut made = Vec::new();
    let output = Output::Folder(folder.to_owned());
    let done = from_store(target, goal, path, &output, again.then_some(&mut made));
    if done.as_ref().is_err_and(|error| !error.is_local()) {
        for ours in made {
            match ours.is_dir() && !ours.is_symlink() {
                true => remove(&ours),
                false => std::fs::remove_file(&ours),
            }
            .map_err(io)?;
        }
    }
    if is_new && done.is_err() {
        // What is in it stays.
        let _ = std::fs::remove_dir(folder);
    }
    done
}

/// A prune that runs now is over soon: a restore waits for it a little. Then it goes on beside it, without a lock: nobody must wait half an hour for
/// his data because a prune was killed. Lifeboat's own deletes only what was let go of a day before, and every piece is proven as it is read.
fn lock(backend: &Backend, target: &Target, repo: &Repo) -> Result<Option<Lock>, FilesError> {
    let begun = Instant::now();
    loop {
        match Lock::take(backend, &target.runtime, repo, Mode::Shared) {
            Err(error @ FilesError::Locked { .. }) if begun.elapsed() < PATIENCE => {
                tracing::info!(%error, "waiting for it");
                std::thread::sleep(PAUSE);
            }
            Err(error @ FilesError::Locked { by_prune: true, .. }) => {
                tracing::warn!(%error, "a prune is at work or was killed; restoring beside it");
                return Ok(None);
            }
            taken => return taken.map(Some),
        }
    }
}

/// Said before a restore of hours. In place the old content stays until somebody removes it, so all of it is needed there, too.
fn room(point: &Point, place: &Path) -> Result<(), FilesError> {
    let there = place.ancestors().find(|p| p.is_dir());
    let Some(volume) = there.and_then(|p| rustix::fs::statvfs(p).ok()) else {
        return Ok(());
    };
    let free = volume.f_bavail.saturating_mul(volume.f_frsize);
    if point.bytes <= free {
        return Ok(());
    }
    Err(FilesError::Refused(format!(
        "{} bytes are to be restored to {}, where {free} bytes are free; nothing was changed (free space, restore to another volume with -o, or a part with --path; files with holes take less than they say, and `restic restore` does not ask)",
        point.bytes,
        place.display()
    )))
}

fn from_store(
    target: &Target,
    goal: &Goal,
    path: Option<&Path>,
    output: &Output,
    made: Option<&mut Vec<PathBuf>>,
) -> Result<Restored, FilesError> {
    let started = Instant::now();
    let backend = target.backend(PATIENCE_BACKUP);
    let repo = repository::open(&backend, &target.config.password)?;
    let _lock = lock(&backend, target, &repo)?;
    let key = repository::key(&backend, &repo)?;
    let (all, damaged) = read(&backend, &repo)?;
    let points: Vec<Point> = all.iter().map(Point::of).collect();
    let found = find_among(&backend, &points, damaged.as_ref(), goal)?;
    let (snapshot, point) = (&all[found], points[found].clone());
    if path.is_none() {
        let place = match output {
            Output::Folder(folder) => Some(folder),
            Output::InPlace => target.config.paths.first(),
        };
        place.map_or(Ok(()), |place| room(&point, place))?;
    }
    let mut repo = repo.to_indexed();
    if repo.is_err() && backend.failure().is_some_and(|e| e.is_not_found()) {
        // Files of the index were exchanged meanwhile, by a prune that this restore does not wait for.
        backend.forget_failure();
        repo = repository::open(&backend, &target.config.password)?.to_indexed();
    }
    let repo = repo.map_err(|e| FilesError::of("reading the index of", &backend, &e))?;
    let wanted = wanted(&point, path)?;
    let mut run = Run {
        backend: &backend,
        repo: &repo,
        key,
        made,
        done: Restored {
            point,
            paths: Vec::new(),
            kept: Vec::new(),
            files: 0,
            bytes: 0,
            differences: Vec::new(),
            differences_count: 0,
            took: Duration::ZERO,
        },
    };
    let several = wanted.len() > 1;
    let (mut nodes, mut none) = (Vec::new(), None);
    for wanted in wanted {
        match run.node(snapshot, &wanted) {
            Ok(node) => nodes.push((wanted, node)),
            // One path of several that was away when the snapshot was made, which is partial for that.
            Err(error @ FilesError::NoPoint(_)) if several && run.done.point.partial => {
                tracing::warn!(path = %wanted.display(), snapshot = run.done.point.short(), "was not there when this snapshot was made; it is not restored");
                none.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    if let (true, Some(none)) = (nodes.is_empty(), none) {
        return Err(none);
    }
    match output {
        Output::InPlace => run.in_place(target, &nodes)?,
        Output::Folder(folder) => run.fill(folder, &nodes, several)?,
    }
    run.done.took = started.elapsed();
    Ok(run.done)
}

fn refuse_full(folder: &Path) -> Result<(), FilesError> {
    match std::fs::read_dir(folder).map(|mut items| items.next().is_none()) {
        Ok(true) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(false) => Err(FilesError::Refused(format!(
            "{} is not empty; nothing was changed (give another folder, or --in-place, which keeps the old content aside)",
            folder.display()
        ))),
        Err(source) => Err(FilesError::Io {
            path: folder.into(),
            source,
        }),
    }
}

/// The paths to restore: the one asked for, which may be relative to the only path of the snapshot, or all.
fn wanted(point: &Point, path: Option<&Path>) -> Result<Vec<PathBuf>, FilesError> {
    let all: Vec<PathBuf> = point.paths.iter().map(PathBuf::from).collect();
    match path {
        None => Ok(all),
        Some(path) if path.is_absolute() => Ok(vec![path.into()]),
        Some(path) => match all.as_slice() {
            [only] => Ok(vec![only.join(path)]),
            _ => Err(FilesError::NoPoint(format!(
                "the snapshot holds several paths, so {} must begin with one of them: {}",
                path.display(),
                point.paths.join(", ")
            ))),
        },
    }
}

struct Run<'a, S> {
    backend: &'a Backend,
    repo: &'a Repository<S>,
    key: [u8; 64],
    /// What was made at the top of the folder, if somebody wants to know.
    made: Option<&'a mut Vec<PathBuf>>,
    done: Restored,
}

impl<S: IndexedFull> Run<'_, S> {
    fn node(&self, snapshot: &SnapshotFile, path: &Path) -> Result<Node, FilesError> {
        let text = path.to_string_lossy();
        self.repo
            .node_from_snapshot_and_path(snapshot, &text)
            .map_err(|e| match self.backend.failure() {
                Some(failure) => FilesError::Store(failure),
                None => FilesError::NoPoint(format!(
                    "snapshot {} holds no {text} ({})",
                    self.done.point.short(),
                    e.display_log().trim_start_matches("Error: ")
                )),
            })
    }

    /// Of several paths each lands below its own name.
    fn fill(
        &mut self,
        folder: &Path,
        nodes: &[(PathBuf, Node)],
        several: bool,
    ) -> Result<(), FilesError> {
        for (path, node) in nodes {
            let relative = path.strip_prefix("/").unwrap_or(path);
            let to = match (several, node.is_dir()) {
                (true, _) => folder.join(relative),
                (false, true) => folder.to_owned(),
                (false, false) => folder.join(path.file_name().unwrap_or_default()),
            };
            if let (true, Some(first)) = (several, relative.components().next()) {
                self.make(&folder.join(first))?;
            }
            self.place(node, &to)?;
            self.done.paths.push(to);
        }
        sync(folder)
    }

    /// A folder at the top, unless it is there.
    fn make(&mut self, folder: &Path) -> Result<(), FilesError> {
        match std::fs::create_dir(folder) {
            Ok(()) => {
                if let Some(made) = &mut self.made {
                    made.push(folder.to_owned());
                }
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(FilesError::io(folder, e)),
        }
    }

    /// Restores a node to a path that is not there or is an empty folder, and compares.
    fn place(&mut self, node: &Node, to: &Path) -> Result<(), FilesError> {
        let folder = if node.is_dir() { Some(to) } else { to.parent() };
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder).map_err(|e| FilesError::io(folder, e))?;
        }
        if !node.is_dir() && !node.is_file() {
            return Err(FilesError::Refused(format!(
                "{} is a link or a special file: restore the folder it is in",
                to.display()
            )));
        }
        let made = self.made.as_deref_mut();
        let written = Writer::new(self.backend, self.repo, self.key, made).write(node, to)?;
        self.done.files += written.files;
        self.done.bytes += written.bytes;
        self.done.differences_count += written.differences_count;
        self.done.differences.extend(written.differences);
        Ok(())
    }

    /// Everything is restored before the first thing is exchanged.
    fn in_place(&mut self, target: &Target, nodes: &[(PathBuf, Node)]) -> Result<(), FilesError> {
        let configured = &target.config.paths;
        let elsewhere = |p: &PathBuf| !configured.iter().any(|c| p.starts_with(c));
        if let Some((path, _)) = nodes.iter().find(|(p, _)| elsewhere(p)) {
            return Err(FilesError::Refused(format!(
                "the snapshot holds {}, which is not among the paths of {}; nothing was changed (give a folder with -o)",
                path.display(),
                target.config.name
            )));
        }
        for (path, node) in nodes {
            refuse_links(&target.config, path, node.is_dir())?;
        }
        let mut places = Vec::new();
        if let Err(error) = self.set_up(target, nodes, &mut places) {
            places.iter().for_each(Aside::forget);
            return Err(error);
        }
        for (at, ((path, node), aside)) in nodes.iter().zip(&places).enumerate() {
            let filter = Filter::at(path, &target.config, &target.left_out);
            match aside.swap(&filter) {
                Ok(kept) => self.done.kept.extend(kept),
                Err(error) => {
                    // What this one restored may be needed to finish it.
                    places[at + 1..].iter().for_each(Aside::forget);
                    return Err(FilesError::io(path, error));
                }
            }
            if node.is_dir() {
                set(node, path);
            }
            self.done.paths.push(path.clone());
        }
        Ok(())
    }

    /// Restores everything beside where it belongs.
    fn set_up(
        &mut self,
        target: &Target,
        nodes: &[(PathBuf, Node)],
        places: &mut Vec<Aside>,
    ) -> Result<(), FilesError> {
        let mut folders: Vec<Rc<Locked>> = Vec::new();
        let time = time_of_now();
        for (at, (path, node)) in nodes.iter().enumerate() {
            let filter = Filter::at(path, &target.config, &target.left_out);
            if !node.is_dir() && filter.keeps(path, path.symlink_metadata().ok().as_ref()) {
                return Err(FilesError::Refused(format!(
                    "{} is a database, or belongs to one, or is excluded; nothing was changed (give a folder with -o)",
                    path.display()
                )));
            }
            let (base, only) = base_of(path, node.is_dir());
            let folder = match folders.iter().find(|f| f.base == base) {
                Some(folder) => Rc::clone(folder),
                None => Rc::new(Locked::begin(&base, &filter)?),
            };
            folders.push(Rc::clone(&folder));
            let stamp = match at {
                0 => time.clone(),
                at => format!("{time}-{}", at + 1),
            };
            let aside = Aside::begin(folder, only, stamp)?;
            let restored = aside.restored.clone();
            places.push(aside);
            self.place(node, &restored)?;
        }
        Ok(())
    }
}

/// What was restored is on disk.
fn sync(folder: &Path) -> Result<(), FilesError> {
    let synced = std::fs::File::open(folder)
        .and_then(|f| rustix::fs::syncfs(f).map_err(std::io::Error::from));
    synced.map_err(|e| FilesError::io(folder, e))
}
