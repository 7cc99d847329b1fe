//! Reading back all that the restore of any listed point would read.
//!
//! Each object is read once, whole, however many points need it, a few at a time. That the files of each chain fit together is then told from
//! their headers.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;

use super::plan::{Catalog, Goal, Hole, Planner, Point, plan};
use super::{RestoreError, apply, catalog, opener};
use crate::ltx;
use crate::replica::upload::Replica;
use crate::store::Store;
use crate::types::{Entry, Span};

/// Objects read at once.
const AT_ONCE: usize = 4;

/// An object that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The object.
    pub entry: Entry,
    /// In words.
    pub reason: String,
}

/// What was read, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Objects read.
    pub objects: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Points whose restores were checked, ascending.
    pub points: Vec<Point>,
    /// Objects that are damaged or do not fit, by TXIDs.
    pub damaged: Vec<Damage>,
    /// Points that only exist with a damaged object.
    pub lost: Vec<Point>,
    /// The last point that does not need one.
    pub newest: Option<Point>,
    /// Changes beyond the last point: an object between is missing.
    pub hole: Option<Hole>,
}

impl Checked {
    /// Everything is there and right.
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.hole.is_none()
    }
}

/// Reads back a replica.
///
/// # Errors
/// There is nothing to restore, or the store does not answer. Damage is no error.
pub async fn check(store: &Store) -> Result<Checked, RestoreError> {
    let mut catalog = catalog(store, Goal::Newest).await?;
    let planner = Planner::new(&catalog);
    let chains: Vec<Vec<Entry>> = planner
        .points()
        .iter()
        .map(|p| planner.plan(Goal::Txid(p.txid)).map(|plan| plan.files))
        .collect::<Result<_, _>>()?;
    let needed: BTreeMap<Span, Entry> = chains.iter().flatten().map(|e| (e.span, *e)).collect();
    let mut done = Checked {
        objects: needed.len(),
        bytes: needed.values().map(|e| e.size).sum(),
        points: planner.points().to_vec(),
        ..Checked::default()
    };
    let mut headers = BTreeMap::new();
    let mut reads = futures::stream::iter(needed.into_values())
        .map(|entry| read(store, entry))
        .buffer_unordered(AT_ONCE);
    let mut damage = BTreeMap::new();
    let mut vanished = BTreeSet::new();
    while let Some((entry, read)) = reads.next().await.transpose()? {
        match read {
            Read::Right(header) => {
                headers.insert(entry.span, header);
            }
            Read::Wrong(reason) => {
                damage.insert(entry.span, Damage { entry, reason });
            }
            Read::Vanished => {
                vanished.insert(entry.span);
            }
        }
    }
    if !vanished.is_empty() {
        // Retention deletes too: only what is listed still, or leaves a hole, is missing.
        let now = Replica::list(store).await?;
        let listed = catalog.entries().iter();
        let listed = listed.filter(|e| vanished.contains(&e.span) && now.contains_key(&e.span));
        let reason = || "listed, but not there".to_owned();
        damage.extend(listed.map(|e| {
            (
                e.span,
                Damage {
                    entry: *e,
                    reason: reason(),
                },
            )
        }));
        catalog = Catalog::new(now.into_values());
        done.points = catalog.points();
    }
    done.hole = catalog.hole(&plan(&catalog, Goal::Newest)?, Goal::Newest);
    for pair in chains.iter().flat_map(|chain| chain.windows(2)) {
        if let (Some(before), Some(after)) =
            (headers.get(&pair[0].span), headers.get(&pair[1].span))
            && let Err(reason) = apply::fits(before, after)
        {
            let damaged = Damage {
                entry: pair[1],
                reason: reason.to_string(),
            };
            damage.insert(pair[1].span, damaged);
        }
    }
    let gone: BTreeSet<Span> = damage.keys().copied().collect();
    let left = catalog.without(&gone).points();
    let is_left = |p: &&Point| left.binary_search_by_key(&p.txid, |l| l.txid).is_ok();
    done.lost = done
        .points
        .iter()
        .filter(|p| !is_left(p))
        .copied()
        .collect();
    done.newest = left.last().copied();
    done.damaged = damage.into_values().collect();
    Ok(done)
}

enum Read {
    Right(ltx::Header),
    Wrong(String),
    Vanished,
}

async fn read(store: &Store, entry: Entry) -> Result<(Entry, Read), RestoreError> {
    let open = opener(store);
    let read = move || apply::each(&[entry], open, |_| Ok(()), |_, _| Ok(()));
    let result = tokio::task::spawn_blocking(read)
        .await
        .map_err(std::io::Error::other)?;
    let found = match result {
        Ok(applied) => Read::Right(applied.last),
        Err(error) if error.source.is_corrupt() => Read::Wrong(error.source.to_string()),
        Err(error) => match error.source.store_error() {
            Some(e) if e.is_not_found() => Read::Vanished,
            Some(e) => return Err(RestoreError::Store(e.clone())),
            None => return Err(RestoreError::Local(std::io::Error::other(error))),
        },
    };
    Ok((entry, found))
}
