//! What goes wrong around a restore or a labelled snapshot, and must not pass as success.
#![allow(missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use common::daemon::Site;
use common::mount::Mount;
use common::python;
use lifeboat::restore::swap::hold;
use serde_json::Value;

const BOOT: [&str; 4] = ["restore", "--all", "--if-not-exists", "--if-replica-exists"];

fn set(db: &Path, value: &str) {
    python(
        db,
        &format!(
            "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table if not exists t(id integer primary key,a)')
c.execute('delete from t'); c.execute(\"insert into t(a) values('{value}')\")"
        ),
    );
}

fn value(db: &Path) -> String {
    python(db, "print(conn().execute('select a from t').fetchone()[0])")
        .trim()
        .to_owned()
}

fn remove(db: &Path) {
    for companion in ["", "-wal", "-shm"] {
        // The last connection takes its companions with it.
        let _ = std::fs::remove_file(format!("{}{companion}", db.display()));
    }
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// An app that has the database open until its stdin is closed.
fn open(db: &Path) -> Child {
    let mut app = Command::new("python3")
        .args(["-c", "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute('select * from t').fetchall(); print('open',flush=True); sys.stdin.read()"])
        .arg(db)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(app.stdout.take().unwrap()),
        &mut String::new(),
    )
    .unwrap();
    app
}

/// A site with a folder of databases.
fn with_folder(watch: bool) -> (Site, PathBuf) {
    let mut site = Site::new();
    let folder = site.path("tenants");
    std::fs::create_dir(&folder).unwrap();
    site.extra = format!("  - dir: {}\n    watch: {watch}\n", folder.display());
    (site, folder)
}

fn two_databases() -> (Site, [PathBuf; 2]) {
    let mut site = Site::new();
    let other = site.path("other.sqlite3");
    site.extra = format!("  - path: {}\n", other.display());
    set(&site.db, "saved");
    set(&other, "saved");
    site.sync();
    let both = [site.db.clone(), other];
    (site, both)
}

/// A new server: the first store was added to the configuration a moment ago and is empty, the second has everything and does not answer. An
/// app that started now would begin with an empty database.
#[test]
fn a_store_that_does_not_answer_may_have_what_another_lacks() {
    let mut site = Site::new();
    let stores = |site: &Site| {
        format!(
            "    stores:\n      - url: file://{}\n      - url: file://{}\n",
            site.path("new").display(),
            site.path("full").display()
        )
    };
    site.extra = stores(&site);
    site.sync();
    std::fs::remove_dir_all(site.path("new")).unwrap();
    remove(&site.db);
    let away = || std::fs::rename(site.path("full"), site.path("away")).unwrap();
    away();
    std::fs::write(site.path("full"), "no folder").unwrap();
    for more in [&[][..], &["--dry-run"], &["--last-good"]] {
        if more == ["--last-good"] {
            site.fails(1, &["restore", "app", "--if-replica-exists", "--last-good"]);
        } else {
            site.fails(1, &[&BOOT[..], more].concat());
        }
        assert!(!site.db.exists());
    }
    std::fs::remove_file(site.path("full")).unwrap();
    std::fs::rename(site.path("away"), site.path("full")).unwrap();
    assert!(site.ok(&BOOT).contains("restored=1"));
    assert!(site.db.exists());

    // The same for dumps and for files.
    for of_kind in [
        "postgres:\n  - name: people\n    url: postgres://app@127.0.0.1:1/people\n",
        "files:\n  - name: uploads\n    paths: [UPLOADS]\n    password: of-the-repository\n",
    ] {
        let mut site = Site::new();
        std::fs::write(site.path("full"), "no folder").unwrap();
        let uploads = site.path("uploads").display().to_string();
        site.extra = of_kind.replace("UPLOADS", &uploads) + &stores(&site);
        site.fails(1, &BOOT);
        // Where both say that there is nothing, there is nothing.
        std::fs::remove_file(site.path("full")).unwrap();
        assert!(site.ok(&BOOT).contains("absent=1"), "{of_kind}");
    }
}

/// A lifecycle rule took the base: the app would begin with an empty database, and nobody would know.
#[test]
fn files_without_their_base_are_no_new_target() {
    let site = Site::new();
    site.sync();
    site.write("update t set a='later' where id=1");
    site.sync();
    std::fs::remove_dir_all(site.path("store/app/ltx/9")).unwrap();
    remove(&site.db);
    let error = site.fails(5, &BOOT);
    assert!(
        error.contains("no complete base") && error.contains("hint:"),
        "{error}"
    );
    assert!(!site.db.exists());
    std::fs::remove_dir_all(site.path("store/app/ltx")).unwrap();
    assert!(site.ok(&BOOT).contains("absent=1"));
}

/// Everything was deleted but what Lifeboat wrote beside it, which tells of points that were there.
#[test]
fn a_replica_that_was_emptied_is_no_new_target() {
    for tells in [&["snapshot", "--label", "v1"][..], &["drill"]] {
        let site = Site::new();
        site.sync();
        site.ok(tells);
        std::fs::remove_dir_all(site.path("store/app/ltx")).unwrap();
        remove(&site.db);
        for more in [&[][..], &["--dry-run"], &["--last-good"]] {
            let error = if more == ["--last-good"] {
                site.fails(5, &["restore", "app", "--if-replica-exists", "--last-good"])
            } else {
                site.fails(5, &[&BOOT[..], more].concat())
            };
            assert!(
                error.contains("holds no files any more") && error.contains("hint: look for"),
                "{error}"
            );
            assert!(!site.db.exists());
        }
        let error = site.fails(5, &["drill"]);
        assert!(error.contains("holds no files any more"), "{error}");
    }
}

fn labels(site: &Site) -> Vec<String> {
    let entries = std::fs::read_dir(site.path("store/app/lifeboat/labels"));
    let names = entries.into_iter().flatten();
    names
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// Only so many pins of restores are kept: those of refused ones would push out those that somebody may need.
#[test]
fn a_restore_that_is_refused_leaves_no_pin() {
    let (site, [app, _]) = two_databases();
    site.ok(&["restore", "app", "--in-place"]);
    let real = labels(&site);
    assert_eq!(real.len(), 1, "{real:?}");
    for is_beside_daemon in [false, true] {
        let _daemon = is_beside_daemon.then(|| site.start());
        let mut reader = open(&app);
        let error = site.fails(4, &["restore", "app", "--in-place"]);
        assert!(
            error.contains("is pinned as") && error.contains("is in use"),
            "{error}"
        );
        assert_eq!(labels(&site), real);
        drop(reader.stdin.take());
        reader.wait().unwrap();
    }
}

/// Whoever comes second would replace what the first restored, and `--undo` would go back to that.
#[test]
fn two_restores_in_place_at_once() {
    let (site, [app, _]) = two_databases();
    set(&app, "now");
    let first = hold(&app).unwrap().unwrap();
    for args in [
        &["restore", "app", "--in-place"][..],
        &["restore", "--all", "--in-place"],
        &["restore", "app", "--undo"],
    ] {
        let error = site.fails(4, args);
        assert!(
            error.contains("another restore of") && error.contains("hint: wait for it"),
            "{args:?}: {error}"
        );
        assert_eq!(labels(&site), [""; 0]);
    }
    site.ok(&["restore", "app", "--in-place", "--dry-run"]);
    assert_eq!(value(&app), "now");
    drop(first);
    site.ok(&["restore", "app", "--in-place"]);
    assert_eq!(value(&app), "now", "what was pinned right before");
    let left = std::fs::read_dir(site.dir.path()).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    assert!(!left.into_iter().any(|name| name.contains("restore-lock")));
}

/// No app is to be stopped.
#[test]
fn a_database_in_use_by_lifeboat_alone() {
    let mut site = Site::new();
    site.sync();
    let _daemon = site.start();
    site.sync();
    site.instance = "web2".into();
    let error = site.fails(4, &["restore", "app", "--in-place"]);
    assert!(
        error.contains("open in lifeboat (pid") && error.contains("hint: wait for that command"),
        "{error}"
    );
    assert!(!error.contains("stop the app"), "{error}");
}

/// Everything that was committed before the call is safe when it returns, also in a database that was made a moment before.
#[test]
fn what_was_made_a_moment_ago_is_part_of_all() {
    let (site, folder) = with_folder(true);
    let _daemon = site.start();
    site.sync();
    for (name, args) in [
        ("labelled", &["snapshot", "--label", "v1", "--json"][..]),
        ("synced", &["sync", "--json"]),
    ] {
        let db = folder.join(format!("{name}.sqlite3"));
        set(&db, "new");
        let text = site.ok(args);
        let answer: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let targets = answer["targets"].as_array().unwrap();
        assert!(targets.iter().any(|t| t["target"] == name), "{text}");
        let copy = site.path(&format!("{name}.copy"));
        site.ok(&["restore", name, "-o", copy.to_str().unwrap()]);
        assert_eq!(value(&copy), "new");
    }
    let all = site.path("all");
    let all_v1 = ["restore", "--all", "--label", "v1", "--if-replica-exists"];
    site.ok(&[&all_v1[..], &["-o", all.to_str().unwrap()]].concat());
    assert_eq!(value(&all.join("labelled.sqlite3")), "new");
}

/// Somebody gave the target another name; its jobs still must not know more than the data.
#[test]
fn a_queue_is_known_by_its_own_name_too() {
    let mut site = Site::new();
    let db = site.path("production_queue.sqlite3");
    set(&db, "job");
    site.extra = format!("  - path: {}\n    name: work\n", db.display());
    let text = site.ok(&["snapshot", "--label", "v1", "--json"]);
    let answer: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(answer["targets"][0]["target"], "work", "{answer}");
    assert!(answer["targets"][0]["at"].as_str() <= answer["targets"][1]["at"].as_str());
}

/// The configuration has it, and the daemon that is asked has not: no word of success.
#[test]
fn what_the_daemon_does_not_know_is_not_safe() {
    let (mut site, folder) = with_folder(false);
    let daemon = site.start();
    site.sync();
    // All is what is there now, also in a folder that is not watched.
    set(&folder.join("late.sqlite3"), "new");
    let said = site.ok(&["snapshot", "--label", "v1"]);
    assert!(said.contains("late: "), "{said}");
    // What came into the configuration since the start it cannot know.
    let other = site.path("elsewhere.sqlite3");
    set(&other, "new");
    site.extra += &format!("  - path: {}\n", other.display());
    let error = site.fails(1, &["snapshot", "--label", "v2"]);
    assert!(error.contains("not pinned: elsewhere"), "{error}");
    let error = site.fails(1, &["sync"]);
    assert!(
        error.contains("not everything is durable: elsewhere"),
        "{error}"
    );
    assert_eq!(daemon.stop(), 0);
    let _daemon = site.start();
    site.ok(&["snapshot", "--label", "v2"]);
    site.sync();
}

/// The daemon has forgotten it: it holds nothing that it could let go of.
#[test]
fn a_database_that_vanished_from_its_folder_is_restored_in_place() {
    let (site, folder) = with_folder(true);
    let db = folder.join("tenant.sqlite3");
    set(&db, "saved");
    site.sync();
    remove(&db);
    let _daemon = site.start();
    site.ok(&["restore", "tenant", "--in-place"]);
    assert_eq!(value(&db), "saved");
}

#[test]
fn a_restore_that_failed_is_not_the_one_to_take_back() {
    let (site, [app, other]) = two_databases();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let moment = jiff::Timestamp::now().to_string();
    set(&app, "now");
    set(&other, "now");
    site.ok(&["restore", "--all", "--in-place", "--at", &moment]);
    assert_eq!([value(&app), value(&other)], ["saved", "saved"]);
    // Refused, and mistyped: nothing was replaced.
    site.fails(3, &["restore", "app", "--in-place", "--txid", "ffff"]);
    site.fails(2, &["restore", "ap", "--in-place"]);
    site.ok(&["restore", "--all", "--undo"]);
    assert_eq!([value(&app), value(&other)], ["now", "now"]);
}

/// Not after a download of hours.
#[test]
fn in_use_is_said_before_anything_is_read() {
    let (site, [app, _]) = two_databases();
    let mut files: Vec<_> = std::fs::read_dir(site.path("store/app/ltx/9"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    let base = files.pop().unwrap();
    let mut bytes = std::fs::read(&base).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&base, bytes).unwrap();
    let mut reader = open(&app);
    let error = site.fails(4, &["restore", "app", "--in-place"]);
    assert!(error.contains("is in use"), "{error}");
    drop(reader.stdin.take());
    reader.wait().unwrap();
    let error = site.fails(5, &["restore", "app", "--in-place"]);
    assert!(!error.contains("is in use"), "{error}");
    assert_eq!(value(&app), "saved");
}

#[test]
fn no_room_for_all_is_said_before_the_first_is_read() {
    let (site, _) = two_databases();
    for (name, rows) in [("app", 3000), ("other", 3000)] {
        let db = site.path(&format!("{name}.sqlite3"));
        python(
            &db,
            &format!(
                "c=conn(); c.execute('begin'); c.executemany('insert into t(a) values(?)',((os.urandom(900),) for _ in range({rows}))); c.execute('commit')"
            ),
        );
    }
    site.sync();
    let out = site.path("roomy");
    site.ok(&["restore", "--all", "-o", out.to_str().unwrap()]);
    let sizes = ["app.sqlite3", "other.sqlite3"].map(|f| out.join(f).metadata().unwrap().len());
    let tight = site.path("tight");
    let mount = Mount::tmpfs(&tight, 5);
    assert!(sizes.iter().all(|size| *size < mount.free()));
    let need = sizes[0] + sizes[1];
    assert!(need > mount.free());
    let error = site.fails(1, &["restore", "--all", "-o", tight.to_str().unwrap()]);
    assert!(error.contains(&format!("needs {need} bytes")), "{error}");
    assert_eq!(std::fs::read_dir(&tight).unwrap().count(), 0);
}

/// All of them are open at once before the first gets its name.
#[test]
fn more_databases_than_the_limit_of_open_files_allows() {
    let (mut site, folder) = with_folder(false);
    site.extra += "    snapshot-interval: 1d\n";
    for n in 0..40 {
        set(&folder.join(format!("t{n}.sqlite3")), "saved");
    }
    site.sync();
    let plain = site.command(&["restore", "--all", "--in-place"]);
    let out = Command::new("sh")
        .args(["-c", "ulimit -S -n 64; exec \"$0\" \"$@\""])
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(site.dir.path())
        .output()
        .unwrap();
    assert!(
        out.status.success() && said(&out).contains("restored=41"),
        "{}",
        said(&out)
    );
}

/// A folder in which nothing lies yet: nothing is safe by that.
#[test]
fn nothing_to_snapshot_is_no_success() {
    let site = Site::new();
    let empty = site.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let config = site.path("none.yml");
    let text = format!(
        "store:\n  url: {}\nstate-dir: {}\nsqlite:\n  - dir: {}\n    watch: true\n",
        site.store,
        site.path("state-none").display(),
        empty.display()
    );
    std::fs::write(&config, text).unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_lifeboat"))
        .args(["snapshot", "--label", "v1", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let words = said(&out);
    assert_eq!(out.status.code(), Some(1), "{words}");
    assert!(words.contains("no target to snapshot"), "{words}");
    assert!(!words.contains("lifeboat: ok"), "{words}");
}

/// An app that came too early opened its database, and left an empty file: to begin with that would look like the loss of everything.
#[test]
fn an_empty_file_is_no_database() {
    let (site, [app, other]) = two_databases();
    for db in [&app, &other] {
        remove(db);
        std::fs::write(db, b"").unwrap();
    }
    let dry = site.ok(&[&BOOT[..], &["--dry-run"]].concat());
    assert!(dry.contains("pending=2 existing=0"), "{dry}");
    // Whoever is at it is in the way, and nothing is changed.
    let mut reader = Command::new("python3")
        .args(["-c", "import sqlite3,sys; c=sqlite3.connect(sys.argv[1],isolation_level=None); c.execute('begin'); c.execute('select * from sqlite_master').fetchall(); print('open',flush=True); sys.stdin.read()"])
        .arg(&app)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut open = [0; 4];
    std::io::Read::read_exact(reader.stdout.as_mut().unwrap(), &mut open).unwrap();
    site.fails(4, &BOOT);
    assert_eq!(std::fs::metadata(&other).unwrap().len(), 0);
    drop(reader.stdin.take());
    reader.wait().unwrap();
    let text = site.ok(&BOOT);
    assert!(text.contains("restored=2 existing=0"), "{text}");
    assert_eq!([value(&app), value(&other)], ["saved", "saved"]);
    let text = site.ok(&BOOT);
    assert!(text.contains("restored=0 existing=2"), "{text}");
    // With a WAL beside it, it is whatever that says: for a person to look at.
    remove(&app);
    std::fs::write(&app, b"").unwrap();
    std::fs::write(format!("{}-wal", app.display()), b"something").unwrap();
    let text = site.ok(&BOOT);
    assert!(text.contains("restored=0 existing=2"), "{text}");
    // Beside a daemon, that waits for it.
    remove(&app);
    std::fs::write(&app, b"").unwrap();
    let daemon = site.start();
    let text = site.ok(&BOOT);
    assert!(text.contains("restored=1 existing=1"), "{text}");
    assert_eq!(value(&app), "saved");
    assert_eq!(daemon.stop(), 0);
}
