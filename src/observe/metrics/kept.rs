//! Ages of the newest copies, and what is kept in which tier.

use super::{STORE, Scrape, Spec};
use crate::observe::health::Verdict;
use crate::observe::view::View;
use crate::postgres::Kind;
use crate::retention::Held;
use crate::types::Millis;

const FILES_AGE: Spec = (
    "lifeboat_files_age_seconds",
    "Age of the newest complete snapshot of files; no series before the first",
    STORE,
);
const FILES_FAILED_AT: Spec = (
    "lifeboat_files_failure_timestamp_seconds",
    "When a run failed or was not complete last; 0 for never",
    STORE,
);
const DUMP_AGE: Spec = (
    "lifeboat_postgres_age_seconds",
    "Age of the newest dump; no series before the first",
    STORE,
);
const DUMP_RATIO: Spec = (
    "lifeboat_postgres_size_ratio",
    "Size of the newest dump before compression, divided by that of the one before it; no series before there are two",
    STORE,
);
const DRILL_SINCE: Spec = (
    "lifeboat_drill_age_seconds",
    "How long ago the last drill began",
    STORE,
);
const BASE_AGE: Spec = (
    "lifeboat_base_age_seconds",
    "Age of the newest full copy; no series before the first",
    STORE,
);
const COPY_STATE: Spec = (
    "lifeboat_copy_state",
    "1 for the state that dumps or files of a target are in",
    &["target", "store", "state"],
);
/// Of [`crate::observe::health`]'s verdicts on them.
const COPY_STATES: [&str; 4] = ["waiting", "running", "steady", "failed"];
const KEPT: Spec = (
    "lifeboat_retention_objects",
    "Objects, dumps or snapshots that are kept, each in the first tier that wants it",
    &["target", "store", "tier"],
);
const KEPT_BYTES: Spec = (
    "lifeboat_retention_bytes",
    "Their bytes",
    &["target", "store", "tier"],
);

/// A clock that was set back makes nothing negative.
fn age(at: Millis, now: Millis) -> f64 {
    now.since(at).max(0) as f64 / 1000.0
}

impl Scrape {
    /// `verdicts` are all of the view.
    pub(super) fn kept(&self, view: &View, verdicts: &[Verdict]) -> prometheus::Result<()> {
        let now = view.now;
        let copies = verdicts.iter().skip(view.targets.len());
        let copies = copies.filter_map(|v| Some((v, v.stores.first()?.store.as_str())));
        let states = copies.flat_map(|(v, store)| {
            COPY_STATES.map(|word| {
                let labels = vec![v.name.as_str(), store, word];
                (labels, f64::from(u8::from(v.state == word)))
            })
        });
        self.gauge(COPY_STATE, states)?;
        let files = || view.files.iter();
        let ages = files().filter_map(|f| {
            let at = f.succeeded_at?;
            Some((vec![f.name.as_str(), f.store.as_str()], age(at, now)))
        });
        self.gauge(FILES_AGE, ages)?;
        let failed = files().map(|f| {
            let at = super::seconds(f.failed_at);
            (vec![f.name.as_str(), f.store.as_str()], at)
        });
        self.gauge(FILES_FAILED_AT, failed)?;
        for kind in [Kind::Postgres, Kind::Redis] {
            let named = |spec: Spec| spec.0.replacen("postgres", kind.word(), 1);
            let dumps = || view.postgres.iter().filter(|f| f.kind == kind);
            let ages = dumps().filter_map(|f| {
                let at = f.succeeded_at?;
                Some((vec![f.name.as_str(), f.store.as_str()], age(at, now)))
            });
            self.gauge_named(named(DUMP_AGE), DUMP_AGE, ages)?;
            let ratios = dumps()
                .filter_map(|f| Some((vec![f.name.as_str(), f.store.as_str()], f.size_ratio?)));
            self.gauge_named(named(DUMP_RATIO), DUMP_RATIO, ratios)?;
        }
        let stores = || {
            let targets = view.targets.iter();
            targets.flat_map(|(t, _)| t.stores.iter().map(|s| (t.name.as_str(), s)))
        };
        let bases = stores().filter_map(|(name, s)| {
            let at = s.base?.1;
            Some((vec![name, s.store.as_str()], age(at, now)))
        });
        self.gauge(BASE_AGE, bases)?;
        let of_targets = stores().map(|(name, s)| (name, s.store.as_str(), s.drill.as_ref()));
        let of_dumps = view.postgres.iter();
        let of_dumps = of_dumps.map(|f| (f.name.as_str(), f.store.as_str(), f.drill.as_ref()));
        let of_files = files().map(|f| (f.name.as_str(), f.store.as_str(), f.drill.as_ref()));
        let drills = of_targets.chain(of_dumps).chain(of_files);
        let drills = drills
            .filter_map(|(name, store, drill)| Some((vec![name, store], age(drill?.at, now))));
        self.gauge(DRILL_SINCE, drills)?;

        let of_targets = stores().map(|(name, s)| (name, s.store.as_str(), &s.held));
        let of_dumps = view.postgres.iter();
        let of_dumps = of_dumps.map(|f| (f.name.as_str(), f.store.as_str(), &f.held));
        let of_files = files().map(|f| (f.name.as_str(), f.store.as_str(), &f.held));
        let all: Vec<(&str, &str, &Held)> = of_targets.chain(of_dumps).chain(of_files).collect();
        let tiers = |get: fn((&'static str, u64, u64)) -> u64| {
            all.iter().flat_map(move |(name, store, held)| {
                held.iter().map(move |tier| {
                    let labels = vec![*name, *store, tier.0];
                    (labels, get(tier) as f64)
                })
            })
        };
        self.gauge(KEPT, tiers(|t| t.1))?;
        self.gauge(KEPT_BYTES, tiers(|t| t.2))
    }
}

#[cfg(test)]
pub(super) fn sample() -> Held {
    let mut held = Held::default();
    held.add(["daily"].into_iter(), 1);
    held
}
