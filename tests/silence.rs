//! Situations in which nothing is kept any more, and in which nobody would hear of it if only what fails were told.
#![allow(missing_docs)]

mod common;
mod pg;

use std::path::Path;
use std::time::Duration;

use common::daemon::{Daemon, Site, wait_for};
use common::receiver::{Manner, Receiver};
use serde_json::Value;

fn site(hook: &Receiver) -> Site {
    let mut site = Site::new().with_http();
    site.extra = format!(
        "    max-lag: 1s\nnotify:\n  - webhook: {}\n    after: 500ms\n",
        hook.url()
    );
    site
}

fn status(site: &Site) -> Value {
    serde_json::from_str(&site.get("/readyz")).unwrap_or_default()
}

fn target(site: &Site, name: &str) -> Value {
    let status = status(site);
    let mut all = status["targets"].as_array().into_iter().flatten();
    let found = all.find(|t| t["name"] == name);
    found.cloned().unwrap_or_default()
}

fn is_safe(site: &Site) -> bool {
    status(site)["status"] == "safe"
}

fn first_copy(daemon: &Daemon, hook: &Receiver) {
    wait_for(daemon, "the first copy", || {
        hook.phases("first-success").contains(&"once".to_owned())
    });
}

fn away(site: &Site) {
    for end in ["-wal", "-shm", ""] {
        let path = site.path(&format!("app.sqlite3{end}"));
        // A clean end leaves no WAL.
        if path.exists() {
            std::fs::rename(&path, site.path(&format!("gone{end}"))).unwrap();
        }
    }
}

/// The host was started again, and the volume was not mounted; then somebody starts the sidecar again to mend it.
#[test]
fn a_database_that_is_gone_at_the_start_is_nothing_to_wait_for() {
    let hook = Receiver::new(Manner::Good);
    let site = site(&hook);
    let daemon = site.start();
    first_copy(&daemon, &hook);
    assert_eq!(daemon.stop(), 0);
    away(&site);
    for _ in 0..2 {
        let daemon = site.start();
        wait_for(&daemon, "what is missing", || {
            target(&site, "app")["state"] == "vanished"
        });
        assert!(!is_safe(&site));
        assert_eq!(site.metric("lifeboat_state", "state=\"vanished\""), 1.0);
        wait_for(&daemon, "the message", || {
            hook.phases("unsafe") == ["started"]
        });
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(hook.phases("unsafe"), ["started"], "nothing is safe again");
        daemon.kill();
    }
}

/// A database whose local state cannot be had is a target all the same. One that is gone, and that only its folder named, is told.
#[test]
fn what_a_folder_holds_is_red_if_it_cannot_be_kept_and_told_when_it_is_gone() {
    let hook = Receiver::new(Manner::Good);
    let mut site = site(&hook);
    let folder = site.path("tenants");
    std::fs::create_dir(&folder).unwrap();
    let (list, notify) = site.extra.split_once("notify:").unwrap();
    site.extra = format!(
        "{list}  - dir: {}\n    watch: true\n    max-lag: 1s\nnotify:{notify}",
        folder.display()
    );
    let daemon = site.start();
    first_copy(&daemon, &hook);
    // A file is in the way of its state.
    let in_the_way = site.path("state-web1/one");
    std::fs::write(&in_the_way, "").unwrap();
    let db = folder.join("one.sqlite3");
    let make = "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(id integer primary key,a)')";
    common::python(&db, make);
    wait_for(&daemon, "the database that cannot be kept", || {
        target(&site, "one")
            .to_string()
            .contains("nothing of it is kept")
    });
    assert!(!is_safe(&site));
    wait_for(&daemon, "the message", || {
        hook.phases("unsafe") == ["started"]
    });
    std::fs::remove_file(&in_the_way).unwrap();
    // The app keeps it open: it was made, and is written to.
    wait_for(&daemon, "safe", || is_safe(&site));
    wait_for(&daemon, "both first copies", || {
        hook.phases("first-success").len() == 2
    });
    for end in ["", "-wal", "-shm"] {
        let path = folder.join(format!("one.sqlite3{end}"));
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
    wait_for(&daemon, "that it is gone", || {
        hook.phases("gone") == ["once"]
    });
    let told = hook.events().into_iter().find(|e| e["kind"] == "gone");
    assert_eq!(told.unwrap()["subject"], "one");
}

/// Credentials that are none: the client of the store cannot even be made.
const SHUT: &str = "gs://nobody/here\n        google-credentials: '{\"type\":\"service_account\"}'";

#[test]
fn a_server_whose_store_cannot_be_opened_is_red() {
    let hook = Receiver::new(Manner::Good);
    let mut site = site(&hook);
    site.extra.push_str(&format!(
        "postgres:\n  - name: pg\n    url: postgres://u:p@127.0.0.1:1/x\n    stores:\n      - url: {SHUT}\n"
    ));
    let daemon = site.start();
    wait_for(&daemon, "the server without a store", || {
        target(&site, "pg")["state"] == "failed"
    });
    assert!(!is_safe(&site));
    let text = site.get("/metrics");
    let red = "lifeboat_postgres_ready{store=\"gs://nobody/here/pg\",target=\"pg\"} 0";
    assert!(text.contains(red), "{text}");
    wait_for(&daemon, "the message", || {
        hook.phases("dump-failed") == ["started"]
    });
}

/// Of two stores one cannot be opened: the other gets its dump, and the first is not forgotten over it.
#[test]
fn a_store_that_cannot_be_opened_keeps_no_dump_from_another() {
    let mut site = pg::site::Site::new("");
    site.extra = format!(
        "    stores:\n      - url: file://{}/store\n      - url: {SHUT}\n",
        site.dir.path().display()
    );
    let _daemon = site.start();
    let ready = |store: &str| {
        let text = site.get("/metrics");
        let mine = text
            .lines()
            .find(|l| l.starts_with("lifeboat_postgres_ready{") && l.contains(store));
        mine.map(|l| l.ends_with(" 1"))
    };
    pg::wait_for(|| ready("file://") == Some(true));
    assert_eq!(ready("gs://"), Some(false), "{}", site.get("/metrics"));
    assert!(site.get("/readyz").contains("\"status\":\"unsafe\""));
}

/// Two providers, one name of the bucket: only the endpoints tell the stores apart, in metrics and verdicts, too.
#[test]
fn stores_of_one_name_are_told_apart() {
    let mut site = Site::new().with_http();
    let store = |port: u16| {
        format!(
            "      - url: s3://bucket/backups\n        endpoint: http://127.0.0.1:{port}\n        region: us-east-1\n        access-key-id: a\n        secret-access-key: b\n"
        )
    };
    site.extra = format!("    max-lag: 1s\n    stores:\n{}{}", store(1), store(2));
    let daemon = site.start();
    let shown = |port: u16| format!("s3://bucket/backups/app?endpoint=http://127.0.0.1:{port}");
    wait_for(&daemon, "both stores", || {
        let status = status(&site).to_string();
        status.contains(&shown(1)) && status.contains(&shown(2))
    });
    for port in [1, 2] {
        let labels = format!("store=\"{}\"", shown(port));
        let text = site.get("/metrics");
        let lag = |l: &&str| l.starts_with("lifeboat_lag_seconds{") && l.contains(&labels);
        assert_eq!(text.lines().filter(lag).count(), 1, "{text}");
    }
}

/// Every record of a drill below a folder.
fn records(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|e| e.path())
        .map(|p| match p.is_dir() {
            true => records(&p),
            false => usize::from(p.to_string_lossy().contains("/drills/")),
        })
        .sum()
}

/// A drill without room says nothing of the copy, and is no drill. What the last one found is read again when the store is back.
#[test]
fn heavy_drills_that_cannot_be_made_and_records_that_cannot_be_read() {
    let hook = Receiver::new(Manner::Good);
    let mut site = site(&hook);
    site.sync();
    let base = site.path("store/app/ltx/9");
    let file = std::fs::read_dir(&base)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let good = std::fs::read(&file).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&file, bad).unwrap();
    assert_ne!(site.run(&["drill", "app"]).status.code(), Some(0));
    assert_eq!(records(&site.path("store")), 1);
    std::fs::write(&file, good).unwrap();
    // Somebody starts it while the store is away.
    std::fs::rename(site.path("store"), site.path("away")).unwrap();
    std::fs::write(site.path("store"), "in the way").unwrap();
    let scratch = site.path("scratch");
    std::fs::write(&scratch, "no folder").unwrap();
    site.store_extra = format!(
        "drill: {{ schedule: '* * * * *', scratch-dir: {} }}\n",
        scratch.display()
    );
    let daemon = site.start();
    std::thread::sleep(Duration::from_secs(2));
    std::fs::remove_file(site.path("store")).unwrap();
    std::fs::rename(site.path("away"), site.path("store")).unwrap();
    let begun = std::time::Instant::now();
    let said = |words: &str| target(&site, "app").to_string().contains(words);
    let until = |what: &str, words: &str| {
        while !said(words) {
            assert!(
                begun.elapsed() < Duration::from_secs(150),
                "{what}: {}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    // Not the words of the other one.
    until("the drill that failed", " failed: ");
    assert!(!is_safe(&site), "it failed, whoever knows of it");
    until("the drill without room", "could not be made");
    assert_eq!(site.metric("lifeboat_drill_blocked", "app"), 1.0);
    std::fs::remove_file(&scratch).unwrap();
    while site.metric("lifeboat_drill_blocked", "app") != 0.0 {
        assert!(
            begun.elapsed() < Duration::from_secs(240),
            "{}",
            daemon.log()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    wait_for(&daemon, "safe", || is_safe(&site));
}
