//! From a snapshot back to folders.
//!
//! - Into a new or empty folder: what is there when it fails is the part that was restored; nothing else is touched.
//! - In place: everything is restored and checked beside the folder's content first; then the old content is moved aside, entry by entry,
//!   and the restored one takes its place. Nothing is deleted. What a backup leaves out (databases, local state, excluded files) stays where it is.
//! - What is on disk afterwards is compared with the snapshot: rustic_core reports attributes that it could not set only in its log.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustic_core::repofile::{Node, NodeType, SnapshotFile};
use rustic_core::{
    IndexedFull, LocalDestination, LsOptions, Repository, RestoreOptions, RusticError,
};

use super::attributes::{apply, differences};
use super::error::FilesError;
use super::lock::{Lock, Mode};
use super::place::{Aside, swap};
use super::points::{Goal, Point, find, snapshots};
use super::{Backend, PATIENCE_BACKUP, Target, repository};

/// Differences that are named; more are only counted.
const NAMED: usize = 100;

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

/// Restores a snapshot, or one path of it.
///
/// # Errors
/// [`FilesError::NoPoint`], [`FilesError::Refused`], and the rest.
pub fn restore(
    target: &Target,
    goal: &Goal,
    path: Option<&Path>,
    output: &Output,
) -> Result<Restored, FilesError> {
    let started = Instant::now();
    let backend = target.backend(PATIENCE_BACKUP);
    if let Output::Folder(folder) = output {
        refuse_full(folder)?;
    }
    let repo = repository::open(&backend, &target.config.password)?;
    let _lock = Lock::take(&backend, &target.runtime, &repo, Mode::Shared)?;
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
    for path in &wanted {
        let node = run.node(snapshot, path)?;
        match output {
            Output::InPlace => run.in_place(target, path, &node)?,
            Output::Folder(folder) => {
                let relative = path.strip_prefix("/").unwrap_or(path);
                let to = match (several, node.is_dir()) {
                    (true, _) => folder.join(relative),
                    (false, true) => folder.clone(),
                    (false, false) => folder.join(path.file_name().unwrap_or_default()),
                };
                run.place(&node, &to)?;
            }
        }
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
    done: Restored,
}

impl<S: IndexedFull> Run<'_, S> {
    fn failed(&self, error: &RusticError) -> FilesError {
        FilesError::of("restoring from", self.backend, error)
    }

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

    /// Restores a node to a path that is not there or is an empty folder, and compares.
    fn place(&mut self, node: &Node, to: &Path) -> Result<(), FilesError> {
        let io = |source| FilesError::Io {
            path: to.into(),
            source,
        };
        let text = to.to_str().ok_or_else(|| {
            io(std::io::Error::other(
                "a restore needs a path of valid UTF-8",
            ))
        })?;
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        if !node.is_dir() && !node.is_file() {
            return Err(FilesError::Refused(format!(
                "{text} is a link or a special file: restore the folder it is in"
            )));
        }
        self.contents(node, text)?;
        if node.is_dir() {
            apply(node, to).map_err(io)?;
        }
        self.compare(node, to)?;
        self.done.paths.push(to.into());
        Ok(())
    }

    fn contents(&self, node: &Node, to: &str) -> Result<(), FilesError> {
        let failed = |e: Box<RusticError>| self.failed(&e);
        let mut options = RestoreOptions::default();
        options.numeric_id = true;
        options.no_ownership = !rustix::process::geteuid().is_root();
        // The type is not exported; its word is. Holes stay holes.
        options.sparse = serde_json::from_value("ByContent".into()).ok();
        let dest = LocalDestination::new(to, true, !node.is_dir()).map_err(failed)?;
        let all = LsOptions::default();
        let nodes = || self.repo.ls(node, &all).map_err(failed);
        // rustic_core panics when a pack cannot be read or the disk is full.
        let restored = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let plan = self
                .repo
                .prepare_restore(&options, nodes()?, &dest, false)
                .map_err(failed)?;
            self.repo
                .restore(plan, &options, nodes()?, &dest)
                .map_err(failed)
        }));
        match (restored, self.backend.failure()) {
            (_, Some(failure)) => Err(FilesError::Store(failure)),
            (Ok(result), None) => result,
            (Err(panic), None) => Err(FilesError::Damaged {
                store: self.backend.store().display(),
                what: super::panic_text(&*panic),
            }),
        }
    }

    fn compare(&mut self, node: &Node, to: &Path) -> Result<(), FilesError> {
        let mut note = |found: Vec<String>, path: &Path| {
            self.done.differences_count += found.len() as u64;
            for what in found {
                if self.done.differences.len() < NAMED {
                    self.done
                        .differences
                        .push(format!("{}: {what}", path.display()));
                }
            }
        };
        let all = LsOptions::default();
        let nodes = self
            .repo
            .ls(node, &all)
            .map_err(|e| FilesError::of("restoring from", self.backend, &e))?;
        for item in nodes {
            let (path, node_below) =
                item.map_err(|e| FilesError::of("restoring from", self.backend, &e))?;
            let path = if node.is_dir() {
                to.join(path)
            } else {
                to.into()
            };
            if matches!(node_below.node_type, NodeType::File) {
                self.done.files += 1;
                self.done.bytes += node_below.meta.size;
            }
            note(differences(&node_below, &path), &path);
        }
        Ok(())
    }

    fn in_place(&mut self, target: &Target, path: &Path, node: &Node) -> Result<(), FilesError> {
        let aside = Aside::begin(path, node.is_dir())?;
        self.place(node, &aside.restored)?;
        self.done.paths.pop();
        let kept = swap(&aside, target).map_err(|source| FilesError::Io {
            path: aside.restored.clone(),
            source,
        })?;
        if node.is_dir() {
            apply(node, path).map_err(|source| FilesError::Io {
                path: path.into(),
                source,
            })?;
        }
        self.done.paths.push(path.into());
        self.done.kept.extend(kept);
        Ok(())
    }
}
