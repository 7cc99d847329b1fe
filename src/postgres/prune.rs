//! Retention of dumps: decided, proven, then done.
//!
//! Invariants
//! 1. A dump is deleted by its manifest first: a kill in the middle leaves no manifest without its dump.
//! 2. Before the first delete every dump that is to be kept is found whole in the same listing, apart from what is to be deleted; and the
//!    clock here agrees with the store's.
//! 3. Labels are read again right before the first delete: what is pinned by then stays.
//! 4. What has no manifest is deleted a day after its last byte was written, never earlier: it may be a dump under way.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::damage::missing;
use super::manifest::{Dumps, FILE, FOLDER, read_all};
use super::{Manifest, PostgresError, ReadBacks, drill};
use crate::config::RetentionConfig;
use crate::labels::{self, Expiry, Label, Pin};
use crate::retention::copies::{Candidate, Decision, Reason, decide};
use crate::store::{ObjectInfo, PutMode, Store};
use crate::types::Millis;

/// A clock that is off by more than this may not delete.
const CLOCK_LIMIT: SignedDuration = SignedDuration::from_mins(5);
/// No dump takes longer between its last byte and its manifest.
const UNFINISHED_KEEP: SignedDuration = SignedDuration::from_hours(24);
/// Written to learn the store's clock.
const CLOCK_KEY: &str = "lifeboat/clock";

/// What was decided and done.
#[derive(Debug)]
pub struct Pruned {
    /// The dumps as they were, by time.
    pub dumps: Vec<Manifest>,
    /// What became of each.
    pub decisions: Vec<Decision>,
    /// Labels that ended, and why.
    pub ending: Vec<(Label, Expiry)>,
    /// Ids of dumps that are not whole in the store.
    pub torn: Vec<String>,
    /// Labels whose dump is gone.
    pub lost: Vec<String>,
    /// Objects of dumps that never were finished.
    pub unfinished: usize,
    /// Bytes that were deleted, or would be.
    pub bytes: u64,
}

impl Pruned {
    /// Dumps that were deleted, or would be.
    pub fn forgotten(&self) -> usize {
        self.decisions.iter().filter(|d| !d.keeps()).count()
    }
}

/// Applies retention in one store; with `dry_run` only says what it would do.
///
/// # Errors
/// [`PostgresError::Refused`]: nothing was deleted. The store's: a part may be deleted, no dump that is kept.
pub async fn prune(
    store: &Store,
    policy: &RetentionConfig,
    zone: &TimeZone,
    now: Timestamp,
    dry_run: bool,
) -> Result<Pruned, PostgresError> {
    let objects = store.list(FOLDER).await?;
    let Dumps { dumps, damaged } = read_all(store, &objects).await?;
    let known = labels::list(store).await.map_err(label_error)?;
    let at = Millis(now.as_millisecond());
    let ending: Vec<(Label, Expiry)> = labels::expired(&known, &policy.labels, at)
        .into_iter()
        .map(|(label, why)| (label.clone(), why))
        .collect();
    let ended = |l: &Label| ending.iter().any(|(e, _)| e.label == l.label);
    let mut pins: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for label in known.iter().filter(|l| !ended(l)) {
        if let Pin::Postgres { dump } = &label.pin {
            pins.entry(dump).or_default().push(label.label.clone());
        }
    }
    let sizes: BTreeMap<&str, u64> = objects.iter().map(|o| (o.key.as_str(), o.size)).collect();
    let whole = |m: &Manifest| is_whole(m, &sizes);
    let read = ReadBacks::load(store).await?;
    let candidates: Vec<Candidate> = dumps
        .iter()
        .map(|m| Candidate {
            id: m.id.clone(),
            began: m.began,
            good: m.anomalies.is_empty() && whole(m) && !read.damaged.contains(&m.id),
            ours: true,
            labels: pins.get(m.id.as_str()).cloned().unwrap_or_default(),
        })
        .collect();
    let sound = dumps
        .iter()
        .filter(|m| whole(m) && !read.damaged.contains(&m.id));
    let sound = sound.map(|m| m.id.as_str()).collect();
    let proven = BTreeSet::from_iter(drill::proven(store, &sound).await?);
    let decisions = decide(&candidates, policy, &proven, now, zone);
    // A manifest that cannot be read is none that was never written.
    let ids = dumps.iter().map(|m| m.id.as_str());
    let ids: BTreeSet<&str> = ids.chain(damaged.iter().map(String::as_str)).collect();
    let unfinished = unfinished(&objects, &ids, now);
    let gone: BTreeSet<&str> = decisions
        .iter()
        .filter(|d| !d.keeps())
        .map(|d| dumps[d.index].id.as_str())
        .collect();
    let of_gone = |o: &&ObjectInfo| id_of(&o.key).is_some_and(|id| gone.contains(id));
    let mut deletes: Vec<&ObjectInfo> = objects.iter().filter(of_gone).collect();
    // Manifests first.
    deletes.sort_by_key(|o| !o.key.ends_with(FILE));
    deletes.extend(&unfinished);
    let mut pruned = Pruned {
        torn: dumps
            .iter()
            .filter(|m| !whole(m))
            .map(|m| m.id.clone())
            .chain(damaged.iter().cloned())
            .collect(),
        lost: pins
            .iter()
            .filter(|(id, _)| !ids.contains(**id))
            .flat_map(|(_, labels)| labels.clone())
            .collect(),
        unfinished: unfinished.len(),
        bytes: deletes.iter().map(|o| o.size).sum(),
        decisions,
        ending,
        dumps: dumps.clone(),
    };
    if deletes.is_empty() && pruned.ending.is_empty() {
        return Ok(pruned);
    }
    prove(&dumps, &pruned.decisions, &deletes, &sizes)?;
    if dry_run {
        return Ok(pruned);
    }
    check_clock(store, now, dumps.last()).await?;
    keep_labelled(store, &mut pruned, &mut deletes).await?;
    for (label, _) in &pruned.ending {
        labels::delete(store, label).await?;
    }
    for object in deletes {
        store.delete(&object.key).await?;
    }
    Ok(pruned)
}

/// A label that was written while the plan was made counts, and one that was written anew does not end: nothing was deleted yet.
async fn keep_labelled(
    store: &Store,
    pruned: &mut Pruned,
    deletes: &mut Vec<&ObjectInfo>,
) -> Result<(), PostgresError> {
    let known = labels::list(store).await.map_err(label_error)?;
    pruned.ending.retain(|(label, _)| known.contains(label));
    let stays = |l: &&Label| !pruned.ending.iter().any(|(ending, _)| ending == *l);
    let mut pins: BTreeMap<&str, Vec<Reason>> = BTreeMap::new();
    for label in known.iter().filter(stays) {
        if let Pin::Postgres { dump } = &label.pin {
            let reason = Reason::Label(label.label.clone());
            pins.entry(dump).or_default().push(reason);
        }
    }
    for decision in pruned.decisions.iter_mut().filter(|d| !d.keeps()) {
        if let Some(reasons) = pins.get(pruned.dumps[decision.index].id.as_str()) {
            decision.reasons.clone_from(reasons);
        }
    }
    deletes.retain(|o| id_of(&o.key).is_none_or(|id| !pins.contains_key(id)));
    pruned.bytes = deletes.iter().map(|o| o.size).sum();
    Ok(())
}

fn label_error(error: labels::LabelError) -> PostgresError {
    match error {
        labels::LabelError::Store(e) => e.into(),
        // A label that cannot be read may pin anything.
        other => PostgresError::Refused {
            what: format!("{other}; nothing was deleted"),
            hint: "look at the object; if it is beyond repair, delete it".into(),
        },
    }
}

/// `dumps/<id>/...`.
fn id_of(key: &str) -> Option<&str> {
    key.strip_prefix(FOLDER)?.split('/').next()
}

fn is_whole(manifest: &Manifest, sizes: &BTreeMap<&str, u64>) -> bool {
    missing(manifest, sizes).is_none()
}

/// Objects without a manifest whose last byte is old enough, by the store's time and by the id's.
fn unfinished<'a>(
    objects: &'a [ObjectInfo],
    finished: &BTreeSet<&str>,
    now: Timestamp,
) -> Vec<&'a ObjectInfo> {
    let limit = now
        .checked_sub(UNFINISHED_KEEP)
        .map_or(i64::MIN, |t| t.as_millisecond());
    let old = |id: &str| {
        let mut own = objects.iter().filter(|o| id_of(&o.key) == Some(id));
        own.all(|o| o.modified.0 < limit)
    };
    objects
        .iter()
        .filter(|o| id_of(&o.key).is_some_and(|id| !finished.contains(id) && old(id)))
        .collect()
}

/// In another way than the plan was made: every kept dump is looked up in what remains.
fn prove(
    dumps: &[Manifest],
    decisions: &[Decision],
    deletes: &[&ObjectInfo],
    sizes: &BTreeMap<&str, u64>,
) -> Result<(), PostgresError> {
    let refused = |what: String| PostgresError::Refused {
        what: format!("{what}; nothing was deleted"),
        hint: "report this with the output of `lifeboat prune --dry-run`".into(),
    };
    let mut remaining = sizes.clone();
    for object in deletes {
        remaining.remove(object.key.as_str());
    }
    let mut restorable = false;
    for (manifest, decision) in dumps.iter().zip(decisions) {
        let was = is_whole(manifest, sizes);
        let is = is_whole(manifest, &remaining);
        if decision.keeps() && was && !is {
            return Err(refused(format!("the plan would tear dump {}", manifest.id)));
        }
        restorable |= is;
    }
    if !restorable && dumps.iter().any(|m| is_whole(m, sizes)) {
        return Err(refused("the plan would delete the last whole dump".into()));
    }
    Ok(())
}

async fn check_clock(
    store: &Store,
    now: Timestamp,
    newest: Option<&Manifest>,
) -> Result<(), PostgresError> {
    let refused = |other: Timestamp| PostgresError::Refused {
        what: format!(
            "the clock says {now}, but the newest dump or the store says {other}; nothing was deleted"
        ),
        hint: "set the clock of this host right (NTP)".into(),
    };
    if let Some(newest) = newest.filter(|m| m.began.duration_since(now) > CLOCK_LIMIT) {
        return Err(refused(newest.began));
    }
    let body = bytes::Bytes::from_static(b"{}");
    store.put(CLOCK_KEY, body, PutMode::Overwrite, None).await?;
    let written = store.head(CLOCK_KEY).await?.modified;
    let there = Timestamp::from_millisecond(written.0).unwrap_or(now);
    if there.duration_since(now).abs() > CLOCK_LIMIT {
        return Err(refused(there));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use object_store::ObjectStore;
    use object_store::memory::InMemory;

    use super::*;
    use crate::store::Kind;
    use crate::store::testing::{Call, Fault, Faulty};

    async fn dump(store: &Store, day: i8) -> String {
        let id = format!("202601{day:02}T000000.000Z");
        let text = format!(
            r#"{{"id":"{id}","database":"d","began":"2026-01-{day:02}T00:00:00Z","ended":"2026-01-{day:02}T00:00:00Z",
            "dump":{{"size":4,"sha256":"","raw-size":1,"raw-sha256":""}},"server-version":"","client-version":"",
            "database-bytes":0,"extensions":{{}},"rows":{{}}}}"#
        );
        let manifest: Manifest = serde_json::from_str(&text).unwrap();
        manifest.write(store).await.unwrap();
        let key = manifest.dump_key();
        let put = store.put(&key, "dump".into(), PutMode::Create, None);
        put.await.unwrap();
        id
    }

    fn label(name: &str, dump: &str) -> Label {
        Label {
            format: 1,
            label: name.into(),
            at: Timestamp::now().to_string(),
            pin: Pin::Postgres { dump: dump.into() },
            version: None,
            instance: "web1".into(),
            set: None,
            written: None,
        }
    }

    /// Somebody labels a dump while the plan is made that would delete it.
    #[tokio::test]
    async fn a_label_that_comes_while_the_plan_is_made_counts() {
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let (client, faults) = Faulty::wrap(Arc::clone(&memory));
        let slow = Store::from_object_store(Kind::Memory, client, "".into());
        let store = Store::from_object_store(Kind::Memory, memory, "".into());
        let mut ids = Vec::new();
        for day in 1..5 {
            ids.push(dump(&store, day).await);
        }
        // The plan is made when the clock is asked for.
        let pause = Fault::Delay(Duration::from_secs(3));
        faults.inject(Some(Call::Put), 0, 1, pause);
        let policy = RetentionConfig::plain(Duration::from_secs(1));
        let run = tokio::spawn(async move {
            prune(&slow, &policy, &TimeZone::UTC, Timestamp::now(), false).await
        });
        while !faults.calls().iter().any(|(call, _)| *call == Call::Put) {
            assert!(!run.is_finished());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        labels::create("v1", &[(&store, label("v1", &ids[1]))])
            .await
            .unwrap();
        let done = run.await.unwrap().unwrap();
        let objects = store.list(FOLDER).await.unwrap();
        let of = |id: &str| objects.iter().filter(|o| id_of(&o.key) == Some(id)).count();
        let left: Vec<usize> = ids.iter().map(|id| of(id)).collect();
        assert_eq!(
            left,
            [0, 2, 0, 2],
            "the labelled one and the newest are whole"
        );
        assert_eq!(done.forgotten(), 2);
    }
}
