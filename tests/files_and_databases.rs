//! Folders of files beside the databases that point into them, in one safety net.
#![allow(missing_docs)]

mod common;

use std::process::{Child, Command, Stdio};

use common::daemon::{Site, wait_for};
use common::python;
use common::receiver::{Manner, Receiver};

/// A database and a folder of uploads.
fn site() -> Site {
    let mut site = Site::new().with_http();
    std::fs::create_dir(site.path("uploads")).unwrap();
    std::fs::write(site.path("uploads/0"), b"first").unwrap();
    site.extra = format!(
        "    max-lag: 5s\nfiles:\n  - name: uploads\n    paths: [{}]\n    password: secret\n    create: true\n    schedule: '0 3 1 1 *'\n",
        site.path("uploads").display()
    );
    site
}

/// An app that uploads and then points to what it uploaded, hundreds of times a second.
fn uploads_and_points(site: &Site) -> Child {
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
    child
}

/// Whatever is restored to a label: no row points at a file that is missing.
fn no_row_without_its_file(site: &Site, label: &str) {
    let folder = site.path(label);
    site.ok(&[
        "restore",
        "--all",
        "--label",
        label,
        "-o",
        folder.to_str().unwrap(),
    ]);
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
fn no_row_of_a_label_points_at_a_file_that_is_missing() {
    let site = site();
    let mut app = uploads_and_points(&site);
    for n in 0..2 {
        site.ok(&["snapshot", "--label", &format!("alone{n}")]);
    }
    let daemon = site.start();
    for n in 0..2 {
        site.ok(&["snapshot", "--label", &format!("daemon{n}")]);
    }
    app.kill().unwrap();
    app.wait().unwrap();
    assert_eq!(daemon.stop(), 0);
    for label in ["alone0", "alone1", "daemon0", "daemon1"] {
        no_row_without_its_file(&site, label);
    }
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
