//! The store layer, as rustic_core wants it: blocking calls onto the runtime, from threads that are not its own.
//!
//! - Every request goes through [`Store`]: one credential chain, one set of counters. What can succeed later is asked for again
//!   for a while, because a backup runs for hours and an outage takes minutes.
//! - The first failure that patience did not mend is kept: rustic_core wraps it, or panics over it, and people need the plain one.
//! - After [`Backend::stop`] every request fails, which ends a run that cannot be interrupted otherwise.
//! - The same once the lock that it works under may look stale to others: after that they may be at work, whatever this process missed in
//!   between, stopped or asleep with its host.
//! - While snapshots are held, none is written: the archiver writes one itself, before anybody looked at what it holds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustic_core::{
    BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;

use super::error::FilesError;
use crate::store::{PutMode, Store, StoreError};

/// Between two tries, at most.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Before the second try; doubles from there.
const PAUSE_FIRST: Duration = Duration::from_millis(250);

/// A restic repository in a [`Store`], as [`ReadBackend`] and [`WriteBackend`]. Must not be called on an async worker.
#[derive(Clone)]
pub struct Backend {
    store: Store,
    runtime: Handle,
    patience: Duration,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    stopped: AtomicBool,
    hold_snapshots: AtomicBool,
    /// When the lock may look stale, in milliseconds of [`awake_or_asleep`]; 0 without one.
    lock_good_until: AtomicU64,
    lock_lost: AtomicBool,
    /// Parts of packs that were read well.
    parts: AtomicU64,
    /// A pack was written.
    uploaded: AtomicBool,
    failed: Mutex<Option<StoreError>>,
    snapshot: Mutex<Option<Id>>,
}

impl Backend {
    /// `patience` bounds how long one request is tried.
    pub fn new(store: Store, runtime: Handle, patience: Duration) -> Self {
        Self {
            store,
            runtime,
            patience,
            state: Arc::default(),
        }
    }

    /// The store underneath.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Makes every further request fail.
    pub fn stop(&self) {
        self.state.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether requests fail from now on, by [`Backend::stop`] or by the store.
    pub fn is_over(&self) -> bool {
        self.state.stopped.load(Ordering::Relaxed)
            || self.lock_is_lost()
            || self.failure().is_some()
    }

    /// From a moment on every request fails, because the lock may look stale then; `None` takes that back.
    pub(super) fn lock_is_good_until(&self, at: Option<Duration>) {
        let millis = at.map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
        self.state.lock_good_until.store(millis, Ordering::Relaxed);
    }

    /// Whether the lock may have looked stale to others.
    pub(super) fn lock_is_lost(&self) -> bool {
        let until = self.state.lock_good_until.load(Ordering::Relaxed);
        if until > 0 && awake_or_asleep().as_millis() > u128::from(until) {
            self.state.lock_lost.store(true, Ordering::Relaxed);
        }
        self.state.lock_lost.load(Ordering::Relaxed)
    }

    /// Whether a pack was written.
    pub(super) fn has_uploaded(&self) -> bool {
        self.state.uploaded.load(Ordering::Relaxed)
    }

    /// Parts of packs that were read so far.
    pub(super) fn parts_read(&self) -> u64 {
        self.state.parts.load(Ordering::Relaxed)
    }

    /// The first failure that patience did not mend.
    pub fn failure(&self) -> Option<StoreError> {
        lock(&self.state.failed).clone()
    }

    /// The failure was an answer, not the end.
    pub(super) fn forget_failure(&self) {
        *lock(&self.state.failed) = None;
    }

    /// While `true`, snapshots that are written go nowhere.
    pub fn hold_snapshots(&self, hold: bool) {
        self.state.hold_snapshots.store(hold, Ordering::Relaxed);
    }

    /// The last snapshot that was written.
    pub fn snapshot(&self) -> Option<Id> {
        *lock(&self.state.snapshot)
    }

    /// Runs one request, again and again for as long as patience lasts.
    pub fn ask<T, F>(&self, request: impl Fn() -> F) -> Result<T, Asked>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let begun = Instant::now();
        let mut pause = PAUSE_FIRST;
        loop {
            if self.lock_is_lost() {
                return Err(Asked::LockLost(self.store.display()));
            }
            if self.state.stopped.load(Ordering::Relaxed) {
                return Err(Asked::Stopped);
            }
            match self.runtime.block_on(request()) {
                Ok(value) => return Ok(value),
                Err(e) if e.is_retryable() && begun.elapsed() + pause < self.patience => {
                    tracing::debug!(error = %e, "asking the store again");
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(e) => return Err(Asked::Store(e)),
            }
        }
    }

    /// One request that is made even after [`Backend::stop`]: what tidies up.
    pub fn finally<T, F>(&self, request: impl FnOnce() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.runtime.block_on(request())
    }

    /// A part of a pack.
    ///
    /// # Errors
    /// As [`Backend::ask`]. What is behind the end is not there, without an error of its own.
    pub(super) fn pack_range(&self, pack: &Id, offset: u32, length: u32) -> Result<Bytes, Asked> {
        let (key, start) = (key(FileType::Pack, pack), u64::from(offset));
        self.ask(|| self.store.get_range(&key, start..start + u64::from(length)))
    }

    /// Removes a file of the repository; it may be gone already.
    ///
    /// # Errors
    /// As [`Backend::ask`].
    pub(super) fn remove_file(&self, tpe: FileType, id: &Id) -> Result<(), FilesError> {
        let key = key(tpe, id);
        match self.ask(|| self.store.delete(&key)) {
            Err(Asked::Store(e)) if e.is_not_found() => Ok(()),
            done => Ok(done?),
        }
    }

    /// Uploads a pack.
    ///
    /// # Errors
    /// As [`Backend::ask`].
    pub(super) fn put_pack(&self, id: &Id, pack: &Bytes) -> Result<(), FilesError> {
        let key = key(FileType::Pack, id);
        // Named by its content: writing it again changes nothing.
        Ok(self.ask(|| self.store.put(&key, pack.clone(), PutMode::Overwrite, None))?)
    }

    /// Whether a pack is known to end before `end`.
    pub(super) fn is_shorter(&self, pack: &Id, end: u32) -> bool {
        let key = key(FileType::Pack, pack);
        let found = self.finally(|| self.store.head(&key));
        found.is_ok_and(|info| info.size < u64::from(end))
    }

    /// [`Backend::ask`] for rustic_core: the failure is kept.
    fn serve<T, F>(&self, request: impl Fn() -> F) -> RusticResult<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.ask(request).map_err(|asked| {
            if let Asked::Store(e) = &asked {
                lock(&self.state.failed).get_or_insert_with(|| e.clone());
            }
            RusticError::with_source(ErrorKind::Backend, "the store failed", asked)
        })
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Asked {
    /// The run was stopped.
    #[error("the run was stopped")]
    Stopped,
    /// The lock of the repository in this store may have looked stale to others.
    #[error("the lock of the repository in {0} was not renewed in time")]
    LockLost(String),
    /// The store.
    #[error(transparent)]
    Store(StoreError),
}

/// Since the start of the system, whether this process or the whole host slept meanwhile, and whatever was done to the clock.
pub(super) fn awake_or_asleep() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing in here is left half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where restic keeps a file.
fn key(tpe: FileType, id: &Id) -> String {
    let hex = id.to_hex();
    let hex: &str = &hex;
    match tpe {
        FileType::Config => "config".into(),
        FileType::Pack => format!("data/{}/{hex}", &hex[..2]),
        other => format!("{}/{hex}", other.dirname()),
    }
}

impl ReadBackend for Backend {
    fn location(&self) -> String {
        self.store.display()
    }

    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let size = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        if tpe == FileType::Config {
            let found = self.serve(|| async {
                match self.store.head("config").await {
                    Ok(info) => Ok(Some(info)),
                    Err(e) if e.is_not_found() => Ok(None),
                    Err(e) => Err(e),
                }
            })?;
            return Ok(found
                .map(|info| (Id::default(), size(info.size)))
                .into_iter()
                .collect());
        }
        let objects = self.serve(|| self.store.list(tpe.dirname()))?;
        // Names that are no ids, and ids elsewhere, are not restic's: half-written files of killed uploads, copies by hand.
        let id = |name: &str| {
            let id = name.rsplit('/').next()?.parse::<Id>().ok()?;
            (name == key(tpe, &id)).then_some(id)
        };
        Ok(objects
            .iter()
            .filter_map(|o| Some((id(&o.key)?, size(o.size))))
            .collect())
    }

    fn read_full(&self, tpe: FileType, id: &Id) -> RusticResult<Bytes> {
        let key = key(tpe, id);
        self.serve(|| self.store.get(&key))
    }

    fn read_partial(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        let (key, start) = (key(tpe, id), u64::from(offset));
        let end = start + u64::from(length);
        let read = self.serve(|| self.store.get_range(&key, start..end))?;
        self.state.parts.fetch_add(1, Ordering::Relaxed);
        Ok(read)
    }

    fn warmup_path(&self, tpe: FileType, id: &Id) -> String {
        key(tpe, id)
    }
}

impl WriteBackend for Backend {
    fn write_bytes(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        if tpe == FileType::Snapshot {
            if self.state.hold_snapshots.load(Ordering::Relaxed) {
                return Ok(());
            }
            *lock(&self.state.snapshot) = Some(*id);
        }
        // A repository is made once; everything else is named by its content, so writing it again changes nothing.
        let mode = match tpe {
            FileType::Config => PutMode::Create,
            _ => PutMode::Overwrite,
        };
        let key = key(tpe, id);
        self.serve(|| {
            self.store
                .put_pieces(&key, content.slice().iter().cloned(), mode)
        })?;
        if tpe == FileType::Pack {
            self.state.uploaded.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn remove(&self, tpe: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        let key = key(tpe, id);
        self.serve(|| self.store.delete(&key))
    }
}
