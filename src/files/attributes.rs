//! Owner, permissions, extended attributes and times of what is restored: setting them, and comparing all with the snapshot.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustic_core::repofile::{Node, NodeType};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lgetxattr, llistxattr,
    lremovexattr, lsetxattr, mknodat, utimensat,
};
use rustix::io::Errno;

/// Go's bits for set-user-id, set-group-id and sticky, which restic stores, and the system's.
const GO_BITS: [(u32, u32); 3] = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];
/// What the system of the restore decides, not that of the backup.
const LOCAL: &str = "security.selinux";
/// Names of a file with some attributes.
const XATTR_FEW_BYTES: usize = 1 << 10;
/// More than Linux allows for the names, and for a value, of one file.
const XATTR_MAX_BYTES: usize = 1 << 16;

/// Permission bits as the system has them.
fn mode(node: &Node) -> Option<u32> {
    let go = node.meta.mode?;
    let special = GO_BITS.iter().filter(|(bit, _)| go & bit != 0);
    Some(go & 0o777 | special.map(|(_, unix)| unix).sum::<u32>())
}

/// Names and values, by name. A file system without them has none.
pub(super) fn extended(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // Most files have none, or few.
    let mut few = [0; XATTR_FEW_BYTES];
    let names = match llistxattr(path, &mut few[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => few[..length].to_vec(),
        Err(Errno::RANGE) => {
            let mut many = vec![0; XATTR_MAX_BYTES];
            let length = llistxattr(path, &mut many[..])?;
            many.truncate(length);
            many
        }
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    let mut value = vec![0; XATTR_MAX_BYTES];
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        match lgetxattr(path, name, &mut value[..]) {
            Ok(length) => found.push((name.to_owned(), value[..length].to_owned())),
            // Removed in between.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort();
    Ok(found)
}

fn wanted(node: &Node) -> Vec<(Vec<u8>, Vec<u8>)> {
    let all = node.meta.extended_attributes.iter();
    let mut all: Vec<_> = all
        .map(|a| {
            (
                a.name.clone().into_bytes(),
                a.value.clone().unwrap_or_default(),
            )
        })
        .collect();
    all.sort();
    all
}

/// Sets what can be set; what could not is found by [`differences`].
pub(super) fn set(node: &Node, path: &Path) {
    let meta = &node.meta;
    if meta.uid.is_some() || meta.gid.is_some() {
        // Others than root may give a file to a group of theirs only.
        let uid = meta.uid.filter(|_| rustix::process::geteuid().is_root());
        let _ = std::os::unix::fs::lchown(path, uid, meta.gid);
    }
    set_extended(path, &wanted(node));
    if let (Some(mode), false) = (mode(node), node.is_symlink()) {
        let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    }
    if let Some(modified) = meta.mtime {
        set_times(
            path,
            timespec(meta.atime.unwrap_or(modified)),
            timespec(modified),
        );
    }
}

/// Before the mode is set, which may forbid it; after the owner, because a new owner takes capabilities away.
fn set_extended(path: &Path, wanted: &[(Vec<u8>, Vec<u8>)]) {
    let Ok(there) = extended(path) else { return };
    for (name, _) in there.iter().filter(|(n, _)| n != LOCAL.as_bytes()) {
        if !wanted.iter().any(|(w, _)| w == name) {
            let _ = lremovexattr(path, name.as_slice());
        }
    }
    for (name, value) in wanted.iter().filter(|w| !there.contains(w)) {
        let _ = lsetxattr(path, name.as_slice(), value, XattrFlags::empty());
    }
}

fn set_times(path: &Path, last_access: Timespec, last_modification: Timespec) {
    let times = Timestamps {
        last_access,
        last_modification,
    };
    let _ = utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}

/// Before 1970 both parts of a timestamp are negative; the system's nanoseconds never are.
fn timespec(at: jiff::Timestamp) -> Timespec {
    let (seconds, nanos) = (at.as_second(), i64::from(at.subsec_nanosecond()));
    Timespec {
        tv_sec: seconds + nanos.div_euclid(1_000_000_000),
        tv_nsec: nanos.rem_euclid(1_000_000_000),
    }
}

/// Gives one folder the attributes of another, whose permissions and times were `was`.
///
/// # Errors
/// The system's, for the permissions.
pub(super) fn copy(from: &Path, was: &Metadata, to: &Path) -> io::Result<()> {
    let _ = std::os::unix::fs::lchown(to, Some(was.uid()), Some(was.gid()));
    set_extended(to, &extended(from)?);
    std::fs::set_permissions(to, was.permissions())?;
    set_times_as(was, to);
    Ok(())
}

/// Gives a folder the times of another.
pub(super) fn set_times_as(was: &Metadata, to: &Path) {
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    set_times(
        to,
        time(was.atime(), was.atime_nsec()),
        time(was.mtime(), was.mtime_nsec()),
    );
}

/// Makes a link, pipe, socket or device.
///
/// # Errors
/// The system's.
pub(super) fn make_special(node: &Node, path: &Path) -> io::Result<()> {
    let node_of = |kind, device| {
        Ok(mknodat(
            CWD,
            path,
            kind,
            Mode::from_raw_mode(0o600),
            device,
        )?)
    };
    match &node.node_type {
        NodeType::Symlink { .. } => std::os::unix::fs::symlink(node.node_type.to_link(), path),
        NodeType::Dev { device } => node_of(FileType::BlockDevice, *device),
        NodeType::Chardev { device } => node_of(FileType::CharacterDevice, *device),
        NodeType::Fifo => node_of(FileType::Fifo, 0),
        NodeType::Socket => node_of(FileType::Socket, 0),
        NodeType::File | NodeType::Dir => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// What is not as in the snapshot.
pub(super) fn differences(node: &Node, path: &Path) -> Vec<String> {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) => return vec![error.to_string()],
    };
    if !same_kind(node, &found) {
        return vec!["is of another kind".into()];
    }
    let is_link = found.is_symlink();
    let mut out = Vec::new();
    if found.is_file() && found.size() != node.meta.size {
        out.push(format!(
            "has {} bytes instead of {}",
            found.size(),
            node.meta.size
        ));
    }
    if is_link && std::fs::read_link(path).is_ok_and(|to| to != node.node_type.to_link()) {
        out.push("leads elsewhere".into());
    }
    // Links have no permissions of their own.
    if !is_link && mode(node).is_some_and(|m| m != found.mode() & 0o7777) {
        out.push(format!("has mode {:o}", found.mode() & 0o7777));
    }
    let modified = found
        .modified()
        .ok()
        .and_then(|t| jiff::Timestamp::try_from(t).ok());
    if node.meta.mtime.is_some() && node.meta.mtime != modified {
        out.push("has another time of change".into());
    }
    let owner = (Some(found.uid()), Some(found.gid()));
    if node.meta.uid.is_some() && owner != (node.meta.uid, node.meta.gid) {
        out.push(format!("belongs to {}:{}", found.uid(), found.gid()));
    }
    out.extend(other_attributes(node, path));
    out
}

fn same_kind(node: &Node, found: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let kind = found.file_type();
    match &node.node_type {
        NodeType::File => kind.is_file(),
        NodeType::Dir => kind.is_dir(),
        NodeType::Symlink { .. } => kind.is_symlink(),
        NodeType::Dev { device } => kind.is_block_device() && found.rdev() == *device,
        NodeType::Chardev { device } => kind.is_char_device() && found.rdev() == *device,
        NodeType::Fifo => kind.is_fifo(),
        NodeType::Socket => kind.is_socket(),
    }
}

fn other_attributes(node: &Node, path: &Path) -> Option<String> {
    let there = match extended(path) {
        Ok(there) => there,
        Err(error) => return Some(format!("its extended attributes cannot be read: {error}")),
    };
    let named = |name: &[u8]| std::ffi::OsStr::from_bytes(name).display().to_string();
    let not_local = |all: Vec<(Vec<u8>, Vec<u8>)>| {
        let all = all.into_iter();
        all.filter(|(n, _)| n != LOCAL.as_bytes())
            .collect::<Vec<_>>()
    };
    let (there, wanted) = (not_local(there), not_local(wanted(node)));
    let missing = wanted.iter().find(|w| !there.contains(w));
    let extra = || there.iter().find(|t| !wanted.contains(t));
    match missing {
        Some((name, _)) => Some(format!("has not the extended attribute {}", named(name))),
        None => extra().map(|(name, _)| format!("has an extended attribute {}", named(name))),
    }
}
