//! The status page of a whole app: a database with Solid Queue and Cache, dumps of PostgreSQL and Redis, files, probes; and what the CLI's drills
//! change on it.
#![allow(missing_docs)]

mod common;
mod pg;

use std::process::Command;

use serde_json::Value;

use common::browser::{browse, is_clean};
use common::daemon::{Daemon, Site, free_port, wait_for};
use common::receiver::{Manner, Receiver};
use common::redis::Redis;

const TOKEN: &str = "correct horse battery staple";

/// Everything that Lifeboat knows how to keep and to watch.
struct App {
    site: Site,
    web: Receiver,
    _servers: (pg::Server, Redis),
    port: u16,
}

impl App {
    fn new() -> Self {
        let (server, redis, web) = (
            pg::Server::start(),
            Redis::start(),
            Receiver::new(Manner::Good),
        );
        server.populated();
        redis.run(&["SET", "a", "1"]);
        let port = free_port();
        let mut site = Site::new();
        site.http = format!("{{ listen: 127.0.0.1:{port}, token: {TOKEN} }}");
        common::solid::make(&site.db);
        common::solid::app(
            &site.db,
            "beat('Worker'); beat('Dispatcher'); entries(10,10)",
        );
        let uploads = site.path("uploads");
        std::fs::create_dir(&uploads).unwrap();
        for n in 0..20 {
            std::fs::write(uploads.join(format!("{n}.jpg")), vec![n; 20_000]).unwrap();
        }
        site.store_extra = "insight: { every: 500ms }\n".into();
        site.extra = format!(
            "    max-lag: 2s\nfiles:\n  - name: uploads\n    paths: [{}]\n    password: test-only\n    create: true\npostgres:\n  - name: primary\n    url: \"{}\"\n    drill-url: \"{}\"\nredis:\n  - name: cache\n    url: \"{}\"\nprobes:\n  - name: web\n    url: {}\n    every: 500ms\n",
            uploads.display(),
            server.url(pg::URL_PASSWORD),
            server.url(pg::URL_PASSWORD),
            redis.url(),
            web.url(),
        );
        Self {
            site,
            web,
            _servers: (server, redis),
            port,
        }
    }

    fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn get(&self, path: &str) -> String {
        let out = Command::new("curl")
            .args(["-s", "-m", "40", &format!("{}{path}", self.base())])
            .args(["-H", &format!("Authorization: Bearer {TOKEN}")])
            .output()
            .expect("curl is missing: run bin/install-dev");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn json(&self, path: &str) -> Value {
        let text = self.get(path);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}\n{text}"))
    }

    /// Value of a metric of one target.
    fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        let text = self.get("/metrics");
        let mut mine = text
            .lines()
            .filter(|l| l.starts_with(&format!("{name}{{")) && l.contains(labels));
        mine.next()?.rsplit_once(' ')?.1.parse().ok()
    }

    fn green(&self) -> Daemon {
        let daemon = self.site.start();
        wait_for(&daemon, "green", || {
            let status = self.json("/api/v1/status");
            let services = status["services"].as_array().unwrap();
            status["status"] == "safe"
                && services.len() == 4
                && services.iter().all(|s| s["state"] == "up")
        });
        daemon
    }
}

#[test]
fn heavy_the_page_of_a_whole_app_is_accessible_and_complete() {
    let app = App::new();
    let daemon = app.green();
    for n in 0..4 {
        app.site.write(&format!("update t set a='{n}' where id=1"));
        app.site.ok(&["sync", "app"]);
    }
    app.site.ok(&["snapshot", "--label", "deploy-v42"]);
    app.site.ok(&["drill"]);
    let paths = [
        "/",
        "/targets/app",
        "/targets/primary",
        "/targets/cache",
        "/targets/uploads",
        "/targets/uploads?at=0s",
    ];
    let seen = browse(app.site.dir.path(), &app.base(), TOKEN, &paths);
    seen.iter().for_each(is_clean);
    let text = |i: usize| seen[2 * i]["text"].as_str().unwrap().to_owned();
    for words in [
        "Everything is safe",
        "SQLite",
        "PostgreSQL",
        "Redis",
        "Files",
    ] {
        assert!(text(0).contains(words), "{words}: {}", text(0));
    }
    // Whoever looks sees the drills of all that can be drilled.
    assert_eq!(text(0).matches("passed").count(), 3, "{}", text(0));
    for (number, what) in [(1, "Objects"), (2, "Dumps"), (3, "Dumps"), (4, "Snapshots")] {
        let page = text(number);
        for words in ["Kept:", "Tiers", what, "lifeboat restore", "deploy-v42"] {
            assert!(page.contains(words), "{}: {words}: {page}", paths[number]);
        }
    }
    assert!(
        text(5).contains("The last point at or before"),
        "{}",
        text(5)
    );
    // The API lists every snapshot, and each command of the page works.
    let points = app.json("/api/v1/targets/uploads/points");
    let store = &points["stores"][0];
    let ids: Vec<&str> = store["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["id"].as_str().unwrap())
        .collect();
    assert!(ids.len() >= 2, "one by schedule, one with a label: {store}");
    assert_eq!(store["labels"][0]["label"], "deploy-v42", "{store}");
    assert_eq!(store["drills"][0]["ok"], true, "{store}");
    let page = app.get("/targets/uploads");
    for id in ids {
        let begin = format!("lifeboat restore uploads --snapshot {id} ");
        let command = &page[page
            .find(&begin)
            .unwrap_or_else(|| panic!("{begin}: {page}"))..];
        let command = command.split('<').next().unwrap();
        let args: Vec<&str> = command.split(' ').skip(1).collect();
        app.site.ok(&args);
        let restored = app.site.path("uploads-restored");
        let copies = Command::new("find")
            .arg(&restored)
            .args(["-name", "7.jpg"])
            .output();
        assert!(!copies.unwrap().stdout.is_empty(), "{command}");
        std::fs::remove_dir_all(restored).unwrap();
    }

    // Trouble of the app is no trouble of the copies, and is shown as accessibly.
    app.web.be(Manner::Broken);
    wait_for(&daemon, "a service that is down", || {
        app.get("/api/v1/status").contains("it answered 500")
    });
    let seen = browse(app.site.dir.path(), &app.base(), TOKEN, &["/"]);
    seen.iter().for_each(is_clean);
    let words = seen[0]["text"].as_str().unwrap();
    assert!(
        words.contains("Everything is safe") && words.contains("Not up: web"),
        "{words}"
    );
}

/// A drill by hand beside the daemon: what it found is in metrics, verdict and page when the command ends.
#[test]
fn a_drill_by_hand_is_known_to_the_daemon_at_once() {
    let app = App::new();
    let daemon = app.green();
    assert_eq!(app.metric("lifeboat_drill_success", "target=\"app\""), None);
    let before = jiff::Timestamp::now().as_second() as f64;
    app.site.ok(&["drill"]);
    for target in ["app", "primary", "uploads"] {
        let labels = format!("target=\"{target}\"");
        assert_eq!(
            app.metric("lifeboat_drill_success", &labels),
            Some(1.0),
            "{target}"
        );
        let at = app.metric("lifeboat_drill_timestamp_seconds", &labels);
        assert!(at.unwrap() >= before, "{target}: {at:?}");
        let age = app.metric("lifeboat_drill_age_seconds", &labels);
        assert!(age.is_some_and(|s| s < 300.0), "{target}: {age:?}");
    }
    // Every pack of the files' repository is damaged: the drill fails, and the daemon says so.
    for pack in walk(&app.site.path("store/uploads/data")) {
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes.iter_mut().take(64).for_each(|b| *b ^= 1);
        std::fs::write(&pack, bytes).unwrap();
    }
    app.site.fails(5, &["drill", "uploads"]);
    let labels = "target=\"uploads\"";
    assert_eq!(app.metric("lifeboat_drill_success", labels), Some(0.0));
    let status = app.json("/api/v1/status");
    assert_eq!(status["status"], "unsafe", "{status}");
    let mut targets = status["targets"].as_array().unwrap().iter();
    let uploads = targets.find(|t| t["name"] == "uploads").unwrap();
    let reasons = uploads["reasons"].to_string();
    assert!(reasons.contains("the drill of"), "{uploads}");
    assert!(app.get("/").contains("FAILED"));

    // Another process reads the records when it starts, without a schedule.
    assert_eq!(daemon.stop(), 0);
    let daemon = app.site.start();
    wait_for(&daemon, "the records", || {
        app.metric("lifeboat_drill_success", labels) == Some(0.0)
            && app.metric("lifeboat_drill_success", "target=\"app\"") == Some(1.0)
    });
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path());
    entries
        .flat_map(|p| if p.is_dir() { walk(&p) } else { vec![p] })
        .collect()
}
