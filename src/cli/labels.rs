//! Labels, shown and looked up.

use serde_json::{Value, json};

use super::Failure;
use crate::config::Config;
use crate::daemon::fleet::{open_replica, system_now};
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
async fn complete(label: &Label, config: &Config) -> Result<(), Failure> {
    let Some(set) = &label.set else {
        return Ok(());
    };
    let Some(home) = config.targets.iter().find(|t| t.name == set.home) else {
        return Ok(());
    };
    let mut failed = None;
    for store in &home.options.stores {
        let found = async {
            let root = open_replica(store, &home.name).await?;
            Ok::<_, Failure>(labels::read_set(&root, &label.label).await?.is_some())
        };
        match found.await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(e) => failed = Some(e),
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
