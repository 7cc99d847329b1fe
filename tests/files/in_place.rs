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
