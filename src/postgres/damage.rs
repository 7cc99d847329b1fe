//! What is known of dumps that do not restore, without reading one.

use std::collections::BTreeMap;

use super::manifest::{FOLDER, read_all};
use super::{Manifest, PostgresError, ReadBacks};
use crate::store::Store;

/// A dump, and why it cannot be restored, as far as is known.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The dump.
    pub manifest: Manifest,
    /// `None` if nothing speaks against it.
    pub damage: Option<String>,
}

/// Every dump with a manifest, oldest first, held against the objects that the store lists and the dumps that reading back found damaged.
///
/// # Errors
/// The store's.
pub async fn listed(store: &Store) -> Result<Vec<Listed>, PostgresError> {
    let objects = store.list(FOLDER).await?;
    let sizes: BTreeMap<&str, u64> = objects.iter().map(|o| (o.key.as_str(), o.size)).collect();
    let found = read_all(store, &objects).await?;
    let read = ReadBacks::load(store).await?;
    let judge = |manifest: Manifest| Listed {
        damage: missing(&manifest, &sizes).or_else(|| {
            let bad = read.damaged.contains(&manifest.id);
            bad.then(|| "it was read back and is damaged".to_owned())
        }),
        manifest,
    };
    Ok(found.dumps.into_iter().map(judge).collect())
}

/// What a listing lacks of a dump.
pub(super) fn missing(manifest: &Manifest, sizes: &BTreeMap<&str, u64>) -> Option<String> {
    let globals = manifest
        .globals
        .as_ref()
        .map(|g| (manifest.globals_key(), g.size));
    let parts = std::iter::once((manifest.dump_key(), manifest.dump.size)).chain(globals);
    parts
        .into_iter()
        .find_map(|(key, size)| match sizes.get(key.as_str()) {
            Some(found) if *found == size => None,
            Some(found) => Some(format!("the store holds {found} of {size} bytes of it")),
            None => Some(format!("{key} is gone")),
        })
}
