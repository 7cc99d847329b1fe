//! The one raw descriptor per database file that this process may hold.
//!
//! POSIX drops every lock that a process holds on a file when it closes **any** descriptor of it. So a database file is opened
//! here only, once per inode, shared by everything that reads it raw, and closed after the last holder's connections. Every holder
//! declares its connections before its [`DbFile`], so that they drop first.
//!
//! The descriptor also carries a `flock`: it does not meet SQLite's `fcntl` locks, holds across containers on one kernel, ends with the
//! process, and makes a second sidecar on the same file refuse.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

type FileId = (u64, u64);

static OPEN: LazyLock<Mutex<HashMap<FileId, Weak<File>>>> = LazyLock::new(Mutex::default);

/// A shared raw descriptor of a database file.
#[derive(Clone, Debug)]
pub struct DbFile {
    file: Arc<File>,
    id: FileId,
}

impl DbFile {
    /// Opens the file, or shares the descriptor that is already open on its inode. `WouldBlock`: another process has its `flock`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, file| file.strong_count() > 0);
        let id = file_id(path)?;
        if let Some(file) = open.get(&id).and_then(Weak::upgrade) {
            return Ok(Self { file, id });
        }
        let file = File::open(path)?;
        let meta = file.metadata()?;
        let id = (meta.dev(), meta.ino());
        if let Some(shared) = open.get(&id).and_then(Weak::upgrade) {
            // Replaced between stat and open by a file that is open here already: closing would drop its locks.
            std::mem::forget(file);
            return Ok(Self { file: shared, id });
        }
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(e) => return Err(e.into()),
        }
        let file = Arc::new(file);
        open.insert(id, Arc::downgrade(&file));
        Ok(Self { file, id })
    }

    /// Device and inode.
    pub fn id(&self) -> FileId {
        self.id
    }
}

impl Deref for DbFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

/// A file that is read like any other. If it turns out to be a database that is attached here, its descriptor stays open: closing it would
/// drop SQLite's locks.
#[derive(Debug)]
pub struct PlainFile(Option<File>);

impl PlainFile {
    /// Takes over a descriptor.
    pub fn new(file: File) -> Self {
        Self(Some(file))
    }
}

impl Deref for PlainFile {
    type Target = File;

    fn deref(&self) -> &File {
        // Taken by `drop` alone.
        self.0.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl Drop for PlainFile {
    fn drop(&mut self) {
        let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = self.0.take() else {
            return;
        };
        let id = file.metadata().map(|m| (m.dev(), m.ino()));
        // What cannot be told apart is not closed either.
        let attached = id.map_or(true, |id| {
            open.get(&id).is_some_and(|held| held.strong_count() > 0)
        });
        if attached {
            std::mem::forget(file);
        }
    }
}

/// Whether the database at `path`, however it is spelled, is attached in this process.
pub fn is_attached(path: &Path) -> bool {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    file_id(path).is_ok_and(|id| open.get(&id).is_some_and(|held| held.strong_count() > 0))
}

/// Device and inode of what is at `path` now, without opening it.
pub fn file_id(path: &Path) -> io::Result<FileId> {
    let meta = std::fs::metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// The process that holds the `flock` of a file, from `/proc/locks`: its id and command line. `None` if the kernel does not say,
/// for example because it lives in another container.
pub fn lock_holder(path: &Path) -> Option<String> {
    let inode = std::fs::metadata(path).ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid: u32 = locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (kind, pid, file) = (words.get(1)?, words.get(4)?, words.get(5)?);
        let its_inode = file.rsplit(':').next()?.parse::<u64>().ok()?;
        (*kind == "FLOCK" && its_inode == inode).then(|| pid.parse().ok())?
    })?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    Some(format!("process {pid} ({})", command.trim()))
}
