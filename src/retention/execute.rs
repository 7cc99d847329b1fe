use std::time::Instant;

use crate::config::RetentionConfig;
use crate::drills::{self, Proven};
use crate::labels::{self, Expiry, Label, LabelError};
use crate::replica::upload::{Replica, UploadError};
use crate::restore::plan::Catalog;
use crate::store::StoreError;
use crate::types::{Millis, Txid};

use super::{Held, Refused, RetentionPlan, plan};

/// Labels of a replica from which nothing is to be deleted are looked at so often: they end by the number of deploys, or after months.
const LABELS_EVERY_MS: i64 = 24 * 60 * 60 * 1000;

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Objects deleted.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Labels that ended.
    pub labels: u64,
    /// Labels whose point is gone.
    pub lost: Vec<(Txid, String)>,
    /// What is kept.
    pub held: Held,
}

/// Points that are kept beside the tiers.
#[derive(Debug, Default)]
pub struct Pins {
    /// Labels that were read before.
    pub cache: labels::Cache,
    /// When labels were read last only to see whether one ends, and none did.
    pub labels_looked: Option<Millis>,
    /// Points whose label may still be on its way.
    pub pending: Vec<(Txid, String)>,
    /// The newest point that a drill proved.
    pub proven: Proven,
}

/// A label that ends, and why.
pub type Ending = (Label, Expiry);

/// A plan with the labels that it was made for.
#[derive(Clone, Debug, Default)]
pub struct Planned {
    /// Every object, decided.
    pub plan: RetentionPlan,
    /// Labels that end.
    pub ending: Vec<Ending>,
}

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The plan.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The store, or its owner.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// A label that cannot be read may pin anything.
    #[error("{0}; nothing was deleted")]
    Label(LabelError),
}

impl From<LabelError> for PruneError {
    fn from(error: LabelError) -> Self {
        match error {
            LabelError::Store(e) => Self::Upload(e.into()),
            other => Self::Label(other),
        }
    }
}

/// Plans for what is known of a replica, without its labels: costs no request. What this deletes may still be pinned; what it keeps stays.
pub fn plan_for(
    replica: &Replica,
    policy: &RetentionConfig,
    pins: &Pins,
    now: Millis,
) -> Result<Planned, Refused> {
    plan_at(replica, policy, (&[], &[]), pins, now, None)
}

fn plan_at(
    replica: &Replica,
    policy: &RetentionConfig,
    (labels, drills): (&[Label], &[(Txid, String)]),
    pins: &Pins,
    now: Millis,
    store_now: Option<Millis>,
) -> Result<Planned, Refused> {
    let ending: Vec<Ending> = labels::expired(labels, &policy.labels, now)
        .into_iter()
        .map(|(l, why)| (l.clone(), why))
        .collect();
    let kept = labels
        .iter()
        .filter(|l| !ending.iter().any(|(e, _)| e.label == l.label));
    let mut points: Vec<(Txid, String)> = kept
        .filter_map(|l| Some((l.pin.txid()?, l.label.clone())))
        .collect();
    let catalog = Catalog::new(replica.catalog().values().copied());
    let known =
        |(txid, _): &&(Txid, String)| catalog.entries().iter().any(|e| e.span.max() == *txid);
    points.extend(pins.pending.iter().filter(known).cloned());
    points.extend(drills.iter().filter(known).cloned());
    Ok(Planned {
        plan: plan(&catalog, &points, policy, now, store_now)?,
        ending,
    })
}

/// What [`run`] would do, on evidence and not on memory: what is in the store now, when it was captured, which labels there are, and what the
/// store's clock says.
pub async fn prepare(
    replica: &mut Replica,
    policy: &RetentionConfig,
    pins: &mut Pins,
    now: Millis,
) -> Result<Planned, PruneError> {
    let begun = Instant::now();
    replica.refresh().await.map_err(UploadError::from)?;
    replica.settle_times().await.map_err(UploadError::from)?;
    let store_now = replica.clock().await.map_err(UploadError::from)?;
    let drills = drilled(replica, &mut pins.proven, store_now).await;
    let drills = drills.map_err(UploadError::from)?;
    // Last: a label that comes later stands for a point that this listing lacks, or that is kept as pending.
    let labels = pins.cache.list(replica.store()).await?;
    let passed = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
    let now = Millis(now.0.saturating_add(passed));
    Ok(plan_at(
        replica,
        policy,
        (&labels, &drills),
        pins,
        now,
        Some(store_now),
    )?)
}

/// The newest point that a drill proved, and those of drills that are under way. These first: one that ends meanwhile has its record by then.
async fn drilled(
    replica: &Replica,
    proven: &mut Proven,
    store_now: Millis,
) -> Result<Vec<(Txid, String)>, StoreError> {
    let store = replica.store();
    let under_way = drills::under_way(store, store_now).await?;
    let catalog = Catalog::new(replica.catalog().values().copied());
    let points = catalog.points().iter().map(|p| p.txid).collect();
    let proven = proven.newest(store, &points).await?;
    let named = |why: &str| {
        let why = why.to_owned();
        move |txid| (txid, why.clone())
    };
    let under_way = under_way.iter().filter_map(|p| Txid::from_hex(p));
    let proven = proven.map(named("the newest one that a drill proved"));
    Ok(under_way
        .map(named("a drill of it is under way"))
        .chain(proven)
        .collect())
}

/// Whether a label ends, although no object goes: a database that never changes gets its label of each deploy all the same.
async fn a_label_ends(
    replica: &Replica,
    rules: &labels::Rules,
    pins: &mut Pins,
    now: Millis,
) -> Result<bool, PruneError> {
    if let Some(looked) = pins.labels_looked
        && (0..LABELS_EVERY_MS).contains(&now.since(looked))
    {
        return Ok(false);
    }
    let labels = pins.cache.list(replica.store()).await?;
    let ends = !labels::expired(&labels, rules, now).is_empty();
    if !ends {
        pins.labels_looked = Some(now);
    }
    Ok(ends)
}

/// Plans, proves, and deletes what is not kept. The only place that deletes LTX objects. The owner is read before the first delete. If no object
/// is to be deleted, a day costs one look at the labels, and nothing else is asked unless one of them ends.
pub async fn run(
    replica: &mut Replica,
    policy: &RetentionConfig,
    pins: &mut Pins,
    now: Millis,
) -> Result<Pruned, PruneError> {
    let free = plan_for(replica, policy, pins, now)?;
    let is_quiet = free.plan.deletions().next().is_none();
    if is_quiet && !a_label_ends(replica, &policy.labels, pins, now).await? {
        return Ok(Pruned {
            held: free.plan.held(false),
            ..Pruned::default()
        });
    }
    replica.check_owner(true).await?;
    let Planned { plan, ending } = prepare(replica, policy, pins, now).await?;
    let mut done = Pruned {
        lost: plan.lost.clone(),
        held: plan.held(false),
        ..Pruned::default()
    };
    // The name goes before what it stands for.
    for (label, why) in &ending {
        replica.check_owner(true).await?;
        tracing::info!(label = label.label, %why, "a label ends");
        labels::delete(replica.store(), label)
            .await
            .map_err(UploadError::from)?;
        done.labels += 1;
    }
    for entry in plan.deletions() {
        replica.check_owner(true).await?;
        replica
            .store()
            .delete(&replica.key(entry.span))
            .await
            .map_err(UploadError::from)?;
        replica.forget(entry.span);
        done.objects += 1;
        done.bytes += entry.size;
    }
    Ok(done)
}
