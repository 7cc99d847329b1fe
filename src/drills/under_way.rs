//! Points that a drill is restoring now: retention keeps them until the drill's record says what it found.
//!
//! Invariant: while a drill runs there is an object `lifeboat/drilling/<point>-<random>.json`, written before the first read and deleted
//! after the record. One that a killed drill left counts for a day, by the store's clock.

use serde_json::json;

use crate::replica::layout::DRILLING_PREFIX;
use crate::store::{PutMode, Store, StoreError};
use crate::types::Millis;

/// No drill takes so long.
const STALE_MS: i64 = 24 * 60 * 60 * 1000;

/// One drill that is under way.
pub(super) struct UnderWay {
    store: Store,
    key: String,
}

impl UnderWay {
    /// Pins a point; what killed drills left is deleted.
    pub(super) async fn begin(store: &Store, point: &str, now: Millis) -> Result<Self, StoreError> {
        let key = format!(
            "{DRILLING_PREFIX}/{point}-{:016x}.json",
            rand::random::<u64>()
        );
        let body = json!({ "format": 1, "at": now.to_string() }).to_string();
        store
            .put(&key, body.into(), PutMode::Overwrite, None)
            .await?;
        for left in store.list(DRILLING_PREFIX).await? {
            if now.since(left.modified) > STALE_MS {
                store.delete(&left.key).await?;
            }
        }
        Ok(Self {
            store: store.clone(),
            key,
        })
    }

    /// After its record was written.
    pub(super) async fn end(self) {
        if let Err(error) = self.store.delete(&self.key).await {
            tracing::warn!(
                store = self.store.display(),
                %error,
                "the point of the drill that ended stays pinned for a day"
            );
        }
    }
}

/// Points of drills that are under way, at the store's time. Ask before the records are read: a drill that ends meanwhile is in either.
///
/// # Errors
/// The store's.
pub async fn under_way(store: &Store, store_now: Millis) -> Result<Vec<String>, StoreError> {
    let objects = store.list(DRILLING_PREFIX).await?;
    let young = objects
        .iter()
        .filter(|o| store_now.since(o.modified) <= STALE_MS);
    let point = |key: &str| {
        let name = key.strip_prefix(DRILLING_PREFIX)?.strip_prefix('/')?;
        Some(name.rsplit_once('-')?.0.to_owned())
    };
    Ok(young.filter_map(|o| point(&o.key)).collect())
}
