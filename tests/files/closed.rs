//! Restores in place by somebody who is not root: folders without write permission, and what is in the way of finishing.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::site::{Site, picture};

const STAMP: &str = "20261121T120000000000000Z";

/// Everything belongs to nobody, who runs what follows.
fn as_nobody(site: &mut Site) {
    let out = Command::new("chown")
        .args(["-R", "65534:65534"])
        .arg(site.dir.path())
        .status()
        .unwrap();
    assert!(out.success(), "the tests of files need root");
    let go = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    site.command = go.split(' ').map(str::to_owned).collect();
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Without what lies beside it.
fn content(site: &Site) -> Vec<String> {
    let mut all = picture(&site.path("data"));
    all.retain(|line| !line.contains(".lifeboat-"));
    all
}

#[test]
fn folders_that_may_not_be_written_to_take_part_in_an_exchange() {
    let mut site = Site::quick();
    let close = |site: &Site, bits: u32| {
        for folder in ["closed/deep", "closed", "mixed", ""] {
            mode(&site.data(folder), bits);
        }
    };
    for name in ["closed/f", "closed/deep/f", "mixed/f"] {
        site.write(name, b"old");
    }
    let database = site.write("mixed/live.sqlite3", b"SQLite format 3\0live");
    close(&site, 0o555);
    as_nobody(&mut site);
    site.backup();
    let before = content(&site);
    close(&site, 0o755);
    for name in ["closed/f", "closed/deep/f", "mixed/f", "closed/more"] {
        site.write(name, b"new");
    }
    close(&site, 0o555);
    as_nobody(&mut site);
    let changed = content(&site);
    site.ok(&["restore", "uploads", "--in-place"]);
    assert_eq!(content(&site), before);
    assert!(database.exists());
    site.ok(&["restore", "uploads", "--undo"]);
    assert_eq!(content(&site), changed);
    site.ok(&["restore", "uploads", "--in-place", "--path", "closed/deep"]);
    site.ok(&["restore", "uploads", "--in-place", "--path", "closed/f"]);
    let at = site.data("closed");
    assert_eq!(std::fs::read(at.join("deep/f")).unwrap(), b"old");
    assert_eq!(std::fs::read(at.join("f")).unwrap(), b"old");
    site.ok(&["restore", "uploads", "--undo", "--path", "closed/f"]);
    assert_eq!(std::fs::read(at.join("f")).unwrap(), b"new");
    assert_eq!(at.metadata().unwrap().permissions().mode() & 0o777, 0o555);
}

#[test]
fn what_a_killed_restore_left_is_removed_whatever_its_modes() {
    let mut site = Site::quick();
    site.write("f", b"old");
    let left = site.write(&format!(".lifeboat-restored-{STAMP}/closed/f"), b"half");
    mode(left.parent().unwrap(), 0o555);
    as_nobody(&mut site);
    site.backup();
    site.ok(&["restore", "uploads", "--in-place"]);
    assert!(!left.exists());
}

/// Decided, and stopped in the middle by something that stays in the way: an undo goes back without it.
#[test]
fn an_undo_does_not_wait_for_a_restore_that_cannot_be_finished() {
    let mut site = Site::quick();
    site.write("f", b"old");
    site.write("dir/f", b"old");
    as_nobody(&mut site);
    site.backup();
    let before = content(&site);
    // `f` came in, `dir` did not.
    for name in ["f", "dir"] {
        let old = site.data(&format!(".lifeboat-old-{STAMP}"));
        std::fs::create_dir_all(&old).unwrap();
        std::fs::rename(site.data(name), old.join(name)).unwrap();
    }
    site.write("f", b"restored");
    let blocked = site.write(&format!(".lifeboat-restored-{STAMP}/dir/f"), b"restored");
    as_nobody(&mut site);
    let blocked = blocked.parent().unwrap();
    std::os::unix::fs::chown(blocked, Some(0), Some(0)).unwrap();
    site.refused(&["snapshot", "uploads"], 4);
    let text = site.refused(&["restore", "uploads", "--in-place"], 1);
    assert!(text.contains("denied"), "{text}");
    let text = site.ok(&["restore", "uploads", "--undo"]);
    assert!(text.contains("is as it was before the restore"), "{text}");
    let names = |all: &[String]| -> Vec<String> {
        let name = |line: &String| line.split(' ').next().unwrap().to_owned();
        all.iter().map(name).collect()
    };
    assert_eq!(names(&content(&site)), names(&before));
    for name in ["f", "dir/f"] {
        assert_eq!(std::fs::read(site.data(name)).unwrap(), b"old");
    }
    let kept = site.data(&format!(".lifeboat-undone-{STAMP}/f"));
    assert_eq!(std::fs::read(kept).unwrap(), b"restored");
    // What cannot be removed is in nobody's way.
    site.backup();
    site.ok(&["restore", "uploads", "--in-place"]);
}
