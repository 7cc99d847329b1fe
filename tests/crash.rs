//! SIGKILL before every system call that changes something, sent by strace: what was there is whole, and the next run mends the rest.
#![allow(missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::daemon::{Site, assert_same_pages};

/// Calls that change names, or make what was written durable. One that a run does not use ends its row at once.
const CALLS: [&str; 12] = [
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fchmod",
    "mkdir",
];
/// No run makes more of one call in one thread.
const TURNS_MAX: u32 = 400;

/// Runs a command, killed before the `turn`-th `call` of a thread. `false`: it came to its end without it.
fn killed(site: &Site, args: &[&str], call: &str, turn: u32) -> bool {
    let plain = site.command(args);
    let mut traced = Command::new("strace");
    traced
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={call}"))
        .arg("-e")
        .arg(format!("inject={call}:signal=KILL:when={turn}"))
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(site.dir.path());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    let out = traced
        .output()
        .expect("strace is missing: run bin/install-dev");
    use std::os::unix::process::ExitStatusExt;
    let killed = out.status.signal() == Some(9) || out.status.code() == Some(137);
    assert!(
        killed || out.status.success(),
        "{args:?} {call} {turn}: {:?}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    killed
}

/// Every call, every turn that a run comes to.
fn matrix(mut step: impl FnMut(&str, u32) -> bool) -> u32 {
    rows(&CALLS, &mut step)
}

fn rows(calls: &[&str], step: &mut impl FnMut(&str, u32) -> bool) -> u32 {
    let mut kills = 0;
    for call in calls {
        let mut turn = 1;
        while step(call, turn) {
            kills += 1;
            turn += 1;
            assert!(turn < TURNS_MAX, "{call} has no end");
        }
    }
    kills
}

/// The whole database in one file, as SQLite reads what lies at `path` (a crash may have left a WAL).
fn content(site: &Site, path: &Path, name: &str) -> PathBuf {
    let copy = site.path(name);
    // Made anew each time.
    let _ = std::fs::remove_file(&copy);
    common::python(
        path,
        &format!(
            "a=conn(); b=sqlite3.connect({:?}); a.backup(b); b.close()
assert a.execute('pragma integrity_check').fetchall()==[('ok',)]",
            copy.to_str().unwrap()
        ),
    );
    copy
}

fn same(a: &Path, b: &Path) -> bool {
    std::panic::catch_unwind(|| assert_same_pages(a, b, "")).is_ok()
}

fn leftovers(site: &Site) -> Vec<String> {
    let names = std::fs::read_dir(site.dir.path()).unwrap();
    names
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.contains("lifeboat-restore"))
        .collect()
}

#[test]
fn heavy_killed_anywhere_a_restore_in_place_leaves_the_old_or_the_new_database() {
    let site = Site::new();
    site.write("create table old(a)");
    let good = format!("{:016x}", site.sync());
    let new = site.copy_now("new.db");
    site.write("delete from t where id % 2");
    site.sync();
    let old = site.copy_now("old.db");
    let restore = ["restore", "app", "--in-place", "--txid", &good];
    let kills = matrix(|call, turn| {
        let went = killed(&site, &restore, call, turn);
        let found = content(&site, &site.db, "found.db");
        if went {
            assert!(
                same(&found, &old) || same(&found, &new),
                "{call} {turn}: neither the old nor the new database"
            );
            // What a person does then.
            site.ok(&restore);
        }
        assert_same_pages(&new, &content(&site, &site.db, "found.db"), call);
        assert_eq!(leftovers(&site), [""; 0], "{call} {turn}");
        // The next turn begins with the old one again.
        std::fs::copy(&old, &site.db).unwrap();
        for companion in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(site.path(&format!("app.sqlite3{companion}")));
        }
        common::python(&site.db, "conn().execute('pragma journal_mode=wal')");
        went
    });
    eprintln!("{kills} kills");
    assert!(kills >= 10, "{kills} kills only: does strace work here?");
}

#[test]
fn heavy_killed_anywhere_an_undo_loses_neither() {
    let site = Site::new();
    let good = format!("{:016x}", site.sync());
    let new = site.copy_now("new.db");
    site.write("delete from t where id % 2");
    site.sync();
    let old = site.copy_now("old.db");
    let undo = ["restore", "app", "--undo"];
    let kills = matrix(|call, turn| {
        site.ok(&["restore", "app", "--in-place", "--txid", &good]);
        let went = killed(&site, &undo, call, turn);
        let mut found = Vec::new();
        for file in std::fs::read_dir(site.dir.path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name == "app.sqlite3"
                || name.starts_with("app.sqlite3.before")
                    && !name.ends_with("-wal")
                    && !name.ends_with("-shm")
            {
                found.push(content(&site, &path, &format!("copy-of-{name}")));
            }
        }
        assert!(
            found.iter().any(|f| same(f, &old)) && found.iter().any(|f| same(f, &new)),
            "{call} {turn}: one of the two is gone"
        );
        assert!(
            site.db.exists(),
            "{call} {turn}: no database under its name"
        );
        for file in found {
            std::fs::remove_file(file).unwrap();
        }
        // Begin again with the old one alone.
        for file in std::fs::read_dir(site.dir.path()).unwrap() {
            let path = file.unwrap().path();
            if path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("app.sqlite3")
            {
                std::fs::remove_file(path).unwrap();
            }
        }
        std::fs::copy(&old, &site.db).unwrap();
        common::python(&site.db, "conn().execute('pragma journal_mode=wal')");
        went
    });
    eprintln!("{kills} kills");
    assert!(kills >= 3, "{kills} kills only: does strace work here?");
}

#[test]
fn heavy_killed_anywhere_a_sync_loses_nothing_and_sends_no_second_base() {
    let mut site = Site::new();
    site.extra = format!(
        "    stores:\n      - url: {}\n      - url: file://{}\n",
        site.store,
        site.path("second").display()
    );
    site.sync();
    let mut value = 0;
    let mut step = |call: &str, turn| {
        value += 1;
        site.write(&format!(
            "insert into t(id,a) values({}, {value})",
            10_000 + value
        ));
        let before = site.points();
        let went = killed(&site, &["sync"], call, turn);
        let points = site.points();
        assert!(
            before.iter().all(|p| points.contains(p)),
            "{call} {turn}: points are gone: {before:?} {points:?}"
        );
        // Whatever the store calls its newest point is a state of the database: this one or the last one.
        let restored = site.restore("restored.db", &["--verify", "full"]);
        let count = format!(
            "assert conn().execute('select max(id)-10000 from t').fetchone()[0] in ({}, {value})",
            if value == 1 { -7000 } else { value - 1 }
        );
        common::python(&restored, &count);
        site.sync();
        assert_same_pages(
            &site.copy_now("now.db"),
            &site.restore("restored.db", &[]),
            &format!("{call} {turn}"),
        );
        went
    };
    // Also before each write at a place: of pages, of the checksum table.
    let kills = rows(&CALLS, &mut step) + rows(&["pwrite64"], &mut step);
    eprintln!("{kills} kills");
    assert!(kills >= 20, "{kills} kills only: does strace work here?");
    let bases = std::fs::read_dir(site.path("store/app/ltx/9"))
        .unwrap()
        .count();
    assert_eq!(bases, 1, "a second full copy was sent");
}

#[test]
fn two_restores_to_one_place_do_not_mix() {
    let site = Site::new();
    site.sync();
    let out = site.path("out.db");
    let args = ["restore", "app", "-o", out.to_str().unwrap()];
    // One that stands still in the middle: it holds the lock of its temporary file.
    let draft = std::fs::File::options()
        .create(true)
        .append(true)
        .open(site.path(".out.db.lifeboat-restore"))
        .unwrap();
    std::io::Write::write_all(&mut &draft, &vec![7; 3 << 20]).unwrap();
    rustix::fs::flock(&draft, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = site.fails(4, &args);
    assert!(
        error.contains("another restore") && error.contains("hint:"),
        "{error}"
    );
    assert!(!out.exists());
    // Killed: the next one takes its place, and nothing of its bytes is left.
    drop(draft);
    site.ok(&args);
    assert_same_pages(&site.copy_now("now.db"), &out, "after a killed one");
    assert_eq!(leftovers(&site), [""; 0]);
}
