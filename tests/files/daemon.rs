//! Scheduled backups.

use crate::site::{Running, Site, noise, packs, wait_for};

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

#[test]
fn the_daemon_backs_up_and_says_so() {
    let mut site = Site::new();
    site.write("a", b"a");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let address = format!("127.0.0.1:{port}");
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
    site.extra += "    schedule: '* * * * *'\n";
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
    wait_for("pack", || packs(&site).len() > 2);
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
    let locks = std::fs::read_dir(site.repository().join("locks")).map_or(0, Iterator::count);
    assert_eq!((locks, site.points().len()), (0, 0));
    site.ok(&["snapshot"]);
    site.restic(&["check", "--read-data"]);
}
