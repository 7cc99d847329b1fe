//! Small and read-only volumes.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a command that only root may.
#[track_caller]
pub fn root(args: &[&str]) {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(args[0])
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", args[0]]);
        sudo
    };
    let out = command.args(&args[1..]).output().unwrap();
    assert!(
        out.status.success(),
        "{args:?} (needs root or sudo without a password): {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Unmounted when dropped.
pub struct Mount(PathBuf);

impl Mount {
    pub fn tmpfs(at: &Path, megabytes: u32) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={megabytes}m,mode=0777");
        root(&[
            "mount",
            "-t",
            "tmpfs",
            "-o",
            &options,
            "tmpfs",
            at.to_str().unwrap(),
        ]);
        Self(at.to_owned())
    }

    pub fn read_only(at: &Path) -> Self {
        let path = at.to_str().unwrap();
        root(&["mount", "--bind", path, path]);
        let mount = Self(at.to_owned());
        root(&["mount", "-o", "remount,bind,ro", path]);
        mount
    }

    /// Bytes that can still be written.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a daemon that is about to end may still be in it.
        let status = Command::new("umount").arg("-l").arg(&self.0).status();
        if !status.is_ok_and(|s| s.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}
