//! Retention and uploads against stores that lose answers, lose objects, copy times and ignore conditions.
#![allow(missing_docs)]

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use lifeboat::config::RetentionConfig;
use lifeboat::labels::{self, Label, Pin};
use lifeboat::ltx;
use lifeboat::replica::owner::{self, Owner};
use lifeboat::replica::spool::Spool;
use lifeboat::replica::upload::Replica;
use lifeboat::restore::plan::Catalog;
use lifeboat::retention::{self, PruneError, Refused};
use lifeboat::store::testing::{Call, Fault, Faults, Faulty};
use lifeboat::store::{Kind, PutMode, Store};
use lifeboat::types::{Level, Lineage, Millis, PageSize, Pgno, Span, Txid};
use object_store::memory::InMemory;
use object_store::path::Path;

const NONE: RetentionConfig = RetentionConfig {
    point_in_time: Duration::ZERO,
    hourly: 0,
    daily: 0,
    weekly: 0,
    monthly: 0,
    yearly: 0,
    ..RetentionConfig::plain(Duration::ZERO)
};

fn span(level: u8, min: u64, max: u64) -> Span {
    let t = |n| Txid::new(n).unwrap();
    Span::new(Level::new(level).unwrap(), t(min), t(max)).unwrap()
}

fn file(min: u64, max: u64, at: Millis, fill: u8) -> Vec<u8> {
    let header = ltx::Header {
        page_size: PageSize::new(512).unwrap(),
        commit: 1,
        min: Txid::new(min).unwrap(),
        max: Txid::new(max).unwrap(),
        timestamp: at,
        wal_offset: 32,
        wal_size: 0,
        salt: (0, 0),
        lineage: Lineage::new(7),
        pre: None,
        post: None,
        epoch: 1,
    };
    let mut encoder = ltx::Encoder::new(Vec::new(), &header).unwrap();
    encoder.page(Pgno::FIRST, &[fill; 512]).unwrap();
    encoder.finish().unwrap().0
}

async fn faulty() -> (Store, Faults) {
    let (client, faults) = Faulty::wrap(Arc::new(InMemory::new()));
    let store = Store::from_object_store(Kind::Memory, client, Path::from("app"));
    let owner = Owner::new(Lineage::new(7).unwrap(), "web1", 1, Millis(0));
    owner::write(&store, &owner, PutMode::Overwrite)
        .await
        .unwrap();
    (store, faults)
}

async fn memory() -> Store {
    faulty().await.0
}

async fn put(store: &Store, level: u8, min: u64, max: u64, at: Millis) {
    let span = span(level, min, max);
    let key = lifeboat::replica::layout::Layout::Ltx.key(span);
    store
        .put(&key, file(min, max, at, 1).into(), PutMode::Overwrite, None)
        .await
        .unwrap();
}

async fn open(store: &Store) -> Replica {
    let owner = owner::read(store).await.unwrap().unwrap().unwrap();
    let catalog = Replica::list(store).await.unwrap();
    Replica::open(store.clone(), catalog, owner).await.unwrap()
}

/// A replica that was copied to another bucket: every listed time is that of the copy. Retention must go by when things were captured, or
/// all days look like one.
#[tokio::test]
async fn retention_of_a_copied_replica_goes_by_capture_times() {
    let day = 86_400_000;
    let now = Millis(jiff::Timestamp::now().as_millisecond());
    let store = memory().await;
    put(&store, 9, 1, 1, Millis(now.0 - 40 * day)).await;
    for n in 0..38_u64 {
        let (first, at) = (2 + 2 * n, Millis(now.0 - (39 - n as i64) * day));
        put(&store, 0, first, first, at).await;
        put(&store, 0, first + 1, first + 1, at).await;
        put(&store, 1, first, first + 1, at).await;
    }
    let mut replica = open(&store).await;
    let policy = RetentionConfig { daily: 30, ..NONE };
    let done = retention::run(&mut replica, &policy, &mut retention::Pins::default(), now)
        .await
        .unwrap();
    let left = Replica::list(&store).await.unwrap();
    let points = Catalog::new(left.into_values()).points().len();
    assert!(
        done.objects > 0 && points >= 30,
        "{done:?}, {points} points remain"
    );
    let calls = store.stats().by_word();
    println!("{calls:?}");
}

/// Another program deleted what a kept point needs: what is planned on memory must not delete the rest of what is left.
#[tokio::test]
async fn retention_counts_only_on_what_is_there() {
    let day = 86_400_000;
    let now = Millis(jiff::Timestamp::now().as_millisecond());
    let store = memory().await;
    put(&store, 9, 1, 1, Millis(now.0 - 40 * day)).await;
    put(&store, 0, 2, 2, Millis(now.0 - 39 * day)).await;
    put(&store, 0, 3, 3, Millis(now.0 - 38 * day)).await;
    put(&store, 1, 2, 3, Millis(now.0 - 38 * day)).await;
    put(&store, 0, 4, 4, now).await;
    let mut replica = open(&store).await;
    store.delete(&replica.key(span(1, 2, 3))).await.unwrap();
    retention::run(&mut replica, &NONE, &mut retention::Pins::default(), now)
        .await
        .unwrap();
    let left = Catalog::new(Replica::list(&store).await.unwrap().into_values());
    assert_eq!(
        left.points().last().map(|p| p.txid.get()),
        Some(4),
        "{left:?}"
    );
}

/// Where the store's clock says something else, nothing is deleted.
#[tokio::test]
async fn a_clock_that_is_a_year_ahead_deletes_nothing() {
    let day = 86_400_000;
    let now = Millis(jiff::Timestamp::now().as_millisecond());
    let store = memory().await;
    put(&store, 9, 1, 1, Millis(now.0 - 3 * day)).await;
    for n in 2..30 {
        put(&store, 0, n, n, Millis(now.0 - 2 * day + n as i64)).await;
    }
    put(&store, 1, 2, 29, Millis(now.0 - 2 * day + 29)).await;
    let mut replica = open(&store).await;
    let wrong = Millis(now.0 + 365 * day);
    let result = retention::run(&mut replica, &NONE, &mut retention::Pins::default(), wrong).await;
    assert!(
        matches!(result, Err(PruneError::Refused(Refused::Clock { .. }))),
        "{result:?}"
    );
    assert_eq!(Replica::list(&store).await.unwrap().len(), 30);
    assert!(
        retention::run(&mut replica, &NONE, &mut retention::Pins::default(), now)
            .await
            .unwrap()
            .objects
            > 20
    );
}

/// A database that never changes gets a label with each deploy. They end although no object goes, and that is looked for once a day.
#[tokio::test]
async fn labels_of_a_quiet_replica_end() {
    let day = 86_400_000;
    let now = Millis(jiff::Timestamp::now().as_millisecond());
    let (store, faults) = faulty().await;
    put(&store, 9, 1, 1, now).await;
    let mut replica = open(&store).await;
    let mut pins = retention::Pins::default();
    let label = async |n: i64| {
        let label = Label {
            format: 1,
            label: String::new(),
            at: Millis(now.0 - day + n).to_string(),
            pin: Pin::sqlite(Txid::FIRST),
            version: None,
            instance: "web1".into(),
            set: None,
            written: None,
        };
        labels::create(&format!("l{n:02}"), &[(&store, label)])
            .await
            .unwrap();
    };
    for n in 0..20 {
        label(n).await;
    }
    let run = async |replica: &mut Replica, pins: &mut retention::Pins, now| {
        retention::run(replica, &NONE, pins, now).await.unwrap()
    };
    let done = run(&mut replica, &mut pins, now).await;
    assert_eq!((done.objects, done.labels), (0, 0));
    for n in 20..23 {
        label(n).await;
    }
    let before = faults.calls().len();
    run(&mut replica, &mut pins, Millis(now.0 + 1000)).await;
    assert_eq!(faults.calls().len(), before, "a quiet hour");
    // The next look, as by hand.
    let done = run(&mut replica, &mut retention::Pins::default(), now).await;
    assert_eq!((done.objects, done.labels), (0, 3));
    let left = labels::list(&store).await.unwrap();
    assert_eq!((left.len(), left[0].label.as_str()), (20, "l03"));
    assert_eq!(Replica::list(&store).await.unwrap().len(), 1);
}

/// The answer to a large upload is lost: what is there is compared piece by piece and accepted; other content is not.
#[tokio::test]
async fn a_lost_answer_is_recognised_and_another_writer_too() {
    let (store, faults) = faulty().await;
    put(&store, 9, 1, 1, Millis(1)).await;
    let mut replica = open(&store).await;
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path()).unwrap();
    let keep = |n: u64, fill: u8| {
        let mut draft = spool.draft(span(0, n, n)).unwrap();
        draft
            .file()
            .write_all(&file(n, n, Millis(2), fill))
            .unwrap();
        spool.keep(draft, Millis(2)).unwrap();
    };
    keep(2, 7);
    faults.inject(Some(Call::Put), 0, 1, Fault::LostAnswer);
    assert!(replica.send(&spool, span(0, 2, 2)).await.is_err());
    replica.send(&spool, span(0, 2, 2)).await.unwrap();
    assert_eq!(replica.durable(), Txid::new(2));
    keep(3, 7);
    store
        .put(
            &replica.key(span(0, 3, 3)),
            file(3, 3, Millis(2), 8).into(),
            PutMode::Create,
            None,
        )
        .await
        .unwrap();
    let error = replica.send(&spool, span(0, 3, 3)).await.unwrap_err();
    assert!(error.to_string().contains("other content"), "{error}");
    assert_eq!(replica.durable(), Txid::new(2));
}

/// A store that ignores conditional creates: two writers of one epoch (a copied disk) still do not overwrite each other silently.
#[tokio::test]
async fn two_writers_of_one_epoch_where_conditions_are_ignored() {
    let (store, faults) = faulty().await;
    faults.inject(Some(Call::Put), 0, u64::MAX, Fault::IgnoreCondition);
    put(&store, 9, 1, 1, Millis(1)).await;
    let mut replica = open(&store).await;
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path()).unwrap();
    let mut draft = spool.draft(span(0, 2, 2)).unwrap();
    draft.file().write_all(&file(2, 2, Millis(2), 7)).unwrap();
    spool.keep(draft, Millis(2)).unwrap();
    let theirs = file(2, 2, Millis(2), 8);
    store
        .put(
            &replica.key(span(0, 2, 2)),
            theirs.clone().into(),
            PutMode::Overwrite,
            None,
        )
        .await
        .unwrap();
    let error = replica.send(&spool, span(0, 2, 2)).await.unwrap_err();
    assert!(error.to_string().contains("other content"), "{error}");
    assert_eq!(
        store.get(&replica.key(span(0, 2, 2))).await.unwrap(),
        theirs
    );
}

/// A base of the same TXID is taken for ours only if it leaves the same database.
#[tokio::test]
async fn another_base_of_the_same_txid_is_not_ours() {
    let store = memory().await;
    let with_checksum = |sum: u64, at: i64| {
        let bytes = file(1, 5, Millis(at), 1);
        let mut header = ltx::Header::decode(&bytes).unwrap();
        header.post = lifeboat::types::DbChecksum::new(sum);
        let mut encoder = ltx::Encoder::new(Vec::new(), &header).unwrap();
        encoder.page(Pgno::FIRST, &[1; 512]).unwrap();
        (header, encoder.finish().unwrap().0)
    };
    let replica = open(&store).await;
    let base = span(9, 1, 5);
    let (ours, bytes) = with_checksum(77, 10);
    assert_eq!(replica.base_is_there(&ours, base).await.unwrap(), None);
    let size = bytes.len() as u64;
    let key = replica.key(base);
    store
        .put(&key, bytes.into(), PutMode::Create, None)
        .await
        .unwrap();
    // Streamed again later: only its time differs.
    let (again, _) = with_checksum(77, 20);
    let found = replica.base_is_there(&again, base).await.unwrap().unwrap();
    assert_eq!((found.size, found.created), (size, Millis(10)));
    let (other, _) = with_checksum(78, 10);
    let error = replica.base_is_there(&other, base).await.unwrap_err();
    assert!(error.to_string().contains("other content"), "{error}");
}

/// A listing made before a delete shows what another writer sent: that must not pass for ours.
#[tokio::test]
async fn what_a_new_listing_shows_is_not_ours() {
    let store = memory().await;
    put(&store, 9, 1, 1, Millis(1)).await;
    let mut replica = open(&store).await;
    put(&store, 0, 2, 2, Millis(2)).await;
    assert_eq!(replica.stranger(), None);
    replica.refresh().await.unwrap();
    assert_eq!(replica.stranger(), Txid::new(2));
}
