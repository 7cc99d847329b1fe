//! Scheduled backups.

use crate::port::free_port;
use crate::site::{Running, Site, closely, noise, packs, wait_for};

fn get(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(address) else {
        return String::new();
    };
    let mut text = String::new();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

const YEARLY: &str = "'0 3 1 1 *'";

/// The run at the start is the only one.
fn once() -> Site {
    let mut site = Site::new();
    site.extra += &format!("    schedule: {YEARLY}\n");
    site
}

/// One store cannot even be opened: the other gets every backup, and the state says which one does not.
#[test]
fn a_bad_store_does_not_stop_backups_to_the_good_one() {
    let mut site = once();
    site.write("a", b"a");
    let bad = site.path("nowhere.json").display().to_string();
    let good = site.path("store").display().to_string();
    site.stores = Some(format!(
        "stores:\n  - {{ url: \"gs://bucket/x\", google-credentials: \"{bad}\" }}\n  - \"file://{good}\"\n"
    ));
    let address = free_address();
    site.http = format!("{{ listen: {address} }}");
    let mut daemon = Running(site.prepared(&["run"]).spawn().unwrap());
    let runs = || {
        let metrics = get(&address, "/metrics");
        let mut lines = metrics.lines();
        let complete = "lifeboat_files_runs_total{result=\"complete\"";
        lines.any(|l| l.starts_with(complete) && l.contains(&good) && l.ends_with(" 1"))
    };
    wait_for("snapshot in the good store", runs);
    // The daemon prunes right after, under the exclusive lock that keeps restic out; snapshots are not changed by it.
    let snapshots = site.restic(&["--no-lock", "snapshots"]);
    assert!(snapshots.contains("1 snapshots"), "{snapshots}");
    let state = get(&address, "/readyz");
    assert!(state.contains("503"), "{state}");
    assert!(state.contains("gs://bucket/x/uploads"), "{state}");
    assert!(get(&address, "/metrics").contains("gs://bucket/x/uploads"));
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
}

#[test]
fn the_daemon_backs_up_and_says_so() {
    let mut site = once();
    site.write("a", b"a");
    let address = free_address();
    site.http = format!("{{ listen: {address} }}");
    let mut daemon = Running(site.prepared(&["run"]).spawn().unwrap());
    wait_for("snapshot", || {
        get(&address, "/readyz").contains("\"status\":\"safe\"")
    });
    assert_eq!(site.points().len(), 1);
    let metrics = get(&address, "/metrics");
    for line in [
        "lifeboat_files_ready{",
        "lifeboat_files_runs_total{result=\"complete\"",
    ] {
        let found = metrics
            .lines()
            .find(|l| l.starts_with(line))
            .unwrap_or_default();
        assert!(found.ends_with(" 1"), "{line}: {found}");
    }
    assert!(site.ok(&["status"]).contains("uploads"));
    // In order, and at once.
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
    // A folder that was emptied turns it red.
    std::fs::remove_file(site.data("a")).unwrap();
    site.extra = site.extra.replace(YEARLY, "'* * * * *'");
    let _daemon = Running(site.prepared(&["run"]).spawn().unwrap());
    wait_for("refusal", || get(&address, "/readyz").contains("is empty"));
    assert!(get(&address, "/readyz").contains("503"), "not ready");
    assert_eq!(site.points().len(), 1);
}

#[test]
fn a_stop_in_the_middle_leaves_no_lock() {
    let site = Site::new();
    for n in 0..24 {
        site.write(&format!("big{n}"), &noise(n, 2_000_000));
    }
    site.ok(&["files", "init"]);
    std::fs::create_dir_all(site.repository().join("data")).unwrap();
    let mut daemon = Running(site.prepared(&["run"]).spawn().unwrap());
    closely("pack", || packs(&site).len() > 2);
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
    let locks = std::fs::read_dir(site.repository().join("locks")).map_or(0, Iterator::count);
    assert_eq!((locks, site.points().len()), (0, 0));
    site.ok(&["snapshot"]);
    site.restic(&["check", "--read-data"]);
}
