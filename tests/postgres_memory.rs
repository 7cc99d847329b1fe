//! What a dump and a restore take of the host's memory, whatever the size of the database.
#![allow(missing_docs)]

mod pg;

use std::process::Stdio;
use std::time::Duration;

use pg::DATABASE;
use pg::site::Site;

const MIB: u64 = 1024 * 1024;
const LIMIT: u64 = 96 * MIB;
/// Several times the limit, and it does not compress.
const NOISE: &str = "CREATE TABLE noise AS SELECT n AS id, (SELECT string_agg(gen_random_bytes(1000), '') FROM generate_series(1, 32) WHERE n > 0) AS noise
    FROM generate_series(1, 9000) n;";

/// The most that a command had in memory, in bytes.
#[track_caller]
fn peak(site: &Site, args: &[&str]) -> u64 {
    let mut child = site
        .command(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{args:?}");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn heavy_memory_is_bounded() {
    let site = Site::new("    compression-level: 1\n");
    site.server.sql(DATABASE, NOISE);
    let dump = peak(&site, &["snapshot", "app"]);
    let size = site.dumps("app")[0]["dump"]["dump"]["size"]
        .as_u64()
        .unwrap();
    assert!(size > 2 * LIMIT, "{size}");
    let verify = peak(&site, &["verify", "app"]);
    let restore = peak(&site, &["restore", "app", "--into-new", "again"]);
    let mib = [size, dump, verify, restore].map(|n| n / MIB);
    eprintln!(
        "dump of {} MiB: peak {} MiB; verify {} MiB; restore {} MiB",
        mib[0], mib[1], mib[2], mib[3]
    );
    for peak in [dump, verify, restore] {
        assert!(peak > MIB && peak < LIMIT, "{peak}");
    }
}
