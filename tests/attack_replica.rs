//! Sequences after which a careless sidecar reports as safe what it cannot restore, mixes histories, or deletes what is needed.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::daemon::{Site, assert_same_pages, bring_back, take_away, wait_for};
use common::python;

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_all(&item.path(), &target);
        } else if item.file_type().unwrap().is_file() {
            std::fs::copy(item.path(), target).unwrap();
        }
    }
}

/// What a snapshot of the host would hold: database, its WAL, the state directory.
struct Disk(PathBuf);

impl Disk {
    fn of(site: &Site, name: &str) -> Self {
        let disk = site.path(name);
        std::fs::create_dir_all(&disk).unwrap();
        for suffix in ["", "-wal", "-shm"] {
            let file = PathBuf::from(format!("{}{suffix}", site.db.display()));
            if file.exists() {
                std::fs::copy(&file, disk.join(format!("db{suffix}"))).unwrap();
            }
        }
        copy_all(&site.path("state-web1"), &disk.join("state"));
        Self(disk)
    }

    fn put_back(&self, site: &Site) {
        for suffix in ["", "-wal", "-shm"] {
            let file = PathBuf::from(format!("{}{suffix}", site.db.display()));
            let kept = self.0.join(format!("db{suffix}"));
            let _ = std::fs::remove_file(&file);
            if kept.exists() {
                std::fs::copy(&kept, &file).unwrap();
            }
        }
        std::fs::remove_dir_all(site.path("state-web1")).unwrap();
        copy_all(&self.0.join("state"), &site.path("state-web1"));
    }
}

fn writes(site: &Site, word: &str, n: u32) {
    let first = 1 + 150 * (word.len() as u32 % 16);
    for i in 0..n {
        let id = first + 20 * i;
        site.write(&format!("update t set a='{word} {i}' where id={id}"));
        std::thread::sleep(Duration::from_millis(70));
    }
}

/// Without those that are being written, which have another name.
fn objects(folder: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).into_iter().flatten();
    let mut all: Vec<_> = all.map(|f| f.unwrap().path()).collect();
    all.retain(|f| f.extension().is_some_and(|e| e == "ltx"));
    all.sort();
    all
}

fn bases(store: &Path) -> usize {
    objects(&store.join("app/ltx/9")).len()
}

/// Tried for a while: it may be refused for good.
fn durable_or_refused(site: &Site) {
    site.run(&["sync", "--timeout", "8s"]);
}

/// By itself, however long that takes on a machine that is busy.
fn is_durable(site: &Site) -> bool {
    site.run(&["sync", "--timeout", "60s"]).status.success()
}

/// The host is set back to an older snapshot (database and state directory alike) while the store went on. The branch must not be sent
/// behind what the store has from the other branch, not even when its TXIDs have caught up.
#[test]
fn a_host_set_back_does_not_mix_its_branches() {
    let site = Site::new();
    let daemon = site.start();
    writes(&site, "common", 3);
    site.sync();
    assert_eq!(daemon.stop(), 0);
    let old = Disk::of(&site, "old");
    let daemon = site.start();
    writes(&site, "lost", 6);
    let txid = site.sync();
    let lost = site.copy_now("lost.db");
    assert_eq!(daemon.stop(), 0);

    old.put_back(&site);
    // The store is away until the TXIDs of the new branch have caught up.
    take_away(&site.path("store"));
    let daemon = site.start();
    writes(&site, "branch", 14);
    daemon.kill();
    bring_back(&site.path("store"));
    let daemon = site.start();
    site.write("update t set a='last' where id=2000");
    let safe = is_durable(&site);
    assert!(safe, "the owner goes on by itself\n{}", daemon.log());
    let now = site.copy_now("now.db");
    assert_same_pages(&now, &site.restore("r.db", &[]), "the new branch");
    let hex = format!("{txid:x}");
    assert_same_pages(
        &lost,
        &site.restore("l.db", &["--txid", &hex]),
        "the old branch",
    );
    for point in site.points() {
        site.restore(
            "p.db",
            &["--txid", &format!("{point:x}"), "--verify", "full"],
        );
    }
    drop(daemon);
}

/// Without its checksum table an instance must prove its pages, and a refusal must not leave behind what passes for proof next time.
#[test]
fn a_refused_database_is_refused_again() {
    let site = Site::new();
    let daemon = site.start();
    let mine = site.sync();
    assert_eq!(daemon.stop(), 0);
    std::fs::remove_file(site.path("state-web1/app/pages")).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", site.db.display()));
    }
    std::fs::copy(Site::new().db, &site.db).unwrap();
    let log = site.path("run-web1.log");
    let compared = || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.matches("pages match").count()
    };
    for round in 0..2 {
        let before = compared();
        let daemon = site.start();
        site.write("update t set a='impostor' where id=1");
        site.fails(1, &["sync", "--timeout", "3s"]);
        wait_for(&daemon, &format!("the comparison of round {round}"), || {
            compared() > before
        });
        assert_eq!(
            site.points().last(),
            Some(&mine),
            "round {round}: nothing was uploaded"
        );
    }
}

/// `claim` must also work where the local state is whole: the usual case after a failover and back.
#[test]
fn claimed_back_with_the_state_intact() {
    let site = Site::new();
    let daemon = site.start();
    site.sync();
    let mut other = Site::new();
    other.store.clone_from(&site.store);
    other.instance = "web2".into();
    other.ok(&["claim", "app"]);
    let second = other.start();
    let theirs = other.sync();
    assert_eq!(second.stop(), 0);
    site.write("update t set a='mine again' where id=1");
    wait_for(&daemon, "the refusal", || {
        daemon.log().contains("belongs to web2")
    });
    site.ok(&["claim", "app"]);
    drop(daemon);
    let daemon = site.start();
    let again = site.sync();
    assert!(again > theirs);
    assert_same_pages(
        &site.copy_now("o.db"),
        &site.restore("r.db", &[]),
        "claimed back",
    );
    let before = other.copy_now("theirs.db");
    let hex = format!("{theirs:x}");
    assert_same_pages(&before, &site.restore("t.db", &["--txid", &hex]), "theirs");
    drop(daemon);
}

fn two_stores(site: &mut Site) -> [PathBuf; 2] {
    let stores = [site.path("s0"), site.path("s1")];
    site.extra = format!(
        "    stores:\n      - url: file://{}\n      - url: file://{}\n",
        stores[0].display(),
        stores[1].display()
    );
    stores
}

/// Two stores at different positions, and the state is lost: what is rebuilt from one must not be sent behind another past of the other.
#[test]
fn state_lost_with_stores_at_different_positions() {
    let mut site = Site::new();
    let [s0, s1] = two_stores(&mut site);
    let daemon = site.start();
    site.sync();
    take_away(&s0);
    writes(&site, "only in the second", 5);
    durable_or_refused(&site);
    daemon.kill();
    std::fs::remove_dir_all(site.path("state-web1")).unwrap();
    bring_back(&s0);
    take_away(&s1);
    let daemon = site.start();
    writes(&site, "after", 12);
    durable_or_refused(&site);
    daemon.kill();
    bring_back(&s1);
    let daemon = site.start();
    site.write("update t set a='end' where id=900");
    durable_or_refused(&site);
    drop(daemon);
    assert!(site.ok(&["verify"]).contains("lifeboat: ok verify"));
    let daemon = site.start();
    durable_or_refused(&site);
    drop(daemon);
    assert!(site.ok(&["verify"]).contains("lifeboat: ok verify"));
}

#[test]
fn state_lost_goes_on_behind_the_furthest_store() {
    let mut site = Site::new();
    let [s0, s1] = two_stores(&mut site);
    let daemon = site.start();
    site.sync();
    take_away(&s0);
    writes(&site, "only in the second", 5);
    durable_or_refused(&site);
    daemon.kill();
    std::fs::remove_dir_all(site.path("state-web1")).unwrap();
    bring_back(&s0);
    let daemon = site.start();
    site.write("update t set a='end' where id=900");
    assert!(is_durable(&site), "{}", daemon.log());
    drop(daemon);
    assert_eq!(
        bases(&s1),
        1,
        "the store that was ahead needs no second base"
    );
    assert!(site.ok(&["verify"]).contains("lifeboat: ok verify"));
}

/// Someone deletes an object. It is noticed within a store check, and what is not restorable is not called durable.
#[test]
fn an_object_deleted_behind_our_back_is_noticed() {
    let mut site = Site::new();
    site.store_extra = "store-check: 1s\n".into();
    let daemon = site.start();
    writes(&site, "a", 3);
    site.sync();
    let folder = site.path("store/app/ltx/9");
    for file in objects(&folder) {
        std::fs::remove_file(file).unwrap();
    }
    wait_for(&daemon, "a new base", || bases(&site.path("store")) > 0);
    site.sync();
    assert_same_pages(
        &site.copy_now("o.db"),
        &site.restore("r.db", &[]),
        "after the loss",
    );
    let folder = site.path("store/app/ltx/0");
    let files = objects(&folder);
    writes(&site, "b", 3);
    site.sync();
    for path in objects(&folder) {
        if !files.contains(&path) {
            std::fs::remove_file(path).unwrap();
        }
    }
    let begun = Instant::now();
    loop {
        let out = site.run(&["restore", "app", "-o", site.path("x.db").to_str().unwrap()]);
        assert!(out.status.success());
        let same = std::panic::catch_unwind(|| {
            assert_same_pages(&site.copy_now("o2.db"), &site.path("x.db"), "again");
        });
        if same.is_ok() {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "never repaired\n{}",
            daemon.log()
        );
        for name in ["x.db", "o2.db"] {
            let _ = std::fs::remove_file(site.path(name));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Nothing is committed: after the roll-ups that are due, no local file is written any more.
#[test]
fn an_idle_database_rolls_up_once() {
    let mut side = common::Sidecar::new();
    side.begin();
    for i in 0..3 {
        python(
            &side.db,
            &format!(
                "c=conn(); c.execute('update t set a=1 where id={}'); os._exit(0)",
                i + 1
            ),
        );
        side.capture();
    }
    let later = lifeboat::types::Millis(side.clock + 48 * 3_600_000);
    let (newest, spool) = (side.txid(), &side.spool);
    let mut runs = 0;
    loop {
        let due = lifeboat::replica::compact::due(&spool.entries(), &BTreeSet::new(), later);
        if due.is_empty() {
            break;
        }
        runs += 1;
        assert!(runs < 10, "still due: {due:?}");
        for merge in due {
            lifeboat::replica::compact::run(spool, &merge, newest, || Ok(())).unwrap();
        }
    }
}

/// Roll-ups go on while the store is away, and the sidecar restarts in the middle: only what changed is sent, no second full copy.
#[test]
fn an_outage_with_a_restart_sends_only_what_changed() {
    let site = Site::new();
    let daemon = site.start();
    writes(&site, "before", 3);
    site.sync();
    take_away(&site.path("store"));
    for i in 0..14 {
        writes(&site, &"during outage"[..i % 13], 2);
        std::thread::sleep(Duration::from_secs(3));
    }
    daemon.kill();
    let daemon = site.start();
    for i in 0..3 {
        writes(&site, &"after restart"[..i], 2);
        std::thread::sleep(Duration::from_secs(1));
    }
    bring_back(&site.path("store"));
    site.sync();
    assert_eq!(bases(&site.path("store")), 1, "{}", daemon.log());
    assert_same_pages(
        &site.copy_now("o.db"),
        &site.restore("r.db", &[]),
        "after the outage",
    );
}

/// The disk of a host was copied, state directory and all, and both hosts write under one name. Someone has to stop; whatever was sent
/// before restores, every point of it.
#[test]
fn a_copied_disk_never_makes_a_broken_point() {
    let site = Site::new();
    let first = site.start();
    writes(&site, "both", 3);
    site.sync();
    let disk = Disk::of(&site, "copy");
    let mut twin = Site::new();
    twin.store.clone_from(&site.store);
    std::fs::create_dir_all(twin.path("state-web1")).unwrap();
    disk.put_back(&twin);
    let second = twin.start();
    for round in 0..9 {
        writes(&site, &"original"[..round % 8], 2);
        writes(&twin, &"twin twin twin"[..round], 3);
        std::thread::sleep(Duration::from_secs(8));
    }
    drop((first, second));
    let points = site.points();
    assert!(points.len() > 5, "{points:?}");
    for point in &points {
        site.restore(
            "p.db",
            &["--txid", &format!("{point:x}"), "--verify", "full"],
        );
    }
    assert!(site.ok(&["verify"]).contains("lifeboat: ok verify"));
}
