//! Histories of backups that are pruned: what is kept stays whole, and what nobody needs goes.

use jiff::tz::TimeZone;
use lifeboat::files::{self, Goal, NewLabel};
use lifeboat::store::testing::{Call, Fault};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::lab::{Lab, marks};
use crate::site::noise;

const NEWEST_ONLY: &str = ", retention: { point-in-time: 0s, daily: 1 }";

fn prune(lab: &Lab) -> files::Pruned {
    files::prune(&lab.target, &TimeZone::UTC, false).unwrap()
}

/// Bytes of all packs.
fn held(lab: &Lab) -> usize {
    let packs = lab.objects("data/");
    packs.iter().map(|pack| lab.get(pack).len()).sum()
}

/// What stock restic's own prune would still do, a sixth of everything at most; on a copy.
fn restic_finds_little_left(lab: &Lab) {
    let copy = tempfile::tempdir().unwrap();
    let mut before = 0;
    for name in lab.objects("") {
        let path = copy.path().join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let content = lab.get(&name);
        if name.starts_with("data/") {
            before += content.len();
        }
        std::fs::write(path, content).unwrap();
    }
    let out = std::process::Command::new("restic")
        .args(["--no-cache", "prune", "--max-unused", "0", "-r"])
        .arg(copy.path())
        .env("RESTIC_PASSWORD", "secret")
        .output()
        .expect("restic is missing: apt-get install restic");
    assert!(out.status.success(), "{}", crate::site::words(&out));
    let mut after = 0;
    for folder in std::fs::read_dir(copy.path().join("data")).unwrap() {
        for pack in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            after += pack.unwrap().metadata().unwrap().len();
        }
    }
    let after = usize::try_from(after).unwrap();
    assert!(before <= after + after / 6 + 4096, "{before} and {after}");
}

/// Any history: folders and files that come, change, move and go, snapshots that are forgotten, prunes a day apart or not.
#[test]
fn heavy_any_history_keeps_what_is_kept_and_nothing_else() {
    for seed in 0..8 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let lab = Lab::quick(", retention: { point-in-time: 0s, daily: 1 }");
        let mut pictures = std::collections::HashMap::new();
        let (mut marked, mut deleted) = (0, 0);
        for step in 0..14 {
            for _ in 0..random.random_range(1..12) {
                let name = format!(
                    "{}/{}",
                    random.random_range(0..6),
                    random.random_range(0..9)
                );
                let size = [0, 10, 3_000, 400_000][random.random_range(0..4_usize)];
                // The same content in several places, and again after it was gone.
                lab.write(&name, &noise(random.random_range(0..40), size));
            }
            let gone = lab
                .dir
                .path()
                .join(format!("data/{}", random.random_range(0..6)));
            if random.random_bool(0.3) && gone.exists() {
                std::fs::remove_dir_all(gone).unwrap();
            }
            let label = random.random_bool(0.2).then(|| NewLabel {
                name: format!("v{step}"),
                version: None,
            });
            let made = files::backup(&lab.target, label.as_ref(), drop).unwrap();
            pictures.insert(made.point.id, lab.picture());
            if !random.random_bool(0.4) {
                continue;
            }
            // Two files of the index for one pack, as after a run that was not finished; a stranger's pack; an older prune's mark.
            if random.random_bool(0.3) {
                lab.list_again();
            }
            if random.random_bool(0.3) {
                lab.put(&format!("data/ab/ab{step:062}"), Some(&noise(step, 5_000)));
            }
            let pruned = prune(&lab);
            marked += pruned.marked_bytes;
            deleted += pruned.deleted_bytes;
            lab.referee();
            let points = files::list(&lab.target).unwrap();
            for point in &points {
                let goal = Goal::Id(point.id.clone());
                assert_eq!(lab.restored(&goal).unwrap(), pictures[&point.id]);
            }
            if random.random_bool(0.5) && lab.has_marks() {
                lab.marked_long_ago();
            }
        }
        // Two more runs, a day apart: nothing is left to do, and the third one writes nothing.
        for _ in 0..2 {
            prune(&lab);
            if lab.has_marks() {
                lab.marked_long_ago();
            }
        }
        deleted += prune(&lab).deleted_bytes;
        assert!(marked > 0, "nothing was ever given up");
        assert!(deleted > 0, "nothing was ever deleted");
        restic_finds_little_left(&lab);
        let before = (lab.objects("data/"), lab.objects("index/"), held(&lab));
        prune(&lab);
        assert_eq!(
            before,
            (lab.objects("data/"), lab.objects("index/"), held(&lab))
        );
        lab.referee();
        // The daemon goes on after it.
        lab.write("last", b"x");
        let made = lab.backup().unwrap();
        assert_eq!(
            lab.restored(&Goal::Id(made.point.id)).unwrap(),
            lab.picture()
        );
    }
}

/// A file whose content is the text of a folder has the folder's hash.
#[test]
fn a_file_that_reads_as_a_folder_is_not_the_folder() {
    let lab = Lab::quick(NEWEST_ONLY);
    lab.write("folder/f", b"content");
    lab.backup().unwrap();
    // Every folder's text, as files of another one.
    for (n, text) in lab.folders().iter().enumerate() {
        lab.write(&format!("texts/{n}"), text);
    }
    lab.write("large", &noise(1, 3_000_000));
    lab.backup().unwrap();
    lab.write("large", &noise(2, 3_000_000));
    let newest = lab.backup().unwrap();
    for _ in 0..2 {
        prune(&lab);
        lab.referee();
        assert_eq!(
            lab.restored(&Goal::Id(newest.point.id.clone())).unwrap(),
            lab.picture()
        );
        let pieces = lab.pieces();
        let is_both = |id: &String| pieces.contains(&("tree".into(), id.clone()));
        let both = pieces
            .iter()
            .filter(|(kind, id)| kind == "data" && is_both(id));
        assert!(both.count() > 0, "they have one hash");
        if lab.has_marks() {
            lab.marked_long_ago();
        }
    }
}

/// Each run leaves a small pack of each kind and a file of the index: a year of hours would be seventeen thousand objects, all read at each start.
#[test]
fn small_packs_and_files_of_the_index_are_put_together() {
    let lab = Lab::quick(", retention: { point-in-time: 30d }");
    for n in 0..30 {
        lab.write(&format!("{n}"), &noise(n, 300_000));
        lab.backup().unwrap();
    }
    let (packs, index) = (lab.objects("data/").len(), lab.objects("index/").len());
    assert!(packs >= 60 && index >= 30, "{packs} packs, {index} files");
    prune(&lab);
    lab.referee();
    assert_eq!(lab.objects("index/").len(), 1);
    lab.marked_long_ago();
    prune(&lab);
    lab.referee();
    // 9 MB in packs of four, the last one not full; folders come to less than a pack, and stay.
    let packs = lab.objects("data/").len();
    assert!(packs <= 3 + 30, "{packs}");
    assert_eq!(files::list(&lab.target).unwrap().len(), 30);
    for point in files::list(&lab.target).unwrap() {
        let files = lab.restored(&Goal::Id(point.id)).unwrap();
        assert!(!files.is_empty());
    }
}

/// What was marked is needed again: the same content comes back before it is deleted.
#[test]
fn what_comes_back_is_taken_back_from_the_marked() {
    let lab = Lab::quick(NEWEST_ONLY);
    lab.write("a", &noise(1, 3_000_000));
    lab.backup().unwrap();
    std::fs::remove_file(lab.dir.path().join("data/a")).unwrap();
    lab.write("b", b"something");
    lab.backup().unwrap();
    assert!(prune(&lab).marked_bytes > 2_000_000);
    // An index as restic makes it anew: from all packs, also marked ones.
    lab.write("a", &noise(1, 3_000_000));
    let uploaded = lab.backup().unwrap().uploaded;
    assert!(
        uploaded > 2_000_000,
        "it was read again, not relied upon: {uploaded}"
    );
    lab.marked_long_ago();
    prune(&lab);
    lab.referee();
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
    assert!(held(&lab) < 4_000_000, "held once");
}

/// A backup by something that knows no locks, in the middle of it.
#[test]
fn a_snapshot_that_comes_in_spite_of_the_lock_stops_it() {
    let lab = Lab::quick(NEWEST_ONLY);
    for n in 0..3 {
        lab.write("f", &noise(n, 100_000));
        lab.backup().unwrap();
    }
    let (name, snapshot) = {
        let name = lab.objects("snapshots/").pop().unwrap();
        (name.clone(), lab.get(&name))
    };
    let (packs, index) = (lab.objects("data/"), lab.objects("index/"));
    // It is there under another name from the first delete on.
    let pause = Fault::Delay(std::time::Duration::from_millis(500));
    lab.faults.inject(Some(Call::Delete), 0, 2, pause);
    let error = std::thread::scope(|scope| {
        let run = scope.spawn(|| files::prune(&lab.target, &TimeZone::UTC, false).map(drop));
        let deletes = || {
            lab.faults
                .calls()
                .iter()
                .filter(|(c, path)| *c == Call::Delete && path.contains("snapshots"))
                .count()
        };
        while deletes() == 0 && !run.is_finished() {
            std::thread::yield_now();
        }
        let other = format!(
            "snapshots/{}{}",
            "0".repeat(16),
            &name["snapshots/".len() + 16..]
        );
        lab.put(&other, Some(&snapshot));
        let done = run.join().unwrap();
        lab.put(&other, None);
        done
    });
    let said = error.unwrap_err().to_string();
    assert!(said.contains("in spite of the lock"), "{said}");
    assert_eq!(packs, lab.objects("data/"));
    assert_eq!(index, lab.objects("index/"));
    prune(&lab);
    lab.referee();
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
}

/// Three snapshots of a folder that changes by half: packs of the newest hold what nobody needs any more.
fn partly_used() -> Lab {
    let lab = Lab::quick(NEWEST_ONLY);
    for n in 0..3 {
        for part in 0..6 {
            let seed = if part % 2 == 0 {
                part
            } else {
                10 * (n + 1) + part
            };
            lab.write(&format!("{part}"), &noise(seed, 200_000));
        }
        lab.backup().unwrap();
    }
    lab
}

/// A bit rots in what would be copied: older snapshots may hold the last good copy of that file.
#[test]
fn nothing_is_forgotten_if_what_is_kept_cannot_be_copied() {
    let lab = partly_used();
    let clean = lab.fork();
    prune(&clean);
    let is_new = |pack: &String| !lab.objects("data/").contains(pack);
    assert!(
        clean.objects("data/").iter().any(is_new),
        "something is copied"
    );
    for pack in lab.objects("data/") {
        let mut bytes = lab.get(&pack);
        bytes[100] ^= 1;
        lab.put(&pack, Some(&bytes));
    }
    let before = lab.objects("snapshots/");
    let error = files::prune(&lab.target, &TimeZone::UTC, false)
        .map(drop)
        .unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    assert_eq!(lab.objects("snapshots/"), before);
}

/// As after a snapshot that was written in spite of the lock of a prune: rustic takes none.
#[test]
fn a_marked_pack_that_a_snapshot_needs_is_taken_back() {
    let lab = partly_used();
    lab.change_index(|index| {
        let packs = index["packs"].as_array_mut().unwrap();
        let mut moved = std::mem::take(packs);
        for pack in &mut moved {
            pack["time"] = "2020-01-01T00:00:00Z".into();
        }
        index["packs_to_delete"] = moved.into();
    });
    prune(&lab);
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
    lab.referee();
    files::verify(&lab.target).unwrap();
}

/// What is lost and only forgotten snapshots need must not keep them for ever.
#[test]
fn what_only_forgotten_snapshots_need_may_be_missing_or_cut() {
    for cut in [false, true] {
        let lab = Lab::quick(NEWEST_ONLY);
        lab.write("f", &noise(1, 300_000));
        lab.backup().unwrap();
        let old = lab.objects("data/");
        lab.write("f", &noise(2, 300_000));
        lab.backup().unwrap();
        let largest = old.iter().max_by_key(|pack| lab.get(pack).len()).unwrap();
        let half = lab.get(largest)[..1000].to_vec();
        lab.put(largest, cut.then_some(&half[..]));
        prune(&lab);
        assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
        files::verify(&lab.target).unwrap();
        prune(&lab);
        lab.referee();
        assert_eq!(files::list(&lab.target).unwrap().len(), 1);
    }
}

/// The room that a full store needs is given back before anything is written.
#[test]
fn a_full_store_is_emptied() {
    let lab = partly_used();
    prune(&lab);
    lab.marked_long_ago();
    let before = held(&lab);
    lab.faults
        .inject(Some(Call::Put), 1, u64::MAX, Fault::NoSpace);
    lab.write("1", &noise(77, 200_000));
    let _ = files::prune(&lab.target, &TimeZone::UTC, false);
    lab.faults.clear();
    assert!(held(&lab) < before - 300_000, "{} of {before}", held(&lab));
    prune(&lab);
    lab.referee();
}

/// Marks as rustic and wrong clocks leave them: without a time, of the future, without the size of what was in no index.
#[test]
fn odd_marks_hold_nothing_up_and_come_to_their_end() {
    let lab = partly_used();
    lab.put(&format!("data/ab/ab{:062}", 1), Some(&noise(5, 5_000)));
    prune(&lab);
    let mut kinds = 0;
    lab.change_index(|index| {
        for pack in marks(index) {
            let pack = pack.as_object_mut().unwrap();
            pack.remove("size");
            match kinds % 3 {
                0 => pack.remove("time"),
                1 => pack.insert("time".into(), "2999-01-01T00:00:00Z".into()),
                _ => None,
            };
            kinds += 1;
        }
    });
    assert!(kinds >= 3, "{kinds}");
    prune(&lab);
    files::verify(&lab.target).unwrap();
    lab.marked_long_ago();
    assert!(prune(&lab).deleted_bytes > 0);
    lab.referee();
    assert!(
        !lab.objects("data/ab/")
            .iter()
            .any(|name| name.ends_with("01"))
    );
}

/// Copies by hand beside the packs are nobody's: neither marked nor taken for the pack.
#[test]
fn strays_change_nothing() {
    let lab = partly_used();
    prune(&lab);
    let pack = lab.objects("data/").pop().unwrap();
    let name = pack.rsplit('/').next().unwrap();
    lab.put(&format!("data/{name}"), Some(b"short"));
    lab.put(&format!("data/zz/{name}"), Some(b"short"));
    let before = (lab.objects("data/"), lab.objects("index/"));
    prune(&lab);
    prune(&lab);
    files::verify(&lab.target).unwrap();
    assert_eq!((lab.objects("data/"), lab.objects("index/")), before);
}

#[test]
fn what_killed_uploads_left_goes() {
    let site = crate::site::Site::quick();
    site.write("a", b"a");
    site.ok(&["snapshot"]);
    let left = site.repository().join(format!("data/ab/ab{:062}#1", 1));
    std::fs::create_dir_all(left.parent().unwrap()).unwrap();
    std::fs::write(&left, b"half a pack").unwrap();
    site.ok(&["prune"]);
    assert!(!left.exists());
    site.restic(&["check", "--read-data"]);
}
