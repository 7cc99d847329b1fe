//! `lifeboat evidence`: what an auditor asks, read from the stores themselves, without secrets.

mod sqlite;

use serde_json::{Map, Value, json};

use super::absent::with_absent;
use super::{Failure, counted};
use crate::config::{Config, FilesConfig, PostgresConfig, StoreConfig, StoreKind};
use crate::daemon::fleet::system_now;
use crate::daemon::postgres::{Ask, open};
use crate::labels::Pin;
use crate::postgres::Kind;
use crate::replica::layout::DRILLS_PREFIX;
use crate::store::{Store, StoreError};
use crate::types::Millis;
use crate::{files, labels, postgres};

/// Version of the answer.
const FORMAT: u32 = 1;
/// Drills shown for each copy, newest first.
const DRILLS: usize = 10;
const PROVIDERS: &str = "the store's own; Lifeboat does not encrypt databases itself";
const REPOSITORYS: &str = "AES-256 in the repository, by its password";

/// One target in one store. What could not be read is said in it.
struct Copy {
    head: Map<String, Value>,
    facts: Result<Facts, String>,
}

struct Facts {
    oldest: Option<Millis>,
    newest: Option<Millis>,
    points: usize,
    bytes: u64,
    /// What only this kind has.
    more: Value,
    drills: Vec<Value>,
}

pub(super) async fn run(config: Config, as_json: bool) -> Result<(), Failure> {
    let now = system_now();
    let shown = config.show();
    // What a store has and a folder has not, as on a new server, is protected, too.
    let (config, mut unread) = match with_absent(config.clone(), None).await {
        Ok(all) => (all, Vec::new()),
        Err(failure) => {
            let what = format!("databases that only the store has: {}", failure.message);
            (config, vec![what])
        }
    };
    let known = config.show();
    let retention = |kind: &str, i: usize| {
        let mut retention = known[kind][i]["retention"].clone();
        for key in ["keep", "max-age"] {
            retention[format!("labels.{key}")] = known["labels"][key].clone();
        }
        retention
    };
    let mut copies = Vec::new();
    for (i, target) in config.targets.iter().enumerate() {
        for store in &target.options.stores {
            copies.push(sqlite::database(target, store, retention("targets", i)).await);
        }
    }
    for kind in [Kind::Postgres, Kind::Redis] {
        let of_kind = config.postgres.iter().filter(|t| t.origin.kind() == kind);
        for (i, target) in of_kind.enumerate() {
            copies.extend(dumps(&config, target, retention(kind.word(), i)).await);
        }
    }
    for (i, target) in config.files.iter().enumerate() {
        copies.extend(folders(&config, target, known["files"][i]["retention"].clone()).await);
    }
    unread.extend(copies.iter().filter_map(Copy::unread));
    if as_json {
        let evidence = json!({
            "format": FORMAT,
            "time": now.to_string(),
            "instance": config.instance,
            "versions": { "lifeboat": env!("CARGO_PKG_VERSION"), "sqlite": rusqlite::version() },
            "complete": unread.is_empty(),
            "copies": copies.iter().map(|c| c.json(now)).collect::<Vec<_>>(),
            "configuration": shown,
        });
        println!("{evidence:#}");
    } else {
        println!(
            "Lifeboat {} with SQLite {} on {}, at {now}",
            env!("CARGO_PKG_VERSION"),
            rusqlite::version(),
            config.instance
        );
        copies.iter().for_each(|c| c.print(now));
    }
    if unread.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        1,
        format!("the evidence is incomplete: {}", unread.join("; ")),
        Some("`lifeboat verify` says more; nothing was changed".into()),
    ))
}

impl Copy {
    fn new(
        target: &str,
        kind: &str,
        (url, config): (String, &StoreConfig),
        at_rest: &str,
        retention: Value,
    ) -> Self {
        let head = json!({
            "target": target,
            "kind": kind,
            "store": url,
            "encryption": { "in-transit": in_transit(config), "at-rest": at_rest },
            "retention": retention,
        });
        let head = head.as_object().cloned().unwrap_or_default();
        Self {
            head,
            facts: Err("not read".into()),
        }
    }

    fn word(&self, key: &str) -> &str {
        self.head[key].as_str().unwrap_or_default()
    }

    fn unread(&self) -> Option<String> {
        let error = self.facts.as_ref().err()?;
        Some(format!(
            "{} in {}: {error}",
            self.word("target"),
            self.word("store")
        ))
    }

    fn json(&self, now: Millis) -> Value {
        let mut all = self.head.clone();
        match &self.facts {
            Ok(facts) => {
                let age = |at: Millis| now.0.saturating_sub(at.0).max(0) as f64 / 1e3;
                all.insert(
                    "newest".into(),
                    json!(facts.newest.map(|at| at.to_string())),
                );
                all.insert("newest-age-seconds".into(), json!(facts.newest.map(age)));
                all.insert(
                    "oldest".into(),
                    json!(facts.oldest.map(|at| at.to_string())),
                );
                all.insert("points".into(), json!(facts.points));
                all.insert("bytes".into(), json!(facts.bytes));
                all.insert("drills".into(), json!(facts.drills));
                all.extend(facts.more.as_object().cloned().unwrap_or_default());
            }
            Err(error) => {
                all.insert("error".into(), json!(error));
            }
        }
        all.into()
    }

    fn print(&self, now: Millis) {
        println!(
            "\n{} ({}) in {}",
            self.word("target"),
            self.word("kind"),
            self.word("store")
        );
        let facts = match &self.facts {
            Ok(facts) => facts,
            Err(error) => return println!("  COULD NOT BE READ: {error}"),
        };
        match (facts.newest, facts.oldest) {
            (Some(newest), Some(oldest)) => println!(
                "  last backup {newest}, {} ago; {} since {oldest}; {} bytes",
                labels::age(newest, now),
                counted(facts.points as u64, "point"),
                facts.bytes
            ),
            _ => println!("  NO BACKUP"),
        }
        if let Some(problem) = facts.more["problem"].as_str() {
            println!("  NOT RESTORABLE AS IT SHOULD BE: {problem}");
        }
        if facts.more["on-disk"] == false {
            println!("  THE DATABASE IS NOT THERE: only the store has it");
        }
        let lost = facts.more["labels-lost"].as_array().into_iter().flatten();
        let lost: Vec<&str> = lost.filter_map(Value::as_str).collect();
        if !lost.is_empty() {
            println!("  LABELS WHOSE POINT IS GONE: {}", lost.join(", "));
        }
        match facts.drills.first() {
            Some(drill) => println!("  last drill {}", drill_words(drill)),
            None => println!("  NEVER DRILLED"),
        }
        let retention = self.head["retention"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, v)| **v != json!(0))
            .map(|(k, v)| format!("{k} {}", v.as_str().map_or(v.to_string(), str::to_owned)));
        println!("  retention: {}", retention.collect::<Vec<_>>().join(", "));
        let encryption = |key| self.head["encryption"][key].as_str().unwrap_or_default();
        println!(
            "  encryption: in transit {}; at rest {}",
            encryption("in-transit"),
            encryption("at-rest")
        );
    }
}

/// Records of the kinds differ in part: SQLite's say `ok` and `at`, those of files say `findings` and `time`.
fn drill_words(drill: &Value) -> String {
    let text = |key: &str| drill[key].as_str();
    let when = text("at").or(text("time")).unwrap_or("at an unknown time");
    let findings = drill["findings"].as_array().map(|f| f.is_empty());
    let passed = drill["ok"].as_bool().or(findings);
    let verdict = match passed {
        Some(true) => "passed",
        Some(false) => "FAILED",
        None => "left a record that cannot be read",
    };
    let seconds = drill["restore_seconds"]
        .as_f64()
        .or(drill["seconds"].as_f64());
    let took = seconds.map_or(String::new(), |s| format!(" (restored in {s:.1} s)"));
    format!("{when} {verdict}{took}")
}

/// The newest records, newest first, as they were written.
async fn drills(store: &Store) -> Result<Vec<Value>, StoreError> {
    let objects = store.list(&format!("{DRILLS_PREFIX}/")).await?;
    let mut keys: Vec<String> = objects.into_iter().map(|o| o.key).collect();
    keys.sort_unstable();
    let mut found = Vec::new();
    for key in keys.iter().rev().take(DRILLS) {
        match store.get(key).await {
            Ok(bytes) => found.push(
                serde_json::from_slice(&bytes)
                    .unwrap_or_else(|e| json!({ "unreadable": key, "why": e.to_string() })),
            ),
            // The oldest ones are deleted as new ones come.
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Names of labels whose point is there, and of those whose point is gone.
async fn label_names(
    store: &Store,
    is_there: impl Fn(&Pin) -> bool,
) -> Result<(Vec<String>, Vec<String>), String> {
    let all = labels::list(store).await.map_err(|e| e.to_string())?;
    let (there, lost): (Vec<_>, Vec<_>) = all.into_iter().partition(|l| is_there(&l.pin));
    let names = |labels: Vec<labels::Label>| labels.into_iter().map(|l| l.label).collect();
    Ok((names(there), names(lost)))
}

fn in_transit(store: &StoreConfig) -> &'static str {
    let plain = |e: &str| e.starts_with("http://");
    match store.kind() {
        StoreKind::File => "none: a folder",
        _ if store.endpoint.as_deref().is_some_and(plain) => "NONE: the endpoint is plain http",
        _ if store.skip_verify => "TLS, but the certificate is not verified",
        _ => "TLS",
    }
}

async fn dumps(config: &Config, target: &PostgresConfig, retention: Value) -> Vec<Copy> {
    let copy = |name: &str, url: String, config| {
        let retention = retention.clone();
        Copy::new(
            name,
            target.origin.kind().word(),
            (url, config),
            PROVIDERS,
            retention,
        )
    };
    let databases = match open(config, target, Ask::Stores).await {
        Ok(databases) => databases,
        Err(error) => {
            let store = &target.stores[0];
            let mut unread = copy(&target.name, store.url.to_string(), store);
            unread.facts = Err(error.to_string());
            return vec![unread];
        }
    };
    let mut copies = Vec::new();
    for database in &databases {
        for (store, config) in database.stores.iter().zip(&target.stores) {
            let mut one = copy(&database.name, store.display(), config);
            one.facts = dumps_in(store).await;
            copies.push(one);
        }
    }
    if databases.is_empty() {
        // Every database of a server, and none was ever dumped.
        for config in &target.stores {
            let mut none = copy(&target.name, config.url.to_string(), config);
            none.facts = Ok(Facts {
                oldest: None,
                newest: None,
                points: 0,
                bytes: 0,
                more: Value::Null,
                drills: Vec::new(),
            });
            copies.push(none);
        }
    }
    copies
}

async fn dumps_in(store: &Store) -> Result<Facts, String> {
    let dumps = postgres::list(store).await.map_err(|e| e.to_string())?;
    let began = |m: &postgres::Manifest| Millis(m.began.as_millisecond());
    let newest = dumps.last();
    let is_dump =
        |pin: &Pin| matches!(pin, Pin::Postgres { dump } if dumps.iter().any(|m| m.id == *dump));
    let (labels, lost) = label_names(store, is_dump).await?;
    Ok(Facts {
        oldest: dumps.first().map(began),
        newest: newest.map(began),
        points: dumps.len(),
        bytes: dumps.iter().map(postgres::Manifest::stored_bytes).sum(),
        more: json!({
            "newest-dump": newest.map(|m| &m.id),
            "server-version": newest.map(|m| &m.server_version),
            "client-version": newest.map(|m| &m.client_version),
            "anomalies": newest.map(|m| &m.anomalies),
            "labels": labels,
            "labels-lost": lost,
        }),
        drills: drills(store).await.map_err(|e| e.to_string())?,
    })
}

async fn folders(config: &Config, target: &FilesConfig, retention: Value) -> Vec<Copy> {
    let copy = |config: &StoreConfig| {
        let (url, retention) = (config.url.to_string(), retention.clone());
        Copy::new(&target.name, "files", (url, config), REPOSITORYS, retention)
    };
    let mut copies = Vec::new();
    for store in &target.stores {
        let mut one = copy(store);
        one.facts = match crate::daemon::files::open_in(config, target, store).await {
            Ok(opened) => snapshots_in(opened).await,
            Err(error) => Err(error.to_string()),
        };
        copies.push(one);
    }
    copies
}

async fn snapshots_in(target: files::Target) -> Result<Facts, String> {
    let store = target.store.clone();
    let listed = tokio::task::spawn_blocking(move || files::list(&target)).await;
    let all = match listed.map_err(|e| e.to_string())? {
        // Nothing was ever kept there, which is what has to be said.
        Err(files::FilesError::NoRepository { .. }) => Vec::new(),
        listed => listed.map_err(|e| e.to_string())?,
    };
    // A snapshot that lacks files is not what is asked for.
    let (points, partial): (Vec<_>, Vec<_>) = all.into_iter().partition(|p| !p.partial);
    let time = |p: &files::Point| Millis(p.time.as_millisecond());
    let objects = store.list("").await.map_err(|e| e.to_string())?;
    Ok(Facts {
        oldest: points.first().map(time),
        newest: points.last().map(time),
        points: points.len(),
        bytes: objects.iter().map(|o| o.size).sum(),
        more: json!({
            "newest-snapshot": points.last().map(|p| &p.id),
            "partial-snapshots": partial.len(),
        }),
        drills: drills(&store).await.map_err(|e| e.to_string())?,
    })
}
