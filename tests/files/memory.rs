//! What a run holds in memory, measured from outside.

use std::process::Command;

use crate::site::{Site, noise, picture};

/// The bound of a run with a million small files; far fewer must stay far below.
const BOUND_KIB: u64 = 128 << 10;

/// Runs a command that must succeed; its peak of resident memory in KiB.
fn peak(site: &Site, args: &[&str]) -> u64 {
    let plain = site.prepared(args);
    let out = Command::new("/usr/bin/time")
        .args(["-f", "%M"])
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(site.dir.path())
        .output()
        .expect("/usr/bin/time is missing: run bin/install-dev");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    let last = said.lines().last().unwrap_or_default();
    last.parse().unwrap_or_else(|e| panic!("{e}: {said}"))
}

#[test]
fn heavy_memory_of_every_command_is_bounded() {
    let mut site = Site::new();
    for n in 0..6_000_u64 {
        site.write(&format!("{}/{n}", n % 997), &noise(n, 500));
    }
    for n in 0..40 {
        site.write(&format!("large/{n}"), &noise(n, 3_000_000));
    }
    let backup = peak(&site, &["snapshot", "uploads"]);
    let restore = peak(&site, &["restore", "uploads", "-o", "back"]);
    let again = peak(&site, &["snapshot", "uploads"]);
    let before = picture(&site.path("data"));
    for n in 0..6_000_u64 {
        site.write(&format!("{}/{n}", n % 997), &noise(n + 1, 400));
    }
    site.ok(&["snapshot", "uploads"]);
    site.extra += "    retention: { point-in-time: 0s, daily: 1 }\n";
    let prune = peak(&site, &["prune", "uploads"]);
    println!("KiB: backup {backup}, restore {restore}, nothing changed {again}, prune {prune}");
    for peak in [backup, restore, again, prune] {
        assert!(peak > 10_000, "{peak} KiB is no measurement");
        assert!(peak < BOUND_KIB, "{peak} KiB");
    }
    assert_eq!(picture(&site.path("back")), before);
    assert_eq!(site.points().len(), 1);
}
