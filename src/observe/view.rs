//! Everything that is known at one moment, for metrics, verdicts, pages and notifications alike.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::app::{AppVerdict, judge, judge_sqlite};
use super::clock::ClockFacts;
use super::facts::{Board, DrillPlan, FilesFacts, PostgresFacts, TargetFacts};
use super::happened::Told;
use super::health::{Verdict, WalStat, files_verdict, postgres_verdict, verdict};
use super::insight::AppFacts;
use super::servers::{ServerFacts, server_verdict};
use super::services::{ProbeFacts, Service, probe_verdict, queue_service};
use super::volume::{Host, Volume, host, low_services, volumes};
use crate::postgres::Kind;
use crate::types::Millis;

/// What the configuration says about observing.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// This process, as `owner.json` names it.
    pub instance: String,
    /// Where local state lies, if it is all in one folder.
    pub state_dir: Option<PathBuf>,
    /// A volume with less free than this is low.
    pub min_free: crate::config::MinFree,
    /// What is read of the app.
    pub insight: crate::config::InsightConfig,
}

/// Set once, when the daemon starts.
#[derive(Debug, Default)]
pub struct SettingsCell(OnceLock<Settings>);

impl SettingsCell {
    /// Sets them; a second time changes nothing.
    pub fn set(&self, settings: Settings) {
        // The first settings hold.
        let _ = self.0.set(settings);
    }

    /// A copy; the defaults before they were set.
    pub fn get(&self) -> Settings {
        self.0.get().cloned().unwrap_or_default()
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// When it was taken.
    pub now: Millis,
    /// SQLite databases, each with its WAL file as it was then.
    pub targets: Vec<(TargetFacts, Option<WalStat>)>,
    /// Files, by target and store.
    pub files: Vec<FilesFacts>,
    /// PostgreSQL databases, by target and store.
    pub postgres: Vec<PostgresFacts>,
    /// What was read of the app, by target.
    pub insight: BTreeMap<String, AppFacts>,
    /// What is asked of the app, by name.
    pub probes: Vec<ProbeFacts>,
    /// What was seen of the clock.
    pub clock: ClockFacts,
    /// Servers that are dumped, by name.
    pub servers: Vec<ServerFacts>,
    /// Volumes that the databases and the local state lie on.
    pub volumes: Vec<Volume>,
    /// When drills are due.
    pub drill_plan: Option<DrillPlan>,
    /// What the last drills found was read from every store.
    pub drills_known: bool,
    /// Notifications by channel.
    pub told: BTreeMap<String, Told>,
    /// The host, if it is looked at.
    pub host: Option<Host>,
    /// The configuration.
    pub settings: Settings,
}

impl View {
    /// Blocks on `stat` of each database. Never opens one: closing it would drop SQLite's locks.
    pub fn take(board: &Board, now: Millis) -> Self {
        let settings = board.settings().get();
        let targets = board.snapshot();
        let folders = targets.iter().filter_map(|t| t.path.parent());
        let volumes = match settings.insight.volumes {
            true => volumes(folders.chain(settings.state_dir.as_deref())),
            false => Vec::new(),
        };
        let with_wal = |t: TargetFacts| {
            let wal = wal_stat(&t);
            (t, wal)
        };
        Self {
            now,
            targets: targets.into_iter().map(with_wal).collect(),
            files: board.files(),
            postgres: board.postgres(),
            insight: board.insight().all(),
            probes: board.probes(),
            clock: board.clock().get(),
            servers: board.servers(),
            volumes,
            drill_plan: board.drill_plan(),
            drills_known: board.drills_known(),
            told: board.notifications().all(),
            host: settings.insight.host.then(host),
            settings,
        }
    }

    /// Judges every target.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let databases = self.targets.iter().map(|(t, w)| verdict(t, *w, self.now));
        let files = self.files.iter().map(|f| files_verdict(f, self.now));
        let postgres = self.postgres.iter().map(|f| postgres_verdict(f, self.now));
        databases.chain(postgres).chain(files).collect()
    }

    /// Judges what the copies do not depend on.
    pub fn services(&self) -> Vec<Service> {
        let probes = self.probes.iter();
        let probes = probes.map(|p| probe_verdict(p, self.now));
        let servers = self.servers.iter();
        let servers = servers.map(|s| server_verdict(s, self.now));
        let queues = self.apps().into_iter();
        probes
            .chain(servers)
            .chain(self.clock.verdict())
            .chain(low_services(&self.volumes, self.settings.min_free))
            .chain(queues.filter_map(|app| queue_service(&app)))
            .collect()
    }

    /// Judges the app behind every database and server, by name.
    pub fn apps(&self) -> Vec<AppVerdict> {
        let (config, now) = (&self.settings.insight, self.now);
        let read = |name: &str| self.insight.get(name);
        let targets = self.targets.iter();
        let databases = targets.map(|(t, _)| judge_sqlite(t, read(&t.name), config, now));
        let mut apps: Vec<AppVerdict> = databases.collect();
        for dumped in &self.postgres {
            // One for all of its stores.
            if !apps.iter().any(|a| a.name == dumped.name) {
                let verdict = judge(&dumped.name, read(&dumped.name), config, now);
                apps.push(match dumped.kind {
                    Kind::Postgres => verdict,
                    Kind::Redis => verdict.as_cache(),
                });
            }
        }
        apps
    }
}

fn wal_stat(target: &TargetFacts) -> Option<WalStat> {
    let mut path = target.path.as_os_str().to_owned();
    path.push("-wal");
    let modified = std::fs::metadata(path).ok()?.modified().ok()?;
    let since = modified
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .ok()?;
    Some(WalStat {
        modified: Millis(i64::try_from(since.as_millis()).ok()?),
    })
}
