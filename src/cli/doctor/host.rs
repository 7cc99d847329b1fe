//! The databases and the state on this machine.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::Findings;
use super::bill::size;
use crate::config::{Config, TargetConfig};
use crate::daemon::fleet::state_path;
use crate::sqlite::files::lock_holder;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// A WAL beyond this and four times the database was not checkpointed for long.
const WAL_LARGE: u64 = 64 << 20;

/// Whether a file begins as a SQLite database does. Only for files that nobody has open in this process: closing it would drop SQLite's locks.
pub(in crate::cli) fn is_sqlite(path: &Path) -> bool {
    let mut magic = [0; 16];
    File::open(path).is_ok_and(|mut f| f.read_exact(&mut magic).is_ok()) && magic == *MAGIC
}

pub(super) fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

pub(super) fn database(found: &mut Findings, config: &Config, target: &TargetConfig) {
    let (name, path) = (target.name.as_str(), target.path.as_path());
    let here = folder(path);
    if !here.is_dir() {
        return found.fail(
            "database",
            name,
            format!("the folder {} is not there", here.display()),
            "mount the app's volume into this container at the same path as in the app",
        );
    }
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return found.warn(
                "database",
                name,
                format!(
                    "{} is not there yet; it is replicated when it appears",
                    path.display()
                ),
                neighbours(here),
            );
        }
        Err(e) => {
            return found.fail(
                "database",
                name,
                format!("{}: {e}", path.display()),
                "let the sidecar's user read it",
            );
        }
    };
    if rights(found, name, path, &meta) {
        journal_mode(found, target, &meta);
    }
    wal(found, name, path, meta.len());
    file_system(found, name, here);
    room(found, config, name, here, meta.len());
    match lock_holder(path) {
        Some(holder) => found.ok("daemon", name, format!("replicated by {holder}")),
        None => found.warn(
            "daemon",
            name,
            "no sidecar that this machine shows holds it: nothing is replicated now, or by another container",
            "`lifeboat run`; in another container, run `lifeboat doctor` there: kamal accessory exec lifeboat --reuse \"lifeboat doctor\"",
        ),
    }
}

fn neighbours(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| e.path().is_file() && is_sqlite(&e.path()))
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    match names.is_empty() {
        true => "start the app once, or check `path` and the volume".into(),
        false => format!("check `path`: the databases there are {}", names.join(", ")),
    }
}

/// Whether the rest can be looked at.
fn rights(found: &mut Findings, name: &str, path: &Path, meta: &fs::Metadata) -> bool {
    let me = rustix::process::geteuid().as_raw();
    let fix = format!(
        "run the sidecar as the app's user: `options: {{ user: \"{}:{}\" }}` in the accessory",
        meta.uid(),
        meta.gid()
    );
    if rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK).is_err() {
        found.fail(
            "permissions",
            name,
            format!(
                "user {me} may not read and write {} of user {}; SQLite needs both, also to read",
                path.display(),
                meta.uid()
            ),
            fix,
        );
        return false;
    }
    if rustix::fs::access(folder(path), Access::WRITE_OK | Access::EXEC_OK).is_err() {
        found.fail(
            "permissions",
            name,
            format!(
                "user {me} may not create files in {}, as SQLite must",
                folder(path).display()
            ),
            fix,
        );
        return false;
    }
    found.ok(
        "permissions",
        name,
        format!("user {me} reads and writes {}", path.display()),
    );
    true
}

fn journal_mode(found: &mut Findings, target: &TargetConfig, meta: &fs::Metadata) {
    let (name, path) = (target.name.as_str(), target.path.as_path());
    if meta.len() == 0 {
        return found.warn(
            "database",
            name,
            "the file is empty",
            "let the app create its tables; check `path` if it did",
        );
    }
    let mut header = [0; 20];
    let read = File::open(path).and_then(|mut f| f.read_exact(&mut header));
    if let Err(e) = read {
        return found.fail(
            "database",
            name,
            e,
            "look at the file: it is no whole database",
        );
    }
    if header[..16] != *MAGIC {
        return found.fail(
            "database",
            name,
            format!("{} is no SQLite database, or an encrypted one", path.display()),
            "take it out of the configuration; folders of other files are `files` targets (docs/files.md)",
        );
    }
    match (header[18], target.explicit && target.options.ensure_wal) {
        (2, _) => found.ok("journal mode", name, "WAL"),
        (_, true) => found.warn(
            "journal mode",
            name,
            "not WAL; Lifeboat turns it on when it starts",
            "nothing to do, or let the app run `PRAGMA journal_mode=WAL`",
        ),
        (_, false) => found.fail(
            "journal mode",
            name,
            "not WAL: it cannot be replicated",
            "let the app run `PRAGMA journal_mode=WAL` once (Rails does by itself), or list the database by `path`",
        ),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn wal(found: &mut Findings, name: &str, path: &Path, database: u64) {
    let bytes = fs::metadata(with_suffix(path, "-wal")).map_or(0, |m| m.len());
    if bytes > WAL_LARGE && bytes / 4 > database {
        found.warn(
            "wal",
            name,
            format!("its WAL has {}: something keeps it from being checkpointed", size(bytes)),
            "look for a transaction that stays open (a console, a long report) and end it; restart the app",
        );
    }
}

/// File systems by the numbers of statfs(2).
#[derive(Clone, Copy)]
enum Kind {
    Network(&'static str),
    Container,
    Memory,
    Shared(&'static str),
    Other,
}

fn kind(folder: &Path) -> Kind {
    // The type of the field differs between platforms; its low 32 bits are the number.
    kind_of(rustix::fs::statfs(folder).map_or(0, |s| s.f_type as u32))
}

/// Numbers of <linux/magic.h> and of the file systems' own sources.
fn kind_of(number: u32) -> Kind {
    match number {
        0x6969 => Kind::Network("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Kind::Network("SMB"),
        0x5346_414f | 0x6b41_4653 => Kind::Network("AFS"),
        0x00c3_6400 => Kind::Network("Ceph"),
        0x0bd0_0bd0 => Kind::Network("Lustre"),
        0x4750_4653 => Kind::Network("GPFS"),
        0x0116_1970 => Kind::Network("GFS2"),
        0x7461_636f => Kind::Network("OCFS2"),
        0x794c_7630 => Kind::Container,
        0x0102_1994 => Kind::Memory,
        0x0102_1997 => Kind::Shared("9p"),
        // virtiofs, sshfs, s3fs, gcsfuse, Docker Desktop's own: all of them say FUSE.
        0x6573_5546 => Kind::Shared("FUSE"),
        0x786f_4256 => Kind::Shared("a VirtualBox folder"),
        _ => Kind::Other,
    }
}

fn file_system(found: &mut Findings, name: &str, here: &Path) {
    on(found, name, here, kind(here));
}

fn on(found: &mut Findings, name: &str, here: &Path, kind: Kind) {
    let shown = here.display();
    match kind {
        Kind::Network(fs) => found.fail(
            "volume",
            name,
            format!(
                "{shown} is on {fs}: WAL mode needs memory that processes of one machine share"
            ),
            "put the database on a local disk, and the sidecar on the same machine",
        ),
        Kind::Container => found.warn(
            "volume",
            name,
            format!("{shown} is in the container's own layer: its data goes with the container"),
            "mount a volume there, the same one in the app and in the sidecar",
        ),
        Kind::Memory => found.warn(
            "volume",
            name,
            format!("{shown} is in memory: its data goes with the machine's power"),
            "put the database on a disk",
        ),
        Kind::Shared(fs) => found.warn(
            "volume",
            name,
            format!("{shown} is on {fs}, which may not share locks and memory between containers"),
            "fine on a developer's machine; in production use a volume on a local disk",
        ),
        Kind::Other => {}
    }
}

fn room(found: &mut Findings, config: &Config, name: &str, here: &Path, database: u64) {
    let Ok(stat) = rustix::fs::statvfs(here) else {
        return;
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let floor = config
        .min_free
        .bytes_of(stat.f_blocks.saturating_mul(stat.f_frsize));
    if free < floor {
        found.fail(
            "disk",
            name,
            format!(
                "{} free on {}, under the reserve of {}: during an outage of the store nothing more is kept",
                size(free),
                here.display(),
                size(floor)
            ),
            "make room, or set `min-free` to what the app needs",
        );
    } else if free < database {
        found.warn(
            "disk",
            name,
            format!(
                "{} free on {}, less than the database has ({}): it cannot be restored in place",
                size(free),
                here.display(),
                size(database)
            ),
            "make room before you need it, or restore with -o to another volume",
        );
    } else {
        found.ok("disk", name, format!("{} free", size(free)));
    }
}

/// Local state: what lets a restart go on without comparing every page.
pub(super) fn state(found: &mut Findings, config: &Config) {
    let mut folders: Vec<PathBuf> = match &config.state_dir {
        Some(dir) => vec![dir.clone()],
        None => config
            .targets
            .iter()
            .map(|t| folder(&state_path(config, t)).to_owned())
            .collect(),
    };
    folders.sort();
    folders.dedup();
    for dir in folders {
        let shown = dir.display().to_string();
        let there = dir.ancestors().find(|d| d.is_dir());
        let there = there.unwrap_or(Path::new("/"));
        if rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK).is_err() {
            let me = rustix::process::geteuid().as_raw();
            found.fail(
                "state",
                &shown,
                format!("user {me} may not write to it"),
                "give the sidecar a volume of its own for `state-dir`, of its own user",
            );
            continue;
        }
        match kind(there) {
            Kind::Container | Kind::Memory => found.warn(
                "state",
                &shown,
                "it does not outlive the container: each new one compares every page with what was captured",
                "mount a named volume there (docs/kamal.md)",
            ),
            _ => found.ok("state", &shown, "writable"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn file_systems_that_share_no_memory() {
        for (number, status, words) in [
            (0x6969, Some(Status::Failed), "is on NFS"),
            (0xff53_4d42, Some(Status::Failed), "is on SMB"),
            (0x0bd0_0bd0, Some(Status::Failed), "is on Lustre"),
            (0x794c_7630, Some(Status::Warning), "container's own layer"),
            (0x0102_1994, Some(Status::Warning), "is in memory"),
            (0x0102_1997, Some(Status::Warning), "is on 9p"),
            (0x6573_5546, Some(Status::Warning), "is on FUSE"),
            // ext4, btrfs, XFS, ZFS
            (0xef53, None, ""),
            (0x9123_683e, None, ""),
            (0x5846_5342, None, ""),
            (0x2fc1_2fc1, None, ""),
        ] {
            let mut found = Findings::default();
            on(&mut found, "app", Path::new("/data"), kind_of(number));
            assert_eq!(found.checks.first().map(|c| c.status), status, "{number:x}");
            if let Some(check) = found.checks.first() {
                assert!(
                    check.detail.contains(words) && check.fix.is_some(),
                    "{check:?}"
                );
            }
        }
        assert!(matches!(kind(Path::new("/proc")), Kind::Other));
    }
}
