//! Ages of the newest copies, and what is kept in which tier.

use super::{STORE, Scrape, Spec};
use crate::observe::facts::StoreFacts;
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
const BASE_NEXT: Spec = (
    "lifeboat_base_next_timestamp_seconds",
    "When a newer full copy is due, if something was committed since; no series before the first",
    STORE,
);
const BASE_FAILING: Spec = (
    "lifeboat_base_failing",
    "1 while full copies fail that are due; what is there is restored from an older one",
    STORE,
);
const CONTACT: Spec = (
    "lifeboat_store_contact_timestamp_seconds",
    "When the store took something last or was looked at, an idle one once every store-check; 0 for never",
    STORE,
);
const DRILL_BLOCKED: Spec = (
    "lifeboat_drill_blocked",
    "1 if the last drill could not be made, so that nothing is known",
    STORE,
);
const RETENTION_FAILING: Spec = (
    "lifeboat_retention_failing",
    "1 if the last run of retention deleted nothing because something was wrong",
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

/// A drill that could not be made; retention that deletes nothing.
type Trouble = (bool, bool);

fn one_if(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

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
        let of_store = |spec: Spec, get: fn(&StoreFacts) -> Option<f64>| {
            let values = stores();
            let values =
                values.filter_map(|(name, s)| Some((vec![name, s.store.as_str()], get(s)?)));
            self.gauge(spec, values)
        };
        of_store(BASE_NEXT, |s| Some(super::seconds(Some(s.renewal_due?))))?;
        of_store(BASE_FAILING, |s| Some(one_if(s.renewal.is_some())))?;
        of_store(CONTACT, |s| Some(super::seconds(s.contact)))?;
        let troubles = |spec: Spec, get: fn(Trouble) -> bool| {
            let of_targets = stores().map(|(name, s)| {
                let trouble = (s.drill_problem.is_some(), s.retention_problem.is_some());
                (vec![name, s.store.as_str()], trouble)
            });
            let of_dumps = view.postgres.iter().map(|f| {
                let trouble = (f.drill_problem.is_some(), f.retention_problem.is_some());
                (vec![f.name.as_str(), f.store.as_str()], trouble)
            });
            let of_files = files().map(|f| {
                let trouble = (f.drill_problem.is_some(), f.retention_problem.is_some());
                (vec![f.name.as_str(), f.store.as_str()], trouble)
            });
            let all = of_targets.chain(of_dumps).chain(of_files);
            self.gauge(spec, all.map(|(labels, t)| (labels, one_if(get(t)))))
        };
        troubles(DRILL_BLOCKED, |t| t.0)?;
        troubles(RETENTION_FAILING, |t| t.1)?;
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
    for tier in Held::TIERS {
        held.add([tier].into_iter(), 1);
    }
    held
}
