//! Points of one target that roll-up may not merge over, kept in `<state>/cuts.json`.
//!
//! Invariants
//! - A cut is on disk before anyone is told its TXID, and set before the next capture: no local file ever spans it.
//! - A cut that a label is wanted for stays until every store has the label, or until it is known that it never can.
//! - Others go when no local file ends there any more and nobody can still be writing a label for them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::types::{Entry, Millis, Txid};

/// Whoever asked for a point writes its label within this time; retention keeps the point until then.
const PENDING_MS: i64 = 60 * 60 * 1000;

/// One point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cut {
    txid: String,
    at_ms: i64,
    /// The label that the uploaders are to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    /// Numbers of the stores that have it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    done: BTreeSet<u32>,
}

impl Cut {
    fn txid(&self) -> Option<Txid> {
        Txid::from_hex(&self.txid)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Cuts {
    path: PathBuf,
    list: Mutex<Vec<Cut>>,
}

/// A label that an uploader is to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedLabel {
    /// Its name.
    pub label: String,
    /// Its point.
    pub txid: Txid,
    /// When it was wanted.
    pub at: Millis,
}

impl Cuts {
    /// Reads what is in a state directory. What cannot be read is as good as lost: the labels that were written are in the store.
    pub fn open(state: &Path) -> Self {
        let path = state.join("cuts.json");
        let list = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            path,
            list: Mutex::new(list),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Vec<Cut>) -> T) -> T {
        change(&mut self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a point; durable when this returns. `local` are the local files: cuts that none of them ends at are dropped.
    pub fn add(
        &self,
        txid: Txid,
        label: Option<String>,
        local: &[Entry],
        now: Millis,
    ) -> io::Result<()> {
        self.with(|list| {
            list.retain(|cut| {
                now.since(Millis(cut.at_ms)) < PENDING_MS
                    || cut.label.is_some()
                    || cut
                        .txid()
                        .is_some_and(|t| local.iter().any(|e| e.span.max() <= t))
            });
            list.push(Cut {
                txid: txid.to_string(),
                at_ms: now.0,
                label,
                done: BTreeSet::new(),
            });
            self.save(list)
        })
    }

    /// Every point that may not be merged over.
    pub fn set(&self) -> BTreeSet<Txid> {
        self.with(|list| list.iter().filter_map(Cut::txid).collect())
    }

    /// Points whose label may still be on its way, for retention.
    pub fn pending(&self, now: Millis) -> Vec<(Txid, String)> {
        let young = |cut: &&Cut| now.since(Millis(cut.at_ms)) < PENDING_MS || cut.label.is_some();
        let named = |cut: &Cut| {
            let label = cut.label.clone();
            Some((cut.txid()?, label.unwrap_or_else(|| "on its way".into())))
        };
        self.with(|list| list.iter().filter(young).filter_map(named).collect())
    }

    /// Labels that one store lacks.
    pub fn wanted(&self, store: u32) -> Vec<WantedLabel> {
        let wanted = |cut: &Cut| {
            Some(WantedLabel {
                label: cut.label.clone()?,
                txid: cut.txid()?,
                at: Millis(cut.at_ms),
            })
        };
        self.with(|list| {
            list.iter()
                .filter(|c| !c.done.contains(&store))
                .filter_map(wanted)
                .collect()
        })
    }

    /// One store has a label, or can never have it.
    pub fn done(&self, wanted: &WantedLabel, store: u32, stores: u32) -> io::Result<()> {
        self.with(|list| {
            for cut in list
                .iter_mut()
                .filter(|c| c.label.as_ref() == Some(&wanted.label))
            {
                cut.done.insert(store);
                if cut.done.len() >= stores as usize {
                    cut.label = None;
                }
            }
            self.save(list)
        })
    }

    fn save(&self, list: &[Cut]) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(list)?)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Level, Span};

    fn txid(n: u64) -> Txid {
        Txid::new(n).unwrap()
    }

    fn file(min: u64, max: u64) -> Entry {
        Entry {
            span: Span::new(Level::CAPTURE, txid(min), txid(max)).unwrap(),
            size: 1,
            created: Millis(0),
        }
    }

    #[test]
    fn cuts_survive_and_go_when_nothing_ends_there() {
        let dir = tempfile::tempdir().unwrap();
        let cuts = Cuts::open(dir.path());
        cuts.add(txid(5), None, &[], Millis(0)).unwrap();
        let local = [file(6, 6)];
        let cuts = Cuts::open(dir.path());
        assert_eq!(cuts.pending(Millis(1)).len(), 1);
        cuts.add(txid(6), None, &local, Millis(10)).unwrap();
        assert_eq!(cuts.set().len(), 2, "a label for 5 may be on its way");
        let late = Millis(2 * PENDING_MS);
        cuts.add(txid(9), None, &local, late).unwrap();
        let left: Vec<_> = Cuts::open(dir.path()).set().into_iter().collect();
        assert_eq!(
            left,
            [txid(6), txid(9)],
            "a local file ends at 6, none at 5"
        );
    }

    #[test]
    fn a_wanted_label_stays_until_every_store_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let cuts = Cuts::open(dir.path());
        cuts.add(txid(5), Some("auto/x".into()), &[], Millis(0))
            .unwrap();
        let wanted = cuts.wanted(0).remove(0);
        cuts.done(&wanted, 0, 2).unwrap();
        assert_eq!((cuts.wanted(0).len(), cuts.wanted(1).len()), (0, 1));
        assert_eq!(cuts.pending(Millis(9 * PENDING_MS)).len(), 1);
        cuts.done(&wanted, 1, 2).unwrap();
        assert_eq!(cuts.wanted(1), []);
        assert!(cuts.pending(Millis(9 * PENDING_MS)).is_empty());
    }
}
