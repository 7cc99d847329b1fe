//! A repository that somebody damaged by hand: what is said, what still works, and how it is mended.

use std::path::{Path, PathBuf};

use crate::site::{Site, noise, packs, picture};

const KINDS: [&str; 3] = ["junk", "cut", "gone"];

fn files_of(site: &Site, folder: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(site.repository().join(folder)).unwrap();
    let mut all: Vec<_> = all.map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

fn damage(path: &Path, kind: &str) {
    match kind {
        "junk" => std::fs::write(path, noise(1, 400)).unwrap(),
        "cut" => {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len(30).unwrap();
        }
        _ => std::fs::remove_file(path).unwrap(),
    }
}

/// A site with two snapshots, and how the folder looked each time.
fn two() -> (Site, [Vec<String>; 2]) {
    let site = Site::quick();
    let mut known = Vec::new();
    for round in 0..2 {
        // The largest pack is of the first round.
        let bytes = if round == 0 { 900_000 } else { 600_000 };
        site.write("changes", &noise(round, bytes));
        site.write(&format!("f{round}"), &noise(10 + round, 600_000));
        site.backup();
        known.push(picture(&site.path("data")));
    }
    (site, known.try_into().unwrap())
}

fn restores(site: &Site, known: &[Vec<String>; 2]) {
    for (point, wanted) in site.points().iter().zip(known) {
        let id = point["id"].as_str().unwrap();
        site.ok(&["restore", "uploads", "--snapshot", id, "-o", "back"]);
        assert_eq!(&picture(&site.path("back")), wanted);
        std::fs::remove_dir_all(site.path("back")).unwrap();
    }
}

/// Plain words, a next step, and no noise of a library.
fn told(text: &str, words: &[&str]) {
    assert!(text.contains("hint: "), "{text}");
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
    for noise in ["panicked", "Backtrace", "rustic_core", "RUST_BACKTRACE"] {
        assert!(!text.contains(noise), "{noise}: {text}");
    }
}

#[test]
fn an_index_is_mended_by_restic_and_loses_nothing() {
    let (site, known) = two();
    for kind in KINDS {
        damage(&files_of(&site, "index")[0], kind);
        for args in [&["verify", "uploads"][..], &["prune", "uploads"]] {
            told(
                &site.refused(args, 5),
                &["is damaged", "restic rebuild-index"],
            );
        }
        assert_eq!(site.points().len(), 2, "a list needs no index");
        site.restic(&["rebuild-index"]);
        site.ok(&["verify", "uploads"]);
        restores(&site, &known);
    }
    // Without mending, a backup after an index was lost uploads again what it does not find, and the next run is whole.
    damage(&files_of(&site, "index")[0], "gone");
    let done = site.backup();
    assert!(done["uploaded"].as_u64().unwrap() > 1_000_000, "{done}");
    let id = done["point"]["id"].as_str().unwrap();
    site.ok(&["restore", "uploads", "--snapshot", id, "-o", "newest"]);
    assert_eq!(picture(&site.path("newest")), known[1]);
    site.restic(&["rebuild-index"]);
    site.ok(&["verify", "uploads"]);
    site.ok(&["prune", "uploads"]);
    site.restic(&["check", "--read-data"]);
}

#[test]
fn a_key_is_put_back_and_a_second_one_is_enough() {
    let (site, known) = two();
    let key = files_of(&site, "keys")[0].clone();
    let good = std::fs::read(&key).unwrap();
    for kind in KINDS {
        damage(&key, kind);
        let restore = &["restore", "uploads", "-o", "none"][..];
        for args in [&["snapshot", "uploads"][..], &["list", "uploads"], restore] {
            let text = site.refused(args, 5);
            told(&text, &["key", "nothing was changed", "copy of the store"]);
        }
        assert!(!site.path("none").exists());
        std::fs::write(&key, &good).unwrap();
    }
    restores(&site, &known);
    // A second key, made with restic, opens it although the first is damaged.
    let password = site.path("password");
    std::fs::write(&password, crate::site::PASSWORD).unwrap();
    site.restic(&[
        "key",
        "add",
        "--new-password-file",
        password.to_str().unwrap(),
    ]);
    damage(&key, "junk");
    site.backup();
    assert_eq!(site.points().len(), 3);
    site.ok(&["verify", "uploads"]);
}

#[test]
fn config_is_put_back() {
    let (site, known) = two();
    let config = site.repository().join("config");
    let good = std::fs::read(&config).unwrap();
    for kind in KINDS {
        damage(&config, kind);
        let restore = &["restore", "uploads", "-o", "none"][..];
        for args in [&["snapshot", "uploads"][..], &["list", "uploads"], restore] {
            told(&site.refused(args, 5), &["is damaged"]);
        }
        std::fs::write(&config, &good).unwrap();
    }
    restores(&site, &known);
}

#[test]
fn a_snapshot_that_cannot_be_read_is_removed_by_hand() {
    let (site, known) = two();
    for kind in ["junk", "cut"] {
        let newest = site.points()[1]["id"].as_str().unwrap().to_owned();
        let path = site.repository().join("snapshots").join(&newest);
        damage(&path, kind);
        let listed = site.run(&["list", "uploads"]);
        let text = crate::site::words(&listed);
        assert!(listed.status.success() && text.contains(&newest), "{text}");
        for args in [&["verify", "uploads"][..], &["prune", "uploads"]] {
            told(&site.refused(args, 5), &["cannot be read", &newest]);
        }
        site.ok(&["restore", "uploads", "-o", "older"]);
        assert_eq!(picture(&site.path("older")), known[0]);
        std::fs::remove_dir_all(site.path("older")).unwrap();
        // Its data is still there, so the next backup uploads next to nothing.
        std::fs::remove_file(&path).unwrap();
        let again = site.backup();
        assert!(again["uploaded"].as_u64().unwrap() < 10_000, "{again}");
        site.ok(&["verify", "uploads"]);
    }
    restores(&site, &known);
    site.ok(&["prune", "uploads"]);
    site.restic(&["check", "--read-data"]);
}

#[test]
fn a_pack_is_uploaded_again_from_what_is_still_there() {
    for kind in KINDS {
        let (site, known) = two();
        let pack = packs(&site)[0].clone();
        damage(&pack, kind);
        told(&site.refused(&["verify", "uploads"], 5), &["is damaged"]);
        told(&site.refused(&["prune", "uploads"], 5), &["is damaged"]);
        assert_eq!(site.points().len(), 2);
        // As docs/files.md says it.
        if kind != "gone" {
            std::fs::remove_file(&pack).unwrap();
        }
        site.restic(&["rebuild-index"]);
        let done = site.backup();
        let id = done["point"]["id"].as_str().unwrap();
        // What only the older ones had is lost for good: that is said until somebody lets go of them.
        let points = site.points();
        let short = |n: usize| points[n]["id"].as_str().unwrap()[..8].to_owned();
        let text = site.refused(&["verify", "uploads"], 5);
        told(&text, &["1 of 3 snapshots lack something", &short(0)]);
        told(&site.refused(&["prune", "uploads"], 5), &[&short(0)]);
        site.restic(&["forget", &short(0)]);
        site.ok(&["verify", "uploads"]);
        site.ok(&["prune", "uploads"]);
        site.restic(&["check", "--read-data"]);
        site.ok(&["restore", "uploads", "--snapshot", id, "-o", "newest"]);
        assert_eq!(picture(&site.path("newest")), known[1], "{kind}");
    }
}

/// A folder in which nothing changed is written again like any other, if the store lost it: by its time and its id it looks as if it were there.
#[test]
fn a_quiet_folder_that_was_lost_is_written_again() {
    for lost in ["index", "pack"] {
        let site = Site::quick();
        for n in 0..3 {
            site.write(&format!("quiet{n}/below/f"), &noise(n, 200_000));
        }
        site.backup();
        let (index, of_folders) = (files_of(&site, "index"), packs(&site).pop().unwrap());
        site.write("changes", &noise(9, 200_000));
        site.backup();
        let known = picture(&site.path("data"));
        match lost {
            "index" => std::fs::remove_file(&index[0]).unwrap(),
            _ => {
                std::fs::remove_file(of_folders).unwrap();
                site.restic(&["rebuild-index"]);
            }
        }
        let done = site.backup();
        let id = done["point"]["id"].as_str().unwrap();
        site.ok(&["restore", "uploads", "--snapshot", id, "-o", "back"]);
        assert_eq!(picture(&site.path("back")), known, "{lost}");
        let next = site.backup();
        assert_eq!((&next["unmodified"], &next["new"]), (&4.into(), &0.into()));
    }
}
