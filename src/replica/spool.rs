//! LTX files kept locally: not uploaded yet, or not rolled up yet.
//!
//! Invariants
//! - A file appears under its name only complete and fsynced, and its directory entry is fsynced with it. What a crash leaves is a
//!   `.tmp` file, removed at the next open.
//! - One process writes (the state directory's lock); capture and compaction create, compaction and upload delete.
//! - A file is deleted only when a local file of a higher level holds all of it, or when every store has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::ltx;
use crate::types::{Entry, Level, Millis, Span, Txid};

/// A local file that cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file system.
    #[error("local LTX file: {0}")]
    Io(#[from] io::Error),
    /// Its bytes.
    #[error("local LTX file: {0}")]
    Ltx(#[from] ltx::Error),
}

/// The local LTX files of one target. Shared between capture, compaction and uploads.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    entries: Mutex<BTreeMap<Span, Entry>>,
    // Which stores have a file: one bit each.
    acknowledged: Mutex<BTreeMap<Span, u64>>,
    // What is durable in each store, eight bytes each; 0 unknown. Not fsynced: what is lost costs an upload, never data.
    positions: File,
}

/// A file in the making. Dropped without [`Spool::keep`] it leaves nothing.
#[derive(Debug)]
pub struct Draft {
    file: tempfile::NamedTempFile,
    target: PathBuf,
    span: Span,
}

impl Spool {
    /// Opens `<dir>/<level>/<min>-<max>.ltx`, creating the folders, and removes what a crash left half-written.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let mut entries = BTreeMap::new();
        for level in (0..9).filter_map(Level::new) {
            let folder = dir.join(level.get().to_string());
            fs::create_dir_all(&folder)?;
            for item in fs::read_dir(&folder)? {
                let item = item?;
                let name = item.file_name();
                let Some(span) = name.to_str().and_then(|n| Span::parse_file_name(level, n)) else {
                    fs::remove_file(item.path())?;
                    continue;
                };
                // A header that does not read cannot be uploaded or merged; the gap capture makes up for it.
                match read_header(&item.path()) {
                    Ok(header) => {
                        let size = item.metadata()?.len();
                        entries.insert(
                            span,
                            Entry {
                                span,
                                size,
                                created: header.timestamp,
                            },
                        );
                    }
                    Err(error) => {
                        tracing::warn!(file = %item.path().display(), %error, "removing an unreadable local LTX file");
                        fs::remove_file(item.path())?;
                    }
                }
            }
        }
        let positions = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("positions"))?;
        Ok(Self {
            dir: dir.to_owned(),
            entries: Mutex::new(entries),
            acknowledged: Mutex::default(),
            positions,
        })
    }

    /// The folder of all levels.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts a file.
    pub fn draft(&self, span: Span) -> io::Result<Draft> {
        let folder = self.dir.join(span.level().get().to_string());
        let file = tempfile::Builder::new()
            .prefix(".")
            .suffix(".tmp")
            .tempfile_in(&folder)?;
        Ok(Draft {
            file,
            target: folder.join(span.file_name()),
            span,
        })
    }

    /// Makes a draft durable and visible.
    pub fn keep(&self, draft: Draft, created: Millis) -> io::Result<Entry> {
        draft.file.as_file().sync_all()?;
        let size = draft.file.as_file().metadata()?.len();
        draft.file.persist(&draft.target)?;
        if let Some(folder) = draft.target.parent() {
            File::open(folder)?.sync_all()?;
        }
        let entry = Entry {
            span: draft.span,
            size,
            created,
        };
        self.lock().insert(draft.span, entry);
        Ok(entry)
    }

    /// Where a file is.
    pub fn path(&self, span: Span) -> PathBuf {
        self.dir
            .join(span.level().get().to_string())
            .join(span.file_name())
    }

    /// Every file, by level and TXID.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().values().copied().collect()
    }

    /// Bytes in all files.
    pub fn bytes(&self) -> u64 {
        self.lock().values().map(|e| e.size).sum()
    }

    /// The last TXID of any file.
    pub fn last(&self) -> Option<Txid> {
        self.lock().keys().map(|s| (*s).max()).max()
    }

    /// Notes that a store has a file. `store` is its number, below 64.
    pub fn acknowledge(&self, span: Span, store: u32) {
        let mut seen = self
            .acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *seen.entry(span).or_default() |= 1 << store;
    }

    /// Every one of the first `stores` stores has the file.
    pub fn acknowledged_by_all(&self, span: Span, stores: u32) -> bool {
        let seen = self
            .acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let all = u64::MAX.checked_shr(64 - stores).unwrap_or(0);
        seen.get(&span).is_some_and(|bits| bits & all == all)
    }

    /// Notes what is durable in a store: roll-ups end there, so that after an outage the next file follows it exactly, which proves that it
    /// continues what the store has.
    pub fn set_position(&self, store: u32, durable: Option<Txid>) -> io::Result<()> {
        let bytes = durable.map_or(0, Txid::get).to_le_bytes();
        self.positions.write_all_at(&bytes, u64::from(store) * 8)
    }

    /// Where no roll-up may reach across.
    pub fn cuts(&self) -> BTreeSet<Txid> {
        let mut bytes = [0; 64 * 8];
        // A file that cannot be read has no cuts: see `positions`.
        let read = self.positions.read_at(&mut bytes, 0).unwrap_or(0);
        let slots = bytes[..read].as_chunks::<8>().0;
        let txids = slots.iter().map(|slot| u64::from_le_bytes(*slot));
        txids.filter_map(Txid::new).collect()
    }

    /// Deletes a file; a missing one is fine.
    pub fn remove(&self, span: Span) -> io::Result<()> {
        self.lock().remove(&span);
        self.acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&span);
        match fs::remove_file(self.path(span)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Deletes every file: the history goes on by a gap capture or a new base.
    pub fn clear(&self) -> io::Result<()> {
        for entry in self.entries() {
            self.remove(entry.span)?;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Span, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Draft {
    /// Where to write.
    pub fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }
}

/// The header of a local LTX file.
pub fn read_header(path: &Path) -> Result<ltx::Header, SpoolError> {
    use std::io::Read;
    let mut bytes = [0; ltx::Header::LEN];
    File::open(path)?.read_exact(&mut bytes)?;
    Ok(ltx::Header::decode(&bytes)?)
}
