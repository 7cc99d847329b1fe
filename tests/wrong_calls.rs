//! Wrong calls, as a person makes them at 3 a.m.: each says what failed and what to do next, ends with the right exit code, claims no success, and
//! changes nothing.
#![allow(missing_docs)]

mod common;

use std::path::Path;

use common::daemon::Site;
use common::kamal::text;

/// Every file below a folder with its content.
fn tree(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[track_caller]
fn is_told(site: &Site, args: &[&str], code: i32, words: &[&str]) {
    let out = site.run(args);
    let said = text(&out);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
    assert!(!said.contains("lifeboat: ok"), "{args:?}: {said}");
    for word in words {
        assert!(
            said.contains(word),
            "{args:?} does not say {word:?}: {said}"
        );
    }
    // What clap refuses has its own form.
    let has_hint = said.contains("hint: ") || said.contains("tip: ") || said.contains("--help");
    assert!(has_hint, "{args:?} gives no next step: {said}");
}

#[test]
fn each_says_what_to_do_and_changes_nothing() {
    let site = Site::new();
    site.ok(&["snapshot", "--label", "before-v1"]);
    let (store, database) = (tree(&site.path("store")), std::fs::read(&site.db).unwrap());
    let calls: &[(&[&str], i32, &[&str])] = &[
        (
            &["restore", "ap", "-o", "c"],
            2,
            &["no target is named \"ap\"", "targets are: app"],
        ),
        (
            &["restore", "app"],
            4,
            &["exists already; nothing was changed", "--in-place"],
        ),
        (
            &["restore", "app", "-o", "no/such/c"],
            1,
            &["no/such", "nothing was changed", "mkdir -p no/such"],
        ),
        (
            &["restore", "app", "-o", "app.sqlite3/c"],
            1,
            &["nothing was changed"],
        ),
        (
            &["restore", "app", "-o", "c", "--label", "befor-v1"],
            3,
            &["nothing was changed", "did you mean --label before-v1?"],
        ),
        (
            &["restore", "app", "-o", "c", "--at", "yesterday"],
            2,
            &["`yesterday` is not a time", "10m"],
        ),
        (
            &["restore", "app", "-o", "c", "--at", "2000-01-01T00:00"],
            3,
            &["the oldest restorable point is"],
        ),
        (
            &["restore", "app", "-o", "c", "--txid", "zz"],
            2,
            &["no hexadecimal TXID"],
        ),
        (
            &["restore", "app", "-o", "c", "--txid", "ff"],
            3,
            &["the last one is"],
        ),
        (
            &["restore", "--all", "-o", "d", "--txid", "2"],
            2,
            &["'--all' cannot be used with '--txid <TXID>'"],
        ),
        (
            &["restore", "--all", "-o", "d", "--at", "2000-01-01T00:00"],
            3,
            &["error: app: the oldest restorable point is"],
        ),
        (
            &["restore", "app", "-o", "app.sqlite3"],
            4,
            &[
                "`-o OTHER-PATH`, where nothing is",
                "without -o, `--in-place`",
            ],
        ),
        (
            &["restore", "app", "-o", "c", "--after-sql", "nowhere.sql"],
            2,
            &["nowhere.sql: No such file", "name a file of SQL"],
        ),
        (
            &["restore", "app", "-o", "c", "--lable", "x"],
            2,
            &["--label"],
        ),
        (
            &["restore", "app", "--undo"],
            4,
            &["no kept copy", "only `restore --in-place` keeps"],
        ),
        (
            &["restore", "file:///no/such/store/app", "-o", "c"],
            1,
            &["nothing was changed", "mount the volume"],
        ),
        (&["restor", "app"], 2, &["restore"]),
        (
            &["snapshot", "nope", "--label", "x"],
            2,
            &["no target is named \"nope\""],
        ),
        (&["snapshot", "--label", ""], 2, &["the label is empty"]),
        (
            &["snapshot", "--label", "x", "--timeout", "5"],
            2,
            &["`5` is not a duration"],
        ),
        (&["sync", "nope"], 2, &["no target is named \"nope\""]),
        (&["sync", "--timeout", "5"], 2, &["`5` is not a duration"]),
        (&["verify", "nope"], 2, &["no target is named \"nope\""]),
        (&["drill", "nope"], 2, &["no target is named \"nope\""]),
        (&["prune", "nope"], 2, &["no target is named \"nope\""]),
        (&["claim", "nope"], 2, &["no target is named \"nope\""]),
        (&["release", "nope"], 2, &["no target is named \"nope\""]),
        (&["list", "nope"], 2, &["no target is named \"nope\""]),
        (
            &["follow", "nope", "-o", "c"],
            2,
            &["no target is named \"nope\""],
        ),
        (&["notify", "test"], 2, &["there is no `notify`"]),
        (
            &["status"],
            1,
            &["no daemon answers on ", "http is off", "lifeboat run"],
        ),
        (&["health"], 1, &["http is off"]),
    ];
    for (args, code, words) in calls {
        is_told(&site, args, *code, words);
        assert_eq!(tree(&site.path("store")), store, "{args:?}");
        assert!(!site.path("c").exists(), "{args:?}");
    }
    assert_eq!(std::fs::read(&site.db).unwrap(), database);
}

/// `head` has its lines, and goes.
#[test]
fn nobody_reads_to_the_end() {
    let site = Site::new();
    let mut child = site
        .command(&["config", "schema"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!(text(&out), "");
    assert_eq!(out.status.code(), Some(1));
}

/// What cannot be done now: the cause stands in the last lines, not only somewhere in the log.
#[test]
fn a_sync_without_a_daemon_says_why_it_is_not_durable() {
    let mut site = Site::new();
    site.store = format!("file://{}/no/such/store", site.dir.path().display());
    is_told(
        &site,
        &["sync"],
        1,
        &[
            "not everything is durable: app",
            "does not exist",
            "goes up later",
        ],
    );
    site.extra = format!(
        "files:\n  - {{ name: uploads, paths: [{}], password: x }}\n",
        site.dir.path().display()
    );
    is_told(
        &site,
        &["sync", "uploads"],
        2,
        &["uploads is no SQLite database", "lifeboat snapshot uploads"],
    );
}

/// A hook's settings may be in the environment of whoever calls Lifeboat; a misspelt variable is refused all the same.
#[test]
fn variables_of_the_hooks_do_no_harm() {
    let mut site = Site::new();
    for name in [
        "SKIP",
        "ACCESSORY",
        "HOSTS",
        "WAIT",
        "MIN_FREE_MB",
        "SECRETS",
        "WEBHOOK",
    ] {
        site.env.push((format!("LIFEBOAT_{name}"), "1".into()));
    }
    site.ok(&["sync"]);
    site.env.push(("LIFEBOAT_STATE_DIRR".into(), "1".into()));
    is_told(
        &site,
        &["sync"],
        2,
        &["LIFEBOAT_STATE_DIRR", "did you mean LIFEBOAT_STATE_DIR?"],
    );
}
