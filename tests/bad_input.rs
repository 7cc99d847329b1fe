//! What people and machines get wrong around restores and labels: what is said, and that nothing is lost.
#![allow(missing_docs)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::daemon::{Daemon, Site, assert_same_pages};
use common::mount::Mount;
use common::python;

/// Everything in a folder, by name and length.
fn listing(folder: &Path) -> Vec<(String, u64)> {
    let mut all: Vec<(String, u64)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap())
        .map(|f| {
            (
                f.file_name().into_string().unwrap(),
                f.metadata().unwrap().len(),
            )
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_copy_for_which_there_is_no_room_is_refused_before_it_begins() {
    let mut site = Site::new();
    let _small = Mount::tmpfs(&site.path("small"), 1);
    site.sync();
    let copy = site.path("small/copy.sqlite3");
    let error = site.fails(1, &["restore", "app", "-o", copy.to_str().unwrap()]);
    assert!(
        error.contains("free")
            && error.contains("nothing was changed")
            && error.contains("hint: free space"),
        "{error}"
    );
    assert_eq!(listing(&site.path("small")), []);

    // In place: the old database needs its room until the new one is proven.
    let tight = Mount::tmpfs(&site.path("tight"), 8);
    let db = site.path("tight/tight.sqlite3");
    python(
        &db,
        "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(id integer primary key,a)')
c.execute('begin'); c.executemany('insert into t(a) values(?)',((os.urandom(500),) for _ in range(3500))); c.execute('commit'); c.execute('pragma wal_checkpoint(truncate)')",
    );
    let filler = usize::try_from(tight.free()).unwrap() - (1 << 20);
    std::fs::write(site.path("tight/filler"), vec![1; filler]).unwrap();
    site.min_free = "1";
    site.db = db.clone();
    site.ok(&["sync"]);
    let before = (listing(&site.path("tight")), std::fs::read(&db).unwrap());
    let error = site.fails(1, &["restore", "tight", "--in-place"]);
    assert!(
        error.contains("free") && error.contains("nothing was changed"),
        "{error}"
    );
    assert_eq!(
        (listing(&site.path("tight")), std::fs::read(&db).unwrap()),
        before
    );
}

/// The next capture of the daemon is durable, and restores exactly.
fn goes_on(site: &Site, daemon: &Daemon, mark: &str) {
    site.write(&format!("update t set a='{mark}' where id=1"));
    let begun = Instant::now();
    while !site
        .run(&["sync", "app", "--timeout", "5s"])
        .status
        .success()
    {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{mark}\n{}",
            daemon.log()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    let (oracle, copy) = (site.copy_now("oracle.db"), site.path("back.db"));
    site.ok(&["restore", "app", "-o", copy.to_str().unwrap()]);
    assert_same_pages(&oracle, &copy, mark);
    for path in [oracle, copy] {
        std::fs::remove_file(path).unwrap();
    }
}

/// Kills the command before its `turn`-th call that makes something durable or gives it a name.
fn killed(site: &Site, args: &[&str], call: &str, turn: u32) -> bool {
    let plain = site.command(args);
    let status = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={call}"),
            "-e",
        ])
        .arg(format!("inject={call}:signal=KILL:when={turn}"))
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(site.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("strace is missing: run bin/install-dev");
    !status.success()
}

#[test]
fn a_restore_that_dies_in_the_middle_gives_the_database_back_to_the_daemon() {
    let site = Site::new();
    let daemon = site.start();
    let good = format!("{:016x}", site.sync());
    site.write("delete from t where id % 2");
    site.sync();
    let restore = ["restore", "app", "--in-place", "--txid", &good];
    let mut kills = 0;
    for (call, turns) in [
        ("fsync", 1..=4),
        ("rename", 1..=3),
        ("fchmod", 1..=1),
        ("unlink", 1..=1),
    ] {
        for turn in turns {
            kills += u32::from(killed(&site, &restore, call, turn));
            goes_on(&site, &daemon, &format!("{call} {turn}"));
        }
    }
    assert!(kills >= 4, "{kills} kills only: does strace work here?");
    site.ok(&restore);
    goes_on(&site, &daemon, "a restore that was let be");
    let left: Vec<_> = listing(site.dir.path())
        .into_iter()
        .filter(|(name, _)| name.contains(".lifeboat-restore"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    daemon.stop();
}

#[test]
fn labels_with_odd_characters_are_taken_as_they_are_or_refused() {
    let site = Site::new();
    site.sync();
    let odd = [
        "v1/2",
        "..",
        "a b",
        "größe",
        "日本",
        "50%",
        "$(touch x)",
        "'\"`;&|",
        "-dash",
        "a\\b",
        "CON.json",
    ];
    for (number, label) in odd.iter().enumerate() {
        site.write(&format!("update t set a='{number}' where id=1"));
        let named = format!("--label={label}");
        site.ok(&["snapshot", &named]);
        let copy = site.path("odd.db");
        site.ok(&["restore", "app", &named, "-o", copy.to_str().unwrap()]);
        let row = "print(conn().execute('select a from t where id=1').fetchone()[0])";
        assert_eq!(python(&copy, row), number.to_string(), "{label}");
        std::fs::remove_file(&copy).unwrap();
    }
    let listed = site.ok(&["list", "app"]);
    for label in odd {
        assert!(listed.contains(label), "{label} in {listed}");
    }
    assert!(!site.path("x").exists());
    let long = "x".repeat(76);
    let before = listing(&site.path("store/app/lifeboat/labels"));
    for label in ["", "a#2", "line\nbreak", "bell\u{7}", "auto/mine", &long] {
        let error = site.fails(2, &["snapshot", &format!("--label={label}")]);
        assert!(error.contains("label"), "{label:?}: {error}");
    }
    assert_eq!(listing(&site.path("store/app/lifeboat/labels")), before);
    let error = site.fails(3, &["restore", "app", "--label", "grösse", "-o", "y.db"]);
    assert!(error.contains("did you mean --label größe"), "{error}");
}

/// A host whose clock is ahead by hours hands over to one that is right.
#[test]
fn hosts_whose_clocks_differ_take_over_from_each_other() {
    let library = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    ]
    .into_iter()
    .find(|l| Path::new(l).exists())
    .expect("libfaketime is missing: apt-get install faketime");
    let mut site = Site::new();
    let mut oracles = Vec::new();
    for (round, (instance, offset)) in [
        ("web1", "+3h"),
        ("web2", "+0"),
        ("web3", "-2h"),
        ("web1", "+0"),
    ]
    .into_iter()
    .enumerate()
    {
        site.instance = instance.into();
        site.env = vec![
            ("LD_PRELOAD".into(), library.into()),
            ("FAKETIME".into(), offset.into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
        ];
        let daemon = site.start();
        for step in 0..2 {
            site.write(&format!(
                "update t set a='{instance} {round} {step}' where id={}",
                round * 2 + step + 1
            ));
            let txid = site.sync();
            oracles.push((txid, site.copy_now(&format!("oracle-{round}-{step}.db"))));
        }
        site.ok(&["release", "app"]);
        daemon.stop();
    }
    site.env.clear();
    assert!(
        oracles.is_sorted_by(|a, b| a.0 < b.0),
        "positions rise whatever the clocks say"
    );
    for (txid, oracle) in &oracles {
        let copy = site.path("back.db");
        site.ok(&[
            "restore",
            "app",
            "--txid",
            &format!("{txid:x}"),
            "-o",
            copy.to_str().unwrap(),
        ]);
        assert_same_pages(oracle, &copy, &format!("TXID {txid:x}"));
        std::fs::remove_file(&copy).unwrap();
    }
    // The newest is the newest by position, not by a clock that was wrong.
    let copy = site.path("newest.db");
    site.ok(&["restore", "app", "-o", copy.to_str().unwrap()]);
    assert_same_pages(&oracles.last().unwrap().1, &copy, "newest");
    // Points in time are by the clock of the host that captured: retention takes none of them for old.
    site.ok(&["prune", "--dry-run"]);
    site.ok(&["verify"]);
}
