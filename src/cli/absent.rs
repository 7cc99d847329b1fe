//! Databases that a store has and a configured folder has not: on a new server the folder is empty, and tells nothing.

use super::Failure;
use crate::config::{self, Config};
use crate::daemon::fleet::open_replica;
use crate::replica::owner;

/// Adds them to the targets, unless `wanted` is one that is there: each is a replica in one of the folder's stores whose owner wrote down a
/// path in that folder. A store that does not answer is a failure: it may have what is missing.
pub(super) async fn with_absent(
    mut config: Config,
    wanted: Option<&str>,
) -> Result<Config, Failure> {
    let is = |name: &str| wanted == Some(name);
    let known = config
        .targets
        .iter()
        .any(|t| is(&t.name) || t.path.to_str().is_some_and(is));
    let elsewhere = config.files.iter().any(|f| is(&f.name))
        || wanted.is_some_and(|name| super::postgres::is_target(&config, name));
    if known || elsewhere {
        return Ok(config);
    }
    for dir in &config.dirs {
        for store in &dir.options.stores {
            // The root of all replicas: with an empty name nothing is appended.
            let root = open_replica(store, "").await?;
            for folder in root.folders().await? {
                let Some(found) = owner::read(&root.child(&folder)).await? else {
                    continue;
                };
                let owner =
                    found.map_err(|damage| Failure::new(1, &damage, Some(damage.hint())))?;
                let target = owner.database.and_then(|path| config::absent(dir, &path));
                let new = target.filter(|t| {
                    let taken =
                        |other: &config::TargetConfig| other.name == t.name || other.path == t.path;
                    !config.targets.iter().any(taken)
                });
                config.targets.extend(new);
            }
        }
    }
    Ok(config)
}
