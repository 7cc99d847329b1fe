//! Files: what a target is made of here.

use std::sync::Arc;

use crate::config::{Config, FilesConfig, StoreConfig, StoreKind};
use crate::daemon::fleet::{open_replica, state_path};
use crate::files::{LeftOut, Target};
use crate::store::StoreError;

/// Opens a target in each of its stores.
///
/// # Errors
/// The store's.
pub async fn open(config: &Config, files: &FilesConfig) -> Result<Vec<Target>, StoreError> {
    let mut targets = Vec::new();
    for store in &files.stores {
        targets.push(open_in(config, files, store).await?);
    }
    Ok(targets)
}

/// Opens a target in one of its stores.
///
/// # Errors
/// The store's.
pub async fn open_in(
    config: &Config,
    files: &FilesConfig,
    store: &StoreConfig,
) -> Result<Target, StoreError> {
    Ok(Target {
        config: Arc::new(files.clone()),
        store: open_replica(store, &files.name).await?,
        instance: config.instance.clone(),
        left_out: left_out(config),
        runtime: tokio::runtime::Handle::current(),
    })
}

/// Databases that have a copy of their own, local state, and folders that are stores.
pub fn left_out(config: &Config) -> LeftOut {
    let state = config.targets.iter().filter_map(|t| {
        let path = state_path(config, t);
        path.parent().map(std::path::Path::to_owned)
    });
    let stores = config
        .targets
        .iter()
        .flat_map(|t| &t.options.stores)
        .chain(config.dirs.iter().flat_map(|d| &d.options.stores))
        .chain(config.files.iter().flat_map(|f| &f.stores))
        .filter(|s| s.kind() == StoreKind::File)
        .filter_map(|s| s.url.to_file_path().ok());
    LeftOut {
        databases: config.targets.iter().map(|t| t.path.clone()).collect(),
        folders: state
            .chain(config.state_dir.clone())
            .chain(config.dirs.iter().map(|d| d.dir.join(".lifeboat")))
            .chain(stores)
            .collect(),
    }
}
