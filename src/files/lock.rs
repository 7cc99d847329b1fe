//! restic's locks: who is working on a repository, so that nobody deletes what another is about to use.
//!
//! - A backup, a restore and a check share; pruning excludes. Stock restic keeps to the same locks.
//! - A lock is an object of its own, written anew every few minutes. One that nobody renewed for half an hour is stale and is removed by
//!   whoever meets it. One of ours from this very host whose process is gone is stale at once.
//! - How old another's lock is, the store says: beside the lock that was just written. Neither its clock nor ours can make it look stale.
//! - Two that come at the same time both see each other after writing, and both step back.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::backend::Backend;
use super::error::FilesError;
use super::repository::{Repo, key, seal, unseal};
use crate::store::{ObjectInfo, PutMode};
use crate::types::Millis;

/// As in restic.
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(30);
/// A lock is a dozen short fields.
const LOCK_MAX_BYTES: usize = 1 << 16;
/// As in restic.
const RENEW_EVERY: Duration = Duration::from_secs(5 * 60);

/// Where the system does not tell who we are: nobody's process is missed.
const UNKNOWN_SPACE: &str = "lifeboat";

/// Locks that this process holds. One that bears its number and is not among them was left by another of the same number, as in a container
/// that was started again, or could not be deleted.
static HELD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn held() -> MutexGuard<'static, BTreeSet<String>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether others may work at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// With others that share.
    Shared,
    /// Alone.
    Alone,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LockFile {
    time: Timestamp,
    #[serde(default)]
    exclusive: bool,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    pid: i64,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
}

/// A held lock. Dropping it removes it from the store; so must be dropped on a thread that may block.
pub(super) struct Lock {
    backend: Backend,
    key: Arc<Mutex<String>>,
    ended: watch::Sender<bool>,
    renewer: tokio::task::JoinHandle<()>,
    /// A lock of another run of ours was there: it is still at work, or it was killed.
    pub(super) others: bool,
    /// The lock could not be renewed in time: others may believe that it is stale.
    lost: Arc<AtomicBool>,
    /// How far the store's clock was ahead of ours when the lock was written; `None` if the store did not say.
    pub(super) store_ahead: Option<SignedDuration>,
}

/// What a look at the locks told.
struct Met {
    /// One was of another run of ours.
    ours: bool,
    /// The store's time of the lock that was just written, in its listing.
    mine: Option<Timestamp>,
}

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    /// [`FilesError::Locked`] if somebody holds one that excludes it; the store's.
    pub(super) fn take(
        backend: &Backend,
        runtime: &tokio::runtime::Handle,
        repo: &Repo,
        mode: Mode,
    ) -> Result<Self, FilesError> {
        let key = key(backend, repo)?;
        let me = LockFile {
            time: Timestamp::now(),
            exclusive: mode == Mode::Alone,
            hostname: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            username: process_space(),
            pid: i64::from(std::process::id()),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let before = meet(backend, &key, &me, None)?;
        let asked = Timestamp::now();
        let name = write(backend, &key, &me)?;
        let answered = Timestamp::now();
        let met = match meet(backend, &key, &me, Some(&name)) {
            Ok(met) => met,
            Err(refused) => {
                // Stepping back; if even that fails, it becomes stale.
                let _ = backend.finally(|| backend.store().delete(&name));
                held().remove(&name);
                return Err(refused);
            }
        };
        let store_ahead = met
            .mine
            .map(|at| at.duration_since(at.clamp(asked, answered)));
        let (ended, rx) = watch::channel(false);
        let name = Arc::new(Mutex::new(name));
        let lost = Arc::new(AtomicBool::new(false));
        let renewer = runtime.spawn(renew(
            backend.clone(),
            key,
            me,
            Arc::clone(&name),
            rx,
            Arc::clone(&lost),
        ));
        Ok(Self {
            backend: backend.clone(),
            key: name,
            ended,
            renewer,
            others: before.ours || met.ours,
            lost,
            store_ahead,
        })
    }

    /// Whether others may believe by now that the lock is stale.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.ended.send(true);
        self.renewer.abort();
        let name = self.name();
        let removed = self.backend.finally(|| self.backend.store().delete(&name));
        held().remove(&name);
        if let Err(error) = removed {
            tracing::warn!(lock = name, %error, "the lock stays behind; it is ignored after 30 minutes");
        }
    }
}

impl Lock {
    fn name(&self) -> String {
        self.key
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Who we are among containers that share a host name: process numbers mean something only inside one of them.
fn process_space() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    space_of(boot.as_deref(), &space.display().to_string())
}

/// The number of a namespace means something only until its kernel is booted again; copies of one machine share it, and often their name, too.
fn space_of(boot: Option<&str>, space: &str) -> String {
    match boot.map(str::trim) {
        None | Some("") => UNKNOWN_SPACE.to_owned(),
        Some(_) if space.is_empty() => UNKNOWN_SPACE.to_owned(),
        Some(boot) => format!("lifeboat {boot} {space}"),
    }
}

fn sealed(key: &[u8; 64], lock: &LockFile) -> Option<(String, Bytes)> {
    let text = serde_json::to_vec(lock).ok()?;
    let body = seal(key, &text).ok()?;
    Some((
        format!("locks/{}", hex::encode(Sha256::digest(&body))),
        body.into(),
    ))
}

fn write(backend: &Backend, key: &[u8; 64], lock: &LockFile) -> Result<String, FilesError> {
    let Some((name, body)) = sealed(key, lock) else {
        return Err(FilesError::Repository {
            doing: "locking",
            store: backend.store().display(),
            reason: "the lock could not be encrypted".into(),
        });
    };
    held().insert(name.clone());
    let written = backend.ask(|| {
        backend
            .store()
            .put(&name, body.clone(), PutMode::Overwrite, None)
    });
    if let Err(error) = written {
        // Perhaps only the answer was lost.
        let _ = backend.finally(|| backend.store().delete(&name));
        held().remove(&name);
        return Err(error.into());
    }
    Ok(name)
}

/// Looks at the locks that are there. With the name of ours, which was just written, the stale ones are removed; without, one that looks
/// stale is only no obstacle yet.
fn meet(
    backend: &Backend,
    key: &[u8; 64],
    me: &LockFile,
    mine: Option<&str>,
) -> Result<Met, FilesError> {
    let store = backend.store();
    let objects = backend.ask(|| store.list("locks"))?;
    let time = |at: Millis| Timestamp::from_millisecond(at.0).unwrap_or(Timestamp::MIN);
    let is_mine = |object: &&ObjectInfo| Some(object.key.as_str()) == mine;
    let mut met = Met {
        ours: false,
        mine: objects.iter().find(is_mine).map(|o| time(o.modified)),
    };
    let now = match mine {
        None => Some(me.time),
        Some(_) => met.mine,
    };
    for object in &objects {
        if is_mine(&object) || object.key.contains('#') {
            continue;
        }
        let body = match backend.ask(|| store.get(&object.key)) {
            Ok(body) => body,
            // Its holder has just ended.
            Err(super::backend::Asked::Store(e)) if e.is_not_found() => continue,
            Err(e) => return Err(e.into()),
        };
        let plain = unseal(key, &body)
            .and_then(text_of)
            .and_then(|text| serde_json::from_slice(&text).ok());
        let other: Option<LockFile> = plain;
        met.ours |= other
            .as_ref()
            .is_some_and(|other| other.username.starts_with("lifeboat"));
        let is_old = |now: Timestamp| now.duration_since(time(object.modified)) > STALE_AFTER;
        if other
            .as_ref()
            .is_some_and(|other| other.is_gone(me, &object.key))
            || now.is_some_and(is_old)
        {
            if mine.is_some() {
                tracing::info!(lock = object.key, holder = ?other, "removing a stale lock");
                backend.ask(|| store.delete(&object.key))?;
            }
            continue;
        }
        let excludes = other
            .as_ref()
            .is_none_or(|other| other.exclusive || me.exclusive);
        if excludes {
            return Err(FilesError::Locked {
                store: store.display(),
                holder: match other {
                    Some(other) => format!("process {} on {}", other.pid, other.hostname),
                    // Perhaps half-written by a process that died.
                    None => format!("a lock that cannot be read ({})", object.key),
                },
                since: time(object.modified).to_string(),
            });
        }
    }
    Ok(met)
}

impl LockFile {
    /// Its holder is known to have ended.
    fn is_gone(&self, me: &Self, name: &str) -> bool {
        let is_here = (&self.hostname, &self.username) == (&me.hostname, &me.username);
        if !is_here || self.username == UNKNOWN_SPACE {
            return false;
        }
        if self.pid == me.pid {
            return !held().contains(name);
        }
        !std::path::Path::new(&format!("/proc/{}", self.pid)).exists()
    }
}

/// A lock's text: plain, or behind the version of the format and compressed.
fn text_of(plain: Vec<u8>) -> Option<Vec<u8>> {
    match plain.split_first() {
        Some((b'{', _)) => Some(plain),
        Some((2, compressed)) => zstd::bulk::decompress(compressed, LOCK_MAX_BYTES).ok(),
        _ => None,
    }
}

async fn renew(
    backend: Backend,
    key: [u8; 64],
    mut lock: LockFile,
    name: Arc<Mutex<String>>,
    mut ended: watch::Receiver<bool>,
    lost: Arc<AtomicBool>,
) {
    let store = backend.store();
    let mut renewed = lock.time;
    loop {
        tokio::select! {
            _ = ended.changed() => return,
            () = tokio::time::sleep(RENEW_EVERY) => {}
        }
        lock.time = Timestamp::now();
        let Some((next, body)) = sealed(&key, &lock) else {
            continue;
        };
        held().insert(next.clone());
        match store.put(&next, body, PutMode::Overwrite, None).await {
            Ok(()) => {
                renewed = lock.time;
                let old = std::mem::replace(
                    &mut *name.lock().unwrap_or_else(PoisonError::into_inner),
                    next,
                );
                if let Err(error) = store.delete(&old).await {
                    tracing::debug!(%error, "the old lock stays until it is stale");
                }
                held().remove(&old);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot renew the lock of the repository");
                held().remove(&next);
            }
        }
        if lock.time.duration_since(renewed) > STALE_AFTER - SignedDuration::from_mins(5) {
            lost.store(true, Ordering::Relaxed);
            backend.stop();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::store::testing::{Call, Fault, Faults, Faulty};
    use crate::store::{Kind, Store};

    const KEY: [u8; 64] = [7; 64];
    const HOUR: Duration = Duration::from_secs(3600);

    fn backend(runtime: &tokio::runtime::Runtime) -> (Backend, Faults) {
        let (client, faults) = Faulty::wrap(Arc::new(InMemory::new()));
        let store = Store::from_object_store(Kind::Memory, client, "".into());
        let runtime = runtime.handle().clone();
        (Backend::new(store, runtime, Duration::ZERO), faults)
    }

    fn lock(host: &str, hours: i64, exclusive: bool) -> LockFile {
        LockFile {
            time: Timestamp::now() + SignedDuration::from_hours(hours),
            exclusive,
            hostname: host.into(),
            username: "lifeboat".into(),
            pid: i64::from(std::process::id()),
            uid: 0,
            gid: 0,
        }
    }

    /// Hosts may share a name and the number of a namespace, as copies of one machine do; what was booted apart is apart.
    #[test]
    fn a_process_is_missed_only_on_the_very_host_where_it_was() {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let here = process_space();
        assert!(here.contains(boot.trim()), "{here}");
        let ended = LockFile {
            // Larger than any that the system gives.
            pid: 1 << 30,
            username: here.clone(),
            ..lock("same name", 0, true)
        };
        let me = lock("same name", 0, false);
        let me = |space: &str| LockFile {
            username: space.into(),
            ..me.clone()
        };
        assert!(ended.is_gone(&me(&here), "locks/a"));
        let there = here.replace(boot.trim(), "b05a4c4a-8d8b-4d5a-8e83-0e2a4f6c1c1d");
        assert!(!ended.is_gone(&me(&there), "locks/a"));
        // Of a system that does not tell.
        let unknown = LockFile {
            username: space_of(None, "pid:[1]"),
            ..ended
        };
        assert!(!unknown.is_gone(&me(&unknown.username), "locks/a"));
    }

    /// A clock that is set wrong, here or there, neither removes a lock that is held nor keeps one that is not.
    #[test]
    fn only_the_stores_clock_makes_a_lock_stale() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (backend, faults) = backend(&runtime);
        let theirs = write(&backend, &KEY, &lock("there", -2, true)).unwrap();
        for ours in [-2, 0, 2] {
            let me = lock("here", ours, false);
            let mine = write(&backend, &KEY, &me).unwrap();
            let refused = meet(&backend, &KEY, &me, Some(&mine)).map(drop);
            assert!(matches!(refused, Err(FilesError::Locked { .. })), "{ours}");
            runtime.block_on(backend.store().delete(&mine)).unwrap();
        }
        assert!(runtime.block_on(backend.store().get(&theirs)).is_ok());
        // An hour later, as the store counts; its holder renews none.
        let me = lock("here", -2, true);
        let mine = write(&backend, &KEY, &me).unwrap();
        faults.inject(Some(Call::List), 0, 1, Fault::Older(HOUR, theirs.clone()));
        meet(&backend, &KEY, &me, Some(&mine)).unwrap();
        assert!(runtime.block_on(backend.store().get(&theirs)).is_err());
        assert!(runtime.block_on(backend.store().get(&mine)).is_ok());
    }
}
