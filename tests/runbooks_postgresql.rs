//! Each runbook of docs/runbooks-postgresql.md does what it says: its blocks run as they stand there, on two real servers.
#![allow(missing_docs)]

mod pg;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use pg::{Server, URL_PASSWORD, programs};

const PAGE: &str = include_str!("../docs/runbooks-postgresql.md");
const DATA: &str = "
    CREATE ROLE app LOGIN;
    CREATE TABLE orders (id bigint PRIMARY KEY, amount bigint);
    ALTER TABLE orders OWNER TO app;
    INSERT INTO orders SELECT n, n FROM generate_series(1, 1000) n;
    CREATE TABLE customers (id bigint PRIMARY KEY, email text);
    INSERT INTO customers VALUES (1, 'a.person@example.org');";
/// One value of the live database.
const LAB: &str = r#"value() { psql -XAt "$DATABASE_URL" -c "$1"; }"#;

/// The titles of the runbooks, and what is run for each: the hidden blocks and those that readers see.
fn runbooks() -> Vec<(&'static str, String)> {
    let mut found: Vec<(&str, String)> = Vec::new();
    let mut end = None;
    for line in PAGE.lines() {
        match end {
            Some(mark) if line == mark => end = None,
            Some(_) => found.last_mut().unwrap().1 += &format!("{line}\n"),
            None if line.starts_with("## ") => found.push((&line[3..], String::new())),
            None if line == "```sh test-postgresql" => end = Some("```"),
            None if line == "<!-- lab" => end = Some("-->"),
            None => {}
        }
    }
    assert_eq!(end, None, "a block does not end");
    found
}

fn url(server: &Server) -> String {
    let folder = server.folder.path().display();
    format!("postgres://boss:{URL_PASSWORD}@/app?host={folder}")
}

fn run(script: &str, dir: &Path, live: &Server, new: &Server) {
    let bin = dir.join("bin");
    std::fs::create_dir(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_lifeboat"), bin.join("lifeboat")).unwrap();
    let config = format!(
        "store: file://{root}/store\nstate-dir: {root}/state\nhttp: off\npostgres:\n  - name: app\n    url: ${{DATABASE_URL}}\n",
        root = dir.display()
    );
    std::fs::write(dir.join("lifeboat.yml"), config).unwrap();
    let out = Command::new("bash")
        .args(["-euxo", "pipefail", "-c", &format!("{LAB}\n{script}")])
        .current_dir(dir)
        .env_clear()
        .env(
            "PATH",
            format!("{}:{}:/usr/bin:/bin", bin.display(), programs().display()),
        )
        .env("DATABASE_URL", url(live))
        .env("NEW_SERVER_URL", url(new))
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

fn runbook(title: &str) {
    let all = runbooks();
    let (_, script) = all
        .iter()
        .find(|(name, _)| *name == title)
        .unwrap_or_else(|| panic!("no runbook is called {title}"));
    assert!(script.contains("lifeboat "), "{title} runs nothing");
    let (live, new) = (Server::start(), Server::start());
    live.sql("postgres", "CREATE DATABASE app;");
    live.sql("app", DATA);
    let dir = tempfile::tempdir().unwrap();
    run(script, dir.path(), &live, &new);
}

#[test]
fn every_runbook_has_a_test() {
    let titles: Vec<&str> = runbooks().iter().map(|(title, _)| *title).collect();
    assert_eq!(titles, TITLES);
}

const TITLES: [&str; 5] = [
    "Lost database server",
    "Bad migration",
    "Deleted rows",
    "Staging from production",
    "Moving hosts, or to a newer major version",
];

#[test]
fn lost_database_server() {
    runbook(TITLES[0]);
}

#[test]
fn bad_migration() {
    runbook(TITLES[1]);
}

#[test]
fn deleted_rows() {
    runbook(TITLES[2]);
}

#[test]
fn staging_from_production() {
    runbook(TITLES[3]);
}

#[test]
fn moving_hosts() {
    runbook(TITLES[4]);
}
