//! One target's replica in one store: what is there, what is durable, what to send next.
//!
//! Invariants
//! - The catalog is listed once, when the replica is opened, and kept true by every upload and delete since: a steady state lists nothing.
//! - `durable` is the last TXID that is reachable from a complete base through acknowledged objects. Nothing less is reported.
//! - Captures are conditional creates where the store honours them. A key that is taken is accepted only if it holds our very bytes
//!   (an earlier upload whose acknowledgement was lost); otherwise nothing is overwritten and the replica refuses to go on.
//! - Where conditional creates are ignored, the owner's epoch is read before an upload, at most every few seconds, and with it
//!   whether the key is taken.
//! - Nothing is sent behind what the store has before [`super::join`] has proven that it is this history; only a base may be, above every
//!   TXID that is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::join::{Edge, Join, join, witness};
use super::layout::Layout;
use super::owner::{self, Owner, Refusal};
use super::spool::{Spool, read_header};
use crate::ltx;
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
    pub(super) store: Store,
    layout: Layout,
    pub(super) catalog: BTreeMap<Span, Entry>,
    pub(super) durable: Option<Txid>,
    // Found by a new listing above what was durable here, and not sent by this one: someone else writes.
    pub(super) stranger: Option<Txid>,
    // Whose times are the listing's.
    pub(super) listed: BTreeSet<Span>,
    conditional: bool,
    owner: Owner,
    owner_read: Instant,
    // What local history must be shown to continue; `None` once it was, or if nothing is there.
    edge: Option<Edge>,
    // A base went up without that proof: local files that reach below it stay away from what was there before.
    floor: Option<Txid>,
}

impl Replica {
    /// Lists a replica. Read the owner first.
    pub async fn list(store: &Store) -> Result<BTreeMap<Span, Entry>, StoreError> {
        let mut catalog = BTreeMap::new();
        for level in (0..=9).filter_map(Level::new) {
            Self::list_into(store, level, &mut catalog).await?;
        }
        Ok(catalog)
    }

    pub(super) async fn list_into(
        store: &Store,
        level: Level,
        catalog: &mut BTreeMap<Span, Entry>,
    ) -> Result<(), StoreError> {
        let layout = Layout::for_kind(store.kind());
        for object in store.list(&layout.level_prefix(level)).await? {
            let Some(span) = layout.parse(&object.key) else {
                continue;
            };
            let entry = Entry {
                span,
                size: object.size,
                created: object.created.unwrap_or(object.modified),
            };
            catalog.insert(span, entry);
        }
        Ok(())
    }

    /// Opens for writing, as `owner` who was just written or read.
    pub async fn open(
        store: Store,
        catalog: BTreeMap<Span, Entry>,
        owner: Owner,
    ) -> Result<Self, StoreError> {
        let mut conditional = store.probe_conditional_create(PROBE_KEY).await?;
        if !conditional {
            // A command that probes at the same time looks like a store that ignores the condition.
            let mine = format!("{PROBE_KEY}-{:016x}", rand::random::<u64>());
            conditional = store.probe_conditional_create(&mine).await?;
        }
        if !conditional {
            tracing::info!(store = %store.display(), "the store ignores conditional creates; the owner is read before uploads");
        }
        let layout = Layout::for_kind(store.kind());
        for level in (0..=9).filter_map(Level::new) {
            store.remove_unfinished(&layout.level_prefix(level));
        }
        let durable = durable(catalog.keys());
        let mut replica = Self {
            stranger: None,
            listed: catalog.keys().copied().collect(),
            store,
            layout,
            catalog,
            durable,
            conditional,
            owner,
            // Where conditions are ignored the first upload looks for itself.
            owner_read: match conditional {
                true => Instant::now(),
                false => Instant::now()
                    .checked_sub(EPOCH_TRUST)
                    .unwrap_or_else(Instant::now),
            },
            edge: None,
            floor: None,
        };
        replica.edge = replica.find_edge().await?;
        Ok(replica)
    }

    async fn find_edge(&self) -> Result<Option<Edge>, StoreError> {
        let Some(durable) = self.durable else {
            return Ok(None);
        };
        // By level: the capture itself before what it was merged into.
        let last = self.catalog.keys().find(|s| (**s).max() == durable);
        let checksum = match last {
            Some(span) => self.header(*span).await?.and_then(|h| h.post),
            None => None,
        };
        Ok(Some(Edge {
            durable,
            top: self.top().unwrap_or(durable),
            checksum,
        }))
    }

    /// The header of an object; `None` if it is none.
    pub(super) async fn header(&self, span: Span) -> Result<Option<ltx::Header>, StoreError> {
        let range = 0..ltx::Header::LEN as u64;
        let bytes = self.store.get_range(&self.key(span), range).await?;
        Ok(ltx::Header::decode(&bytes).ok())
    }

    /// The highest TXID of any object, restorable or not.
    pub fn top(&self) -> Option<Txid> {
        self.catalog.keys().map(|s| (*s).max()).max()
    }

    /// Whether local history continues this replica. Once it was proven in a session every upload keeps it so.
    ///
    /// # Errors
    /// [`Refusal::Diverged`]; reading a local header.
    pub fn join(&mut self, spool: &Spool, captured: Txid) -> Result<Join, UploadError> {
        let Some(edge) = self.edge else {
            return Ok(Join::Proven);
        };
        let ours = match witness(&spool.entries(), edge.durable) {
            None => None,
            Some((entry, ends)) => {
                let header = read_header(&spool.path(entry.span)).map_err(std::io::Error::other)?;
                if ends { header.post } else { header.pre }
            }
        };
        match join(edge, captured, ours) {
            Join::Diverged => Err(Refusal::Diverged {
                top: edge.top,
                captured,
            }
            .into()),
            Join::Proven => {
                self.edge = None;
                Ok(Join::Proven)
            }
            Join::Unknown => Ok(Join::Unknown),
        }
    }

    /// The store, rooted at this replica.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The TXID of an object that a new listing showed and this writer did not send, though it is above what it made durable.
    pub fn stranger(&self) -> Option<Txid> {
        self.stranger
    }

    /// Whether the store itself refuses a second writer.
    pub fn is_conditional(&self) -> bool {
        self.conditional
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

    /// When the oldest restorable point was captured: every chain begins with a base.
    pub fn oldest(&self) -> Option<Millis> {
        let bases = self.catalog.values().filter(|e| e.span.is_base());
        bases.min_by_key(|e| e.span.max()).map(|e| e.created)
    }

    /// Forgets an object that retention deleted.
    pub fn forget(&mut self, span: Span) {
        self.catalog.remove(&span);
        self.listed.remove(&span);
    }

    /// What to send next, given the local files and the last captured TXID.
    ///
    /// # Errors
    /// As [`Replica::join`].
    pub fn next(&mut self, spool: &Spool, captured: Txid) -> Result<Next, UploadError> {
        let joined = self.join(spool, captured)?;
        let mut local = spool.entries();
        local.retain(|e| self.may_follow(e.span));
        let found = next(self.durable, captured, &self.catalog, &local);
        Ok(match found {
            Next::Nothing => Next::Nothing,
            _ if joined == Join::Proven => found,
            // A merge that spans the store's last point proves nothing about it. A base does, above whatever is there.
            _ if self.top() < Some(captured) => Next::Base,
            _ => Next::Nothing,
        })
    }

    /// Whether a local file may ever be sent here.
    pub fn may_follow(&self, span: Span) -> bool {
        self.floor.is_none_or(|floor| span.min() > floor)
    }

    /// Sends one local file.
    pub async fn send(&mut self, spool: &Spool, span: Span) -> Result<Entry, UploadError> {
        let asked = self.check_owner(span.level() != Level::CAPTURE).await?;
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
        if asked && !self.conditional && self.exists(&key).await? {
            self.accept_only_ours(&key, &path, entry).await?;
            self.record(entry);
            return Ok(entry);
        }
        match self
            .store
            .put_file(&key, &path, mode, Some(entry.created))
            .await
        {
            Ok(_) => {}
            Err(e) if e.is_exists() => self.accept_only_ours(&key, &path, entry).await?,
            Err(e) => return Err(e.into()),
        }
        self.record(entry);
        Ok(entry)
    }

    /// Records a base that was streamed to [`Replica::key`]. Whatever was there before, this history begins anew with it.
    pub fn record(&mut self, entry: Entry) {
        self.catalog.insert(entry.span, entry);
        self.listed.remove(&entry.span);
        self.durable = durable(self.catalog.keys());
        if let (true, Some(edge)) = (entry.span.is_base(), self.edge) {
            self.edge = None;
            self.floor = Some(edge.top);
        }
    }

    /// Key of a file.
    pub fn key(&self, span: Span) -> String {
        self.layout.key(span)
    }

    /// Reads the owner again, unless that was done a moment ago and the store refuses second writers by itself.
    /// `always`: before compaction uploads, bases and deletes. `true`: it was read now.
    pub async fn check_owner(&mut self, always: bool) -> Result<bool, UploadError> {
        let trusted = self.owner_read.elapsed() < EPOCH_TRUST;
        if trusted || (self.conditional && !always) {
            return Ok(false);
        }
        self.read_owner().await.map(|()| true)
    }

    pub(super) async fn read_owner(&mut self) -> Result<(), UploadError> {
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

/// Pure part of [`Replica::next`]. `captured` may be ahead of every local file: the spool was dropped, or the page size changed.
pub fn next(
    durable: Option<Txid>,
    captured: Txid,
    catalog: &BTreeMap<Span, Entry>,
    local: &[Entry],
) -> Next {
    let Some(durable) = durable else {
        return Next::Base;
    };
    if captured > durable {
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
        let next = |at, captured, store: &_, local: &[Entry]| {
            super::next(at, Txid::new(captured).unwrap(), store, local)
        };
        assert_eq!(next(None, 2, &catalog(&[]), &[entry(0, 2, 2)]), Next::Base);
        assert_eq!(next(at, 2, &store, &[entry(0, 2, 2)]), Next::Nothing);
        assert_eq!(
            next(at, 5, &store, &[]),
            Next::Base,
            "the spool was dropped: what was captured is nowhere"
        );
        assert_eq!(
            next(at, 3, &store, &[entry(0, 3, 3)]),
            Next::File(entry(0, 3, 3).span)
        );
        assert_eq!(
            next(at, 4, &store, &[entry(0, 4, 4)]),
            Next::Base,
            "TXID 3 is nowhere"
        );
        // After an outage the merge goes up, then the newest capture beside it.
        let local = [entry(1, 2, 9), entry(0, 9, 9)];
        assert_eq!(
            next(at, 9, &store, &local),
            Next::File(local[0].span),
            "only the merge continues TXID 2"
        );
        let store = catalog(&[entry(9, 1, 1), entry(1, 2, 9)]);
        assert_eq!(
            next(Txid::new(9), 9, &store, &local),
            Next::File(entry(0, 9, 9).span)
        );
        let store = catalog(&[entry(9, 1, 1), entry(1, 2, 9), entry(0, 9, 9)]);
        assert_eq!(next(Txid::new(9), 9, &store, &local), Next::Nothing);
    }
}
