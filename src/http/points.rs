//! Restore points of one target, listed when somebody asks and not more often than every few minutes: a listing is billed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::App;
use super::access::Sees;
use crate::daemon::files::open_in;
use crate::daemon::fleet::system_now;
use crate::daemon::postgres::{Ask, is_of, open};
use crate::drills;
use crate::files;
use crate::labels::{self, Pin};
use crate::postgres::{self, Kind};
use crate::restore::plan::{Catalog, Goal};
use crate::store::Store;
use crate::types::Millis;

/// A listing is as good as new for so long.
const FRESH_MS: i64 = 5 * 60_000;
/// Bound on listing one store.
const PATIENCE: Duration = Duration::from_secs(30);
/// Records of drills that are read: each costs a request.
const DRILLS: usize = 5;

/// One thing that can be restored.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    /// TXID, dump or snapshot.
    pub(super) id: String,
    /// When it was taken.
    pub(super) at: Millis,
}

/// A name of a point.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Named {
    pub(super) label: String,
    pub(super) point: Point,
    /// Its point can be restored.
    pub(super) kept: bool,
}

/// What one store holds.
#[derive(Clone, Debug, Default)]
pub(super) struct StorePoints {
    pub(super) store: String,
    /// Oldest first.
    pub(super) points: Vec<Point>,
    pub(super) labels: Vec<Named>,
    /// When, and whether it passed.
    pub(super) drills: Vec<(Millis, bool)>,
    /// Why it could not be listed.
    pub(super) error: Option<String>,
}

/// What kind of target it is: commands differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Flavour {
    #[default]
    Sqlite,
    Postgres,
    Redis,
    Files,
}

/// What all stores of a target hold.
#[derive(Clone, Debug, Default)]
pub(super) struct TargetPoints {
    pub(super) flavour: Flavour,
    /// When it was listed.
    pub(super) at: Millis,
    pub(super) stores: Vec<StorePoints>,
}

/// The last listing of each target. One is made at a time.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<BTreeMap<String, Arc<TargetPoints>>>);

impl Cache {
    /// `None`: there is no such target.
    pub(super) async fn of(&self, app: &App, name: &str) -> Option<Arc<TargetPoints>> {
        let mut known = self.0.lock().await;
        let now = system_now();
        if let Some(points) = known.get(name)
            && (0..FRESH_MS).contains(&now.since(points.at))
        {
            return Some(Arc::clone(points));
        }
        let points = Arc::new(list(app, name).await?);
        known.insert(name.to_owned(), Arc::clone(&points));
        Some(points)
    }
}

async fn list(app: &App, name: &str) -> Option<TargetPoints> {
    let at = system_now();
    if let Ok(stores) = app.fleet.stores(name).await {
        let listed = stores.iter().map(|s| bounded(s, sqlite(s)));
        return Some(TargetPoints {
            flavour: Flavour::Sqlite,
            at,
            stores: futures::future::join_all(listed).await,
        });
    }
    if let Some(config) = app.config.files.iter().find(|f| f.name == name) {
        let listed = config.stores.iter().map(|store| async {
            match open_in(&app.config, config, store).await {
                Ok(target) => bounded(&target.store, files_in(&target)).await,
                Err(error) => StorePoints {
                    store: store.url.to_string(),
                    error: Some(error.to_string()),
                    ..StorePoints::default()
                },
            }
        });
        return Some(TargetPoints {
            flavour: Flavour::Files,
            at,
            stores: futures::future::join_all(listed).await,
        });
    }
    let server = app.config.postgres.iter().find(|s| is_of(s, name))?;
    if !app.board.postgres().iter().any(|f| f.name == name) {
        return None;
    }
    let stores = match open(&app.config, server, Ask::Stores).await {
        Ok(databases) => {
            let database = databases.into_iter().find(|d| d.name == name);
            let stores = database.map(|d| d.stores).unwrap_or_default();
            let listed = stores.iter().map(|s| bounded(s, dumps(s)));
            futures::future::join_all(listed).await
        }
        Err(error) => vec![StorePoints {
            store: server.stores[0].url.to_string(),
            error: Some(error.to_string()),
            ..StorePoints::default()
        }],
    };
    Some(TargetPoints {
        flavour: match server.origin.kind() {
            Kind::Postgres => Flavour::Postgres,
            Kind::Redis => Flavour::Redis,
        },
        at,
        stores,
    })
}

async fn bounded(
    store: &Store,
    listing: impl Future<Output = Result<StorePoints, String>>,
) -> StorePoints {
    let error = match tokio::time::timeout(PATIENCE, listing).await {
        Ok(Ok(points)) => return points,
        Ok(Err(error)) => error,
        Err(_) => format!("listing took longer than {} s", PATIENCE.as_secs()),
    };
    StorePoints {
        store: store.display(),
        error: Some(error),
        ..StorePoints::default()
    }
}

async fn sqlite(store: &Store) -> Result<StorePoints, String> {
    let catalog = crate::restore::catalog(store, Goal::Newest)
        .await
        .map_err(|e| e.to_string())?;
    let labels = labels::list(store).await.map_err(|e| e.to_string())?;
    let drills = drills::history(store, DRILLS)
        .await
        .map_err(|e| e.to_string())?;
    // A large replica has a hundred thousand files.
    let points = tokio::task::spawn_blocking(move || Catalog::points(&catalog)).await;
    let points = points.map_err(|e| e.to_string())?;
    let kept = |l: &labels::Label| {
        let txid = l.pin.txid();
        txid.is_some_and(|t| points.binary_search_by_key(&t, |p| p.txid).is_ok())
    };
    let named = labels.iter().map(|l| Named {
        label: l.label.clone(),
        point: Point {
            id: l
                .pin
                .txid()
                .map_or_else(|| l.pin.describe(), |t| t.to_string()),
            at: l.at(),
        },
        kept: kept(l),
    });
    Ok(StorePoints {
        store: store.display(),
        labels: named.collect(),
        drills: drills.iter().map(|d| (d.at(), d.ok)).collect(),
        points: points
            .iter()
            .map(|p| Point {
                id: p.txid.to_string(),
                at: p.at,
            })
            .collect(),
        error: None,
    })
}

/// Reads each snapshot: some hundred bytes each, a hundred of them after a year.
async fn files_in(target: &files::Target) -> Result<StorePoints, String> {
    let (store, target) = (target.store.clone(), target.clone());
    let listed = tokio::task::spawn_blocking(move || files::list(&target)).await;
    let listed = listed.map_err(|e| e.to_string())?;
    let snapshots = listed.map_err(|e| e.to_string())?;
    let drills = files::drills(&store, DRILLS).await;
    let drills = drills.map_err(|e| e.to_string())?;
    let point = |s: &files::Point| Point {
        id: s.short().to_owned(),
        at: Millis(s.time.as_millisecond()),
    };
    let labels = snapshots.iter().flat_map(|s| {
        s.labels.iter().map(move |label| Named {
            label: label.clone(),
            point: point(s),
            kept: true,
        })
    });
    Ok(StorePoints {
        store: store.display(),
        labels: labels.collect(),
        drills: drills
            .iter()
            .map(|d| (Millis(d.time.as_millisecond()), d.findings.is_empty()))
            .collect(),
        // A label may pin a partial one; nothing else is offered that lacks files.
        points: snapshots.iter().filter(|s| !s.partial).map(point).collect(),
        error: None,
    })
}

async fn dumps(store: &Store) -> Result<StorePoints, String> {
    let dumps = postgres::listed(store).await.map_err(|e| e.to_string())?;
    let labels = labels::list(store).await.map_err(|e| e.to_string())?;
    let drills = postgres::drills(store, DRILLS).await;
    let drills = drills.map_err(|e| e.to_string())?;
    // What is known to be damaged is no point.
    let whole = dumps.iter().filter(|d| d.damage.is_none());
    let points: Vec<Point> = whole
        .map(|d| Point {
            id: d.manifest.id.clone(),
            at: Millis(d.manifest.began.as_millisecond()),
        })
        .collect();
    let named = labels.iter().filter_map(|l| {
        let Pin::Postgres { dump } = &l.pin else {
            return None;
        };
        Some(Named {
            label: l.label.clone(),
            point: Point {
                id: dump.clone(),
                at: l.at(),
            },
            kept: points.iter().any(|p| p.id == *dump),
        })
    });
    Ok(StorePoints {
        store: store.display(),
        labels: named.collect(),
        drills: drills
            .iter()
            .map(|d| (Millis(d.time.as_millisecond()), d.findings.is_empty()))
            .collect(),
        points,
        error: None,
    })
}

impl TargetPoints {
    /// The newest at or before a moment, over all stores.
    pub(super) fn last_at(&self, at: Millis) -> Option<&Point> {
        let each = self.stores.iter().filter_map(|s| {
            let end = s.points.partition_point(|p| p.at <= at);
            s.points[..end].last()
        });
        each.max_by_key(|p| p.at)
    }

    /// For `/api/v1/targets/NAME/points`: newest first.
    pub(super) fn json(
        &self,
        name: &str,
        range: (Millis, Millis),
        limit: usize,
        sees: Sees,
    ) -> Value {
        let all = sees == Sees::Everything;
        let point = |p: &Point| json!({ "id": p.id, "at": p.at.to_string() });
        let stores = self.stores.iter().map(|s| {
            let mine: Vec<&Point> = s.points.iter().filter(|p| range.0 <= p.at && p.at <= range.1).collect();
            let window = s.points.first().zip(s.points.last());
            json!({
                "store": all.then_some(&s.store),
                "window": window.map(|(a, b)| json!({ "from": a.at.to_string(), "to": b.at.to_string() })),
                "count": mine.len(),
                "points": mine.iter().rev().take(limit).map(|p| point(p)).collect::<Vec<_>>(),
                "labels": s.labels.iter().filter(|_| all).map(|l| json!({
                    "label": l.label, "id": l.point.id, "at": l.point.at.to_string(), "restorable": l.kept,
                })).collect::<Vec<_>>(),
                "drills": s.drills.iter().map(|(at, ok)| json!({ "at": at.to_string(), "ok": ok })).collect::<Vec<_>>(),
                "error": s.error.as_ref().map(|e| if all { e.as_str() } else { "the store could not be listed" }),
            })
        });
        json!({
            "target": name,
            "listed_at": self.at.to_string(),
            "stores": stores.collect::<Vec<_>>(),
        })
    }
}
