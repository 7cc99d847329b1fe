//! Reading back on a budget: bytes a day and store, saved up so that a dump larger than a day's budget has its turn too.
//!
//! What was read is an object of its own, `lifeboat/read-back.json`: written by who reads, lost without harm.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Manifest;
use crate::store::{PutMode, Store, StoreError};

const KEY: &str = "lifeboat/read-back.json";
/// Seconds of a day.
const DAY: f64 = 86_400.0;

/// What was read back, and what may be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadBacks {
    /// Bytes that may be read now.
    pub saved: f64,
    /// When that was reckoned.
    pub at: Option<Timestamp>,
    /// Dumps that were right, and when.
    pub right: BTreeMap<String, Timestamp>,
    /// Dumps that were not.
    pub damaged: Vec<String>,
}

impl ReadBacks {
    /// From the store; empty if there is none, or none that can be read.
    ///
    /// # Errors
    /// The store's.
    pub async fn load(store: &Store) -> Result<Self, StoreError> {
        match store.get(KEY).await {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(e) if e.is_not_found() => Ok(Self::default()),
            Err(e) => Err(e),
        }
    }

    /// Into the store.
    ///
    /// # Errors
    /// The store's.
    pub async fn save(&self, store: &Store) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        store.put(KEY, text.into(), PutMode::Overwrite, None).await
    }

    /// The dump to read now, if the budget allows: the newest if it was never read, otherwise the one whose reading is longest ago. Pure.
    pub fn next<'a>(
        &mut self,
        dumps: &'a [Manifest],
        budget: u64,
        now: Timestamp,
    ) -> Option<&'a Manifest> {
        self.right.retain(|id, _| dumps.iter().any(|m| m.id == *id));
        self.damaged.retain(|id| dumps.iter().any(|m| m.id == *id));
        let seconds = self
            .at
            .map_or(DAY, |at| now.duration_since(at).as_secs_f64());
        let chosen = dumps
            .last()
            .filter(|m| !self.right.contains_key(&m.id))
            .or_else(|| dumps.iter().min_by_key(|m| self.right.get(&m.id)))?;
        let size = chosen.stored_bytes() as f64;
        let most = size.max(budget as f64);
        self.saved = (self.saved + budget as f64 * seconds.max(0.0) / DAY).min(most);
        self.at = Some(now);
        if self.saved < size {
            return None;
        }
        self.saved -= size;
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    fn dump(id: &str, size: u64) -> Manifest {
        let text = format!(
            r#"{{"id":"{id}","database":"d","began":"2026-01-01T00:00:00Z","ended":"2026-01-01T00:00:00Z",
            "dump":{{"size":{size},"sha256":"","raw-size":1,"raw-sha256":""}},"server-version":"","client-version":"",
            "database-bytes":0,"extensions":{{}},"rows":{{}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_large_dump_has_its_turn_and_the_budget_holds() {
        let dumps = [dump("a", 250), dump("b", 40)];
        let mut state = ReadBacks::default();
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut read: Vec<(i64, String)> = Vec::new();
        for hour in 0..24 * 20 {
            let now = start + SignedDuration::from_hours(hour);
            if let Some(dump) = state.next(&dumps, 100, now) {
                state.right.insert(dump.id.clone(), now);
                read.push((hour, dump.id.clone()));
            }
        }
        let bytes: u64 = read
            .iter()
            .map(|(_, id)| if id == "a" { 250 } else { 40 })
            .sum();
        assert!(bytes <= 100 * 21, "{read:?}");
        assert_eq!(read[0], (0, "b".into()), "the newest first");
        assert!(
            read.iter().filter(|(_, id)| id == "a").count() >= 5,
            "{read:?}"
        );
        assert_eq!(state.next(&[], 100, start), None);
    }
}
