use std::collections::BTreeMap;

use serde::Serialize;
use thiserror::Error;

use super::{Label, numbered};
use crate::replica::layout::{LABELS_PREFIX, SETS_PREFIX, label_key, parse_label_key, set_key};
use crate::store::{PutMode, Store, StoreError};
use crate::types::Millis;

/// Labels read at once.
const READS_AT_ONCE: usize = 16;
/// A name that is taken so often is a loop in somebody's hook.
const NUMBER_MAX: u32 = 9999;

/// A label as it is written. Readers pass over the nonce.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    label: &'a Label,
    /// Of one call: an object that is the same up to the nonce is ours, however like it another process's label is.
    nonce: &'a str,
}

/// Why a label was not written or read.
#[derive(Debug, Error)]
pub enum LabelError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object is not what it should be.
    #[error("the label {key} in {store} is damaged: {why}")]
    Damaged {
        /// Its key.
        key: String,
        /// Where.
        store: String,
        /// Why.
        why: String,
    },
    /// Every number is taken.
    #[error("the label \"{0}\" was used {NUMBER_MAX} times")]
    Used(String),
}

/// Labels that were read before: objects never change, so each is read once.
#[derive(Debug, Default)]
pub struct Cache(BTreeMap<String, Label>);

impl Cache {
    /// Every label of a target. Costs a listing, and a read for each label that is new.
    pub async fn list(&mut self, store: &Store) -> Result<Vec<Label>, LabelError> {
        use futures::{StreamExt, TryStreamExt};
        let there: BTreeMap<String, Millis> = store
            .list(LABELS_PREFIX)
            .await?
            .into_iter()
            .filter(|o| parse_label_key(&o.key).is_some())
            .map(|o| (o.key, o.modified))
            .collect();
        self.0.retain(|key, _| there.contains_key(key));
        let missing: Vec<String> = there
            .keys()
            .filter(|key| !self.0.contains_key(*key))
            .cloned()
            .collect();
        let reads = missing
            .into_iter()
            .map(|key| async move { read(store, key).await });
        let read: Vec<Option<(String, Label)>> = futures::stream::iter(reads)
            .buffer_unordered(READS_AT_ONCE)
            .try_collect()
            .await?;
        self.0.extend(read.into_iter().flatten());
        for (key, label) in &mut self.0 {
            label.written = there.get(key).copied();
        }
        let mut labels: Vec<Label> = self.0.values().cloned().collect();
        labels.sort_by_key(|l| (l.taken(), l.base().1));
        Ok(labels)
    }
}

/// Every label of a target, oldest first.
pub async fn list(store: &Store) -> Result<Vec<Label>, LabelError> {
    Cache::default().list(store).await
}

async fn read(store: &Store, key: String) -> Result<Option<(String, Label)>, LabelError> {
    let bytes = match store.get(&key).await {
        Ok(bytes) => bytes,
        // Deleted since the listing.
        Err(e) if e.is_not_found() => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    // A label that cannot be read may pin anything: nothing may be deleted while it is there.
    let label = serde_json::from_slice(&bytes).map_err(|e| LabelError::Damaged {
        key: key.clone(),
        store: store.display(),
        why: e.to_string(),
    })?;
    Ok(Some((key, label)))
}

/// The first number from `from` on that no label of this target has.
pub(super) async fn free_number(store: &Store, base: &str, from: u32) -> Result<u32, LabelError> {
    let keys: Vec<String> = store
        .list(LABELS_PREFIX)
        .await?
        .into_iter()
        .map(|o| o.key)
        .collect();
    (from..=NUMBER_MAX)
        .find(|n| !keys.contains(&label_key(&numbered(base, *n))))
        .ok_or_else(|| LabelError::Used(base.to_owned()))
}

/// Writes labels, each into its store, all under one name: the first number that is free in all of them. Returns the name.
pub async fn create(base: &str, labels: &[(&Store, Label)]) -> Result<String, LabelError> {
    let nonce = format!("{:016x}", rand::random::<u64>());
    let mut number = 1;
    for (store, _) in labels {
        number = free_number(store, base, number).await?;
    }
    loop {
        let name = numbered(base, number);
        match create_as(&name, labels, &nonce).await {
            Ok(()) => return Ok(name),
            // Someone was faster: both keep what they wrote, and one of them takes the next number.
            Err(LabelError::Store(e)) if e.is_exists() && number < NUMBER_MAX => number += 1,
            Err(e) => return Err(e),
        }
    }
}

async fn create_as(name: &str, labels: &[(&Store, Label)], nonce: &str) -> Result<(), LabelError> {
    let key = label_key(name);
    for (done, (store, label)) in labels.iter().enumerate() {
        let label = Label {
            label: name.to_owned(),
            ..label.clone()
        };
        let written = Written {
            label: &label,
            nonce,
        };
        let body = serde_json::to_vec_pretty(&written).unwrap_or_default();
        match store
            .put(&key, body.clone().into(), PutMode::Create, None)
            .await
        {
            Ok(()) => {}
            // Ours, if the answer to a first try was lost.
            Err(e) if e.is_exists() && store.get(&key).await.is_ok_and(|b| b == body) => {}
            Err(e) => {
                for (store, _) in &labels[..done] {
                    // A label too many harms nobody.
                    let _ = store.delete(&key).await;
                }
                return Err(e.into());
            }
        }
    }
    Ok(())
}

/// Deletes a label by its full name.
pub async fn delete_named(store: &Store, name: &str) -> Result<(), StoreError> {
    store.delete(&label_key(name)).await
}

/// Deletes a label, and the manifest of its set if this target holds it.
pub async fn delete(store: &Store, label: &Label) -> Result<(), StoreError> {
    if label.set.is_some() {
        store.delete(&set_key(&label.label)).await?;
    }
    store.delete(&label_key(&label.label)).await
}

/// Writes the manifest of a set. Last of all.
pub async fn create_set(
    home: &Store,
    name: &str,
    manifest: &serde_json::Value,
) -> Result<(), StoreError> {
    let body = serde_json::to_vec_pretty(manifest).unwrap_or_default();
    let key = set_key(name);
    match home.put(&key, body.into(), PutMode::Create, None).await {
        // The name of a set is the name of a label that was just created: a manifest that is there is an old label's, ended since.
        Err(e) if e.is_exists() => {
            let body = serde_json::to_vec_pretty(manifest).unwrap_or_default();
            home.put(&key, body.into(), PutMode::Overwrite, None).await
        }
        other => other,
    }
}

/// The manifest of a set; `None` if the snapshot did not finish.
pub async fn read_set(home: &Store, name: &str) -> Result<Option<serde_json::Value>, LabelError> {
    match home.get(&set_key(name)).await {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| LabelError::Damaged {
                key: format!("{SETS_PREFIX}/{name}"),
                store: home.display(),
                why: e.to_string(),
            }),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Pin;
    use crate::store::StoreSpec;
    use crate::types::Txid;

    fn label(txid: u64) -> Label {
        Label {
            format: 1,
            label: String::new(),
            at: Millis(1).to_string(),
            pin: Pin::sqlite(Txid::new(txid).unwrap()),
            version: None,
            instance: "web1".into(),
            set: None,
            written: None,
        }
    }

    #[tokio::test]
    async fn labels_append_and_share_one_name() {
        let root = Store::open(&StoreSpec::from_text("memory://").unwrap())
            .await
            .unwrap();
        let (a, b) = (root.child("a"), root.child("b"));
        let odd = "über/../v 1";
        assert_eq!(create(odd, &[(&a, label(1))]).await.unwrap(), odd);
        let both = [(&a, label(2)), (&b, label(3))];
        let second = create(odd, &both).await.unwrap();
        assert_eq!(second, format!("{odd}#2"), "free in both");
        let there: Vec<String> = list(&a)
            .await
            .unwrap()
            .into_iter()
            .map(|l| l.label)
            .collect();
        assert_eq!(there, [odd.to_owned(), second.clone()]);
        assert_eq!(list(&b).await.unwrap().len(), 1);
        let mine = list(&b).await.unwrap().remove(0);
        assert_eq!(mine.at(), Millis(1), "a clock that was very slow");
        let day = 86_400_000;
        let now = Millis(jiff::Timestamp::now().as_millisecond());
        let (soon, late) = (Millis(now.0 + day), Millis(now.0 + 91 * day));
        let rules = crate::labels::Rules::default();
        let ended = |now| crate::labels::expired(std::slice::from_ref(&mine), &rules, now).len();
        assert_eq!(
            (ended(soon), ended(late)),
            (0, 1),
            "old by the store's time"
        );
        delete(&a, &list(&a).await.unwrap()[0]).await.unwrap();
        assert_eq!(list(&a).await.unwrap().len(), 1);
        b.put(
            "lifeboat/labels/bad.json",
            "{".into(),
            PutMode::Create,
            None,
        )
        .await
        .unwrap();
        assert!(matches!(list(&b).await, Err(LabelError::Damaged { .. })));
    }

    /// Two processes label the same point at the same moment, with the same words: only one has the name.
    #[tokio::test]
    async fn a_label_of_another_process_is_not_ours() {
        let store = Store::open(&StoreSpec::from_text("memory://").unwrap())
            .await
            .unwrap();
        let mine = [(&store, label(1))];
        create_as("race", &mine, "mine").await.unwrap();
        // The answer to a first try was lost.
        create_as("race", &mine, "mine").await.unwrap();
        let error = create_as("race", &mine, "theirs").await.unwrap_err();
        assert!(matches!(error, LabelError::Store(e) if e.is_exists()));
        assert_eq!(create("race", &mine).await.unwrap(), "race#2");
        assert_eq!(list(&store).await.unwrap().len(), 2);
    }
}
