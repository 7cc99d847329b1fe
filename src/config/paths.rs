//! One spelling for each path.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use super::load::Host;

/// `path` as an absolute path without `.` and `..`. The folder it lies in is resolved through symbolic links where
/// it exists; the last name is kept, so a path that does not exist yet has its final spelling already.
/// A leading `~/` is the home directory.
pub(super) fn absolute(path: &Path, host: &Host) -> PathBuf {
    let path = match (path.strip_prefix("~"), &host.home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => host.cwd.join(path),
    };
    // `a/link/..` is the parent of what the link points at: only the file system knows it, so it is asked first.
    if let (Some(parent), Some(name)) = (path.parent(), last_name(&path))
        && let Ok(parent) = parent.canonicalize()
    {
        return parent.join(name);
    }
    let lexical = lexical(&path);
    match (lexical.parent(), lexical.file_name()) {
        (Some(parent), Some(name)) => parent
            .canonicalize()
            .unwrap_or_else(|_| parent.to_owned())
            .join(name),
        _ => lexical,
    }
}

/// [`absolute`] with links resolved completely where the path exists. A database behind a link has its WAL beside the
/// real file.
pub(super) fn resolved(path: &Path, host: &Host) -> PathBuf {
    let path = absolute(path, host);
    path.canonicalize().unwrap_or(path)
}

/// The last component if it is a plain name.
fn last_name(path: &Path) -> Option<OsString> {
    match path.components().next_back() {
        Some(Component::Normal(name)) => Some(name.to_owned()),
        _ => None,
    }
}

fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_path_become_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        let host = Host::for_tests(&root);
        let expected = root.join("real/a.db");
        for text in [
            "real/a.db",
            "./real/a.db",
            "real/../real/./a.db",
            "link/a.db",
            "link/../link/a.db",
        ] {
            assert_eq!(absolute(Path::new(text), &host), expected, "{text}");
        }
        assert_eq!(
            absolute(Path::new("none/../gone/a.db"), &host),
            root.join("gone/a.db")
        );
        assert_eq!(absolute(Path::new("/"), &host), Path::new("/"));
        assert_eq!(absolute(Path::new("/.."), &host), Path::new("/"));
        assert_eq!(resolved(Path::new("link/"), &host), root.join("real"));
        assert_eq!(absolute(Path::new("~/a.db"), &host), root.join("a.db"));
    }
}
