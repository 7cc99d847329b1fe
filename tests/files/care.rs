//! Retention, verification, damage and locks.

use std::process::Command;

use crate::site::{PASSWORD, Site, noise, packs};

#[test]
fn prune_forgets_by_tiers_and_restic_finds_nothing_wrong() {
    let mut site = Site::new();
    site.extra += "    retention: { point-in-time: 0s, daily: 1 }\n";
    for n in 0..4_u64 {
        site.write("changing", &noise(n, 2_000_000));
        site.write(&format!("kept{n}"), &noise(100 + n, 100_000));
        let label = format!("v{n}");
        let args: &[&str] = if n == 1 {
            &["snapshot", "--label", &label]
        } else {
            &["snapshot"]
        };
        site.ok(args);
    }
    site.restic(&[
        "backup",
        "--tag",
        "by-hand",
        site.data("kept0").to_str().unwrap(),
    ]);
    site.write("last", b"x");
    site.ok(&["snapshot"]);
    let before = site.points();
    let text = site.ok(&["prune", "--dry-run"]);
    assert!(
        text.contains("label v1") && text.contains("not made by lifeboat"),
        "{text}"
    );
    assert_eq!(
        site.points().len(),
        before.len(),
        "a dry run changes nothing"
    );
    let text = site.ok(&["prune"]);
    assert_eq!(text.matches(": forget ").count(), 3, "{text}");
    let after = site.points();
    assert_eq!(after.len(), 3);
    assert!(after.iter().any(|p| p["labels"][0] == "v1"));
    site.restic(&["check", "--read-data"]);
    site.ok(&["verify"]);
    site.ok(&["drill"]);
    site.ok(&["restore", "uploads", "--label", "v1", "-o", "v1"]);
    assert_eq!(
        std::fs::read(site.path("v1/changing")).unwrap(),
        noise(1, 2_000_000)
    );
    // Nothing is left to forget, and the plan says so again and again.
    assert!(site.ok(&["prune"]).contains("forgotten=0"));
    site.restic(&["check", "--read-data"]);
}

/// A label of files ends by the rules of all labels, and its snapshot goes with it.
#[test]
fn labels_of_files_end() {
    let mut site = Site::new();
    site.extra += "    retention: { point-in-time: 0s, daily: 1 }\nlabels: { keep: 1 }\n";
    let label = |label: &str, rest: &[&str]| {
        site.write("one", label.as_bytes());
        site.ok(&[&["snapshot", "--label", label], rest].concat());
    };
    label("zero", &[]);
    label("first", &["--deploy", "v1"]);
    label("second", &["--deploy", "v2"]);
    label("third", &[]);
    site.ok(&["snapshot"]);
    let text = site.ok(&["prune", "--dry-run"]);
    let ends = "uploads: end label zero: more than labels.keep newer ones";
    assert!(text.contains(ends), "{text}");
    assert_eq!(text.matches("end label").count(), 1, "{text}");
    let text = site.ok(&["prune", "--json"]);
    let lines = text.lines().filter_map(|l| serde_json::from_str(l).ok());
    let ended = lines.filter(|l: &serde_json::Value| l["label"] == "zero" && l["keep"] == false);
    assert_eq!(ended.count(), 1, "{text}");
    let points = site.points();
    let left: Vec<_> = points
        .iter()
        .filter_map(|p| p["labels"][0].as_str())
        .collect();
    assert_eq!(left, ["first", "second", "third"]);
    assert_eq!(points[0]["version"], "v1");
    let text = site.ok(&["list", "uploads"]);
    assert!(text.contains("  first (version v1)\n"), "{text}");
    site.restic(&["check", "--read-data"]);
    site.ok(&["restore", "uploads", "--label", "v1", "-o", "v1"]);
    assert_eq!(std::fs::read(site.path("v1/one")).unwrap(), b"first");
}

#[test]
fn the_newest_proven_snapshot_that_exists_is_kept() {
    let mut site = Site::new();
    site.extra += "    retention: { point-in-time: 0s, daily: 1 }\n";
    let mut ids = Vec::new();
    for n in 0..3_u64 {
        site.write("changing", &noise(n, 10_000));
        let snapshot = site.backup();
        ids.push(snapshot["point"]["id"].as_str().unwrap().to_owned());
        if n < 2 {
            site.ok(&["drill"]);
        }
    }
    site.restic(&["forget", &ids[1]]);
    site.ok(&["prune"]);
    let left: Vec<_> = site.points().iter().map(|p| p["id"].clone()).collect();
    assert_eq!(left, [ids[0].as_str(), &ids[2]]);
}

#[test]
fn a_damaged_repository_is_found_and_never_pruned() {
    let site = Site::new();
    for n in 0..6 {
        site.write(&format!("f{n}"), &noise(n, 2_000_000));
    }
    site.ok(&["snapshot"]);
    site.ok(&["verify"]);
    let pack = packs(&site)[0].clone();
    let good = std::fs::read(&pack).unwrap();
    // One bit.
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&pack, &bad).unwrap();
    let text = site.refused(&["verify"], 5);
    assert!(text.contains("is damaged"), "{text}");
    site.refused(&["drill"], 5);
    let text = site.refused(&["restore", "uploads", "-o", "bad"], 5);
    assert!(text.contains("is damaged"), "{text}");
    // Cut short, and gone.
    std::fs::write(&pack, &good[..good.len() / 2]).unwrap();
    site.refused(&["verify"], 5);
    site.refused(&["prune"], 5);
    std::fs::remove_file(&pack).unwrap();
    site.refused(&["verify"], 5);
    site.refused(&["prune"], 5);
    site.refused(&["drill"], 5);
    std::fs::write(&pack, &good).unwrap();
    site.ok(&["verify"]);
    site.ok(&["drill"]);
    assert_eq!(packs(&site).len(), packs(&site).len());
}

/// A lock as restic writes it, held by somebody else: made by restic itself, stopped in the middle.
#[test]
fn locks_are_respected_and_stale_ones_removed() {
    let site = Site::new();
    site.write("a", b"a");
    site.ok(&["snapshot"]);
    // restic backs up from a pipe that stays open: it holds a shared lock meanwhile.
    let mut restic = Command::new("restic")
        .args(["--no-cache", "backup", "--stdin", "-r"])
        .arg(site.repository())
        .env("RESTIC_PASSWORD", PASSWORD)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let locks = || std::fs::read_dir(site.repository().join("locks")).map_or(0, Iterator::count);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while locks() == 0 {
        assert!(std::time::Instant::now() < deadline, "restic takes no lock");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let text = site.refused(&["prune"], 4);
    assert!(text.contains("is locked by"), "{text}");
    site.ok(&["snapshot"]);
    // Killed: its lock stays, and is respected until it is stale.
    restic.kill().unwrap();
    restic.wait().unwrap();
    assert_eq!(locks(), 1);
    site.refused(&["prune"], 4);
    site.ok(&["snapshot"]);
    site.restic(&["unlock"]);
    site.ok(&["prune"]);
    assert_eq!(locks(), 0, "none of ours stays");
}

/// restic knows no marks: packs that were marked for deletion are gone at once when it prunes. That is no damage.
#[test]
fn restic_may_delete_what_was_marked() {
    let mut site = Site::quick();
    site.extra += "    retention: { point-in-time: 0s, daily: 1 }\n";
    for n in 0..3_u64 {
        site.write("changing", &noise(n, 2_000_000));
        site.ok(&["snapshot"]);
    }
    let before = packs(&site).len();
    assert!(site.ok(&["prune"]).contains(": forget "));
    assert_eq!(packs(&site).len(), before, "marked only");
    site.restic(&["prune"]);
    assert!(packs(&site).len() < before);
    site.ok(&["verify"]);
    site.ok(&["prune"]);
    site.write("changing", &noise(9, 2_000_000));
    site.ok(&["snapshot"]);
    site.ok(&["prune"]);
    site.ok(&["verify"]);
    site.restic(&["check", "--read-data"]);
}

/// A drill is no reason to write a large file beside the app's, as long as there are others.
#[test]
fn a_drill_takes_no_file_that_is_larger_than_all_of_it() {
    let lab = crate::lab::Lab::quick("");
    lab.write("empty", b"");
    lab.write("small", &noise(1, 10_000));
    let large = std::fs::File::create(lab.dir.path().join("data/a-film")).unwrap();
    large.set_len(300 << 20).unwrap();
    lab.backup().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let drill = lifeboat::files::drill(&lab.target, scratch.path()).unwrap();
    assert_eq!((drill.files, drill.bytes), (2, 10_000));
    // Where there is nothing else, it is.
    for name in ["empty", "small"] {
        std::fs::remove_file(lab.dir.path().join("data").join(name)).unwrap();
    }
    lab.backup().unwrap();
    let drill = lifeboat::files::drill(&lab.target, scratch.path()).unwrap();
    assert_eq!((drill.files, drill.bytes), (1, 300 << 20));
}
