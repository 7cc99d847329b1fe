//! Drills of real replicas: right ones, damaged ones, by hand and by schedule; what they prove is never deleted.
#![allow(missing_docs)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::daemon::{Site, wait_for};
use lifeboat::config::{self, Environment, LoadArgs, RetentionConfig};
use lifeboat::daemon::{self, fleet::Fleet};
use lifeboat::drills::{self, Options};
use lifeboat::labels::{self, Label, Pin};
use lifeboat::ltx;
use lifeboat::observe::facts::Board;
use lifeboat::replica::layout::{Layout, drill_key};
use lifeboat::replica::owner::{self, Owner};
use lifeboat::replica::upload::Replica;
use lifeboat::restore::plan::Catalog;
use lifeboat::retention::{self, Pins};
use lifeboat::store::testing::{Call, Fault, Faulty};
use lifeboat::store::{Kind, PutMode, Store};
use lifeboat::types::{Level, Lineage, Millis, PageSize, Pgno, Span, Txid};
use serde_json::Value;

fn records(site: &Site) -> Vec<PathBuf> {
    let folder = site.path("store/app/lifeboat/drills");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|f| f.unwrap().path())
        // One that is being written has another name.
        .filter(|f| f.extension().is_some_and(|e| e == "json"))
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

/// A whole copy may lie there: it does not wait for a day.
#[test]
fn what_a_killed_drill_left_goes_and_what_one_at_work_has_stays() {
    let mut site = Site::new();
    site.sync();
    let folder = |name: &str| {
        let path = site.path("state-web1/drill").join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("restored.sqlite3"), "a copy").unwrap();
        path
    };
    let (left, work) = (folder("lifeboat-drill-left"), folder("lifeboat-drill-work"));
    let other = folder("mine");
    let at_work = std::fs::File::open(&work).unwrap();
    rustix::fs::flock(&at_work, rustix::fs::FlockOperation::LockExclusive).unwrap();
    site.ok(&["drill"]);
    assert!(!left.exists());
    assert!(work.join("restored.sqlite3").exists() && other.exists());
    // So does the daemon at its start, without any drill.
    let left = folder("lifeboat-drill-left");
    site.extra = String::new();
    let daemon = site.start();
    wait_for(&daemon, "what was left goes", || !left.exists());
    assert!(work.join("restored.sqlite3").exists());
    drop(at_work);
    drop(daemon);
    let daemon = site.start();
    wait_for(&daemon, "what nobody has any more goes", || !work.exists());
    assert!(other.exists());
}

#[test]
fn a_replica_that_was_emptied_or_lost_its_base_fails_its_drill() {
    let site = Site::new();
    site.sync();
    site.write("delete from t where id % 2");
    site.sync();
    let (ltx, aside) = (site.path("store/app/ltx"), site.path("aside"));
    // As a lifecycle rule does it: old objects first.
    std::fs::create_dir(&aside).unwrap();
    std::fs::rename(ltx.join("9"), aside.join("9")).unwrap();
    let error = site.fails(5, &["drill"]);
    assert!(error.contains("no complete base"), "{error}");
    let failed = record(&records(&site)[0]);
    assert_eq!(failed["checks"][0]["name"], "restore", "{failed}");
    assert_eq!(failed["ok"], false, "{failed}");
    std::fs::rename(aside.join("9"), ltx.join("9")).unwrap();
    site.ok(&["drill"]);
    std::fs::remove_dir_all(&ltx).unwrap();
    let error = site.fails(5, &["drill"]);
    assert!(error.contains("holds no files any more"), "{error}");
    assert!(site.ok(&["evidence"]).contains(" FAILED (restored in "));
    // Nothing is left, not even the records: a new replica.
    std::fs::remove_dir_all(site.path("store/app")).unwrap();
    site.fails(3, &["drill"]);
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
    site.min_free = "99%";
    let error = site.fails(1, &["drill"]);
    assert!(
        error.contains("may take only") && error.contains("scratch-dir"),
        "{error}"
    );
    assert!(records(&site).is_empty());
    assert!(scratch_is_empty(&site));
}

/// The database was large for a while: the copy needs more room than the finished file, and there is none. That is no verdict on the copy.
#[test]
fn a_disk_that_fills_up_in_the_middle_is_no_verdict() {
    let mut site = Site::new();
    let scratch = site.path("scratch");
    let _mount = common::mount::Mount::tmpfs(&scratch, 8);
    site.min_free = "1KiB";
    site.extra = format!("drill: {{ scratch-dir: {} }}\n", scratch.display());
    let _daemon = site.start();
    site.sync();
    site.write("create table large as select randomblob(900) b from t, (select 1 union select 2 union select 3 union select 4)");
    site.sync();
    site.write("drop table large");
    site.write("vacuum");
    site.sync();
    let error = site.fails(1, &["drill"]);
    assert!(error.contains("nothing was drilled"), "{error}");
    assert_eq!(records(&site).len(), 0);
}

#[test]
fn a_missed_drill_is_made_up_for_and_its_result_is_in_metrics_and_readiness() {
    let mut site = Site::new().with_http();
    site.sync();
    site.ok(&["drill"]);
    // As if it had been years ago; every fourth year has the same days.
    let old = records(&site).remove(0);
    let text = std::fs::read_to_string(&old).unwrap();
    let year = jiff::Timestamp::now().strftime("%Y").to_string();
    let long_ago = (year.parse::<u32>().unwrap() - 4).to_string();
    let name = old
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .replacen(&year, &long_ago, 1);
    std::fs::write(old.with_file_name(name), text.replace(&year, &long_ago)).unwrap();
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

fn span(level: u8, min: u64, max: u64) -> Span {
    let t = |n| Txid::new(n).unwrap();
    Span::new(Level::new(level).unwrap(), t(min), t(max)).unwrap()
}

type Memory = Arc<object_store::memory::InMemory>;

fn store_in(memory: &Memory) -> Store {
    Store::from_object_store(Kind::Memory, Arc::clone(memory) as _, "app".into())
}

/// A base, six captures, and a rolled-up file of all six.
async fn rolled_up() -> Store {
    let memory = Memory::default();
    fill(&memory).await;
    store_in(&memory)
}

async fn fill(memory: &Memory) {
    let store = store_in(memory);
    let owner = Owner::new(Lineage::new(7).unwrap(), "web1", 1, Millis(0));
    owner::write(&store, &owner, PutMode::Create).await.unwrap();
    let captures = (3..=8).map(|n| span(0, n, n));
    let files = captures.chain([span(9, 1, 2), span(1, 3, 8)]);
    put_files(&store, files).await;
}

async fn put_files(store: &Store, files: impl IntoIterator<Item = Span>) {
    for span in files {
        let header = ltx::Header {
            page_size: PageSize::new(512).unwrap(),
            commit: 1,
            min: span.min(),
            max: span.max(),
            timestamp: Millis(1_700_000_000_000 + i64::try_from(span.max().get()).unwrap()),
            wal_offset: 32,
            wal_size: 0,
            salt: (0, 0),
            lineage: Lineage::new(7),
            pre: None,
            post: None,
            epoch: 1,
        };
        let mut encoder = ltx::Encoder::new(Vec::new(), &header).unwrap();
        encoder.page(Pgno::FIRST, &[7; 512]).unwrap();
        let key = Layout::for_kind(Kind::Memory).key(span);
        let body = encoder.finish().unwrap().0.into();
        store.put(&key, body, PutMode::Create, None).await.unwrap();
    }
}

/// Its pages are no database: every drill of it fails.
async fn failing_drill(store: &Store, at: i64) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        target: "app".into(),
        scratch: folder.path().into(),
        reserve: 0,
        asserts: Vec::new(),
        instance: "web1".into(),
    };
    let drill = drills::sqlite(store, &options, Millis(at)).await.unwrap();
    assert!(!drill.ok, "{drill:?}");
}

async fn put_record(store: &Store, at: i64, ok: bool, txid: u64) {
    let at = Millis(at);
    let record = serde_json::json!({
        "format": 1, "target": "app", "store": "memory", "at": at.to_string(), "ok": ok, "txid": format!("{txid:016x}"),
        "data_age_seconds": 0.0, "restore_seconds": 0.0, "seconds": 0.0, "bytes": 0, "checks": [],
        "instance": "web1", "version": "1",
    });
    let body = record.to_string().into_bytes().into();
    let key = drill_key(at);
    store
        .put(&key, body, PutMode::Overwrite, None)
        .await
        .unwrap();
}

/// Keeps the newest point only; returns the points that are left.
async fn pruned(store: &Store) -> Vec<u64> {
    let owner = owner::read(store).await.unwrap().unwrap().unwrap();
    let catalog = Replica::list(store).await.unwrap();
    let mut replica = Replica::open(store.clone(), catalog, owner).await.unwrap();
    let policy = RetentionConfig {
        point_in_time: std::time::Duration::ZERO,
        hourly: 0,
        daily: 0,
        weekly: 0,
        monthly: 0,
        yearly: 0,
        ..RetentionConfig::plain(std::time::Duration::ZERO)
    };
    let now = Millis(jiff::Timestamp::now().as_millisecond());
    retention::run(&mut replica, &policy, &mut Pins::default(), now)
        .await
        .unwrap();
    let left = Catalog::new(Replica::list(store).await.unwrap().into_values());
    left.points().iter().map(|p| p.txid.get()).collect()
}

#[tokio::test]
async fn what_the_newest_good_drill_proved_is_never_deleted() {
    let store = rolled_up().await;
    put_record(&store, 1_000, true, 4).await;
    put_record(&store, 2_000, true, 5).await;
    // Newer ones that failed, or cannot be read, prove nothing; the point of the newest good one stays, and the way to it.
    put_record(&store, 3_000, false, 7).await;
    let damaged = drill_key(Millis(4_000));
    store
        .put(&damaged, "{".into(), PutMode::Create, None)
        .await
        .unwrap();
    assert_eq!(pruned(&store).await, [2, 3, 4, 5, 8]);
    assert_eq!(pruned(&store).await, [2, 3, 4, 5, 8], "again");
    let without = rolled_up().await;
    assert_eq!(pruned(&without).await, [2, 8]);
}

#[tokio::test]
async fn failed_drills_push_no_good_record_out() {
    let store = rolled_up().await;
    put_record(&store, 1_000, true, 4).await;
    put_record(&store, 2_000, true, 5).await;
    for n in 0..59 {
        put_record(&store, 3_000 + n, false, 7).await;
    }
    let now = jiff::Timestamp::now().as_millisecond();
    failing_drill(&store, now).await;
    failing_drill(&store, now + 1).await;
    let there = store.list("lifeboat/drills").await.unwrap();
    assert_eq!(
        there[0].key,
        drill_key(Millis(2_000)),
        "the newest good one"
    );
    assert_eq!(there.len(), 61);
    assert_eq!(pruned(&store).await, [2, 3, 4, 5, 8]);
}

#[tokio::test]
async fn an_earlier_proven_point_stays_pinned_where_the_newest_is_gone() {
    let store = rolled_up().await;
    put_record(&store, 1_000, true, 4).await;
    put_record(&store, 2_000, true, 5).await;
    // Merged before its record was written.
    let gone = Layout::for_kind(Kind::Memory).key(span(0, 7, 7));
    store.delete(&gone).await.unwrap();
    put_record(&store, 3_000, true, 7).await;
    assert_eq!(pruned(&store).await, [2, 3, 4, 5, 8]);
    // Nor is it swept while it is the one that is pinned.
    for n in 0..60 {
        put_record(&store, 4_000 + n, false, 7).await;
    }
    failing_drill(&store, jiff::Timestamp::now().as_millisecond()).await;
    let there = store.list("lifeboat/drills").await.unwrap();
    let (pinned, newest) = (drill_key(Millis(2_000)), drill_key(Millis(3_000)));
    assert_eq!([&there[0].key, &there[1].key], [&pinned, &newest]);
    assert_eq!(pruned(&store).await, [2, 3, 4, 5, 8]);
}

#[tokio::test]
async fn a_point_is_pinned_while_its_drill_is_under_way() {
    let memory = Memory::default();
    fill(&memory).await;
    let store = store_in(&memory);
    let (faulty, faults) = Faulty::wrap(Arc::clone(&memory) as _);
    let slow = Store::from_object_store(Kind::Memory, faulty, "app".into());
    // The pin is written; the record hangs.
    let hour = std::time::Duration::from_secs(3600);
    faults.inject(Some(Call::Put), 1, 1, Fault::Delay(hour));
    let now = jiff::Timestamp::now().as_millisecond();
    let drill = tokio::spawn(async move { failing_drill(&slow, now).await });
    let is_record = |(call, key): &(Call, String)| {
        *call == Call::Put && key.starts_with("app/lifeboat/drills/")
    };
    let begun = std::time::Instant::now();
    while !faults.calls().iter().any(is_record) {
        assert!(begun.elapsed().as_secs() < 60, "{:?}", faults.calls());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // The app wrote on.
    put_files(&store, [span(0, 9, 9), span(1, 3, 9)]).await;
    assert_eq!(pruned(&store).await, [2, 8, 9]);
    drill.abort();
    let _ = drill.await;
    assert_eq!(pruned(&store).await, [2, 8, 9], "also if it was killed");
    // Another one of the newest point ends with its pin.
    failing_drill(&store, now + 1).await;
    let pins = store.list("lifeboat/drilling").await.unwrap();
    assert_eq!(pins.len(), 1, "only the killed one's");
    store.delete(&pins[0].key).await.unwrap();
    assert_eq!(pruned(&store).await, [2, 9]);
}

/// Labels are read last before something is deleted: somebody labels a point while drills are looked up.
#[tokio::test]
async fn a_label_that_comes_while_retention_looks_for_drills_counts() {
    let is_for_drills =
        |(call, key): &(Call, String)| *call == Call::List && key.ends_with("lifeboat/drilling");
    let mut skip = None;
    for labelled in [false, true] {
        let memory = Memory::default();
        fill(&memory).await;
        let (faulty, faults) = Faulty::wrap(Arc::clone(&memory) as _);
        let slow = Store::from_object_store(Kind::Memory, faulty, "app".into());
        if let Some(skip) = skip {
            let pause = Fault::Delay(std::time::Duration::from_secs(3));
            faults.inject(Some(Call::List), skip, 1, pause);
        }
        let run = tokio::spawn(async move { pruned(&slow).await });
        if labelled {
            while !faults.calls().iter().any(is_for_drills) {
                assert!(!run.is_finished());
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            let label = Label {
                format: 1,
                label: "v1".into(),
                at: jiff::Timestamp::now().to_string(),
                pin: Pin::sqlite(Txid::new(5).unwrap()),
                version: None,
                instance: "web1".into(),
                set: None,
                written: None,
            };
            let store = store_in(&memory);
            labels::create("v1", &[(&store, label)]).await.unwrap();
        }
        let left = run.await.unwrap();
        assert_eq!(left.contains(&5), labelled, "{left:?}");
        let calls = faults.calls();
        let lists = calls.iter().filter(|(call, _)| *call == Call::List);
        skip = lists.clone().position(is_for_drills).map(|at| at as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_appeared_while_the_daemon_runs_is_drilled() {
    let site = Site::new();
    let apps = site.path("apps");
    std::fs::create_dir(&apps).unwrap();
    std::fs::copy(&site.db, apps.join("first.sqlite3")).unwrap();
    let text = format!(
        "store: file://{0}/store\nstate-dir: {0}/state\nhttp: off\nmin-free: 16MiB\nsqlite:\n  - dir: {0}/apps\n    watch: true\n",
        site.path("").display().to_string().trim_end_matches('/')
    );
    let file = site.path("in-process.yml");
    std::fs::write(&file, text).unwrap();
    let args = LoadArgs {
        config: Some(file),
        ..LoadArgs::default()
    };
    let config = Arc::new(config::load(&args, &Environment::default()).unwrap());
    let board = Arc::new(Board::default());
    let fleet = Fleet::start(
        Arc::clone(&config),
        Arc::clone(&board),
        std::time::Duration::ZERO,
    )
    .await
    .unwrap();
    std::fs::copy(&site.db, apps.join("second.sqlite3")).unwrap();
    let found = config::discover(&config.dirs[0], &config.targets).unwrap();
    for target in &found.taken {
        fleet.add(target).await.unwrap();
    }
    for name in ["first", "second"] {
        fleet.sync(name).await.unwrap();
    }
    daemon::drills::all(&config, &fleet, &board).await;
    for name in ["first", "second"] {
        let store = &fleet.stores(name).await.unwrap()[0];
        let drills = drills::history(store, 2).await.unwrap();
        assert_eq!(drills.len(), 1, "{name}");
        assert!(drills[0].ok, "{:?}", drills[0]);
        let facts = board.target(name).unwrap().facts();
        assert_eq!(facts.stores[0].drill.as_ref().map(|d| d.ok), Some(true));
    }
    assert!(fleet.stop(std::time::Duration::from_secs(60)).await);
}
