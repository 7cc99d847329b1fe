//! What drills have proven: found among their records, and kept.

use std::collections::{BTreeMap, BTreeSet};

use crate::replica::layout::DRILLS_PREFIX;
use crate::store::{Store, StoreError};
use crate::types::Txid;

use super::Drill;

/// Records that are kept: two months of daily drills.
const KEEP: usize = 60;

/// The point that a record proves, by its id; `None` if it failed or cannot be read.
pub type Proves = fn(&[u8]) -> Option<String>;

/// Keys of all records, oldest first.
pub(crate) async fn keys(store: &Store) -> Result<Vec<String>, StoreError> {
    let objects = store.list(DRILLS_PREFIX).await?;
    let mut keys: Vec<String> = objects.into_iter().map(|o| o.key).collect();
    keys.sort_unstable();
    Ok(keys)
}

/// A record's bytes; `None` if it was deleted since the listing.
pub(super) async fn bytes(store: &Store, key: &str) -> Result<Option<bytes::Bytes>, StoreError> {
    match store.get(key).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

/// The point of the newest good record whose point still exists.
///
/// # Errors
/// The store's.
pub async fn newest(
    store: &Store,
    proves: Proves,
    exists: impl Fn(&str) -> bool,
) -> Result<Option<String>, StoreError> {
    for key in keys(store).await?.iter().rev() {
        let proven = bytes(store, key).await?.and_then(|b| proves(&b));
        if let Some(point) = proven.filter(|p| exists(p)) {
            return Ok(Some(point));
        }
    }
    Ok(None)
}

/// Deletes the oldest records beyond a bound, but neither the newest good one nor the newest one whose point still exists: that pins it.
/// `points` is asked only if there are too many.
pub(crate) async fn sweep<E: From<StoreError>>(
    store: &Store,
    proves: Proves,
    points: impl AsyncFnOnce() -> Result<BTreeSet<String>, E>,
) -> Result<(), E> {
    let keys = keys(store).await?;
    let surplus = keys.len().saturating_sub(KEEP);
    if surplus == 0 {
        return Ok(());
    }
    let points = points().await?;
    let mut spared: BTreeSet<&String> = BTreeSet::new();
    for key in keys.iter().rev() {
        let Some(point) = bytes(store, key).await?.and_then(|b| proves(&b)) else {
            continue;
        };
        let exists = points.contains(&point);
        if exists || spared.is_empty() {
            spared.insert(key);
        }
        if exists {
            break;
        }
    }
    for key in keys[..surplus].iter().filter(|k| !spared.contains(k)) {
        store.delete(key).await?;
    }
    Ok(())
}

/// The newest point that a drill proved, for retention. Records never change, so each is read once.
#[derive(Debug, Default)]
pub struct Proven(BTreeMap<String, Option<Txid>>);

impl Proven {
    /// Of the points that exist. Costs a listing, and a read for each record that is new, down to the one that proves it.
    ///
    /// # Errors
    /// The store's.
    pub async fn newest(
        &mut self,
        store: &Store,
        points: &BTreeSet<Txid>,
    ) -> Result<Option<Txid>, StoreError> {
        let keys = keys(store).await?;
        self.0.retain(|key, _| keys.binary_search(key).is_ok());
        for key in keys.iter().rev() {
            let proven = match self.0.get(key) {
                Some(known) => *known,
                None => {
                    let read = bytes(store, key).await?;
                    let proven = read.and_then(|b| Drill::proves(&b));
                    let proven = proven.as_deref().and_then(Txid::from_hex);
                    self.0.insert(key.clone(), proven);
                    proven
                }
            };
            if let Some(txid) = proven.filter(|t| points.contains(t)) {
                return Ok(Some(txid));
            }
        }
        Ok(None)
    }
}
