//! Every metric name, here and in the modules below: docs/metrics.md is checked against them. Base units; one series a target and store.

mod host;
mod insight;
mod kept;
mod requests;
mod servers;
mod services;
mod told;

use prometheus::process_collector::ProcessCollector;
use prometheus::{CounterVec, Encoder, GaugeVec, IntCounterVec, Opts, Registry, TextEncoder};

use super::facts::{DrillFacts, FilesFacts, PostgresFacts, State, TargetFacts};
use super::health::{Verdict, files_verdict, postgres_verdict};
use super::view::View;
use crate::postgres::Kind;
use crate::sqlite::guard::GapReason;
use crate::types::{Millis, Txid};

/// Name, help, labels.
type Spec = (&'static str, &'static str, &'static [&'static str]);

const TARGET: &[&str] = &["target"];
const STORE: &[&str] = &["target", "store"];

const READY: Spec = (
    "lifeboat_ready",
    "1 if everything within the objective is durable in every store",
    TARGET,
);
const STATE: Spec = (
    "lifeboat_state",
    "1 for the state that the target is in",
    &["target", "state"],
);
const OBJECTIVE: Spec = ("lifeboat_objective_seconds", "Allowed lag", TARGET);
const CAPTURED: Spec = ("lifeboat_captured_txid", "Last captured TXID", TARGET);
const CAPTURED_AT: Spec = (
    "lifeboat_captured_timestamp_seconds",
    "When it was captured",
    TARGET,
);
const LOOK: Spec = (
    "lifeboat_last_look_timestamp_seconds",
    "When capture looked at the WAL-index last",
    TARGET,
);
const WAL: Spec = ("lifeboat_wal_bytes", "Size of the WAL", TARGET);
const DB: Spec = (
    "lifeboat_database_bytes",
    "Size of the database file",
    TARGET,
);
const SPOOL: Spec = ("lifeboat_spool_bytes", "LTX files kept locally", TARGET);
const SPOOL_FILES: Spec = (
    "lifeboat_spool_files",
    "Number of LTX files kept locally",
    TARGET,
);
const LAG: Spec = (
    "lifeboat_lag_seconds",
    "Age of the oldest committed change that is not durable; 0 if all is",
    STORE,
);
const LAG_BYTES: Spec = (
    "lifeboat_lag_bytes",
    "Captured bytes that are not durable",
    STORE,
);
const DURABLE: Spec = (
    "lifeboat_durable_txid",
    "Last TXID that can be restored",
    STORE,
);
const DURABLE_AT: Spec = (
    "lifeboat_durable_timestamp_seconds",
    "When it was acknowledged",
    STORE,
);
const BASE_AT: Spec = (
    "lifeboat_base_timestamp_seconds",
    "When the newest full copy was taken",
    STORE,
);
const OBJECTS: Spec = ("lifeboat_store_objects", "LTX objects", STORE);
const LABELS_LOST: Spec = (
    "lifeboat_labels_lost",
    "Labels whose point is not restorable any more",
    STORE,
);
const OBJECT_BYTES: Spec = ("lifeboat_store_bytes", "Bytes of LTX objects", STORE);

const DRILL_AT: Spec = (
    "lifeboat_drill_timestamp_seconds",
    "When the last drill began",
    STORE,
);
const DRILL_NEXT: Spec = (
    "lifeboat_drill_next_timestamp_seconds",
    "When the next drills are due; no series without a schedule",
    &[],
);
const DRILL_OBJECTIVE: Spec = (
    "lifeboat_drill_objective_seconds",
    "Allowed age of the last drill: until the second one after it has been due",
    &[],
);
const DRILL_OK: Spec = (
    "lifeboat_drill_success",
    "1 if every check of the last drill passed",
    STORE,
);
const DRILL_RESTORE: Spec = (
    "lifeboat_drill_restore_seconds",
    "How long the restore of the last drill took",
    STORE,
);
const DRILL_AGE: Spec = (
    "lifeboat_drill_data_age_seconds",
    "Age of the point that the last drill restored, when it began",
    STORE,
);

const CAPTURES: Spec = ("lifeboat_captures_total", "Captures", TARGET);
const CAPTURED_BYTES: Spec = ("lifeboat_captured_bytes_total", "Bytes of captures", TARGET);
const CAPTURED_PAGES: Spec = ("lifeboat_captured_pages_total", "Pages in captures", TARGET);
const GAPS: Spec = (
    "lifeboat_gap_captures_total",
    "Gap captures by reason",
    &["target", "reason"],
);
const BARRIERS: Spec = (
    "lifeboat_checkpoints_total",
    "Checkpoint barriers by result",
    &["target", "result"],
);
const ERRORS: Spec = (
    "lifeboat_capture_errors_total",
    "Failed capture sessions",
    TARGET,
);
const UPLOADS: Spec = ("lifeboat_uploads_total", "Files uploaded", STORE);
const UPLOADED_BYTES: Spec = ("lifeboat_uploaded_bytes_total", "Bytes uploaded", STORE);
const UPLOAD_ERRORS: Spec = ("lifeboat_upload_errors_total", "Failed uploads", STORE);
const DELETED: Spec = (
    "lifeboat_retention_deleted_total",
    "Objects that retention deleted",
    STORE,
);
const REFUSED: Spec = (
    "lifeboat_retention_refused_total",
    "Retention plans that were refused",
    STORE,
);
const MISSING: Spec = (
    "lifeboat_store_missing_objects_total",
    "Objects found gone from the store that retention did not delete",
    STORE,
);
const FILES_OBJECTIVE: Spec = (
    "lifeboat_files_objective_seconds",
    "Allowed age of the newest complete snapshot of files",
    STORE,
);
const FILES_NEXT: Spec = (
    "lifeboat_files_next_timestamp_seconds",
    "When the next run on files is due",
    STORE,
);
const FILES_AT: Spec = (
    "lifeboat_files_success_timestamp_seconds",
    "When the newest complete snapshot of files was begun",
    STORE,
);
const FILES_COUNT: Spec = ("lifeboat_files_snapshot_files", "Files in it", STORE);
const FILES_BYTES: Spec = ("lifeboat_files_snapshot_bytes", "Their bytes", STORE);
const FILES_UNREADABLE: Spec = (
    "lifeboat_files_unreadable",
    "Files that the last run could not read",
    STORE,
);
const FILES_SECONDS: Spec = (
    "lifeboat_files_run_seconds",
    "How long the last finished run took",
    STORE,
);
const FILES_READY: Spec = (
    "lifeboat_files_ready",
    "1 if the newest complete snapshot is recent and the last run was complete",
    STORE,
);
const FILES_RUNS: Spec = (
    "lifeboat_files_runs_total",
    "Runs by result",
    &["target", "store", "result"],
);
const FILES_UPLOADED: Spec = (
    "lifeboat_files_uploaded_bytes_total",
    "Bytes of files uploaded",
    STORE,
);
const FILES_DELETED: Spec = (
    "lifeboat_files_deleted_bytes_total",
    "Bytes of files that retention deleted",
    STORE,
);
const FILES_REFUSED: Spec = (
    "lifeboat_files_retention_refused_total",
    "Retention runs on files that deleted nothing because something was wrong",
    STORE,
);

const PG_OBJECTIVE: Spec = (
    "lifeboat_postgres_objective_seconds",
    "Allowed age of the newest dump",
    STORE,
);
const PG_NEXT: Spec = (
    "lifeboat_postgres_next_timestamp_seconds",
    "When the next dump is due",
    STORE,
);
const PG_AT: Spec = (
    "lifeboat_postgres_success_timestamp_seconds",
    "When the newest dump was begun",
    STORE,
);
const PG_FAILED_AT: Spec = (
    "lifeboat_postgres_failure_timestamp_seconds",
    "When a dump failed last; 0 for never",
    STORE,
);
const PG_BYTES: Spec = (
    "lifeboat_postgres_dump_bytes",
    "Bytes of the newest dump in the store",
    STORE,
);
const PG_RAW: Spec = (
    "lifeboat_postgres_dump_raw_bytes",
    "Bytes of the newest dump before compression",
    STORE,
);
const PG_DB: Spec = (
    "lifeboat_postgres_database_bytes",
    "Bytes of the database on the server at the newest dump",
    STORE,
);
const PG_SECONDS: Spec = (
    "lifeboat_postgres_dump_seconds",
    "How long the newest dump took",
    STORE,
);
const PG_READY: Spec = (
    "lifeboat_postgres_ready",
    "1 if the newest dump is recent, the last run made one, and none is damaged",
    STORE,
);
const PG_ANOMALIES: Spec = (
    "lifeboat_postgres_anomalies",
    "What looks wrong with the newest dump beside the one before it, counted",
    STORE,
);
const PG_DUMPS: Spec = ("lifeboat_postgres_dumps", "Dumps in the store", STORE);
const PG_STORED: Spec = (
    "lifeboat_postgres_stored_bytes",
    "Bytes of all dumps in the store",
    STORE,
);
const PG_READ_BACK: Spec = (
    "lifeboat_postgres_read_back_timestamp_seconds",
    "When a dump was read back last, in full and rightly",
    STORE,
);
const PG_DAMAGED: Spec = (
    "lifeboat_postgres_damaged",
    "Dumps that were found damaged",
    STORE,
);
const PG_RUNS: Spec = (
    "lifeboat_postgres_runs_total",
    "Runs by result",
    &["target", "store", "result"],
);
const PG_DELETED: Spec = (
    "lifeboat_postgres_deleted_total",
    "Dumps that retention deleted",
    STORE,
);
const PG_REFUSED: Spec = (
    "lifeboat_postgres_retention_refused_total",
    "Retention runs on dumps that deleted nothing because something was wrong",
    STORE,
);

const PROCESS: Spec = (
    "lifeboat_resident_memory_bytes",
    "Resident memory of this process",
    &[],
);
const BUILD: Spec = ("lifeboat_build_info", "1, with the version", &["version"]);

const RESULTS: [&str; 3] = ["sealed", "partial", "busy"];

/// The text that Prometheus scrapes; `None` rather than a part of it: a series that is missing raises no alert.
pub fn render(view: &View) -> Option<String> {
    let scrape = Scrape(Registry::new());
    let mut text = Vec::new();
    // Fails only for a malformed or doubled name, which the test of this module would show.
    let result = scrape
        .all(view)
        .and_then(|()| TextEncoder::new().encode(&scrape.0.gather(), &mut text));
    match result {
        Ok(()) => Some(String::from_utf8_lossy(&text).into_owned()),
        Err(error) => {
            tracing::error!(%error, "metrics");
            None
        }
    }
}

struct Scrape(Registry);

impl Scrape {
    fn gauge<'a>(
        &self,
        spec: Spec,
        values: impl IntoIterator<Item = (Vec<&'a str>, f64)>,
    ) -> prometheus::Result<()> {
        self.gauge_named(spec.0.into(), spec, values)
    }

    fn gauge_named<'a>(
        &self,
        name: String,
        spec: Spec,
        values: impl IntoIterator<Item = (Vec<&'a str>, f64)>,
    ) -> prometheus::Result<()> {
        let vec = GaugeVec::new(Opts::new(name, spec.1), spec.2)?;
        for (labels, value) in values {
            vec.get_metric_with_label_values(&labels)?.set(value);
        }
        self.0.register(Box::new(vec))
    }

    fn counter<'a>(
        &self,
        spec: Spec,
        values: impl IntoIterator<Item = (Vec<&'a str>, u64)>,
    ) -> prometheus::Result<()> {
        self.counter_named(spec.0.into(), spec, values)
    }

    fn counter_named<'a>(
        &self,
        name: String,
        spec: Spec,
        values: impl IntoIterator<Item = (Vec<&'a str>, u64)>,
    ) -> prometheus::Result<()> {
        let vec = IntCounterVec::new(Opts::new(name, spec.1), spec.2)?;
        for (labels, value) in values {
            vec.get_metric_with_label_values(&labels)?.inc_by(value);
        }
        self.0.register(Box::new(vec))
    }

    fn counter_of_seconds<'a>(
        &self,
        spec: Spec,
        values: impl IntoIterator<Item = (Vec<&'a str>, f64)>,
    ) -> prometheus::Result<()> {
        let vec = CounterVec::new(Opts::new(spec.0, spec.1), spec.2)?;
        for (labels, value) in values {
            vec.get_metric_with_label_values(&labels)?.inc_by(value);
        }
        self.0.register(Box::new(vec))
    }

    fn all(&self, view: &View) -> prometheus::Result<()> {
        let verdicts = view.verdicts();
        self.targets(view, &verdicts)?;
        self.stores(view, &verdicts)?;
        self.files(&view.files, view.now)?;
        self.dumps(&view.postgres, Kind::Postgres, view.now)?;
        self.dumps(&view.postgres, Kind::Redis, view.now)?;
        self.drills(view)?;
        self.kept(view, &verdicts)?;
        self.insight(view)?;
        self.requests(view)?;
        self.host(view)?;
        self.services(view)?;
        self.servers(view)?;
        self.told(view)?;
        self.gauge(PROCESS, [(vec![], resident_bytes() as f64)])?;
        self.0.register(Box::new(ProcessCollector::for_self()))?;
        self.gauge(BUILD, [(vec![env!("CARGO_PKG_VERSION")], 1.0)])
    }

    fn targets(&self, view: &View, verdicts: &[Verdict]) -> prometheus::Result<()> {
        let targets: Vec<&TargetFacts> = view.targets.iter().map(|(t, _)| t).collect();
        let targets = &targets;
        let each = |get: fn(&TargetFacts) -> f64| {
            targets.iter().map(move |t| (vec![t.name.as_str()], get(t)))
        };
        let total = |get: fn(&TargetFacts) -> u64| {
            targets.iter().map(move |t| (vec![t.name.as_str()], get(t)))
        };
        let ready = targets.iter().zip(verdicts);
        let ready = ready.map(|(t, v)| (vec![t.name.as_str()], f64::from(u8::from(v.safe))));
        self.gauge(READY, ready)?;
        let states = targets.iter().flat_map(|t| {
            State::ALL.into_iter().map(|s| {
                (
                    vec![t.name.as_str(), s.word()],
                    f64::from(u8::from(s == t.state)),
                )
            })
        });
        self.gauge(STATE, states)?;
        self.gauge(OBJECTIVE, each(|t| t.objective.as_secs_f64()))?;
        self.gauge(
            CAPTURED,
            each(|t| t.captured.map_or(0.0, |x| x.get() as f64)),
        )?;
        self.gauge(CAPTURED_AT, each(|t| seconds(t.captured_at)))?;
        self.gauge(LOOK, each(|t| seconds(t.last_look)))?;
        self.gauge(WAL, each(|t| t.wal_bytes as f64))?;
        self.gauge(DB, each(|t| t.db_bytes as f64))?;
        self.gauge(SPOOL, each(|t| t.spool_bytes as f64))?;
        self.gauge(SPOOL_FILES, each(|t| t.spool_files as f64))?;
        self.counter(CAPTURES, total(|t| t.captures))?;
        self.counter(CAPTURED_BYTES, total(|t| t.captured_bytes))?;
        self.counter(CAPTURED_PAGES, total(|t| t.captured_pages))?;
        self.counter(ERRORS, total(|t| t.errors))?;
        let gaps = targets.iter().flat_map(|t| {
            let get = |r: GapReason| t.gaps.get(r.word()).copied().unwrap_or(0);
            GapReason::ALL
                .into_iter()
                .map(move |r| (vec![t.name.as_str(), r.word()], get(r)))
        });
        self.counter(GAPS, gaps)?;
        let barriers = targets.iter().flat_map(|t| {
            let get = |r: &str| t.barriers.get(r).copied().unwrap_or(0);
            RESULTS
                .into_iter()
                .map(move |r| (vec![t.name.as_str(), r], get(r)))
        });
        self.counter(BARRIERS, barriers)
    }

    fn files(&self, files: &[FilesFacts], now: Millis) -> prometheus::Result<()> {
        let labels = |f: &'_ FilesFacts| (f.name.clone(), f.store.clone());
        let names: Vec<(String, String)> = files.iter().map(labels).collect();
        let label = |i: usize| vec![names[i].0.as_str(), names[i].1.as_str()];
        let gauge = |spec: Spec, get: &dyn Fn(&FilesFacts) -> f64| {
            self.gauge(
                spec,
                files.iter().enumerate().map(|(i, f)| (label(i), get(f))),
            )
        };
        gauge(FILES_OBJECTIVE, &|f| f.objective.as_secs_f64())?;
        gauge(FILES_NEXT, &|f| seconds(f.next))?;
        gauge(FILES_AT, &|f| seconds(f.succeeded_at))?;
        gauge(FILES_COUNT, &|f| f.files as f64)?;
        gauge(FILES_BYTES, &|f| f.bytes as f64)?;
        gauge(FILES_UNREADABLE, &|f| f.unreadable as f64)?;
        gauge(FILES_SECONDS, &|f| f.seconds)?;
        gauge(FILES_READY, &|f| {
            f64::from(u8::from(files_verdict(f, now).safe))
        })?;
        let counter = |spec: Spec, get: &dyn Fn(&FilesFacts) -> u64| {
            self.counter(
                spec,
                files.iter().enumerate().map(|(i, f)| (label(i), get(f))),
            )
        };
        counter(FILES_UPLOADED, &|f| f.uploaded_bytes)?;
        counter(FILES_DELETED, &|f| f.deleted_bytes)?;
        counter(FILES_REFUSED, &|f| f.refusals)?;
        let runs = files.iter().enumerate().flat_map(|(i, f)| {
            let complete = f.runs.saturating_sub(f.failures + f.partial_runs);
            [
                ("complete", complete),
                ("partial", f.partial_runs),
                ("failed", f.failures),
            ]
            .map(|(result, count)| {
                let mut names = label(i);
                names.push(result);
                (names, count)
            })
        });
        self.counter(FILES_RUNS, runs)
    }

    /// Of one kind, under its own name: `lifeboat_postgres_...` or `lifeboat_redis_...`.
    fn dumps(&self, all: &[PostgresFacts], kind: Kind, now: Millis) -> prometheus::Result<()> {
        let all: Vec<&PostgresFacts> = all.iter().filter(|f| f.kind == kind).collect();
        let named = |spec: Spec| spec.0.replacen("postgres", kind.word(), 1);
        let labels = |f: &&PostgresFacts| (f.name.clone(), f.store.clone());
        let names: Vec<(String, String)> = all.iter().map(labels).collect();
        let label = |i: usize| vec![names[i].0.as_str(), names[i].1.as_str()];
        let gauge = |spec: Spec, get: &dyn Fn(&PostgresFacts) -> f64| {
            self.gauge_named(
                named(spec),
                spec,
                all.iter().enumerate().map(|(i, f)| (label(i), get(f))),
            )
        };
        gauge(PG_OBJECTIVE, &|f| f.objective.as_secs_f64())?;
        gauge(PG_NEXT, &|f| seconds(f.next))?;
        gauge(PG_AT, &|f| seconds(f.succeeded_at))?;
        gauge(PG_FAILED_AT, &|f| seconds(f.failed_at))?;
        gauge(PG_BYTES, &|f| f.bytes as f64)?;
        gauge(PG_RAW, &|f| f.raw_bytes as f64)?;
        gauge(PG_DB, &|f| f.database_bytes as f64)?;
        gauge(PG_SECONDS, &|f| f.seconds)?;
        gauge(PG_READY, &|f| {
            f64::from(u8::from(postgres_verdict(f, now).safe))
        })?;
        gauge(PG_ANOMALIES, &|f| f.anomalies.len() as f64)?;
        gauge(PG_DUMPS, &|f| f.dumps as f64)?;
        gauge(PG_STORED, &|f| f.dump_bytes as f64)?;
        gauge(PG_READ_BACK, &|f| seconds(f.read_back_at))?;
        gauge(PG_DAMAGED, &|f| f.damaged.len() as f64)?;
        let counter = |spec: Spec, get: &dyn Fn(&PostgresFacts) -> u64| {
            self.counter_named(
                named(spec),
                spec,
                all.iter().enumerate().map(|(i, f)| (label(i), get(f))),
            )
        };
        counter(PG_DELETED, &|f| f.deleted)?;
        counter(PG_REFUSED, &|f| f.refusals)?;
        let runs = all.iter().enumerate().flat_map(|(i, f)| {
            let good = f.runs.saturating_sub(f.failures);
            [("complete", good), ("failed", f.failures)].map(|(result, count)| {
                let mut names = label(i);
                names.push(result);
                (names, count)
            })
        });
        self.counter_named(named(PG_RUNS), PG_RUNS, runs)
    }

    /// Of databases of every kind. No series until there was a drill: 0 would be a failure.
    fn drills(&self, view: &View) -> prometheus::Result<()> {
        let of_targets = view.targets.iter().flat_map(|(t, _)| {
            let stores = t.stores.iter();
            stores
                .filter_map(|s| Some((vec![t.name.as_str(), s.store.as_str()], s.drill.as_ref()?)))
        });
        let of_dumps = view.postgres.iter();
        let of_dumps = of_dumps
            .filter_map(|f| Some((vec![f.name.as_str(), f.store.as_str()], f.drill.as_ref()?)));
        let of_files = view.files.iter();
        let of_files = of_files
            .filter_map(|f| Some((vec![f.name.as_str(), f.store.as_str()], f.drill.as_ref()?)));
        let all: Vec<(Vec<&str>, &DrillFacts)> =
            of_targets.chain(of_dumps).chain(of_files).collect();
        let gauge = |spec: Spec, get: &dyn Fn(&DrillFacts) -> f64| {
            self.gauge(spec, all.iter().map(|(labels, d)| (labels.clone(), get(d))))
        };
        gauge(DRILL_AT, &|d| seconds(Some(d.at)))?;
        gauge(DRILL_OK, &|d| f64::from(u8::from(d.ok)))?;
        gauge(DRILL_RESTORE, &|d| d.restore_seconds)?;
        gauge(DRILL_AGE, &|d| d.data_age_seconds)?;
        let plan = view.drill_plan.as_ref();
        let next = plan.map(|p| (vec![], seconds(Some(p.next))));
        self.gauge(DRILL_NEXT, next)?;
        let objective = plan.map(|p| (vec![], p.objective.as_secs_f64()));
        self.gauge(DRILL_OBJECTIVE, objective)
    }

    fn stores(&self, view: &View, verdicts: &[Verdict]) -> prometheus::Result<()> {
        let judged = view.targets.iter().zip(verdicts);
        let all: Vec<_> = judged
            .flat_map(|((t, _), v)| {
                let stores = t.stores.iter().zip(&v.stores);
                stores.map(move |(s, judged)| (t, s, judged.lag_seconds))
            })
            .collect();
        let labels = |i: usize| vec![all[i].0.name.as_str(), all[i].1.store.as_str()];
        let txid = |t: Option<Txid>| t.map_or(0.0, |x| x.get() as f64);
        let gauge = |spec: Spec, get: &dyn Fn(usize) -> f64| {
            self.gauge(spec, (0..all.len()).map(|i| (labels(i), get(i))))
        };
        gauge(LAG, &|i| all[i].2)?;
        gauge(LAG_BYTES, &|i| all[i].1.pending_bytes as f64)?;
        gauge(DURABLE, &|i| txid(all[i].1.durable))?;
        gauge(DURABLE_AT, &|i| seconds(all[i].1.durable_at))?;
        gauge(BASE_AT, &|i| seconds(all[i].1.base.map(|b| b.1)))?;
        gauge(OBJECTS, &|i| all[i].1.objects as f64)?;
        gauge(LABELS_LOST, &|i| all[i].1.labels_lost as f64)?;
        gauge(OBJECT_BYTES, &|i| all[i].1.object_bytes as f64)?;
        let counter = |spec: Spec, get: &dyn Fn(usize) -> u64| {
            self.counter(spec, (0..all.len()).map(|i| (labels(i), get(i))))
        };
        counter(UPLOADS, &|i| all[i].1.uploads)?;
        counter(UPLOADED_BYTES, &|i| all[i].1.uploaded_bytes)?;
        counter(UPLOAD_ERRORS, &|i| all[i].1.errors)?;
        counter(DELETED, &|i| all[i].1.deleted)?;
        counter(REFUSED, &|i| all[i].1.refusals)?;
        counter(MISSING, &|i| all[i].1.missing)
    }
}

/// 0 for never.
fn seconds(at: Option<Millis>) -> f64 {
    at.map_or(0.0, |t| t.0 as f64 / 1000.0)
}

/// From `/proc/self/status`; 0 where there is none.
pub fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

#[cfg(test)]
mod tests;
