//! Drills of real replicas: right ones, damaged ones, by hand and by schedule; what they prove is never deleted.
#![allow(missing_docs)]

mod common;

use std::path::PathBuf;

use common::daemon::{Site, wait_for};
use serde_json::Value;

fn records(site: &Site) -> Vec<PathBuf> {
    let folder = site.path("store/app/lifeboat/drills");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    files
}

fn record(path: &PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn scratch_is_empty(site: &Site) -> bool {
    std::fs::read_dir(site.path("state-web1/drill"))
        .unwrap()
        .next()
        .is_none()
}

#[test]
fn a_drill_restores_checks_and_records() {
    let mut site = Site::new();
    site.fails(3, &["drill"]);
    site.extra = "    assert: ['select count(*) = 3000 from t']\n".into();
    let txid = format!("{:016x}", site.sync());
    let said = site.ok(&["drill", "--json"]);
    let answer: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let drill = &answer["drill"];
    assert_eq!(drill["txid"], txid, "{drill}");
    assert_eq!(drill["rows"]["t"], 3000, "{drill}");
    let names: Vec<&str> = drill["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["restore", "checksum", "integrity", "assert"]);
    assert_eq!(record(&records(&site)[0]), *drill, "what is recorded");
    assert!(scratch_is_empty(&site));
    // Rows that are gone are the app's business, unless an assertion says otherwise.
    site.write("delete from t");
    site.sync();
    let error = site.fails(5, &["drill"]);
    assert!(
        error.contains("select count(*) = 3000 from t gives 0") && error.contains("hint:"),
        "{error}"
    );
    let last = record(&records(&site)[1]);
    assert_eq!(last["ok"], false, "{last}");
    assert!(
        last["warnings"][0]
            .as_str()
            .unwrap()
            .contains("t had 3000 rows"),
        "{last}"
    );
    site.extra = String::new();
    let said = site.ok(&["drill", "app"]);
    assert!(
        said.contains("it is right") && said.ends_with("lifeboat: ok drill targets=1\n"),
        "{said}"
    );
    site.fails(2, &["drill", "nobody"]);
}

#[test]
fn a_damaged_copy_fails_its_drill_and_a_store_that_is_down_is_no_verdict() {
    let site = Site::new();
    site.sync();
    site.ok(&["drill"]);
    let base = std::fs::read_dir(site.path("store/app/ltx/9"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let whole = std::fs::read(&base).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&base, &bytes).unwrap();
    let error = site.fails(5, &["drill"]);
    assert!(error.contains("the drill failed: app in"), "{error}");
    let failed = record(&records(&site)[1]);
    assert_eq!(failed["checks"][0]["name"], "restore", "{failed}");
    assert_eq!(failed["ok"], false, "{failed}");
    std::fs::write(&base, &whole).unwrap();
    site.ok(&["drill"]);
    // Not a byte was read: the newest record is still the good one.
    std::fs::rename(site.path("store"), site.path("elsewhere")).unwrap();
    let out = site.run(&["drill"]);
    assert!(!out.status.success());
    std::fs::rename(site.path("elsewhere"), site.path("store")).unwrap();
    let all = records(&site);
    assert_eq!(record(&all[all.len() - 1])["ok"], true);
}

#[test]
fn the_floor_of_free_space_is_the_apps() {
    let mut site = Site::new();
    site.sync();
    site.http = "off\nmin-free: 99%".into();
    let error = site.fails(1, &["drill"]);
    assert!(
        error.contains("may take only") && error.contains("scratch-dir"),
        "{error}"
    );
    assert_eq!(records(&site), [PathBuf::new(); 0]);
    assert!(scratch_is_empty(&site));
}

#[test]
fn a_missed_drill_is_made_up_for_and_its_result_is_in_metrics_and_readiness() {
    let mut site = Site::new().with_http();
    site.sync();
    site.ok(&["drill"]);
    // As if it had been a year ago.
    let old = records(&site).remove(0);
    let text = std::fs::read_to_string(&old).unwrap();
    let year = jiff::Timestamp::now().strftime("%Y").to_string();
    let last_year = (year.parse::<u32>().unwrap() - 1).to_string();
    let name = old
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .replacen(&year, &last_year, 1);
    std::fs::write(old.with_file_name(name), text.replace(&year, &last_year)).unwrap();
    std::fs::remove_file(&old).unwrap();
    site.http += "\ndrill: '@monthly'";
    let plain_http = site.http.clone();
    let daemon = site.start();
    wait_for(&daemon, "the drill", || records(&site).len() == 2);
    let record = record(&records(&site)[1]);
    assert_eq!(record["ok"], true, "{record}");
    site.http = plain_http.lines().next().unwrap().to_owned();
    wait_for(&daemon, "its metric", || {
        site.metric("lifeboat_drill_success", "app") == 1.0
            && site.metric("lifeboat_drill_timestamp_seconds", "app") > 1.7e9
    });
    assert!(site.get("/readyz").contains("\"safe\":true"));
    assert_eq!(daemon.stop(), 0);
    // A failed one, remembered by the store, is red from the start.
    let mut failed = record;
    failed["ok"] = false.into();
    failed["checks"][0]["ok"] = false.into();
    failed["checks"][0]["detail"] = "damaged for the test".into();
    std::fs::write(&records(&site)[1], failed.to_string()).unwrap();
    site.http = plain_http.clone();
    let daemon = site.start();
    site.http = plain_http.lines().next().unwrap().to_owned();
    wait_for(&daemon, "the verdict", || {
        site.get("/readyz").contains("damaged for the test")
    });
    assert!(site.get("/readyz").contains("\"safe\":false"));
}

#[test]
fn what_the_newest_good_drill_proved_is_never_deleted() {
    let mut site = Site::new();
    site.write("update t set a='proven' where id=1");
    let proven = format!("{:016x}", site.sync());
    site.ok(&["drill"]);
    let oracle = site.copy_now("proven.db");
    for value in 0..5 {
        site.write(&format!("update t set a={value} where id=2"));
        site.sync();
    }
    // Newer runs that failed prove nothing.
    site.extra = "    assert: ['select 0']\n    retention: 1s\n".into();
    site.fails(5, &["drill"]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let said = site.ok(&["prune"]);
    assert!(said.contains("drill"), "{said}");
    let restored = site.restore("r.db", &["--txid", &proven]);
    common::daemon::assert_same_pages(&oracle, &restored, "the proven point");
    assert!(
        site.points().len() < 7,
        "the points between are gone: {:?}",
        site.points()
    );
}
