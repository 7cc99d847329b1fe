//! An app that starts while its database is restored: either it opens the restored one, or the restore gives way; nothing of the app is lost.
#![allow(missing_docs)]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::daemon::Site;
use common::python;

/// Waits until the restored copy is at the wanted step, creates the database or finds it, commits, and writes on until the restore is over.
const APP: &str = "
import os, sqlite3, sys, time
path, copy, finished, after_mode = sys.argv[1:]
end = time.time() + 60
def ready():
    try:
        stat = os.stat(copy)
    except FileNotFoundError:
        return os.path.exists(finished)
    return stat.st_size > 0 and (after_mode == 'no' or stat.st_mode & 0o777 != 0o600)
while not ready() and time.time() < end: time.sleep(0.005)
time.sleep(0.3)
c = sqlite3.connect(path, isolation_level=None, timeout=10)
c.execute('pragma journal_mode=wal')
c.execute('create table if not exists started(a)')
c.execute('insert into started values(1)')
while not os.path.exists(finished) and time.time() < end: time.sleep(0.01)
c.execute('insert into started values(2)')
# A worker of the same app, while the first connection is open.
d = sqlite3.connect(path, isolation_level=None, timeout=10)
print(d.execute('select group_concat(a) from started').fetchone()[0], d.execute('pragma integrity_check').fetchone()[0])
";

fn app(site: &Site, after_mode: &str) -> Child {
    Command::new("python3")
        .args(["-c", APP])
        .args([
            &site.db,
            &site.path(".app.sqlite3.lifeboat-restore"),
            &site.path("finished"),
        ])
        .arg(after_mode)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Restores with every `call` held up for some seconds, and lets an app start in that time.
fn starts_while(call: &str, after_mode: &str, stale_wal: bool) {
    let site = Site::new();
    site.ok(&["sync"]);
    for suffix in ["", "-wal", "-shm"] {
        let path = site.path(&format!("app.sqlite3{suffix}"));
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::remove_dir_all(site.path("state-web1")).unwrap();
    if stale_wal {
        std::fs::write(site.path("app.sqlite3-wal"), [7; 5000]).unwrap();
    }
    let plain = site.command(&["restore", "--all", "--if-not-exists"]);
    // Of an owner of its own, so that its mode tells the steps apart.
    let mut traced = Command::new("strace");
    traced
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={call}"))
        .arg("-e")
        .arg(format!("inject={call}:delay_enter=3000000:when=1"))
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(site.dir.path());
    let child = app(&site, after_mode);
    let begun = Instant::now();
    let out = traced
        .output()
        .expect("strace is missing: run bin/install-dev");
    assert!(
        begun.elapsed() > Duration::from_secs(3),
        "{call} is not used"
    );
    std::fs::write(site.path("finished"), "").unwrap();
    let said = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert_eq!(
        String::from_utf8_lossy(&said.stdout),
        "1,2 ok\n",
        "{call}: {error}"
    );
    assert_eq!(out.status.code(), Some(4), "{call}: {error}");
    assert!(error.contains("exists already"), "{error}");
    // Once more, from outside: the app's database is whole without anything that the restore moved.
    let rows = python(
        &site.db,
        "print(conn().execute('select count(*) from started').fetchone()[0])",
    );
    assert_eq!(rows.trim(), "2");
}

#[test]
fn before_the_copy_has_its_mode() {
    starts_while("fchmod", "no", false);
}

#[test]
fn before_the_copy_gets_its_name() {
    starts_while("renameat2", "yes", false);
}

#[test]
fn while_a_stale_wal_is_moved() {
    starts_while("rename", "yes", true);
}
