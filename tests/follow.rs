//! A followed copy: current, atomic for its readers, the same after any kill, and never somebody else's.
#![allow(missing_docs)]

mod common;
#[allow(dead_code)]
mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::daemon::{Site, assert_same_pages};
use common::{Image, python};
use lifeboat::ltx;
use lifeboat::restore::follow::{self, FollowError, Follower};
use lifeboat::store::{Kind, PutMode, Store};
use lifeboat::types::{DbChecksum, Lineage, Millis, PageSize, Pgno, Txid};
use object_store::memory::InMemory;
use serde_json::Value;

/// Money moves between rows of different pages; its sum never changes.
const BANK: &str = "c=conn(); c.execute('create table accounts(id integer primary key, n integer, pad blob)')
c.execute('begin'); c.executemany('insert into accounts values(?,10,randomblob(900))',((i,) for i in range(100))); c.execute('commit')";
const TRANSFERS: &str = "import random
c=conn(30)
end=time.time()+float(os.environ['SECONDS'])
n=0
while time.time()<end:
    a,b=random.sample(range(100),2)
    c.execute('begin immediate')
    c.execute('update accounts set n=n-1 where id=?',(a,)); c.execute('update accounts set n=n+1 where id=?',(b,))
    c.execute('commit'); n+=1
    if n%50==0: c.execute('create table if not exists x%d(a)'%(n//50))
    if n%170==0: c.execute('delete from t where id in (select id from t order by random() limit 100)')
    time.sleep(0.004)
print(n)";
/// Reads until killed; says how often the copy was seen, and in how many states.
const READER: &str = "seen=set(); n=0
end=time.time()+float(os.environ['SECONDS'])
while time.time()<end:
    try:
        # It would make an empty file there, which `follow` rightly leaves alone.
        if not os.path.exists(p): time.sleep(0.02); continue
        c=conn(30)
        total,state=c.execute('select sum(n), group_concat(n) from accounts').fetchone()
        assert total==1000, total
        n+=1; seen.add(state)
        if n%20==0: assert c.execute('pragma integrity_check').fetchone()[0]=='ok'
        c.close()
    except sqlite3.OperationalError as e:
        assert 'no such table' in str(e) or 'unable to open' in str(e), e
print(n, len(seen))";

fn spawn(db: &Path, code: &str, seconds: &str) -> Child {
    let script = format!(
        "import sqlite3, os, sys, time\np={:?}\ndef conn(timeout=5):\n    return sqlite3.connect(p, isolation_level=None, timeout=timeout)\n{code}",
        db.to_str().unwrap()
    );
    Command::new("python3")
        .args(["-c", &script])
        .env("SECONDS", seconds)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 is missing: apt-get install python3")
}

fn said(child: Child) -> Vec<u64> {
    let out = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{error}");
    let text = String::from_utf8(out.stdout).unwrap();
    text.split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect()
}

fn follow(site: &Site, copy: &Path) -> Child {
    site.command(&[
        "follow",
        "app",
        "-o",
        copy.to_str().unwrap(),
        "--interval",
        "50ms",
        "-q",
    ])
    .stdout(Stdio::null())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap()
}

fn once(site: &Site, copy: &Path) -> String {
    site.ok(&["follow", "app", "-o", copy.to_str().unwrap(), "--once"])
}

/// The copy's pages as one file: what its readers see.
fn settled(copy: &Path) -> PathBuf {
    let out = copy.with_extension("settled");
    // Of an earlier look.
    let _ = std::fs::remove_file(&out);
    python(
        copy,
        &format!(
            "a=conn(); b=sqlite3.connect({:?}); a.backup(b); b.close(); os._exit(0)",
            out.to_str().unwrap()
        ),
    );
    out
}

#[test]
fn readers_see_whole_transactions_through_kills() {
    let site = Site::new();
    python(&site.db, BANK);
    let daemon = site.start();
    site.sync();
    std::fs::create_dir(site.path("other")).unwrap();
    let copy = site.path("other/copy.sqlite3");
    let mut follower = follow(&site, &copy);
    let app = spawn(&site.db, TRANSFERS, "6");
    let reader = spawn(&copy, READER, "7");
    for pause in [900, 1300, 700, 1500, 400] {
        std::thread::sleep(Duration::from_millis(pause));
        follower.kill().unwrap();
        follower.wait().unwrap();
        follower = follow(&site, &copy);
    }
    let (commits, reads) = (said(app), said(reader));
    assert!(commits[0] > 100, "{commits:?}");
    assert!(
        reads[0] > 20 && reads[1] > 5,
        "reads and states seen: {reads:?}"
    );
    site.sync();
    follower.kill().unwrap();
    follower.wait().unwrap();
    let words = once(&site, &copy);
    assert!(words.contains("current"), "{words}");
    assert_same_pages(
        &settled(&copy),
        &site.copy_now("oracle.sqlite3"),
        "the copy",
    );
    daemon.stop();
}

/// A copy that nobody kept current for a while says so, and that it is current again only when it is.
#[test]
fn the_lag_is_reported() {
    let site = Site::new();
    site.write("create table t2(a)");
    site.sync();
    std::fs::create_dir(site.path("other")).unwrap();
    let copy = site.path("other/copy.sqlite3");
    let args = [
        "follow",
        "app",
        "-o",
        copy.to_str().unwrap(),
        "--once",
        "--json",
    ];
    let lines = || -> Vec<Value> {
        let words = site.ok(&args);
        assert!(words.trim_end().ends_with(" current"), "{words}");
        let values = words.lines().filter_map(|l| serde_json::from_str(l).ok());
        values.collect()
    };
    let first = lines();
    let last = first.last().unwrap();
    assert_eq!(last["current"], true, "a fresh copy says so, too: {last}");
    std::thread::sleep(Duration::from_secs(2));
    site.write("insert into t2 values(1)");
    site.sync();
    let again = lines();
    let (begin, end) = (&again[0], again.last().unwrap());
    assert_eq!(
        (begin["current"].as_bool(), begin["txid"].clone()),
        (Some(false), last["txid"].clone()),
        "{begin}"
    );
    let lag = begin["lag_seconds"].as_f64().unwrap();
    assert!((2.0..600.0).contains(&lag), "{begin}");
    assert_eq!(
        (end["current"].as_bool(), end["lag_seconds"].as_f64()),
        (Some(true), Some(0.0)),
        "{end}"
    );
    assert_ne!(end["txid"], last["txid"], "{end}");
}

#[test]
fn the_file_grows_shrinks_and_changes_its_schema() {
    let site = Site::new();
    python(
        &site.db,
        "c=conn(); c.execute('pragma journal_mode=delete'); c.execute('pragma auto_vacuum=full'); c.execute('vacuum'); c.execute('pragma journal_mode=wal')",
    );
    site.sync();
    let copy = site.path("copy.sqlite3");
    once(&site, &copy);
    for sql in [
        "delete from t where id > 100",
        "create table u as select * from t",
        "insert into u select id + 1000, randomblob(3000) from t",
        "drop table t",
        "vacuum",
        "create table t(id integer primary key, a)",
        "delete from u",
    ] {
        site.write(sql);
        site.sync();
        let said = once(&site, &copy);
        assert!(said.contains("lifeboat: ok follow"), "{said}");
        assert_same_pages(&settled(&copy), &site.copy_now("oracle.sqlite3"), sql);
        assert_eq!(
            python(
                &copy,
                "print(conn().execute('pragma integrity_check').fetchone()[0])"
            ),
            "ok"
        );
        std::fs::remove_file(site.path("oracle.sqlite3")).unwrap();
    }
}

/// Bytes of a copy that nobody has open.
fn bytes(copy: &Path) -> u64 {
    assert!(!copy.with_extension("sqlite3-wal").exists());
    std::fs::metadata(copy).unwrap().len()
}

#[test]
fn a_vacuum_makes_the_copy_smaller_and_disturbs_no_reader() {
    let site = Site::new();
    site.sync();
    std::fs::create_dir(site.path("other")).unwrap();
    let copy = site.path("other/copy.sqlite3");
    once(&site, &copy);
    let before = bytes(&copy);
    site.write("delete from t where id > 100");
    site.write("vacuum");
    site.sync();
    // In the middle of a report.
    let mut reader = Command::new("python3")
        .args(["-c", "import sqlite3, sys
c=sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('begin')
print(c.execute('select count(*) from t').fetchone()[0], flush=True)
sys.stdin.readline()
print(c.execute('select count(*), sum(length(a)) from t').fetchone(), c.execute('pragma integrity_check').fetchone()[0])
c.execute('commit')
print(c.execute('select count(*) from t').fetchone()[0], c.execute('pragma integrity_check').fetchone()[0])"])
        .arg(&copy)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(reader.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "3000");
    once(&site, &copy);
    drop(reader.stdin.take());
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut said, &mut rest).unwrap();
    assert!(reader.wait().unwrap().success());
    assert_eq!(rest.trim(), "(3000, 1500000) ok\n100 ok");
    // The last connection, the reader's, has checkpointed.
    let source: u64 = python(
        &site.db,
        "c=conn(); print(c.execute('pragma page_count').fetchone()[0]*c.execute('pragma page_size').fetchone()[0])",
    )
    .parse()
    .unwrap();
    assert!(source * 10 < before, "{source} of {before}");
    assert_eq!(bytes(&copy), source);
    once(&site, &copy);
    assert_same_pages(&settled(&copy), &site.copy_now("oracle.sqlite3"), "vacuum");
}

#[test]
fn from_s3_through_kills_and_a_server_that_is_away() {
    let server = support::s3();
    let mut site = Site::new();
    site.store = "s3://bucket/followed".into();
    site.store_extra = format!(
        "  endpoint: http://{}\n  region: us-east-1\n  access-key-id: {}\n  secret-access-key: {}\n",
        server.address,
        support::S3_ACCESS_KEY,
        support::S3_SECRET_KEY
    );
    python(&site.db, BANK);
    let daemon = site.start();
    site.sync();
    std::fs::create_dir(site.path("other")).unwrap();
    let copy = site.path("other/copy.sqlite3");
    let mut follower = follow(&site, &copy);
    let app = spawn(&site.db, TRANSFERS, "5");
    let reader = spawn(&copy, READER, "6");
    for pause in [1500, 700, 900] {
        std::thread::sleep(Duration::from_millis(pause));
        follower.kill().unwrap();
        follower.wait().unwrap();
        follower = follow(&site, &copy);
    }
    server.pause(Duration::from_secs(2));
    assert!(said(app)[0] > 100);
    let reads = said(reader);
    assert!(reads[0] > 20 && reads[1] > 3, "reads and states: {reads:?}");
    site.sync();
    follower.kill().unwrap();
    follower.wait().unwrap();
    once(&site, &copy);
    assert_same_pages(&settled(&copy), &site.copy_now("oracle.sqlite3"), "S3");
    daemon.stop();
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let site = Site::new();
    site.fails(3, &["follow", "app", "-o", "copy.sqlite3", "--once"]);
    site.sync();
    let copy = site.path("copy.sqlite3");
    let args = ["follow", "app", "-o", copy.to_str().unwrap(), "--once"];
    std::fs::write(&copy, "somebody's").unwrap();
    let error = site.fails(4, &args);
    assert!(error.contains("no copy that `follow` made"), "{error}");
    std::fs::remove_file(&copy).unwrap();
    let own = site.fails(
        4,
        &["follow", "app", "-o", site.db.to_str().unwrap(), "--once"],
    );
    assert!(own.contains("is the database itself"), "{own}");
    once(&site, &copy);
    let mut first = site
        .command(&["follow", "app", "-o", copy.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // Kept: it prints on.
    let mut printed = BufReader::new(first.stdout.take().unwrap());
    printed.read_line(&mut line).unwrap();
    assert!(line.contains("is the database at TXID"), "{line}");
    let error = site.fails(4, &args);
    assert!(error.contains("another process follows"), "{error}");
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&first),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(first.wait_with_output().unwrap().status.success());

    // A stale WAL would be played onto a new copy.
    let left = site.path("another.sqlite3-wal");
    std::fs::write(&left, "left").unwrap();
    let too_often = ["follow", "app", "-o", "c.sqlite3", "--interval"];
    for short in ["0s", "49ms"] {
        let error = site.fails(2, &[&too_often[..], &[short]].concat());
        assert!(error.contains("is below 50ms\nhint:"), "{error}");
    }
    let error = site.fails(4, &["follow", "app", "-o", "another.sqlite3", "--once"]);
    assert!(error.contains("another.sqlite3-wal"), "{error}");

    python(&copy, "c=conn(); c.execute('delete from t where id = 7')");
    let error = site.fails(4, &args);
    assert!(
        error.contains("changed by somebody else") && error.contains("delete"),
        "{error}"
    );
    let rows = "print(conn().execute('select count(*) from t').fetchone()[0])";
    assert_eq!(
        python(&copy, rows),
        "2999",
        "the copy is as that one left it"
    );
}

/// A replica in memory, of real databases.
struct Replica {
    dir: tempfile::TempDir,
    store: Store,
    now: i64,
    /// The last image, and its TXID.
    last: Option<(u64, Image)>,
}

impl Replica {
    fn new() -> Self {
        let root = object_store::path::Path::from("app");
        let store = Store::from_object_store(Kind::Memory, Arc::new(InMemory::new()), root);
        let dir = tempfile::tempdir().unwrap();
        python(
            &dir.path().join("app.db"),
            "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(id integer primary key, a)'); c.executemany('insert into t(a) values(?)', ((os.urandom(700),) for _ in range(50))); c.execute('pragma wal_checkpoint(truncate)')",
        );
        Self {
            dir,
            store,
            now: 1_000,
            last: None,
        }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn copy(&self) -> PathBuf {
        self.dir.path().join("copy.db")
    }

    fn change(&self, sql: &str) -> Image {
        python(
            &self.db(),
            &format!(
                "c=conn(); c.execute({sql:?}); c.execute('pragma wal_checkpoint(truncate)'); c.close()"
            ),
        );
        Image::of_file(&self.db())
    }

    /// Uploads the pages in which `image` differs from the last one.
    async fn put(&mut self, level: u8, min: u64, max: u64, image: &Image, post: Option<u64>) {
        let base = if level == 9 {
            Image::default()
        } else {
            self.last.clone().unwrap().1
        };
        self.now += 1_000;
        let header = ltx::Header {
            page_size: PageSize::new(u32::try_from(image.page_size).unwrap()).unwrap(),
            commit: u32::try_from(image.pages.len()).unwrap(),
            min: Txid::new(min).unwrap(),
            max: Txid::new(max).unwrap(),
            timestamp: Millis(self.now),
            wal_offset: 32,
            wal_size: 0,
            salt: (0, 0),
            lineage: Lineage::new(7),
            pre: None,
            post: DbChecksum::new(post.unwrap_or_else(|| image.checksum())),
            epoch: 1,
        };
        let mut encoder = ltx::Encoder::new(Vec::new(), &header).unwrap();
        for (page, data) in &image.pages {
            if base.pages.get(page) != Some(data) {
                encoder.page(Pgno::new(*page).unwrap(), data).unwrap();
            }
        }
        let bytes: bytes::Bytes = encoder.finish().unwrap().0.into();
        let key = format!("ltx/{level}/{min:016x}-{max:016x}.ltx");
        self.store
            .put(&key, bytes, PutMode::Create, None)
            .await
            .unwrap();
        self.last = Some((max, image.clone()));
    }

    /// Opens the copy and takes every step.
    async fn catch_up(&self) -> Result<Txid, FollowError> {
        let mut follower: Follower =
            follow::open(&self.store, &self.copy(), Millis(self.now)).await?;
        loop {
            let (back, result) = follower.step(&self.store).await;
            follower = back;
            if !result? {
                return Ok(follower.at().txid);
            }
        }
    }

    fn is_same(&self, image: &Image) {
        let copy = Image::of_file(&settled(&self.copy()));
        let wrong: Vec<u32> = copy
            .differing(image)
            .into_iter()
            .filter(|p| *p != 1)
            .collect();
        assert_eq!(wrong, Vec::<u32>::new());
        assert_eq!(copy.pages.len(), image.pages.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rolled_up_and_pruned_history_is_caught_up_with() {
    let mut replica = Replica::new();
    let first = replica.change("delete from t where id = 1");
    replica.put(9, 1, 2, &first, None).await;
    assert_eq!(replica.catch_up().await.unwrap().get(), 2);
    replica.is_same(&first);
    // Captures 3 to 5 exist rolled up only.
    let fifth = replica.change("insert into t(a) select randomblob(900) from t");
    replica.put(1, 3, 5, &fifth, None).await;
    assert_eq!(replica.catch_up().await.unwrap().get(), 5);
    replica.is_same(&fifth);
    // One that begins before the copy's position.
    let seventh = replica.change("delete from t where id > 30");
    replica.last = Some((2, first.clone()));
    replica.put(2, 3, 7, &seventh, None).await;
    assert_eq!(replica.catch_up().await.unwrap().get(), 7);
    replica.is_same(&seventh);
    // Away for hours: everything since is rolled up, in more files than one.
    let eighth = replica.change("insert into t(a) select randomblob(500) from t");
    replica.put(2, 8, 8, &eighth, None).await;
    let tenth = replica.change("update t set a = randomblob(600)");
    replica.put(1, 9, 10, &tenth, None).await;
    let twelfth = replica.change("delete from t where id > 40");
    replica.put(1, 11, 12, &twelfth, None).await;
    assert_eq!(replica.catch_up().await.unwrap().get(), 12);
    replica.is_same(&twelfth);
    // The chain is gone: a new full copy of a smaller file, and a capture on it, in one transaction.
    let small = replica.change("vacuum");
    assert!(small.pages.len() < twelfth.pages.len());
    replica.put(9, 1, 20, &small, None).await;
    let after = replica.change("create table u(a)");
    replica.put(0, 21, 21, &after, None).await;
    assert_eq!(replica.catch_up().await.unwrap().get(), 21);
    replica.is_same(&after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_is_not_what_it_says_is_rolled_back() {
    let mut replica = Replica::new();
    let first = replica.change("delete from t where id = 1");
    replica.put(9, 1, 2, &first, None).await;
    replica.catch_up().await.unwrap();
    let second = replica.change("delete from t where id < 20");
    replica.put(0, 3, 3, &second, Some(4711)).await;
    let error = replica.catch_up().await.unwrap_err();
    assert!(matches!(error, FollowError::Checksum { .. }), "{error}");
    assert_eq!(error.exit_code(), 5);
    replica.is_same(&first);
    // Another history under the same name, shorter than the copy.
    let key = format!("ltx/0/{0:016x}-{0:016x}.ltx", 3);
    replica.store.delete(&key).await.unwrap();
    replica.last = Some((2, first.clone()));
    replica.put(0, 3, 3, &second, None).await;
    assert_eq!(replica.catch_up().await.unwrap().get(), 3);
    replica.store.delete(&key).await.unwrap();
    let error = replica.catch_up().await.unwrap_err();
    assert!(matches!(error, FollowError::Behind { .. }), "{error}");
    replica.is_same(&second);
}
