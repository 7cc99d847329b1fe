//! Several at work: on one folder, on one repository, and a store that is not there beside one that is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lifeboat::files::{self, FilesError, Goal, Output};
use lifeboat::store::testing::{Call, Fault};

use crate::lab::Lab;
use crate::site::{Running, Site, closely, noise, packs, picture, wait_for, words};

/// Two files of one folder, each a path of its own, change places in one run.
#[test]
fn two_files_of_one_folder_are_restored_in_place() {
    let mut lab = Lab::quick("");
    lab.write("a", b"old");
    lab.write("b", b"old");
    let path = |name: &str| lab.dir.path().join("data").join(name);
    let paths = vec![path("a"), path("b")];
    Arc::make_mut(&mut lab.target.config).paths = paths;
    lab.backup().unwrap();
    let before = lab.picture();
    lab.write("a", b"new");
    lab.write("b", b"new");
    lab.write("c", b"not ours");
    let in_place = |lab: &Lab| {
        files::restore(&lab.target, &Goal::Newest, None, &Output::InPlace, false).unwrap()
    };
    assert_eq!(in_place(&lab).kept.len(), 2);
    let read = |name: &str| std::fs::read(lab.dir.path().join("data").join(name)).unwrap();
    assert_eq!((read("a"), read("b")), (b"old".to_vec(), b"old".to_vec()));
    let undone = files::undo(&lab.target.config, &lab.target.left_out, None).unwrap();
    assert_eq!(undone.len(), 2);
    assert_eq!((read("a"), read("b")), (b"new".to_vec(), b"new".to_vec()));
    assert_eq!(read("c"), b"not ours");
    // One that cannot be restored leaves nothing of the other.
    let pack = lab.objects("data/");
    pack.iter().for_each(|p| lab.put(p, Some(b"cut")));
    files::restore(&lab.target, &Goal::Newest, None, &Output::InPlace, false).unwrap_err();
    assert_eq!((read("a"), read("b")), (b"new".to_vec(), b"new".to_vec()));
    let left = lab.picture();
    assert!(
        !left.iter().any(|l| l.contains(".lifeboat-restored-")),
        "{left:?}"
    );
    assert_eq!(before.len(), 3);
}

/// Of several paths an undo takes those of the newest restore, all or none, and leaves the others.
#[test]
fn an_undo_of_several_paths_is_of_one_restore() {
    let mut lab = Lab::quick("");
    let path = |name: &str| lab.dir.path().join("data").join(name);
    let paths = [path("a"), path("b")];
    Arc::make_mut(&mut lab.target.config).paths = paths.to_vec();
    let write = |text: &str| {
        lab.write("a/f", text.as_bytes());
        lab.write("b/f", text.as_bytes());
    };
    let read = |name: &str| {
        let file = lab.dir.path().join("data").join(name).join("f");
        String::from_utf8(std::fs::read(file).unwrap()).unwrap()
    };
    let both = || (read("a"), read("b"));
    let is = |a: &str, b: &str| assert_eq!(both(), (a.into(), b.into()));
    let restore = |path: Option<&Path>| {
        files::restore(&lab.target, &Goal::Newest, path, &Output::InPlace, false).unwrap()
    };
    let undo = |path: Option<&Path>| {
        let done = files::undo(&lab.target.config, &lab.target.left_out, path)?;
        Ok::<_, FilesError>(done.into_iter().map(|one| one.path).collect::<Vec<_>>())
    };
    write("saved");
    lab.backup().unwrap();
    for text in ["january", "june"] {
        write(text);
        restore(None);
    }
    // One is undone already: that of the same restore follows.
    assert_eq!(undo(Some(&paths[1])).unwrap(), paths[1..]);
    is("saved", "june");
    assert_eq!(undo(None).unwrap(), paths[..1]);
    is("june", "june");
    let refused = undo(None).unwrap_err();
    assert!(
        matches!(refused, FilesError::UndoneAlready { .. }),
        "{refused}"
    );
    is("june", "june");
    // The newest restore was of one path only.
    restore(None);
    write("july");
    restore(Some(&paths[1]));
    is("july", "saved");
    let would = files::kept(&lab.target.config, None).unwrap();
    assert_eq!(would.len(), 1);
    assert_eq!(undo(None).unwrap(), paths[1..]);
    is("july", "july");
    assert!(undo(None).is_err());
    is("july", "july");
    assert_eq!(undo(Some(&paths[0])).unwrap(), paths[..1]);
    is("june", "july");
}

/// A store that fails in the middle while somebody else writes to the same folder: what is theirs stays.
#[test]
fn a_failed_restore_takes_only_its_own_away() {
    let lab = Lab::quick("");
    for n in 0..40 {
        lab.write(&format!("d{n}/f"), &noise(n, 200_000));
    }
    lab.backup().unwrap();
    let to = lab.dir.path().join("back");
    let clean = lab.fork();
    let run = |lab: &Lab| {
        let output = Output::Folder(lab.dir.path().join("back"));
        files::restore(&lab.target, &Goal::Newest, None, &output, true)
    };
    run(&clean).unwrap();
    std::fs::remove_dir_all(&to).unwrap();
    let calls = clean.faults.calls();
    let gets = calls.iter().filter(|c| c.0 == Call::Get).enumerate();
    let of_packs = gets.filter(|(_, c)| c.1.starts_with("data/"));
    let of_packs: Vec<u64> = of_packs.map(|(n, _)| n as u64).collect();
    let [.., held, _, _] = of_packs.as_slice() else {
        panic!("{calls:?}");
    };
    let pause = Fault::Delay(Duration::from_secs(3));
    lab.faults.inject(Some(Call::Get), *held, 1, pause);
    lab.faults
        .inject(Some(Call::Get), held + 1, u64::MAX, Fault::Denied);
    std::thread::scope(|scope| {
        let restore = scope.spawn(|| run(&lab));
        wait_for("folder", || to.join("d0").is_dir());
        std::fs::write(to.join("theirs"), "theirs").unwrap();
        let other = run(&clean).map(drop);
        assert!(
            matches!(other, Err(FilesError::Running(_) | FilesError::Refused(_))),
            "{other:?}"
        );
        let failed = restore.join().unwrap().map(drop).unwrap_err();
        assert!(matches!(failed, FilesError::Store(_)), "{failed}");
    });
    assert_eq!(std::fs::read(to.join("theirs")).unwrap(), b"theirs");
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 1);
}

/// Where the store's clock says something else, nothing is deleted; a backup goes on.
#[test]
fn a_clock_that_is_not_the_stores_prunes_nothing() {
    let lab = Lab::quick(", retention: { point-in-time: 0s, daily: 1 }");
    for round in 0..3 {
        lab.write("f", &noise(round, 50_000));
        lab.backup().unwrap();
    }
    let older = Fault::Older(Duration::from_secs(3600), "locks/".into());
    lab.faults.inject(Some(Call::List), 0, u64::MAX, older);
    let prune = |lab: &Lab| files::prune(&lab.target, &jiff::tz::TimeZone::UTC, false);
    let error = prune(&lab).map(drop).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(error.to_string().contains("nothing was deleted"), "{error}");
    assert_eq!(files::list(&lab.target).unwrap().len(), 3);
    lab.backup().unwrap();
    lab.faults.clear();
    prune(&lab).unwrap();
    assert_eq!(files::list(&lab.target).unwrap().len(), 1);
}

/// Two of ours, and one of restic's, on one repository at the same time: three whole snapshots, and no prune in between.
#[test]
fn writers_share_a_repository_and_prune_waits() {
    let site = Site::quick();
    for n in 0..16 {
        site.write(&format!("f{n}"), &noise(n, 2_000_000));
    }
    site.ok(&["files", "init"]);
    let theirs = site.path("theirs");
    std::fs::create_dir(&theirs).unwrap();
    for n in 0..8 {
        std::fs::write(theirs.join(n.to_string()), noise(100 + n, 2_000_000)).unwrap();
    }
    let quiet = |mut command: std::process::Command| {
        let command = command.stdout(std::process::Stdio::null());
        Running(command.spawn().unwrap())
    };
    let locks = || std::fs::read_dir(site.repository().join("locks")).map_or(0, Iterator::count);
    let mut restic = site.restic_command();
    restic.arg("-r").arg(site.repository());
    restic.args(["backup", "-q", theirs.to_str().unwrap()]);
    // It stays in the middle: its input ends when it is told to.
    let mut held = site.restic_command();
    held.arg("-r").arg(site.repository());
    held.args(["backup", "-q", "--stdin"]);
    let mut held = held
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("lock", || locks() > 0);
    let mut all = [
        quiet(site.prepared(&["snapshot", "uploads"])),
        quiet(site.prepared(&["snapshot", "uploads"])),
        quiet(restic),
    ];
    let text = site.refused(&["prune"], 4);
    assert!(
        text.contains("is locked by") && text.contains("restic unlock"),
        "{text}"
    );
    for one in &mut all {
        assert!(one.0.wait().unwrap().success());
    }
    use std::io::Write;
    held.stdin.take().unwrap().write_all(b"piped").unwrap();
    assert!(held.wait().unwrap().success());
    assert_eq!(locks(), 0);
    let points = site.points();
    assert_eq!(points.len(), 4);
    site.restic(&["check", "--read-data"]);
    for point in points.iter().filter(|p| p["ours"] == true) {
        let id = point["id"].as_str().unwrap();
        site.ok(&["restore", "uploads", "--snapshot", id, "-o", id]);
        assert_eq!(picture(&site.path(id)), picture(&site.path("data")));
    }
    // The other way round: while one of ours prunes or checks, restic keeps to the lock.
    assert!(packs(&site).len() > 2);
    site.ok(&["prune"]);
    site.restic(&["check"]);
}

/// Locks of processes and hosts that died.
#[test]
fn locks_of_the_dead_are_met_in_order() {
    let site = Site::quick();
    for n in 0..24 {
        site.write(&format!("f{n}"), &noise(n, 2_000_000));
    }
    site.ok(&["files", "init"]);
    let locks = || -> Vec<_> {
        let folder = std::fs::read_dir(site.repository().join("locks"));
        folder.map_or(Vec::new(), |all| all.map(|e| e.unwrap().path()).collect())
    };
    // Ours, of this host: stale at once.
    let mut run = Running(site.prepared(&["snapshot"]).spawn().unwrap());
    closely("pack", || packs_of(&site) > 0);
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    let ours = locks();
    assert_eq!(ours.len(), 1);
    let kept = std::fs::read(&ours[0]).unwrap();
    site.ok(&["snapshot"]);
    site.ok(&["prune"]);
    assert_eq!(locks().len(), 0);
    // restic's: of a process that died; respected for half an hour by the store's clock.
    let mut restic = site.restic_command();
    restic.arg("-r").arg(site.repository());
    restic.args(["backup", "-q", "--stdin"]);
    let mut restic = restic.stdin(std::process::Stdio::piped()).spawn().unwrap();
    wait_for("lock", || !locks().is_empty());
    restic.kill().unwrap();
    restic.wait().unwrap();
    site.refused(&["prune"], 4);
    let old = std::time::SystemTime::now() - Duration::from_secs(31 * 60);
    let set_old = |path: &std::path::Path| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(old).unwrap();
    };
    set_old(&locks()[0]);
    site.ok(&["prune"]);
    assert_eq!(locks().len(), 0);
    // Half a lock: nobody knows whose, so it is respected for as long.
    std::fs::write(&ours[0], &kept[..kept.len() / 2]).unwrap();
    for args in [&["snapshot"][..], &["prune"]] {
        let text = site.refused(args, 4);
        assert!(text.contains("a lock that cannot be read"), "{text}");
    }
    set_old(&ours[0]);
    site.ok(&["snapshot"]);
    site.ok(&["prune"]);
    assert_eq!(locks().len(), 0);
}

fn packs_of(site: &Site) -> usize {
    match site.repository().join("data").is_dir() {
        true => packs(site).len(),
        false => 0,
    }
}

/// The store that holds the newest snapshot is damaged: the other one has an older one, and that is said.
#[test]
fn an_older_snapshot_of_another_store_is_said_to_be_older() {
    let mut site = Site::new();
    let at = |name: &str| site.path(name).display().to_string();
    let text = format!(
        "stores: [\"file://{}\", \"file://{}\"]\n",
        at("one"),
        at("two")
    );
    site.stores = Some(text);
    site.write("f", &noise(1, 300_000));
    site.ok(&["snapshot", "uploads"]);
    let config = site.path("two/uploads/config");
    std::fs::rename(&config, site.path("away")).unwrap();
    site.write("f", &noise(2, 300_000));
    let out = site.run(&["snapshot", "uploads"]);
    assert!(!out.status.success(), "{}", words(&out));
    std::fs::rename(site.path("away"), &config).unwrap();
    for folder in std::fs::read_dir(site.path("one/uploads/data")).unwrap() {
        for pack in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let pack = pack.unwrap().path();
            if pack.metadata().unwrap().len() > 100_000 {
                std::fs::write(pack, b"cut").unwrap();
            }
        }
    }
    let out = site.run(&["restore", "uploads", "-o", "back", "--json"]);
    let text = words(&out);
    assert!(out.status.success(), "{text}");
    assert!(text.contains("going on with an older snapshot"), "{text}");
    let json = text.lines().find(|l| l.starts_with('{')).unwrap();
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    let store = value["instead_of"]["store"].as_str().unwrap();
    assert!(store.ends_with("one/uploads"), "{value}");
    assert_eq!(
        std::fs::read(site.path("back/f")).unwrap(),
        noise(1, 300_000)
    );
}
