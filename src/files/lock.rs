//! restic's locks: who is working on a repository, so that nobody deletes what another is about to use.
//!
//! - A backup, a restore and a check share; pruning excludes. Stock restic keeps to the same locks.
//! - A lock is an object of its own, written anew every few minutes. One that nobody renewed for half an hour is stale and is removed by
//!   whoever meets it. One of ours from this very host whose process is gone is stale at once.
//! - Two that come at the same time both see each other after writing, and both step back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::backend::Backend;
use super::error::FilesError;
use super::repository::{Repo, key, seal, unseal};
use crate::store::PutMode;

/// As in restic.
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(30);
/// A lock is a dozen short fields.
const LOCK_MAX_BYTES: usize = 1 << 16;
/// As in restic.
const RENEW_EVERY: Duration = Duration::from_secs(5 * 60);

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
    key: Arc<std::sync::Mutex<String>>,
    ended: watch::Sender<bool>,
    renewer: tokio::task::JoinHandle<()>,
    /// A lock of another run of ours was there: it is still at work, or it was killed.
    pub(super) others: bool,
    /// The lock could not be renewed in time: others may believe that it is stale.
    lost: Arc<AtomicBool>,
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
        let others = meet(backend, &key, &me, None)?;
        let name = write(backend, &key, &me)?;
        if let Err(refused) = meet(backend, &key, &me, Some(&name)) {
            // Stepping back; if even that fails, it becomes stale.
            let _ = backend.ask(|| backend.store().delete(&name));
            return Err(refused);
        }
        let (ended, rx) = watch::channel(false);
        let name = Arc::new(std::sync::Mutex::new(name));
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
            others,
            lost,
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
        if let Err(error) = removed {
            tracing::warn!(lock = name, %error, "the lock stays behind; it is ignored after 30 minutes");
        }
    }
}

impl Lock {
    fn name(&self) -> String {
        self.key
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

/// Who we are among containers that share a host name: process numbers mean something only inside one of them.
fn process_space() -> String {
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("lifeboat {}", space.display())
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
    backend.ask(|| {
        backend
            .store()
            .put(&name, body.clone(), PutMode::Overwrite, None)
    })?;
    Ok(name)
}

/// Looks at the locks that are there, and removes the stale ones. `true` if one was of another run of ours.
fn meet(
    backend: &Backend,
    key: &[u8; 64],
    me: &LockFile,
    mine: Option<&str>,
) -> Result<bool, FilesError> {
    let store = backend.store();
    let mut ours = false;
    for object in backend.ask(|| store.list("locks"))? {
        if Some(object.key.as_str()) == mine || object.key.contains('#') {
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
        let Some(other): Option<LockFile> = plain else {
            let age = me.time.as_millisecond() - object.modified.0;
            if i128::from(age) > STALE_AFTER.as_millis() {
                // Half-written by a process that died.
                backend.ask(|| store.delete(&object.key))?;
                continue;
            }
            return Err(FilesError::Locked {
                store: store.display(),
                holder: format!("a lock that cannot be read ({})", object.key),
                since: object.modified.to_string(),
            });
        };
        ours |= other.username.starts_with("lifeboat");
        let gone = (&other.hostname, &other.username) == (&me.hostname, &me.username)
            && !std::path::Path::new(&format!("/proc/{}", other.pid)).exists();
        if gone || me.time.duration_since(other.time) > STALE_AFTER {
            tracing::info!(
                lock = object.key,
                host = other.hostname,
                pid = other.pid,
                "removing a stale lock"
            );
            backend.ask(|| store.delete(&object.key))?;
        } else if other.exclusive || me.exclusive {
            return Err(FilesError::Locked {
                store: store.display(),
                holder: format!("process {} on {}", other.pid, other.hostname),
                since: other.time.to_string(),
            });
        }
    }
    Ok(ours)
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
    name: Arc<std::sync::Mutex<String>>,
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
        match store.put(&next, body, PutMode::Overwrite, None).await {
            Ok(()) => {
                renewed = lock.time;
                let old = std::mem::replace(
                    &mut *name
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner),
                    next,
                );
                if let Err(error) = store.delete(&old).await {
                    tracing::debug!(%error, "the old lock stays until it is stale");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot renew the lock of the repository"),
        }
        if lock.time.duration_since(renewed) > STALE_AFTER - SignedDuration::from_mins(5) {
            lost.store(true, Ordering::Relaxed);
            backend.stop();
            return;
        }
    }
}
