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
        let pin = Self {
            store: store.clone(),
            key,
        };
        match pin.write(now).await {
            Ok(()) => Ok(pin),
            Err(error) => {
                // Perhaps only an answer was lost.
                pin.end().await;
                Err(error)
            }
        }
    }

    async fn write(&self, now: Millis) -> Result<(), StoreError> {
        let body = json!({ "format": 1, "at": now.to_string() }).to_string();
        let written = self
            .store
            .put(&self.key, body.into(), PutMode::Overwrite, None);
        written.await?;
        let all = self.store.list(DRILLING_PREFIX).await?;
        // How old another's is, the store says: our clock may be wrong.
        let Some(mine) = all.iter().find(|o| o.key == self.key) else {
            return Ok(());
        };
        for left in &all {
            if mine.modified.since(left.modified) > STALE_MS {
                self.store.delete(&left.key).await?;
            }
        }
        Ok(())
    }

    /// After its record was written, or instead of it.
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use object_store::memory::InMemory;

    use super::*;
    use crate::store::Kind;
    use crate::store::testing::{Call, Fault, Faults, Faulty};

    fn faulty() -> (Store, Faults) {
        let (client, faults) = Faulty::wrap(Arc::new(InMemory::new()));
        (
            Store::from_object_store(Kind::Memory, client, "".into()),
            faults,
        )
    }

    async fn pins(store: &Store) -> usize {
        store.list(DRILLING_PREFIX).await.unwrap().len()
    }

    /// A clock that is set wrong here neither removes the pin of a drill that is under way nor keeps one that a killed drill left.
    #[tokio::test]
    async fn only_the_stores_clock_makes_a_pin_stale() {
        let real = jiff::Timestamp::now().as_millisecond();
        for off in [-48, 0, 48] {
            let now = Millis(real + off * 60 * 60 * 1000);
            let (store, faults) = faulty();
            let other = UnderWay::begin(&store, "1", now).await.unwrap();
            let mine = UnderWay::begin(&store, "2", now).await.unwrap();
            assert_eq!(pins(&store).await, 2, "{off}");
            mine.end().await;
            // A day and an hour later, as the store counts.
            let later = Fault::Older(Duration::from_secs(25 * 3600), other.key.clone());
            faults.inject(Some(Call::List), 0, 1, later);
            let mine = UnderWay::begin(&store, "2", now).await.unwrap();
            let left = store.list(DRILLING_PREFIX).await.unwrap();
            assert_eq!(left.len(), 1, "{off}");
            assert_eq!(left[0].key, mine.key);
        }
    }

    #[tokio::test]
    async fn a_pin_that_was_not_begun_is_taken_back() {
        let now = Millis(jiff::Timestamp::now().as_millisecond());
        for (call, fault) in [(Call::List, Fault::Denied), (Call::Put, Fault::LostAnswer)] {
            let (store, faults) = faulty();
            faults.inject(Some(call), 0, u64::MAX, fault);
            assert!(UnderWay::begin(&store, "1", now).await.is_err());
            faults.clear();
            assert_eq!(pins(&store).await, 0, "{call:?}");
        }
    }
}
