//! What was read of the app. SQLite under names of our own.

use super::{Scrape, Spec, TARGET, seconds};
use crate::observe::app::{AppVerdict, Part};
use crate::observe::facts::TargetFacts;
use crate::observe::insight::{AppFacts, CableFacts, CacheFacts, Jobs, QueueFacts, SqliteFacts};
use crate::observe::view::View;
use crate::types::Millis;

const DATABASE_UP: Spec = (
    "lifeboat_database_up",
    "1 if the app's database can be read; no series where nobody knows",
    TARGET,
);
const AT: Spec = (
    "lifeboat_insight_timestamp_seconds",
    "When the app's database was read last",
    TARGET,
);
const TOOK: Spec = (
    "lifeboat_insight_seconds_total",
    "How long looks at the app's database took",
    TARGET,
);
const GIVEN_UP: Spec = (
    "lifeboat_insight_given_up_total",
    "Questions to the app's database that took longer than they may, or had no answer",
    TARGET,
);
const PAGE_SIZE: Spec = (
    "lifeboat_sqlite_page_size_bytes",
    "Size of a page of the database",
    TARGET,
);
const FREE_PAGES: Spec = (
    "lifeboat_sqlite_free_pages",
    "Pages of the database that hold nothing",
    TARGET,
);
const FREE_BYTES: Spec = (
    "lifeboat_sqlite_free_bytes",
    "Their bytes: VACUUM would give them back",
    TARGET,
);
const SCHEMA: Spec = (
    "lifeboat_sqlite_schema_version",
    "SQLite's schema cookie: every change of the schema changes it",
    TARGET,
);
const COMMITTED_AT: Spec = (
    "lifeboat_sqlite_last_commit_timestamp_seconds",
    "When the newest captured commit was captured, at most a sync interval after it",
    TARGET,
);
const COMMITS: Spec = (
    "lifeboat_sqlite_commits_total",
    "Commits captured; those that a gap capture covers are not counted",
    TARGET,
);
const CHANGED: Spec = (
    "lifeboat_sqlite_changed_pages_total",
    "Pages that these commits changed, each as often as a commit did",
    TARGET,
);
const JOBS: Spec = (
    "lifeboat_queue_jobs",
    "Jobs of Solid Queue by queue and state",
    &["target", "queue", "state"],
);
const PAUSED: Spec = (
    "lifeboat_queue_paused",
    "1 for a queue that somebody paused",
    &["target", "queue"],
);
const OLDEST_READY: Spec = (
    "lifeboat_queue_oldest_ready_timestamp_seconds",
    "Since when the oldest ready job of a queue that is not paused waits; 0 if there is none",
    TARGET,
);
const OLDEST_READY_AGE: Spec = (
    "lifeboat_queue_oldest_ready_seconds",
    "For how long it has waited; 0 if there is none",
    TARGET,
);
const DUE: Spec = (
    "lifeboat_queue_next_scheduled_timestamp_seconds",
    "When the next scheduled job is due; 0 if there is none",
    TARGET,
);
const OVERDUE: Spec = (
    "lifeboat_queue_overdue_seconds",
    "For how long it has been due; 0 if it is not",
    TARGET,
);
const OBJECTIVE: Spec = (
    "lifeboat_queue_objective_seconds",
    "For how long a job may be ready or due: max-queue-wait of the configuration",
    TARGET,
);
const PROCESSES: Spec = (
    "lifeboat_queue_processes",
    "Processes of Solid Queue with a fresh heartbeat, by kind",
    &["target", "kind"],
);
const STUCK: Spec = (
    "lifeboat_queue_stuck",
    "1 if jobs wait for longer than they may, or are ready without a living worker",
    TARGET,
);
const ENTRIES: Spec = (
    "lifeboat_cache_entries",
    "Entries of Solid Cache, estimated above 10,000",
    TARGET,
);
const CACHE_BYTES: Spec = (
    "lifeboat_cache_bytes",
    "Their bytes as Solid Cache counts them, estimated above 10,000 entries",
    TARGET,
);
const CACHE_OLDEST: Spec = (
    "lifeboat_cache_oldest_timestamp_seconds",
    "When the oldest entry was written; 0 if there is none",
    TARGET,
);
const MESSAGES: Spec = (
    "lifeboat_cable_messages",
    "Messages of Solid Cable, estimated above 10,000",
    TARGET,
);
const CABLE_OLDEST: Spec = (
    "lifeboat_cable_oldest_timestamp_seconds",
    "When the oldest was sent; 0 if there is none",
    TARGET,
);

/// Kinds that every Solid Queue has: 0 says that there is none alive.
const KINDS: [&str; 2] = ["Worker", "Dispatcher"];
/// Kinds with series of their own.
const KINDS_MAX: usize = 10;

/// A database and what was read of it.
type Read<'a> = (&'a str, &'a AppFacts);

impl Scrape {
    pub(super) fn insight(&self, view: &View) -> prometheus::Result<()> {
        self.commits(view)?;
        let apps = view.apps();
        let known = |a: &&AppVerdict| matches!(a.database, Part::Ok | Part::Failed);
        let up = apps.iter().filter(known);
        let up = up.map(|a| (vec![a.name.as_str()], one_if(a.database == Part::Ok)));
        self.gauge(DATABASE_UP, up)?;
        let all: Vec<Read> = view.insight.iter().map(|(n, f)| (n.as_str(), f)).collect();
        self.gauge(AT, all.iter().map(|(n, f)| (vec![*n], seconds(f.at))))?;
        let took = all.iter().map(|(n, f)| (vec![*n], f.seconds));
        self.counter_of_seconds(TOOK, took)?;
        let given_up = all.iter().map(|(n, f)| (vec![*n], f.given_up));
        self.counter(GIVEN_UP, given_up)?;
        let sqlite = |spec: Spec, get: fn(&SqliteFacts) -> u64| {
            let mine = all.iter();
            let mine = mine.filter_map(|(n, f)| Some((vec![*n], get(f.sqlite.as_ref()?) as f64)));
            self.gauge(spec, mine)
        };
        sqlite(PAGE_SIZE, |s| s.page_size)?;
        sqlite(FREE_PAGES, |s| s.free_pages)?;
        sqlite(FREE_BYTES, |s| s.free_pages * s.page_size)?;
        sqlite(SCHEMA, |s| s.schema_version)?;
        // What was true long ago would be taken for now.
        let every = view.settings.insight.every;
        let current = all.iter().filter(|(_, f)| f.is_current(every, view.now));
        let current: Vec<Read> = current.copied().collect();
        self.queues(&current, &apps, view)?;
        self.caches(&current)
    }

    fn queues(&self, all: &[Read], apps: &[AppVerdict], view: &View) -> prometheus::Result<()> {
        let (config, now) = (&view.settings.insight, view.now);
        let queues = all
            .iter()
            .filter_map(|(n, f)| Some((*n, f.queue.as_ref()?)));
        let queues: Vec<(&str, &QueueFacts)> = queues.collect();
        let jobs = queues.iter().flat_map(|(n, q)| {
            q.queues.iter().flat_map(move |(queue, counts)| {
                let kinds = Jobs::ALL
                    .into_iter()
                    .filter(|kind| q.counted.contains(kind));
                kinds.map(move |kind| {
                    let count = counts.get(&kind).copied().unwrap_or(0);
                    (vec![*n, queue.as_str(), kind.word()], count as f64)
                })
            })
        });
        self.gauge(JOBS, jobs)?;
        let paused = queues.iter();
        let paused = paused.flat_map(|(n, q)| q.paused.iter().map(|p| (vec![*n, p.as_str()], 1.0)));
        self.gauge(PAUSED, paused)?;
        let time = |spec: Spec, get: fn(&QueueFacts) -> Option<Option<Millis>>| {
            let mine = queues.iter();
            self.gauge(
                spec,
                mine.filter_map(|(n, q)| Some((vec![*n], seconds(get(q)?)))),
            )
        };
        let age = |spec: Spec, get: fn(&QueueFacts) -> Option<Option<Millis>>| {
            let mine = queues.iter();
            self.gauge(
                spec,
                mine.filter_map(|(n, q)| {
                    let waited = get(q)?.map_or(0, |at| now.since(at).max(0));
                    Some((vec![*n], waited as f64 / 1000.0))
                }),
            )
        };
        time(OLDEST_READY, |q| q.oldest_ready)?;
        age(OLDEST_READY_AGE, |q| q.oldest_ready)?;
        time(DUE, |q| q.next_scheduled)?;
        age(OVERDUE, |q| q.next_scheduled)?;
        let objective = queues.iter();
        let allowed = config.max_queue_wait.as_secs_f64();
        self.gauge(OBJECTIVE, objective.map(|(n, _)| (vec![*n], allowed)))?;
        let processes = queues.iter().flat_map(|(n, q)| {
            let there = q.processes.iter().flat_map(|p| p.keys());
            let there = there.map(String::as_str).take(KINDS_MAX);
            let kinds: std::collections::BTreeSet<&str> = match q.processes {
                Some(_) => KINDS.into_iter().chain(there).collect(),
                None => Default::default(),
            };
            kinds.into_iter().map(move |kind| {
                let fresh = q.fresh(kind, config.max_heartbeat_age, now);
                (vec![*n, kind], fresh as f64)
            })
        });
        self.gauge(PROCESSES, processes)?;
        let judged = apps
            .iter()
            .filter(|a| queues.iter().any(|(n, _)| *n == a.name));
        let stuck = judged.map(|a| (vec![a.name.as_str()], one_if(a.queue == Part::Stuck)));
        self.gauge(STUCK, stuck)
    }

    fn caches(&self, all: &[Read]) -> prometheus::Result<()> {
        let cache = |spec: Spec, get: fn(&CacheFacts) -> Option<f64>| {
            let mine = all.iter();
            self.gauge(
                spec,
                mine.filter_map(|(n, f)| Some((vec![*n], get(f.cache.as_ref()?)?))),
            )
        };
        cache(ENTRIES, |c| c.entries.map(|n| n as f64))?;
        cache(CACHE_BYTES, |c| c.bytes.map(|n| n as f64))?;
        cache(CACHE_OLDEST, |c| c.oldest.map(seconds))?;
        let cable = |spec: Spec, get: fn(&CableFacts) -> f64| {
            let mine = all.iter();
            self.gauge(
                spec,
                mine.filter_map(|(n, f)| Some((vec![*n], get(f.cable.as_ref()?)))),
            )
        };
        cable(MESSAGES, |c| c.messages as f64)?;
        cable(CABLE_OLDEST, |c| seconds(c.oldest))
    }

    /// What capture knows by itself.
    fn commits(&self, view: &View) -> prometheus::Result<()> {
        let targets = || view.targets.iter().map(|(t, _)| t);
        let counter = |spec: Spec, get: fn(&TargetFacts) -> u64| {
            self.counter(spec, targets().map(|t| (vec![t.name.as_str()], get(t))))
        };
        counter(COMMITS, |t| t.commits)?;
        counter(CHANGED, |t| t.changed_pages)?;
        let at = targets().map(|t| (vec![t.name.as_str()], seconds(t.captured_at)));
        self.gauge(COMMITTED_AT, at)
    }
}

fn one_if(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// One of everything, read at `now`.
#[cfg(test)]
pub(super) fn sample(now: Millis) -> std::collections::BTreeMap<String, AppFacts> {
    let facts = AppFacts {
        at: Some(now),
        sqlite: Some(SqliteFacts::default()),
        queue: Some(QueueFacts {
            queues: [("default".to_owned(), Default::default())].into(),
            counted: Jobs::ALL.into(),
            paused: ["mailers".to_owned()].into(),
            oldest_ready: Some(None),
            next_scheduled: Some(None),
            processes: Some(Default::default()),
        }),
        cache: Some(CacheFacts {
            entries: Some(1),
            bytes: Some(2),
            oldest: Some(None),
        }),
        cable: Some(CableFacts::default()),
        ..AppFacts::default()
    };
    [("app".to_owned(), facts)].into()
}
