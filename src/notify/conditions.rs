//! What is wrong at one moment, as a pure function of a [`View`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::event::Kind;
use crate::observe::app::{AppVerdict, Part};
use crate::observe::facts::{
    DrillFacts, FilesFacts, PostgresFacts, State, StoreFacts, TargetFacts,
};
use crate::observe::health::Verdict;
use crate::observe::services::Service;
use crate::observe::view::View;
use crate::observe::volume::MAKE_ROOM;
use crate::types::Millis;

/// Begins the key of a target that is not safe.
const UNSAFE: &str = "unsafe ";
/// Comes behind it while the first copy is on its way, or nothing is known yet.
const FIRST: &str = "first ";
/// A first copy takes its time: only after this long is it a problem that there is none.
const FIRST_COPY: Duration = Duration::from_secs(3600);

/// Something that lasts until it is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// What.
    pub kind: Kind,
    /// Target or folder.
    pub subject: String,
    /// Why, in words.
    pub reasons: Vec<String>,
    /// What to do.
    pub hints: Vec<String>,
    /// Before it has lasted so long it is nothing to tell.
    pub patience: Duration,
}

/// What a channel has to know of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// When.
    pub now: Millis,
    /// By a key that stays the same while they last.
    pub conditions: BTreeMap<String, Condition>,
    /// Every subject that exists, with or without a condition.
    pub present: BTreeSet<String>,
    /// Targets that have a complete copy.
    pub copied: BTreeSet<String>,
    /// There are targets, and all are safe.
    pub safe: bool,
    /// What happened once, numbered: rising, never twice.
    pub happened: Vec<(u64, super::event::Event)>,
}

impl Seen {
    /// What a view shows.
    pub fn of(view: &View) -> Self {
        let verdicts = view.verdicts();
        let mut seen = Self {
            now: view.now,
            safe: !verdicts.is_empty() && verdicts.iter().all(|v| v.safe),
            ..Self::default()
        };
        let (databases, others) = verdicts.split_at(view.targets.len());
        for ((target, _), verdict) in view.targets.iter().zip(databases) {
            seen.database(target, verdict, view.now);
        }
        let (dumps, files) = others.split_at(view.postgres.len());
        for (facts, verdict) in view.postgres.iter().zip(dumps) {
            seen.postgres(facts, verdict);
        }
        for (facts, verdict) in view.files.iter().zip(files) {
            seen.files(facts, verdict);
        }
        // It is there, whether or not it was set lately.
        seen.present.insert("clock".to_owned());
        // Queues that are stuck, servers that are down and volumes with little room are told as such, below.
        let services = view.services();
        for service in services
            .iter()
            .filter(|s| !["queue", "postgres", "redis", "volume"].contains(&s.kind))
        {
            seen.service(service);
        }
        for app in view.apps() {
            seen.app(&app, view);
        }
        for volume in &view.volumes {
            let path = volume.path.display().to_string();
            let min_free = view.settings.min_free.bytes_of(volume.total_bytes);
            seen.present.insert(path.clone());
            if let Some(reason) = volume.trouble(min_free) {
                let hint = MAKE_ROOM.to_owned();
                seen.add(Kind::DiskLow, &path, "", vec![reason], vec![hint]);
            }
        }
        seen
    }

    /// What was told as unsafe is begun again, as after a restart: nothing shows yet that it is safe.
    pub fn is_unknown_again(&self, key: &str) -> bool {
        let stage = key.strip_prefix(UNSAFE);
        stage.is_some_and(|rest| {
            self.conditions
                .contains_key(&format!("{UNSAFE}{FIRST}{rest}"))
        })
    }

    fn add(
        &mut self,
        kind: Kind,
        subject: &str,
        store: &str,
        reasons: Vec<String>,
        hints: Vec<String>,
    ) {
        let condition = Condition {
            kind,
            subject: subject.to_owned(),
            reasons,
            hints,
            patience: Duration::ZERO,
        };
        let key = format!("{} {subject} {store}", kind.word());
        self.conditions.insert(key, condition);
    }

    fn unsafe_(&mut self, verdict: &Verdict, patience: Duration) {
        self.present.insert(verdict.name.clone());
        if verdict.safe {
            return;
        }
        let condition = Condition {
            kind: Kind::Unsafe,
            subject: verdict.name.clone(),
            reasons: verdict.reasons.clone(),
            hints: verdict.hints.clone(),
            patience,
        };
        // Files and dumps have a verdict for each store.
        let store = verdict.stores.first().map_or("", |s| s.store.as_str());
        // A first copy that is on its way is another matter than trouble after it.
        let stage = if patience.is_zero() { "" } else { FIRST };
        let key = format!("{UNSAFE}{stage}{} {store}", verdict.name);
        self.conditions.insert(key, condition);
    }

    /// Whether it works; a file that is gone is told as a target that is not safe.
    fn app(&mut self, app: &AppVerdict, view: &View) {
        let read = view.insight.get(&app.name);
        let kind = if read.is_some_and(|f| f.failed.is_some()) {
            Kind::DatabaseDown
        } else if app.queue == Part::Stuck {
            Kind::QueueStuck
        } else {
            return;
        };
        self.add(kind, &app.name, "", app.reasons.clone(), app.hints.clone());
    }

    fn database(&mut self, f: &TargetFacts, verdict: &Verdict, now: Millis) {
        let troubled = |s: &StoreFacts| s.failing_since.is_some() || s.refused.is_some();
        let first = f.stores.iter().all(|s| s.durable.is_none());
        let beginning = first && matches!(f.state, State::Waiting | State::Seeding | State::Steady);
        let patience = if beginning && !f.stores.iter().any(troubled) {
            FIRST_COPY
        } else {
            Duration::ZERO
        };
        self.unsafe_(verdict, patience);
        if !f.stores.is_empty() && f.stores.iter().all(|s| s.durable.is_some()) {
            self.copied.insert(f.name.clone());
        }
        if f.state == State::NotOwner {
            let reasons = f.detail.iter().cloned().collect();
            self.add(
                Kind::Ownership,
                &f.name,
                "",
                reasons,
                f.hint.iter().cloned().collect(),
            );
        }
        for s in &f.stores {
            self.store_of_database(f, s, now);
        }
    }

    fn store_of_database(&mut self, f: &TargetFacts, s: &StoreFacts, now: Millis) {
        let objective = i64::try_from(f.objective.as_millis()).unwrap_or(i64::MAX);
        let hints: Vec<String> = s.hint.iter().cloned().collect();
        if let Some(refused) = &s.refused {
            let reasons = vec![format!("{}: {refused}", s.store)];
            self.add(Kind::Ownership, &f.name, &s.store, reasons, hints.clone());
        }
        if let Some(since) = s.failing_since.filter(|t| now.since(*t) > objective) {
            let why = s.last_error.as_deref().unwrap_or("no reason given");
            let reasons = vec![format!("{}: since {since}: {why}", s.store)];
            self.add(Kind::StoreUnreachable, &f.name, &s.store, reasons, hints);
        }
        self.retention(&f.name, &s.store, s.retention_problem.as_deref());
        self.drill(&f.name, &s.store, s.drill.as_ref());
    }

    fn retention(&mut self, name: &str, store: &str, problem: Option<&str>) {
        if let Some(problem) = problem {
            let reasons = vec![format!("{store}: {problem}")];
            self.add(Kind::Retention, name, store, reasons, Vec::new());
        }
    }

    fn drill(&mut self, name: &str, store: &str, drill: Option<&DrillFacts>) {
        let Some(drill) = drill.filter(|d| !d.ok) else {
            return;
        };
        let why = drill.failure.as_deref().unwrap_or("no reason recorded");
        let reasons = vec![format!("{store}: at {}: {why}", drill.at)];
        let hint = format!(
            "`lifeboat verify {name}` names damaged objects; `lifeboat drill {name}` tries again"
        );
        self.add(Kind::DrillFailed, name, store, reasons, vec![hint]);
    }

    fn postgres(&mut self, f: &PostgresFacts, verdict: &Verdict) {
        let beginning = f.succeeded_at.is_none() && f.last_error.is_none();
        let patience = if beginning {
            FIRST_COPY
        } else {
            Duration::ZERO
        };
        self.unsafe_(verdict, patience);
        if f.succeeded_at.is_some() {
            self.copied.insert(f.name.clone());
        }
        let hints: Vec<String> = f.hint.iter().cloned().collect();
        if let Some(error) = &f.last_error {
            let reasons = vec![format!("{}: {error}", f.store)];
            self.add(Kind::DumpFailed, &f.name, &f.store, reasons, hints);
        }
        self.drill(&f.name, &f.store, f.drill.as_ref());
        self.retention(&f.name, &f.store, f.retention_problem.as_deref());
        if !f.anomalies.is_empty() {
            let hint = format!(
                "look at it; if it is right, `lifeboat prune --accept {}` takes it as the new measure",
                f.name
            );
            let reasons = f.anomalies.iter().map(|a| format!("{}: {a}", f.store));
            self.add(
                Kind::SizeAnomaly,
                &f.name,
                &f.store,
                reasons.collect(),
                vec![hint],
            );
        }
    }

    /// What is not known yet is no news.
    fn service(&mut self, s: &Service) {
        self.present.insert(s.name.clone());
        let say = |words: &[String]| {
            words
                .iter()
                .map(|w| format!("{}: {w}", s.address))
                .collect()
        };
        if s.is_bad() {
            self.add(
                Kind::AppDown,
                &s.name,
                s.kind,
                say(&s.reasons),
                s.hints.clone(),
            );
        }
        if !s.warnings.is_empty() {
            let kind = match s.kind {
                "clock" => Kind::Clock,
                _ => Kind::Certificate,
            };
            self.add(kind, &s.name, s.kind, say(&s.warnings), s.hints.clone());
        }
    }

    fn files(&mut self, f: &FilesFacts, verdict: &Verdict) {
        let beginning = f.succeeded_at.is_none() && f.last_error.is_none();
        let patience = if beginning {
            FIRST_COPY
        } else {
            Duration::ZERO
        };
        self.unsafe_(verdict, patience);
        if f.succeeded_at.is_some() {
            self.copied.insert(f.name.clone());
        }
        if let Some(error) = &f.last_error {
            let hints = f.hint.iter().cloned().collect();
            let reasons = vec![format!("{}: {error}", f.store)];
            self.add(Kind::FilesFailed, &f.name, &f.store, reasons, hints);
        }
        self.drill(&f.name, &f.store, f.drill.as_ref());
        self.retention(&f.name, &f.store, f.retention_problem.as_deref());
    }
}
