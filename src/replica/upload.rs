//! One target's replica in one store: what is there, what is durable, what to send next.
//!
//! Invariants
//! - The catalog is listed once, when the replica is opened, and kept true by every upload and delete since: a steady state lists nothing.
//! - `durable` is the last TXID that is reachable from a complete base through acknowledged objects. Nothing less is reported.
//! - Captures are conditional creates where the store honours them. A key that is taken is accepted only if it holds our very bytes
//!   (an earlier upload whose acknowledgement was lost); otherwise nothing is overwritten and the replica refuses to go on.
//! - Where conditional creates are ignored, the owner's epoch is read before an upload, at most every few seconds.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::layout::Layout;
use super::owner::{self, Owner, Refusal};
use super::spool::Spool;
use crate::store::{PutMode, Store, StoreError};
use crate::types::{Entry, Level, Millis, Span, Txid};

/// How long an owner that was read counts where the store cannot refuse a second writer: the design's "few seconds".
const EPOCH_TRUST: Duration = Duration::from_secs(5);
/// Key of the probe object.
const PROBE_KEY: &str = "lifeboat/probe";

/// Why an upload failed. The local file stays.
#[derive(Debug, Error)]
pub enum UploadError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// We may not write here.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The local file.
    #[error("reading a local LTX file: {0}")]
    Local(#[from] std::io::Error),
}

impl UploadError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(e) => e.hint(),
            Self::Refused(r) => Some(r.hint()),
            Self::Local(_) => None,
        }
    }
}

/// What to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This local file.
    File(Span),
    /// A base: nothing local continues what the store has.
    Base,
    /// Everything local is there.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub struct Replica {
    store: Store,
    layout: Layout,
    catalog: BTreeMap<Span, Entry>,
    durable: Option<Txid>,
    conditional: bool,
    owner: Owner,
    owner_read: Instant,
}

impl Replica {
    /// Lists a replica. Read the owner first.
    pub async fn list(store: &Store) -> Result<BTreeMap<Span, Entry>, StoreError> {
        let layout = Layout::for_kind(store.kind());
        let mut catalog = BTreeMap::new();
        for level in (0..=9).filter_map(Level::new) {
            for object in store.list(&layout.level_prefix(level)).await? {
                let Some(span) = layout.parse(&object.key) else {
                    continue;
                };
                let created = object.created.unwrap_or(object.modified);
                catalog.insert(
                    span,
                    Entry {
                        span,
                        size: object.size,
                        created,
                    },
                );
            }
        }
        Ok(catalog)
    }

    /// Opens for writing, as `owner` who was just written or read.
    pub async fn open(
        store: Store,
        catalog: BTreeMap<Span, Entry>,
        owner: Owner,
    ) -> Result<Self, StoreError> {
        let conditional = store.probe_conditional_create(PROBE_KEY).await?;
        if !conditional {
            tracing::info!(store = %store.display(), "the store ignores conditional creates; the owner is read before uploads");
        }
        let layout = Layout::for_kind(store.kind());
        for level in (0..=9).filter_map(Level::new) {
            store.remove_unfinished(&layout.level_prefix(level));
        }
        let durable = durable(catalog.keys());
        Ok(Self {
            store,
            layout,
            catalog,
            durable,
            conditional,
            owner,
            owner_read: Instant::now(),
        })
    }

    /// The store, rooted at this replica.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The last TXID that can be restored from here.
    pub fn durable(&self) -> Option<Txid> {
        self.durable
    }

    /// Everything in the store.
    pub fn catalog(&self) -> &BTreeMap<Span, Entry> {
        &self.catalog
    }

    /// Newest base: its TXID and time.
    pub fn base(&self) -> Option<(Txid, Millis)> {
        let base = self
            .catalog
            .values()
            .filter(|e| e.span.is_base())
            .max_by_key(|e| e.span.max())?;
        Some((base.span.max(), base.created))
    }

    /// Forgets an object that retention deleted.
    pub fn forget(&mut self, span: Span) {
        self.catalog.remove(&span);
    }

    /// What to send next, given the local files.
    pub fn next(&self, local: &[Entry]) -> Next {
        next(self.durable, &self.catalog, local)
    }

    /// Sends one local file.
    pub async fn send(&mut self, spool: &Spool, span: Span) -> Result<Entry, UploadError> {
        self.check_owner(span.level() != Level::CAPTURE).await?;
        let Some(entry) = spool.entries().into_iter().find(|e| e.span == span) else {
            return Err(UploadError::Local(std::io::ErrorKind::NotFound.into()));
        };
        let mode = if self.conditional {
            PutMode::Create
        } else {
            PutMode::Overwrite
        };
        let key = self.layout.key(span);
        let path = spool.path(span);
        match self
            .store
            .put_file(&key, &path, mode, Some(entry.created))
            .await
        {
            Ok(_) => {}
            Err(e) if e.is_exists() => self.accept_only_ours(&key, &path, span).await?,
            Err(e) => return Err(e.into()),
        }
        self.record(entry);
        Ok(entry)
    }

    /// Records a base that was streamed to [`Replica::key`].
    pub fn record(&mut self, entry: Entry) {
        self.catalog.insert(entry.span, entry);
        self.durable = durable(self.catalog.keys());
    }

    /// Key of a file.
    pub fn key(&self, span: Span) -> String {
        self.layout.key(span)
    }

    /// Reads the owner again, unless that was done a moment ago and the store refuses second writers by itself.
    /// `always`: before compaction uploads, bases and deletes.
    pub async fn check_owner(&mut self, always: bool) -> Result<(), UploadError> {
        let trusted = self.owner_read.elapsed() < EPOCH_TRUST;
        if trusted || (self.conditional && !always) {
            return Ok(());
        }
        self.read_owner().await
    }

    async fn read_owner(&mut self) -> Result<(), UploadError> {
        let found = owner::read(&self.store).await?;
        self.owner_read = Instant::now();
        match found {
            Some(Ok(owner))
                if owner.lineage == self.owner.lineage && owner.epoch == self.owner.epoch =>
            {
                Ok(())
            }
            Some(Ok(owner)) => Err(UploadError::Refused(Refusal::Foreign {
                instance: owner.instance,
                since: owner.since,
                lineage: owner.lineage,
                epoch: owner.epoch,
            })),
            Some(Err(refusal)) => Err(refusal.into()),
            None => Err(UploadError::Refused(Refusal::Damaged(
                "it was deleted".into(),
            ))),
        }
    }

    /// A taken key is fine only if it holds the bytes of our file.
    async fn accept_only_ours(
        &mut self,
        key: &str,
        path: &Path,
        span: Span,
    ) -> Result<(), UploadError> {
        self.read_owner().await?;
        let theirs = self.store.get(key).await?;
        let path = path.to_owned();
        let same =
            tokio::task::spawn_blocking(move || std::fs::read(path).map(|ours| ours == theirs))
                .await
                .map_err(std::io::Error::other)??;
        if same {
            Ok(())
        } else {
            Err(Refusal::Taken(span.max()).into())
        }
    }
}

/// The last TXID reachable from a base: of every base, the furthest chain.
pub fn durable<'a>(spans: impl Iterator<Item = &'a Span>) -> Option<Txid> {
    let mut all: Vec<Span> = spans.copied().collect();
    all.sort_unstable_by_key(|s: &Span| ((*s).min(), (*s).max()));
    let mut reached = None;
    for span in all {
        // Bases come first: they start at TXID 1.
        reached = match reached {
            None if span.is_base() => Some(span.max()),
            Some(at) if span.min() <= Txid::next(at) && span.max() > at => Some(span.max()),
            other => other,
        };
    }
    reached
}

/// Pure part of [`Replica::next`].
pub fn next(durable: Option<Txid>, catalog: &BTreeMap<Span, Entry>, local: &[Entry]) -> Next {
    let Some(newest) = local.iter().map(|e| e.span.max()).max() else {
        return if durable.is_none() {
            Next::Base
        } else {
            Next::Nothing
        };
    };
    let Some(durable) = durable else {
        return Next::Base;
    };
    if newest > durable {
        let continues = local
            .iter()
            .filter(|e| e.span.min() <= durable.next() && e.span.max() > durable);
        // The furthest; of equals the lowest level, which Litestream can take over behind.
        return match continues.max_by_key(|e| (e.span.max(), std::cmp::Reverse(e.span.level()))) {
            Some(entry) => Next::File(entry.span),
            None => Next::Base,
        };
    }
    let newest_capture = local
        .iter()
        .filter(|e| e.span.level() == Level::CAPTURE)
        .max_by_key(|e| e.span.max());
    let rolled_up = local.iter().filter(|e| e.span.level() > Level::CAPTURE);
    newest_capture
        .into_iter()
        .chain(rolled_up)
        .find(|e| !catalog.contains_key(&e.span))
        .map_or(Next::Nothing, |e| Next::File(e.span))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(level: u8, min: u64, max: u64) -> Entry {
        let t = |n| Txid::new(n).unwrap();
        Entry {
            span: Span::new(Level::new(level).unwrap(), t(min), t(max)).unwrap(),
            size: 1,
            created: Millis(0),
        }
    }

    fn catalog(list: &[Entry]) -> BTreeMap<Span, Entry> {
        list.iter().map(|e| (e.span, *e)).collect()
    }

    fn reached(list: &[Entry]) -> Option<u64> {
        durable(catalog(list).keys()).map(Txid::get)
    }

    #[test]
    fn durable_needs_a_base_and_no_hole() {
        assert_eq!(reached(&[entry(0, 2, 2)]), None);
        assert_eq!(
            reached(&[entry(9, 1, 1), entry(0, 2, 2), entry(0, 4, 4)]),
            Some(2)
        );
        assert_eq!(
            reached(&[
                entry(9, 1, 1),
                entry(1, 2, 5),
                entry(0, 4, 4),
                entry(0, 6, 6)
            ]),
            Some(6)
        );
        assert_eq!(
            reached(&[
                entry(9, 1, 1),
                entry(0, 2, 2),
                entry(9, 1, 8),
                entry(0, 9, 9)
            ]),
            Some(9)
        );
    }

    #[test]
    fn sends_the_chain_first_then_the_rest() {
        let store = catalog(&[entry(9, 1, 1), entry(0, 2, 2)]);
        let at = Txid::new(2);
        assert_eq!(next(None, &catalog(&[]), &[entry(0, 2, 2)]), Next::Base);
        assert_eq!(next(at, &store, &[entry(0, 2, 2)]), Next::Nothing);
        assert_eq!(
            next(at, &store, &[entry(0, 3, 3)]),
            Next::File(entry(0, 3, 3).span)
        );
        assert_eq!(
            next(at, &store, &[entry(0, 4, 4)]),
            Next::Base,
            "TXID 3 is nowhere"
        );
        // After an outage the merge goes up, then the newest capture beside it.
        let local = [entry(1, 2, 9), entry(0, 9, 9)];
        assert_eq!(
            next(at, &store, &local),
            Next::File(local[0].span),
            "only the merge continues TXID 2"
        );
        let store = catalog(&[entry(9, 1, 1), entry(1, 2, 9)]);
        assert_eq!(
            next(Txid::new(9), &store, &local),
            Next::File(entry(0, 9, 9).span)
        );
        let store = catalog(&[entry(9, 1, 1), entry(1, 2, 9), entry(0, 9, 9)]);
        assert_eq!(next(Txid::new(9), &store, &local), Next::Nothing);
    }
}
