//! Space of the volumes that databases and local state lie on, and the host's memory and processors. Read from the system, nothing is opened
//! that an app uses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use std::os::unix::fs::MetadataExt;

use super::services::Service;
use crate::config::MinFree;

/// One mounted file system.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// A folder on it: the first that was asked for.
    pub path: PathBuf,
    /// Bytes of the file system.
    pub total_bytes: u64,
    /// Bytes that an ordinary user can still write.
    pub free_bytes: u64,
    /// Inodes of the file system; 0 if it has no fixed number.
    pub inodes: u64,
    /// Inodes that are free.
    pub free_inodes: u64,
}

/// A volume is low at this many times `min-free`: one and a half, so that there is time to act before the spool is dropped.
const LOW: (u64, u64) = (3, 2);

impl Volume {
    /// What to say of it if little is free. `min_free` is in bytes of this volume.
    pub fn trouble(&self, min_free: u64) -> Option<String> {
        (self.free_bytes < min_free / LOW.1 * LOW.0).then(|| {
            format!(
                "{} MiB of {} MiB are free; below {} MiB the spool is dropped",
                self.free_bytes >> 20,
                self.total_bytes >> 20,
                min_free >> 20
            )
        })
    }
}

/// The next step.
pub const MAKE_ROOM: &str = "make room; captures and uploads go on";

/// Those that have little room, as services to show: copies are safe as long as they have any.
pub fn low_services(volumes: &[Volume], min_free: MinFree) -> Vec<Service> {
    let all = volumes.iter().enumerate();
    let low = all.filter_map(|(n, volume)| {
        let warning = volume.trouble(min_free.bytes_of(volume.total_bytes))?;
        Some(Service {
            kind: "volume",
            // Its path is nothing for those without the token.
            name: format!("volume {}", n + 1),
            address: volume.path.display().to_string(),
            state: "up",
            since: None,
            reasons: Vec::new(),
            warnings: vec![warning],
            hints: vec![MAKE_ROOM.into()],
        })
    });
    low.collect()
}

/// The file systems of these folders, each once. Folders that are not there are left out.
pub fn volumes<'a>(folders: impl IntoIterator<Item = &'a Path>) -> Vec<Volume> {
    let (mut seen, mut known) = (BTreeSet::new(), BTreeSet::new());
    let mut found = Vec::new();
    for folder in folders {
        if !seen.insert(folder) {
            continue;
        }
        let Ok(meta) = std::fs::metadata(folder) else {
            continue;
        };
        if !known.insert(meta.dev()) {
            continue;
        }
        if let Ok(fs) = rustix::fs::statvfs(folder) {
            found.push(Volume {
                path: folder.to_owned(),
                total_bytes: fs.f_blocks.saturating_mul(fs.f_frsize),
                free_bytes: fs.f_bavail.saturating_mul(fs.f_frsize),
                inodes: fs.f_files,
                free_inodes: fs.f_favail,
            });
        }
    }
    found
}

/// The host as the kernel tells it. Inside a container this is still the whole host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Host {
    /// Bytes of memory.
    pub memory_total: u64,
    /// Bytes that programs can still get without swapping.
    pub memory_available: u64,
    /// Seconds that processors spent in each mode since boot, over all processors.
    pub cpu: Vec<(&'static str, f64)>,
    /// Load average over one minute.
    pub load1: f64,
}

/// Ticks a second in `/proc/stat`: fixed by the kernel's interface on Linux.
const TICKS: f64 = 100.0;
/// The first columns of `/proc/stat`, as node_exporter calls them.
const MODES: [&str; 8] = [
    "user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal",
];

/// Reads `/proc`; zeros where there is none.
pub fn host() -> Host {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    parse_host(
        &read("/proc/meminfo"),
        &read("/proc/stat"),
        &read("/proc/loadavg"),
    )
}

fn parse_host(meminfo: &str, stat: &str, loadavg: &str) -> Host {
    let memory = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    let columns = stat.lines().find_map(|l| l.strip_prefix("cpu "));
    let ticks = columns.unwrap_or_default().split_whitespace();
    let seconds = ticks.map(|t| t.parse::<f64>().unwrap_or(0.0) / TICKS);
    let load1 = loadavg.split_whitespace().next();
    Host {
        memory_total: memory("MemTotal:"),
        memory_available: memory("MemAvailable:"),
        cpu: MODES.into_iter().zip(seconds).collect(),
        load1: load1.and_then(|l| l.parse().ok()).unwrap_or(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_volume_and_the_host_has_memory() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let found = volumes([dir.path(), dir.path(), missing.as_path()]);
        assert_eq!(found.len(), 1);
        assert!(found[0].total_bytes >= found[0].free_bytes && found[0].total_bytes > 0);
        let host = host();
        assert!(host.memory_total > host.memory_available && host.memory_available > 0);
        assert_eq!(host.cpu.len(), MODES.len());
    }

    #[test]
    fn reads_the_kernels_words() {
        let host = parse_host(
            "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n",
            "cpu  100 0 50 1000 7 0 0 0 0 0\ncpu0 1 2 3\n",
            "0.52 0.58 0.59 1/597 28",
        );
        assert_eq!(host.memory_total, 2 * 1024 * 1024);
        assert_eq!(host.memory_available, 1024 * 1024);
        assert_eq!(host.cpu[0], ("user", 1.0));
        assert_eq!(host.cpu[3], ("idle", 10.0));
        assert_eq!(host.load1, 0.52);
        assert_eq!(parse_host("", "", ""), Host::default());
    }
}
