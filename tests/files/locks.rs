//! Locks of processes that live, and of some that do not.

use std::path::Path;
use std::process::Command;

use lifeboat::files::{FilesError, Goal};
use sha2::{Digest, Sha256};

use crate::lab::Lab;
use crate::site::{PASSWORD, Site, cheap_key, noise, sealed};

/// A lock's name and content.
fn lock(key: &[u8; 64], host: &str, user: &str, pid: u32, exclusive: bool) -> (String, Vec<u8>) {
    let text = serde_json::json!({
        "time": jiff::Timestamp::now(), "exclusive": exclusive, "hostname": host, "username": user, "pid": pid, "uid": 0, "gid": 0,
    });
    let body = sealed(key, &serde_json::to_vec(&text).unwrap());
    let name = format!("locks/{}", hex::encode(Sha256::digest(&body)));
    (name, body)
}

/// As on hosts where `/proc` shows nobody the processes of others.
#[test]
fn a_process_that_is_hidden_lives() {
    let mut site = Site::new();
    let (name, file, key) = cheap_key(PASSWORD);
    std::fs::create_dir_all(site.repository().join("keys")).unwrap();
    std::fs::write(site.repository().join(name), file).unwrap();
    site.write("f", b"content");
    site.ok(&["snapshot", "uploads"]);
    // Of this very process, which is root's.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap();
    let user = format!("lifeboat {} {}", boot.trim(), space.display());
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    let (name, body) = lock(&key, &host, &user, std::process::id(), false);
    let held = site.repository().join(name);
    std::fs::create_dir_all(held.parent().unwrap()).unwrap();
    std::fs::write(&held, body).unwrap();
    let out = Command::new("chown")
        .args(["-R", "65534:65534"])
        .arg(site.dir.path())
        .status()
        .unwrap();
    assert!(out.success(), "the tests of files need root");
    let go = "mount -o remount,hidepid=2 /proc && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let words = ["unshare", "-m", "sh", "-c", go, "sh"];
    site.command = words.map(str::to_owned).to_vec();
    let hidden = format!("test ! -e /proc/{}", std::process::id());
    let out = Command::new(words[0])
        .args(&words[1..])
        .args(["sh", "-c", &hidden])
        .status()
        .unwrap();
    assert!(out.success(), "this process is not hidden");
    let text = site.refused(&["prune"], 4);
    assert!(text.contains("is locked by"), "{text}");
    assert!(Path::new(&held).exists(), "its lock was removed");
}

/// A prune that was killed on another host: its lock keeps out backups for half an hour, but nobody who needs his files.
#[test]
fn a_restore_does_not_wait_for_a_dead_prune() {
    let lab = Lab::quick("");
    lab.write("f", &noise(1, 300_000));
    lab.backup().unwrap();
    let left = |user: &str| {
        let (name, body) = lock(&lab.key(), "lost", user, 1, true);
        lab.put(&name, Some(&body));
        name
    };
    let ours = left("lifeboat 1234 pid:[1]");
    let refused = lab.backup().map(drop).unwrap_err();
    assert!(matches!(refused, FilesError::Locked { .. }), "{refused}");
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
    assert!(
        !lab.get(&ours).is_empty(),
        "it is not for a restore to remove"
    );
    // restic's own prune deletes at once.
    lab.put(&ours, None);
    left("root");
    let refused = lab.restored(&Goal::Newest).unwrap_err();
    assert!(matches!(refused, FilesError::Locked { .. }), "{refused}");
}
