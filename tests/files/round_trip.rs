//! Written by one, read by the other.

use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::site::{PASSWORD, Site, noise, picture};

/// A tree with everything that file systems have.
fn odd_tree(site: &Site) {
    use std::os::unix::ffi::OsStrExt;
    site.write("a", b"hello");
    site.write("sub/big", &noise(1, 3_000_000));
    site.write("sub/deep/er/empty", b"");
    std::fs::create_dir(site.data("nothing")).unwrap();
    std::os::unix::fs::symlink("a", site.data("link")).unwrap();
    std::os::unix::fs::symlink("/not/there", site.data("dangling")).unwrap();
    std::fs::hard_link(site.data("a"), site.data("sub/hard")).unwrap();
    std::fs::File::create(site.data("sparse"))
        .unwrap()
        .set_len(6 << 20)
        .unwrap();
    for name in [
        &b"new\nline"[..],
        b"not \xff utf8",
        b"\"quoted\\",
        "schön ☃".as_bytes(),
        b"-rf",
        b" ",
    ] {
        std::fs::write(
            site.path("data").join(std::ffi::OsStr::from_bytes(name)),
            name,
        )
        .unwrap();
    }
    let mode = |name, mode| {
        std::fs::set_permissions(site.data(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("a", 0o4750);
    mode("sub", 0o2770);
    mode("nothing", 0o1777);
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(978_307_200, 123_456_789);
    for name in ["a", "sub/deep", "nothing", ""] {
        std::fs::File::open(site.data(name))
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
}

#[test]
fn restic_reads_ours() {
    let site = Site::new();
    odd_tree(&site);
    let before = picture(&site.path("data"));
    site.ok(&["snapshot", "uploads", "--label", "v1"]);
    let check = site.restic(&["check", "--read-data"]);
    assert!(check.contains("no errors were found"), "{check}");
    assert!(site.restic(&["snapshots"]).contains("label=v1"));
    site.restic(&[
        "restore",
        "latest",
        "--target",
        site.path("theirs").to_str().unwrap(),
    ]);
    let theirs = site
        .path("theirs")
        .join(site.path("data").strip_prefix("/").unwrap());
    assert_eq!(before, picture(&theirs));
    site.ok(&["restore", "uploads", "-o", "ours"]);
    assert_eq!(before, picture(&site.path("ours")));
    let blocks = |p: PathBuf| p.metadata().unwrap().blocks();
    assert!(blocks(site.path("ours/sparse")) < 64, "holes stay holes");
}

#[test]
fn ours_reads_restic_and_both_go_on() {
    let site = Site::new();
    odd_tree(&site);
    site.restic(&["init"]);
    site.restic(&["backup", site.path("data").to_str().unwrap()]);
    let before = picture(&site.path("data"));
    site.ok(&["restore", "uploads", "-o", "ours"]);
    assert_eq!(before, picture(&site.path("ours")));
    site.write("more", b"later");
    let second = site.backup();
    assert!(
        second["uploaded"].as_u64().unwrap() < 100_000,
        "deduplicated: {second}"
    );
    assert_eq!(second["new"], 1, "{second}");
    site.restic(&["backup", site.path("data").to_str().unwrap()]);
    site.restic(&["check", "--read-data"]);
    assert_eq!(site.points().len(), 3);
}

#[test]
fn one_path_labels_ids_and_times() {
    let site = Site::new();
    site.write("dir/one", b"1");
    site.write("two", b"2");
    site.ok(&["snapshot", "uploads", "--label", "v1"]);
    site.write("dir/one", b"changed");
    let newest = site.backup();
    site.ok(&["restore", "uploads", "--path", "dir", "-o", "new"]);
    assert_eq!(std::fs::read(site.path("new/one")).unwrap(), b"changed");
    site.ok(&[
        "restore", "uploads", "--label", "v1", "--path", "dir/one", "-o", "old",
    ]);
    assert_eq!(std::fs::read(site.path("old/one")).unwrap(), b"1");
    let id = &newest["point"]["id"].as_str().unwrap()[..8];
    site.ok(&["restore", "uploads", "--snapshot", id, "-o", "by-id"]);
    assert_eq!(
        std::fs::read(site.path("by-id/dir/one")).unwrap(),
        b"changed"
    );
    site.refused(&["restore", "uploads", "--label", "nope", "-o", "x"], 3);
    site.refused(&["restore", "uploads", "--path", "nope", "-o", "x"], 3);
    site.refused(
        &["restore", "uploads", "--at", "1990-01-01T00:00", "-o", "x"],
        3,
    );
    let full = site.refused(&["restore", "uploads", "-o", "new"], 4);
    assert!(full.contains("not empty"), "{full}");
}

/// Labels of files alone follow the rules of all labels: a repeated one is numbered, `#1` is the first, a version finds its deploy, an unknown one
/// suggests the nearest, and what could mean several says which.
#[test]
fn labels_of_files_are_found_as_all_labels_are() {
    let site = Site::new();
    for (label, content) in [("before-v1", "1"), ("before-v2", "2"), ("before-v2", "3")] {
        site.write("one", content.as_bytes());
        site.ok(&["snapshot", "uploads", "--label", label]);
    }
    for (wanted, content) in [
        ("before-v1", "1"),
        ("v1", "1"),
        ("before-v2#1", "2"),
        ("before-v2#2", "3"),
    ] {
        let output = format!("back-{wanted}");
        site.ok(&["restore", "uploads", "--label", wanted, "-o", &output]);
        let found = std::fs::read_to_string(site.path(&output).join("one")).unwrap();
        assert_eq!(found, content, "{wanted}");
    }
    for wanted in ["before-v2", "v2"] {
        let said = site.refused(&["restore", "uploads", "--label", wanted, "-o", "x"], 2);
        assert!(
            said.contains("before-v2#1 (") && said.contains("before-v2#2 ("),
            "{said}"
        );
    }
    let said = site.refused(&["restore", "uploads", "--label", "befor-v1", "-o", "x"], 3);
    assert!(said.contains("did you mean --label before-v1"), "{said}");
    site.ok(&["restore", "--all", "--label", "v1", "--in-place"]);
    assert_eq!(std::fs::read(site.data("one")).unwrap(), b"1");
}

/// Who interrupts a snapshot means all of it.
#[test]
fn an_interrupt_ends_the_folders_that_follow_as_well() {
    let mut site = Site::quick();
    site.write("one", b"1");
    // Connections are taken and never answered.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    site.extra += &format!(
        "    store: {{ url: s3://bucket/files, endpoint: \"http://{}\", access-key-id: a, secret-access-key: b }}\n  - name: second\n    paths: [{}]\n    password: {PASSWORD}\n    create: true\n",
        silent.local_addr().unwrap(),
        site.path("data").display(),
    );
    let run = site
        .prepared(&["snapshot"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _held = silent.accept().unwrap();
    // Until then a signal ends the process as it ends any.
    std::thread::sleep(Duration::from_secs(1));
    let pid = run.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let out = run.wait_with_output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("second: interrupted before it began"),
        "{said}"
    );
    assert!(!site.path("store/second/config").exists());
}

/// `--timeout` bounds files, too: that they are not done in time is said, and the databases that are pinned are named.
#[test]
fn a_labelled_snapshot_of_files_is_given_up_after_its_time() {
    let mut site = Site::new();
    site.write("one", b"1");
    let db = site.path("app.sqlite3");
    let made = std::process::Command::new("sqlite3")
        .arg(&db)
        .arg("pragma journal_mode=wal; create table t(a);")
        .output();
    let made = made.expect("sqlite3 is missing: run bin/install-dev");
    assert!(made.status.success());
    // Connections are taken and never answered.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    site.extra += &format!(
        "    store: {{ url: s3://bucket/files, endpoint: \"http://{}\", access-key-id: a, secret-access-key: b }}\nsqlite:\n  - path: {}\n",
        silent.local_addr().unwrap(),
        db.display()
    );
    // The first copy needs no part of that time.
    site.ok(&["sync"]);
    let said = site.refused(&["snapshot", "--label", "v1", "--timeout", "10s"], 1);
    assert!(
        said.contains("uploads: it could not be backed up within --timeout")
            && said.contains("not pinned: uploads; durable and pinned as v1: app"),
        "{said}"
    );
    assert!(site.ok(&["list", "app"]).contains("label v1"));
}
