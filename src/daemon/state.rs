//! The state directory of one target: who it is, its checksum table, its local files.
//!
//! ```text
//! <state>/identity.json   lineage and epoch; written durably before anything is uploaded under them
//! <state>/pages           checksum table
//! <state>/ltx/<level>/    local files
//! <state>/lock            flock: one process uses a state directory
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::replica::owner::Local;
use crate::types::Lineage;

/// See the module.
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct Identity {
    version: u32,
    lineage: String,
    epoch: u32,
}

impl StateDir {
    /// Opens and locks it. `WouldBlock`: another process has it.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                dir: dir.to_owned(),
                _lock: lock,
            }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(io::ErrorKind::WouldBlock.into()),
            Err(e) => Err(e.into()),
        }
    }

    /// Path of the checksum table.
    pub fn table(&self) -> PathBuf {
        self.dir.join("pages")
    }

    /// Folder of the local files.
    pub fn spool(&self) -> PathBuf {
        self.dir.join("ltx")
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// What was recorded; `None` if nothing was, or if it cannot be read, which is the same: proof is then sought in the store.
    pub fn identity(&self) -> Option<Local> {
        let bytes = fs::read(self.dir.join("identity.json")).ok()?;
        let found: Identity = serde_json::from_slice(&bytes).ok()?;
        Some(Local {
            lineage: Lineage::from_hex(&found.lineage)?,
            epoch: found.epoch,
        })
    }

    /// Records durably.
    pub fn record(&self, local: Local) -> io::Result<()> {
        let body = Identity {
            version: 1,
            lineage: local.lineage.to_string(),
            epoch: local.epoch,
        };
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(&serde_json::to_vec_pretty(&body)?)?;
        file.as_file().sync_all()?;
        file.persist(self.dir.join("identity.json"))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Forgets table and local files, after their history was given up.
    pub fn forget(&self) -> io::Result<()> {
        for path in [self.table(), self.dir.join("identity.json")] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        match fs::remove_dir_all(self.spool()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}
