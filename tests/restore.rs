//! Restores from replicas that change, lie in several stores, or are damaged in one of them.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::daemon::{Site, assert_same_pages, wait_for};
use common::python;
use lifeboat::ltx;
use lifeboat::restore::plan::Goal;
use lifeboat::restore::{Output, RestoreError, Verify, restore};
use lifeboat::store::{Class, Kind, PutMode, Store};
use lifeboat::types::{Lineage, Millis, PageSize, Pgno, Txid};
use object_store::memory::InMemory;
use object_store::path::Path;

fn file(min: u64, max: u64, fill: u8) -> bytes::Bytes {
    let header = ltx::Header {
        page_size: PageSize::new(512).unwrap(),
        commit: 2,
        min: Txid::new(min).unwrap(),
        max: Txid::new(max).unwrap(),
        timestamp: Millis(1),
        wal_offset: 32,
        wal_size: 0,
        salt: (0, 0),
        lineage: Lineage::new(7),
        pre: None,
        post: None,
        epoch: 1,
    };
    let mut encoder = ltx::Encoder::new(Vec::new(), &header).unwrap();
    for page in 1..=2 {
        let page = Pgno::new(page).unwrap();
        encoder.page(page, &[fill; 512]).unwrap();
    }
    encoder.finish().unwrap().0.into()
}

fn key(level: &str, min: u64, max: u64) -> String {
    format!("ltx/{level}/{min:016x}-{max:016x}.ltx")
}

async fn put(store: &Store, key: &str, file: bytes::Bytes) {
    store.put(key, file, PutMode::Create, None).await.unwrap();
}

/// A replica of TXIDs 1 to 5: a base and single captures.
async fn replica() -> Store {
    let memory = Arc::new(InMemory::new());
    let store = Store::from_object_store(Kind::Memory, memory, Path::from("app"));
    put(&store, &key("9", 1, 2), file(1, 2, 2)).await;
    for txid in 3..=5 {
        put(&store, &key("0", txid, txid), file(txid, txid, txid as u8)).await;
    }
    store
}

/// Restores while, after the first page, `change` happens to the store.
async fn restore_while<F>(
    store: &Store,
    out: &std::path::Path,
    change: impl Fn(Store) -> F + Send + Sync + 'static,
) -> Result<Txid, RestoreError>
where
    F: Future<Output = ()>,
{
    let (changed, runtime) = (AtomicBool::new(false), tokio::runtime::Handle::current());
    let changing = store.clone();
    let progress = move |_| {
        if !changed.swap(true, Ordering::Relaxed) {
            runtime.block_on(change(changing.clone()));
        }
    };
    let output = Output::New(out.to_owned());
    let report = restore(
        store,
        Goal::Newest,
        output,
        Verify::None,
        Millis(9),
        progress,
    );
    Ok(report.await?.plan.txid().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pruned_meanwhile_is_found_where_it_was_rolled_up() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.db");
    let store = replica().await;
    let rolled_up = |store: Store| async move {
        put(&store, &key("1", 3, 5), file(3, 5, 5)).await;
        for txid in 3..=4 {
            store.delete(&key("0", txid, txid)).await.unwrap();
        }
    };
    let txid = restore_while(&store, &out, rolled_up).await.unwrap();
    assert_eq!(txid.get(), 5);
    assert_eq!(std::fs::read(&out).unwrap(), [5; 1024]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_for_good_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.db");
    let store = replica().await;
    let lost = |store: Store| async move { store.delete(&key("0", 4, 4)).await.unwrap() };
    let error = restore_while(&store, &out, lost).await.unwrap_err();
    assert!(
        matches!(&error, RestoreError::Hole(hole) if hole.reaches.txid.get() == 3 && hole.missing.get() == 4),
        "{error}"
    );
    // Read errors are the store's, not the disk's.
    let store = replica().await;
    let gone = |store: Store| async move {
        for key in [
            key("9", 1, 2),
            key("0", 3, 3),
            key("0", 4, 4),
            key("0", 5, 5),
        ] {
            store.delete(&key).await.unwrap();
        }
    };
    let error = restore_while(&store, &out, gone).await.unwrap_err();
    assert!(
        matches!(&error, RestoreError::Plan(_))
            || matches!(&error, RestoreError::Store(e) if e.class() == Class::NotFound),
        "{error}"
    );
    assert!(!out.exists());
}

/// A database in two stores.
fn two_stores() -> Site {
    let mut site = Site::new();
    site.extra = format!(
        "    stores:\n      - url: {}\n      - url: file://{}\n",
        site.store,
        site.path("second").display()
    );
    site
}

fn objects(site: &Site, store: &str, level: u8) -> Vec<std::path::PathBuf> {
    let folder = site.path(&format!("{store}/app/ltx/{level}"));
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    files
}

#[test]
fn the_store_that_went_furthest_is_taken_and_damage_in_one_is_no_loss() {
    let site = two_stores();
    for value in 0..4 {
        site.write(&format!("update t set a={value} where id=1"));
        site.sync();
    }
    let now = site.copy_now("now.db");
    let check = |what: &str| {
        assert_same_pages(&now, &site.restore("out.db", &["--verify", "full"]), what);
    };
    check("both are whole");
    // The first store lags: its newest files never arrived.
    let first = objects(&site, "store", 0);
    let newest = std::fs::read(&first[first.len() - 1]).unwrap();
    std::fs::remove_file(&first[first.len() - 1]).unwrap();
    check("the first store lags");
    // It has the same point, but damaged.
    let mut damaged = newest.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&first[first.len() - 1], &damaged).unwrap();
    let out = site.path("x.db");
    let done = site.run(&["restore", "app", "-o", out.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        done.status.success() && said.contains("trying the next store"),
        "{said}"
    );
    assert_same_pages(&now, &out, "damaged in the first store");
    std::fs::remove_file(&out).unwrap();
    // A hole in the first store, and the second store ends before what lies behind it: a person must choose.
    std::fs::write(&first[first.len() - 1], &newest).unwrap();
    let kept = std::fs::read(&first[first.len() - 2]).unwrap();
    std::fs::remove_file(&first[first.len() - 2]).unwrap();
    check("a hole in the first store");
    let second = objects(&site, "second", 0);
    std::fs::remove_file(&second[second.len() - 1]).unwrap();
    let error = site.fails(5, &["restore", "app", "-o", out.to_str().unwrap()]);
    assert!(
        error.contains("is missing") && error.contains("second") && error.contains("--txid"),
        "{error}"
    );
    assert!(!out.exists());
    // Gone altogether.
    std::fs::write(&second[second.len() - 1], &newest).unwrap();
    std::fs::write(&second[second.len() - 2], &kept).unwrap();
    std::fs::remove_dir_all(site.path("store")).unwrap();
    check("only the second is there");
}

#[test]
fn all_to_one_moment_or_none() {
    let mut site = Site::new();
    let other = site.path("other.sqlite3");
    std::fs::copy(&site.db, &other).unwrap();
    python(&other, "conn().execute('pragma journal_mode=wal')");
    site.extra += &format!("  - path: {}\n", other.display());
    site.sync();
    let moment = || {
        // Captures are a millisecond apart at least.
        std::thread::sleep(std::time::Duration::from_millis(20));
        jiff::Timestamp::now().to_string()
    };
    let before = moment();
    let oracle = [
        (site.copy_now("a.db"), "app.sqlite3"),
        (site.path("b.db"), "other.sqlite3"),
    ];
    std::fs::copy(&other, &oracle[1].0).unwrap();
    for db in [&site.db, &other] {
        python(db, "conn().execute('delete from t')");
    }
    site.sync();
    let folder = site.path("all");
    let all = ["restore", "--all", "-o", folder.to_str().unwrap()];
    site.ok(&[&all[..], &["--at", &before]].concat());
    for (oracle, name) in &oracle {
        assert_same_pages(oracle, &folder.join(name), name);
    }
    // One of them did not exist then: said before anything is written.
    let young = site.path("young.sqlite3");
    std::fs::copy(&other, &young).unwrap();
    python(&young, "conn().execute('pragma journal_mode=wal')");
    site.extra += &format!("  - path: {}\n", young.display());
    site.sync();
    let folder = site.path("again");
    let all = ["restore", "--all", "-o", folder.to_str().unwrap()];
    site.fails(3, &[&all[..], &["--at", &before]].concat());
    assert!(!folder.exists());
    site.ok(&[&all[..], &["--at", &before, "--if-replica-exists"]].concat());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
}

/// Every point that `list` shows is checked, not only the way to the newest one.
#[test]
fn verify_reads_what_older_points_need() {
    let mut site = Site::new();
    site.extra = "    snapshot-interval: 1s\n".into();
    let daemon = site.start();
    site.sync();
    let old = site.path("store/app/ltx/9");
    wait_for(&daemon, "a second base", || {
        site.write("update t set a=random() where id=1");
        site.sync();
        // One that is being written has another name.
        let is_whole = |f: &std::path::PathBuf| f.extension().is_some_and(|e| e == "ltx");
        objects(&site, "store", 9)
            .iter()
            .filter(|f| is_whole(f))
            .count()
            > 1
    });
    assert_eq!(daemon.stop(), 0);
    assert!(site.ok(&["verify"]).contains("read and right"));
    let mut bases: Vec<_> = std::fs::read_dir(&old)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    bases.sort();
    // The newest restore does without the first base.
    let mut bytes = std::fs::read(&bases[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&bases[0], &bytes).unwrap();
    site.restore("newest.db", &[]);
    let out = site.run(&["verify", "--json"]);
    assert_eq!(out.status.code(), Some(5));
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let name = bases[0].file_stem().unwrap().to_str().unwrap();
    assert!(
        found["damaged"][0]["file"].as_str().unwrap().contains(name),
        "{found}"
    );
    let lost = found["lost"].as_array().unwrap();
    assert!(!lost.is_empty(), "{found}");
    for point in lost {
        let point = point.as_str().unwrap();
        site.fails(5, &["restore", "app", "-o", "lost.db", "--txid", point]);
    }
    // What cannot be read for another reason is no damage.
    std::fs::rename(site.path("store"), site.path("away")).unwrap();
    std::fs::write(site.path("store"), b"").unwrap();
    assert!(!site.fails(1, &["verify"]).contains("ok verify"));
}

/// The times of a listing tell when an object arrived there; the store that lags got its last one late.
#[test]
fn a_store_that_lags_is_not_taken_because_its_objects_arrived_later() {
    let site = two_stores();
    for value in 0..4 {
        site.write(&format!("update t set a={value} where id=1"));
        site.sync();
    }
    let now = site.copy_now("now.db");
    let first = objects(&site, "store", 0);
    std::fs::remove_file(&first[first.len() - 1]).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    for level in [0, 9] {
        for file in objects(&site, "store", level).iter().filter(|f| f.exists()) {
            let file = std::fs::File::options().write(true).open(file).unwrap();
            file.set_modified(later).unwrap();
        }
    }
    let restored = site.restore("out.db", &[]);
    assert_same_pages(&now, &restored, "the first store lags");
}

/// The folder of a new server is empty and tells nothing; the store does, whether the folder is watched or not.
#[test]
fn databases_of_a_folder_that_is_empty_are_restored_from_the_store() {
    let mut site = Site::new();
    let folder = site.path("tenants");
    std::fs::create_dir(&folder).unwrap();
    let tenant = folder.join("one.sqlite3");
    std::fs::copy(&site.db, &tenant).unwrap();
    python(&tenant, "conn().execute('pragma journal_mode=wal')");
    site.extra += &format!("  - dir: {}\n", folder.display());
    site.sync();
    set(&tenant, "saved");
    site.sync();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let all = ["restore", "--all", "--if-not-exists", "--if-replica-exists"];
    let said = site.ok(&all);
    assert!(said.contains("restored=1 existing=1"), "{said}");
    assert_eq!(value(&tenant), "saved");
}

/// Programs read every line but the last.
#[test]
fn each_answer_in_json_is_an_object() {
    let (site, [app, _]) = two_databases();
    let answers = |args: &[&str]| -> Vec<serde_json::Value> {
        let said = site.ok(&[&["restore", "--json"], args].concat());
        let (data, last) = said.trim_end().rsplit_once('\n').unwrap();
        assert!(last.starts_with("lifeboat: ok restore"), "{said}");
        let line = |l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{args:?}: {e}: {said}"));
        data.lines().map(line).collect()
    };
    let left = answers(&["app", "--if-not-exists"]);
    assert_eq!(
        (&left[0]["target"], &left[0]["left"]),
        (&"app".into(), &"exists".into())
    );
    assert!(
        left[0]["why"]
            .as_str()
            .unwrap()
            .contains("app.sqlite3 exists")
    );
    assert_eq!(answers(&["--all", "--if-not-exists"]).len(), 2);
    answers(&["app", "--in-place"]);
    let back = answers(&["app", "--undo", "--dry-run"]);
    assert_eq!(
        (&back[0]["dry-run"], &back[0]["target"]),
        (&true.into(), &"app".into())
    );
    let back = answers(&["--all", "--undo"]);
    assert!(
        back[0]["back"].as_str().unwrap().contains("before-restore"),
        "{back:?}"
    );
    assert!(
        back[0]["kept"].as_str().unwrap().contains("before-undo"),
        "{back:?}"
    );
    std::fs::remove_file(&app).unwrap();
    std::fs::remove_dir_all(site.path("store/app")).unwrap();
    let left = answers(&["app", "--if-replica-exists"]);
    assert_eq!(left[0]["left"], "absent", "{left:?}");
}

#[test]
fn a_moment_of_the_future_is_the_newest_point_and_said() {
    let site = Site::new();
    site.sync();
    let out = site.run(&[
        "restore",
        "app",
        "-o",
        "copy.sqlite3",
        "--at",
        "2999-01-01T00:00",
    ]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert!(
        said.contains("is in the future; restoring the newest"),
        "{said}"
    );
    assert_same_pages(
        &site.path("copy.sqlite3"),
        &site.copy_now("now.sqlite3"),
        "newest",
    );
}

/// A capture that a fast clock dated later stands between two points.
#[test]
fn points_behind_one_of_a_fast_clock_are_named() {
    let site = Site::new();
    site.sync();
    let daemon = site.start();
    for n in 0..2 {
        site.write(&format!("update t set a='{n}' where id=1"));
        site.sync();
    }
    daemon.stop();
    site.forget_roll_ups();
    let files = objects(&site, "store", 0);
    let fast = std::fs::File::options()
        .append(true)
        .open(&files[files.len() - 2])
        .unwrap();
    let hour = std::time::Duration::from_secs(3600);
    fast.set_modified(std::time::SystemTime::now() + hour)
        .unwrap();
    let moment = jiff::Timestamp::now().to_string();
    let out = site.run(&["restore", "app", "-o", "copy.sqlite3", "--at", &moment]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert!(
        said.contains("1 point is also dated at or before that time"),
        "{said}"
    );
}

/// Two databases and their copies as they were, and what they are now.
fn two_databases() -> (Site, [std::path::PathBuf; 2]) {
    let mut site = Site::new();
    let other = site.path("other.sqlite3");
    std::fs::copy(&site.db, &other).unwrap();
    python(&other, "conn().execute('pragma journal_mode=wal')");
    site.extra += &format!("  - path: {}\n", other.display());
    site.sync();
    let both = [site.db.clone(), other];
    (site, both)
}

fn set(db: &std::path::Path, value: &str) {
    python(
        db,
        &format!(
            "c=conn(); c.execute('delete from t'); c.execute(\"insert into t(a) values('{value}')\")"
        ),
    );
}

fn value(db: &std::path::Path) -> String {
    python(db, "print(conn().execute('select a from t').fetchone()[0])")
        .trim()
        .to_owned()
}

fn in_place(site: &Site, args: &[&str]) -> (bool, String) {
    let out = site.run(&[&["restore", "--in-place"], args].concat());
    let said =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), said)
}

#[test]
fn all_in_place_or_none() {
    let (site, [app, other]) = two_databases();
    set(&app, "saved");
    set(&other, "saved");
    site.sync();
    set(&app, "now");
    set(&other, "now");
    let both = || [value(&app), value(&other)];
    // The second is in use: the first stays, too, although it was ready.
    let mut reader = std::process::Command::new("python3")
        .args(["-c", "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute('select * from t').fetchall(); print('open',flush=True); sys.stdin.read()"])
        .arg(&other)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(reader.stdout.take().unwrap()),
        &mut String::new(),
    )
    .unwrap();
    let (done, said) = in_place(&site, &["--all"]);
    drop(reader.stdin.take());
    reader.wait().unwrap();
    assert!(!done && said.contains("is in use"), "{said}");
    assert!(
        said.contains("lifeboat: failed restore changed=no"),
        "{said}"
    );
    assert_eq!(both(), ["now", "now"], "{said}");
    // So if its file in the store is damaged.
    let mut files: Vec<_> = std::fs::read_dir(site.path("store/other/ltx/0"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    let newest = files.last().unwrap();
    let kept = std::fs::read(newest).unwrap();
    let mut damaged = kept.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(newest, &damaged).unwrap();
    let (done, said) = in_place(&site, &["--all"]);
    assert!(!done && said.contains("changed=no"), "{said}");
    assert_eq!(both(), ["now", "now"], "{said}");
    std::fs::write(newest, &kept).unwrap();
    let (done, said) = in_place(&site, &["--all", "--at", "1s"]);
    assert!(done, "{said}");
}

#[test]
fn an_undo_takes_back_the_last_restore_and_nothing_before_it() {
    let (site, [app, other]) = two_databases();
    let both = || [value(&app), value(&other)];
    set(&app, "january");
    set(&other, "january");
    site.sync();
    let (done, said) = in_place(&site, &["--all"]);
    assert!(done, "{said}");
    set(&app, "june");
    set(&other, "june");
    site.sync();
    let june = format!("{:016x}", site.points().last().unwrap());
    set(&app, "lost");
    let (done, said) = in_place(&site, &["app", "--txid", &june]);
    assert!(done, "{said}");
    assert_eq!(both(), ["june", "june"]);
    // Only the last restore: the other database was replaced by an earlier one.
    let out = site.run(&["restore", "--all", "--undo"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        out.status.success() && said.contains("an earlier restore"),
        "{said}"
    );
    assert_eq!(both(), ["lost", "june"]);
    // Asked again, because the answer was lost on the way: not January.
    let said = site.fails(4, &["restore", "app", "--undo"]);
    assert!(
        said.contains("undone already") && said.contains("hint:"),
        "{said}"
    );
    assert_eq!(both(), ["lost", "june"]);
}

/// Its newest commits are in the WAL, and the disk has no room to bring them into the file: the two are not parted.
#[test]
fn a_database_whose_wal_cannot_be_brought_home_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume");
    let mount = common::mount::Mount::tmpfs(&volume, 8);
    let db = volume.join("app.db");
    python(
        &db,
        "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('pragma wal_autocheckpoint=0'); c.execute('create table t(a)')
c.execute('begin'); c.executemany('insert into t values(?)',((os.urandom(900),) for _ in range(2000))); c.execute('commit'); os._exit(0)",
    );
    let wal = volume.join("app.db-wal");
    let before = std::fs::read(&wal).unwrap();
    assert!(before.len() > 1 << 20);
    let filler = volume.join("filler");
    std::fs::write(&filler, vec![0; mount.free() as usize]).unwrap();
    let error = lifeboat::restore::swap::claim(&db).err().unwrap();
    assert!(
        matches!(error, lifeboat::restore::swap::SwapError::WalStays { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("nothing was changed") && error.hint().is_some());
    assert_eq!(std::fs::read(&wal).unwrap(), before);
    std::fs::remove_file(&filler).unwrap();
    drop(lifeboat::restore::swap::claim(&db).unwrap().unwrap());
    let rows = python(
        &db,
        "print(conn().execute('select count(*) from t').fetchone()[0])",
    );
    assert_eq!(rows.trim(), "2000");
}
