//! Labels, shown and looked up.

use serde_json::{Value, json};

use super::Failure;
use crate::config::Config;
use crate::daemon::fleet::{open_replica, system_now};
use crate::daemon::postgres::Ask;
use crate::labels::{self, Label, age};
use crate::restore::plan::{Catalog, Goal};
use crate::retention::Planned;
use crate::store::Store;
use crate::types::Millis;

/// The point of a label. With `all`, the set that it belongs to must be complete.
pub(super) async fn goal(
    store: &Store,
    wanted: &str,
    config: Option<&Config>,
    all: bool,
) -> Result<Goal, Failure> {
    let known = labels::list(store).await?;
    let label = labels::find(&known, wanted, system_now())?;
    if let (true, Some(config)) = (all, config) {
        complete(label, config).await?;
    }
    let txid = label.pin.txid().ok_or_else(|| {
        Failure::new(
            3,
            format!("label \"{}\" pins a {}", label.label, label.pin.describe()),
            None,
        )
    })?;
    Ok(Goal::Txid(txid))
}

/// Without its manifest a snapshot did not finish: some targets of it are not pinned.
pub(super) async fn complete(label: &Label, config: &Config) -> Result<(), Failure> {
    let Some(set) = &label.set else {
        return Ok(());
    };
    let mut failed = None;
    let mut roots = Vec::new();
    if let Some(home) = config.targets.iter().find(|t| t.name == set.home) {
        for store in &home.options.stores {
            match open_replica(store, &home.name).await {
                Ok(root) => roots.push(root),
                Err(e) => failed = Some(Failure::from(e)),
            }
        }
    } else if super::postgres::is_target(config, &set.home) {
        let split = super::postgres::split(config, std::slice::from_ref(&set.home));
        for database in split.databases(config, Ask::Stores).await? {
            roots.extend(database.stores);
        }
    } else {
        return Err(Failure::new(
            3,
            format!(
                "whether the snapshot \"{}\" finished is written with {}, which is not in the configuration; nothing was changed",
                label.label, set.home
            ),
            Some(format!(
                "restore the targets one by one, or add {} for this restore",
                set.home
            )),
        ));
    }
    for root in &roots {
        match labels::read_set(root, &label.label).await {
            Ok(Some(manifest)) if is_of(&manifest, label, &set.targets) => return Ok(()),
            // Of another snapshot of that name, of other targets.
            Ok(_) => {}
            Err(e) => failed = Some(e.into()),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    Err(Failure::new(
        3,
        format!(
            "the snapshot \"{}\" of {} did not finish: not every target is pinned; nothing was changed",
            label.label,
            set.targets.join(", ")
        ),
        Some("restore the targets one by one, or choose another label from `lifeboat list`".into()),
    ))
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

pub(super) fn json_of(labels: &[Label], catalog: &Catalog) -> Vec<Value> {
    let one = |l: &Label| {
        json!({
            "label": l.label, "at": l.at, "pin": l.pin, "version": l.version,
            "set": l.set.as_ref().map(|s| &s.targets), "restorable": restorable(l, catalog),
        })
    };
    labels.iter().map(one).collect()
}

pub(super) fn show(labels: &[Label], catalog: &Catalog, now: Millis) {
    for label in labels {
        let version = label.version.as_deref().unwrap_or("-");
        let lost = if restorable(label, catalog) {
            ""
        } else {
            "  NOT RESTORABLE: its objects are gone"
        };
        println!(
            "  label {:<28} version {version:<12} {:>5} ago  {}  {}{lost}",
            label.label,
            age(label.at(), now),
            label.pin.describe(),
            label.at
        );
    }
}

pub(super) fn show_ending(target: &str, planned: &Planned, as_json: bool) {
    for (label, why) in &planned.ending {
        if as_json {
            println!(
                "{}",
                json!({ "target": target, "label": label.label, "keep": false, "reasons": [why.to_string()] })
            );
        } else {
            println!("{target}: end label {}: {why}", label.label);
        }
    }
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
