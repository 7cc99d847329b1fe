//! Restores over what is there, and the way back.

use crate::site::{Site, picture};

#[test]
fn in_place_keeps_the_old_content_and_leaves_databases() {
    let site = Site::new();
    site.write("dir/file", b"old");
    site.write("gone", b"gone");
    let before = picture(&site.path("data"));
    site.backup();
    site.write("dir/file", b"new");
    std::fs::remove_file(site.data("gone")).unwrap();
    site.write("extra", b"extra");
    let database = site.write("dir/live.sqlite3", b"SQLite format 3\0live");
    let text = site.ok(&["restore", "uploads", "--in-place"]);
    assert_eq!(std::fs::read(site.data("dir/file")).unwrap(), b"old");
    assert_eq!(std::fs::read(site.data("gone")).unwrap(), b"gone");
    assert!(!site.data("extra").exists());
    assert!(database.exists(), "a database stays where it is");
    let kept = std::fs::read_dir(site.path("data"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_str().unwrap().contains(".lifeboat-old-"))
        .unwrap();
    assert!(text.contains(kept.to_str().unwrap()), "{text}");
    assert_eq!(std::fs::read(kept.join("dir/file")).unwrap(), b"new");
    assert_eq!(std::fs::read(kept.join("extra")).unwrap(), b"extra");
    // The next backup leaves both out.
    let next = site.backup();
    assert_eq!(next["point"]["files"], 2, "{next}");
    std::fs::remove_dir_all(kept).unwrap();
    std::fs::remove_file(database).unwrap();
    let after = picture(&site.path("data"));
    let count = |lines: &[String]| lines.len();
    assert_eq!(count(&before), count(&after));
    site.ok(&["restore", "uploads", "--path", "gone", "--in-place"]);
    assert_eq!(std::fs::read(site.data("gone")).unwrap(), b"gone");
}

/// Without what lies beside it.
fn content(site: &Site) -> Vec<String> {
    let mut all = picture(&site.path("data"));
    all.retain(|line| !line.contains(".lifeboat-"));
    all
}

#[test]
fn a_second_undo_does_not_go_back_to_an_earlier_restore() {
    let site = Site::new();
    let in_place = ["restore", "uploads", "--in-place", "--at", "0s"];
    for path in [None, Some(["--path", "file"])] {
        let path = path.as_ref().map_or(&[][..], |p| &p[..]);
        for text in ["january", "june"] {
            site.write("file", b"saved");
            site.backup();
            site.write("file", text.as_bytes());
            site.ok(&[&in_place[..], path].concat());
        }
        let undo = [&["restore", "uploads", "--undo"][..], path].concat();
        site.ok(&undo);
        assert_eq!(std::fs::read(site.data("file")).unwrap(), b"june");
        let said = site.refused(&undo, 4);
        assert!(said.contains("undone already"), "{said}");
        let said = site.refused(&[&undo[..], &["--dry-run"]].concat(), 4);
        assert!(said.contains("undone already"), "{said}");
        assert_eq!(std::fs::read(site.data("file")).unwrap(), b"june");
    }
}

/// Nothing was there: the undo empties the place again, and what an earlier restore replaced is not its business.
#[test]
fn an_undo_of_a_restore_into_nothing_goes_no_further_back() {
    let in_place = ["restore", "uploads", "--in-place"];
    for path in [None, Some(["--path", "file"])] {
        let path = path.as_ref().map_or(&[][..], |p| &p[..]);
        let site = Site::quick();
        let file = site.write("file", b"saved");
        site.backup();
        site.write("file", b"january");
        site.ok(&[&in_place[..], path].concat());
        std::fs::remove_file(&file).unwrap();
        site.ok(&[&in_place[..], path].concat());
        site.write("file", b"since then");
        let undo = [&["restore", "uploads", "--undo"][..], path].concat();
        let said = site.ok(&[&undo[..], &["--dry-run"]].concat());
        assert!(said.contains("nothing was there"), "{said}");
        let said = site.ok(&undo);
        assert!(!file.exists(), "{said}");
        let kept = said.split("is in ").nth(1).unwrap();
        let kept = std::path::Path::new(kept.split(';').next().unwrap());
        let kept = if kept.is_dir() {
            kept.join("file")
        } else {
            kept.into()
        };
        assert_eq!(std::fs::read(kept).unwrap(), b"since then");
        for dry in [&["--dry-run"][..], &[]] {
            let said = site.refused(&[&undo[..], dry].concat(), 4);
            assert!(said.contains("undone already"), "{said}");
        }
        assert!(!file.exists());
    }
}

#[test]
fn an_undo_onto_an_empty_place_is_remembered() {
    let in_place = ["restore", "uploads", "--in-place"];
    for path in [None, Some(["--path", "file"])] {
        let path = path.as_ref().map_or(&[][..], |p| &p[..]);
        let site = Site::quick();
        let file = site.write("file", b"saved");
        site.backup();
        for text in ["january", "june"] {
            site.write("file", text.as_bytes());
            site.ok(&[&in_place[..], path].concat());
        }
        std::fs::remove_file(&file).unwrap();
        let undo = [&["restore", "uploads", "--undo"][..], path].concat();
        site.ok(&undo);
        assert_eq!(std::fs::read(&file).unwrap(), b"june");
        let said = site.refused(&undo, 4);
        assert!(said.contains("undone already"), "{said}");
        assert_eq!(std::fs::read(&file).unwrap(), b"june");
    }
}

/// An exchange that was not decided is taken back, and the next undo does not go on with the restore before.
#[test]
fn an_exchange_that_was_taken_back_is_remembered() {
    let site = Site::quick();
    let file = site.write("file", b"saved");
    site.backup();
    site.write("file", b"january");
    site.ok(&["restore", "uploads", "--in-place"]);
    let moving = site.data(".lifeboat-old-29991121T120000000000000Z.moving");
    std::fs::create_dir(&moving).unwrap();
    std::fs::rename(&file, moving.join("file")).unwrap();
    site.ok(&["restore", "uploads", "--undo"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"saved");
    let said = site.refused(&["restore", "uploads", "--undo"], 4);
    assert!(said.contains("undone already"), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), b"saved");
}

/// The first start on a new server was killed in the middle of its restore: the second one must not take what is there for the files.
#[test]
fn what_a_killed_restore_left_does_not_count_as_there() {
    let site = Site::new();
    site.write("a", b"saved");
    site.write("dir/b", b"saved");
    site.backup();
    let boot = ["restore", "--all", "--if-not-exists", "--if-replica-exists"];
    let stamp = "20260101T000000000000000Z";
    for folders in [&["restored"][..], &["old", "restored"]] {
        std::fs::remove_dir_all(site.path("data")).unwrap();
        for folder in folders {
            let folder = site.data(&format!(".lifeboat-{folder}-{stamp}"));
            std::fs::create_dir_all(folder).unwrap();
        }
        if folders.len() == 2 {
            // Decided, and one of the two is in its place.
            site.write("a", b"saved");
            site.write(&format!(".lifeboat-restored-{stamp}/dir/b"), b"saved");
        }
        let text = site.ok(&boot);
        assert!(text.contains("restored=1 existing=0"), "{text}");
        for name in ["a", "dir/b"] {
            assert_eq!(
                std::fs::read(site.data(name)).unwrap(),
                b"saved",
                "{folders:?}"
            );
        }
        let text = site.ok(&boot);
        assert!(text.contains("restored=0 existing=1"), "{text}");
    }
}

#[test]
fn undo_swaps_back_what_a_restore_replaced() {
    let site = Site::new();
    site.write("dir/file", b"old");
    site.write("dir/live.sqlite3", b"SQLite format 3\0live");
    site.write("gone", b"gone");
    site.backup();
    let none = site.refused(&["restore", "uploads", "--undo"], 4);
    assert!(
        none.contains("has no kept content from before a restore"),
        "{none}"
    );
    site.write("dir/file", b"new");
    site.write("extra/deep", b"extra");
    std::fs::remove_file(site.data("gone")).unwrap();
    let before = content(&site);
    let text = site.ok(&["restore", "uploads", "--in-place"]);
    assert!(
        text.contains("`lifeboat restore uploads --undo` swaps it back"),
        "{text}"
    );
    assert!(site.data("gone").exists() && !site.data("extra").exists());
    let restored = content(&site);
    site.write("after", b"written after the restore");
    let text = site.ok(&["restore", "uploads", "--undo", "--dry-run"]);
    assert!(text.contains("would swap"), "{text}");
    assert!(site.data("after").exists());
    let text = site.ok(&["restore", "uploads", "--undo"]);
    assert!(text.contains("is as it was before the restore"), "{text}");
    assert_eq!(content(&site), before);
    // What it replaced is kept, too, and nothing is left to undo.
    let kept = std::fs::read_dir(site.path("data"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_str().unwrap().contains(".lifeboat-undone-"))
        .unwrap();
    assert!(text.contains(kept.to_str().unwrap()), "{text}");
    let after = std::fs::read(kept.join("after")).unwrap();
    assert_eq!(after, b"written after the restore");
    assert_eq!(std::fs::read(kept.join("gone")).unwrap(), b"gone");
    site.refused(&["restore", "uploads", "--undo"], 4);
    assert_eq!(site.backup()["point"]["files"], 2, "both are left out");
    assert!(!restored.is_empty());
    // One file.
    site.ok(&[
        "restore",
        "uploads",
        "--in-place",
        "--path",
        "dir/file",
        "--at",
        "0s",
    ]);
    site.write("dir/file", b"newer");
    let id = site.points()[0]["id"].as_str().unwrap().to_owned();
    site.ok(&[
        "restore",
        "uploads",
        "--in-place",
        "--path",
        "dir/file",
        "--snapshot",
        &id,
    ]);
    assert_eq!(std::fs::read(site.data("dir/file")).unwrap(), b"old");
    site.ok(&["restore", "uploads", "--undo", "--path", "dir/file"]);
    assert_eq!(std::fs::read(site.data("dir/file")).unwrap(), b"newer");
    site.refused(&["restore", "uploads", "--undo"], 4);
}

/// A tenant's database that was an empty file when it was backed up, as SQLite makes them, and is alive now.
#[test]
fn a_database_stays_even_if_the_snapshot_has_a_file_of_its_name() {
    let site = Site::new();
    site.write("tenant.sqlite3", b"");
    site.write("photo", b"photo");
    site.backup();
    let live = b"SQLite format 3\0alive";
    site.write("tenant.sqlite3", live);
    site.write("tenant.sqlite3-wal", b"frames");
    site.write("photo", b"other");
    let alive = || {
        assert_eq!(std::fs::read(site.data("tenant.sqlite3")).unwrap(), live);
        let wal = std::fs::read(site.data("tenant.sqlite3-wal")).unwrap();
        assert_eq!(wal, b"frames");
    };
    site.ok(&["restore", "uploads", "--in-place"]);
    alive();
    assert_eq!(std::fs::read(site.data("photo")).unwrap(), b"photo");
    site.ok(&["restore", "uploads", "--undo"]);
    alive();
    assert_eq!(std::fs::read(site.data("photo")).unwrap(), b"other");
    let one = [
        "restore",
        "uploads",
        "--in-place",
        "--path",
        "tenant.sqlite3",
    ];
    let text = site.refused(&one, 4);
    assert!(text.contains("is a database"), "{text}");
    alive();
}

/// Half of the files are in a folder of ours then, which backups leave out: such a folder is not what it seems.
#[test]
fn a_folder_in_the_middle_of_a_restore_is_not_recorded() {
    let site = Site::new();
    site.write("a", b"a");
    site.write("b", b"b");
    site.backup();
    let moving = site.data(".lifeboat-old-20261121T120000000000000Z.moving");
    std::fs::create_dir(&moving).unwrap();
    std::fs::rename(site.data("b"), moving.join("b")).unwrap();
    let text = site.refused(&["snapshot", "uploads"], 4);
    assert!(
        text.contains("interrupted") && text.contains("nothing was recorded"),
        "{text}"
    );
    assert_eq!(site.points().len(), 1);
    // An undo takes back what was not decided.
    site.ok(&["restore", "uploads", "--undo"]);
    assert_eq!(std::fs::read(site.data("b")).unwrap(), b"b");
    site.backup();
    assert_eq!(site.points().len(), 2);
}

/// The same for one folder below, of which alone a restore was interrupted.
#[test]
fn a_folder_below_in_the_middle_of_a_restore_is_not_recorded() {
    let site = Site::quick();
    for name in ["a", "dir/deep/b", "dir/deep/c"] {
        site.write(name, b"content");
    }
    site.backup();
    let moving = site.data("dir/deep/.lifeboat-old-20261121T120000000000000Z.moving");
    std::fs::create_dir(&moving).unwrap();
    std::fs::rename(site.data("dir/deep/b"), moving.join("b")).unwrap();
    let text = site.refused(&["snapshot", "uploads"], 4);
    assert!(
        text.contains("interrupted") && text.contains("nothing was recorded"),
        "{text}"
    );
    assert_eq!(site.points().len(), 1);
    site.ok(&["restore", "uploads", "--undo", "--path", "dir/deep"]);
    assert_eq!(site.backup()["point"]["files"], 3);
}

/// What the app made in the middle, and made again before the exchange could go on: neither takes the other's place.
#[test]
fn what_is_met_twice_is_kept_twice() {
    let site = Site::quick();
    site.write("file", b"saved");
    site.backup();
    let stamp = "20260101T000000000000000Z";
    std::fs::create_dir(site.data(&format!(".lifeboat-old-{stamp}"))).unwrap();
    site.write(&format!(".lifeboat-restored-{stamp}/file"), b"saved");
    let met = site.write(&format!(".lifeboat-met-{stamp}/file"), b"made first");
    site.write("file", b"made again");
    site.ok(&["restore", "uploads", "--in-place"]);
    assert_eq!(std::fs::read(site.data("file")).unwrap(), b"saved");
    assert_eq!(std::fs::read(&met).unwrap(), b"made first");
    let again = met.with_file_name("file-2");
    assert_eq!(std::fs::read(again).unwrap(), b"made again");
}

/// A folder that was replaced by a link since then: a restore of what was in it must not go where the link leads.
#[test]
fn a_restore_in_place_goes_through_no_link() {
    let site = Site::quick();
    site.write("dir/deep/file", b"saved");
    site.backup();
    let outside = site.path("outside");
    std::fs::create_dir_all(outside.join("deep")).unwrap();
    std::fs::write(outside.join("deep/file"), "theirs").unwrap();
    let before = picture(&outside);
    std::fs::remove_dir_all(site.data("dir")).unwrap();
    std::os::unix::fs::symlink(&outside, site.data("dir")).unwrap();
    for path in ["dir", "dir/deep", "dir/deep/file"] {
        for what in ["--in-place", "--undo"] {
            let text = site.refused(&["restore", "uploads", "--path", path, what], 4);
            assert!(text.contains("is a link"), "{path} {what}: {text}");
        }
    }
    assert_eq!(picture(&outside), before);
    // All of it replaces the link.
    site.ok(&["restore", "uploads", "--in-place"]);
    assert_eq!(std::fs::read(site.data("dir/deep/file")).unwrap(), b"saved");
    assert_eq!(picture(&outside), before);
}

/// A repository that is shared with other tools holds snapshots of other folders.
#[test]
fn in_place_is_the_configured_place() {
    let site = Site::new();
    site.write("a", b"a");
    site.backup();
    let other = site.path("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("passwd"), "theirs").unwrap();
    site.restic(&["backup", other.to_str().unwrap()]);
    std::fs::write(other.join("passwd"), "changed").unwrap();
    let text = site.refused(&["restore", "uploads", "--in-place"], 4);
    assert!(text.contains("not among the paths"), "{text}");
    assert_eq!(std::fs::read(other.join("passwd")).unwrap(), b"changed");
}
