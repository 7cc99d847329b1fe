//! Whether a replica without files once had some.
//!
//! Labels and records of drills are written of points that are there. What this does **not** see: a replica that lost everything and of which
//! nobody made either. `owner.json` proves nothing: it is written before the first file.

use super::layout::{DRILLING_PREFIX, DRILLS_PREFIX, LABELS_PREFIX};
use crate::store::{Store, StoreError};

/// The first object that tells of points that were there.
///
/// # Errors
/// The store's.
pub async fn witness(store: &Store) -> Result<Option<String>, StoreError> {
    for prefix in [LABELS_PREFIX, DRILLS_PREFIX, DRILLING_PREFIX] {
        if let Some(object) = store.list(prefix).await?.into_iter().next() {
            return Ok(Some(object.key));
        }
    }
    Ok(None)
}
