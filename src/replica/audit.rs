//! What is really in the store: objects that vanished, times that a listing cannot tell, the store's clock.
//!
//! A listing of S3, Azure or Google tells when an object arrived there. That is close to the capture for what was uploaded as it was
//! captured, and far from it for a replica that was copied from elsewhere. Retention must not take the one for the other.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};

use super::upload::{Replica, durable};
use crate::store::{PutMode, StoreError};
use crate::types::{Entry, Level, Millis, Span, Txid};

/// Listed times that are compared with the headers, for each level, before all are read.
const SAMPLES_PER_LEVEL: usize = 4;
/// A listed time may be this far from the header's: an outage delays uploads, and retention does not care.
const TIME_SLACK_MS: i64 = 60 * 60 * 1000;
/// Headers and answers waited for at once.
const AT_ONCE: usize = 8;
/// Objects missing from a listing that are asked for one by one before the listing is believed.
const CONFIRM_MAX: usize = 16;

/// What an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Objects that are gone without our doing.
    pub objects: u64,
    /// What was durable before.
    pub before: Option<Txid>,
    /// What is durable without them.
    pub after: Option<Txid>,
}

impl Replica {
    /// Compares one level with the store: one request for each thousand objects, and a few more if something is missing. The round's
    /// number chooses the level: bases every other time, the rest in turn.
    pub async fn audit(&mut self, round: usize) -> Result<Missing, StoreError> {
        let mut levels: Vec<Level> = self.catalog.keys().map(|s| s.level()).collect();
        levels.dedup();
        levels.retain(|l| *l != Level::SNAPSHOT);
        let level = match levels.get((round / 2) % levels.len().max(1)) {
            Some(level) if round % 2 == 1 => *level,
            _ => Level::SNAPSHOT,
        };
        let there = self.list_level(level).await?;
        let absent: Vec<Span> = self
            .catalog
            .keys()
            .filter(|s| s.level() == level && !there.contains_key(s))
            .copied()
            .collect();
        let gone = self.confirm(absent).await?;
        let before = self.durable;
        for span in &gone {
            self.forget(*span);
        }
        self.durable = durable(self.catalog.keys());
        Ok(Missing {
            objects: gone.len() as u64,
            before,
            after: self.durable,
        })
    }

    async fn list_level(&self, level: Level) -> Result<BTreeMap<Span, Entry>, StoreError> {
        let mut found = BTreeMap::new();
        Self::list_into(&self.store, level, &mut found).await?;
        Ok(found)
    }

    /// A listing may be behind: what it lacks is asked for by name.
    async fn confirm(&self, absent: Vec<Span>) -> Result<Vec<Span>, StoreError> {
        let asked = absent.iter().rev().take(CONFIRM_MAX);
        let answers: Vec<(Span, bool)> = futures::stream::iter(asked.copied().collect::<Vec<_>>())
            .map(|span| async move { Ok::<_, StoreError>((span, self.has(span).await?)) })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        if answers.iter().any(|(_, there)| *there) {
            let gone = answers.into_iter().filter(|(_, there)| !there);
            return Ok(gone.map(|(span, _)| span).collect());
        }
        Ok(absent)
    }

    async fn has(&self, span: Span) -> Result<bool, StoreError> {
        match self.store.head(&self.key(span)).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Lists everything again and keeps the times that are known. Before deletes: what is not there any more must not be counted on.
    pub async fn refresh(&mut self) -> Result<(), StoreError> {
        let mut found = Self::list(&self.store).await?;
        for (span, entry) in &mut found {
            match self.catalog.get(span) {
                Some(known) => entry.created = known.created,
                None => {
                    self.listed.insert(*span);
                    if Some((*span).max()) > self.durable {
                        self.stranger = Some((*span).max());
                    }
                }
            }
        }
        self.listed.retain(|span| found.contains_key(span));
        self.durable = durable(found.keys());
        self.catalog = found;
        Ok(())
    }

    /// Makes sure that times taken from a listing are the captures'. A few headers of each level are read; if one says otherwise, all are.
    pub async fn settle_times(&mut self) -> Result<(), StoreError> {
        let mut sample = Vec::new();
        let listed: Vec<Span> = self.listed.iter().copied().collect();
        for level in listed.chunk_by(|a, b| a.level() == b.level()) {
            let step = (level.len() - 1).div_ceil(SAMPLES_PER_LEVEL - 1).max(1);
            sample.extend(level.iter().step_by(step).chain(level.last()).copied());
        }
        sample.dedup();
        let times = self.times(sample).await?;
        let wrong = |(span, at): &(Span, Millis)| {
            let listed = self.catalog.get(span).map(|e| e.created.since(*at).abs());
            listed.is_some_and(|off| off > TIME_SLACK_MS)
        };
        let times = match times.iter().any(wrong) {
            true => {
                tracing::info!(
                    store = self.store.display(),
                    objects = listed.len(),
                    "the store's times are not those of the captures, as after a copy; reading them from the objects"
                );
                self.times(listed).await?
            }
            false => times,
        };
        for (span, at) in times {
            if let Some(entry) = self.catalog.get_mut(&span) {
                entry.created = at;
            }
        }
        self.listed.clear();
        Ok(())
    }

    async fn times(&self, spans: Vec<Span>) -> Result<Vec<(Span, Millis)>, StoreError> {
        let read = |span: Span| async move {
            match self.header(span).await {
                Ok(header) => Ok(header.map(|h| (span, h.timestamp))),
                Err(e) if e.is_not_found() => Ok(None),
                Err(e) => Err(e),
            }
        };
        let found: Vec<Option<(Span, Millis)>> = futures::stream::iter(spans)
            .map(read)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// What the store's clock says: three requests. On `file://` it is this host's, or the file server's.
    pub async fn clock(&self) -> Result<Millis, StoreError> {
        let key = format!("lifeboat/clock-{:016x}", rand::random::<u64>());
        let body = bytes::Bytes::from_static(b"clock");
        self.store.put(&key, body, PutMode::Overwrite, None).await?;
        let info = self.store.head(&key).await;
        self.store.delete(&key).await?;
        Ok(info?.modified)
    }
}
