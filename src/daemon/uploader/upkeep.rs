//! What an uploader does beside uploading: retention, labels that Lifeboat sets by itself, and looking whether all is still there.

use super::Uploader;
use super::meanwhile::Audits;
use crate::daemon::cuts::WantedLabel;
use crate::labels::{self, Label, LabelError, Pin};
use crate::replica::owner::Refusal;
use crate::replica::upload::{Replica, UploadError};
use crate::retention::{self, PruneError};
use crate::types::Txid;

impl Uploader {
    /// Costs one request a day if there is nothing to delete.
    pub(super) async fn prune(
        &self,
        replica: &mut Replica,
        pins: &mut retention::Pins,
    ) -> Result<(), UploadError> {
        let now = (self.now)();
        pins.pending = self.cuts.pending(now);
        let result = retention::run(replica, &self.policy, pins, now).await;
        self.facts(|f| f.pruned_at = Some(now));
        // Nothing may be called durable by what someone else sent.
        if let Some(top) = replica.stranger() {
            let captured = *self.captured.borrow();
            return Err(Refusal::Diverged { top, captured }.into());
        }
        match result {
            Ok(done) => {
                for (txid, label) in &done.lost {
                    tracing::error!(target_name = self.name, store = self.store.display(), label, %txid, "a label is not restorable any more; nothing newer is affected");
                }
                self.facts(|f| {
                    f.labels_lost = done.lost.len() as u64;
                    f.retention_problem = None;
                    f.held = done.held;
                });
                if done.objects == 0 && done.labels == 0 {
                    return Ok(());
                }
                tracing::info!(
                    target_name = self.name,
                    store = self.store.display(),
                    objects = done.objects,
                    bytes = done.bytes,
                    labels = done.labels,
                    "retention"
                );
                self.facts(|f| {
                    f.deleted += done.objects;
                });
                self.publish(replica);
                Ok(())
            }
            Err(PruneError::Label(error)) => {
                self.facts(|f| f.refusals += 1);
                self.retention_failed(
                    &error.to_string(),
                    "look at the object; only if it is beyond repair, delete it",
                );
                Ok(())
            }
            Err(PruneError::Refused(refused)) => {
                self.facts(|f| f.refusals += 1);
                self.retention_failed(&refused.to_string(), &refused.hint());
                Ok(())
            }
            Err(PruneError::Upload(UploadError::Refused(e))) => Err(e.into()),
            // Uploads go on: a key that may not delete is no reason to stop them.
            Err(PruneError::Upload(e)) => {
                let hint = e.hint().unwrap_or_else(|| "it is tried again".into());
                self.retention_failed(&e.to_string(), &hint);
                Ok(())
            }
        }
    }

    fn retention_failed(&self, why: &str, hint: &str) {
        tracing::error!(
            target_name = self.name,
            store = self.store.display(),
            hint,
            "retention deletes nothing: {why}"
        );
        self.facts(|f| {
            f.retention_problem = Some(format!("retention deletes nothing: {why}; hint: {hint}"));
        });
    }

    /// Is what was uploaded still there? What became unsafe by it is uploaded again by the next step.
    pub(super) async fn audit_if_due(
        &self,
        replica: &mut Replica,
        audits: &mut Audits,
    ) -> Result<(), UploadError> {
        if let Some(round) = audits.take(self.check_every) {
            self.audit(replica, round).await?;
            self.publish(replica);
        }
        Ok(())
    }

    async fn audit(&self, replica: &mut Replica, round: usize) -> Result<(), UploadError> {
        let missing = replica.audit(round).await?;
        if missing.objects > 0 {
            let text = |t: Option<Txid>| t.map_or_else(|| "nothing".into(), |t| t.to_string());
            tracing::error!(
                target_name = self.name,
                store = self.store.display(),
                objects = missing.objects,
                durable_before = text(missing.before),
                durable_now = text(missing.after),
                hint = "look for a lifecycle rule or another program that deletes there",
                "objects are gone from the store that were not deleted by retention"
            );
            self.facts(|f| f.missing += missing.objects);
        }
        Ok(())
    }

    /// Labels that Lifeboat sets by itself, once their point is here.
    pub(super) async fn write_labels(&self, replica: &Replica) -> Result<(), UploadError> {
        for wanted in self.cuts.wanted(self.number) {
            if replica.durable().is_none_or(|d| d < wanted.txid) {
                continue;
            }
            if replica
                .catalog()
                .keys()
                .any(|span| (*span).max() == wanted.txid)
            {
                self.write_label(&wanted).await?;
            } else {
                tracing::warn!(
                    target_name = self.name,
                    store = self.store.display(),
                    label = wanted.label,
                    "the point cannot be labelled: this store got past it"
                );
            }
            self.cuts.done(&wanted, self.number, self.stores)?;
        }
        Ok(())
    }

    async fn write_label(&self, wanted: &WantedLabel) -> Result<(), UploadError> {
        let label = Label {
            format: 1,
            label: wanted.label.clone(),
            at: wanted.at.to_string(),
            pin: Pin::sqlite(wanted.txid),
            version: None,
            instance: self.instance.clone(),
            set: None,
            written: None,
        };
        match labels::create(&wanted.label, &[(&self.store, label)]).await {
            Ok(name) => {
                tracing::info!(target_name = self.name, store = self.store.display(), label = name, txid = %wanted.txid, "labelled");
                Ok(())
            }
            Err(LabelError::Store(e)) => Err(e.into()),
            Err(error) => {
                tracing::warn!(target_name = self.name, store = self.store.display(), label = wanted.label, %error, "cannot label the point");
                Ok(())
            }
        }
    }
}
