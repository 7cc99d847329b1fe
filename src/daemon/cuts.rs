//! Points of one target that roll-up may not merge over, kept in `<state>/cuts.json`, and the labels that Lifeboat sets by itself.
//!
//! Invariants
//! - A cut is on disk before anyone is told its TXID, and set before the next capture: no local file ever spans it.
//! - A cut that a label is wanted for stays until every store has the label, or until it is known that it never can.
//! - A change of the schema labels the point before it; a series of them (a deploy's migrations) only the first.
//! - Others go when no local file ends there any more and nobody can still be writing a label for them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::labels;
use crate::sqlite::capture::Captured;
use crate::types::{Entry, Millis, Txid};

/// Whoever asked for a point writes its label within this time; retention keeps the point until then.
const PENDING_MS: i64 = 60 * 60 * 1000;
/// Changes of the schema within this time after a labelled one belong to the same series.
const SERIES_MS: i64 = 10 * 60 * 1000;

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

/// What the file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    /// The schema cookie of the newest capture that told it.
    schema: Option<u32>,
    /// When a change of it was labelled last.
    schema_labelled_ms: Option<i64>,
    cuts: Vec<Cut>,
}

/// See the module.
#[derive(Debug)]
pub struct Cuts {
    path: PathBuf,
    saved: Mutex<Saved>,
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

impl Saved {
    fn push(&mut self, txid: Txid, label: Option<String>, local: &[Entry], now: Millis) {
        self.cuts.retain(|cut| {
            now.since(Millis(cut.at_ms)) < PENDING_MS
                || cut.label.is_some()
                || cut
                    .txid()
                    .is_some_and(|t| local.iter().any(|e| e.span.max() <= t))
        });
        self.cuts.push(Cut {
            txid: txid.to_string(),
            at_ms: now.0,
            label,
            done: BTreeSet::new(),
        });
    }
}

impl Cuts {
    /// Reads what is in a state directory. What cannot be read is as good as lost: the labels that were written are in the store.
    pub fn open(state: &Path) -> Self {
        let path = state.join("cuts.json");
        let saved = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            path,
            saved: Mutex::new(saved),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Saved) -> T) -> T {
        change(&mut self.saved.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a point; durable when this returns. `local` are the local files: cuts that none of them ends at are dropped.
    pub fn add(
        &self,
        txid: Txid,
        label: Option<String>,
        local: &[Entry],
        now: Millis,
    ) -> io::Result<()> {
        self.with(|saved| {
            saved.push(txid, label, local, now);
            self.save(saved)
        })
    }

    /// Forgets everything: a history begins.
    pub fn clear(&self) -> io::Result<()> {
        self.with(|saved| {
            *saved = Saved::default();
            self.save(saved)
        })
    }

    /// Labels the point before a change of the schema. Call it for each capture, before anything is rolled up.
    pub fn schema_seen(&self, captured: &Captured, local: &[Entry], now: Millis) -> io::Result<()> {
        let Some(cookie) = captured.schema else {
            return Ok(());
        };
        self.with(|saved| {
            let before = saved.schema.replace(cookie);
            if before == Some(cookie) {
                return Ok(());
            }
            let labelled = saved.schema_labelled_ms.map(Millis);
            let in_series = labelled.is_some_and(|l| now.since(l).abs() < SERIES_MS);
            // Below TXID 2 there is nothing that can be restored.
            let point = captured.entry.span.min().get() - 1;
            let point = Txid::new(point).filter(|t| *t > Txid::FIRST);
            if let (Some(_), Some(txid), false) = (before, point, in_series) {
                saved.schema_labelled_ms = Some(now.0);
                saved.push(txid, Some(labels::auto("schema", now)), local, now);
            }
            self.save(saved)
        })
    }

    /// Every point that may not be merged over.
    pub fn set(&self) -> BTreeSet<Txid> {
        self.with(|saved| saved.cuts.iter().filter_map(Cut::txid).collect())
    }

    /// Points whose label may still be on its way, for retention.
    pub fn pending(&self, now: Millis) -> Vec<(Txid, String)> {
        let young = |cut: &&Cut| now.since(Millis(cut.at_ms)) < PENDING_MS || cut.label.is_some();
        let named = |cut: &Cut| {
            let label = cut.label.clone();
            Some((cut.txid()?, label.unwrap_or_else(|| "on its way".into())))
        };
        self.with(|saved| saved.cuts.iter().filter(young).filter_map(named).collect())
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
        self.with(|saved| {
            let cuts = saved.cuts.iter();
            cuts.filter(|c| !c.done.contains(&store))
                .filter_map(wanted)
                .collect()
        })
    }

    /// Whether a store lacks a label.
    pub fn any_wanted(&self) -> bool {
        self.with(|saved| saved.cuts.iter().any(|cut| cut.label.is_some()))
    }

    /// One store has a label, or can never have it.
    pub fn done(&self, wanted: &WantedLabel, store: u32, stores: u32) -> io::Result<()> {
        self.with(|saved| {
            for cut in saved
                .cuts
                .iter_mut()
                .filter(|c| c.label.as_ref() == Some(&wanted.label))
            {
                cut.done.insert(store);
                if cut.done.len() >= stores as usize {
                    cut.label = None;
                }
            }
            self.save(saved)
        })
    }

    fn save(&self, saved: &Saved) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(saved)?)?;
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

    #[test]
    fn only_the_first_change_of_a_series_is_labelled() {
        let dir = tempfile::tempdir().unwrap();
        let cuts = Cuts::open(dir.path());
        let seen = |n: u64, schema: Option<u32>, at: i64| {
            let captured = Captured {
                entry: file(n, n),
                pages: 1,
                commits: 1,
                frames: 1,
                commit: 1,
                schema,
            };
            // As after a restart, each time.
            let cuts = Cuts::open(dir.path());
            cuts.schema_seen(&captured, &[], Millis(at)).unwrap();
            let wanted = cuts.wanted(0).into_iter();
            wanted.map(|w| w.txid.get()).collect::<Vec<_>>()
        };
        assert_eq!(seen(3, Some(7), 0), [0; 0], "what was before is not known");
        assert_eq!(seen(4, None, 1), [0; 0]);
        assert_eq!(seen(5, Some(7), 2), [0; 0]);
        assert_eq!(seen(6, Some(8), 3), [5]);
        assert_eq!(seen(7, Some(9), 4), [5], "the same migrations");
        assert_eq!(seen(8, Some(10), 4 + SERIES_MS), [5, 7]);
        assert!(cuts.set().is_empty(), "read at opening only");
    }
}
