//! Evidence of a SQLite target in one store.

use serde_json::json;

use super::{Copy, Facts, PROVIDERS, drills, label_names};
use crate::config::{StoreConfig, TargetConfig};
use crate::daemon::fleet::open_replica;
use crate::replica::upload::Replica;
use crate::restore::plan::{Catalog, Goal, Point, plan};
use crate::restore::{RestoreError, read_header};
use crate::store::{Store, StoreError};
use crate::types::Millis;

pub(super) async fn database(
    target: &TargetConfig,
    config: &StoreConfig,
    retention: serde_json::Value,
) -> Copy {
    let url = config.url.to_string();
    let mut copy = Copy::new(&target.name, "sqlite", (url, config), PROVIDERS, retention);
    copy.facts = facts(target, config).await;
    copy
}

async fn facts(target: &TargetConfig, config: &StoreConfig) -> Result<Facts, String> {
    let text = |e: StoreError| e.to_string();
    let store = open_replica(config, &target.name).await.map_err(text)?;
    let catalog = Catalog::new(Replica::list(&store).await.map_err(text)?.into_values());
    let points = catalog.points();
    let (oldest, newest) = (points.first(), points.last());
    let planned = plan(&catalog, Goal::Newest);
    let hole = planned
        .as_ref()
        .ok()
        .and_then(|plan| catalog.hole(plan, Goal::Newest));
    let problem = match (&planned, hole) {
        (Err(error), _) => Some(error.to_string()),
        (Ok(_), Some(hole)) => Some(RestoreError::Hole(hole).to_string()),
        (Ok(_), None) => None,
    };
    let is_point = |txid| points.binary_search_by_key(&txid, |p| p.txid).is_ok();
    let (labels, lost) = label_names(&store, |pin| pin.txid().is_some_and(is_point)).await?;
    let more = json!({
        "path": target.path,
        "on-disk": target.path.exists(),
        "newest-txid": newest.map(|p| p.txid.to_string()),
        "restorable": problem.is_none(),
        "problem": problem.filter(|_| !catalog.entries().is_empty()),
        "hole": hole.map(|h| json!({
            "missing-txid": h.missing.to_string(),
            "files-behind": h.files,
            "newest-behind": h.newest.to_string(),
        })),
        "labels": labels,
        "labels-lost": lost,
    });
    Ok(Facts {
        oldest: captured(&store, &catalog, oldest).await?,
        newest: captured(&store, &catalog, newest).await?,
        points: points.len(),
        bytes: catalog.entries().iter().map(|e| e.size).sum(),
        more,
        drills: drills(&store).await.map_err(text)?,
    })
}

/// When a point was captured, by the header of a file that ends there: a listing of most stores tells when the object arrived, which after an
/// outage or a copy is much later.
async fn captured(
    store: &Store,
    catalog: &Catalog,
    point: Option<&Point>,
) -> Result<Option<Millis>, String> {
    let Some(point) = point else {
        return Ok(None);
    };
    // A base is taken later than what it holds: of files with one end the lowest level is the capture's.
    let mut ends: Vec<_> = catalog.entries().iter().collect();
    ends.retain(|e| e.span.max() == point.txid);
    ends.sort_unstable_by_key(|e| e.span.level());
    let mut pruned = None;
    for entry in ends {
        match read_header(store, entry).await {
            Ok(header) => return Ok(Some(header.timestamp)),
            // Pruned since the listing: another file holds the point.
            Err(RestoreError::Store(e)) if e.is_not_found() => pruned = Some(e.to_string()),
            Err(error) => return Err(error.to_string()),
        }
    }
    pruned.map_or(Ok(None), Err)
}
