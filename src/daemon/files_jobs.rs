//! Scheduled backups of files: one task for each target and store, one run at a time over all of them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::files::{open_in, place};
use super::wait::{self, Woken};
use crate::config::{Config, FilesConfig, StoreConfig};
use crate::files::{self, Backend, Backup, FilesError, Target};
use crate::observe::facts::{Board, FilesFacts};
use crate::schedule::Schedule;
use crate::types::Millis;

/// After a failed run, and twice as long after each further one, up to the next scheduled time.
const RETRY_FIRST: Duration = Duration::from_secs(5 * 60);
/// Waits are cut into pieces: a suspended host or a clock that was set must not delay a run.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Between two prunings: each reads the whole index.
const PRUNE_EVERY: SignedDuration = SignedDuration::from_hours(23);

/// All tasks. Dropping it does not end them: [`Jobs::stop`] does.
pub struct Jobs {
    tasks: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    running: Arc<Mutex<Option<Backend>>>,
}

impl Jobs {
    /// Starts a task for each target and store.
    pub fn start(config: &Arc<Config>, board: &Arc<Board>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (turn, running) = (Arc::new(Semaphore::new(1)), Arc::default());
        let mut tasks = Vec::new();
        for files in &config.files {
            for store in &files.stores {
                let start = Start {
                    config: Arc::clone(config),
                    board: Arc::clone(board),
                    files: files.clone(),
                    store: store.clone(),
                    stopped: stopped.clone(),
                    turn: Arc::clone(&turn),
                    running: Arc::clone(&running),
                };
                tasks.push(tokio::spawn(start.run()));
            }
        }
        Self {
            tasks,
            stop,
            running,
        }
    }

    /// Ends them: a run under way breaks off, and the next one goes on from what it uploaded.
    pub async fn stop(self, within: Duration) {
        // Fails only if every task has ended.
        let _ = self.stop.send(true);
        if let Some(backend) = lock(&self.running).as_ref() {
            backend.stop();
        }
        let aborts: Vec<_> = self.tasks.iter().map(JoinHandle::abort_handle).collect();
        let all = futures::future::join_all(self.tasks);
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!("a backup of files does not end; its lock is ignored after 30 minutes");
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}

/// For a person: why retention did not work.
pub(super) fn nothing_deleted(error: &str, hint: Option<&str>) -> String {
    let hint = hint.map(|h| format!("; hint: {h}")).unwrap_or_default();
    format!("retention deletes nothing: {error}{hint}")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What works with this is ended when the process is, also if that was told a moment ago.
fn stop_with(running: &Mutex<Option<Backend>>, stopped: &watch::Receiver<bool>, backend: Backend) {
    *lock(running) = Some(backend.clone());
    if *stopped.borrow() {
        backend.stop();
    }
}

fn millis(at: Timestamp) -> Millis {
    Millis(at.as_millisecond())
}

/// What becomes a [`Job`] when its store can be opened: a bad store keeps nobody from a good one.
struct Start {
    config: Arc<Config>,
    board: Arc<Board>,
    files: FilesConfig,
    store: StoreConfig,
    stopped: watch::Receiver<bool>,
    turn: Arc<Semaphore>,
    running: Arc<Mutex<Option<Backend>>>,
}

impl Start {
    async fn run(mut self) {
        let Ok(schedule) = Schedule::parse(&self.files.schedule, &self.config.time_zone) else {
            // The configuration has tried it.
            return;
        };
        let Some(target) = self.target().await else {
            return;
        };
        let job = Job {
            target,
            schedule,
            zone: self.config.time_zone.clone(),
            board: self.board,
            stopped: self.stopped,
            turn: self.turn,
            running: self.running,
            pruned: None,
            said: BTreeSet::new(),
        };
        job.run().await;
    }

    /// `None` if the process ends before the store can be opened.
    async fn target(&mut self) -> Option<Target> {
        let (name, store) = (
            self.files.name.clone(),
            place(&self.store, &self.files.name, None),
        );
        loop {
            let error = match open_in(&self.config, &self.files, &self.store).await {
                Ok(target) => return Some(target),
                Err(error) => error,
            };
            tracing::warn!(target_name = name, store, %error, hint = error.hint(), "cannot open the store of files; trying again");
            self.board.update_files(&name, &store, |f| {
                f.path = self.files.paths[0].clone();
                f.last_error = Some(error.to_string());
                f.hint = error.hint();
            });
            tokio::select! {
                _ = self.stopped.changed() => return None,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}

struct Job {
    target: Target,
    schedule: Schedule,
    zone: TimeZone,
    board: Arc<Board>,
    stopped: watch::Receiver<bool>,
    turn: Arc<Semaphore>,
    running: Arc<Mutex<Option<Backend>>>,
    pruned: Option<Timestamp>,
    /// Databases that were named in the log.
    said: BTreeSet<PathBuf>,
}

impl Job {
    fn update(&self, change: impl FnOnce(&mut FilesFacts)) {
        let (name, store) = (&self.target.config.name, self.target.store.display());
        let stats = self.target.store.stats_handle();
        self.board.update_files(name, &store, |f| {
            f.stats = Some(stats);
            change(f);
        });
    }

    async fn run(mut self) {
        let path = self.target.config.paths[0].clone();
        self.update(|f| {
            f.objective = self.schedule.allowed_age(Timestamp::now());
            f.path = path;
        });
        let mut planned = Timestamp::now();
        let mut due = self.first_due().await;
        let mut failures = 0_u32;
        loop {
            self.update(|f| f.next = Some(millis(due)));
            match self.wait(planned, due).await {
                None => return,
                Some(Woken::Due) => {}
                Some(Woken::SetBack) => {
                    planned = Timestamp::now();
                    let next = self.schedule.next_after(planned);
                    due = due.min(next.unwrap_or(due));
                    continue;
                }
            }
            let done = self.once().await;
            if *self.stopped.borrow() {
                return;
            }
            let now = Timestamp::now();
            planned = now;
            let next = self.schedule.next_after(now).unwrap_or(Timestamp::MAX);
            failures = if done { 0 } else { failures + 1 };
            due = next;
            if failures > 0 {
                let pause = RETRY_FIRST * 2_u32.saturating_pow(failures.min(6) - 1);
                let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::ZERO);
                due = next.min(now.saturating_add(pause).unwrap_or(next));
            }
        }
    }

    /// A run that was missed is made up for once; the first one is due at once.
    async fn first_due(&self) -> Timestamp {
        let target = self.target.clone();
        let listed = tokio::task::spawn_blocking(move || files::list(&target)).await;
        let now = Timestamp::now();
        // Where it failed, trying will say why.
        let mut points = listed.ok().and_then(Result::ok).unwrap_or_default();
        points.retain(|p| !p.partial);
        let oldest = points.first().map(|p| millis(p.time));
        let newest = points.pop();
        let Some(newest) = newest else {
            return now;
        };
        self.update(|f| {
            f.objective = self.schedule.allowed_age(newest.time);
            // What kept the store from being opened is over.
            (f.last_error, f.hint) = (None, None);
            f.succeeded_at = Some(millis(newest.time));
            f.oldest = oldest;
            f.snapshot = Some(newest.id.clone());
            (f.files, f.bytes) = (newest.files, newest.bytes);
        });
        // A last run in the future means that a clock was wrong once.
        let last = newest.time.min(now);
        self.schedule.next_after(last).unwrap_or(now)
    }

    /// `None` if the process ends.
    async fn wait(&mut self, planned: Timestamp, due: Timestamp) -> Option<Woken> {
        let woken = tokio::select! {
            _ = self.stopped.changed() => return None,
            woken = wait::until(planned, due) => woken,
        };
        (!*self.stopped.borrow()).then_some(woken)
    }

    async fn once(&mut self) -> bool {
        let name = self.target.config.name.clone();
        let Ok(_turn) = Arc::clone(&self.turn).acquire_owned().await else {
            return false;
        };
        self.update(|f| f.running_since = Some(millis(Timestamp::now())));
        let (target, running) = (self.target.clone(), Arc::clone(&self.running));
        let stopped = self.stopped.clone();
        let work = tokio::task::spawn_blocking(move || {
            files::backup(&target, None, |backend| {
                stop_with(&running, &stopped, backend)
            })
        });
        let result = work.await;
        *lock(&self.running) = None;
        self.update(|f| f.running_since = None);
        match result {
            Ok(Ok(backup)) => {
                self.succeeded(&name, &backup);
                self.prune(&name).await;
                !backup.point.partial
            }
            Ok(Err(error)) => {
                self.failed(&name, &error.to_string(), error.hint());
                false
            }
            Err(error) => {
                self.failed(&name, &error.to_string(), None);
                false
            }
        }
    }

    fn succeeded(&mut self, name: &str, backup: &Backup) {
        let point = &backup.point;
        for (path, replicated) in &backup.databases {
            if !replicated && self.said.insert(path.clone()) {
                tracing::warn!(target_name = name, database = %path.display(), "left out: a copy of an open database is no backup; list it under `sqlite:`");
            }
        }
        if point.partial {
            for (path, why) in backup.unreadable.iter().take(20) {
                tracing::warn!(target_name = name, file = %path.display(), reason = why, "not in the backup");
            }
        }
        tracing::info!(
            target_name = name,
            snapshot = point.short(),
            files = point.files,
            bytes = point.bytes,
            uploaded = backup.uploaded,
            seconds = backup.took.as_secs_f64(),
            partial = point.partial,
            "files backed up"
        );
        self.update(|f| {
            f.runs += 1;
            f.uploaded_bytes += backup.uploaded;
            f.seconds = backup.took.as_secs_f64();
            f.unreadable = backup.unreadable_count;
            if point.partial {
                f.partial_runs += 1;
                f.failed_at = Some(millis(point.time));
                let first = backup.unreadable.keys().next().cloned().unwrap_or_default();
                f.last_error = Some(format!(
                    "{} files could not be read, the first is {}",
                    backup.unreadable_count,
                    first.display()
                ));
                f.hint = Some("make them readable for this process, or exclude them".into());
            } else {
                f.objective = self.schedule.allowed_age(point.time);
                f.succeeded_at = Some(millis(point.time));
                f.oldest.get_or_insert(millis(point.time));
                f.snapshot = Some(point.id.clone());
                (f.files, f.bytes) = (point.files, point.bytes);
                (f.last_error, f.hint) = (None, None);
            }
        });
    }

    fn failed(&self, name: &str, error: &str, hint: Option<String>) {
        if *self.stopped.borrow() {
            return;
        }
        tracing::error!(target_name = name, error, hint, "files were not backed up");
        self.update(|f| {
            f.runs += 1;
            f.failures += 1;
            f.failed_at = Some(millis(Timestamp::now()));
            f.last_error = Some(error.to_owned());
            f.hint = hint;
        });
    }

    async fn prune(&mut self, name: &str) {
        let now = Timestamp::now();
        // A clock that was set back must not hold it up.
        if self
            .pruned
            .is_some_and(|at| now.duration_since(at).abs() < PRUNE_EVERY)
        {
            return;
        }
        self.pruned = Some(now);
        let (target, zone) = (self.target.clone(), self.zone.clone());
        let (running, stopped) = (Arc::clone(&self.running), self.stopped.clone());
        let work = tokio::task::spawn_blocking(move || {
            files::nicely(|| {
                files::prune_until(&target, &zone, false, |backend| {
                    stop_with(&running, &stopped, backend)
                })
            })
        });
        let result = work.await;
        *lock(&self.running) = None;
        match result {
            Ok(Ok(pruned)) => {
                let bytes = |i: usize| pruned.points[i].bytes;
                let held = crate::retention::copies::held(&pruned.decisions, bytes);
                let kept = pruned.decisions.iter().filter(|d| d.keeps());
                let kept = kept.map(|d| &pruned.points[d.index]);
                let oldest = kept.filter(|p| !p.partial).map(|p| millis(p.time)).min();
                let forgotten = pruned.decisions.iter().filter(|d| !d.keeps()).count();
                for (label, why) in &pruned.ending {
                    let label = &label.label;
                    tracing::info!(target_name = name, label, %why, "label ended with its snapshot");
                }
                tracing::info!(
                    target_name = name,
                    forgotten,
                    deleted = pruned.deleted_bytes,
                    "files pruned"
                );
                self.update(|f| {
                    f.deleted_bytes += pruned.deleted_bytes;
                    f.held = held;
                    f.oldest = oldest;
                    f.pruned_at = Some(millis(now));
                    f.retention_problem = None;
                });
            }
            Ok(Err(FilesError::Locked { .. } | FilesError::LockLost(_))) => self.pruned = None,
            Ok(Err(FilesError::Stopped)) if *self.stopped.borrow() => {}
            Ok(Err(error)) => {
                tracing::error!(target_name = name, %error, hint = error.hint(), "files were not pruned; nothing that a kept snapshot needs was deleted");
                let problem = nothing_deleted(&error.to_string(), error.hint().as_deref());
                self.update(|f| {
                    f.refusals += 1;
                    f.pruned_at = Some(millis(now));
                    f.retention_problem = Some(problem);
                });
            }
            Err(error) => tracing::error!(target_name = name, %error, "pruning broke off"),
        }
    }
}
