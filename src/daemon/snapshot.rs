//! Labelled snapshots: everything committed so far durable, proven restorable, and pinned under one name.
//!
//! Order: queues are captured before everything else, so that a restored queue never knows more than the data; a dump is reused only if it began
//! after that. A point is taken and cut
//! ([`super::cuts`]) in one step; then it is waited for; then each store is listed and a restore to exactly that point is planned; then the
//! labels are written; last of all the manifest of the set, by whoever asked if files come in between.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::fleet::{Fleet, FleetError, system_now};
use super::postgres::{Ask, Database};
use crate::config::OnDeploy;
use crate::labels::{self, Label, Pin, SetRef};
use crate::postgres::{self, Connection, Manifest, PostgresError};
use crate::replica::upload::Replica;
use crate::restore::plan::{Catalog, Goal, plan};
use crate::store::Store;
use crate::types::{Millis, Txid};

/// Points are taken again so often, when a store got past one without holding it exactly.
const TRIES: usize = 3;

/// What is wanted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wanted {
    /// Targets; all if empty.
    pub targets: Vec<String>,
    /// The label; a number is appended if it is taken.
    pub label: String,
    /// The app's version.
    pub version: Option<String>,
    /// Bound on the answer.
    pub timeout_ms: u64,
    /// Targets of files that belong to the set. Whoever asks backs them up afterwards, and then writes the manifest.
    #[serde(default)]
    pub files: Vec<String>,
}

/// What became of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Every target is durable and pinned, and the manifest is written.
    pub ok: bool,
    /// The name that was given; `None` if nothing was pinned.
    pub label: Option<String>,
    /// One for each, in the order of capture.
    pub targets: Vec<TargetSnapshot>,
    /// [`Wanted::files`], as they are in the labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// Why the set is not complete although every target is pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One target of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetSnapshot {
    /// Name.
    pub target: String,
    /// The point; `None` if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// When it was taken, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// How long it took to be durable and proven.
    pub ms: u64,
    /// Stores that hold it.
    pub stores: usize,
    /// Why it is not safe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What can be labelled. A new kind of target is a new arm.
#[derive(Clone)]
enum Item {
    /// A SQLite database of the fleet, and the name of its file.
    Sqlite(String, String),
    /// A PostgreSQL database, and how long its last dump is good enough.
    Postgres(Box<Database>, Option<Duration>),
    /// What could not be found out about a target.
    Unknown(String, String),
}

/// A point that was taken.
struct Taken {
    pin: Pin,
    at: Millis,
    /// By then what it holds was decided.
    settled: Timestamp,
    begun: Instant,
}

/// Why an item is not pinned.
enum Miss {
    /// A store went past the point without holding it exactly: take another one.
    Passed,
    Failed(String),
}

impl Item {
    fn name(&self) -> &str {
        match self {
            Self::Sqlite(name, _) | Self::Unknown(name, _) => name,
            Self::Postgres(database, _) => &database.name,
        }
    }

    /// Solid Queue's database, by Rails' names: the target's, or its own, whatever the target is called.
    fn is_queue(&self) -> bool {
        let of_queue =
            |name: &str| name == "queue" || name.ends_with("_queue") || name.ends_with("-queue");
        let own = match self {
            Self::Sqlite(_, stem) => Some(stem.as_str()),
            Self::Postgres(database, _) => database.connection().ok().map(Connection::database),
            Self::Unknown(..) => None,
        };
        of_queue(self.name()) || own.is_some_and(of_queue)
    }

    /// Everything committed before this call lies at or before the point; where a dump is good enough that was made before, everything committed
    /// before `after`.
    async fn take(
        &self,
        fleet: &Fleet,
        label: &str,
        after: Option<Timestamp>,
    ) -> Result<Taken, String> {
        let begun = Instant::now();
        match self {
            Self::Unknown(_, why) => Err(why.clone()),
            Self::Postgres(database, good_for) => {
                let recent = match good_for {
                    Some(age) => {
                        let found = recent(database, *age, after).await;
                        found.map_err(|e| told(&e, e.hint()))?
                    }
                    None => None,
                };
                let manifest = match recent {
                    Some(manifest) => manifest,
                    None => database
                        .dump(fleet.board(), Some(label))
                        .await
                        .map_err(|e| told(&e, e.hint()))?,
                };
                Ok(Taken {
                    at: Millis(manifest.began.as_millisecond()),
                    settled: manifest.ended,
                    pin: Pin::Postgres { dump: manifest.id },
                    begun,
                })
            }
            Self::Sqlite(name, _) => {
                let txid = fleet.pin(name).await.map_err(|e| of_fleet(fleet, &e))?;
                Ok(Taken {
                    pin: Pin::sqlite(txid),
                    at: system_now(),
                    settled: Timestamp::now(),
                    begun,
                })
            }
        }
    }

    /// Waits until the point is in every store, and finds out that it can be restored from each.
    async fn prove(&self, fleet: &Fleet, taken: &Taken) -> Result<Vec<Store>, Miss> {
        match self {
            Self::Unknown(_, why) => Err(Miss::Failed(why.clone())),
            Self::Postgres(database, _) => {
                let Pin::Postgres { dump } = &taken.pin else {
                    return Err(Miss::Failed("the point is no dump".into()));
                };
                for store in &database.stores {
                    let listed = postgres::list(store).await;
                    let listed = listed.map_err(|e| Miss::Failed(told(&e, e.hint())))?;
                    if !listed.iter().any(|m| m.id == *dump) {
                        let why = format!("{} does not hold dump {dump}", store.display());
                        return Err(Miss::Failed(why));
                    }
                }
                Ok(database.stores.clone())
            }
            Self::Sqlite(name, _) => {
                let failed = |e: FleetError| Miss::Failed(of_fleet(fleet, &e));
                let Some(txid) = taken.pin.txid() else {
                    return Err(Miss::Failed("the point has no TXID".into()));
                };
                fleet.wait_durable(name, txid).await.map_err(failed)?;
                let stores = fleet.stores(name).await.map_err(failed)?;
                for store in &stores {
                    let held = holds(store, txid).await;
                    if !held.map_err(|e| Miss::Failed(told(&e, e.hint())))? {
                        return Err(Miss::Passed);
                    }
                }
                Ok(stores)
            }
        }
    }
}

/// The newest dump, if every store holds it, it is not older than `age`, and it began at or after `after`.
async fn recent(
    database: &Database,
    age: Duration,
    after: Option<Timestamp>,
) -> Result<Option<Manifest>, PostgresError> {
    let mut found: Option<Manifest> = None;
    for store in &database.stores {
        let newest = postgres::list(store).await?.pop();
        let fresh = newest.filter(|m| {
            // One of the future was dated by a wrong clock: nobody knows how old it is.
            let old = Duration::try_from(Timestamp::now().duration_since(m.began));
            let is_young = old.is_ok_and(|old| old <= age);
            is_young && m.anomalies.is_empty() && after.is_none_or(|t| m.began >= t)
        });
        match (&found, fresh) {
            (_, None) => return Ok(None),
            (Some(a), Some(b)) if a.id != b.id => return Ok(None),
            (_, fresh) => found = fresh,
        }
    }
    Ok(found)
}

/// Whether exactly this point can be restored from a store, by its own listing.
pub async fn holds(store: &Store, txid: Txid) -> Result<bool, crate::store::StoreError> {
    let catalog = Catalog::new(Replica::list(store).await?.into_values());
    Ok(plan(&catalog, Goal::Txid(txid)).is_ok())
}

struct Outcome {
    item: Item,
    result: Result<(Taken, Vec<Store>), String>,
    took: Duration,
}

/// Takes a labelled snapshot.
pub async fn snapshot(fleet: &Fleet, wanted: &Wanted, instance: &str) -> Snapshot {
    let deadline = tokio::time::Instant::now() + Duration::from_millis(wanted.timeout_ms);
    let mut items = items(fleet, wanted, deadline).await;
    items.sort_by_key(|item| (!item.is_queue(), item.name().to_owned()));
    let mut outcomes = Vec::new();
    for attempt in 1..=TRIES {
        let (next, passed) = attempt_all(fleet, &items, deadline, wanted).await;
        outcomes = next;
        // All again: a queue that is taken later than the data would know more.
        if !passed || attempt == TRIES {
            break;
        }
    }
    let naming = name(fleet, wanted, instance, &outcomes);
    let written = match tokio::time::timeout_at(deadline, naming).await {
        Ok(written) => written,
        // What was written already is a label too many: it harms nobody, and without a manifest the set counts as not finished.
        Err(_) => Err(format!("the label was not written: {}", late(wanted))),
    };
    let mut done = summary(&outcomes, written);
    done.files.clone_from(&wanted.files);
    if done.ok && done.targets.len() > 1 && wanted.files.is_empty() {
        let home = outcomes.last().and_then(|o| o.result.as_ref().ok());
        let stores = home.map_or(&[][..], |(_, stores)| stores.as_slice());
        let manifest = write_manifest(wanted, instance, &done, stores);
        let failed = match tokio::time::timeout_at(deadline, manifest).await {
            Ok(written) => written.err().map(|e| e.to_string()),
            Err(_) => Some(late(wanted)),
        };
        if let Some(why) = failed {
            done.ok = false;
            done.error = Some(format!("the manifest of the set was not written: {why}"));
        }
    }
    done
}

/// What failed, with the next step.
fn told(error: &dyn std::fmt::Display, hint: Option<String>) -> String {
    let hint = hint.map(|h| format!(" (hint: {h})"));
    format!("{error}{}", hint.unwrap_or_default())
}

/// The same of the fleet, whose next step is a general one where a target failed: its store's is better.
fn of_fleet(fleet: &Fleet, error: &FleetError) -> String {
    match error {
        FleetError::Failed { target, reason } => fleet.trouble(target).unwrap_or(reason.clone()),
        other => told(other, other.hint()),
    }
}

/// With what the target's store said last.
fn late_of(fleet: &Fleet, item: &Item, wanted: &Wanted) -> String {
    let why = fleet.trouble(item.name());
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    late(wanted) + &why
}

fn late(wanted: &Wanted) -> String {
    let seconds = wanted.timeout_ms.div_ceil(1000);
    format!("not durable within {seconds} s")
}

/// Labels of everything that is proven, and a last look whether it still is.
async fn name(
    fleet: &Fleet,
    wanted: &Wanted,
    instance: &str,
    outcomes: &[Outcome],
) -> Result<Option<String>, String> {
    let written = write_labels(wanted, instance, outcomes).await?;
    if let Some(name) = &written {
        still_there(fleet, name, outcomes).await?;
    }
    Ok(written)
}

async fn items(fleet: &Fleet, wanted: &Wanted, deadline: tokio::time::Instant) -> Vec<Item> {
    let names = &wanted.targets;
    let config = fleet.config();
    let mut items = Vec::new();
    if names.is_empty() {
        // What was made a moment ago belongs to all, too.
        match tokio::time::timeout_at(deadline, fleet.look_everywhere()).await {
            Ok(failed) => items.extend(
                failed
                    .into_iter()
                    .map(|(name, e)| Item::Unknown(name, of_fleet(fleet, &e))),
            ),
            Err(_) => items.push(Item::Unknown(
                "new databases".into(),
                "the watched folders could not be looked through in time".into(),
            )),
        }
    }
    for server in &config.postgres {
        let mine = |name: &String| super::postgres::is_of(server, name);
        let named = names.iter().any(mine);
        if !named && (!names.is_empty() || server.on_deploy == OnDeploy::Skip) {
            continue;
        }
        let good_for = (server.on_deploy == OnDeploy::Reuse).then_some(server.max_age);
        let open = super::postgres::open(config, server, Ask::Server);
        let unknown = |why| Item::Unknown(server.name.clone(), why);
        match tokio::time::timeout_at(deadline, open).await {
            Err(_) => items.push(unknown(late(wanted))),
            Ok(Err(e)) => items.push(unknown(told(&e, e.hint()))),
            Ok(Ok(databases)) => {
                let wanted = |d: &Database| {
                    !named || names.iter().any(|n| *n == server.name || *n == d.name)
                };
                let chosen = databases.into_iter().filter(wanted);
                items.extend(chosen.map(|d| Item::Postgres(Box::new(d), good_for)));
            }
        }
    }
    let sqlite = if names.is_empty() {
        fleet.names().await
    } else {
        let is_postgres = |n: &String| config.postgres.iter().any(|s| super::postgres::is_of(s, n));
        super::control::once(names.iter().filter(|n| !is_postgres(n)).cloned())
    };
    let known = fleet.targets().await;
    let stem = |name: &str| {
        let target = known.iter().find(|t| t.name == name);
        let stem = target.and_then(|t| t.path.file_stem());
        stem.map_or(String::new(), |s| s.to_string_lossy().into_owned())
    };
    items.extend(sqlite.into_iter().map(|name| {
        let stem = stem(&name);
        Item::Sqlite(name, stem)
    }));
    items
}

/// One round over all items. `true`: some store got past a point.
async fn attempt_all(
    fleet: &Fleet,
    items: &[Item],
    deadline: tokio::time::Instant,
    wanted: &Wanted,
) -> (Vec<Outcome>, bool) {
    let mut taken = Vec::new();
    // A dump that is reused must know what the queues know.
    let mut after = None;
    for queues in [true, false] {
        let wave = items.iter().filter(|i| i.is_queue() == queues);
        let takes = wave.map(|item| async move {
            let begun = Instant::now();
            let take = item.take(fleet, &wanted.label, after);
            match tokio::time::timeout_at(deadline, take).await {
                Ok(result) => (item.clone(), result, begun),
                Err(_) => (item.clone(), Err(late_of(fleet, item, wanted)), begun),
            }
        });
        taken.extend(futures::future::join_all(takes).await);
        let settled = |taken: &Result<Taken, String>| {
            taken
                .as_ref()
                .map_or_else(|_| Timestamp::now(), |t| t.settled)
        };
        after = taken.iter().map(|(_, result, _)| settled(result)).max();
    }
    let proofs = taken.into_iter().map(|(item, taken, begun)| async move {
        let result = match taken {
            Err(e) => Err(Miss::Failed(e)),
            Ok(taken) => match tokio::time::timeout_at(deadline, item.prove(fleet, &taken)).await {
                Ok(proof) => proof.map(|stores| (taken, stores)),
                Err(_) => Err(Miss::Failed(late_of(fleet, &item, wanted))),
            },
        };
        (item, result, begun.elapsed())
    });
    let mut passed = false;
    let outcomes = futures::future::join_all(proofs)
        .await
        .into_iter()
        .map(|(item, result, took)| {
            let result = result.map_err(|miss| match miss {
                Miss::Failed(e) => e,
                Miss::Passed => {
                    passed = true;
                    "the store holds no file that ends at the point".into()
                }
            });
            Outcome { item, result, took }
        })
        .collect();
    (outcomes, passed)
}

/// Labels of everything that is proven; `None` if nothing is.
async fn write_labels(
    wanted: &Wanted,
    instance: &str,
    outcomes: &[Outcome],
) -> Result<Option<String>, String> {
    let mut names: Vec<String> = outcomes.iter().map(|o| o.item.name().to_owned()).collect();
    let home = names.last().cloned().unwrap_or_default();
    names.extend(wanted.files.iter().cloned());
    let set = (names.len() > 1).then_some(SetRef {
        home,
        targets: names,
    });
    let mut writes = Vec::new();
    for outcome in outcomes {
        let Ok((taken, stores)) = &outcome.result else {
            continue;
        };
        writes.extend(stores.iter().map(|store| {
            let label = Label {
                format: 1,
                label: wanted.label.clone(),
                at: taken.at.to_string(),
                pin: taken.pin.clone(),
                version: wanted.version.clone(),
                instance: instance.to_owned(),
                set: set.clone(),
                written: None,
            };
            (store, label)
        }));
    }
    if writes.is_empty() {
        return Ok(None);
    }
    labels::create(&wanted.label, &writes)
        .await
        .map(Some)
        .map_err(|e| format!("the label was not written: {e}"))
}

/// Retention may have listed the labels before ours was there. From now on it meets the label; what it deleted until now shows in a listing.
async fn still_there(fleet: &Fleet, name: &str, outcomes: &[Outcome]) -> Result<(), String> {
    let pinned = || {
        outcomes
            .iter()
            .filter_map(|o| Some((&o.item, o.result.as_ref().ok()?)))
    };
    for (item, (taken, _)) in pinned() {
        let why = match item.prove(fleet, taken).await {
            Ok(_) => continue,
            Err(Miss::Failed(why)) => why,
            Err(Miss::Passed) => "its point was deleted before the label was there".into(),
        };
        for (_, (_, stores)) in pinned() {
            for store in stores {
                // A label too many harms nobody.
                let _ = labels::delete_named(store, name).await;
            }
        }
        return Err(format!(
            "nothing is labelled, because {} is not safe any more: {why}; take the snapshot again",
            item.name()
        ));
    }
    Ok(())
}

fn summary(outcomes: &[Outcome], written: Result<Option<String>, String>) -> Snapshot {
    let label = written.as_ref().ok().cloned().flatten();
    let mut targets = Vec::new();
    for outcome in outcomes {
        let mut target = TargetSnapshot {
            target: outcome.item.name().to_owned(),
            pin: None,
            at: None,
            ms: u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX),
            stores: 0,
            error: None,
        };
        match (&outcome.result, &written) {
            (Err(e), _) | (Ok(_), Err(e)) => target.error = Some(e.clone()),
            (Ok((taken, stores)), Ok(_)) => {
                target.pin = Some(taken.pin.clone());
                target.at = Some(taken.at.to_string());
                target.ms = u64::try_from(taken.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                target.stores = stores.len();
            }
        }
        targets.push(target);
    }
    Snapshot {
        ok: !targets.is_empty() && targets.iter().all(|t| t.error.is_none()),
        label,
        targets,
        files: Vec::new(),
        error: None,
    }
}

/// Says that every target of the set is pinned: last of all. `stores` are those of its home.
///
/// # Errors
/// The store's.
pub async fn write_manifest(
    wanted: &Wanted,
    instance: &str,
    done: &Snapshot,
    stores: &[Store],
) -> Result<(), crate::store::StoreError> {
    let Some(name) = &done.label else {
        return Ok(());
    };
    let manifest = json!({
        "format": 1, "label": name, "at": system_now().to_string(), "instance": instance,
        "version": wanted.version, "targets": done.targets,
    });
    for store in stores {
        labels::create_set(store, name, &manifest).await?;
    }
    Ok(())
}
