//! A copy that is kept current from the store: a warm standby, or a database for readers on another host.
//!
//! Invariants
//! - What is applied at once is one transaction of SQLite's: readers of the copy see the database as it was at one TXID or at a later one,
//!   never something between.
//! - Nothing is committed whose checksum is not the one that the replica recorded. (Litestream records none.)
//! - What the copy is, and what it is about to become, is on disk before a commit: after a crash it is one of the two, and proven so.
//! - A copy that somebody else changed is refused, not overwritten. The replica is only read.
//!
//! In the copy, the change counters of page 1 (bytes 24 to 27 and 92 to 99) are SQLite's own; everything else is the replica's, byte for byte.

mod error;
mod pages;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

pub use error::FollowError;
use pages::{Pages, masked, whole};

use super::plan::{Catalog, Goal, plan};
use super::{Output, RestoreError, Verify, apply, catalog, opener, restore};
use crate::replica::layout::Layout;
use crate::store::{Store, StoreError};
use crate::types::{
    DbChecksum, Entry, Level, Millis, PageSize, Pgno, RollingChecksum, Span, Txid, page_hash,
};

/// Readers may hold the copy up this long.
const BUSY: Duration = Duration::from_secs(30);
/// The next capture is asked for by its name. Where it is not there, a listing tells whether the replica went on in other objects; it costs more.
const LIST_EVERY: u32 = 60;

/// `current-at` on disk is at most so much older than the truth.
const NOTE_EVERY_MS: i64 = 10_000;

/// The database at one TXID, as far as it can be proven.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Position {
    txid: String,
    as_of: i64,
    checksum: u64,
    /// Hash of page 1 as the replica has it.
    page1: u64,
    /// Hash of page 1 without the counters that SQLite changes.
    page1_masked: u64,
}

/// What is on disk beside the copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct State {
    format: u32,
    store: String,
    /// When the copy was last known to be as new as the replica, in milliseconds of Unix time: how far behind it may be.
    current_at: i64,
    at: Position,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Position>,
}

/// Where a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Position.
    pub txid: Txid,
    /// When it was captured.
    pub as_of: Millis,
}

/// A copy that is followed.
pub struct Follower {
    path: PathBuf,
    conn: Connection,
    page_size: PageSize,
    sum: RollingChecksum,
    state: State,
    at: At,
    polls: u32,
    noted: bool,
    /// Held for as long as this lives.
    _lock: File,
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.lifeboat-follow{suffix}"))
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> FollowError + '_ {
    move |source| FollowError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Opens the copy at `path`, or restores the newest point there.
///
/// # Errors
/// As [`FollowError`].
pub async fn open(store: &Store, path: &Path, now: Millis) -> Result<Follower, FollowError> {
    let lock_path = beside(path, ".lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(io_error(&lock_path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(FollowError::Running(path.to_owned())),
        Err(e) => return Err(io_error(&lock_path)(e.into())),
    }
    if !path.exists() {
        seed(store, path, now).await?;
    }
    let (path, ours) = (path.to_owned(), store.display());
    blocking(move || Follower::resume(path, ours, lock)).await?
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FollowError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| RestoreError::Local(io::Error::other(e)).into())
}

/// The first copy appears together with its state: first the one, then the other.
async fn seed(store: &Store, path: &Path, now: Millis) -> Result<(), FollowError> {
    // SQLite would play a stale WAL onto the new copy.
    for suffix in ["-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        if Path::new(&name).exists() {
            return Err(FollowError::NotOurs(name.into()));
        }
    }
    let draft = beside(path, ".new");
    match fs::remove_file(&draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error(&draft)(e)),
        _ => {}
    }
    let output = Output::New(draft.clone());
    let report = restore(store, Goal::Newest, output, Verify::Quick, now, |_| {}).await?;
    let Some(txid) = report.plan.txid() else {
        return Err(RestoreError::V03(super::v03::Error::NoTxids).into());
    };
    let mut page = vec![0; 100];
    let file = File::open(&draft).map_err(io_error(&draft))?;
    let read = |page: &mut [u8]| std::os::unix::fs::FileExt::read_exact_at(&file, page, 0);
    read(&mut page).map_err(io_error(&draft))?;
    let size = page_size(&page).ok_or_else(|| FollowError::NotOurs(path.to_owned()))?;
    page.resize(size.bytes(), 0);
    read(&mut page).map_err(io_error(&draft))?;
    let state = State {
        format: 1,
        store: store.display(),
        current_at: now.0,
        at: Position {
            txid: txid.to_string(),
            as_of: report.plan.as_of().0,
            checksum: report.checksum.get(),
            page1: page_hash(Pgno::FIRST, &page),
            page1_masked: masked(&page),
        },
        next: None,
    };
    write_state(path, &state)?;
    fs::rename(&draft, path).map_err(io_error(path))
}

/// From a database's header.
fn page_size(header: &[u8]) -> Option<PageSize> {
    match u16::from_be_bytes([header[16], header[17]]) {
        1 => PageSize::new(65_536),
        n => PageSize::new(u32::from(n)),
    }
}

fn write_state(path: &Path, state: &State) -> Result<(), FollowError> {
    let (place, draft) = (beside(path, ".json"), beside(path, ".json.new"));
    let write = || -> io::Result<()> {
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec_pretty(state)?)?;
        file.sync_all()?;
        fs::rename(&draft, &place)
    };
    write().map_err(io_error(&place))
}

impl Follower {
    /// Where the copy is.
    pub fn at(&self) -> At {
        self.at
    }

    /// When the copy was last known to be as new as the replica.
    pub fn current_at(&self) -> Millis {
        Millis(self.state.current_at)
    }

    /// It is so now. Written down now and then, for whoever watches.
    ///
    /// # Errors
    /// The file system's.
    pub fn is_current(&mut self, now: Millis) -> Result<(), FollowError> {
        let since = now.since(self.current_at());
        self.state.current_at = now.0;
        if since < NOTE_EVERY_MS && self.noted {
            return Ok(());
        }
        self.noted = true;
        write_state(&self.path, &self.state)
    }

    fn resume(path: PathBuf, ours: String, lock: File) -> Result<Self, FollowError> {
        let text = match fs::read(beside(&path, ".json")) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(FollowError::NotOurs(path));
            }
            Err(e) => return Err(io_error(&path)(e)),
        };
        let state: Option<State> = serde_json::from_slice(&text).ok();
        let Some(mut state) = state.filter(|s| s.format == 1) else {
            return Err(FollowError::NotOurs(path));
        };
        if state.store != ours {
            return Err(FollowError::OtherReplica {
                path,
                theirs: state.store,
                ours,
            });
        }
        let sqlite = |source| FollowError::Sqlite {
            path: path.clone(),
            source,
        };
        let conn = connect(&path).map_err(sqlite)?;
        let size: u32 = conn
            .pragma_query_value(None, "page_size", |r| r.get(0))
            .map_err(sqlite)?;
        let page_size = PageSize::new(size).ok_or_else(|| FollowError::NotOurs(path.clone()))?;
        let (rest, first) = whole(&conn, page_size).map_err(sqlite)?;
        let is = |p: &Position| {
            let mut sum = rest;
            sum.add(p.page1);
            let same = p.page1_masked == first && sum.finish().get() == p.checksum;
            same.then_some(sum)
        };
        let next = state.next.take();
        let found = match is(&state.at) {
            Some(sum) => Some((sum, state.at.clone())),
            None => next.and_then(|n| Some((is(&n)?, n))),
        };
        let Some((sum, position)) = found else {
            return Err(FollowError::Changed(path));
        };
        let Some(at) = parse(&position) else {
            return Err(FollowError::NotOurs(path));
        };
        state.at = position;
        Ok(Self {
            path,
            conn,
            page_size,
            sum,
            state,
            at,
            polls: LIST_EVERY,
            noted: false,
            _lock: lock,
        })
    }

    /// Applies what comes next, if there is something. `false`: the copy is as new as the replica.
    ///
    /// # Errors
    /// As [`FollowError`]; the copy is where it was, and this can be called again if [`FollowError::may_pass`].
    pub async fn step(mut self, store: &Store) -> (Self, Result<bool, FollowError>) {
        match self.pending(store).await {
            Err(error) => (self, Err(error)),
            Ok((files, polls)) => {
                self.polls = polls;
                match files.is_empty() {
                    true => (self, Ok(false)),
                    false => self.advance(store, files).await,
                }
            }
        }
    }

    /// What to apply in one transaction, and how many polls are made since the last listing.
    async fn pending(&self, store: &Store) -> Result<(Vec<Entry>, u32), FollowError> {
        let next = self.at.txid.next();
        if let Some(span) = Span::new(Level::CAPTURE, next, next) {
            let key = Layout::for_kind(store.kind()).key(span);
            match store.head(&key).await {
                Ok(object) => {
                    let entry = Entry {
                        span,
                        size: object.size,
                        created: object.modified,
                    };
                    return Ok((vec![entry], self.polls));
                }
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(RestoreError::from(e).into()),
            }
        }
        if self.polls < LIST_EVERY {
            return Ok((Vec::new(), self.polls + 1));
        }
        let catalog = catalog(store, Goal::Newest).await?;
        let files = self.listed(&catalog)?;
        // What was rolled up once may go on rolled up: only a listing without anything new says that the copy is current.
        let polls = if files.is_empty() { 0 } else { LIST_EVERY };
        Ok((files, polls))
    }

    fn listed(&self, catalog: &Catalog) -> Result<Vec<Entry>, FollowError> {
        let Some(newest) = catalog.points().last().copied() else {
            return Ok(Vec::new());
        };
        if newest.txid < self.at.txid {
            return Err(FollowError::Behind {
                path: self.path.clone(),
                at: self.at.txid,
                ends: newest.txid,
            });
        }
        if newest.txid == self.at.txid {
            return Ok(Vec::new());
        }
        let next = self.at.txid.next();
        let continues =
            |e: &&Entry| !e.span.is_base() && e.span.min() <= next && e.span.max() >= next;
        let best = catalog.entries().iter().filter(continues);
        if let Some(entry) = best.max_by_key(|e| e.span.max()) {
            return Ok(vec![*entry]);
        }
        // What was between was rolled up and pruned: everything, again in one transaction.
        let plan = plan(catalog, Goal::Newest).map_err(RestoreError::from)?;
        Ok(plan.files)
    }

    async fn advance(self, store: &Store, files: Vec<Entry>) -> (Self, Result<bool, FollowError>) {
        let open = opener(store);
        let mut this = self;
        let task = tokio::task::spawn_blocking(move || {
            let result = this.transaction(&files, open);
            (this, result)
        });
        match task.await {
            Ok((this, result)) => (this, result.map(|()| true)),
            // The thread cannot panic by itself; what it held is gone then.
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }

    fn transaction(
        &mut self,
        files: &[Entry],
        open: impl FnMut(&Entry) -> io::Result<Box<dyn io::Read + Send>>,
    ) -> Result<(), FollowError> {
        let sqlite = |path: &Path| {
            let path = path.to_owned();
            move |source| FollowError::Sqlite { path, source }
        };
        let path = self.path.clone();
        self.conn
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(sqlite(&path))?;
        let result = self
            .apply(files, open)
            .and_then(|(position, sum, schema_changed)| {
                self.state.next = Some(position.clone());
                write_state(&path, &self.state)?;
                self.conn.execute_batch("COMMIT").map_err(sqlite(&path))?;
                Ok((position, sum, schema_changed))
            });
        match result {
            Ok((position, sum, schema_changed)) => {
                self.at = parse(&position).unwrap_or(self.at);
                self.sum = sum;
                self.state.at = position;
                self.state.next = None;
                if schema_changed {
                    // Pages were changed under this connection's own idea of the schema: it must not go on with it.
                    self.conn = connect(&path).map_err(sqlite(&path))?;
                }
                write_state(&path, &self.state)
            }
            Err(error) => {
                if !self.conn.is_autocommit() {
                    // Closing does it, too.
                    let _ = self.conn.execute_batch("ROLLBACK");
                }
                self.state.next = None;
                Err(error)
            }
        }
    }

    /// Writes pages in an open transaction.
    fn apply(
        &self,
        files: &[Entry],
        open: impl FnMut(&Entry) -> io::Result<Box<dyn io::Read + Send>>,
    ) -> Result<(Position, RollingChecksum, bool), FollowError> {
        let path = &self.path;
        let sqlite = |source| FollowError::Sqlite {
            path: path.clone(),
            source,
        };
        let mut pages = Pages::begin(self).map_err(sqlite)?;
        let mut other_size = None;
        let pages_cell = std::cell::RefCell::new(&mut pages);
        let applied = apply::each(
            files,
            open,
            |header| {
                if header.page_size != self.page_size {
                    other_size = Some(header.page_size);
                    return Err(io::Error::other("another page size"));
                }
                let mut pages = pages_cell.borrow_mut();
                pages.cut().map_err(io::Error::other)?;
                pages.commit = header.commit;
                Ok(())
            },
            |page, data| {
                pages_cell
                    .borrow_mut()
                    .put(page, data)
                    .map_err(io::Error::other)
            },
        );
        if let Some(theirs) = other_size {
            return Err(FollowError::PageSize {
                path: path.clone(),
                theirs: theirs.get(),
                ours: self.page_size.get(),
            });
        }
        let applied = applied.map_err(|e| match e.source.store_error() {
            Some(error) => RestoreError::Store(StoreError::clone(error)),
            None if e.source.is_corrupt() => RestoreError::Corrupt {
                file: e.entry.span.to_string(),
                source: e.source,
                instead: None,
            },
            None => RestoreError::Local(io::Error::other(e)),
        })?;
        pages.finish().map_err(sqlite)?;
        let found = pages.sum.finish();
        let txid = applied.last.max;
        let expected: Option<DbChecksum> = applied.expected;
        if expected.is_some_and(|e| e != found) {
            return Err(FollowError::Checksum {
                path: path.clone(),
                txid,
            });
        }
        let position = Position {
            txid: txid.to_string(),
            as_of: applied.last.timestamp.0,
            checksum: found.get(),
            page1: pages.page1,
            page1_masked: pages.page1_masked,
        };
        Ok((position, pages.sum, pages.schema_changed))
    }
}

fn parse(position: &Position) -> Option<At> {
    let txid = u64::from_str_radix(&position.txid, 16)
        .ok()
        .and_then(Txid::new)?;
    Some(At {
        txid,
        as_of: Millis(position.as_of),
    })
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(BUSY)?;
    // What the state says after a commit must outlive the power.
    conn.pragma_update(None, "synchronous", "full")?;
    Ok(conn)
}
