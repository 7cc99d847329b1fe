//! Databases that cannot be replicated, disks that fill up, clocks that jump: what is said, and that nothing is lost.
//!
//! Mounting needs root; without it `sudo -n` is tried.
#![allow(missing_docs)]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::daemon::{Site, assert_same_pages, wait_for};
use common::mount::{Mount, root};
use common::{python, python_output};
use serde_json::Value;

fn target(site: &Site, name: &str) -> Value {
    let status: Value = serde_json::from_str(&site.get("/api/v1/status")).unwrap_or_default();
    let targets = status["targets"].as_array().cloned().unwrap_or_default();
    targets
        .into_iter()
        .find(|t| t["name"] == name)
        .unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.to_string()
}

/// Each bad database is reported with its reason and a hint; the good one beside them is replicated all the same; what is mended is taken up.
#[test]
fn bad_databases_say_why_and_hold_up_nobody() {
    let mut site = Site::new().with_http();
    let at = |name: &str| site.path(name);
    std::fs::write(at("text.db"), "hello world ".repeat(1000)).unwrap();
    let noise: Vec<u8> = (0..8192_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    std::fs::write(at("encrypted.db"), noise).unwrap();
    std::fs::write(at("empty.db"), "").unwrap();
    python(
        &at("rollback.db"),
        "c=conn(); c.execute('create table t(a)'); c.close()",
    );
    python(
        &at("locked.db"),
        "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(a)'); c.close()",
    );
    // An app in exclusive locking mode keeps everybody out, also other readers.
    let mut exclusive = Command::new("python3")
        .args(["-c", &format!(
            "import sqlite3,time\nc=sqlite3.connect({:?},isolation_level=None)\nc.execute('pragma locking_mode=exclusive')\nc.execute('insert into t values(1)')\nprint('ready',flush=True)\ntime.sleep(300)",
            at("locked.db")
        )])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(exclusive.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    for (name, more) in [
        ("text", ""),
        ("encrypted", ""),
        ("empty", ""),
        ("missing", ""),
        ("rollback", "    ensure-wal: false\n"),
        ("locked", ""),
    ] {
        site.extra.push_str(&format!(
            "  - path: {}\n{more}",
            site.path(&format!("{name}.db")).display()
        ));
    }
    let daemon = site.start();
    site.ok(&["sync", "app"]);
    for (name, reason) in [
        ("text", "not a SQLite database"),
        ("encrypted", "not a SQLite database"),
        ("empty", "the file is empty"),
        ("missing", "no such database file"),
        ("rollback", "journal mode is"),
        ("locked", "the database is locked"),
    ] {
        wait_for(&daemon, name, || {
            text(&target(&site, name)).contains(reason)
        });
        let one = target(&site, name);
        assert_eq!(one["safe"], false, "{name}: {one}");
        let hints = one["hints"].as_array().map_or(0, Vec::len);
        assert!(
            hints > 0 || ["empty", "missing"].contains(&name),
            "{name}: {one}"
        );
        let error = site.fails(1, &["sync", name, "--timeout", "1s"]);
        assert!(error.contains("hint:"), "{name}: {error}");
    }
    assert_eq!(
        target(&site, "app")["safe"],
        true,
        "{}",
        target(&site, "app")
    );
    let log = daemon.log();
    assert!(log.lines().count() < 60, "the log is chatty:\n{log}");

    // Mended one by one.
    exclusive.kill().unwrap();
    exclusive.wait().unwrap();
    python(
        &site.path("rollback.db"),
        "conn().execute('pragma journal_mode=wal'); os._exit(0)",
    );
    for name in ["text", "encrypted", "empty"] {
        let path = site.path(&format!("{name}.db"));
        std::fs::remove_file(&path).unwrap();
        python(
            &path,
            "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(a)'); os._exit(0)",
        );
    }
    python(
        &site.path("missing.db"),
        "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(a)'); os._exit(0)",
    );
    for name in [
        "text",
        "encrypted",
        "empty",
        "missing",
        "rollback",
        "locked",
    ] {
        wait_for(&daemon, &format!("{name} to be safe"), || {
            target(&site, name)["safe"] == true
        });
        site.ok(&["sync", name]);
    }
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_read_only_mount_is_named() {
    let mut site = Site::new().with_http();
    let folder = site.path("ro");
    std::fs::create_dir(&folder).unwrap();
    python(
        &folder.join("ro.db"),
        "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(a)'); c.close()",
    );
    let mount = Mount::read_only(&folder);
    site.extra = format!("  - path: {}\n", folder.join("ro.db").display());
    let daemon = site.start();
    wait_for(&daemon, "the reason", || {
        text(&target(&site, "ro")).contains("no permission to write")
    });
    let one = text(&target(&site, "ro"));
    assert!(one.contains("mount the volume read-write"), "{one}");
    site.ok(&["sync", "app"]);
    drop(mount);
    site.ok(&["sync", "ro"]);
    assert_eq!(daemon.stop(), 0);
}

/// A sidecar under another user than the app says so; as the right user it goes on.
#[test]
fn the_wrong_user_is_named() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let db = dir.path().join("app.db");
    python(
        &db,
        "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(a)'); c.close(); os.chmod(p,0o600)",
    );
    let mine = dir.path().join("state");
    std::fs::create_dir(&mine).unwrap();
    for path in [dir.path(), &mine] {
        root(&["chmod", "0777", path.to_str().unwrap()]);
    }
    let binary = dir.path().join("lifeboat");
    std::fs::copy(env!("CARGO_BIN_EXE_lifeboat"), &binary).unwrap();
    let config = dir.path().join("l.yml");
    std::fs::write(
        &config,
        format!(
            "store: {{ url: \"file://{0}/state/store\" }}\nstate-dir: {0}/state/s\nhttp: off\nsqlite:\n  - path: {1}\n",
            dir.path().display(),
            db.display()
        ),
    )
    .unwrap();
    if rustix::process::geteuid().is_root() {
        root(&["chown", "1234:1234", db.to_str().unwrap()]);
    } else {
        std::fs::set_permissions(&db, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    }
    let run = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        binary.to_str().unwrap(),
        "run",
        "--config",
        config.to_str().unwrap(),
    ];
    let log = dir.path().join("log");
    let mut child = Command::new(run[0])
        .args(&run[1..])
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let words = [
        "no permission to write here",
        "run as the user who owns the database",
    ];
    let begun = std::time::Instant::now();
    // It says so and goes on trying.
    let said = loop {
        let said = std::fs::read_to_string(&log).unwrap();
        if words.iter().all(|w| said.contains(w)) || begun.elapsed() > Duration::from_secs(60) {
            break said;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    child.kill().unwrap();
    child.wait().unwrap();
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

/// The disk of the state directory fills up: the app goes on, readiness is red with the reason, and when there is room again everything is
/// captured and uploaded.
#[test]
fn a_full_disk_loses_nothing() {
    let mut site = Site::new().with_http();
    let _mount = Mount::tmpfs(&site.path("small"), 48);
    let db = site.path("small/full.db");
    python(
        &db,
        "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(id integer primary key,a)')
c.execute('begin'); c.executemany('insert into t(a) values(?)',((os.urandom(500),) for _ in range(3000))); c.execute('commit'); os._exit(0)",
    );
    site.db = db;
    let real_state = site.path("small/state");
    std::fs::create_dir(&real_state).unwrap();
    std::os::unix::fs::symlink(&real_state, site.path("state-web1")).unwrap();
    let daemon = site.start();
    let before = {
        site.ok(&["sync", "full"]);
        site.copy_now("before.db")
    };
    // The app's own growth leaves too little for anything of ours.
    std::fs::write(site.path("small/filler"), vec![1; 41 << 20]).unwrap_or_default();
    let fill = |name: &str| {
        let mut n = 0;
        while std::fs::write(site.path(&format!("small/{name}{n}")), vec![1_u8; 64 << 10]).is_ok() {
            n += 1;
        }
    };
    fill("more");
    std::fs::remove_file(site.path("small/more0")).unwrap();
    let mut wrote = 0;
    for i in 0..40 {
        // The app itself may find no room: that is its own error, not ours.
        let out = python_output(
            &site.db,
            &format!(
                "c=conn(); c.execute('update t set a=? where id={}',(os.urandom(500),)); os._exit(0)",
                i + 1
            ),
            &[],
        );
        wrote += u32::from(out.status.success());
        std::thread::sleep(Duration::from_millis(30));
    }
    assert!(wrote > 0, "the app could not write at all");
    let listed = site.run(&[
        "restore",
        "full",
        "-o",
        site.path("during.db").to_str().unwrap(),
    ]);
    assert!(
        listed.status.success(),
        "what was durable is restorable with a full disk"
    );
    for item in std::fs::read_dir(site.path("small")).unwrap() {
        let path = item.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("more") || name == "filler" {
            std::fs::remove_file(path).unwrap();
        }
    }
    site.write("update t set a='after the flood' where id=99");
    wait_for(&daemon, "capture to go on", || {
        site.run(&["sync", "full", "--timeout", "5s"])
            .status
            .success()
    });
    let oracle = site.copy_now("oracle.db");
    let out = site.path("r.db");
    site.ok(&["restore", "full", "-o", out.to_str().unwrap()]);
    assert_same_pages(&oracle, &out, "after the flood");
    assert!(before.exists());
    assert_eq!(daemon.stop(), 0);
}

/// The clock jumps two years ahead and three back: every point stays restorable, in order, and nothing is deleted for it.
#[test]
fn a_clock_that_jumps_loses_nothing() {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    let library = [
        library,
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    ]
    .into_iter()
    .find(|l| Path::new(l).exists())
    .expect("libfaketime is missing: apt-get install faketime");
    let mut site = Site::new();
    let clock = site.path("clock");
    std::fs::write(&clock, "+0").unwrap();
    site.env = vec![
        ("LD_PRELOAD".into(), library.into()),
        (
            "FAKETIME_TIMESTAMP_FILE".into(),
            clock.display().to_string(),
        ),
        ("FAKETIME_NO_CACHE".into(), "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
    ];
    let daemon = site.start();
    let mut oracles = Vec::new();
    for (round, offset) in ["+0", "+2y", "-3y", "+1d", "+0"].iter().enumerate() {
        std::fs::write(&clock, offset).unwrap();
        for i in 0..3 {
            site.write(&format!(
                "update t set a='round {round} {i}' where id={}",
                round * 10 + i + 1
            ));
            let txid = site.sync();
            oracles.push((txid, site.copy_now(&format!("o{round}-{i}.db"))));
        }
        // A clock that disagrees with the store's deletes nothing; one that is right goes on, whatever was captured under the wrong one.
        let prune = site.run(&["prune"]);
        let said = String::from_utf8_lossy(&prune.stderr).into_owned();
        let expected = if *offset == "+0" { 0 } else { 4 };
        assert_eq!(prune.status.code(), Some(expected), "{offset}: {said}");
        if expected == 4 {
            assert!(
                said.contains("clock") && said.contains("nothing was deleted"),
                "{said}"
            );
        }
    }
    let daemon = {
        daemon.kill();
        site.start()
    };
    site.write("update t set a='restarted' where id=77");
    let txid = site.sync();
    oracles.push((txid, site.copy_now("o-last.db")));
    assert!(oracles.is_sorted_by_key(|o| o.0), "TXIDs rise");
    for (txid, oracle) in &oracles {
        let restored = site.restore("r.db", &["--txid", &format!("{txid:x}")]);
        assert_same_pages(oracle, &restored, &format!("TXID {txid}"));
    }
    assert_same_pages(
        &oracles.last().unwrap().1,
        &site.restore("n.db", &[]),
        "newest",
    );
    assert_eq!(daemon.stop(), 0);
}
