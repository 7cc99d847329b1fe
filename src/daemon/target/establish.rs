//! Who owns the replica, what is already there, and where capture goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{About, Ended, GaveUp, GaveUpWhy, Target, blocking};
use crate::daemon::cuts::Cuts;
use crate::labels;
use crate::observe::facts::State;
use crate::replica::owner::{self, Local, Owner, Refusal, Verdict};
use crate::replica::spool::Spool;
use crate::replica::upload::{Replica, durable};
use crate::restore::plan::{Catalog, Goal};
use crate::restore::{self, apply};
use crate::sqlite::capture::{Capture, CaptureError, GapReport, Identity, open_table};
use crate::sqlite::guard::{GapReason, Guard};
use crate::sqlite::pages::{Described, PageTable};
use crate::store::{PutMode, Store};
use crate::types::{Entry, Lineage, Millis, Span, Txid};

/// First pause before a replica that could not be gone on from is read again, whole.
const REREAD_MIN: Duration = Duration::from_secs(60 * 60);
/// Longest.
const REREAD_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Target {
    /// Who owns the replica, and where capture goes on. With trusted local state no store is asked.
    pub(super) async fn establish(
        &mut self,
        guard: Guard,
        spool: &Arc<Spool>,
    ) -> Result<(Capture, Local), Ended> {
        let remembered = self.state.identity();
        if let Some(local) = remembered {
            let (table_path, spool2, size) =
                (self.state.table(), Arc::clone(spool), guard.page_size());
            let table = blocking(move || open_table(&table_path, &spool2, size)).await?;
            match table {
                Ok(Some(table)) if table.about().lineage == local.lineage => {
                    return self.resume(guard, table, local, spool, None).await;
                }
                Ok(_) => tracing::warn!(
                    target_name = self.name,
                    "the checksum table is missing or damaged; rebuilding it from the store"
                ),
                Err(error) => {
                    tracing::warn!(target_name = self.name, %error, "the checksum table cannot be used; rebuilding it from the store")
                }
            }
        }
        self.set(
            State::Seeding,
            Some("asking the store who owns the replica".into()),
            None,
        );
        let mut found = self.ask_stores(remembered).await?;
        // TXIDs are free above everything that any store holds of this history.
        let top = found.iter().filter_map(|f| f.top).max();
        let epoch = found.iter().map(|f| f.epoch).max().unwrap_or(1);
        // Of several stores the one that went furthest: the others are then behind this history, not beside it.
        found.sort_by_key(|f| f.durable);
        let Some(best) = found.pop() else {
            return Err(Ended::Lost);
        };
        match best.rebuild {
            None => self.begin_anew(guard, spool, best).await,
            Some((lineage, proof)) => {
                let local = Local {
                    lineage: lineage.unwrap_or_else(new_lineage),
                    epoch,
                };
                let about = About {
                    owner: best.remote.clone(),
                    objects: best.entries.len(),
                    newest: best.top,
                    file_id: guard.file_id(),
                };
                self.gave_up(&about)?;
                let store = self.stores[best.number].clone();
                let durable = best.durable;
                let catalog = Catalog::new(best.entries.into_values());
                let result = self.rebuild(&store, catalog, guard.file_id(), local).await;
                let mut table = self.remember(about.clone(), result)?;
                if top > durable
                    && let Some(top) = top
                {
                    // What lies there has no content that is known: no file follows it, and a base does.
                    let above = Described {
                        txid: top.next(),
                        ..*table.about()
                    };
                    table.describe(above)?;
                }
                spool.clear()?;
                let result = self.resume(guard, table, local, spool, Some(proof)).await;
                let result = self.remember(about, result)?;
                let owner = Owner::new(local.lineage, &self.instance, local.epoch, (self.now)())
                    .of(&self.path);
                owner::write(&store, &owner, PutMode::Overwrite).await?;
                Ok(result)
            }
        }
    }

    /// Every store that answers, as far as this instance may go on there. An error if none does.
    async fn ask_stores(&self, remembered: Option<Local>) -> Result<Vec<Found>, Ended> {
        let mut found = Vec::new();
        let mut failed = None;
        for (number, store) in self.stores.iter().enumerate() {
            match self.ask_store(number, store, remembered).await {
                Ok(one) => found.push(one),
                Err(error) => {
                    // With one store this is what ends the session, and is reported with it.
                    if self.stores.len() > 1 {
                        tracing::warn!(target_name = self.name, store = store.display(), %error, "this store cannot be gone on from");
                    }
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    async fn ask_store(
        &self,
        number: usize,
        store: &Store,
        remembered: Option<Local>,
    ) -> Result<Found, Ended> {
        let remote = owner::read(store).await?.transpose()?;
        let entries = Replica::list(store).await?;
        let has_files = !entries.is_empty();
        let verdict = owner::decide(remembered, remote.as_ref(), has_files, &self.instance);
        let (rebuild, epoch) = match verdict {
            Verdict::Refuse(refusal) => return Err(refusal.into()),
            // Our owner.json, no file: the first base never arrived.
            Verdict::Continue(local) if !has_files => (None, local.epoch),
            Verdict::Continue(local) => (Some((Some(local.lineage), true)), local.epoch),
            Verdict::Fresh => (None, remote.as_ref().map_or(0, |o| o.epoch)),
            Verdict::Rebuild {
                lineage,
                epoch,
                proof,
            } => (Some((lineage, proof)), epoch),
        };
        Ok(Found {
            number,
            durable: durable(entries.keys()),
            top: entries.keys().map(|s| (*s).max()).max(),
            remote,
            entries,
            rebuild,
            epoch,
        })
    }

    /// A history of its own: TXIDs begin again, so nothing that any store has of an older one may be continued.
    async fn begin_anew(
        &self,
        guard: Guard,
        spool: &Arc<Spool>,
        found: Found,
    ) -> Result<(Capture, Local), Ended> {
        let local = Local {
            lineage: new_lineage(),
            epoch: found.epoch.saturating_add(1),
        };
        let owner =
            Owner::new(local.lineage, &self.instance, local.epoch, (self.now)()).of(&self.path);
        let mode = match found.remote {
            None => PutMode::Create,
            Some(_) => PutMode::Overwrite,
        };
        owner::write(&self.stores[found.number], &owner, mode).await?;
        self.begin(guard, spool, local).await
    }

    /// An error if this was looked at before, and found wanting, and nothing changed since.
    fn gave_up(&self, about: &About) -> Result<(), Ended> {
        match &self.past.gave_up {
            Some(g) if g.about == *about && Instant::now() < g.until => Err(g.why.clone().into()),
            _ => Ok(()),
        }
    }

    /// Notes what took reading a whole replica to find out, and says when it is tried again.
    fn remember<T>(&mut self, about: About, result: Result<T, Ended>) -> Result<T, Ended> {
        let why = match &result {
            Err(Ended::Refused(refusal @ Refusal::TooDifferent { .. })) => {
                GaveUpWhy::Different(refusal.clone())
            }
            Err(Ended::Unusable(reason)) => GaveUpWhy::Unusable(reason.clone()),
            Ok(_) => {
                self.past.gave_up = None;
                return result;
            }
            Err(_) => return result,
        };
        let before = self.past.gave_up.take().filter(|g| g.about == about);
        let wait = before.map_or(REREAD_MIN, |g| (g.wait * 2).min(REREAD_MAX));
        tracing::warn!(
            target_name = self.name,
            next_comparison_s = wait.as_secs(),
            "the whole replica was read for this; it is read again when the database file, the owner or the replica changes, or after a pause that doubles"
        );
        self.past.gave_up = Some(GaveUp {
            about,
            until: Instant::now() + wait,
            wait,
            why,
        });
        result
    }

    async fn begin(
        &self,
        guard: Guard,
        spool: &Arc<Spool>,
        local: Local,
    ) -> Result<(Capture, Local), Ended> {
        self.set(
            State::Seeding,
            Some("the first copy is on its way".into()),
            None,
        );
        spool.clear()?;
        // Points of another history.
        self.cuts.clear()?;
        self.state.record(local)?;
        let (table, spool, now) = (self.state.table(), Arc::clone(spool), (self.now)());
        let identity = Identity {
            lineage: local.lineage,
            epoch: local.epoch,
        };
        let cuts = Arc::clone(&self.cuts);
        let capture = blocking(move || {
            let (capture, first) = Capture::begin(guard, &table, &spool, identity, now)?;
            cuts.schema_seen(&first, &spool.entries(), now)?;
            capture.guard().beat().rest();
            Ok::<_, Ended>(capture)
        })
        .await??;
        self.board.update(|f| {
            f.captured = Some(capture.txid());
            f.captured_at = Some(now);
        });
        tracing::info!(target_name = self.name, lineage = %local.lineage, "a new history begins");
        Ok((capture, local))
    }

    /// Goes on from a table. `proof`: the table came from the store, and (if true) half of the pages must match it.
    async fn resume(
        &self,
        guard: Guard,
        table: PageTable,
        local: Local,
        spool: &Arc<Spool>,
        proof: Option<bool>,
    ) -> Result<(Capture, Local), Ended> {
        let (table_path, spool, now) = (self.state.table(), Arc::clone(spool), (self.now)());
        let identity = Identity {
            lineage: local.lineage,
            epoch: local.epoch,
        };
        let (capture, gap, same, compared) = blocking(move || -> Result<_, Ended> {
            let (capture, gap) = Capture::resume(guard, table, identity, now)?;
            let (same, compared) = if proof == Some(true) {
                capture.compare()?
            } else {
                (1, 1)
            };
            capture.guard().beat().rest();
            Ok((capture, gap, same, compared))
        })
        .await??;
        if same.saturating_mul(2) < compared {
            return Err(Refusal::TooDifferent { same, compared }.into());
        }
        if proof.is_some() {
            // Only now may the next start trust it.
            let rebuilt = rebuilt_table(&self.state.table());
            capture.sync_table()?;
            std::fs::rename(rebuilt, self.state.table())?;
        }
        self.state.record(local)?;
        let reason = if proof.is_some() {
            Some(GapReason::StateRebuilt)
        } else {
            gap
        };
        let Some(reason) = reason else {
            self.board.update(|f| f.captured = Some(capture.txid()));
            return Ok((capture, local));
        };
        self.set(
            State::Gap,
            Some(format!("comparing every page: {}", reason.word())),
            None,
        );
        self.board.update(|f| {
            f.uncaptured_since.get_or_insert(now);
        });
        let mut capture = capture;
        let cuts = Arc::clone(&self.cuts);
        let (capture, report) = blocking(move || {
            let report = gap_capture(&mut capture, reason, &table_path, &spool, &cuts, now);
            capture.guard().beat().rest();
            (capture, report)
        })
        .await?;
        let report = report?;
        let pages = report.captured.map_or(0, |c| c.pages);
        tracing::info!(
            target_name = self.name,
            reason = reason.word(),
            compared = report.compared,
            pages,
            "gap capture"
        );
        self.board.update(|f| {
            *f.gaps.entry(reason.word()).or_default() += 1;
            f.captured = Some(capture.txid());
        });
        if let Some(captured) = report.captured {
            self.note(&captured);
        }
        Ok((capture, local))
    }

    /// The checksum table of the newest point in the store: every object of the plan is read and verified.
    async fn rebuild(
        &self,
        store: &Store,
        catalog: Catalog,
        file_id: (u64, u64),
        local: Local,
    ) -> Result<PageTable, Ended> {
        self.set(
            State::Seeding,
            Some("rebuilding local state from the store".into()),
            None,
        );
        // Never closed.
        let _permit = self.heavy.acquire().await;
        let plan = restore::plan::plan(&catalog, Goal::Newest)
            .map_err(|e| Ended::Unusable(e.to_string()))?;
        let open = restore::opener(store);
        let path = rebuilt_table(&self.state.table());
        let table = blocking(move || -> Result<PageTable, Ended> {
            let mut table: Option<PageTable> = None;
            let mut batch = Vec::new();
            let current = std::cell::Cell::new(None::<Described>);
            let cell = std::cell::RefCell::new((&mut table, &mut batch));
            let applied = apply::each(
                &plan.files,
                open,
                |header| {
                    let (table, batch) = &mut *cell.borrow_mut();
                    let about = Described {
                        lineage: local.lineage,
                        txid: header.max,
                        page_size: header.page_size,
                        commit: header.commit,
                        position: None,
                        file_id,
                        stamp: 0,
                    };
                    if let (Some(table), Some(before)) = (table.as_mut(), current.get()) {
                        table.apply(batch, before)?;
                        batch.clear();
                    }
                    if table.is_none() {
                        **table = Some(PageTable::create(&path, about)?);
                    }
                    current.set(Some(about));
                    Ok(())
                },
                |page, data| {
                    let (table, batch) = &mut *cell.borrow_mut();
                    batch.push((page, crate::types::page_hash(page, data)));
                    if batch.len() == 8192
                        && let (Some(table), Some(about)) = (table.as_mut(), current.get())
                    {
                        table.apply(batch, about)?;
                        batch.clear();
                    }
                    Ok(())
                },
            )
            .map_err(|e| match e.source.is_corrupt() {
                true => Ended::Unusable(e.to_string()),
                false => Ended::Rebuild(e.to_string()),
            })?;
            let (Some(mut table), Some(about)) = (table, current.get()) else {
                return Err(Ended::Rebuild("the plan is empty".into()));
            };
            table.apply(&batch, about)?;
            if applied.expected.is_some_and(|e| e != table.checksum()) {
                return Err(Ended::Unusable(
                    "the replica's database checksum does not match its pages".into(),
                ));
            }
            Ok(table)
        })
        .await??;
        Ok(table)
    }
}

/// What a store holds and allows.
struct Found {
    number: usize,
    remote: Option<Owner>,
    entries: BTreeMap<Span, Entry>,
    durable: Option<Txid>,
    top: Option<Txid>,
    /// Go on from what is there: lineage, and whether pages must prove it. `None`: nothing is there.
    rebuild: Option<(Option<Lineage>, bool)>,
    epoch: u32,
}

/// The point before another file came, or before the schema changed unseen, gets a label.
pub(super) fn gap_capture(
    capture: &mut Capture,
    reason: GapReason,
    table: &Path,
    spool: &Spool,
    cuts: &Cuts,
    now: Millis,
) -> Result<GapReport, CaptureError> {
    let before = capture.txid();
    let is_labelled = cuts.set().contains(&before);
    let replaced = matches!(reason, GapReason::FileReplaced | GapReason::FileOverwritten);
    if replaced && before > Txid::FIRST && !is_labelled {
        let label = labels::auto("before-replace", now);
        cuts.add(before, Some(label), &spool.entries(), now)?;
    }
    let report = capture.gap(table, spool, now)?;
    if let Some(captured) = &report.captured {
        cuts.schema_seen(captured, &spool.entries(), now)?;
    }
    Ok(report)
}

/// Where a table is rebuilt: under its own name only once its pages were compared.
fn rebuilt_table(table: &Path) -> PathBuf {
    table.with_extension("rebuilt")
}

fn new_lineage() -> Lineage {
    loop {
        if let Some(lineage) = Lineage::new(rand::random()) {
            return lineage;
        }
    }
}
