//! What a daemon does when nothing happens, when much happens, and when things come, go and fail around it.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::daemon::{Site, assert_same_pages, before_a_roll_up, bring_back, take_away, wait_for};
use common::python;

/// Every file below a folder with its size and time of change.
fn files(dir: &Path) -> BTreeMap<String, (u64, std::time::SystemTime)> {
    let mut out = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for item in std::fs::read_dir(&folder).unwrap() {
            let item = item.unwrap();
            // One that is being written gets another name.
            let Ok(meta) = item.metadata() else { continue };
            if meta.is_dir() {
                folders.push(item.path());
            } else {
                let name = item.path().display().to_string();
                out.insert(name, (meta.len(), meta.modified().unwrap()));
            }
        }
    }
    out
}

/// After its last commit has been rolled up a database costs no request, no TXID and no file, however many windows end.
#[test]
fn heavy_idle_costs_nothing() {
    let site = Site::new().with_http();
    // Two files of level 1 would be rolled up once more, minutes later.
    before_a_roll_up(22);
    let daemon = site.start();
    site.sync();
    for i in 0..5 {
        site.write(&format!("update t set a='{i}' where id=7"));
        site.sync();
    }
    // The window ends, and with it the one roll-up that is due, and what is to be done after it.
    wait_for(&daemon, "the roll-up", || {
        site.path("store/app/ltx/1").exists()
    });
    std::thread::sleep(Duration::from_secs(12));
    let requests = || site.metric("lifeboat_store_requests_total", "");
    let before = (
        files(&site.path("store")),
        files(&site.path("state-web1")),
        requests(),
        site.points(),
    );
    assert!(before.2 > 3.0, "requests are counted: {}", before.2);
    std::thread::sleep(Duration::from_secs(40));
    let after = (
        files(&site.path("store")),
        files(&site.path("state-web1")),
        requests(),
        site.points(),
    );
    assert_eq!(before, after);
}

/// Under load the store is written to, and never read or listed.
#[test]
fn a_steady_state_reads_nothing_from_the_store() {
    let site = Site::new().with_http();
    // Before it sends what it rolled up it looks whose the replica is: not in the middle of this.
    before_a_roll_up(15);
    let _daemon = site.start();
    site.sync();
    let count =
        |kind: &str| site.metric("lifeboat_store_requests_total", &format!("kind=\"{kind}\""));
    let read = || ["get", "head", "list"].map(count);
    let (reads, puts, begun) = (read(), count("put"), std::time::Instant::now());
    // No change of the schema: that would be labelled, and labels are listed once.
    python(
        &site.db,
        "import time; c=conn(); end=time.time()+4
while time.time()<end: c.execute('update t set a=? where id=?',(os.urandom(300),1+os.getpid()%3000)); time.sleep(0.005)",
    );
    site.sync();
    let (sent, most) = (count("put") - puts, begun.elapsed().as_secs_f64() / 0.05);
    assert!(sent > 10.0, "nothing was uploaded");
    // One for the sync, one for a checkpoint's last frames at each half second.
    assert!(
        sent <= most + 2.0 + most / 10.0,
        "{sent} uploads, one for each sync-interval would be {most}"
    );
    assert_eq!(read(), reads);
}

/// The same statements with the sidecar and without give the same database: schema, rows, counters, pages, settings.
#[test]
fn zero_footprint() {
    let site = Site::new();
    let alone = site.path("alone.sqlite3");
    std::fs::copy(site.copy_now("before.db"), &alone).unwrap();
    let daemon = site.start();
    site.sync();
    let work =
        "import random; rnd=random.Random(5); c=conn(); c.execute('pragma wal_autocheckpoint=50')
c.execute('create table u(id integer primary key autoincrement, b)')
for i in range(3000):
    c.execute('update t set a=? where id=?',(rnd.randbytes(rnd.randint(1,900)),rnd.randint(1,3000)))
    if i%7==0: c.execute('insert into u(b) values(?)',(rnd.randbytes(2000),))
    if i%500==0: c.execute('delete from u where id%2=0'); time.sleep(0.3)
    if i==2000: c.execute('vacuum')";
    let seen = "c=conn()
for p in ('application_id','user_version','schema_version','page_count','freelist_count','page_size','encoding','auto_vacuum','journal_mode'):
    print(p, c.execute('pragma '+p).fetchone()[0])
import hashlib; print(hashlib.sha256('\\n'.join(c.iterdump()).encode()).hexdigest())";
    python(&site.db, work);
    python(&alone, work);
    site.sync();
    let with = python(&site.db, seen);
    assert!(with.contains("schema_version"), "{with}");
    assert_eq!(with, python(&alone, seen));
    assert_eq!(daemon.stop(), 0);
    assert_eq!(with, python(&site.db, seen), "after the sidecar left");
}

/// `lifeboat run app.sqlite3` with nothing else: replicates beside, and says where things are.
#[test]
fn no_configuration_at_all() {
    let site = Site::new();
    let lifeboat = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        // The port may be in use on a machine that tests run on.
        command
            .args(args)
            .env("LIFEBOAT_HTTP_LISTEN", "off")
            .current_dir(site.dir.path());
        command
    };
    let log = site.path("log");
    let out = std::fs::File::create(&log).unwrap();
    let mut child = lifeboat(&["run", "app.sqlite3"])
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    let base = site.path("lifeboat-store/app/ltx/9");
    while !base.is_dir() && begun.elapsed().as_secs() < 30 {
        std::thread::sleep(Duration::from_millis(20));
    }
    site.write("update t set a='no configuration' where id=1");
    let synced = lifeboat(&["sync", "app.sqlite3"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&synced.stdout).contains("lifeboat: ok sync"),
        "{synced:?}"
    );
    let oracle = site.copy_now("oracle.db");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(
        said.contains("lifeboat-store") && said.contains("app.sqlite3"),
        "{said}"
    );
    let out = lifeboat(&["restore", "app.sqlite3", "-o", "out.db"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    assert_same_pages(&oracle, &site.path("out.db"), "restored");
}

/// Each store has its own position: one that is away does not hold up the other, and gets everything when it is back.
#[test]
fn stores_have_positions_of_their_own() {
    let mut site = Site::new().with_http();
    site.extra = format!(
        "    stores:\n      - url: {}\n      - url: file://{}\n",
        site.store,
        site.path("second").display()
    );
    let daemon = site.start();
    site.sync();
    let second = site.path("second");
    take_away(&second);
    let objects = || files(&site.path("store")).len();
    // The capture beside the full copy comes after what `sync` waits for.
    wait_for(&daemon, "the newest capture", || {
        site.path("store/app/ltx/0").exists() && !files(&site.path("store/app/ltx/0")).is_empty()
    });
    for i in 0..8 {
        let before = objects();
        site.write(&format!("update t set a='two {i}' where id={i}+1"));
        wait_for(&daemon, "the first store to go on alone", || {
            objects() > before
        });
    }
    let listed = site.run(&["list", "--json"]);
    assert_eq!(listed.status.code(), Some(1), "a store cannot be listed");
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert!(
        listed[0]["points"].as_array().unwrap().len() > 8,
        "{listed}"
    );
    assert!(listed[1]["error"].is_string(), "{listed}");
    let status = site.get("/readyz");
    wait_for(&daemon, "the second store to be reported", || {
        daemon.log().contains("upload failed")
    });
    assert!(status.contains("second"), "{status}");
    bring_back(&second);
    site.sync();
    let oracle = site.copy_now("oracle.db");
    for store in ["store", "second"] {
        let url = format!("file://{}/app", site.path(store).display());
        let out = site.path(&format!("{store}.db"));
        site.ok(&["restore", &url, "-o", out.to_str().unwrap()]);
        assert_same_pages(&oracle, &out, store);
    }
    assert_eq!(daemon.stop(), 0);
}

/// A folder is watched: what appears is replicated, what vanishes is let go and keeps its replica, caches and copies are left out.
#[test]
fn databases_come_and_go_in_a_folder() {
    let mut site = Site::new().with_http();
    let folder = site.path("storage");
    std::fs::create_dir(&folder).unwrap();
    site.extra = format!("  - dir: {}\n    watch: true\n", folder.display());
    let make = |name: &str| {
        python(
            &folder.join(name),
            "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table v(a)'); c.execute('insert into v values(1)'); os._exit(0)",
        );
    };
    make("one.sqlite3");
    make("production_cache.sqlite3");
    make("backup-one.sqlite3");
    let daemon = site.start();
    let names = || -> Vec<String> {
        let status: serde_json::Value =
            serde_json::from_str(&site.get("/api/v1/status")).unwrap_or_default();
        let targets = status["targets"].as_array().cloned().unwrap_or_default();
        targets
            .iter()
            .filter_map(|t| Some(t["name"].as_str()?.to_owned()))
            .collect()
    };
    wait_for(&daemon, "the first", || names() == ["app", "one"]);
    make("two.sqlite3");
    wait_for(&daemon, "the second", || names() == ["app", "one", "two"]);
    site.ok(&["sync", "two"]);
    for tail in ["", "-wal", "-shm"] {
        let path = folder.join(format!("two.sqlite3{tail}"));
        // The daemon's connections may have taken -shm away.
        let _ = std::fs::remove_file(path);
    }
    wait_for(&daemon, "its end", || names() == ["app", "one"]);
    let url = format!("file://{}/two", site.path("store").display());
    let back = site.path("two-back.db");
    site.ok(&["restore", &url, "-o", back.to_str().unwrap()]);
    assert_eq!(
        python(
            &back,
            "print(conn().execute('select a from v').fetchone()[0])"
        ),
        "1"
    );
    assert!(
        daemon.log().contains("production_cache"),
        "what is left out is said: {}",
        daemon.log()
    );
    assert_eq!(daemon.stop(), 0);
}

/// Deleted and made anew, or an older copy put back, while the sidecar was down: the next file holds what differs, and every point stays.
#[test]
fn an_older_copy_put_back_while_down() {
    let site = Site::new();
    let daemon = site.start();
    site.sync();
    let old = site.copy_now("old.db");
    site.write("update t set a='newer' where id<20");
    let newer = site.sync();
    let oracle = site.copy_now("newer-oracle.db");
    assert_eq!(daemon.stop(), 0);
    for tail in ["-wal", "-shm"] {
        // Either may be gone with its last connection.
        let _ = std::fs::remove_file(site.path(&format!("app.sqlite3{tail}")));
    }
    std::fs::copy(&old, &site.db).unwrap();
    python(
        &site.db,
        "conn().execute('pragma journal_mode=wal'); os._exit(0)",
    );
    let daemon = site.start();
    let now = site.sync();
    assert!(now > newer, "the old copy is a new point: {now}");
    let here = site.copy_now("now-oracle.db");
    assert_same_pages(&here, &site.restore("r.db", &[]), "the older copy");
    let hex = format!("{newer:x}");
    assert_same_pages(
        &oracle,
        &site.restore("r2.db", &["--txid", &hex]),
        "the point before",
    );
    let bases = std::fs::read_dir(site.path("store/app/ltx/9")).unwrap();
    assert_eq!(bases.count(), 1, "no second full copy");
    assert_eq!(daemon.stop(), 0);
}
