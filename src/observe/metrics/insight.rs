//! What was read of the app. SQLite under names of our own.

use super::{Scrape, Spec, TARGET, seconds};
use crate::observe::facts::TargetFacts;
use crate::observe::insight::{AppFacts, SqliteFacts};
use crate::observe::view::View;

const AT: Spec = (
    "lifeboat_insight_timestamp_seconds",
    "When the app's database was read last",
    TARGET,
);
const READABLE: Spec = (
    "lifeboat_insight_readable",
    "1 if the app's database could be read at the last look",
    TARGET,
);
const TOOK: Spec = (
    "lifeboat_insight_seconds_total",
    "How long looks at the app's database took",
    TARGET,
);
const GIVEN_UP: Spec = (
    "lifeboat_insight_given_up_total",
    "Questions to the app's database that took longer than they may",
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

impl Scrape {
    pub(super) fn insight(&self, view: &View) -> prometheus::Result<()> {
        self.commits(view)?;
        let all: Vec<(&str, &AppFacts)> = view
            .insight
            .iter()
            .map(|(name, facts)| (name.as_str(), facts))
            .collect();
        let each = |get: fn(&AppFacts) -> f64| all.iter().map(move |(n, f)| (vec![*n], get(f)));
        self.gauge(AT, each(|f| seconds(f.at)))?;
        self.gauge(
            READABLE,
            each(|f| f64::from(u8::from(f.failed.is_none() && f.at.is_some()))),
        )?;
        self.counter_of_seconds(TOOK, each(|f| f.seconds))?;
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
        sqlite(SCHEMA, |s| s.schema_version)
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

/// One of everything.
#[cfg(test)]
pub(super) fn sample() -> std::collections::BTreeMap<String, AppFacts> {
    let facts = AppFacts {
        sqlite: Some(SqliteFacts::default()),
        ..AppFacts::default()
    };
    [("app".to_owned(), facts)].into()
}
