//! A volume that goes away.

use crate::mount::Mount;
use crate::site::{Running, Site, closely, noise, packs, picture};

fn fill(site: &Site, files: u64) {
    for n in 0..files {
        site.write(&format!("d{}/f{n}", n % 3), &noise(n, 1_000_000));
    }
}

#[test]
fn a_volume_that_goes_away_is_not_recorded_as_empty() {
    let site = Site::quick();
    let volume = Mount::tmpfs(&site.path("data"), 64);
    fill(&site, 6);
    let before = picture(&site.path("data"));
    site.backup();
    drop(volume);
    assert_eq!(std::fs::read_dir(site.path("data")).unwrap().count(), 0);
    let text = site.refused(&["snapshot", "uploads"], 4);
    for word in ["is empty", "nothing was recorded", "volume is mounted"] {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(site.points().len(), 1);
    // A new, empty volume in its place is no other thing.
    let volume = Mount::tmpfs(&site.path("data"), 64);
    site.refused(&["snapshot", "uploads"], 4);
    site.ok(&["restore", "uploads", "--in-place"]);
    let mut after = picture(&site.path("data"));
    // Nothing was there, and an undo must know.
    let is_stamp = |line: &String| line.contains(".lifeboat-old-");
    assert_eq!(after.iter().filter(|line| is_stamp(line)).count(), 1);
    after.retain(|line| !is_stamp(line));
    assert_eq!(after[1..], before[1..]);
    site.backup();
    drop(volume);
}

#[test]
fn a_volume_that_goes_away_in_the_middle_is_not_recorded_in_part() {
    let site = Site::quick();
    site.write("below", b"what lies under the mount");
    let volume = Mount::tmpfs(&site.path("data"), 256);
    fill(&site, 3);
    site.backup();
    fill(&site, 96);
    let known = packs(&site).len();
    let mut run = site.prepared(&["snapshot", "uploads"]);
    let run = run.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut run = Running(run);
    closely("pack", || packs(&site).len() > known);
    drop(volume);
    let status = run.0.wait().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut run.0.stderr.take().unwrap(), &mut text).unwrap();
    assert_eq!(status.code(), Some(4), "{text}");
    assert!(text.contains("replaced or unmounted"), "{text}");
    assert_eq!(site.points().len(), 1);
    // It comes back, and the run goes on from there.
    let volume = Mount::tmpfs(&site.path("data"), 256);
    fill(&site, 96);
    site.backup();
    site.ok(&["verify", "uploads"]);
    site.restic(&["check", "--read-data"]);
    drop(volume);
}

/// Not after a download of hours.
#[test]
fn too_little_room_is_said_before_anything_is_restored() {
    let site = Site::quick();
    fill(&site, 6);
    site.backup();
    let volume = Mount::tmpfs(&site.path("small"), 4);
    let free = volume.free();
    let into = site.path("small/back");
    let into = into.to_str().unwrap();
    let text = site.refused(&["restore", "uploads", "-o", into], 4);
    for word in ["6000000 bytes", "are free", "nothing was changed"] {
        assert!(text.contains(word), "{text}");
    }
    assert!(!site.path("small/back").exists());
    assert_eq!(volume.free(), free);
    // A part of it fits.
    let part = site.data("d0");
    let part = part.to_str().unwrap();
    site.ok(&["restore", "uploads", "--path", part, "-o", into]);
    drop(volume);
}
