//! Runs that were killed.

use std::collections::BTreeSet;

use crate::site::{Running, Site, closely, noise, packs, picture};

#[test]
fn a_killed_run_is_gone_on_with() {
    let site = Site::new();
    site.write("first", b"first");
    site.backup();
    for n in 0..24 {
        site.write(&format!("big{n}"), &noise(n, 2_000_000));
    }
    let before = packs(&site).len();
    let mut run = Running(site.prepared(&["snapshot"]).spawn().unwrap());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while packs(&site).len() < before + 4 {
        assert!(std::time::Instant::now() < deadline, "no packs");
        assert!(
            run.0.try_wait().unwrap().is_none(),
            "it was too fast to be killed"
        );
    }
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    assert_eq!(site.points().len(), 1, "nothing was recorded");
    site.restic(&["unlock"]);
    site.restic(&["check", "--read-data"]);
    let mut run = Running(site.prepared(&["snapshot"]).spawn().unwrap());
    closely("pack", || packs(&site).len() > before + 4);
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    let second = site.backup();
    assert_eq!(second["resumed"], true, "{second}");
    let uploaded = second["uploaded"].as_u64().unwrap();
    assert!(uploaded < 48_000_000 - 12_000_000, "{uploaded} bytes again");
    site.ok(&["verify"]);
    site.ok(&["prune"]);
    site.restic(&["check", "--read-data"]);
}

#[test]
fn heavy_kills_at_random_moments_never_damage_what_was_there() {
    let site = Site::new();
    let mut known: Vec<(String, Vec<String>)> = Vec::new();
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(7_u64);
    println!("SEED={seed}");
    let moments = noise(seed, 8 * 16);
    for (round, moment) in moments.chunks(8).enumerate() {
        for n in 0..6 {
            site.write(
                &format!("r{round}/f{n}"),
                &noise((round * 10 + n) as u64, 900_000),
            );
        }
        site.write("same", &noise(round as u64, 2_000_000));
        let what = if round % 4 == 3 { "prune" } else { "snapshot" };
        let mut run = Running(site.prepared(&[what]).spawn().unwrap());
        let micros = u64::from_le_bytes(moment.try_into().unwrap()) % 1_500_000;
        std::thread::sleep(std::time::Duration::from_micros(micros));
        run.0.kill().unwrap();
        run.0.wait().unwrap();
        // The next run goes on whatever was left behind.
        let done = site.backup();
        let id = done["point"]["id"].as_str().unwrap().to_owned();
        known.push((id, picture(&site.path("data"))));
    }
    site.restic(&["unlock"]);
    site.restic(&["check", "--read-data"]);
    let there: Vec<String> = site
        .points()
        .iter()
        .map(|p| p["id"].as_str().unwrap().to_owned())
        .collect();
    for (id, wanted) in &known {
        assert!(there.contains(id), "{id} was kept by point-in-time");
        let to = format!("back-{}", &id[..8]);
        site.ok(&["restore", "uploads", "--snapshot", id, "-o", &to]);
        assert_eq!(&picture(&site.path(&to)), wanted);
        std::fs::remove_dir_all(site.path(&to)).unwrap();
    }
}

/// Runs a command, killed before the `turn`-th rename of a thread. `false`: it came to its end without it.
fn killed(site: &Site, args: &[&str], call: &str, turn: u32) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let plain = site.prepared(args);
    let out = std::process::Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={call}"))
        .arg("-e")
        .arg(format!("inject={call}:signal=KILL:when={turn}"))
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(site.dir.path())
        .output()
        .expect("strace is missing: run bin/install-dev");
    let killed = out.status.signal() == Some(9) || out.status.code() == Some(137);
    assert!(killed || out.status.success(), "{args:?} {turn}: {out:?}");
    killed
}

/// Without folders of ours, and without the times of folders, which a kill in the middle may change.
fn content(site: &Site) -> Vec<String> {
    let all = picture(&site.path("data")).into_iter();
    let all = all.filter(|line| !line.contains(".lifeboat-"));
    all.map(|line| match line.split_once(" 40755 ") {
        Some((name, _)) => format!("{name} is a folder of mode 40755"),
        None => line,
    })
    .collect()
}

/// Undone as often as there is something to undo.
fn undo_all(site: &Site) {
    loop {
        let out = site.run(&["restore", "uploads", "--undo"]);
        match out.status.code() {
            Some(0) => {}
            Some(4) => return,
            _ => panic!("{out:?}"),
        }
    }
}

#[test]
fn heavy_an_exchange_killed_before_any_rename_is_taken_back_or_finished() {
    let site = Site::new();
    site.write("a", b"first");
    site.write("dir/b", b"first");
    site.write("dir/live.sqlite3", b"SQLite format 3\0live");
    site.backup();
    let first = content(&site);
    let restore = ["restore", "uploads", "--in-place"];
    let undo = ["restore", "uploads", "--undo"];
    let mut kills = 0;
    let change = |site: &Site| {
        for name in ["a", "dir/b", "new"] {
            site.write(name, b"second");
        }
    };
    // strace counts each system call by itself: a rename that may replace, one that may not, a second name.
    let turns = ["rename", "renameat2", "linkat"].map(|call| (1..50).map(move |turn| (call, turn)));
    let mut done = BTreeSet::new();
    for (call, turn) in turns.into_iter().flatten() {
        if done.contains(call) {
            continue;
        }
        change(&site);
        let second = content(&site);
        let was_killed = killed(&site, &restore, call, turn);
        kills += u32::from(was_killed);
        undo_all(&site);
        assert_eq!(
            content(&site),
            second,
            "restore killed before {call} {turn}"
        );
        killed(&site, &restore, call, turn);
        site.ok(&restore);
        assert_eq!(content(&site), first, "restored after {call} {turn}");
        // Again from the start: what the last restore replaced may be what the killed one brought.
        change(&site);
        let second = content(&site);
        site.ok(&restore);
        assert_eq!(content(&site), first);
        let undo_killed = killed(&site, &undo, call, turn);
        kills += u32::from(undo_killed);
        undo_all(&site);
        assert_eq!(content(&site), second, "undo killed before {call} {turn}");
        if !was_killed && !undo_killed {
            done.insert(call);
        }
    }
    assert!(kills > 8, "{kills} kills");
}
