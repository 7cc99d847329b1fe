//! Capture, snapshot and restore, each with the work of `cp` beside it: `cargo bench`. Side by side with Litestream: `bin/bench`.
#![allow(missing_docs)]

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lifeboat::replica::spool::Spool;
use lifeboat::restore::apply;
use lifeboat::sqlite::capture::{Capture, Identity, Outcome, write_base};
use lifeboat::sqlite::guard::Guard;
use lifeboat::types::{Entry, Level, Lineage, Millis, Span, Txid};
use rusqlite::Connection;

const IDENTITY: Identity = Identity {
    lineage: Lineage::new(0xbe).unwrap(),
    epoch: 1,
};
const PAGE_BYTES: u64 = 4096;
const DATABASE_PAGES: u64 = 16 << 10;
const COMMIT_PAGES: u64 = 100;

/// A database of 64 MiB, half of it random, and an app's connection to it.
fn database(path: &Path) -> Connection {
    let app = Connection::open(path).unwrap();
    app.execute_batch(&format!(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, a);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < {DATABASE_PAGES})
         INSERT INTO t SELECT i, randomblob(1900)||zeroblob(1900) FROM n;
         PRAGMA wal_checkpoint(TRUNCATE);"
    ))
    .unwrap();
    app
}

fn begin(path: &Path, folder: &Path) -> (Capture, Arc<Spool>) {
    let spool = Arc::new(Spool::open(&folder.join("ltx")).unwrap());
    let (guard, _) = Guard::attach(path, true).unwrap();
    let table = folder.join("pages");
    let (capture, _) = Capture::begin(guard, &table, &spool, IDENTITY, Millis(1)).unwrap();
    (capture, spool)
}

fn capture(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let app = database(&path);
    let (mut capture, spool) = begin(&path, dir.path());
    let mut group = c.benchmark_group("capture");
    group.throughput(Throughput::Bytes(COMMIT_PAGES * PAGE_BYTES));
    let mut at = 0;
    group.bench_function("a commit of 100 pages, durable locally", |b| {
        b.iter_batched(
            || {
                at += 1;
                let first = at * COMMIT_PAGES % (DATABASE_PAGES - COMMIT_PAGES);
                app.execute(
                    "UPDATE t SET a=randomblob(1900)||zeroblob(1900) WHERE id BETWEEN ?1 AND ?2",
                    [first, first + COMMIT_PAGES - 1].map(u64::cast_signed),
                )
                .unwrap();
                at
            },
            |at| {
                let now = Millis(i64::try_from(at).unwrap());
                let outcome = capture.capture(&spool, now).unwrap();
                let Outcome::Captured(captured) = outcome else {
                    panic!("nothing was captured");
                };
                // As roll-up does, so that the folder stays small.
                spool.remove(captured.entry.span).unwrap();
                capture.checkpoint(&spool, now, false).unwrap();
            },
            BatchSize::PerIteration,
        );
    });
}

fn snapshot_and_restore(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let _app = database(&path);
    let (mut capture, spool) = begin(&path, dir.path());
    let mut group = c.benchmark_group("64 MiB");
    group.throughput(Throughput::Bytes(std::fs::metadata(&path).unwrap().len()));
    group.sample_size(10);
    group.bench_function("snapshot", |b| {
        b.iter(|| {
            let (view, _) = capture.view(&spool, Millis(1)).unwrap();
            write_base(&view, &capture.base_header(Millis(1)), std::io::sink()).unwrap();
        });
    });

    let base = dir.path().join("base.ltx");
    let (view, _) = capture.view(&spool, Millis(1)).unwrap();
    let header = capture.base_header(Millis(1));
    write_base(&view, &header, File::create(&base).unwrap()).unwrap();
    let entry = Entry {
        span: Span::new(Level::SNAPSHOT, Txid::FIRST, header.max).unwrap(),
        size: std::fs::metadata(&base).unwrap().len(),
        created: Millis(1),
    };
    let out = tempfile::tempfile_in(dir.path()).unwrap();
    group.bench_function("restore, with its checksum", |b| {
        b.iter(|| {
            let open = |_: &Entry| File::open(&base);
            let applied = apply::to_file(&[entry], open, &out, &|_| {}).unwrap();
            let (size, commit) = (applied.last.page_size, applied.last.commit);
            assert_eq!(
                Some(apply::checksum(&out, size, commit).unwrap()),
                applied.expected
            );
        });
    });
    group.bench_function("cp, for comparison", |b| {
        b.iter(|| {
            let (mut from, mut to) = (File::open(&path).unwrap(), &out);
            to.seek(SeekFrom::Start(0)).unwrap();
            std::io::copy(&mut from, &mut to).unwrap();
        });
    });
}

criterion_group!(benches, capture, snapshot_and_restore);
criterion_main!(benches);
