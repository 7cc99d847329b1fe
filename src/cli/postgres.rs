//! Commands on targets that are dumped: PostgreSQL and Redis.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::files::Rest;
use super::{Failure, counted};
use crate::config::{Config, FilesConfig, PostgresConfig};
use crate::daemon::fleet::system_now;
use crate::daemon::postgres::{Ask, Database, is_of, open};
use crate::labels::{self, Label, Pin, age};
use crate::observe::facts::Board;
use crate::postgres::{self, Kind, Listed, Manifest, PostgresError};
use crate::types::Millis;

impl From<PostgresError> for Failure {
    fn from(error: PostgresError) -> Self {
        Self::new(error.exit_code(), &error, error.hint())
    }
}

/// PostgreSQL targets among those that were named, and the other names.
pub(super) struct Split {
    /// Each with the names that mean it.
    mine: Vec<(PostgresConfig, Vec<String>)>,
    /// The rest, where none means all; `None` if every name was one of PostgreSQL.
    pub(super) rest: Option<Vec<String>>,
}

/// Which of the targets that were named (all, if none was) are of PostgreSQL.
pub(super) fn split(config: &Config, names: &[String]) -> Split {
    let mut mine = Vec::new();
    for server in &config.postgres {
        let own = names.iter().filter(|n| is_of(server, n));
        let own: Vec<String> = own.cloned().collect();
        if names.is_empty() || !own.is_empty() {
            mine.push((server.clone(), own));
        }
    }
    let is_mine = |name: &&String| config.postgres.iter().any(|s| is_of(s, name));
    let rest: Vec<String> = names.iter().filter(|n| !is_mine(n)).cloned().collect();
    let rest = (names.is_empty() || !rest.is_empty()).then_some(rest);
    Split { mine, rest }
}

/// Whether a name is one of PostgreSQL.
pub(super) fn is_target(config: &Config, name: &str) -> bool {
    config.postgres.iter().any(|s| is_of(s, name))
}

impl Split {
    /// Of those that were not named, only they can be drilled. Returns the others, and why.
    pub(super) fn only_with_drill_url(&mut self) -> Vec<(PostgresConfig, &'static str)> {
        let all = std::mem::take(&mut self.mine).into_iter();
        let (can, cannot) = all.partition(|(server, _)| server.drill.is_some());
        self.mine = can;
        let why = |server: &PostgresConfig| match server.origin.kind() {
            Kind::Postgres => "it has no `drill-url`",
            Kind::Redis => "there are no drills of Redis; `lifeboat verify` reads its newest dump",
        };
        let cannot: Vec<(PostgresConfig, _)> = cannot;
        let with_why = |(server, _)| {
            let why = why(&server);
            (server, why)
        };
        cannot.into_iter().map(with_why).collect()
    }

    /// Files among the other names, and what is left of these.
    pub(super) fn files(&self, config: &Config) -> Result<(Vec<FilesConfig>, Rest), Failure> {
        match &self.rest {
            Some(names) => super::files::split(config, names),
            None => Ok((Vec::new(), Rest::None)),
        }
    }

    /// Whether there is none of PostgreSQL.
    pub(super) fn is_empty(&self) -> bool {
        self.mine.is_empty()
    }

    /// The databases that are meant.
    pub(super) async fn databases(
        &self,
        config: &Config,
        ask: Ask,
    ) -> Result<Vec<Database>, Failure> {
        let mut found = Vec::new();
        for (server, names) in &self.mine {
            let all = open(config, server, ask).await?;
            for name in names.iter().filter(|n| **n != server.name) {
                if !all.iter().any(|d| d.name == *name) {
                    let known: Vec<&str> = all.iter().map(|d| d.name.as_str()).collect();
                    return Err(Failure::new(
                        2,
                        format!("no target is named \"{name}\""),
                        Some(format!("there are: {}", known.join(", "))),
                    ));
                }
            }
            let meant = |d: &Database| {
                names.is_empty() || names.iter().any(|n| *n == server.name || *n == d.name)
            };
            found.extend(all.into_iter().filter(meant));
        }
        Ok(found)
    }
}

/// Dumps now, without a label; returns how many databases.
pub(super) async fn dump(config: &Config, split: &Split, as_json: bool) -> Result<usize, Failure> {
    let databases = split.databases(config, Ask::Server).await?;
    let board = Board::default();
    for database in &databases {
        let manifest = interruptible(database.dump(&board, None)).await?;
        if as_json {
            println!(
                "{}",
                json!({ "target": database.name, "kind": manifest.kind, "dump": manifest })
            );
            continue;
        }
        println!(
            "{}: dump {} of {}: {} bytes ({} before compression) in {:.1} s, durable in {}",
            database.name,
            manifest.id,
            database.origin.display(),
            manifest.stored_bytes(),
            manifest.dump.raw_size,
            seconds(&manifest),
            counted(database.stores.len() as u64, "store"),
        );
        for anomaly in &manifest.anomalies {
            println!("{}: WARNING: {anomaly}", database.name);
        }
    }
    Ok(databases.len())
}

/// An interrupt drops the work, which ends its programs.
pub(super) async fn interruptible<T>(
    work: impl Future<Output = Result<T, PostgresError>>,
) -> Result<T, Failure> {
    tokio::select! {
        result = work => Ok(result?),
        _ = tokio::signal::ctrl_c() => Err(Failure::new(1, "interrupted; nothing was changed", None)),
    }
}

fn seconds(manifest: &Manifest) -> f64 {
    manifest.ended.duration_since(manifest.began).as_secs_f64()
}

/// Labels that pin a dump.
pub(super) fn labels_of<'a>(labels: &'a [Label], id: &str) -> Vec<&'a str> {
    let found = pinning(labels, id);
    found.map(|l| l.label.as_str()).collect()
}

fn pinning<'a>(labels: &'a [Label], id: &str) -> impl Iterator<Item = &'a Label> {
    let pins = move |l: &&Label| matches!(&l.pin, Pin::Postgres { dump } if dump == id);
    labels.iter().filter(pins)
}

pub(super) async fn list(config: &Config, split: &Split, as_json: bool) -> Result<(), Failure> {
    for database in split.databases(config, Ask::Stores).await? {
        for store in &database.stores {
            let dumps = postgres::listed(store).await?;
            let labels = labels::list(store).await?;
            let unfinished = super::labels::unfinished(&labels, config).await;
            if as_json {
                let all: Vec<_> = dumps
                    .iter()
                    .map(|d| {
                        let names = labels_of(&labels, &d.manifest.id);
                        let versions: BTreeMap<_, _> = pinning(&labels, &d.manifest.id)
                            .filter_map(|l| Some((&l.label, l.version.as_ref()?)))
                            .collect();
                        let incomplete = names.iter().filter(|l| unfinished.contains(**l));
                        let incomplete: Vec<_> = incomplete.collect();
                        json!({ "labels": names, "versions": versions, "incomplete": incomplete, "dump": d.manifest, "damage": d.damage })
                    })
                    .collect();
                println!(
                    "{}",
                    json!({ "target": database.name, "kind": database.origin.kind(), "store": store.display(), "dumps": all })
                );
                continue;
            }
            println!(
                "{} in {}: {}",
                database.name,
                store.display(),
                counted(dumps.len() as u64, "dump")
            );
            for dump in &dumps {
                println!("{}", line(dump, &labels, &unfinished));
            }
            for label in &labels {
                if let Pin::Postgres { dump } = &label.pin
                    && !dumps.iter().any(|d| d.manifest.id == *dump)
                {
                    println!(
                        "  label {}: NOT RESTORABLE: dump {dump} is gone",
                        label.label
                    );
                }
            }
        }
    }
    Ok(())
}

fn line(dump: &Listed, labels: &[Label], unfinished: &BTreeSet<String>) -> String {
    let m = &dump.manifest;
    let mut notes: String = pinning(labels, &m.id)
        .map(|l| {
            let name = labels::with_version(&l.label, l.version.as_deref());
            match unfinished.contains(&l.label) {
                true => format!("  {name} (INCOMPLETE)"),
                false => format!("  {name}"),
            }
        })
        .collect();
    if !m.anomalies.is_empty() {
        notes += "  ODD: ";
        notes += &m.anomalies.join("; ");
    }
    if let Some(damage) = &dump.damage {
        notes += "  NOT RESTORABLE: ";
        notes += damage;
    }
    format!(
        "  {}  {:>5} ago  {:>14} bytes  {:>14} raw  {} {}{notes}",
        m.id,
        age(Millis(m.began.as_millisecond()), system_now()),
        m.stored_bytes(),
        m.dump.raw_size,
        match m.kind {
            Kind::Postgres => "PostgreSQL",
            Kind::Redis => "Redis",
        },
        m.server_version.split(' ').next().unwrap_or_default(),
    )
}
