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
    plan(
        &Catalog::new(replica.catalog().values().copied()),
        &[],
        policy,
        now,
        None,
    )
}

/// Plans, proves, and deletes what is not kept. The only place that deletes LTX objects. The owner is read before the first delete.
pub async fn run(
    replica: &mut Replica,
    policy: &Policy,
    now: Millis,
) -> Result<Pruned, PruneError> {
    let plan = plan_for(replica, policy, now)?;
    let mut done = Pruned::default();
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
