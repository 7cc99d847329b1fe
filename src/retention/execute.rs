use std::time::Instant;

use crate::replica::upload::{Replica, UploadError};
use crate::restore::plan::Catalog;
use crate::types::Millis;

use super::{Policy, Refused, RetentionPlan, plan};

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Objects deleted.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
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
}

/// Plans for what is known of a replica: costs no request.
pub fn plan_for(replica: &Replica, policy: &Policy, now: Millis) -> Result<RetentionPlan, Refused> {
    plan_at(replica, policy, now, None)
}

fn plan_at(
    replica: &Replica,
    policy: &Policy,
    now: Millis,
    store_now: Option<Millis>,
) -> Result<RetentionPlan, Refused> {
    plan(
        &Catalog::new(replica.catalog().values().copied()),
        &[],
        policy,
        now,
        store_now,
    )
}

/// What [`run`] would do, on evidence and not on memory: what is in the store now, when it was captured, and what the store's clock says.
pub async fn prepare(
    replica: &mut Replica,
    policy: &Policy,
    now: Millis,
) -> Result<RetentionPlan, PruneError> {
    let begun = Instant::now();
    replica.refresh().await.map_err(UploadError::from)?;
    replica.settle_times().await.map_err(UploadError::from)?;
    let store_now = replica.clock().await.map_err(UploadError::from)?;
    let passed = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
    let now = Millis(now.0.saturating_add(passed));
    Ok(plan_at(replica, policy, now, Some(store_now))?)
}

/// Plans, proves, and deletes what is not kept. The only place that deletes LTX objects. The owner is read before the first delete.
/// Without anything to delete it costs no request.
pub async fn run(
    replica: &mut Replica,
    policy: &Policy,
    now: Millis,
) -> Result<Pruned, PruneError> {
    let mut done = Pruned::default();
    if plan_for(replica, policy, now)?.deletions().next().is_none() {
        return Ok(done);
    }
    replica.check_owner(true).await?;
    let plan = prepare(replica, policy, now).await?;
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
