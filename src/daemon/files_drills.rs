//! Drills of files, and what their records say.

use jiff::Timestamp;

use super::files::open_in;
use super::fleet::{Fleet, open_replica};
use crate::config::Config;
use crate::files::{self, FilesError};
use crate::observe::facts::{Board, DrillFacts};
use crate::store::Store;
use crate::types::Millis;

/// A sample of each repository.
pub(super) async fn all(config: &Config, fleet: &Fleet, board: &Board) {
    for files in &config.files {
        for store in &files.stores {
            let _permit = fleet.heavy().await;
            match open_in(config, files, store).await {
                Ok(target) => one(&files.name, target, board).await,
                Err(error) => {
                    tracing::warn!(target_name = files.name, %error, "no drill");
                }
            }
        }
    }
}

async fn one(name: &str, target: files::Target, board: &Board) {
    let store = target.store.clone();
    let work = move || {
        let scratch = tempfile::tempdir().map_err(|source| FilesError::Io {
            path: std::env::temp_dir(),
            source,
        })?;
        files::nicely(|| files::drill(&target, scratch.path()))
    };
    let store_name = store.display();
    match tokio::task::spawn_blocking(work).await {
        Err(error) => tracing::error!(target_name = name, %error, "the drill broke off"),
        Ok(Ok(drill)) => tracing::info!(
            target_name = name,
            store = store_name,
            files = drill.files,
            seconds = drill.seconds,
            "drill: restored and right"
        ),
        Ok(Err(error @ FilesError::Damaged { .. })) => tracing::error!(
            target_name = name,
            store = store_name,
            failure = %error,
            hint = "`lifeboat verify` names what is damaged",
            "drill failed"
        ),
        Ok(Err(FilesError::NoPoint(error) | FilesError::NoRepository(error))) => {
            tracing::info!(target_name = name, %error, "nothing to drill yet");
        }
        Ok(Err(error)) => {
            let hint = error
                .hint()
                .unwrap_or_else(|| "it is tried again at the next scheduled time".into());
            tracing::warn!(target_name = name, store = store_name, %error, hint, "no drill");
        }
    }
    // A failure is recorded, too.
    recorded(name, &store, board).await;
}

/// The last record; returns when that drill began.
async fn recorded(name: &str, store: &Store, board: &Board) -> Option<Timestamp> {
    match files::drills(store, 1).await.as_deref() {
        Ok([drill, ..]) => {
            let facts = DrillFacts {
                at: Millis(drill.time.as_millisecond()),
                ok: drill.findings.is_empty(),
                failure: drill.failure(),
                restore_seconds: drill.seconds,
                data_age_seconds: drill.data_age().as_secs_f64(),
            };
            board.update_files(name, &store.display(), |f| f.drill = Some(facts));
            Some(drill.time)
        }
        Ok([]) => None,
        Err(error) => {
            tracing::debug!(target_name = name, %error, "cannot read the last drill");
            None
        }
    }
}

/// What the stores remember of them; returns when the oldest of the last drills began.
pub(super) async fn remembered(
    config: &Config,
    board: &Board,
    wanted: &impl Fn(&str) -> bool,
) -> Option<Timestamp> {
    let mut oldest: Option<Timestamp> = None;
    for files in config.files.iter().filter(|f| wanted(&f.name)) {
        for store in &files.stores {
            let Ok(root) = open_replica(store, &files.name).await else {
                continue;
            };
            if let Some(at) = recorded(&files.name, &root, board).await {
                oldest = Some(oldest.map_or(at, |o| o.min(at)));
            }
        }
    }
    oldest
}
