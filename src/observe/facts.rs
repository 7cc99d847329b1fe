//! What the daemon knows about each target, as plain data. Health and metrics are computed from it.

mod changes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::clock::ClockBoard;
use super::happened::{Happened, Notifications};
use super::insight::InsightBoard;
use super::servers::ServerFacts;
use super::services::ProbeFacts;
use super::view::SettingsCell;
use crate::postgres::Kind;
use crate::retention::Held;
use crate::store::Stats;
use crate::types::{Millis, Txid};
pub use changes::note_drill;

/// What a target is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum State {
    /// There is no database yet.
    #[default]
    Waiting,
    /// The first copy is on its way.
    Seeding,
    /// Captures follow commits.
    Steady,
    /// Continuity was lost; pages are being compared.
    Gap,
    /// Capture does not get on.
    Stalled,
    /// Another instance owns the replica.
    NotOwner,
    /// The database was there and is gone.
    Vanished,
    /// Capture fails.
    Failed,
    /// Let go on request.
    Released,
}

impl State {
    /// Every state, for metrics.
    pub const ALL: [State; 9] = [
        Self::Waiting,
        Self::Seeding,
        Self::Steady,
        Self::Gap,
        Self::Stalled,
        Self::NotOwner,
        Self::Vanished,
        Self::Failed,
        Self::Released,
    ];

    /// The word in JSON and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Seeding => "seeding",
            Self::Steady => "steady",
            Self::Gap => "gap",
            Self::Stalled => "stalled",
            Self::NotOwner => "not-owner",
            Self::Vanished => "vanished",
            Self::Failed => "failed",
            Self::Released => "released",
        }
    }
}

/// When drills are due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrillPlan {
    /// The next time.
    pub next: Millis,
    /// Allowed age of the last one: until the second one after it has been due.
    pub objective: Duration,
}

/// The last drill of one store.
#[derive(Clone, Debug, PartialEq)]
pub struct DrillFacts {
    /// When it began.
    pub at: Millis,
    /// Every check passed.
    pub ok: bool,
    /// What failed, in words.
    pub failure: Option<String>,
    /// How long the restore took, seconds.
    pub restore_seconds: f64,
    /// Age of the restored point when it began, seconds.
    pub data_age_seconds: f64,
}

/// A drill that could not be made: nothing was restored, so nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrillProblem {
    /// When that was found.
    pub at: Millis,
    /// Why, in words with the next step.
    pub why: String,
}

/// One store of a target.
#[derive(Clone, Debug, Default)]
pub struct StoreFacts {
    /// URL without secrets.
    pub store: String,
    /// Last TXID that can be restored from there.
    pub durable: Option<Txid>,
    /// When it was acknowledged.
    pub durable_at: Option<Millis>,
    /// When it took something last, or was looked at.
    pub contact: Option<Millis>,
    /// Capture time of the oldest change that is not durable there.
    pub oldest_pending: Option<Millis>,
    /// Local bytes that are not there yet.
    pub pending_bytes: u64,
    /// The oldest restorable point there.
    pub oldest: Option<Millis>,
    /// Newest base: TXID and time.
    pub base: Option<(Txid, Millis)>,
    /// When a newer one is due, if something was captured since.
    pub renewal_due: Option<Millis>,
    /// Since when a newer one has failed that is due, and why.
    pub renewal: Option<(Millis, String)>,
    /// Files uploaded.
    pub uploads: u64,
    /// Their bytes.
    pub uploaded_bytes: u64,
    /// Failed uploads.
    pub errors: u64,
    /// Objects that retention deleted.
    pub deleted: u64,
    /// Labels whose point is not restorable any more.
    pub labels_lost: u64,
    /// Retention plans that were refused.
    pub refusals: u64,
    /// Why retention deletes nothing, in words with the next step; `None` while it works.
    pub retention_problem: Option<String>,
    /// When this process ran retention last, whatever came of it.
    pub pruned_at: Option<Millis>,
    /// Objects that were found deleted, and not by retention.
    pub missing: u64,
    /// What is kept there, by tier; empty before the first look.
    pub held: Held,
    /// Since when uploads fail.
    pub failing_since: Option<Millis>,
    /// The last failure, in words.
    pub last_error: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Why nothing may be uploaded there.
    pub refused: Option<String>,
    /// How uploads broke off by a panic, until they work again.
    pub broken: Option<String>,
    /// The last drill of it.
    pub drill: Option<DrillFacts>,
    /// Why the last one could not be made; `None` once one was.
    pub drill_problem: Option<DrillProblem>,
    /// What its store was asked, always up to date; `None` before it was opened.
    pub stats: Option<Arc<Stats>>,
    /// LTX objects there.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
}

impl StoreFacts {
    /// What to say while full copies fail that are due.
    pub fn renewal_problem(&self) -> Option<String> {
        let (since, why) = self.renewal.as_ref()?;
        Some(format!(
            "{}: new full copies have failed since {since}: {why}; what is there is restored from an older one",
            self.store
        ))
    }
}

/// One target.
#[derive(Clone, Debug, Default)]
pub struct TargetFacts {
    /// Unique name.
    pub name: String,
    /// The database.
    pub path: PathBuf,
    /// Listed by path.
    pub explicit: bool,
    /// What it is doing.
    pub state: State,
    /// Why, in words.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Allowed lag.
    pub objective: Duration,
    /// Last captured TXID.
    pub captured: Option<Txid>,
    /// When.
    pub captured_at: Option<Millis>,
    /// When capture looked at the WAL-index last, successfully.
    pub last_look: Option<Millis>,
    /// When frames were seen first that are not captured yet.
    pub uncaptured_since: Option<Millis>,
    /// Since when a capture step has been running.
    pub busy_since: Option<Millis>,
    /// Captures.
    pub captures: u64,
    /// Bytes of local files that they wrote.
    pub captured_bytes: u64,
    /// Pages in them.
    pub captured_pages: u64,
    /// Commits in captures; those that a gap capture covers are not known.
    pub commits: u64,
    /// Pages that they changed, each as often as a commit did.
    pub changed_pages: u64,
    /// Gap captures by reason.
    pub gaps: BTreeMap<&'static str, u64>,
    /// Barriers by result.
    pub barriers: BTreeMap<&'static str, u64>,
    /// Failed steps.
    pub errors: u64,
    /// Bytes of the WAL.
    pub wal_bytes: u64,
    /// Bytes of the database file.
    pub db_bytes: u64,
    /// Bytes kept locally.
    pub spool_bytes: u64,
    /// Files kept locally.
    pub spool_files: u64,
    /// Its stores.
    pub stores: Vec<StoreFacts>,
}

/// A target's facts, shared between who knows and who asks.
#[derive(Debug, Default)]
pub struct TargetBoard(Mutex<TargetFacts>);

impl TargetBoard {
    /// Changes facts. Short: everyone waits for it.
    pub fn update<T>(&self, change: impl FnOnce(&mut TargetFacts) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the facts of one store.
    pub fn update_store<T>(
        &self,
        number: usize,
        change: impl FnOnce(&mut StoreFacts) -> T,
    ) -> Option<T> {
        self.update(|f| f.stores.get_mut(number).map(change))
    }

    /// A copy.
    pub fn facts(&self) -> TargetFacts {
        self.update(|f| f.clone())
    }
}

/// Files of a target in one store.
#[derive(Clone, Debug, Default)]
pub struct FilesFacts {
    /// Unique name.
    pub name: String,
    /// URL without secrets.
    pub store: String,
    /// The first of its paths.
    pub path: PathBuf,
    /// Allowed age of the newest complete snapshot.
    pub objective: Duration,
    /// When the newest complete snapshot was begun.
    pub succeeded_at: Option<Millis>,
    /// Its id.
    pub snapshot: Option<String>,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Since when a run has been at work.
    pub running_since: Option<Millis>,
    /// When the oldest snapshot there was made.
    pub oldest: Option<Millis>,
    /// When the next one is due.
    pub next: Option<Millis>,
    /// Runs, all of them.
    pub runs: u64,
    /// Of those, runs that recorded nothing.
    pub failures: u64,
    /// Of those, runs that could not read everything.
    pub partial_runs: u64,
    /// Files that the last run could not read.
    pub unreadable: u64,
    /// How long the last finished run took, in seconds.
    pub seconds: f64,
    /// What retention keeps, by tier; bytes are those of the files in it. Empty before its first run.
    pub held: Held,
    /// When a run failed last, or was not complete.
    pub failed_at: Option<Millis>,
    /// The last drill.
    pub drill: Option<DrillFacts>,
    /// Why the last one could not be made; `None` once one was.
    pub drill_problem: Option<DrillProblem>,
    /// Bytes uploaded.
    pub uploaded_bytes: u64,
    /// Bytes that retention deleted.
    pub deleted_bytes: u64,
    /// Retention runs that deleted nothing because something was wrong.
    pub refusals: u64,
    /// Why the last one deleted nothing, and what to do; `None` after one that worked.
    pub retention_problem: Option<String>,
    /// When this process ran retention last, whatever came of it.
    pub pruned_at: Option<Millis>,
    /// What was wrong with the last run, in words; `None` after a complete one.
    pub last_error: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// What its store was asked, always up to date; `None` before it was opened.
    pub stats: Option<Arc<Stats>>,
}

/// Dumps of a database in one store, of PostgreSQL or Redis.
#[derive(Clone, Debug, Default)]
pub struct PostgresFacts {
    /// Which of them.
    pub kind: Kind,
    /// Unique name.
    pub name: String,
    /// URL without secrets.
    pub store: String,
    /// Server and database, without user and password.
    pub database: String,
    /// Allowed age of the newest dump.
    pub objective: Duration,
    /// When the newest dump was begun.
    pub succeeded_at: Option<Millis>,
    /// Its id.
    pub dump: Option<String>,
    /// Its bytes in the store.
    pub bytes: u64,
    /// Its bytes before compression.
    pub raw_bytes: u64,
    /// Bytes of the database on the server then.
    pub database_bytes: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// When a run failed last.
    pub failed_at: Option<Millis>,
    /// Since when a run has been at work.
    pub running_since: Option<Millis>,
    /// When the next one is due.
    pub next: Option<Millis>,
    /// Runs, all of them.
    pub runs: u64,
    /// Of those, runs that made no dump.
    pub failures: u64,
    /// What looks wrong with the newest dump beside the one before it.
    pub anomalies: Vec<String>,
    /// When the oldest dump there was begun.
    pub oldest: Option<Millis>,
    /// Dumps there.
    pub dumps: u64,
    /// Their bytes.
    pub dump_bytes: u64,
    /// What retention keeps, by tier; empty before its first run.
    pub held: Held,
    /// Bytes before compression of the newest dump, divided by those of the one before it.
    pub size_ratio: Option<f64>,
    /// Dumps that retention deleted.
    pub deleted: u64,
    /// Retention runs that deleted nothing because something was wrong.
    pub refusals: u64,
    /// Why the last one deleted nothing, and what to do; `None` after one that worked.
    pub retention_problem: Option<String>,
    /// When this process ran retention last, whatever came of it.
    pub pruned_at: Option<Millis>,
    /// When a dump was read back last, in full and rightly.
    pub read_back_at: Option<Millis>,
    /// Dumps that were found damaged.
    pub damaged: Vec<String>,
    /// The last drill.
    pub drill: Option<DrillFacts>,
    /// Why the last one could not be made; `None` once one was.
    pub drill_problem: Option<DrillProblem>,
    /// What was wrong with the last run, in words; `None` after a dump.
    pub last_error: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// What its store was asked, always up to date; `None` before it was opened.
    pub stats: Option<Arc<Stats>>,
}

/// All targets.
#[derive(Debug, Default)]
pub struct Board {
    targets: RwLock<BTreeMap<String, Arc<TargetBoard>>>,
    files: Mutex<BTreeMap<(String, String), FilesFacts>>,
    postgres: Mutex<BTreeMap<(String, String), PostgresFacts>>,
    settings: SettingsCell,
    happened: Happened,
    notifications: Notifications,
    drill_plan: Mutex<Option<DrillPlan>>,
    drills_known: AtomicBool,
    insight: InsightBoard,
    probes: Mutex<BTreeMap<String, ProbeFacts>>,
    clock: ClockBoard,
    servers: Mutex<BTreeMap<String, ServerFacts>>,
}

impl Board {
    /// What the configuration says about observing.
    pub fn settings(&self) -> &SettingsCell {
        &self.settings
    }

    /// Notes what happened once.
    pub fn happen(&self, event: crate::notify::Event) {
        self.happened.add(event);
    }

    /// What happened once, numbered, the newest of it.
    pub fn happened(&self) -> Vec<(u64, crate::notify::Event)> {
        self.happened.all()
    }

    /// What was read of the app.
    pub fn insight(&self) -> &InsightBoard {
        &self.insight
    }

    /// What was seen of the clock.
    pub fn clock(&self) -> &ClockBoard {
        &self.clock
    }

    /// Notes when drills are due.
    pub fn plan_drills(&self, plan: DrillPlan) {
        *self
            .drill_plan
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(plan);
    }

    /// When drills are due, if they are planned at all.
    pub fn drill_plan(&self) -> Option<DrillPlan> {
        *self
            .drill_plan
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the records of the last drills were read, all of them.
    pub fn know_drills(&self) {
        self.drills_known.store(true, Ordering::Relaxed);
    }

    /// Whether they were.
    pub fn drills_known(&self) -> bool {
        self.drills_known.load(Ordering::Relaxed)
    }

    /// How telling goes.
    pub fn notifications(&self) -> &Notifications {
        &self.notifications
    }

    /// Adds a target.
    pub fn add(&self, facts: TargetFacts) -> Arc<TargetBoard> {
        let name = facts.name.clone();
        let board = Arc::new(TargetBoard(Mutex::new(facts)));
        self.targets
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, Arc::clone(&board));
        board
    }

    /// One target.
    pub fn target(&self, name: &str) -> Option<Arc<TargetBoard>> {
        let all = self.targets.read().unwrap_or_else(PoisonError::into_inner);
        all.get(name).cloned()
    }

    /// Drops a discovered target that vanished.
    pub fn remove(&self, name: &str) {
        self.targets
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        self.insight.remove(name);
    }

    /// Changes the facts of files in one store.
    pub fn update_files(&self, name: &str, store: &str, change: impl FnOnce(&mut FilesFacts)) {
        let mut all = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = all.entry((name.to_owned(), store.to_owned())).or_default();
        (facts.name, facts.store) = (name.to_owned(), store.to_owned());
        change(facts);
    }

    /// All files, by name and store.
    pub fn files(&self) -> Vec<FilesFacts> {
        let all = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }

    /// Changes the facts of a PostgreSQL database in one store.
    pub fn update_postgres(
        &self,
        name: &str,
        store: &str,
        change: impl FnOnce(&mut PostgresFacts),
    ) {
        let mut all = self.postgres.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = all.entry((name.to_owned(), store.to_owned())).or_default();
        (facts.name, facts.store) = (name.to_owned(), store.to_owned());
        change(facts);
    }

    /// Drops the facts of databases that are no targets any more.
    pub fn retain_postgres(&self, keep: impl Fn(&str) -> bool) {
        let mut all = self.postgres.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(name, _), _| keep(name));
    }

    /// All PostgreSQL databases, by name and store.
    pub fn postgres(&self) -> Vec<PostgresFacts> {
        let all = self.postgres.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }

    /// Sets the facts of a probe.
    pub fn put_probe(&self, facts: ProbeFacts) {
        let mut all = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(facts.name.clone(), facts);
    }

    /// All probes, by name.
    pub fn probes(&self) -> Vec<ProbeFacts> {
        let all = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }

    /// Sets the facts of a server.
    pub fn put_server(&self, facts: ServerFacts) {
        let mut all = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(facts.name.clone(), facts);
    }

    /// All servers, by name.
    pub fn servers(&self) -> Vec<ServerFacts> {
        let all = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }

    /// Every target's facts, by name.
    pub fn snapshot(&self) -> Vec<TargetFacts> {
        self.targets
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .map(|b| b.facts())
            .collect()
    }
}
