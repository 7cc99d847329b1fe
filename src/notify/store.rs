//! A channel's file: written whole, beside the old one, then renamed.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::ledger::Ledger;
use crate::config::NotifyConfig;

/// The file of a channel: by where it sends to, which is not readable from it.
pub(super) fn file(folder: &Path, channel: &NotifyConfig) -> PathBuf {
    let digest = Sha256::digest(channel.channel.identity());
    let name = hex::encode(&digest[..8]);
    folder.join(format!("{}-{name}.json", channel.channel.word()))
}

/// Removes the files of channels that are not configured any more: what waited there is not wanted.
pub(super) fn keep_only(folder: &Path, channels: &[NotifyConfig]) {
    let known: Vec<PathBuf> = channels.iter().map(|c| file(folder, c)).collect();
    // No folder: nothing to remove.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|e| e.path()) {
        let ours = path.extension().is_some_and(|e| e == "json");
        if ours
            && !known.contains(&path)
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::debug!(path = %path.display(), %error, "removing the file of an old channel");
        }
    }
}

/// What was kept; nothing if there is nothing readable.
pub(super) async fn load(file: &Path) -> Ledger {
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || fs::read(path)).await;
    match read {
        Ok(Ok(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(path = %file.display(), %error, "what was told before cannot be read; what lasts is told again");
            Ledger::default()
        }),
        _ => Ledger::default(),
    }
}

/// Keeps it durably, on a blocking thread.
pub(super) fn save(file: &Path, ledger: &Ledger) -> tokio::task::JoinHandle<io::Result<()>> {
    let (path, bytes) = (file.to_owned(), serde_json::to_vec(ledger));
    tokio::task::spawn_blocking(move || {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut draft = tempfile::NamedTempFile::new_in(folder)?;
        draft.write_all(&bytes?)?;
        draft.as_file().sync_all()?;
        draft.persist(&path)?;
        fs::File::open(folder)?.sync_all()
    })
}
