//! Folders of files beside the databases that point into them, in one safety net.
#![allow(missing_docs)]

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::daemon::{Site, wait_for};
use common::receiver::{Manner, Receiver};
use common::{python, s3};

/// A database and a folder of uploads.
fn site() -> Site {
    let mut site = Site::new().with_http();
    // Files give way to everything else, so they get time.
    site.env = vec![("LIFEBOAT_TIMEOUT".into(), "10m".into())];
    std::fs::create_dir(site.path("uploads")).unwrap();
    std::fs::write(site.path("uploads/0"), b"first").unwrap();
    site.extra = format!(
        "    max-lag: 5s\nfiles:\n  - name: uploads\n    paths: [{}]\n    password: secret\n    create: true\n    schedule: '0 3 1 1 *'\n",
        site.path("uploads").display()
    );
    site
}

/// Ends with the test, however that ends.
struct App(Child);

impl Drop for App {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An app that uploads and then points to what it uploaded, hundreds of times a second.
fn uploads_and_points(site: &Site) -> App {
    let code = r#"
import os, sqlite3, sys
folder = os.path.join(os.path.dirname(sys.argv[1]), 'uploads')
c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5)
c.execute('create table if not exists blobs(name integer primary key)')
print('begun', flush=True)
n = 0
while os.path.exists(folder):
    n += 1
    with open(f'{folder}/{n}', 'w') as f:
        f.write(str(n))
    c.execute('insert into blobs values(?)', (n,))
"#;
    let mut child = Command::new("python3")
        .args(["-c", code])
        .arg(&site.db)
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is missing: apt-get install python3");
    let mut begun = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut begun).unwrap();
    App(child)
}

/// Everything, as it was at a label, in a folder of its own.
fn all_of(site: &Site, label: &str) -> PathBuf {
    let folder = site.path(&format!("all-of-{label}"));
    let to = folder.to_str().unwrap();
    site.ok(&["restore", "--all", "--label", label, "-o", to]);
    folder
}

/// Whatever is restored to a label: no row points at a file that is missing.
fn no_row_without_its_file(site: &Site, label: &str) {
    let folder = all_of(site, label);
    let db = std::fs::read_dir(&folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .find(|p| {
            p.extension()
                .is_some_and(|e| e.to_string_lossy().starts_with("sqlite"))
        })
        .unwrap();
    let names = python(
        &db,
        "print(*[r[0] for r in conn().execute('select name from blobs')])",
    );
    let names: Vec<&str> = names.split_whitespace().collect();
    assert!(names.len() > 20, "{} rows are too few to tell", names.len());
    let uploads = folder.join("uploads");
    let missing: Vec<_> = names.iter().filter(|n| !uploads.join(n).exists()).collect();
    assert!(
        missing.is_empty(),
        "{label}: no file for {missing:?} of {}",
        names.len()
    );
}

#[test]
fn heavy_no_row_of_a_label_points_at_a_file_that_is_missing() {
    let site = site();
    let app = uploads_and_points(&site);
    for n in 0..2 {
        site.ok(&["snapshot", "--label", &format!("alone{n}")]);
    }
    let daemon = site.start();
    for n in 0..2 {
        site.ok(&["snapshot", "--label", &format!("daemon{n}")]);
    }
    drop(app);
    assert_eq!(daemon.stop(), 0);
    for label in ["alone0", "alone1", "daemon0", "daemon1"] {
        no_row_without_its_file(&site, label);
    }
}

/// Runs a labelled snapshot that must fail, and returns its only answer and what it says.
fn fails_as_json(site: &Site, label: &str) -> (serde_json::Value, String) {
    let out = site.run(&["snapshot", "--label", label, "--json"]);
    let (stdout, stderr) = (
        String::from_utf8(out.stdout).unwrap(),
        String::from_utf8(out.stderr).unwrap(),
    );
    assert_eq!(out.status.code(), Some(1), "{stdout}\n{stderr}");
    let answer = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"));
    (answer, stderr)
}

/// Databases that are pinned while files are not are no snapshot to go back to, and every command says so.
fn without_its_files_a_set_did_not_finish(site: &Site) {
    let said = site.ok(&["snapshot", "--label", "one", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(answer["ok"], true, "{answer}");
    let kinds = answer["targets"].as_array().unwrap().iter();
    let kinds: Vec<_> = kinds
        .map(|t| {
            (
                t["target"].as_str().unwrap(),
                t["pin"]["kind"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(kinds, [("app", "sqlite"), ("uploads", "files")]);
    assert_eq!(
        said.lines().count(),
        2,
        "one answer and the last line: {said}"
    );
    assert!(
        said.contains("ok snapshot label=one targets=2 durable"),
        "{said}"
    );

    std::fs::rename(site.path("uploads"), site.path("away")).unwrap();
    let (answer, error) = fails_as_json(site, "two");
    std::fs::rename(site.path("away"), site.path("uploads")).unwrap();
    assert_eq!(answer["ok"], false, "{answer}");
    assert_eq!(answer["targets"][0]["pin"]["kind"], "sqlite", "{answer}");
    assert_eq!(answer["targets"][1]["target"], "uploads", "{answer}");
    assert!(answer["targets"][1]["error"].is_string(), "{answer}");
    assert!(
        error.contains("not pinned: uploads; durable and pinned as two: app"),
        "{error}"
    );

    let out = site.path("out");
    let restore = |code, label| {
        let out = out.to_str().unwrap();
        site.fails(code, &["restore", "--all", "--label", label, "-o", out])
    };
    let error = restore(3, "two");
    assert!(
        error.contains("\"two\" of app, uploads did not finish: not pinned: uploads"),
        "{error}"
    );
    let error = restore(3, "twoo");
    assert!(error.contains("did you mean --label one"), "{error}");
    let list = site.ok(&["list", "app"]);
    assert_eq!(list.matches("INCOMPLETE").count(), 1, "{list}");
    let labels = site.ok(&["list", "app", "--json"]);
    let labels: serde_json::Value = serde_json::from_str(&labels).unwrap();
    let labels = labels[0]["labels"].as_array().unwrap().iter();
    let labels: Vec<_> = labels
        .map(|l| {
            (
                l["label"].as_str().unwrap(),
                l["incomplete"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(labels, [("one", false), ("two", true)]);

    site.ok(&["snapshot", "--label", "two"]);
    let error = restore(2, "two");
    assert!(
        error.contains("only the snapshot two#2 finished") && error.contains("--label 'two#2'"),
        "{error}"
    );
    assert!(!out.exists());
    for label in ["one", "two#2"] {
        assert!(all_of(site, label).join("uploads/0").exists());
    }
    // Labels of files may end before those of databases.
    std::fs::remove_dir_all(site.path("store/uploads/snapshots")).unwrap();
    let all = ["restore", "--all", "--label", "one", "--in-place"];
    let error = site.fails(3, &[&all[..], &["--if-replica-exists"]].concat());
    assert!(
        error.contains("\"one\" of app, uploads is no longer whole: uploads without the label"),
        "{error}"
    );
}

#[test]
fn without_its_files_a_set_did_not_finish_alone() {
    without_its_files_a_set_did_not_finish(&site());
}

#[test]
fn without_its_files_a_set_did_not_finish_by_the_daemon() {
    let site = site();
    let daemon = site.start();
    without_its_files_a_set_did_not_finish(&site);
    assert_eq!(daemon.stop(), 0);
}

/// A store that takes connections and never answers: a labelled snapshot ends when it was told to, whatever it is of.
#[test]
fn a_silent_store_is_given_up_in_time() {
    let mut site = site();
    let (link, _server) = s3::behind_a_link(&mut site);
    link.hold(&[]);
    for targets in [&["uploads"][..], &["app"], &[]] {
        let begun = std::time::Instant::now();
        let args = [&["snapshot", "--label", "v1", "--timeout", "3s"], targets].concat();
        site.fails(1, &args);
        let took = begun.elapsed().as_secs();
        // The requests themselves would go on for minutes.
        assert!(took < 25, "{targets:?}: {took} s");
    }
    link.let_go();
    site.ok(&["snapshot", "--label", "v1"]);
    // Databases are pinned, and the store falls silent in the middle of the files.
    link.hold(&["/uploads/"]);
    let begun = std::time::Instant::now();
    let error = site.fails(1, &["snapshot", "--label", "v2", "--timeout", "10s"]);
    assert!(
        error.contains("not pinned: uploads; durable and pinned as v2: app"),
        "{error}"
    );
    let took = begun.elapsed().as_secs();
    assert!(took < 40, "{took} s");
}

/// A database below a path is no file, and that is said once, not every night.
#[test]
fn a_database_among_the_files_is_said_once() {
    let site = site();
    let stray = site.path("uploads/stray.sqlite3");
    std::fs::copy(&site.db, &stray).unwrap();
    let daemon = site.start();
    let said = || {
        daemon
            .log()
            .matches("left out: a copy of an open database is no backup")
            .count()
    };
    for n in 0..3 {
        std::fs::write(site.path("uploads/more"), n.to_string()).unwrap();
        site.ok(&["snapshot", "--label", &format!("v{n}")]);
    }
    wait_for(&daemon, "the name of the database", || said() > 0);
    assert_eq!(said(), 1, "{}", daemon.log());
    assert!(daemon.log().contains("stray.sqlite3"));
}

#[test]
fn the_expected_bill_has_the_files_too() {
    let site = site();
    site.ok(&["snapshot"]);
    let out = site.run(&["doctor", "--json"]).stdout;
    let answer: serde_json::Value = serde_json::from_slice(&out).unwrap();
    let bills = answer["bill"].as_array().unwrap();
    let of_files = bills.iter().find(|b| b["kind"] == "files");
    let bill = of_files.unwrap_or_else(|| panic!("{answer:#}"));
    assert_eq!(bill["target"], "uploads");
    assert!(bill["bytes-now"].as_u64().unwrap() > 0, "{bill}");
    let words = site.run(&["doctor"]).stdout;
    let words = String::from_utf8(words).unwrap();
    assert!(words.contains("(snapshots: "), "{words}");
}

#[test]
fn files_that_are_not_safe_are_told_and_so_is_the_end() {
    let hook = Receiver::new(Manner::Good);
    let mut site = site();
    // Each full minute: what a person asks for is not the daemon's.
    site.extra = site.extra.replace("'0 3 1 1 *'", "'* * * * *'");
    site.extra += &format!("notify:\n  - webhook: {}\n    after: 500ms\n", hook.url());
    let daemon = site.start();
    let told = |event: &str, phase: &str| {
        let is_it = |e: &serde_json::Value| {
            e["kind"] == event && e["phase"] == phase && e["subject"] == "uploads"
        };
        hook.events().iter().any(is_it)
    };
    wait_for(&daemon, "the first snapshot", || {
        told("first-success", "once")
    });
    // The volume went away: nothing is recorded over what was there.
    std::fs::rename(site.path("uploads"), site.path("away")).unwrap();
    wait_for(&daemon, "the trouble", || told("unsafe", "started"));
    std::fs::rename(site.path("away"), site.path("uploads")).unwrap();
    wait_for(&daemon, "its end", || told("unsafe", "ended"));
}
