//! Attributes of restored files: setting those of the topmost folder, and comparing all with the snapshot.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustic_core::repofile::{Node, NodeType};

/// Go's bits for set-user-id, set-group-id and sticky, which restic stores, and the system's.
const GO_BITS: [(u32, u32); 3] = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];

/// Permission bits as the system has them.
fn mode(node: &Node) -> Option<u32> {
    let go = node.meta.mode?;
    let special = GO_BITS.iter().filter(|(bit, _)| go & bit != 0);
    Some(go & 0o777 | special.map(|(_, unix)| unix).sum::<u32>())
}

/// Sets owner, permissions and time of a folder.
///
/// # Errors
/// The system's; not for an owner that only root may set.
pub(super) fn apply(node: &Node, path: &Path) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, node.meta.uid, node.meta.gid)?;
    }
    if let Some(mode) = mode(node) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    if let Some(modified) = node.meta.mtime {
        std::fs::File::open(path)?.set_modified(modified.into())?;
    }
    Ok(())
}

/// What is not as in the snapshot.
pub(super) fn differences(node: &Node, path: &Path) -> Vec<String> {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) => return vec![error.to_string()],
    };
    let kind = found.file_type();
    let (same_kind, is_link) = match &node.node_type {
        NodeType::File => (kind.is_file(), false),
        NodeType::Dir => (kind.is_dir(), false),
        NodeType::Symlink { .. } => (kind.is_symlink(), true),
        _ => (
            !kind.is_file() && !kind.is_dir() && !kind.is_symlink(),
            false,
        ),
    };
    if !same_kind {
        return vec!["is of another kind".into()];
    }
    let mut out = Vec::new();
    if kind.is_file() && found.size() != node.meta.size {
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
    out
}
