//! Labels, shown and looked up.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use serde_json::{Value, json};

use super::Failure;
use crate::config::Config;
use crate::daemon::fleet::{open_replica, system_now};
use crate::daemon::postgres::Ask;
use crate::labels::{self, Expiry, FindError, Label, SetRef, age};
use crate::restore::plan::{Catalog, Goal};
use crate::retention::Planned;
use crate::store::Store;
use crate::types::Millis;

/// Manifests read at once.
const READS_AT_ONCE: usize = 16;

/// The point of a label. With `all`, the set that it belongs to must be complete.
pub(super) async fn goal(
    store: &Store,
    wanted: &str,
    config: Option<&Config>,
    all: bool,
) -> Result<Goal, Failure> {
    let known = labels::list(store).await?;
    let label = find(&known, wanted, config.filter(|_| all)).await?;
    let txid = label.pin.txid().ok_or_else(|| {
        Failure::new(
            3,
            format!("label \"{}\" pins a {}", label.label, label.pin.describe()),
            None,
        )
    })?;
    Ok(Goal::Txid(txid))
}

/// The label that is meant. With a configuration its whole set is wanted: it must be complete, and no other is offered.
pub(super) async fn find<'a>(
    known: &'a [Label],
    wanted: &str,
    all: Option<&Config>,
) -> Result<&'a Label, Failure> {
    let now = system_now();
    let found = labels::find(known, wanted, now);
    let Some(config) = all else {
        return Ok(found?);
    };
    let error = match found {
        Ok(label) => {
            complete(label, config).await?;
            return Ok(label);
        }
        Err(error) => error,
    };
    let unfinished = unfinished(known, config).await;
    let is_whole = |l: &&Label| !unfinished.contains(&l.label);
    let whole: Vec<Label> = known.iter().filter(is_whole).cloned().collect();
    let left = labels::find(&whole, wanted, now);
    match (error, left) {
        (FindError::Ambiguous { .. }, Ok(one)) => {
            let (base, number) = one.base();
            Err(FindError::OneWhole {
                wanted: wanted.to_owned(),
                whole: format!("{base}#{number}"),
            }
            .into())
        }
        (FindError::Ambiguous { newest, .. }, Err(FindError::Unknown { .. })) => {
            let newest = labels::find(known, &newest, now)?;
            complete(newest, config).await?;
            Ok(newest)
        }
        (error, left) => Err(left.err().unwrap_or(error).into()),
    }
}

/// Before anything of `--all` is planned: the snapshot that is meant must have finished, so that this is what is said, and not what lacks the label.
pub(super) async fn whole(
    stores: impl Iterator<Item = &Store>,
    wanted: &str,
    config: &Config,
) -> Result<(), Failure> {
    for store in stores {
        // A store that is away is met when it is read.
        let Ok(known) = labels::list(store).await else {
            continue;
        };
        match labels::find(&known, wanted, system_now()) {
            // A target that came later lacks it.
            Err(FindError::Unknown { .. }) => {}
            _ => return still_whole(find(&known, wanted, Some(config)).await?, config).await,
        }
    }
    Ok(())
}

/// A label may have ended for one target of a set and not for another.
async fn still_whole(label: &Label, config: &Config) -> Result<(), Failure> {
    let Some(set) = &label.set else {
        return Ok(());
    };
    let lacking = lacking(label, set, config).await;
    if lacking.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        3,
        format!(
            "the snapshot \"{}\" of {} is no longer whole: {} without the label; nothing was changed",
            label.label,
            set.targets.join(", "),
            lacking.join(", ")
        ),
        Some("restore the targets one by one, or choose another label from `lifeboat list`".into()),
    ))
}

/// Without its manifest a snapshot did not finish: some targets of it are not pinned.
async fn complete(label: &Label, config: &Config) -> Result<(), Failure> {
    let Some(set) = &label.set else {
        return Ok(());
    };
    let homes = homes(config, &set.home).await?;
    if is_finished(label, set, &homes).await? {
        return Ok(());
    }
    let lacking = lacking(label, set, config).await;
    let what = match lacking.is_empty() {
        true => "not every target is pinned".to_owned(),
        false => format!("not pinned: {}", lacking.join(", ")),
    };
    Err(Failure::new(
        3,
        format!(
            "the snapshot \"{}\" of {} did not finish: {what}; nothing was changed",
            label.label,
            set.targets.join(", ")
        ),
        Some("restore the targets one by one, or choose another label from `lifeboat list`".into()),
    ))
}

/// The home of a set: what could be opened of it, and why the rest could not.
type Homes = (Vec<Store>, Option<Failure>);

/// Where the manifests of sets lie whose home a target is.
pub(super) async fn homes(config: &Config, home: &str) -> Result<Homes, Failure> {
    if let Some(target) = config.targets.iter().find(|t| t.name == home) {
        let (mut roots, mut failed) = (Vec::new(), None);
        for store in &target.options.stores {
            match open_replica(store, home).await {
                Ok(root) => roots.push(root),
                Err(e) => failed = Some(Failure::from(e)),
            }
        }
        return Ok((roots, failed));
    }
    if super::postgres::is_target(config, home) {
        let split = super::postgres::split(config, &[home.to_owned()]);
        let databases = split.databases(config, Ask::Stores).await?;
        return Ok((databases.into_iter().flat_map(|d| d.stores).collect(), None));
    }
    Err(Failure::new(
        3,
        format!(
            "whether the snapshot finished is written with {home}, which is not in the configuration; nothing was changed"
        ),
        Some(format!(
            "restore the targets one by one, or add {home} for this restore"
        )),
    ))
}

async fn is_finished(label: &Label, set: &SetRef, homes: &Homes) -> Result<bool, Failure> {
    let (roots, unopened) = homes;
    let mut failed = unopened.clone();
    for root in roots {
        match labels::read_set(root, &label.label).await {
            Ok(Some(manifest)) if is_of(&manifest, label, &set.targets) => return Ok(true),
            // Of another snapshot of that name, of other targets.
            Ok(_) => {}
            Err(e) => failed = Some(e.into()),
        }
    }
    failed.map_or(Ok(false), Err)
}

/// Labels whose snapshot did not finish. One of which that cannot be known now is not among them.
pub(super) async fn unfinished(known: &[Label], config: &Config) -> BTreeSet<String> {
    let sets = known.iter().filter_map(|l| Some((l, l.set.as_ref()?)));
    let mut all: BTreeMap<&str, Homes> = BTreeMap::new();
    for (_, set) in sets.clone() {
        if !all.contains_key(set.home.as_str())
            && let Ok(homes) = homes(config, &set.home).await
        {
            all.insert(&set.home, homes);
        }
    }
    let looks = sets.filter_map(|(label, set)| {
        let homes = all.get(set.home.as_str())?;
        Some(async move {
            let is_finished = is_finished(label, set, homes).await;
            matches!(is_finished, Ok(false)).then(|| label.label.clone())
        })
    });
    let found = futures::stream::iter(looks).buffer_unordered(READS_AT_ONCE);
    found.filter_map(std::future::ready).collect().await
}

/// Targets of a set that lack its label, as far as their stores answer.
async fn lacking(label: &Label, set: &SetRef, config: &Config) -> Vec<String> {
    let mut lacking = Vec::new();
    for name in &set.targets {
        let is_there = match config.files.iter().find(|f| f.name == *name) {
            Some(files) => super::files::has_label(config, files, &label.label).await,
            None => has_label(config, name, &label.label).await,
        };
        if is_there == Some(false) {
            lacking.push(name.clone());
        }
    }
    lacking
}

/// `None`: nobody knows.
async fn has_label(config: &Config, name: &str, label: &str) -> Option<bool> {
    let (roots, failed) = homes(config, name).await.ok()?;
    let mut is_known = failed.is_none();
    for root in &roots {
        match labels::list(root).await {
            Ok(known) if known.iter().any(|l| l.label == label) => return Some(true),
            Ok(_) => {}
            Err(_) => is_known = false,
        }
    }
    is_known.then_some(false)
}

/// The manifest of the very snapshot that a label belongs to: a name may be free again for some of the targets.
fn is_of(manifest: &Value, label: &Label, targets: &[String]) -> bool {
    let listed = manifest["targets"].as_array();
    let listed = listed.map_or(&[][..], Vec::as_slice);
    let pin = json!(label.pin);
    listed.len() == targets.len()
        && targets
            .iter()
            .all(|name| listed.iter().any(|t| t["target"] == **name))
        && listed.iter().any(|t| t["pin"] == pin)
}

fn restorable(label: &Label, catalog: &Catalog) -> bool {
    label
        .pin
        .txid()
        .is_none_or(|txid| catalog.points().iter().any(|p| p.txid == txid))
}

pub(super) fn json_of(
    labels: &[Label],
    catalog: &Catalog,
    unfinished: &BTreeSet<String>,
) -> Vec<Value> {
    let one = |l: &Label| {
        json!({
            "label": l.label, "at": l.at, "pin": l.pin, "version": l.version,
            "set": l.set.as_ref().map(|s| &s.targets), "restorable": restorable(l, catalog), "incomplete": unfinished.contains(&l.label),
        })
    };
    labels.iter().map(one).collect()
}

pub(super) fn show(
    labels: &[Label],
    catalog: &Catalog,
    unfinished: &BTreeSet<String>,
    now: Millis,
) {
    for label in labels {
        let version = label.version.as_deref().unwrap_or("-");
        let lost = if restorable(label, catalog) {
            ""
        } else {
            "  NOT RESTORABLE: its objects are gone"
        };
        let partly = match unfinished.contains(&label.label) {
            true => "  INCOMPLETE: its snapshot did not finish",
            false => "",
        };
        println!(
            "  label {:<28} version {version:<12} {:>5} ago  {}  {}{lost}{partly}",
            label.label,
            age(label.at(), now),
            label.pin.describe(),
            label.at
        );
    }
}

/// Labels that end.
pub(super) fn show_ended(target: &str, ending: &[(Label, Expiry)], as_json: bool) {
    for (label, why) in ending {
        if as_json {
            println!(
                "{}",
                json!({ "target": target, "label": label.label, "keep": false, "reasons": [why.to_string()] })
            );
        } else {
            println!("{target}: end label {}: {why}", label.label);
        }
    }
}

/// Labels that end, and those that lost their point.
pub(super) fn show_ending(target: &str, planned: &Planned, as_json: bool) {
    show_ended(target, &planned.ending, as_json);
    for (txid, label) in &planned.plan.lost {
        if as_json {
            println!(
                "{}",
                json!({ "target": target, "label": label, "lost": txid.to_string() })
            );
        } else {
            println!("{target}: label {label} is lost: TXID {txid} cannot be restored any more");
        }
    }
}
