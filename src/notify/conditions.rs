//! What is wrong at one moment, as a pure function of a [`View`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::event::Kind;
use crate::observe::app::{AppVerdict, Part};
use crate::observe::facts::{
    DrillFacts, DrillProblem, FilesFacts, PostgresFacts, State, StoreFacts, TargetFacts,
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

/// One that fails is tried again within minutes; only a row of failures is news.
const FULL_COPY: Duration = Duration::from_secs(3600);

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
    /// Of whom nobody knows yet, or at the moment, whether a condition of this kind holds: that none is here proves nothing.
    pub unsure: BTreeSet<(Kind, String)>,
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
            seen.database(target, verdict, view);
        }
        let (dumps, files) = others.split_at(view.postgres.len());
        for (facts, verdict) in view.postgres.iter().zip(dumps) {
            seen.postgres(facts, verdict, view);
        }
        for (facts, verdict) in view.files.iter().zip(files) {
            seen.files(facts, verdict, view);
        }
        seen.drills_late(view);
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
        // A certificate that is refused, or an app that is away, shows none.
        for probe in view
            .probes
            .iter()
            .filter(|p| p.address.starts_with("https:"))
        {
            let is_known = probe.certificate_expires.is_some();
            seen.unsure_unless(is_known, &[Kind::Certificate], &probe.name);
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

    /// It exists, or it is a database of a server that exists and says nothing of its databases.
    pub fn is_present(&self, subject: &str) -> bool {
        let server = subject.split_once('/').map(|(server, _)| server);
        self.present.contains(subject) || server.is_some_and(|s| self.present.contains(s))
    }

    fn unsure_unless(&mut self, is_known: bool, kinds: &[Kind], subject: &str) {
        if !is_known {
            let pairs = kinds.iter().map(|kind| (*kind, subject.to_owned()));
            self.unsure.extend(pairs);
        }
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
        // Where nobody looks any more there is nothing to wait for.
        let is_read = |part| read.is_none() || !matches!(part, Part::Unknown | Part::Failed);
        self.unsure_unless(is_read(app.queue), &[Kind::QueueStuck], &app.name);
        let is_up = app.database != Part::Unknown || read.is_none();
        self.unsure_unless(is_up, &[Kind::DatabaseDown], &app.name);
        let kind = if read.is_some_and(|f| f.failed.is_some()) {
            Kind::DatabaseDown
        } else if app.queue == Part::Stuck {
            Kind::QueueStuck
        } else {
            return;
        };
        self.add(kind, &app.name, "", app.reasons.clone(), app.hints.clone());
    }

    fn database(&mut self, f: &TargetFacts, verdict: &Verdict, view: &View) {
        // What this process has seen itself of each store.
        let stores = || f.stores.iter();
        let is_known = stores().all(|s| s.durable.is_some());
        let kinds = [Kind::Unsafe, Kind::StoreUnreachable, Kind::Ownership];
        self.unsure_unless(is_known, &kinds, &f.name);
        let is_pruned = stores().all(|s| s.pruned_at.is_some());
        self.unsure_unless(is_pruned, &[Kind::Retention], &f.name);
        self.unsure_unless(view.drills_known, &[Kind::DrillFailed], &f.name);
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
            self.store_of_database(f, s, view.now);
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
        if let Some(problem) = s.renewal_problem() {
            let condition = Condition {
                kind: Kind::StoreUnreachable,
                subject: f.name.clone(),
                reasons: vec![problem],
                hints: Vec::new(),
                patience: FULL_COPY,
            };
            let key = format!("full copies {} {}", f.name, s.store);
            self.conditions.insert(key, condition);
        }
        self.retention(&f.name, &s.store, s.retention_problem.as_deref());
        self.drill(
            &f.name,
            &s.store,
            (s.drill.as_ref(), s.drill_problem.as_ref()),
        );
    }

    fn retention(&mut self, name: &str, store: &str, problem: Option<&str>) {
        if let Some(problem) = problem {
            let reasons = vec![format!("{store}: {problem}")];
            self.add(Kind::Retention, name, store, reasons, Vec::new());
        }
    }

    fn drill(
        &mut self,
        name: &str,
        store: &str,
        (drill, problem): (Option<&DrillFacts>, Option<&DrillProblem>),
    ) {
        let failed = drill.filter(|d| !d.ok).map(|d| {
            let why = d.failure.as_deref().unwrap_or("no reason recorded");
            format!("{store}: at {}: {why}", d.at)
        });
        let blocked =
            problem.map(|p| format!("{store}: at {} it could not be made: {}", p.at, p.why));
        let reasons: Vec<String> = failed.into_iter().chain(blocked).collect();
        if reasons.is_empty() {
            return;
        }
        let hint = format!(
            "`lifeboat verify {name}` names damaged objects; `lifeboat drill {name}` tries again"
        );
        self.add(Kind::DrillFailed, name, store, reasons, vec![hint]);
    }

    /// The schedule itself: nothing that was due has ended.
    fn drills_late(&mut self, view: &View) {
        let subject = "every target";
        self.present.insert(subject.to_owned());
        let Some(plan) = view.drill_plan else {
            return;
        };
        let limit = i64::try_from(plan.objective.as_millis()).unwrap_or(i64::MAX);
        if view.now.since(plan.next) > limit {
            let reasons = vec![format!(
                "drills were due at {}, and have not ended",
                plan.next
            )];
            let hints = vec!["restart lifeboat, and report it with its log".to_owned()];
            self.add(Kind::DrillFailed, subject, "", reasons, hints);
        }
    }

    fn postgres(&mut self, f: &PostgresFacts, verdict: &Verdict, view: &View) {
        let is_known = is_known((f.runs, f.running_since, f.next), view.now);
        self.unsure_unless(is_known, &[Kind::Unsafe, Kind::DumpFailed], &f.name);
        self.unsure_unless(f.dump.is_some(), &[Kind::SizeAnomaly], &f.name);
        self.unsure_unless(f.pruned_at.is_some(), &[Kind::Retention], &f.name);
        self.unsure_unless(view.drills_known, &[Kind::DrillFailed], &f.name);
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
        self.drill(
            &f.name,
            &f.store,
            (f.drill.as_ref(), f.drill_problem.as_ref()),
        );
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
        self.unsure_unless(s.state != "unknown", &[Kind::AppDown], &s.name);
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

    fn files(&mut self, f: &FilesFacts, verdict: &Verdict, view: &View) {
        let is_known = is_known((f.runs, f.running_since, f.next), view.now);
        self.unsure_unless(is_known, &[Kind::Unsafe, Kind::FilesFailed], &f.name);
        self.unsure_unless(f.pruned_at.is_some(), &[Kind::Retention], &f.name);
        self.unsure_unless(view.drills_known, &[Kind::DrillFailed], &f.name);
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
        self.drill(
            &f.name,
            &f.store,
            (f.drill.as_ref(), f.drill_problem.as_ref()),
        );
        self.retention(&f.name, &f.store, f.retention_problem.as_deref());
    }
}

/// Whether this process knows what runs come to: one has ended, or none was missed before it began.
fn is_known((runs, running, next): (u64, Option<Millis>, Option<Millis>), now: Millis) -> bool {
    runs > 0 || (running.is_none() && next.is_some_and(|next| next > now))
}

#[cfg(test)]
mod tests;
