//! `lifeboat status` as a person and as a program see it.
#![allow(missing_docs)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use common::daemon::{Site, take_away, wait_for};
use serde_json::Value;

/// Ends with the test.
struct Watch(Child);

impl Drop for Watch {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn status_needs_no_http_and_says_what_to_do() {
    let mut site = Site::new();
    site.extra = "    max-lag: 1s\n".into();
    let nobody = site.fails(1, &["status"]);
    assert!(
        nobody.contains("hint: is `lifeboat run` running"),
        "{nobody}"
    );
    let daemon = site.start();
    site.sync();
    let said = site.ok(&["status"]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("TARGET  SAFE  STATE   LAG   ALLOWED  DURABLE  OLDEST  DRILL"),
        "{said}"
    );
    assert!(
        lines[1].starts_with("app     yes   steady  0.0s  1.0s "),
        "{said}"
    );
    assert_eq!(lines[2], "lifeboat: ok status safe");
    let status: Value =
        serde_json::from_str(site.ok(&["status", "--json"]).lines().next().unwrap()).unwrap();
    assert_eq!(status["targets"][0]["name"], "app");
    assert!(lines[1].ends_with("  none"), "{said}");
    let store = &status["targets"][0]["stores"][0];
    assert!(
        store["oldest_at"].is_string() && store["drill_at"].is_null(),
        "{store}"
    );
    site.ok(&["drill"]);
    wait_for(&daemon, "the drill", || {
        site.ok(&["status"]).contains("  passed ")
    });

    let mut child = site
        .command(&["status", "--watch", "--interval", "100ms", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let watch = Watch(child);
    let mut states =
        lines.map(|l| serde_json::from_str::<Value>(&l.unwrap()).unwrap()["status"].clone());
    assert_eq!(states.next().unwrap(), "safe");
    take_away(&site.path("store"));
    site.write("update t set a='x' where id=1");
    assert!(states.any(|s| s == "unsafe"));
    // A daemon that ends does not end the watch.
    daemon.kill();
    assert!(states.any(|s| s == "unknown"));
    drop(watch);
    let daemon = site.start();
    wait_for(&daemon, "red", || !site.run(&["status"]).status.success());
    let out = site.run(&["status"]);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.contains("app     NO "), "{said}");
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(error.contains("hint: what to do stands below"), "{error}");
    assert!(!said.contains("lifeboat: ok"), "{said}");
}

/// What a terminal shows: python's pty is one.
fn in_a_terminal(site: &Site, no_colour: bool) -> String {
    let command = site.command(&["status"]);
    let mut words = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(ToOwned::to_owned));
    let mut python = Command::new("python3");
    python
        .args(["-c", "import pty,sys; pty.spawn(sys.argv[1:])"])
        .args(words);
    python.current_dir(site.dir.path());
    if no_colour {
        python.env("NO_COLOR", "1");
    } else {
        python.env_remove("NO_COLOR");
    }
    let out = python
        .output()
        .expect("python3 is missing: run bin/install-dev");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let site = Site::new();
    let _daemon = site.start();
    site.sync();
    let coloured = in_a_terminal(&site, false);
    assert!(coloured.contains("\x1b[32mapp"), "{coloured:?}");
    assert!(!in_a_terminal(&site, true).contains('\x1b'));
    assert!(!site.ok(&["status"]).contains('\x1b'));
}

/// Every line of a JSON log is an object with the same words.
#[test]
fn a_json_log_is_one_object_a_line() {
    let mut site = Site::new();
    site.env = vec![
        ("LIFEBOAT_LOG_FORMAT".into(), "json".into()),
        ("KAMAL_SERVICE".into(), "myapp".into()),
        ("KAMAL_DESTINATION".into(), "production".into()),
    ];
    let daemon = site.start();
    site.sync();
    take_away(&site.path("store"));
    site.write("update t set a='x' where id=1");
    wait_for(&daemon, "a warning", || daemon.log().contains("WARNING"));
    let log = daemon.log();
    // The last one may be under way.
    let (whole, _) = log.rsplit_once('\n').unwrap();
    let lines: Vec<Value> = whole
        .lines()
        .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
        .collect();
    for line in &lines {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        assert!(
            text("timestamp").parse::<jiff::Timestamp>().is_ok(),
            "{line}"
        );
        assert!(
            ["INFO", "WARNING"].contains(&text("severity").as_str()),
            "{line}"
        );
        assert!(!text("message").is_empty(), "{line}");
        assert_eq!(
            (text("service"), text("environment")),
            ("myapp".into(), "production".into())
        );
    }
    let begun = lines.iter().find(|l| l["lineage"].is_string()).unwrap();
    assert_eq!(begun["target"], "app", "{begun}");
    let failed = lines.iter().find(|l| l["severity"] == "WARNING").unwrap();
    assert!(
        failed["store"].as_str().unwrap().ends_with("/store/app"),
        "{failed}"
    );
}
