//! The demo shows what it says, and leaves nothing behind.
#![allow(missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::python;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Long enough for a machine that builds something else.
const PATIENCE: Duration = Duration::from_secs(60);

fn demo(temporary: &Path, args: &[&str]) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_lifeboat"))
        .arg("demo")
        .args(args)
        .env("TMPDIR", temporary)
        // What is around it is none of its business.
        .env("LIFEBOAT_STORE_URL", "s3://somebody-elses/bucket")
        .env("DATABASE_URL", "postgres://somebody@127.0.0.1:1/else")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    child.unwrap()
}

fn left_in(folder: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap();
    all.map(|f| f.unwrap().path()).collect()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn the_demo_loses_everything_and_proves_that_it_is_back() {
    let temporary = tempfile::tempdir().unwrap();
    let mut child = demo(temporary.path(), &["--keep", "--json"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let told: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let last = lines.next().unwrap().unwrap();
    assert!(
        last.starts_with("lifeboat: ok demo restored=production checksum="),
        "{last}"
    );
    assert!(told["seconds"].as_f64().unwrap() < 60.0, "{told}");
    let (before, after) = (&told["restored"]["expected"], &told["disaster"]["checksum"]);
    assert_ne!(before, after, "the disaster was one: {told}");
    assert_eq!(*before, told["restored"]["checksum"], "{told}");
    assert!(told["disaster"]["errors_in_the_app"].as_u64().unwrap() > 0);

    // It still runs: what it said is there for everybody to see.
    let folder = PathBuf::from(told["folder"].as_str().unwrap());
    assert!(folder.starts_with(temporary.path()), "{told}");
    let production = folder.join("storage/production.sqlite3");
    let orders = told["restored"]["orders"].as_i64().unwrap();
    assert!(orders >= 5000, "{told}");
    let count = "select (select count(*) from orders), (select count(*) from users)";
    let now = python(
        &production,
        &format!("print(*conn().execute({count:?}).fetchone())"),
    );
    let (now, users) = now.split_once(' ').unwrap();
    assert!(
        now.parse::<i64>().unwrap() > orders,
        "the app goes on: {now}"
    );
    assert_eq!(users, "500");
    let kept = left_in(&folder.join("storage"))
        .into_iter()
        .find(|p| {
            p.to_string_lossy().contains("before-restore") && p.to_string_lossy().ends_with('Z')
        })
        .expect("what was restored over is kept");
    let lost = python(
        &kept,
        "print(*[r[0] for r in conn().execute(\"select name from sqlite_schema where name='users'\")], 'gone')",
    );
    assert_eq!(lost, "gone", "the disaster was real");
    let page = Command::new("curl")
        .args(["-sf", "-m", "10", told["status_page"].as_str().unwrap()])
        .output()
        .expect("curl is missing: run bin/install-dev");
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(page.contains("production_queue"), "{page}");

    signal(&child, Signal::TERM);
    assert!(child.wait().unwrap().success());
    assert_eq!(left_in(temporary.path()), Vec::<PathBuf>::new());
}

#[test]
fn an_interrupted_demo_leaves_nothing_and_claims_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let mut child = demo(temporary.path(), &[]);
    let begun = Instant::now();
    let started = |p: &PathBuf| p.join("state/lifeboat.sock").exists();
    while !left_in(temporary.path()).iter().any(started) {
        assert!(begun.elapsed() < PATIENCE, "it did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&child, Signal::INT);
    let (mut said, mut complained) = (String::new(), String::new());
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    out.read_to_string(&mut said).unwrap();
    err.read_to_string(&mut complained).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(complained.contains("interrupted"), "{complained}");
    assert!(!said.contains("ok demo"), "{said}");
    assert_eq!(left_in(temporary.path()), Vec::<PathBuf>::new());
}
