//! Faults in the middle of a dump: whatever happens, no backup is listed that does not restore.
#![allow(missing_docs)]

mod pg;
#[allow(dead_code)] // of its servers, the S3 one
mod support;

use std::process::{Child, Stdio};
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat::postgres::{self, DumpOptions, PostgresError, RestoreOptions, Source};
use lifeboat::store::testing::{Call, Fault, Faults, Faulty};
use lifeboat::store::{Kind, Store, StoreSpec};
use object_store::memory::InMemory;
use pg::site::{Site, words};
use pg::{DATABASE, Server, children, closely, signal, wait_for};
use rustix::process::Signal;

/// More than any pipe holds, and with half of the rows more than one part of an upload. It does not compress.
const BIG: &str = "CREATE TABLE big AS SELECT n AS id, (SELECT string_agg(gen_random_bytes(1000), '') FROM generate_series(1, 30) WHERE n > 0) AS noise
    FROM generate_series(1, 800) n;";
/// The session that `pg_dump` reads the large table with, while nobody takes what it sends.
const BLOCKED: &str = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY public.big %' AND wait_event = 'ClientWrite';";

fn site() -> Site {
    let site = Site::new("    schedule: '0 3 1 1 *'\n");
    site.server.sql(DATABASE, BIG);
    site
}

/// Bytes that a `pg_dump` at work passed on; 0 for every other process.
fn written(pid: u32) -> u64 {
    let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}"));
    if !read("cmdline").is_ok_and(|line| line.contains("pg_dump") && line.contains("-Z0")) {
        return 0;
    }
    let text = read("io").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("wchar: "));
    line.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// A dump that stands still in the middle of the large table, and the server process that serves it.
fn in_the_middle(site: &Site) -> (Child, u32) {
    let child = site
        .command(&["snapshot", "app"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Some of it was passed on, by far not all.
    closely(|| {
        children(child.id())
            .into_iter()
            .any(|pid| written(pid) > 2_000_000)
    });
    signal(child.id(), Signal::STOP);
    let mut backend = None;
    // The pipes fill up; a dump that had ended already never gets here.
    wait_for(|| {
        backend = site.server.sql("postgres", BLOCKED).trim().parse().ok();
        backend.is_some()
    });
    (child, backend.unwrap())
}

/// Lets the dump go on, which must fail.
#[track_caller]
fn fails(site: &Site, child: Child) -> String {
    signal(child.id(), Signal::CONT);
    let out = child.wait_with_output().unwrap();
    let text = words(&out);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(!text.contains("lifeboat: ok"), "{text}");
    assert!(text.contains("pg_dump failed"), "{text}");
    assert_eq!(site.dumps("app").len(), 0);
    site.refused(&["restore", "app", "--into-new", "never"], 3);
    text
}

#[test]
fn a_killed_backend() {
    let site = site();
    let (child, backend) = in_the_middle(&site);
    signal(backend, Signal::KILL);
    // The server ends all its sessions and comes back by itself.
    let text = fails(&site, child);
    assert!(text.contains("connection"), "{text}");
    site.server.answers();
    site.ok(&["snapshot", "app"]);
    site.every_listed_dump_restores(1);
}

#[test]
fn a_killed_server() {
    let mut site = site();
    let (child, _) = in_the_middle(&site);
    site.server.kill();
    fails(&site, child);
    let text = site.refused(&["snapshot", "app"], 1);
    assert!(text.contains("is the server running"), "{text}");
    assert_eq!(site.dumps("app").len(), 0);
    site.server.restart();
    site.ok(&["snapshot", "app"]);
    site.every_listed_dump_restores(1);
}

#[test]
fn a_killed_pg_dump() {
    let site = site();
    let (child, _) = in_the_middle(&site);
    let name = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        text.unwrap_or_default()
    };
    let dumping = children(child.id()).into_iter();
    let dumping: Vec<u32> = dumping
        .filter(|pid| name(pid).trim() == "pg_dump")
        .collect();
    assert_eq!(dumping.len(), 1);
    signal(dumping[0], Signal::KILL);
    let text = fails(&site, child);
    assert!(text.contains("signal: 9"), "{text}");
    site.ok(&["snapshot", "app"]);
    site.every_listed_dump_restores(1);
}

#[test]
fn a_killed_lifeboat() {
    let site = site();
    let (mut child, _) = in_the_middle(&site);
    child.kill().unwrap();
    child.wait().unwrap();
    // Its clients find nobody who reads, and end.
    wait_for(|| site.server.sql("postgres", BLOCKED).is_empty());
    assert_eq!(site.dumps("app").len(), 0);
    site.ok(&["snapshot", "app"]);
    site.every_listed_dump_restores(1);
}

#[test]
fn one_dump_at_a_time_for_each_server() {
    let site = site();
    let start = || {
        let mut command = site.command(&["snapshot", "app"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    };
    let all: Vec<Child> = (0..4).map(|_| start().unwrap()).collect();
    for mut child in all {
        assert!(child.wait().unwrap().success());
    }
    let dumps = site.dumps("app");
    assert_eq!(dumps.len(), 4);
    let time = |dump: &serde_json::Value, key: &str| -> Timestamp {
        dump["dump"][key].as_str().unwrap().parse().unwrap()
    };
    for pair in dumps.windows(2) {
        let (ended, began) = (time(&pair[0], "ended"), time(&pair[1], "began"));
        assert!(ended <= began, "{ended} {began}");
    }
    site.every_listed_dump_restores(4);
}

/// A database whose dump is several parts, and a store in memory that can be told to fail.
struct Steered {
    server: Server,
    original: String,
    store: Store,
    faults: Faults,
}

impl Steered {
    fn new() -> Self {
        let store = Store::from_object_store(Kind::Memory, Arc::new(InMemory::new()), "app".into());
        Self::on(&store)
    }

    fn on(store: &Store) -> Self {
        let server = Server::start();
        server.populated();
        server.sql(DATABASE, &BIG.replace("800", "400"));
        let original = server.fingerprint(DATABASE);
        let mut steering = None;
        let store = store.map_object_store(|inner| {
            let (client, faults) = Faulty::wrap(inner);
            steering = Some(faults);
            client
        });
        let faults = steering.expect("wrapped");
        Self {
            server,
            original,
            store,
            faults,
        }
    }

    async fn dump(&self, stores: &[Store]) -> Result<postgres::Dumped, PostgresError> {
        let connection = self.server.connection().with_database(DATABASE);
        let (clients, options) = (self.server.clients(), DumpOptions::default());
        let now = Timestamp::now();
        postgres::dump(stores, &connection, &clients, &options, None, now).await
    }

    /// Restores whatever is listed; returns how many.
    async fn listed(&self, store: &Store) -> usize {
        self.faults.clear();
        let all = postgres::list(store).await.unwrap();
        for manifest in &all {
            let source = Source {
                store: store.clone(),
                manifest: manifest.clone(),
                runtime: tokio::runtime::Handle::current(),
            };
            let (server, clients) = (self.server.connection(), self.server.clients());
            tokio::task::block_in_place(|| {
                let options = RestoreOptions::default();
                postgres::into_new(&source, &server, &clients, "proof", &options).unwrap();
            });
            assert_eq!(self.server.fingerprint("proof"), self.original);
            self.server.sql("postgres", "DROP DATABASE proof;");
        }
        all.len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_at_any_step() {
    let bench = Steered::new();
    // The second part, the end of the upload, and what is written last: roles and manifest.
    let steps = [
        (Call::Begin, 0),
        (Call::Part, 1),
        (Call::Complete, 0),
        (Call::Put, 0),
        (Call::Put, 1),
    ];
    for (call, skip) in steps {
        for fault in [Fault::Unreachable, Fault::Denied, Fault::NoSpace] {
            bench
                .faults
                .inject(Some(call), skip, u64::MAX, fault.clone());
            let failed = bench.dump(std::slice::from_ref(&bench.store)).await;
            let error = failed.expect_err("the store refused");
            assert!(
                matches!(error, PostgresError::Store(_)),
                "{call:?} {fault:?}: {error}"
            );
            assert_eq!(bench.listed(&bench.store).await, 0, "{call:?} {fault:?}");
        }
    }
    // Another store takes the dump meanwhile.
    let other = Store::from_object_store(Kind::Memory, Arc::new(InMemory::new()), "app".into());
    bench
        .faults
        .inject(Some(Call::Part), 1, u64::MAX, Fault::Denied);
    let both = [bench.store.clone(), other.clone()];
    let dumped = bench.dump(&both).await.unwrap();
    assert!(dumped.stores[0].is_err() && dumped.stores[1].is_ok());
    assert_eq!(bench.listed(&bench.store).await, 0);
    assert_eq!(bench.listed(&other).await, 1);
    // An answer that was lost, at any step: listed or not, but nothing in between.
    for (call, skip) in steps {
        let before = bench.listed(&bench.store).await;
        bench.faults.inject(Some(call), skip, 1, Fault::LostAnswer);
        let result = bench.dump(std::slice::from_ref(&bench.store)).await;
        let after = bench.listed(&bench.store).await;
        assert!(after > before || result.is_err(), "{call:?}");
    }
}

/// A bit that turned between here and the store: each part is proven by the store's own checksum, without reading anything back.
#[tokio::test(flavor = "multi_thread")]
async fn the_stores_own_checksum_is_compared() {
    let server = support::s3();
    let mut spec = StoreSpec::new("s3://bucket/app".parse().unwrap());
    spec.endpoint = Some(format!("http://{}", server.address).parse().unwrap());
    spec.access_key_id = Some(support::S3_ACCESS_KEY.into());
    spec.secret_access_key = Some(support::S3_SECRET_KEY.into());
    spec.region = Some("us-east-1".into());
    let bench = Steered::on(&Store::open(&spec).await.unwrap());
    let here = std::slice::from_ref(&bench.store);
    let read = || bench.store.stats().bytes_in();
    assert!(bench.store.tells_md5("probe").await.unwrap());

    bench.dump(here).await.unwrap();
    assert_eq!(read(), 0, "an equal checksum costs no reading");
    assert_eq!(bench.listed(&bench.store).await, 1);

    for part in 0..2 {
        bench.faults.inject(Some(Call::Part), part, 1, Fault::Flip);
        let error = bench.dump(here).await.expect_err("one bit differs");
        assert!(matches!(error, PostgresError::Damaged { .. }), "{error}");
        assert_eq!(bench.listed(&bench.store).await, 1);
    }

    // Under a KMS key ETags are no MD5: nothing to compare, and nothing is read for it.
    let before = read();
    bench
        .faults
        .inject(Some(Call::Complete), 0, 1, Fault::OtherTag);
    bench
        .faults
        .inject(Some(Call::Put), 0, u64::MAX, Fault::OtherTag);
    bench.dump(here).await.unwrap();
    assert_eq!(read(), before);
    // A store that reckons parts in a way of its own: its content is read, and is right.
    bench.faults.clear();
    bench
        .faults
        .inject(Some(Call::Complete), 0, 1, Fault::OtherTag);
    bench.dump(here).await.unwrap();
    assert!(read() > before, "read back");
    assert_eq!(bench.listed(&bench.store).await, 3);
}
