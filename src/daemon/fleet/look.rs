//! Databases that appear in folders.

use super::{Fleet, FleetError};
use crate::config::{self, DirConfig, TargetConfig};

impl Fleet {
    /// Starts a target for each database that appeared in a watched folder. Returns those that could not be started, and why: whoever speaks of
    /// every target must name them.
    pub async fn look(&self) -> Vec<(String, FleetError)> {
        self.look_into(|dir| dir.watch).await
    }

    /// The same in every folder of the configuration: who asks for all targets means what is there now, watched or not.
    pub async fn look_everywhere(&self) -> Vec<(String, FleetError)> {
        self.look_into(|_| true).await
    }

    async fn look_into(&self, is_meant: impl Fn(&DirConfig) -> bool) -> Vec<(String, FleetError)> {
        let mut failed = Vec::new();
        // Closed by a stop: nothing is started any more.
        let Ok(_turn) = self.looking.acquire().await else {
            return failed;
        };
        for dir in self.config.dirs.iter().filter(|d| is_meant(d)) {
            for target in found(dir, self.targets().await).await {
                tracing::info!(target_name = target.name, path = %target.path.display(), "a database appeared");
                if let Err(error) = self.add(&target).await {
                    tracing::warn!(target_name = target.name, %error, hint = error.hint(), "cannot start it; it is tried again");
                    self.not_started(&target, &error);
                    failed.push((target.name, error));
                }
            }
        }
        failed
    }
}

async fn found(dir: &DirConfig, known: Vec<TargetConfig>) -> Vec<TargetConfig> {
    let (dir, folder) = (dir.clone(), dir.dir.clone());
    match tokio::task::spawn_blocking(move || config::discover(&dir, &known)).await {
        Ok(Ok(found)) => found.taken,
        Ok(Err(error)) => {
            tracing::warn!(dir = %folder.display(), %error, "cannot look for databases");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}
