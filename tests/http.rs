//! What the endpoints say while the real binary meets trouble: red with the reason, and green again by itself.
#![allow(missing_docs)]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::daemon::{Daemon, Site, assert_same_pages, bring_back, take_away, wait_for};
use serde_json::Value;

impl Probe<'_> {
    /// Status code and body.
    fn get(&self, path: &str) -> (u16, String) {
        let address = self
            .0
            .http
            .trim_start_matches("{ listen: ")
            .trim_end_matches(" }");
        let out = Command::new("curl")
            .args(["-s", "-m", "10", "-w", "\n%{http_code}"])
            .arg(format!("http://{address}{path}"))
            .output()
            .expect("curl is missing: run bin/install-dev");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap();
        (code.parse().unwrap(), body.to_owned())
    }

    fn app(&self) -> Value {
        let (_, body) = self.get("/readyz");
        let status: Value = serde_json::from_str(&body).unwrap();
        status["targets"][0].clone()
    }

    /// Waits until readiness is as wanted; liveness and `/up` do not care.
    fn waits_for(&self, daemon: &Daemon, ready: bool, reason: &str) -> Value {
        let code = if ready { 200 } else { 503 };
        wait_for(
            daemon,
            &format!("readiness {code} with \"{reason}\""),
            || self.get("/readyz").0 == code && self.app().to_string().contains(reason),
        );
        assert_eq!(self.get("/healthz").0, 200);
        let (up, body) = self.get("/up");
        assert_eq!(up, 200, "a red backup takes no app out of a proxy");
        let up: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(up["status"], if ready { "safe" } else { "unsafe" });
        let metric = self.0.metric("lifeboat_ready", "app");
        assert_eq!(metric, if ready { 1.0 } else { 0.0 });
        self.app()
    }
}

struct Probe<'a>(&'a Site);

fn site() -> Site {
    let mut site = Site::new().with_http();
    site.extra = "    max-lag: 2s\n".into();
    site
}

#[test]
fn an_outage_is_red_with_its_reason_and_green_again() {
    let site = site();
    let daemon = site.start();
    site.sync();
    let probe = Probe(&site);
    let app = probe.waits_for(&daemon, true, "");
    assert_eq!(app["state"], "steady", "{app}");
    assert_eq!(app["lag_seconds"], 0.0, "{app}");
    take_away(&site.path("store"));
    site.write("update t set a='during the outage' where id=1");
    let app = probe.waits_for(&daemon, false, "not durable");
    assert!(app["lag_seconds"].as_f64().unwrap() > 1.0, "{app}");
    assert!(site.metric("lifeboat_lag_bytes", "app") > 0.0);
    assert!(site.metric("lifeboat_upload_errors_total", "app") > 0.0);
    bring_back(&site.path("store"));
    let app = probe.waits_for(&daemon, true, "");
    assert_eq!(app["reasons"], serde_json::json!([]), "{app}");
    assert_eq!(site.metric("lifeboat_lag_seconds", "app"), 0.0);
    assert_same_pages(
        &site.copy_now("now.db"),
        &site.restore("r.db", &[]),
        "after it",
    );
}

/// Ends the tracer, which lets the process go on.
struct Tracer(Child);

impl Drop for Tracer {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        // Gone already is fine.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.0.wait();
    }
}

/// The disk of the state directory hangs: every fsync of the process takes an hour. Nothing returns an error.
#[test]
fn a_stalled_capture_is_red_although_nothing_failed() {
    let site = site();
    let daemon = site.start();
    site.sync();
    let probe = Probe(&site);
    probe.waits_for(&daemon, true, "");
    let mut tracer = Command::new("strace")
        .args(["-f", "-p", &daemon.pid().to_string(), "-o"])
        .arg(site.path("strace.log"))
        .args(["-e", "trace=fsync,fdatasync"])
        .args(["-e", "inject=fsync,fdatasync:delay_enter=3600000000"])
        .stderr(Stdio::piped())
        .spawn()
        .map(Tracer)
        .expect("strace is missing: run bin/install-dev");
    // It says so when it is attached.
    std::io::Read::read_exact(tracer.0.stderr.as_mut().unwrap(), &mut [0]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    site.write("update t set a='while capture hangs' where id=1");
    let app = probe.waits_for(&daemon, false, "are not durable");
    assert_eq!(app["state"], "steady", "nothing else tells: {app}");
    drop(tracer);
    probe.waits_for(&daemon, true, "");
    assert_same_pages(
        &site.copy_now("now.db"),
        &site.restore("r.db", &[]),
        "after it",
    );
}

#[test]
fn a_vanished_database_stays_in_the_metrics_and_is_red() {
    let site = site();
    let daemon = site.start();
    site.sync();
    let probe = Probe(&site);
    probe.waits_for(&daemon, true, "");
    for companion in ["", "-wal", "-shm"] {
        let path = site.path(&format!("app.sqlite3{companion}"));
        std::fs::rename(&path, path.with_extension(format!("gone{companion}"))).unwrap();
    }
    let app = probe.waits_for(&daemon, false, "vanished");
    assert_eq!(app["name"], "app", "{app}");
    assert_eq!(
        site.metric("lifeboat_state", "state=\"vanished\""),
        1.0,
        "its series are kept"
    );
    assert!(site.metric("lifeboat_durable_txid", "app") > 0.0);
    for companion in ["-wal", "-shm", ""] {
        let path = site.path(&format!("app.sqlite3{companion}"));
        std::fs::rename(path.with_extension(format!("gone{companion}")), &path).unwrap();
    }
    probe.waits_for(&daemon, true, "");
}
