//! From a snapshot back to folders.
//!
//! - Into a new or empty folder: what is there when it fails is the part that was restored; nothing else is touched.
//! - In place: everything is restored and checked beside the folder's content first; then the old content is moved aside, entry by entry,
//!   and the restored one takes its place. Nothing is deleted. What a backup leaves out (databases, local state, excluded files) stays where it is.
//! - What is on disk afterwards is compared with the snapshot.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustic_core::repofile::{Node, SnapshotFile};
use rustic_core::{IndexedFull, Repository};

use super::attributes::set;
use super::error::FilesError;
use super::lock::{Lock, Mode};
use super::place::Aside;
use super::points::{Goal, Point, find, snapshots};
use super::source::Filter;
use super::write::Writer;
use super::{Backend, PATIENCE_BACKUP, Target, repository};

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
    if let Output::Folder(folder) = output {
        refuse_full(folder)?;
    }
    let done = from_store(target, goal, path, output);
    if let (Err(error), Output::Folder(folder), true) = (&done, output, again)
        && !error.is_local()
    {
        empty(folder).map_err(|e| FilesError::io(folder, e))?;
    }
    done
}

fn from_store(
    target: &Target,
    goal: &Goal,
    path: Option<&Path>,
    output: &Output,
) -> Result<Restored, FilesError> {
    let started = Instant::now();
    let backend = target.backend(PATIENCE_BACKUP);
    let repo = repository::open(&backend, &target.config.password)?;
    let _lock = Lock::take(&backend, &target.runtime, &repo, Mode::Shared)?;
    let key = repository::key(&backend, &repo)?;
    let all = snapshots(&backend, &repo)?;
    let points: Vec<Point> = all.iter().map(Point::of).collect();
    let found = find(&points, goal)?;
    let (snapshot, point) = (&all[found], points[found].clone());
    let repo = repo
        .to_indexed()
        .map_err(|e| FilesError::of("reading the index of", &backend, &e))?;
    let wanted = wanted(&point, path)?;
    let mut run = Run {
        backend: &backend,
        repo: &repo,
        key,
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
    let mut nodes = Vec::new();
    for path in wanted {
        let node = run.node(snapshot, &path)?;
        nodes.push((path, node));
    }
    match output {
        Output::InPlace => run.in_place(target, &nodes)?,
        Output::Folder(folder) => run.fill(folder, &nodes)?,
    }
    run.done.took = started.elapsed();
    Ok(run.done)
}

fn empty(folder: &Path) -> std::io::Result<()> {
    let items = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        items => items?,
    };
    for item in items {
        let item = item?;
        match item.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(item.path())?,
            false => std::fs::remove_file(item.path())?,
        }
    }
    Ok(())
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

    fn fill(&mut self, folder: &Path, nodes: &[(PathBuf, Node)]) -> Result<(), FilesError> {
        let several = nodes.len() > 1;
        for (path, node) in nodes {
            let relative = path.strip_prefix("/").unwrap_or(path);
            let to = match (several, node.is_dir()) {
                (true, _) => folder.join(relative),
                (false, true) => folder.to_owned(),
                (false, false) => folder.join(path.file_name().unwrap_or_default()),
            };
            self.place(node, &to)?;
            self.done.paths.push(to);
        }
        sync(folder)
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
        let written = Writer::new(self.backend, self.repo, self.key).write(node, to)?;
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
        let mut places = Vec::new();
        for (path, node) in nodes {
            let filter = Filter::of(path, &target.config.exclude, &target.left_out);
            if !node.is_dir() && filter.keeps(path, path.symlink_metadata().ok().as_ref()) {
                places.iter().for_each(Aside::forget);
                return Err(FilesError::Refused(format!(
                    "{} is a database, or belongs to one, or is excluded; nothing was changed (give a folder with -o)",
                    path.display()
                )));
            }
            let aside = Aside::begin(path, node.is_dir(), &filter)?;
            let placed = self.place(node, &aside.restored);
            places.push(aside);
            if let Err(error) = placed {
                places.iter().for_each(Aside::forget);
                return Err(error);
            }
        }
        for ((path, node), aside) in nodes.iter().zip(&places) {
            let filter = Filter::of(path, &target.config.exclude, &target.left_out);
            let kept = aside.swap(&filter).map_err(|e| FilesError::io(path, e))?;
            if node.is_dir() {
                set(node, path);
            }
            self.done.paths.push(path.clone());
            self.done.kept.extend(kept);
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
