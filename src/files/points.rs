//! Snapshots as restore points.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rustic_core::repofile::{SnapshotFile, SnapshotId};
use rustic_core::{FileType, RusticError};

use super::error::FilesError;
use super::repository::{self, Repo};
use super::{Backend, PATIENCE_PERSON, Target};
use crate::labels::{FindError, Named, find_named, numbered, split, version_of};
use crate::replica::past;
use crate::retention::copies::newest;
use crate::types::Millis;

/// A tag on what could not be read in full.
pub(super) const PARTIAL: &str = "partial";
/// A tag on what Lifeboat made.
pub(super) const OURS: &str = "lifeboat";
/// Before the name of a label in a tag.
pub(super) const LABEL: &str = "label=";
/// Before the version that a label belongs to, where its name does not say it.
const DEPLOY: &str = "deploy=";

/// The label that a new snapshot gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLabel {
    /// Its name.
    pub name: String,
    /// The app's version, if it belongs to a deploy.
    pub version: Option<String>,
}

impl NewLabel {
    /// The tags that say so.
    pub(super) fn tags(&self) -> impl Iterator<Item = String> {
        let version = self.version.clone();
        let version = version.filter(|v| version_of(split(&self.name).0).as_ref() != Some(v));
        let name = format!("{LABEL}{}", self.name);
        std::iter::once(name).chain(version.map(|v| format!("{DEPLOY}{v}")))
    }
}

/// A snapshot of a target.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Point {
    /// Its id in the repository, 64 hexadecimal digits.
    pub id: String,
    /// When the run began.
    pub time: Timestamp,
    /// Host that made it.
    pub host: String,
    /// What it holds.
    pub paths: Vec<String>,
    /// Files and bytes; 0 in snapshots of an old restic, which does not say.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes that were uploaded for it.
    pub added: u64,
    /// Something could not be read.
    pub partial: bool,
    /// Lifeboat made it.
    pub ours: bool,
    /// Labels that pin it.
    pub labels: Vec<String>,
    /// The app's version that its label was set for, where the label's name does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

impl Point {
    pub(super) fn of(snapshot: &SnapshotFile) -> Self {
        let summary = snapshot.summary.as_ref();
        let tags = || snapshot.tags.iter();
        Self {
            id: snapshot.id.to_hex().to_string(),
            time: snapshot.time.timestamp(),
            host: snapshot.hostname.clone(),
            paths: snapshot.paths.iter().cloned().collect(),
            files: summary.map_or(0, |s| s.total_files_processed),
            bytes: summary.map_or(0, |s| s.total_bytes_processed),
            added: summary.map_or(0, |s| s.data_added_packed),
            partial: tags().any(|t| t == PARTIAL),
            ours: tags().any(|t| t == OURS),
            labels: tags()
                .filter_map(|t| t.strip_prefix(LABEL).map(str::to_owned))
                .collect(),
            version: tags().find_map(|t| t.strip_prefix(DEPLOY).map(str::to_owned)),
        }
    }

    /// The version that one of its labels belongs to.
    pub(super) fn version<'a>(&'a self, label: &'a str) -> Option<&'a str> {
        let named = split(label).0.strip_prefix("before-");
        let named = named.filter(|v| !v.is_empty());
        self.version.as_deref().or(named)
    }

    /// The short id that restic prints.
    pub fn short(&self) -> &str {
        self.id.get(..8).unwrap_or(&self.id)
    }
}

/// Which snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The newest complete one; the newest at all if none is complete.
    Newest,
    /// The newest at or before this time.
    At(Timestamp),
    /// The one that a label pins.
    Label(String),
    /// By the beginning of its id.
    Id(String),
}

/// When the store says that it got each snapshot.
pub(super) fn written(backend: &Backend) -> Result<BTreeMap<String, Millis>, FilesError> {
    let objects = backend.ask(|| backend.store().list(FileType::Snapshot.dirname()))?;
    let id = |key: &str| key.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(objects.iter().map(|o| (id(&o.key), o.modified)).collect())
}

/// All snapshots, by time.
///
/// # Errors
/// [`FilesError::NoRepository`], [`FilesError::Password`], and the store's.
pub fn list(target: &Target) -> Result<Vec<Point>, FilesError> {
    let backend = target.backend(PATIENCE_PERSON);
    let repo = repository::open(&backend, &target.config.password)?;
    Ok(snapshots(&backend, &repo)?.iter().map(Point::of).collect())
}

/// The snapshot that is meant.
///
/// # Errors
/// As [`find`] and [`list`]; [`FilesError::Damaged`] if it is not found and others cannot be read: then nobody knows that there is none.
pub fn locate(target: &Target, goal: &Goal) -> Result<Point, FilesError> {
    let backend = target.backend(PATIENCE_PERSON);
    let repo = repository::open(&backend, &target.config.password)?;
    let (all, damaged) = read(&backend, &repo)?;
    let mut points: Vec<Point> = all.iter().map(Point::of).collect();
    let at = find_among(&backend, &points, damaged.as_ref(), goal)?;
    Ok(points.swap_remove(at))
}

/// [`find`], beside snapshots that cannot be read, or where all are gone.
pub(super) fn find_among(
    backend: &Backend,
    points: &[Point],
    damaged: Option<&Unreadable>,
    goal: &Goal,
) -> Result<usize, FilesError> {
    let found = find(points, goal);
    if let (Err(FilesError::NoPoint(_) | FilesError::Label(_)), None, []) =
        (&found, damaged, points)
        && let Some(key) = backend.ask(|| past::witness(backend.store(), past::Kind::Files))?
    {
        return Err(FilesError::Damaged {
            store: backend.store().display(),
            what: format!("it holds no snapshots any more, but {key} tells of one that was there"),
        });
    }
    match (found, damaged) {
        (
            Err(
                FilesError::NoPoint(why)
                | FilesError::Label(FindError::Unknown { wanted: why, .. }),
            ),
            Some(damaged),
        ) => Err(FilesError::Damaged {
            store: damaged.store.clone(),
            what: format!("{damaged}, and none of the others is the one that is wanted ({why})"),
        }),
        (found, _) => found,
    }
}

/// Snapshots that cannot be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    store: String,
    ids: Vec<String>,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first = self.ids.first().map_or("", String::as_str);
        write!(
            f,
            "{} snapshots cannot be read, the first is {first}",
            self.ids.len()
        )
    }
}

/// Snapshots that can be read, by time. One that cannot does not keep anybody from the others; [`all_snapshots`] is for who must not do
/// without it.
pub(super) fn snapshots(backend: &Backend, repo: &Repo) -> Result<Vec<SnapshotFile>, FilesError> {
    Ok(read(backend, repo)?.0)
}

/// All snapshots, by time.
///
/// # Errors
/// [`FilesError::Damaged`] if one cannot be read.
pub(super) fn all_snapshots(
    backend: &Backend,
    repo: &Repo,
) -> Result<Vec<SnapshotFile>, FilesError> {
    match read(backend, repo)? {
        (all, None) => Ok(all),
        (_, Some(damaged)) => Err(FilesError::Damaged {
            store: backend.store().display(),
            what: damaged.to_string(),
        }),
    }
}

/// What can be read, by time, and what cannot.
pub(super) fn read(
    backend: &Backend,
    repo: &Repo,
) -> Result<(Vec<SnapshotFile>, Option<Unreadable>), FilesError> {
    let failed = |e: Box<RusticError>| FilesError::of("listing the snapshots of", backend, &e);
    let store = backend.store().display();
    let (mut all, mut ids) = (Vec::new(), Vec::new());
    for id in repo.list::<SnapshotId>().map_err(failed)? {
        match repo.get_file::<SnapshotFile>(&id) {
            Ok(mut snapshot) => {
                snapshot.id = id;
                all.push(snapshot);
            }
            Err(error) if backend.is_over() => return Err(failed(error)),
            Err(_) => {
                let id = id.to_hex().to_string();
                tracing::warn!(
                    store,
                    snapshot = id,
                    "this snapshot is damaged; the others are there"
                );
                ids.push(id);
            }
        }
    }
    all.sort_by_key(|s| (s.time.timestamp(), s.id));
    let damaged = (!ids.is_empty()).then_some(Unreadable { store, ids });
    Ok((all, damaged))
}

/// By the rules of all labels; of snapshots with one and the same label the newest.
fn labelled(points: &[Point], wanted: &str) -> Result<usize, FilesError> {
    let mut at: Vec<usize> = Vec::new();
    let mut known: Vec<Named<'_>> = Vec::new();
    for (position, point) in points.iter().enumerate().rev() {
        for label in &point.labels {
            if known.iter().any(|l| l.label == label) {
                continue;
            }
            at.push(position);
            known.push(Named {
                label,
                at: Millis(point.time.as_millisecond()),
                version: point.version(label),
            });
        }
    }
    let now = Millis(Timestamp::now().as_millisecond());
    Ok(at[find_named(&known, wanted, now)?])
}

/// The label, with the first number that no snapshot has if it is taken. `points` are of every store.
pub fn free_label(points: &[Point], label: &str) -> String {
    let used = points.iter().flat_map(|p| &p.labels);
    let last = used
        .map(String::as_str)
        .map(split)
        .filter(|(base, _)| *base == label)
        .map(|(_, number)| number)
        .max();
    numbered(label, last.map_or(1, |n| n.saturating_add(1)))
}

/// The position of the snapshot that is meant. `points` are by time.
///
/// # Errors
/// [`FilesError::NoPoint`], also if an id is ambiguous; [`FilesError::Label`].
pub fn find(points: &[Point], goal: &Goal) -> Result<usize, FilesError> {
    let none = |what: String| FilesError::NoPoint(what);
    match goal {
        Goal::Newest => {
            let complete: Vec<usize> = (0..points.len()).filter(|i| !points[*i].partial).collect();
            let all: Vec<usize> = (0..points.len()).collect();
            let of = if complete.is_empty() { &all } else { &complete };
            let at = newest(of.iter().map(|i| points[*i].time), Timestamp::now());
            at.map(|at| of[at])
                .ok_or_else(|| none("the repository holds no snapshot".into()))
        }
        Goal::At(at) => points
            .iter()
            .rposition(|p| p.time <= *at)
            .ok_or_else(|| none(format!("no snapshot is as old as {at}"))),
        Goal::Label(wanted) => labelled(points, wanted),
        Goal::Id(id) => {
            let mut matching = points
                .iter()
                .enumerate()
                .filter(|(_, p)| p.id.starts_with(id));
            match (matching.next(), matching.next()) {
                (Some((found, _)), None) => Ok(found),
                (None, _) => Err(none(format!(
                    "no snapshot has an id that begins with \"{id}\""
                ))),
                (Some(_), Some(_)) => Err(none(format!("several ids begin with \"{id}\""))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustic_core::StringList;

    /// The version of a deploy is what was said, as for databases; else what the name says.
    #[test]
    fn a_label_keeps_the_version_that_it_was_set_for() {
        for (name, said, found, tags) in [
            ("before-v1", Some("v2"), Some("v2"), 2),
            ("before-v1", Some("v1"), Some("v1"), 1),
            ("before-v1#2", None, Some("v1"), 1),
            ("before-", None, None, 1),
            ("by-hand", Some("v3"), Some("v3"), 2),
            ("by-hand", None, None, 1),
        ] {
            let label = NewLabel {
                name: name.into(),
                version: said.map(str::to_owned),
            };
            let mut list = StringList::default();
            label.tags().for_each(|tag| list.add(tag));
            assert_eq!(list.iter().count(), tags, "{name}");
            let snapshot = SnapshotFile {
                tags: list,
                ..SnapshotFile::default()
            };
            let point = Point::of(&snapshot);
            assert_eq!(point.labels, [name]);
            assert_eq!(point.version(name), found, "{name}");
        }
    }
}
