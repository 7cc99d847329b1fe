//! Drills of files, and what their records say.

use jiff::Timestamp;

use super::drills::{Remembered, no_drill};
use super::files::{open_in, place};
use super::fleet::{Fleet, open_replica};
use crate::config::Config;
use crate::files::{self, FilesError};
use crate::observe::facts::{Board, DrillFacts, note_drill};
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
                    let problem = no_drill(&error, error.hint());
                    let place = place(store, &files.name, None);
                    board.update_files(&files.name, &place, |f| f.drill_problem = Some(problem));
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
        files::drill(&target, scratch.path())
    };
    let store_name = store.display();
    let blocked = |problem| {
        board.update_files(name, &store.display(), |f| f.drill_problem = Some(problem));
    };
    match tokio::task::spawn_blocking(work).await {
        Err(error) => {
            tracing::error!(target_name = name, %error, "the drill broke off");
            blocked(no_drill(&error, None));
        }
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
            blocked(no_drill(&error, Some(hint)));
        }
    }
    // A failure is recorded, too.
    if let Err(error) = recorded(name, &store, board).await {
        tracing::debug!(target_name = name, error, "cannot read the last drill");
    }
}

/// The last record; returns when that drill began.
async fn recorded(name: &str, store: &Store, board: &Board) -> Result<Option<Timestamp>, String> {
    let drills = files::drills(store, 1).await.map_err(|e| e.to_string())?;
    let Some(drill) = drills.first() else {
        return Ok(None);
    };
    let facts = DrillFacts {
        at: Millis(drill.time.as_millisecond()),
        ok: drill.findings.is_empty(),
        failure: drill.failure(),
        restore_seconds: drill.seconds,
        data_age_seconds: drill.data_age().as_secs_f64(),
    };
    board.update_files(name, &store.display(), |f| {
        note_drill(&mut f.drill, &mut f.drill_problem, facts);
    });
    Ok(Some(drill.time))
}

/// What the stores remember of them.
pub(super) async fn remembered(
    config: &Config,
    board: &Board,
    wanted: &impl Fn(&str) -> bool,
    all: &mut Remembered,
) {
    for files in config.files.iter().filter(|f| wanted(&f.name)) {
        for store in &files.stores {
            let read = match open_replica(store, &files.name).await {
                Ok(root) => recorded(&files.name, &root, board).await,
                Err(error) => Err(error.to_string()),
            };
            all.note(&files.name, read);
        }
    }
}
