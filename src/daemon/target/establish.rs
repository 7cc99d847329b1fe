//! Who owns the replica, what is already there, and where capture goes on.

use std::sync::Arc;

use super::{Ended, Target, blocking};
use crate::observe::facts::{State, StoreFacts};
use crate::replica::owner::{self, Local, Owner, Refusal, Verdict};
use crate::replica::spool::Spool;
use crate::replica::upload::Replica;
use crate::restore::plan::{Catalog, Goal};
use crate::restore::{self, apply};
use crate::sqlite::capture::{Capture, Identity, open_table};
use crate::sqlite::guard::{GapReason, Guard};
use crate::sqlite::pages::{Described, PageTable};
use crate::store::{PutMode, Store};
use crate::types::Lineage;

impl Target {
    /// Who owns the replica, and where capture goes on. With trusted local state no store is asked.
    pub(super) async fn establish(
        &mut self,
        guard: Guard,
        spool: &Arc<Spool>,
    ) -> Result<(Capture, Local), Ended> {
        self.board.update(|f| {
            if f.stores.is_empty() {
                let facts = |s: &Store| StoreFacts {
                    store: s.display().to_owned(),
                    ..StoreFacts::default()
                };
                f.stores = self.stores.iter().map(facts).collect();
            }
        });
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
        let store = self.stores[0].clone();
        let remote = owner::read(&store).await?.transpose()?;
        let entries = Replica::list(&store).await?;
        let verdict = match owner::decide(
            remembered,
            remote.as_ref(),
            !entries.is_empty(),
            &self.instance,
        ) {
            Verdict::Continue(local) if entries.is_empty() => {
                // Our owner.json, no file: the first base never arrived.
                return self.begin(guard, spool, local).await;
            }
            Verdict::Continue(local) => Verdict::Rebuild {
                lineage: Some(local.lineage),
                epoch: local.epoch,
                proof: true,
            },
            other => other,
        };
        match verdict {
            Verdict::Refuse(refusal) => Err(refusal.into()),
            Verdict::Fresh | Verdict::Continue(_) => {
                let fresh = Local {
                    lineage: new_lineage(),
                    epoch: 1,
                };
                let local = remote
                    .as_ref()
                    .and_then(|o| {
                        Some(Local {
                            lineage: o.lineage()?,
                            epoch: o.epoch,
                        })
                    })
                    .unwrap_or(fresh);
                if remote.is_none() {
                    let owner =
                        Owner::new(local.lineage, &self.instance, local.epoch, (self.now)());
                    owner::write(&store, &owner, PutMode::Create).await?;
                }
                self.begin(guard, spool, local).await
            }
            Verdict::Rebuild {
                lineage,
                epoch,
                proof,
            } => {
                let local = Local {
                    lineage: lineage.unwrap_or_else(new_lineage),
                    epoch,
                };
                let table = self
                    .rebuild(
                        &store,
                        Catalog::new(entries.into_values()),
                        guard.file_id(),
                        local,
                    )
                    .await?;
                spool.clear()?;
                let result = self.resume(guard, table, local, spool, Some(proof)).await?;
                let owner = Owner::new(local.lineage, &self.instance, local.epoch, (self.now)());
                owner::write(&store, &owner, PutMode::Overwrite).await?;
                Ok(result)
            }
        }
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
        self.state.record(local)?;
        let (table, spool, now) = (self.state.table(), Arc::clone(spool), (self.now)());
        let identity = Identity {
            lineage: local.lineage,
            epoch: local.epoch,
        };
        let capture = blocking(move || {
            let capture = Capture::begin(guard, &table, &spool, identity, now)?;
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
        let mut capture = capture;
        let (capture, report) = blocking(move || {
            let report = capture.gap(&table_path, &spool, now);
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
            .map_err(|e| Ended::Rebuild(e.to_string()))?;
        let open = restore::opener(store);
        let path = self.state.table();
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
            .map_err(|e| Ended::Rebuild(e.to_string()))?;
            let (Some(mut table), Some(about)) = (table, current.get()) else {
                return Err(Ended::Rebuild("the plan is empty".into()));
            };
            table.apply(&batch, about)?;
            if applied.expected.is_some_and(|e| e != table.checksum()) {
                return Err(Ended::Rebuild(
                    "the replica's database checksum does not match its pages".into(),
                ));
            }
            Ok(table)
        })
        .await??;
        Ok(table)
    }
}

fn new_lineage() -> Lineage {
    loop {
        if let Some(lineage) = Lineage::new(rand::random()) {
            return lineage;
        }
    }
}
