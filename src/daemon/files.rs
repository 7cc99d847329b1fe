//! Files: what a target is made of here.

use std::sync::Arc;

use crate::config::{Config, FilesConfig, StoreConfig, StoreKind};
use crate::daemon::fleet::{open_replica, state_path};
use crate::files::{LeftOut, Target};
use crate::store::{Store, StoreError};

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

/// How messages name the place of a target in a store, or of something below it, also if that cannot be opened.
pub fn place(store: &StoreConfig, name: &str, below: Option<&str>) -> String {
    let mut place = Store::display_url(&store.url);
    let name = Some(name).filter(|_| !store.prefix_is_exact);
    for part in name.into_iter().chain(below) {
        place.push('/');
        place.push_str(part);
    }
    let endpoint = store.endpoint.as_ref().filter(|_| store.tells_endpoint);
    place + &endpoint.map_or_else(String::new, |e| Store::endpoint_shown(e))
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
