//! restic's locks: who is working on a repository, so that nobody deletes what another is about to use.
//!
//! - A backup, a restore and a check share; pruning excludes. Stock restic keeps to the same locks.
//! - A lock is an object of its own, written anew every few minutes. One that nobody renewed for half an hour is stale and is removed by
//!   whoever meets it. One of ours from this very host whose process is gone is stale at once.
//! - How old another's lock is, the store says: beside the lock that was just written. Neither its clock nor ours can make it look stale.
//! - Where a lock was not renewed in time, because the process was stopped or the host slept, nothing is done under it any more: others may
//!   have removed it.
//! - Two that come at the same time both see each other after writing, and both step back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::backend::{Backend, awake_or_asleep};
use super::error::FilesError;
use super::repository::{Repo, key, seal, unseal};
use crate::store::{ObjectInfo, PutMode};
use crate::types::Millis;

/// As in restic.
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(30);
/// A lock is a dozen short fields.
const LOCK_MAX_BYTES: usize = 1 << 16;
/// How often a lock is written anew, and how long it is relied upon.
#[derive(Clone, Copy, Debug)]
struct Pace {
    renew: Duration,
    good: Duration,
}

/// As in restic; a request that began in time is over before others take the lock for stale.
const PACE: Pace = Pace {
    renew: Duration::from_secs(5 * 60),
    good: Duration::from_secs(25 * 60),
};
/// How long the end of a renewal under way is waited for.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(20);

/// Where the system does not tell who we are: nobody's process is missed.
const UNKNOWN_SPACE: &str = OURS;
/// Before what makes our user names.
const OURS: &str = "lifeboat";

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
        Self::at_pace(backend, runtime, key(backend, repo)?, mode, PACE)
    }

    fn at_pace(
        backend: &Backend,
        runtime: &tokio::runtime::Handle,
        key: [u8; 64],
        mode: Mode,
        pace: Pace,
    ) -> Result<Self, FilesError> {
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
        let (asked, begun) = (Timestamp::now(), awake_or_asleep());
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
        backend.lock_is_good_until(Some(begun + pace.good));
        let renewer = runtime.spawn(renew(backend.clone(), key, me, Arc::clone(&name), rx, pace));
        Ok(Self {
            backend: backend.clone(),
            key: name,
            ended,
            renewer,
            others: before.ours || met.ours,
            store_ahead,
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.ended.send(true);
        // One that is being written anew has its next name in a moment; cut off, it would stay behind under that.
        let renewer = &mut self.renewer;
        let ended = self.backend.finally(move || async move {
            Ok(tokio::time::timeout(RENEWAL_PATIENCE, &mut *renewer).await)
        });
        if !matches!(ended, Ok(Ok(_))) {
            self.renewer.abort();
        }
        self.backend.lock_is_good_until(None);
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
        Some(boot) => format!("{OURS} {boot} {space}"),
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

fn is_lock(name: &str) -> bool {
    let id = name.strip_prefix("locks/");
    id.is_some_and(|id| id.parse::<rustic_core::Id>().is_ok())
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
    let mut objects = backend.ask(|| store.list("locks"))?;
    // restic writes to a folder under a name of its own first; only the id that it is given then is a lock.
    objects.retain(|object| is_lock(&object.key));
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
        let is_ours = |other: &LockFile| other.username.starts_with(OURS);
        met.ours |= other.as_ref().is_some_and(is_ours);
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
                by_prune: other.as_ref().is_some_and(|o| o.exclusive && is_ours(o)),
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
        // Asked of the system, not of `/proc`, which may hide the processes of others. One that may not be asked is there.
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
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
    pace: Pace,
) {
    let store = backend.store();
    loop {
        tokio::select! {
            _ = ended.changed() => return,
            () = tokio::time::sleep(pace.renew) => {}
        }
        // Not brought back to life: others may have removed it, and be at work.
        if backend.lock_is_lost() {
            return;
        }
        let begun = awake_or_asleep();
        lock.time = Timestamp::now();
        let Some((next, body)) = sealed(&key, &lock) else {
            continue;
        };
        held().insert(next.clone());
        match store.put(&next, body, PutMode::Overwrite, None).await {
            Ok(()) => {
                // Unless it was lost meanwhile, which is for good.
                if !backend.lock_is_lost() {
                    backend.lock_is_good_until(Some(begun + pace.good));
                }
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
                // Perhaps only the answer was lost.
                let _ = store.delete(&next).await;
                held().remove(&next);
            }
        }
    }
}

#[cfg(test)]
mod tests;
