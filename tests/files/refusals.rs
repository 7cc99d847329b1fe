//! What is not recorded, and what is called partial.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::site::{PASSWORD, Site};

#[test]
fn passwords_and_creation_are_opt_in() {
    let mut site = Site::new();
    site.write("a", b"a");
    site.extra.clear();
    let none = site.refused(&["snapshot", "uploads"], 3);
    assert!(none.contains("lifeboat files init"), "{none}");
    assert!(!site.path("store").exists(), "nothing was made");
    site.ok(&["files", "init"]);
    site.ok(&["snapshot", "uploads"]);
    assert!(site.ok(&["files", "init"]).contains("was there"));
    site.password = "wrong".into();
    for args in [
        &["snapshot", "uploads"][..],
        &["list", "uploads"],
        &["restore", "uploads", "-o", "x"],
    ] {
        let text = site.refused(args, 1);
        assert!(text.contains("password does not open"), "{text}");
    }
    site.password = PASSWORD.into();
    assert_eq!(site.points().len(), 1);
}

#[test]
fn an_unmounted_volume_is_not_recorded() {
    let mut site = Site::new();
    site.write("a", b"a");
    site.backup();
    std::fs::remove_file(site.data("a")).unwrap();
    let text = site.refused(&["snapshot", "uploads"], 4);
    assert!(
        text.contains("is empty") && text.contains("allow-empty"),
        "{text}"
    );
    std::fs::create_dir(site.data("lost+found")).unwrap();
    site.refused(&["snapshot", "uploads"], 4);
    std::fs::remove_dir_all(site.path("data")).unwrap();
    site.refused(&["snapshot", "uploads"], 1);
    assert_eq!(site.points().len(), 1);
    std::fs::create_dir(site.path("data")).unwrap();
    site.extra += "    allow-empty: true\n";
    site.backup();
    assert_eq!(site.points().len(), 2);
}

#[test]
fn databases_and_excluded_files_are_left_out_and_unreadable_ones_named() {
    let mut site = Site::new();
    site.write("keep/file", b"x");
    site.write("cache/file", b"x");
    site.write("keep/a.tmp", b"x");
    site.write(
        "blob-without-name",
        b"SQLite format 3\0 uploaded by somebody",
    );
    site.write("secret", b"x");
    let made = Command::new("sqlite3")
        .arg(site.data("app.sqlite3"))
        .arg("create table t(a)")
        .status()
        .expect("sqlite3 is missing: apt-get install sqlite3");
    assert!(made.success());
    site.write("app.sqlite3-wal", b"x");
    site.extra += "    exclude: ['*.tmp', 'cache/']\n";
    // Root reads everything: go as somebody else.
    let out = Command::new("chown")
        .args(["-R", "65534:65534"])
        .arg(site.dir.path())
        .status()
        .unwrap();
    assert!(out.success(), "the tests of files need root");
    let go = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    site.command = go.split(' ').map(str::to_owned).collect();
    std::fs::set_permissions(site.data("secret"), std::fs::Permissions::from_mode(0o0)).unwrap();
    std::fs::create_dir(site.data("closed")).unwrap();
    std::fs::set_permissions(site.data("closed"), std::fs::Permissions::from_mode(0o0)).unwrap();
    let text = site.refused(&["snapshot", "uploads"], 1);
    for word in [
        "PARTIAL",
        "secret",
        "closed",
        "app.sqlite3",
        "list it under `sqlite:`",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let points = site.points();
    assert_eq!(points[0]["partial"], true);
    let names = site.restic(&["ls", "latest"]);
    for (name, there) in [
        ("keep/file", true),
        ("blob-without-name", true),
        ("cache", false),
        ("a.tmp", false),
        ("app.sqlite3", false),
        ("secret", false),
    ] {
        assert_eq!(names.contains(name), there, "{name}: {names}");
    }
    std::fs::remove_file(site.data("secret")).unwrap();
    std::fs::remove_dir(site.data("closed")).unwrap();
    site.ok(&["snapshot", "uploads"]);
    assert_eq!(site.points()[1]["partial"], false);
}

/// A database that is named as a path of files: a copy of it while it is open is no backup, and must not look like one.
#[test]
fn a_database_is_no_path_of_files() {
    let mut lab = crate::lab::Lab::quick("");
    for name in ["app.sqlite3", "app.sqlite3-wal"] {
        lab.write("app.sqlite3", b"SQLite format 3\0 and more");
        lab.write("app.sqlite3-wal", b"frames");
        let path = lab.dir.path().join("data").join(name);
        std::sync::Arc::make_mut(&mut lab.target.config).paths = vec![path];
        let refused = lab.backup().map(drop).unwrap_err();
        assert_eq!(refused.exit_code(), 4, "{refused}");
        assert!(refused.to_string().contains("list it under `sqlite:`"));
    }
    assert!(lifeboat::files::list(&lab.target).unwrap().is_empty());
}

/// The newest snapshot is somebody else's, of another folder: the one of this folder is older, and was full.
#[test]
fn what_others_record_does_not_hide_that_a_folder_was_full() {
    let site = Site::quick();
    site.write("a", b"a");
    site.backup();
    let other = site.path("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("f"), "theirs").unwrap();
    site.restic(&["backup", other.to_str().unwrap()]);
    std::fs::remove_file(site.data("a")).unwrap();
    let text = site.refused(&["snapshot", "uploads"], 4);
    assert!(text.contains("is empty"), "{text}");
    std::fs::create_dir(site.data("lost+found")).unwrap();
    let text = site.refused(&["snapshot", "uploads"], 4);
    assert!(text.contains("without files"), "{text}");
    assert_eq!(site.points().len(), 2);
}

/// A run gives way to the app; whoever uses its thread next need not.
#[test]
fn the_priority_of_a_run_is_its_own() {
    let lab = crate::lab::Lab::quick("");
    lab.write("a", b"a");
    let priority = || rustix::process::getpriority_process(None).unwrap();
    let before = priority();
    let mut of_the_run = before;
    lifeboat::files::backup(&lab.target, None, |_| of_the_run = priority()).unwrap();
    assert_eq!((of_the_run, priority()), (19, before));
}
