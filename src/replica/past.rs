//! Whether a store without points once had some.
//!
//! Labels and records of drills are written of points that are there. Targets of several kinds may have used one name, one after the other, so only
//! those of the kind count. What this does **not** see: a store that lost everything and of which nobody made either. `owner.json` proves
//! nothing: it is written before the first file.

use serde_json::Value;

use super::layout::{DRILLING_PREFIX, DRILLS_PREFIX, LABELS_PREFIX};
use crate::store::{Store, StoreError};

/// What kind of points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Positions of a SQLite replica.
    Sqlite,
    /// Dumps.
    Dumps,
    /// Snapshots of files.
    Files,
}

impl Kind {
    /// How a label of it says its kind, and the key of a drill's record that names the point.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Sqlite => ("sqlite", "txid"),
            Self::Dumps => ("postgres", "dump"),
            Self::Files => ("files", "snapshot"),
        }
    }

    fn is_told_by(self, body: &[u8]) -> bool {
        let (kind, point) = self.words();
        let value: Result<Value, _> = serde_json::from_slice(body);
        // What cannot be read may tell of anything.
        value.map_or(true, |v| v["pin"]["kind"] == kind || v[point].is_string())
    }
}

/// The first object that tells of points that were there.
///
/// # Errors
/// The store's.
pub async fn witness(store: &Store, kind: Kind) -> Result<Option<String>, StoreError> {
    for prefix in [LABELS_PREFIX, DRILLS_PREFIX] {
        for object in store.list(prefix).await? {
            match store.get(&object.key).await {
                Ok(body) if kind.is_told_by(&body) => return Ok(Some(object.key)),
                Ok(_) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
    }
    if kind != Kind::Sqlite {
        return Ok(None);
    }
    let drilling = store.list(DRILLING_PREFIX).await?;
    Ok(drilling.into_iter().next().map(|o| o.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_kind_tells_of_points() {
        let told = |body: &str| {
            let all = [Kind::Sqlite, Kind::Dumps, Kind::Files];
            all.map(|kind| kind.is_told_by(body.as_bytes()))
        };
        let label = r#"{"label":"v1","pin":{"kind":"sqlite","txid":"0000000000000001"}}"#;
        assert_eq!(told(label), [true, false, false]);
        let label = r#"{"label":"v1","pin":{"kind":"postgres","dump":"20260101T000000.000Z"}}"#;
        assert_eq!(told(label), [false, true, false]);
        assert_eq!(told(r#"{"txid":"0000000000000001"}"#), [true, false, false]);
        assert_eq!(
            told(r#"{"dump":"20260101T000000.000Z"}"#),
            [false, true, false]
        );
        assert_eq!(told(r#"{"snapshot":"ab"}"#), [false, false, true]);
        // A drill that restored nothing.
        assert_eq!(told(r#"{"ok":false}"#), [false; 3]);
        assert_eq!(told("junk"), [true; 3]);
    }
}
