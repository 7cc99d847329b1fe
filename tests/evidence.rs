//! What an auditor is told: all of it, from the stores, and no secret.
#![allow(missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;

use common::daemon::Site;
use serde_json::Value;

const SECRETS: [&str; 4] = ["hunter2", "battery-staple", "wJalrSECRET", "AKIAEXAMPLE"];

fn site() -> Site {
    let mut site = Site::new();
    let data = site.path("uploads");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("photo"), b"of a boat").unwrap();
    site.extra = format!(
        "    retention: {{ point-in-time: 3d, daily: 14 }}\npostgres:\n  - name: pg\n    url: postgres://app:hunter2@127.0.0.1:1/app\nfiles:\n  - name: uploads\n    paths: [{}]\n    password: battery-staple\n    create: true\n",
        data.display()
    );
    site
}

fn evidence(site: &Site) -> Value {
    let said = site.ok(&["evidence", "--json"]);
    for secret in SECRETS {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
    serde_json::from_str(&said).unwrap()
}

fn copy<'a>(evidence: &'a Value, target: &str) -> &'a Value {
    let copies = evidence["copies"].as_array().unwrap();
    copies.iter().find(|c| c["target"] == target).unwrap()
}

#[test]
fn evidence_is_what_the_stores_hold() {
    let site = site();
    let nothing = evidence(&site);
    assert_eq!(copy(&nothing, "app")["newest"], Value::Null);
    let words = site.ok(&["evidence"]);
    assert_eq!(words.matches("NO BACKUP").count(), 3, "{words}");
    assert_eq!(words.matches("NEVER DRILLED").count(), 3, "{words}");

    site.ok(&["snapshot", "app", "uploads", "--label", "before-v1"]);
    site.ok(&["drill", "app", "uploads"]);
    site.write("delete from t where id % 2");
    let txid = format!("{:016x}", site.sync());
    let found = evidence(&site);
    assert_eq!(found["complete"], true);
    assert_eq!(found["versions"]["lifeboat"], env!("CARGO_PKG_VERSION"));

    let app = copy(&found, "app");
    assert_eq!(app["newest-txid"], txid, "{app}");
    assert!(app["newest-age-seconds"].as_f64().unwrap() < 600.0, "{app}");
    let labels = app["labels"].as_array().unwrap();
    assert!(labels.contains(&"before-v1".into()), "{app}");
    assert_eq!(app["retention"]["point-in-time"], "3d", "{app}");
    assert_eq!(app["retention"]["daily"], 14, "{app}");
    assert_eq!(app["encryption"]["in-transit"], "none: a folder", "{app}");
    let record = &app["drills"][0];
    assert_eq!(record["ok"], true, "{app}");
    assert_ne!(record["txid"], txid, "the drill was before the last change");
    assert_eq!(record["rows"]["t"], 3000);

    let uploads = copy(&found, "uploads");
    assert_eq!(uploads["points"], 1, "{uploads}");
    assert_eq!(uploads["drills"][0]["files"], 1, "{uploads}");
    assert!(
        uploads["encryption"]["at-rest"]
            .as_str()
            .unwrap()
            .starts_with("AES-256"),
        "{uploads}"
    );
    assert_eq!(copy(&found, "pg")["kind"], "postgres");

    let words = site.ok(&["evidence"]);
    assert!(words.contains("point-in-time 3d"), "{words}");
    assert_eq!(words.matches(" passed (restored in ").count(), 2, "{words}");
}

#[test]
fn a_failed_drill_and_a_record_that_cannot_be_read_are_told() {
    let site = Site::new();
    site.sync();
    site.ok(&["drill"]);
    let folder = site.path("store/app/lifeboat/drills");
    let first = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap();
    let text = std::fs::read_to_string(first.path()).unwrap();
    let failed = text.replace("\"ok\": true", "\"ok\": false");
    std::fs::write(folder.join("9999.json"), failed).unwrap();
    let words = site.ok(&["evidence"]);
    assert!(words.contains(" FAILED (restored in "), "{words}");
    std::fs::write(folder.join("99999.json"), "{").unwrap();
    let words = site.ok(&["evidence"]);
    assert!(words.contains("cannot be read"), "{words}");
    assert_eq!(
        evidence(&site)["copies"][0]["drills"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

/// A store that lets nobody in; returns its port.
fn forbidding() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // One request is all that is read of a connection; the client may hang up first.
            let _ = stream.read(&mut [0; 8192]);
            let answer = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

#[test]
fn evidence_that_lacks_something_is_a_failure_and_shows_the_rest() {
    let mut site = site();
    site.sync();
    site.extra += &format!(
        "    store: {{ url: s3://bucket, endpoint: \"http://127.0.0.1:{}\", region: x, access-key-id: AKIAEXAMPLE, secret-access-key: wJalrSECRET }}\n",
        forbidding(),
    );
    let out = site.run(&["evidence", "--json"]);
    let (said, complained) = (
        String::from_utf8(out.stdout).unwrap(),
        String::from_utf8(out.stderr).unwrap(),
    );
    assert_eq!(out.status.code(), Some(1), "{said}{complained}");
    for secret in SECRETS {
        assert!(!said.contains(secret) && !complained.contains(secret));
    }
    assert!(
        complained.contains("the evidence is incomplete: uploads in s3://bucket"),
        "{complained}"
    );
    let found: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(found["complete"], false);
    assert!(copy(&found, "uploads")["error"].is_string());
    assert_eq!(
        copy(&found, "uploads")["encryption"]["in-transit"],
        "NONE: the endpoint is plain http"
    );
    assert!(copy(&found, "app")["newest"].is_string());
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    files
}

#[test]
fn the_newest_backup_is_as_old_as_its_capture_however_late_it_arrived() {
    let site = Site::new();
    site.sync();
    let then = evidence(&site);
    // As after an outage, or a copy: the objects' times are another's.
    let week = std::time::Duration::from_secs(7 * 86_400);
    for level in files(&site.path("store/app/ltx")) {
        for file in files(&level) {
            let arrived = std::time::SystemTime::now() - week;
            let file = std::fs::File::options().append(true).open(file).unwrap();
            file.set_modified(arrived).unwrap();
        }
    }
    let now = evidence(&site);
    for key in ["newest", "oldest"] {
        assert!(copy(&then, "app")[key].is_string(), "{then}");
        assert_eq!(copy(&now, "app")[key], copy(&then, "app")[key], "{key}");
    }
}

#[test]
fn a_chain_with_a_hole_and_a_replica_without_a_base_are_told() {
    let site = Site::new();
    site.sync();
    assert_eq!(copy(&evidence(&site), "app")["restorable"], true);
    for n in 0..3 {
        site.write(&format!("update t set a='{n}' where id=1"));
        site.sync();
    }
    site.ok(&["snapshot", "app", "--label", "before-v1"]);
    let captures = files(&site.path("store/app/ltx/0"));
    for missing in &captures[captures.len() - 3..captures.len() - 1] {
        std::fs::remove_file(missing).unwrap();
    }
    let found = evidence(&site);
    let app = copy(&found, "app");
    assert_eq!(app["restorable"], false, "{app}");
    assert_eq!(app["hole"]["files-behind"], 1, "{app}");
    assert!(app["hole"]["missing-txid"].is_string(), "{app}");
    let lost = app["labels-lost"].as_array().unwrap();
    assert!(lost.contains(&"before-v1".into()), "{app}");
    let kept = app["labels"].as_array().unwrap();
    assert!(!kept.contains(&"before-v1".into()), "{app}");
    let words = site.ok(&["evidence"]);
    assert!(
        words.contains("NOT RESTORABLE") && words.contains("the chain ends"),
        "{words}"
    );
    assert!(
        words.contains("LABELS WHOSE POINT IS GONE: before-v1"),
        "{words}"
    );
    std::fs::remove_dir_all(site.path("store/app/ltx/9")).unwrap();
    let found = evidence(&site);
    let app = copy(&found, "app");
    assert_eq!(app["restorable"], false, "{app}");
    assert_eq!(
        app["problem"], "the replica holds no complete base",
        "{app}"
    );
}

#[test]
fn a_database_that_only_the_store_has_is_part_of_the_evidence() {
    let mut site = Site::new();
    let apps = site.path("apps");
    std::fs::create_dir(&apps).unwrap();
    std::fs::copy(&site.db, apps.join("gone.sqlite3")).unwrap();
    std::fs::copy(&site.db, apps.join("stays.sqlite3")).unwrap();
    site.extra = format!("  - dir: {}\n    watch: true\n", apps.display());
    site.ok(&["sync"]);
    std::fs::remove_file(apps.join("gone.sqlite3")).unwrap();
    std::fs::remove_dir_all(site.path("state-web1")).unwrap();
    let found = evidence(&site);
    assert_eq!(found["complete"], true, "{found}");
    assert_eq!(copy(&found, "stays")["on-disk"], true, "{found}");
    let gone = copy(&found, "gone");
    assert_eq!(gone["on-disk"], false, "{gone}");
    assert!(gone["newest"].is_string(), "{gone}");
    assert!(gone["retention"].is_object(), "{gone}");
    let words = site.ok(&["evidence"]);
    assert_eq!(
        words.matches("THE DATABASE IS NOT THERE").count(),
        1,
        "{words}"
    );
}
