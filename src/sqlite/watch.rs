//! Wakes captures when a WAL is written: inotify, one watch per WAL, armed once at a time.
//!
//! A one-shot watch means that a busy app costs one wake-up per capture, not one per commit. It may fire **before** a commit is in the
//! WAL-index (the frames are written first), and is lost when the WAL is replaced: so every sleeper also polls.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use inotify::{Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;

/// Bytes for events: each is 16 bytes and a name that one-shot file watches do not have.
const EVENT_BUFFER_BYTES: usize = 16 << 10;

/// One inotify instance for all databases.
#[derive(Debug)]
pub struct Watcher {
    watches: Mutex<Watches>,
    sleepers: Arc<Mutex<HashMap<WatchDescriptor, Arc<Notify>>>>,
}

impl Watcher {
    /// Starts the task that hands events out. Needs a runtime.
    pub fn start() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let sleepers: Arc<Mutex<HashMap<WatchDescriptor, Arc<Notify>>>> = Arc::default();
        let shared = Arc::clone(&sleepers);
        let mut events = inotify.into_event_stream(vec![0; EVENT_BUFFER_BYTES])?;
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let Ok(event) = event else { continue };
                let sleeper = shared
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&event.wd);
                if let Some(sleeper) = sleeper {
                    sleeper.notify_one();
                }
            }
        });
        Ok(Self {
            watches: Mutex::new(watches),
            sleepers,
        })
    }

    /// Notifies `sleeper` at the next write to the file at `wal`. Check for what is there already **after** this.
    pub fn arm(&self, wal: &Path, sleeper: &Arc<Notify>) -> io::Result<()> {
        let mask =
            WatchMask::MODIFY | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONESHOT;
        // The map is held over both steps: the event must find its sleeper.
        let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = self
            .watches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(wal, mask)?;
        sleepers.insert(watch, Arc::clone(sleeper));
        Ok(())
    }
}
