//! The binary beside an app: replicate, crash, come back, restore, refuse.
#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::daemon::{Site, assert_same_pages, bring_back, take_away, wait_for};
use common::{commits, python, traffic};

#[test]
fn restores_what_was_reported_durable() {
    let site = Site::new();
    let daemon = site.start();
    let app = traffic(&site.db, 3, 3.0);
    commits(app);
    let txid = site.sync();
    let oracle = site.copy_now("oracle.db");
    assert_same_pages(
        &oracle,
        &site.restore("newest.db", &["--verify", "full"]),
        "newest",
    );
    site.write("delete from t");
    site.sync();
    let hex = format!("{txid:016x}");
    assert_same_pages(
        &oracle,
        &site.restore("txid.db", &["--txid", &hex]),
        "by TXID",
    );
    assert_eq!(daemon.stop(), 0);
    assert_eq!(
        python(
            &site.path("newest.db"),
            "print(conn().execute('pragma integrity_check').fetchone()[0])"
        ),
        "ok"
    );
    let schema = python(
        &site.db,
        "print(conn().execute('select group_concat(name) from sqlite_schema').fetchone()[0])",
    );
    assert_eq!(schema, "t", "zero footprint");
}

#[test]
fn a_moment_in_time() {
    let site = Site::new();
    let _daemon = site.start();
    site.write("update t set a='before' where id=1");
    site.sync();
    let oracle = site.copy_now("oracle.db");
    std::thread::sleep(Duration::from_millis(300));
    let moment = jiff::Timestamp::now();
    std::thread::sleep(Duration::from_millis(300));
    site.write("delete from t");
    site.sync();
    assert_same_pages(
        &oracle,
        &site.restore("then.db", &["--at", &moment.to_string()]),
        "at the moment",
    );
    let error = site.fails(
        3,
        &[
            "restore",
            "app",
            "-o",
            "x.db",
            "--at",
            "2001-01-01T00:00:00Z",
        ],
    );
    assert!(
        error.contains("oldest restorable point") && error.contains("hint:"),
        "{error}"
    );
    let error = site.fails(3, &["restore", "app", "-o", "x.db", "--txid", "ffff"]);
    assert!(error.contains("the last one is"), "{error}");
}

/// A lone commit on a quiet database is durable in tens of milliseconds. Printed, and bounded loosely: a poll would take seconds.
#[test]
fn a_lone_commit_is_durable_at_once() {
    let site = Site::new();
    let _daemon = site.start();
    site.sync();
    let files = || {
        std::fs::read_dir(site.path("store/app/ltx/0"))
            .unwrap()
            .count()
    };
    let mut delays = Vec::new();
    for i in 0..5 {
        std::thread::sleep(Duration::from_millis(400));
        let before = files();
        site.write(&format!("update t set a='lone {i}' where id=9"));
        let begun = Instant::now();
        wait_for(&_daemon, "the upload", || files() > before);
        delays.push(begun.elapsed());
    }
    delays.sort();
    println!("from the app's exit to the object: {delays:?}");
    assert!(delays[2] < Duration::from_secs(1), "{delays:?}");
}

/// SIGKILL at any moment loses nothing that was reported durable, and the next start uploads no second base.
#[test]
fn kill_and_come_back() {
    let site = Site::new();
    let mut oracles = Vec::new();
    for round in 0..6 {
        let daemon = site.start();
        let app = traffic(&site.db, 100 + round, 1.0);
        std::thread::sleep(Duration::from_millis(150 * round));
        let during = site.start_sync();
        daemon.kill();
        drop(during);
        commits(app);
        let daemon = site.start();
        let txid = site.sync();
        oracles.push((txid, site.copy_now(&format!("oracle{round}.db"))));
        daemon.kill();
    }
    for (txid, oracle) in &oracles {
        let restored = site.restore("r.db", &["--txid", &format!("{txid:x}")]);
        assert_same_pages(oracle, &restored, &format!("TXID {txid}"));
    }
    let bases = std::fs::read_dir(site.path("store/app/ltx/9"))
        .unwrap()
        .count();
    assert_eq!(bases, 1, "a restart uploaded another full copy");
    assert!(site.ok(&["verify"]).contains("lifeboat: ok verify"));
}

#[test]
fn state_lost_is_rebuilt_from_the_store() {
    let site = Site::new();
    let daemon = site.start();
    site.write("update t set a='x' where id<100");
    site.sync();
    daemon.kill();
    std::fs::remove_dir_all(site.path("state-web1")).unwrap();
    site.write("update t set a='y' where id=5");
    let daemon = site.start();
    site.sync();
    let oracle = site.copy_now("oracle.db");
    assert_same_pages(
        &oracle,
        &site.restore("r.db", &[]),
        "after the state was lost",
    );
    assert_eq!(
        std::fs::read_dir(site.path("store/app/ltx/9"))
            .unwrap()
            .count(),
        1,
        "no second full upload"
    );
    assert!(daemon.log().contains("state-rebuilt"), "{}", daemon.log());
}

/// A database replaced under the running sidecar is noticed and compared; an unrelated one with the same lineage is still the app's.
#[test]
fn replaced_while_running() {
    let site = Site::new();
    let daemon = site.start();
    site.sync();
    python(
        &site.db,
        "c=conn(); c.execute(\"vacuum into 'new.db'\") if False else None
d=sqlite3.connect(p+'.new'); c.backup(d); d.execute('pragma journal_mode=wal'); d.execute('update t set a=1 where id=1'); d.commit(); d.close(); c.close()
for s in ('-wal','-shm'):
    if os.path.exists(p+s): os.remove(p+s)
os.rename(p+'.new',p)",
    );
    wait_for(&daemon, "the gap capture", || {
        daemon.log().contains("file-replaced")
    });
    site.write("update t set a='after' where id=2");
    site.sync();
    let oracle = site.copy_now("oracle.db");
    assert_same_pages(&oracle, &site.restore("r.db", &[]), "after the replacement");
}

#[test]
fn an_outage_is_survived_and_caught_up() {
    let site = Site::new();
    let daemon = site.start();
    site.sync();
    take_away(&site.path("store"));
    for i in 0..10 {
        site.write(&format!("update t set a='outage {i}' where id={i}+1"));
        std::thread::sleep(Duration::from_millis(60));
    }
    let error = site.fails(1, &["sync", "--timeout", "1s"]);
    assert!(
        error.contains("not everything is durable") && error.contains("spool"),
        "{error}"
    );
    bring_back(&site.path("store"));
    site.sync();
    let oracle = site.copy_now("oracle.db");
    assert_same_pages(&oracle, &site.restore("r.db", &[]), "after the outage");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn only_the_owner_writes() {
    let site = Site::new();
    let daemon = site.start();
    site.write("update t set a='mine' where id=1");
    let mine = site.sync();
    daemon.stop();

    // Another host with a fresh database and the same store.
    let mut other = Site::new();
    other.store.clone_from(&site.store);
    other.instance = "staging".into();
    let daemon = other.start();
    wait_for(&daemon, "the refusal", || {
        daemon.log().contains("belongs to web1")
    });
    let error = other.fails(1, &["sync", "--timeout", "2s"]);
    assert!(error.contains("not everything is durable"), "{error}");
    assert_eq!(site.points().last(), Some(&mine), "nothing was uploaded");

    // The same instance name with another database: too few pages match.
    drop(daemon);
    let mut impostor = Site::new();
    impostor.store.clone_from(&site.store);
    let daemon = impostor.start();
    wait_for(&daemon, "the comparison", || {
        daemon.log().contains("pages match")
    });
    drop(daemon);
    assert_eq!(site.points().last(), Some(&mine));

    // Claimed on purpose: history goes on with the other database, nothing is overwritten, the old owner stops.
    let old = site.start();
    other.ok(&["claim", "app"]);
    let daemon = other.start();
    let claimed = other.sync();
    assert!(claimed > mine);
    assert_same_pages(
        &other.copy_now("oracle.db"),
        &other.restore("r.db", &[]),
        "after the claim",
    );
    site.write("update t set a='too late' where id=1");
    wait_for(&old, "the old owner to stop", || {
        old.log().contains("belongs to staging")
    });
    site.fails(1, &["sync", "--timeout", "1s"]);
    assert_eq!(other.points().last(), Some(&claimed));
    drop(daemon);
    let before = site.restore("before.db", &["--txid", &format!("{mine:x}")]);
    let value = python(
        &before,
        "print(conn().execute('select a from t where id=1').fetchone()[0])",
    );
    assert_eq!(value, "mine", "the old history is still there");
}

#[test]
fn two_sidecars_on_one_host() {
    let mut site = Site::new();
    let first = site.start();
    site.sync();
    site.instance = "second".into();
    let second = site.start();
    wait_for(&second, "the refusal", || {
        second.log().contains("another sidecar on this host")
    });
    drop(first);
}

#[test]
fn in_place_with_the_daemon_and_undo() {
    let site = Site::new();
    let daemon = site.start();
    site.write("update t set a='good' where id=1");
    let good = format!("{:x}", site.sync());
    site.write("delete from t");
    site.sync();
    let error = site.fails(4, &["restore", "app", "--txid", &good]);
    assert!(
        error.contains("exists") && error.contains("--in-place"),
        "{error}"
    );
    let count = || {
        python(
            &site.db,
            "print(conn().execute('select count(*) from t').fetchone()[0])",
        )
    };
    let said = site.ok(&["restore", "app", "--in-place", "--txid", &good]);
    assert!(said.contains("--undo"), "{said}");
    assert_eq!(count(), "3000");
    site.sync();
    assert_same_pages(
        &site.copy_now("o.db"),
        &site.restore("r.db", &[]),
        "the restore is history too",
    );
    let out = site.run(&["restore", "app", "--undo", "--dry-run"]);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success() && said.contains("would be put back"),
        "{said}"
    );
    assert_eq!(count(), "3000", "a dry run changes nothing");
    site.ok(&["restore", "app", "--undo"]);
    assert_eq!(count(), "0");
    site.sync();
    drop(daemon);
    // An app that has it open: refused, nothing changed.
    let mut app = std::process::Command::new("python3")
        .args(["-c", "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute('select * from t').fetchall(); print('x',flush=True); sys.stdin.read()"])
        .arg(&site.db)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(app.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let error = site.fails(4, &["restore", "app", "--in-place", "--txid", &good]);
    assert!(
        error.contains("in use") && error.contains("nothing was changed"),
        "{error}"
    );
    drop(app.stdin.take());
    app.wait().unwrap();
}

#[test]
fn a_corrupt_object_is_named_with_what_remains() {
    let site = Site::new();
    let daemon = site.start();
    let first = site.sync();
    for i in 0..4 {
        site.write(&format!("update t set a='n{i}' where id={i}+1"));
        site.sync();
    }
    daemon.stop();
    site.forget_roll_ups();
    let mut files: Vec<_> = std::fs::read_dir(site.path("store/app/ltx/0"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    let victim = &files[2];
    let mut bytes = std::fs::read(victim).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(victim, &bytes).unwrap();
    let name = victim
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .trim_end_matches(".ltx");
    let error = site.fails(5, &["restore", "app", "-o", "x.db"]);
    assert!(
        error.contains(name) && error.contains("newest point without this file"),
        "{error}"
    );
    assert!(!site.path("x.db").exists());
    let error = site.fails(5, &["verify"]);
    assert!(
        error.contains(name) && error.contains("points cannot be restored"),
        "{error}"
    );
    std::fs::write(victim, &bytes[..bytes.len() / 3]).unwrap();
    assert!(
        site.fails(5, &["restore", "app", "-o", "x.db"])
            .contains(name)
    );
    site.restore("ok.db", &["--txid", &format!("{first:x}")]);
}

#[test]
fn errors_say_what_to_do() {
    let mut site = Site::new();
    let error = site.fails(2, &["restore", "nosuch", "-o", "x"]);
    assert!(
        error.contains("nosuch") && error.contains("targets are: app"),
        "{error}"
    );
    let error = site.fails(3, &["restore", "app", "-o", "x"]);
    assert!(error.contains("holds no files"), "{error}");
    site.ok(&["restore", "app", "-o", "x", "-if-replica-exists"]);
    site.extra = "    snc-interval: 1s\n".into();
    let error = site.fails(2, &["config", "check"]);
    assert!(
        error.contains("snc-interval") && error.contains("sync-interval"),
        "{error}"
    );
}

#[test]
fn prune_explains_and_keeps_what_it_promises() {
    let mut site = Site::new();
    site.extra = "    retention: { point-in-time: 1s, daily: 1 }\n".into();
    let daemon = site.start();
    for i in 0..6 {
        site.write(&format!("update t set a='p{i}' where id=1"));
        site.sync();
    }
    std::thread::sleep(Duration::from_millis(1500));
    site.write("update t set a='last' where id=1");
    site.sync();
    assert_eq!(daemon.stop(), 0);
    let before = site.points();
    let dry = site.ok(&["prune", "--dry-run"]);
    assert!(
        dry.contains(": keep 9/") && dry.contains("newest point"),
        "{dry}"
    );
    assert_eq!(site.points(), before, "a dry run deletes nothing");
    let said = site.ok(&["prune"]);
    assert!(said.contains("lifeboat: ok prune"), "{said}");
    let after = site.points();
    assert_eq!(after.last(), before.last());
    assert_same_pages(
        &site.copy_now("o.db"),
        &site.restore("r.db", &[]),
        "after pruning",
    );
}

/// A file that vanished from the middle of the chain: the newest restore refuses to pass off an older state as the newest one, names what is
/// missing, and restores the last point before it when asked for that.
#[test]
fn a_missing_object_is_no_silent_end() {
    let site = Site::new();
    let daemon = site.start();
    let mut oracles = Vec::new();
    for i in 0..4 {
        site.write(&format!("update t set a='step {i}' where id={i}+1"));
        oracles.push((site.sync(), site.copy_now(&format!("o{i}.db"))));
    }
    assert_eq!(daemon.stop(), 0);
    site.forget_roll_ups();
    let (gone, reachable) = (oracles[2].0, &oracles[1]);
    std::fs::remove_file(site.path(&format!("store/app/ltx/0/{gone:016x}-{gone:016x}.ltx")))
        .unwrap();
    let error = site.fails(5, &["restore", "app", "-o", "x.db"]);
    assert!(
        error.contains(&format!("TXID {gone:016x} is missing"))
            && error.contains("nothing was changed"),
        "{error}"
    );
    let hex = format!("{:016x}", reachable.0);
    assert!(error.contains(&format!("--txid {hex}")), "{error}");
    assert!(!site.path("x.db").exists());
    assert_same_pages(
        &reachable.1,
        &site.restore("r.db", &["--txid", &hex]),
        "the last point before the hole",
    );
}

/// A command without a daemon holds the state directory for a while: a daemon that starts meanwhile says who it is, waits, and goes on. Another
/// daemon is not waited for.
#[test]
fn a_daemon_waits_for_a_command_that_holds_its_state() {
    let site = Site::new();
    site.ok(&["sync"]);
    let lock = site.path("state-web1/app/lock");
    assert!(lock.exists());
    let mut holder = std::process::Command::new("flock")
        .arg(&lock)
        .args(["cat", "-u"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("flock is missing: apt-get install util-linux");
    let held = || {
        let free = std::process::Command::new("flock")
            .arg("--nonblock")
            .arg(&lock)
            .arg("true")
            .status();
        !free.unwrap().success()
    };
    while !held() {
        std::thread::sleep(Duration::from_millis(10));
    }
    // It holds on until the daemon has said so.
    let (log, stdin) = (site.path("run-web1.log"), holder.stdin.take());
    let told = std::thread::spawn(move || {
        let begun = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            if said.contains("in use by process") && said.contains("cat -u") {
                drop(stdin);
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let daemon = site.start();
    told.join().unwrap();
    assert!(holder.wait().unwrap().success());
    site.write("update t set a='after the wait' where id=1");
    wait_for(&daemon, "replication", || {
        site.run(&["sync"]).status.success() && site.path("state-web1/lifeboat.sock").exists()
    });
    let second = site.run(&["run"]);
    let said = common::kamal::text(&second);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(
        said.contains("is in use by process") && said.contains("nothing was done"),
        "{said}"
    );
}
