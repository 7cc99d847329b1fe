//! From a replica to a database file: plan, fetch, apply, verify, swap.
//!
//! What a restore promises: the file that appears equals the database at the restore point, byte for byte, or nothing appears. What it
//! does **not** promise: that a point captured by Litestream is checked by a database checksum; such files carry none.

pub mod apply;
pub mod check;
pub mod edit;
mod error;
pub mod follow;
mod last_good;
pub mod plan;
mod proof;
mod sound;
pub mod swap;
pub mod v03;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ltx;
use crate::replica::layout::Layout;
use crate::replica::past;
use crate::replica::upload::Replica;
use crate::store::{Class, Store};
use crate::types::{DbChecksum, Entry, Millis, PageSize, Txid};
use edit::{Edit, Edited, Queue};
pub(crate) use error::GONE;
pub use error::RestoreError;
pub use last_good::{Tried, last_good};
use plan::{Catalog, Goal, Plan, PlanError, Point};
pub use sound::sqlite_check;
use swap::{Claim, SwapError};
use tempfile::NamedTempFile;

/// How much is checked beyond checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Checksums only.
    None,
    /// SQLite's quick_check.
    Quick,
    /// SQLite's integrity_check.
    Integrity,
    /// SQLite's integrity_check and foreign_key_check.
    Full,
}

/// Where the database goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A path where nothing is.
    New(PathBuf),
    /// A database that nobody has open; the old one is kept.
    InPlace(PathBuf),
    /// Made beside this path, checked, and dropped.
    Nowhere(PathBuf),
}

impl Output {
    /// The path.
    pub fn path(&self) -> &Path {
        match self {
            Self::New(path) | Self::InPlace(path) | Self::Nowhere(path) => path,
        }
    }
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was read.
    pub plan: Planned,
    /// Database bytes written.
    pub bytes: u64,
    /// Checksum of the restored file.
    pub checksum: DbChecksum,
    /// The replica knew the checksum, and it is the same.
    pub checksum_known: bool,
    /// What was changed after that.
    pub edited: Edited,
    /// Where the old database is kept.
    pub kept: Option<PathBuf>,
    /// How long it took.
    pub took: Duration,
}

/// What a restore reads.
#[derive(Clone, Debug)]
pub enum Planned {
    /// LTX files of Lifeboat or Litestream 0.5.
    Ltx(Plan),
    /// Snapshot and WALs of Litestream 0.3.
    V03(v03::Plan),
}

impl Planned {
    /// Time of the point.
    pub fn as_of(&self) -> Millis {
        match self {
            Self::Ltx(plan) => plan.as_of,
            Self::V03(plan) => plan.as_of,
        }
    }

    /// The TXID that it reaches; Litestream 0.3 has none.
    pub fn txid(&self) -> Option<Txid> {
        match self {
            Self::Ltx(plan) => Some(plan.reaches),
            Self::V03(_) => None,
        }
    }

    /// The point in words.
    pub fn point(&self) -> String {
        match self {
            Self::Ltx(plan) => format!("TXID {} of {}", plan.reaches, plan.as_of),
            Self::V03(plan) => format!(
                "{} in generation {} of litestream 0.3",
                plan.as_of, plan.generation
            ),
        }
    }

    /// Every object that is read: its name and its bytes.
    pub fn objects(&self) -> Vec<(String, u64)> {
        match self {
            Self::Ltx(plan) => plan
                .files
                .iter()
                .map(|f| (f.span.to_string(), f.size))
                .collect(),
            Self::V03(plan) => plan.objects().map(|o| (o.key.clone(), o.size)).collect(),
        }
    }
}

/// Lists a replica for a goal. Listings of S3, Azure and Google tell when an object arrived, not when its newest change was captured;
/// for a goal in time the capture times around it are read from the files' headers, by bisection.
pub async fn catalog(store: &Store, goal: Goal) -> Result<Catalog, RestoreError> {
    let mut entries: Vec<Entry> = Replica::list(store).await?.into_values().collect();
    if let (Goal::At(at), false) = (goal, store.kind() == crate::store::Kind::File) {
        entries.sort_unstable_by_key(|e| (e.span.max(), e.span.level()));
        let (mut low, mut high) = (0, entries.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let header = read_header(store, &entries[middle]).await?;
            entries[middle].created = header.timestamp;
            if header.timestamp <= at {
                low = middle + 1
            } else {
                high = middle
            }
        }
        for entry in &mut entries[..low] {
            entry.created = entry.created.min(at);
        }
        for entry in &mut entries[low..] {
            entry.created = entry.created.max(Millis(at.0.saturating_add(1)));
        }
    }
    Ok(Catalog::new(entries))
}

/// The header of a file in a store.
pub async fn read_header(store: &Store, entry: &Entry) -> Result<ltx::Header, RestoreError> {
    let key = Layout::for_kind(store.kind()).key(entry.span);
    let bytes = store.get_range(&key, 0..ltx::Header::LEN as u64).await?;
    ltx::Header::decode(&bytes).map_err(|source| RestoreError::Corrupt {
        file: format!("{}/{key}", store.display()),
        source: source.into(),
        instead: None,
    })
}

/// Opens the files of a plan for a blocking thread, each fetched ahead.
pub fn opener(
    store: &Store,
) -> impl FnMut(&Entry) -> std::io::Result<Box<dyn std::io::Read + Send>> + Send + use<> {
    let store = store.clone();
    let runtime = tokio::runtime::Handle::current();
    let layout = Layout::for_kind(store.kind());
    move |entry| {
        let key = layout.key(entry.span);
        let reader = crate::store::reader(&store, &key, entry.size, &runtime);
        Ok(Box::new(std::io::BufReader::with_capacity(
            64 << 10,
            reader,
        )))
    }
}

/// Restores one point of a replica. `progress` is called with bytes of pages written.
pub async fn restore(
    store: &Store,
    goal: Goal,
    output: Output,
    verify: Verify,
    now: Millis,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Report, RestoreError> {
    let edit = Edit {
        queue: Queue::Keep,
        script: None,
    };
    restore_edited(store, goal, output, verify, edit, now, progress).await
}

/// The same, changing the copy after it was checked and before it appears; what was changed is checked again.
pub async fn restore_edited(
    store: &Store,
    goal: Goal,
    output: Output,
    verify: Verify,
    edit: Edit,
    now: Millis,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Report, RestoreError> {
    let ready = prepare(store, goal, output, verify, edit, progress).await?;
    tokio::task::spawn_blocking(move || ready.put(now))
        .await
        .map_err(std::io::Error::other)?
}

/// Everything but the swap: the restored database lies beside its place, read, proven and edited. Dropping it changes nothing.
///
/// Several databases that belong together are all made ready before the first is put in place: what is damaged, too large or in use then
/// stops all of them while nothing has changed.
pub async fn prepare(
    store: &Store,
    goal: Goal,
    output: Output,
    verify: Verify,
    edit: Edit,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Ready, RestoreError> {
    let begun = Instant::now();
    let path = output.path().to_owned();
    if matches!(output, Output::New(_)) && path.exists() {
        return Err(SwapError::Exists(path).into());
    }
    let progress: Progress = Arc::new(progress);
    let (mut planned, mut catalog) = planned(store, goal).await?;
    for _ in 1..PLANS_MAX {
        let how = (&output, verify, &edit);
        let result = attempt(store, &planned, catalog, how, &progress).await;
        let Err(RestoreError::Store(error)) = result else {
            return Ok(Ready::new(result?, output, planned, begun));
        };
        if error.class() != Class::NotFound {
            return Err(error.into());
        }
        // A running Lifeboat may have pruned what it had rolled up meanwhile: the point is still there, in other objects.
        let again = self::planned(store, goal).await?;
        if again.0.objects() == planned.objects() {
            return Err(error.into());
        }
        tracing::info!(%error, "the replica changed meanwhile; planning again");
        (planned, catalog) = again;
    }
    let how = (&output, verify, &edit);
    let draft = attempt(store, &planned, catalog, how, &progress).await?;
    Ok(Ready::new(draft, output, planned, begun))
}

/// Plans of one restore: a replica changes about once in half a minute.
const PLANS_MAX: usize = 4;

type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// A restored file beside its place, proven.
struct Draft {
    file: NamedTempFile,
    edited: Edited,
    checksum: DbChecksum,
    checksum_known: bool,
    bytes: u64,
}

/// A restore that only has to be put in its place; see [`prepare`].
pub struct Ready {
    draft: Draft,
    output: Output,
    plan: Planned,
    claim: Option<Claim>,
    begun: Instant,
}

impl Ready {
    fn new(draft: Draft, output: Output, plan: Planned, begun: Instant) -> Self {
        Self {
            draft,
            output,
            plan,
            claim: None,
            begun,
        }
    }

    /// Takes the proof that nobody has the database open that will be replaced, holds it until [`Ready::put`], and leaves nothing to do for that but
    /// to give names. Blocks.
    ///
    /// # Errors
    /// [`SwapError::InUse`], what keeps its WAL from being brought home, and what keeps the copy from the disk. Nothing was changed.
    pub fn claim(&mut self) -> Result<(), RestoreError> {
        match (&self.output, &self.claim) {
            (Output::Nowhere(_), _) => return Ok(()),
            (Output::InPlace(path), None) => self.claim = swap::claim(path)?,
            _ => {}
        }
        Ok(swap::settle(&self.draft.file, self.output.path())?)
    }

    /// Puts it in place. Blocks.
    ///
    /// # Errors
    /// [`RestoreError::Swap`].
    pub fn put(self, now: Millis) -> Result<Report, RestoreError> {
        let file = self.draft.file;
        let kept = match (&self.output, self.claim) {
            (Output::New(path), _) => swap::put_new(file, path, now).map(|()| None),
            (Output::InPlace(path), Some(claim)) => {
                swap::put_claimed(file, path, claim, now).map(Some)
            }
            (Output::InPlace(path), None) => swap::put_in_place(file, path, now),
            (Output::Nowhere(_), _) => Ok(None),
        }?;
        Ok(Report {
            plan: self.plan,
            bytes: self.draft.bytes,
            checksum: self.draft.checksum,
            checksum_known: self.draft.checksum_known,
            edited: self.draft.edited,
            kept,
            took: self.begun.elapsed(),
        })
    }
}

async fn attempt(
    store: &Store,
    planned: &Planned,
    catalog: Catalog,
    (output, verify, edit): (&Output, Verify, &Edit),
    progress: &Progress,
) -> Result<Draft, RestoreError> {
    let need = need(store, planned).await?;
    let temporary = swap::temporary(output.path(), need)?;
    let fill = filler(store, planned.clone(), catalog, output.path());
    let (edit, progress) = (edit.clone(), Arc::clone(progress));
    let work = move || -> Result<_, RestoreError> {
        let filled = fill(temporary.as_file(), &*progress)?;
        let found = apply::checksum(temporary.as_file(), filled.page_size, filled.commit)?;
        if let Some(expected) = filled.expected.filter(|e| *e != found) {
            return Err(RestoreError::Checksum {
                found: found.get(),
                expected: expected.get(),
            });
        }
        sqlite_check(temporary.path(), verify)?;
        let edited = edit.apply(temporary.path())?;
        if edited != Edited::default() {
            sqlite_check(temporary.path(), verify)?;
        }
        let bytes = temporary.as_file().metadata()?.len();
        Ok(Draft {
            file: temporary,
            edited,
            checksum: found,
            checksum_known: filled.expected.is_some(),
            bytes,
        })
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(std::io::Error::other)?
}

/// Plans from LTX files; where there are none for the goal, from what Litestream 0.3 left in the same place.
pub async fn planned(store: &Store, goal: Goal) -> Result<(Planned, Catalog), RestoreError> {
    let catalog = catalog(store, goal).await?;
    let error = match plan::plan(&catalog, goal) {
        Ok(plan) => {
            return match catalog.hole(&plan, goal) {
                Some(hole) => Err(RestoreError::Hole(hole)),
                None => Ok((Planned::Ltx(dated(store, plan).await?), catalog)),
            };
        }
        Err(error) => error,
    };
    let old = match error {
        PlanError::Empty | PlanError::NoBase | PlanError::BeforeFirst { .. } => {
            v03::list(store).await?
        }
        PlanError::NoSuchPoint { .. } => Vec::new(),
    };
    if old.is_empty() {
        let is_empty = error == PlanError::Empty;
        let witness = match is_empty {
            true => past::witness(store, past::Kind::Sqlite).await?,
            false => None,
        };
        return Err(match witness {
            Some(key) => RestoreError::Lost(key),
            None => error.into(),
        });
    }
    let at = match goal {
        Goal::Newest => None,
        Goal::At(at) => Some(at),
        Goal::Txid(_) => return Err(v03::Error::NoTxids.into()),
    };
    Ok((Planned::V03(v03::plan(old, at)?), catalog))
}

/// The time at which its last change was captured. A listing of S3, Azure or Google only knows when an object arrived, which after an outage
/// is much later, and of two stores says nothing about which one reaches further.
async fn dated(store: &Store, mut plan: Plan) -> Result<Plan, RestoreError> {
    if let Some(last) = plan.files.last() {
        plan.as_of = read_header(store, last).await?.timestamp;
    }
    Ok(plan)
}

/// Bytes that the restored file takes while it is made, as far as its base and its last file tell; for Litestream 0.3, whose snapshots do not tell, at least so many.
pub async fn need(store: &Store, planned: &Planned) -> Result<u64, RestoreError> {
    Ok(match planned {
        Planned::Ltx(plan) => {
            let mut most = 0;
            let last = plan.files.len() - 1;
            // A database that was made smaller since is as large as its base at first.
            for entry in std::iter::once(&plan.files[last]).chain(plan.files[..last].first()) {
                let header = read_header(store, entry).await?;
                most = most.max(u64::from(header.commit) * u64::from(header.page_size.get()));
            }
            most
        }
        Planned::V03(plan) => plan.snapshot.size,
    })
}

/// What was written to an empty file.
struct Filled {
    page_size: PageSize,
    commit: u32,
    expected: Option<DbChecksum>,
}

/// The blocking part: reads what was planned and writes the database.
fn filler(
    store: &Store,
    planned: Planned,
    catalog: Catalog,
    path: &Path,
) -> impl FnOnce(&std::fs::File, &dyn Fn(u64)) -> Result<Filled, RestoreError> + Send + use<> {
    let (store, runtime) = (store.clone(), tokio::runtime::Handle::current());
    let mut open = opener(&store);
    let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
    move |out, progress| match planned {
        Planned::Ltx(plan) => {
            let applied = apply::to_file(&plan.files, &mut open, out, progress).map_err(|e| {
                // A store that fails in the middle is no damage.
                if e.source.is_corrupt() {
                    RestoreError::Corrupt {
                        file: e.entry.span.to_string(),
                        source: e.source,
                        instead: without(&catalog, e.entry),
                    }
                } else if let Some(error) = e.source.store_error() {
                    RestoreError::Store(error.clone())
                } else {
                    RestoreError::Local(std::io::Error::other(e))
                }
            })?;
            Ok(Filled {
                page_size: applied.last.page_size,
                commit: applied.last.commit,
                expected: applied.expected,
            })
        }
        Planned::V03(plan) => {
            let open = |o: &v03::Object| Ok(crate::store::reader(&store, &o.key, o.size, &runtime));
            let folder = if folder.as_os_str().is_empty() {
                PathBuf::from(".")
            } else {
                folder
            };
            let scratch = || tempfile::tempfile_in(&folder);
            let applied = v03::apply(&plan, open, scratch, out, progress)?;
            Ok(Filled {
                page_size: applied.page_size,
                commit: applied.commit,
                expected: None,
            })
        }
    }
}

fn without(catalog: &Catalog, entry: Entry) -> Option<Point> {
    catalog
        .without(&BTreeSet::from([entry.span]))
        .points()
        .last()
        .copied()
}
