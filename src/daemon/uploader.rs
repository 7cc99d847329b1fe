//! Sends one target's local files to one store, for ever: one task for each.
//!
//! Invariants
//! - The owner is read first, then the store is listed, then uploads begin.
//! - A failure changes nothing: the file stays local, the task tries again with a growing pause, and the facts say since when and why.
//! - A refusal (another owner) stops uploads until the owner says otherwise; nothing is overwritten.
//! - A store that went on without this state (the host was set back, or the replica was claimed) is continued from its own newest point, once
//!   for each epoch, and only if `owner.json` names this instance; otherwise that is a refusal too.
//! - A base goes up only after every capture before it: their conditional creates show that no one else writes. While one that takes the place
//!   of an older one is on its way, captures after it go up (`meanwhile`).
//! - A panic ends a session as an error does, and no other target's: what a session knows is read anew from the store by the next one.
//! - Nothing to send means no request, but for one listing of one level an interval, which also finds what was deleted behind our back.

mod base;
mod meanwhile;
mod renewals;
mod upkeep;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::caught::{self, caught};
use super::cuts::Cuts;
use crate::config::RetentionConfig;
use crate::ltx;
use crate::observe::facts::TargetBoard;
use crate::replica::owner::{self, Local, Owner, Refusal, Verdict};
use crate::replica::spool::Spool;
use crate::replica::upload::{Next, Replica, UploadError};
use crate::retention;
use crate::sqlite::live::LiveView;
use crate::store::{PutMode, Store};
use crate::types::{Entry, Millis, Span, Txid};
use meanwhile::Audits;
pub use renewals::Renewals;

/// Pause after a first failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause between tries: an outage's end is noticed within it.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Longest pause after panics in a row: each session lists the replica anew, which costs requests.
const PAUSE_PANICKED_MAX: Duration = Duration::from_secs(60);
/// A session that lasted so long was none of a row.
const ROW_ENDS_AFTER: Duration = Duration::from_secs(600);
/// Pause while another instance owns the replica.
const PAUSE_REFUSED: Duration = Duration::from_secs(30);
/// A base this far in the future was made by a wrong clock: the next one would wait for that.
const BASE_AHEAD_MS: i64 = 24 * 60 * 60 * 1000;
/// Where conditional creates are ignored, a former owner's last upload may still be on its way for this long: it trusts what it read for
/// a few seconds, and a request takes up to fourteen.
const TAKE_OVER_PAUSE: Duration = Duration::from_secs(20);
/// More local files than this waiting after a failure are merged first: catching up uploads the merge.
const BACKLOG_FILES: usize = 4;

/// What an uploader asks of its target.
pub enum Ask {
    /// The whole database at the last TXID, and the header of its base.
    Base(oneshot::Sender<Result<(Arc<LiveView>, ltx::Header), String>>),
    /// Compare every page with what was captured: a base was not what it should be.
    Compare,
    /// Merge what waits.
    Squeeze(oneshot::Sender<()>),
    /// Forget the local position and take up the one in the store, whose owner's epoch this is. `false`: that was done once already.
    Rebase(u32, oneshot::Sender<bool>),
}

/// One uploader.
pub struct Uploader {
    /// Of the target.
    pub name: String,
    /// Number among the target's stores.
    pub number: u32,
    /// The replica's root.
    pub store: Store,
    /// Local files.
    pub spool: Arc<Spool>,
    /// Facts.
    pub board: Arc<TargetBoard>,
    /// Who we are.
    pub local: Local,
    /// In `owner.json`.
    pub instance: String,
    /// In `owner.json`, too.
    pub database: PathBuf,
    /// The last TXID when this session began. What is durable is told from there on: before, it may be another branch of the history.
    pub from: Txid,
    /// Rises with every local change: the last captured TXID.
    pub captured: watch::Receiver<Txid>,
    /// Last durable TXID here.
    pub durable: watch::Sender<Option<Txid>>,
    /// The target.
    pub ask: mpsc::Sender<Ask>,
    /// Between cheap checks of an idle store.
    pub check_every: Duration,
    /// Between bases.
    pub base_every: Duration,
    /// Points that are being labelled.
    pub cuts: Arc<Cuts>,
    /// How many stores the target has.
    pub stores: u32,
    /// Bounds long work over all targets.
    pub heavy: Arc<Semaphore>,
    /// What is kept.
    pub policy: RetentionConfig,
    /// The clock.
    pub now: fn() -> Millis,
    /// How full copies go that take the place of older ones.
    pub renewals: Renewals,
}

impl Uploader {
    /// Runs until the target is gone.
    pub async fn run(mut self) {
        let (mut pause, mut after_panic) = (PAUSE_MIN, PAUSE_MIN);
        loop {
            let begun = Instant::now();
            let ended = caught(self.session(&mut pause)).await;
            if begun.elapsed() > ROW_ENDS_AFTER {
                after_panic = PAUSE_MIN;
            }
            match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    self.failed(&error);
                    if matches!(error, UploadError::Refused(_)) {
                        pause = PAUSE_REFUSED;
                    }
                }
                Err(panic) => {
                    self.panicked(&panic);
                    // Progress before it does not count: it may come again at once.
                    pause = after_panic;
                    after_panic = (after_panic * 2).min(PAUSE_PANICKED_MAX);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.ask.closed() => return,
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn session(&mut self, pause: &mut Duration) -> Result<(), UploadError> {
        let mut replica = self.open().await?;
        let was_failing = self.facts(|f| {
            f.refused = None;
            f.failing_since.is_some()
        });
        if was_failing && self.spool.entries().len() > BACKLOG_FILES {
            let (tx, rx) = oneshot::channel();
            if self.ask.send(Ask::Squeeze(tx)).await.is_ok() {
                // The target may be stopping: then there is nothing to wait for.
                let _ = rx.await;
            }
        }
        for span in replica.catalog().keys() {
            self.spool.acknowledge(*span, self.number);
        }
        self.publish(&replica);
        if !was_failing {
            self.look_at_tiers(&replica);
        }

        let mut audits = Audits::new();
        let mut pruned = Instant::now();
        let mut pins = retention::Pins::default();
        loop {
            self.audit_if_due(&mut replica, &mut audits).await?;
            if pruned.elapsed() >= retention::EVERY {
                pruned = Instant::now();
                self.prune(&mut replica, &mut pins).await?;
            }
            let captured = *self.captured.borrow_and_update();
            let (next, renews) = match replica.next(&self.spool, captured)? {
                Next::Nothing if self.base_is_due(&replica) => (Next::Base, true),
                next => (next, false),
            };
            match next {
                Next::File(span) => {
                    if !self.send(&mut replica, span).await? {
                        continue;
                    }
                }
                Next::Base => {
                    self.renewals.is_under_way = renews;
                    let result = self.send_base(&mut replica, &mut audits).await;
                    self.renewals.is_under_way = false;
                    if renews
                        && let Err(error) = &result
                        && !matches!(error, UploadError::Refused(_))
                    {
                        self.not_renewed(&error.to_string());
                    }
                    self.sent(&replica, result?);
                }
                Next::Nothing => {
                    self.write_labels(&replica).await?;
                    self.works();
                    let idle = audits.due_in(self.check_every).min(retention::EVERY);
                    tokio::select! {
                        changed = self.captured.changed() => {
                            if changed.is_err() {
                                return Ok(());
                            }
                            continue;
                        }
                        () = tokio::time::sleep(idle) => {}
                    }
                    continue;
                }
            }
            *pause = PAUSE_MIN;
        }
    }

    /// Owner first, then the listing.
    async fn open(&self) -> Result<Replica, UploadError> {
        let remote = owner::read(&self.store).await?.transpose()?;
        let catalog = Replica::list(&self.store).await?;
        let verdict = owner::decide(
            Some(self.local),
            remote.as_ref(),
            !catalog.is_empty(),
            &self.instance,
        );
        let (owner, adopt) = match (verdict, remote) {
            (Verdict::Continue(_), Some(owner)) => (owner, false),
            (Verdict::Continue(_), None) => {
                return Err(Refusal::Damaged("it vanished".into()).into());
            }
            (Verdict::Fresh, remote) => {
                let owner = self.owner();
                let mode = match remote {
                    None => PutMode::Create,
                    Some(_) => PutMode::Overwrite,
                };
                owner::write(&self.store, &owner, mode).await?;
                (owner, false)
            }
            (Verdict::Refuse(refusal), _) => return Err(refusal.into()),
            // A second store that was not asked when the state was lost or claimed: the checksums decide.
            (Verdict::Rebuild { .. }, Some(owner))
                if owner.instance == self.instance
                    && owner.lineage == self.local.lineage.to_string()
                    && owner.epoch < self.local.epoch =>
            {
                (self.owner(), true)
            }
            (Verdict::Rebuild { epoch, .. }, remote) => {
                let refusal = Refusal::OtherHistory {
                    local: self.local.lineage.to_string(),
                    remote: remote.map_or_else(|| "unknown".into(), |o| o.lineage),
                };
                return Err(self.rebase(epoch, refusal).await);
            }
        };
        let mine = owner.instance == self.instance;
        let epoch = owner.epoch;
        let taken_over = owner.epoch > 1 && owner.owned_for((self.now)()) < TAKE_OVER_PAUSE;
        let mut replica = Replica::open(self.store.clone(), catalog, owner).await?;
        if taken_over && !replica.is_conditional() {
            tokio::time::sleep(TAKE_OVER_PAUSE).await;
        }
        let captured = *self.captured.borrow();
        match replica.join(&self.spool, captured) {
            Ok(_) => {}
            Err(UploadError::Refused(refusal @ Refusal::Diverged { .. })) if mine => {
                return Err(self.rebase(epoch, refusal).await);
            }
            Err(e) => return Err(e),
        }
        if adopt {
            owner::write(&self.store, &self.owner(), PutMode::Overwrite).await?;
        }
        Ok(replica)
    }

    fn owner(&self) -> Owner {
        let Local { lineage, epoch } = self.local;
        Owner::new(lineage, &self.instance, epoch, (self.now)()).of(&self.database)
    }

    /// Asks the target to take up the store's position; what to report until it did, or if it will not.
    async fn rebase(&self, epoch: u32, refusal: Refusal) -> UploadError {
        let (tx, rx) = oneshot::channel();
        // A target that is stopping answers nothing.
        if self.ask.send(Ask::Rebase(epoch, tx)).await.is_ok() && rx.await == Ok(true) {
            tracing::warn!(
                target_name = self.name,
                store = self.store.display(),
                "{refusal}; going on from the replica's newest point"
            );
        }
        refusal.into()
    }

    fn base_is_due(&self, replica: &Replica) -> bool {
        replica.base().is_some_and(|(txid, at)| {
            // An idle database needs no new base: nothing but it would be read at a restore.
            let age = (self.now)().since(at);
            *self.captured.borrow() > txid.next()
                && self.renewals.may_begin(Instant::now())
                && (age > i64::try_from(self.base_every.as_millis()).unwrap_or(i64::MAX)
                    || age < -BASE_AHEAD_MS)
        })
    }

    /// Sends one file. `false`: it was rolled up meanwhile, plan again.
    async fn send(&mut self, replica: &mut Replica, span: Span) -> Result<bool, UploadError> {
        match replica.send(&self.spool, span).await {
            Ok(entry) => self.sent(replica, entry),
            Err(UploadError::Local(e)) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(false);
            }
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    fn sent(&mut self, replica: &Replica, entry: Entry) {
        self.spool.acknowledge(entry.span, self.number);
        if entry.span.is_base() {
            self.renewals = Renewals::default();
            self.facts(|f| f.renewal = None);
            // They would only wait for a store that never takes them.
            let never = |e: &Entry| !replica.may_follow(e.span);
            for file in self.spool.entries().into_iter().filter(never) {
                self.spool.acknowledge(file.span, self.number);
            }
        }
        self.facts(|f| {
            f.uploads += 1;
            f.uploaded_bytes += entry.size;
        });
        // A base does not show that what failed meanwhile goes up by now.
        if !entry.span.is_base() || replica.durable() >= Some(*self.captured.borrow()) {
            self.works();
        }
        self.publish(replica);
        if entry.span.is_base() {
            self.look_at_tiers(replica);
        }
    }

    /// What is there by tier, before retention has run: costs no request.
    fn look_at_tiers(&self, replica: &Replica) {
        let pins = retention::Pins::default();
        if let Ok(planned) = retention::plan_for(replica, &self.policy, &pins, (self.now)()) {
            self.facts(|f| f.held = planned.plan.held(true));
        }
    }

    fn publish(&self, replica: &Replica) {
        let durable = replica.durable();
        let local = self.spool.entries();
        let pending = |e: &&Entry| durable.is_none_or(|d| e.span.max() > d);
        if let Err(error) = self.spool.set_position(self.number, durable) {
            tracing::debug!(%error, "noting the store's position");
        }
        // The spool knows a capture before the target has told of it.
        let told = *self.captured.borrow();
        let captured = self.spool.last().map_or(told, |last| last.max(told));
        let since = oldest_pending(replica.catalog(), &local, durable, captured);
        self.facts(|f| {
            f.oldest_pending = match (since, f.oldest_pending) {
                // A roll-up hides when its oldest change was made: what was known before holds while nothing became durable.
                (Some(now), Some(known)) if f.durable == durable => Some(now.min(known)),
                (since, _) => since,
            };
            if f.durable != durable {
                f.durable = durable;
                f.durable_at = Some((self.now)());
            }
            f.pending_bytes = local.iter().filter(pending).map(|e| e.size).sum();
            f.contact = Some((self.now)());
            f.base = replica.base();
            f.oldest = replica.oldest();
            f.renewal_due = f.base.map(|(_, at)| {
                let every = i64::try_from(self.base_every.as_millis()).unwrap_or(i64::MAX);
                Millis(at.0.saturating_add(every))
            });
            f.objects = replica.catalog().len() as u64;
            f.object_bytes = replica.catalog().values().map(|e| e.size).sum();
        });
        self.durable
            .send_replace(durable.filter(|d| *d >= self.from));
    }

    /// The store took something, or there is nothing that it should take: that it can be listed does not show that it can be written.
    fn works(&self) {
        let since = self.facts(|f| {
            f.last_error = None;
            f.hint = None;
            f.broken = None;
            f.failing_since.take()
        });
        if let Some(since) = since {
            tracing::info!(target_name = self.name, store = self.store.display(), %since, "uploads work again");
        }
    }

    fn failed(&self, error: &UploadError) {
        match error {
            UploadError::Refused(refusal) => tracing::error!(
                target_name = self.name,
                store = self.store.display(),
                "{refusal}"
            ),
            error => {
                tracing::warn!(target_name = self.name, store = self.store.display(), %error, "upload failed; capture continues and the spool holds it")
            }
        }
        let now = (self.now)();
        self.facts(|f| {
            f.errors += 1;
            f.failing_since.get_or_insert(now);
            f.last_error = Some(error.to_string());
            f.hint = error.hint();
            if let UploadError::Refused(refusal) = error {
                f.refused = Some(refusal.to_string());
            }
        });
    }

    /// Red at once, however short it lasts: what comes next is not known.
    fn panicked(&mut self, panic: &str) {
        if std::mem::take(&mut self.renewals.is_under_way) {
            self.not_renewed(panic);
        }
        tracing::error!(
            target_name = self.name,
            store = self.store.display(),
            hint = caught::HINT,
            "uploads broke off by a panic and begin anew: {panic}"
        );
        let now = (self.now)();
        self.facts(|f| {
            f.errors += 1;
            f.failing_since.get_or_insert(now);
            let what = format!("uploads broke off by a panic: {panic}");
            f.last_error = Some(what.clone());
            f.broken = Some(what);
            f.hint = Some(caught::HINT.into());
        });
    }

    fn facts<T: Default>(
        &self,
        change: impl FnOnce(&mut crate::observe::facts::StoreFacts) -> T,
    ) -> T {
        self.board
            .update_store(self.number as usize, change)
            .unwrap_or_default()
    }
}

/// Capture time of the oldest change that is not durable, or an earlier one; `None` if everything is.
fn oldest_pending(
    catalog: &BTreeMap<Span, Entry>,
    local: &[Entry],
    durable: Option<Txid>,
    captured: Txid,
) -> Option<Millis> {
    let Some(at) = durable else {
        return local.iter().map(|e| e.created).min();
    };
    if captured <= at {
        return None;
    }
    let first = at.next();
    let exact = local
        .iter()
        .find(|e| e.span.min() == first && e.span.max() == first);
    // Inside a roll-up, or dropped: it came after the last durable one.
    let durable_since = || {
        let ends = catalog.values().filter(|e| e.span.max() == at);
        ends.map(|e| e.created).min()
    };
    exact.map(|e| e.created).or_else(durable_since)
}
