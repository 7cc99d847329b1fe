//! A drill: some files, chosen by chance, are really restored into scratch space and hashed.
//!
//! The hash of every piece of a file is its name in the repository; a file on disk that has not changed since is compared besides.
//! The result is an object of its own beside the repository: `lifeboat/drills/<time>.json`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use rand::RngExt;
use rustic_core::repofile::Node;
use rustic_core::{IndexedFull, LsOptions, Repository};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::FilesError;
use super::lock::{Lock, Mode};
use super::points::{Goal, Point, find_among, read};
use super::{Backend, PATIENCE_BACKUP, Target, repository};
use crate::drills;
use crate::replica::layout::DRILLS_PREFIX;
use crate::store::{PutMode, Store};

/// Files of a drill.
const SAMPLE_FILES: usize = 100;
/// Their bytes, at most. A file that is larger alone is taken only where there is no other.
const SAMPLE_BYTES: u64 = 256 << 20;

/// What a drill found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drill {
    /// When it began.
    pub time: Timestamp,
    /// Id of the snapshot.
    pub snapshot: String,
    /// When that was made.
    pub snapshot_time: Timestamp,
    /// Files restored.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of those, files that were unchanged on disk and equal to it.
    pub equal_to_disk: u64,
    /// How long it took.
    pub seconds: f64,
    /// What was wrong; empty if nothing.
    pub findings: Vec<String>,
}

impl Drill {
    /// What was wrong first.
    pub fn failure(&self) -> Option<String> {
        self.findings.first().cloned()
    }

    /// Age of the snapshot when the drill began.
    pub fn data_age(&self) -> SignedDuration {
        self.time.duration_since(self.snapshot_time)
    }
}

/// Restores a sample of the newest complete snapshot into `scratch` and records the result.
///
/// # Errors
/// [`FilesError::Damaged`] after recording it, and the rest.
pub fn drill(target: &Target, scratch: &Path) -> Result<Drill, FilesError> {
    let (started, time) = (Instant::now(), Timestamp::now());
    let backend = target.backend(PATIENCE_BACKUP);
    let failed = |e: Box<rustic_core::RusticError>| FilesError::of("drilling", &backend, &e);
    let repo = repository::open(&backend, &target.config.password)?;
    let _lock = Lock::take(&backend, &target.runtime, &repo, Mode::Shared)?;
    let (all, damaged) = read(&backend, &repo)?;
    let points: Vec<Point> = all.iter().map(Point::of).collect();
    let newest = find_among(&backend, &points, damaged.as_ref(), &Goal::Newest)?;
    let mut drill = Drill {
        time,
        snapshot: points[newest].id.clone(),
        snapshot_time: points[newest].time,
        files: 0,
        bytes: 0,
        equal_to_disk: 0,
        seconds: 0.0,
        // It may be a newer one.
        findings: damaged.iter().map(ToString::to_string).collect(),
    };
    let indexed = repo.to_indexed().map_err(failed);
    let chosen = indexed.and_then(|repo| {
        let sample = sample(&backend, &repo, &all[newest])?;
        Ok((repo, sample))
    });
    let (repo, sample) = match chosen {
        Ok(chosen) => chosen,
        // Nothing of it can be restored.
        Err(error @ FilesError::Damaged { .. }) => {
            drill.seconds = started.elapsed().as_secs_f64();
            drill.findings.push(error.to_string());
            record(&backend, &drill)?;
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    refuse_without_room(scratch, &sample)?;
    for (path, node) in &sample {
        let copy = scratch.join("file");
        let result = one(&repo, node, &copy);
        if let Some(failure) = backend.failure().filter(|f| !f.is_not_found()) {
            return Err(FilesError::Store(failure));
        }
        match result {
            Ok(()) => {
                drill.files += 1;
                drill.bytes += node.meta.size;
                match same_as_disk(path, node, &copy) {
                    Some(true) => drill.equal_to_disk += 1,
                    Some(false) => drill.findings.push(format!(
                        "{}: is not what is on disk, though its time and size are",
                        path.display()
                    )),
                    None => {}
                }
            }
            Err(reason) => drill.findings.push(format!("{}: {reason}", path.display())),
        }
    }
    drill.seconds = started.elapsed().as_secs_f64();
    record(&backend, &drill)?;
    if drill.findings.is_empty() {
        return Ok(drill);
    }
    Err(FilesError::Damaged {
        store: backend.store().display(),
        what: drill
            .findings
            .iter()
            .take(5)
            .cloned()
            .collect::<Vec<_>>()
            .join("; "),
    })
}

/// Files by chance, each with the same one.
fn sample<S: IndexedFull>(
    backend: &Backend,
    repo: &Repository<S>,
    snapshot: &rustic_core::repofile::SnapshotFile,
) -> Result<Vec<(PathBuf, Node)>, FilesError> {
    let failed = |e: Box<rustic_core::RusticError>| FilesError::of("drilling", backend, &e);
    let root = repo
        .node_from_snapshot_and_path(snapshot, "")
        .map_err(failed)?;
    let (mut chosen, mut seen) = (Vec::new(), 0_usize);
    let mut smallest_large: Option<(PathBuf, Node)> = None;
    let mut random = rand::rng();
    let options = LsOptions::default();
    for item in repo.ls(&root, &options).map_err(failed)? {
        let (path, node) = item.map_err(failed)?;
        if !node.is_file() {
            continue;
        }
        let item = (Path::new("/").join(path), node);
        let size = |(_, node): &(PathBuf, Node)| node.meta.size;
        if size(&item) > SAMPLE_BYTES {
            let known = smallest_large.as_ref().map(size);
            if known.is_none_or(|known| size(&item) < known) {
                smallest_large = Some(item);
            }
            continue;
        }
        seen += 1;
        if chosen.len() < SAMPLE_FILES {
            chosen.push(item);
        } else {
            let place = random.random_range(0..seen);
            if let Some(slot) = chosen.get_mut(place) {
                *slot = item;
            }
        }
    }
    let mut bytes = 0;
    chosen.retain(|(_, node): &(PathBuf, Node)| {
        let fits = bytes + node.meta.size <= SAMPLE_BYTES;
        bytes += if fits { node.meta.size } else { 0 };
        fits
    });
    if chosen.is_empty() {
        chosen.extend(smallest_large);
    }
    Ok(chosen)
}

/// The disk of the app is not filled for a drill; one file is there at a time.
fn refuse_without_room(scratch: &Path, sample: &[(PathBuf, Node)]) -> Result<(), FilesError> {
    let need = sample.iter().map(|(_, node)| node.meta.size).max();
    let volume = rustix::fs::statvfs(scratch).map_err(|e| FilesError::io(scratch, e.into()))?;
    let free = volume.f_bavail.saturating_mul(volume.f_frsize);
    match need.is_some_and(|need| need > free / 2) {
        true => Err(FilesError::io(scratch, io::ErrorKind::StorageFull.into())),
        false => Ok(()),
    }
}

/// Restores one file and hashes what is then on disk, piece by piece.
fn one<S: IndexedFull>(repo: &Repository<S>, node: &Node, copy: &Path) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let mut file = File::create(copy).map_err(|e| text(&e))?;
    repo.dump(node, &mut file)
        .map_err(|e| e.display_log().trim_start_matches("Error: ").to_owned())?;
    let mut file = File::open(copy).map_err(|e| text(&e))?;
    let mut total = 0;
    for id in node.content.iter().flatten() {
        let entry = repo.get_index_entry(id).map_err(|e| e.display_log())?;
        let length = u64::from(entry.location.data_length());
        let mut piece = Vec::new();
        (&mut file)
            .take(length)
            .read_to_end(&mut piece)
            .map_err(|e| text(&e))?;
        if *id.to_hex() != *hex::encode(Sha256::digest(&piece)) {
            return Err(format!(
                "the piece at byte {total} has another hash than its name"
            ));
        }
        total += length;
    }
    let size = file.metadata().map_err(|e| text(&e))?.len();
    if size != total || size != node.meta.size {
        return Err(format!(
            "{size} bytes were restored instead of {}",
            node.meta.size
        ));
    }
    Ok(())
}

/// `None` if the file on disk is another one by now.
fn same_as_disk(path: &Path, node: &Node, copy: &Path) -> Option<bool> {
    let now = || {
        let m = path
            .symlink_metadata()
            .ok()
            .filter(std::fs::Metadata::is_file)?;
        let modified = Timestamp::try_from(m.modified().ok()?).ok();
        (m.len() == node.meta.size && modified == node.meta.mtime).then_some(())
    };
    now()?;
    let same = equal(path, copy).ok()?;
    // It may have been written to while it was read.
    now()?;
    Some(same)
}

fn equal(one: &Path, other: &Path) -> io::Result<bool> {
    let hash = |path: &Path| {
        let mut hasher = Sha256::new();
        let mut file = File::open(path)?;
        let mut piece = vec![0; 1 << 16];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok::<_, io::Error>(hasher.finalize()),
                n => hasher.update(&piece[..n]),
            }
        }
    };
    Ok(hash(one)? == hash(other)?)
}

fn record(backend: &Backend, drill: &Drill) -> Result<(), FilesError> {
    let stamp = drill.time.strftime("%Y%m%dT%H%M%S%.3fZ");
    let body = serde_json::to_vec_pretty(drill).unwrap_or_default();
    let (key, body) = (
        format!("{DRILLS_PREFIX}/{stamp}.json"),
        bytes::Bytes::from(body),
    );
    backend.ask(|| {
        backend
            .store()
            .put(&key, body.clone(), PutMode::Overwrite, None)
    })?;
    Ok(())
}

/// What the newest drills found, newest first. A record that cannot be read is left out.
///
/// # Errors
/// The store's.
pub async fn drills(store: &Store, most: usize) -> Result<Vec<Drill>, FilesError> {
    let mut found = Vec::new();
    for object in store.list(DRILLS_PREFIX).await?.iter().rev().take(most) {
        match store.get(&object.key).await {
            Ok(body) => found.extend(serde_json::from_slice(&body).ok()),
            // Deleted since the listing.
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(found)
}

/// Id of the newest of these snapshots that a drill has found well.
pub(super) fn newest_proven(
    backend: &Backend,
    snapshots: &[Point],
) -> Result<Option<String>, FilesError> {
    let exists = |id: &str| snapshots.iter().any(|p| p.id == id);
    let found = backend.ask(|| drills::newest(backend.store(), proves, exists))?;
    Ok(found)
}

/// The snapshot that a result proves.
fn proves(record: &[u8]) -> Option<String> {
    let drill: Drill = serde_json::from_slice(record).ok()?;
    drill.findings.is_empty().then_some(drill.snapshot)
}
