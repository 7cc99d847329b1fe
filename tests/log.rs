//! What the log says of a trouble that lasts: at once, in few lines, and with nothing left out of the count.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;

use common::daemon::{Daemon, Site, wait_for};
use common::mount::Mount;
use serde_json::Value;

fn lines(daemon: &Daemon) -> Vec<Value> {
    let log = daemon.log();
    // The last one may be under way.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(|l| serde_json::from_str(l).unwrap());
    lines.collect()
}

fn saying<'a>(lines: &'a [Value], words: &str) -> Vec<&'a Value> {
    let says = |l: &&Value| l["message"].as_str().unwrap().contains(words);
    lines.iter().filter(says).collect()
}

/// A store that can be listed and not written to, for many tries of several databases.
#[test]
fn a_store_that_is_down_is_told_once_and_then_counted() {
    let mut site = Site::new().with_http();
    site.env = vec![("LIFEBOAT_LOG_FORMAT".into(), "json".into())];
    site.store_extra = "shutdown-timeout: 1s\n".into();
    let max_lag = "    max-lag: 1s\n";
    site.extra = max_lag.into();
    for n in 0..2 {
        let more = site.path(&format!("more{n}.sqlite3"));
        std::fs::copy(site.copy_now("copy"), &more).unwrap();
        common::python(&more, "conn().execute('pragma journal_mode=wal')");
        let more = format!("  - path: {}\n{max_lag}", more.display());
        site.extra.push_str(&more);
    }
    let daemon = site.start();
    site.ok(&["sync"]);
    let errors = || site.metric("lifeboat_upload_errors_total", "app");
    let store = Mount::read_only(&site.path("store"));
    site.write("update t set a='x' where id=1");
    for n in 0..2 {
        let more = site.path(&format!("more{n}.sqlite3"));
        common::python(&more, "conn().execute(\"update t set a='x'\")");
    }
    wait_for(&daemon, "many tries", || errors() >= 5.0);
    let status = site.get("/readyz");
    assert!(
        status.contains("unreachable since") && status.contains("Read-only file system"),
        "a listing that works hides no failed upload: {status}"
    );
    let log = lines(&daemon);
    let failed = saying(&log, "upload failed");
    // The first names the file, all others the probe that a new session begins with: each of them once.
    assert_eq!(failed.len(), 6, "each database, each error: {log:#?}");
    let about: BTreeSet<_> = failed
        .iter()
        .map(|l| (l["target"].to_string(), l["error"].to_string()))
        .collect();
    assert_eq!(about.len(), 6, "{about:#?}");

    drop(store);
    wait_for(&daemon, "uploads", || {
        saying(&lines(&daemon), "uploads work again").len() == 3
    });
    let log = lines(&daemon);
    let mine: Vec<Value> = log
        .iter()
        .filter(|l| l["target"] == "app")
        .cloned()
        .collect();
    let sums: Vec<u64> = mine.iter().filter_map(|l| l["repeated"].as_u64()).collect();
    assert_eq!(sums.len(), 1, "{mine:#?}");
    assert!(sums[0] > 1, "{mine:#?}");
    assert_eq!(sums[0] as f64 + 2.0, errors(), "every try is counted");
    let sum = saying(&mine, "(repeated ")[0];
    assert_eq!(sum["severity"], "WARNING");
    assert!(
        sum["error"].as_str().unwrap().contains("Read-only"),
        "the last error is not lost: {sum}"
    );
    let again = saying(&mine, "uploads work again")[0];
    let after = mine.iter().position(|l| l == again).unwrap();
    assert_eq!(mine[after - 1]["repeated"], sums[0], "the sum comes first");

    // The next time is news.
    let before = saying(&lines(&daemon), "upload failed").len();
    let _store = Mount::read_only(&site.path("store"));
    site.write("update t set a='y' where id=1");
    wait_for(&daemon, "the next trouble", || {
        saying(&lines(&daemon), "upload failed").len() > before
    });
    wait_for(&daemon, "more of it", || errors() > sums[0] as f64 + 3.0);
    let log = daemon.log.clone();
    assert_ne!(daemon.stop(), 0, "the last upload was not possible");
    let log = std::fs::read_to_string(log).unwrap();
    let last = log.lines().rfind(|l| l.contains("(repeated "));
    assert!(
        last.is_some_and(|l| l.contains("\"app\"")),
        "what was counted is told at the end: {log}"
    );
}
