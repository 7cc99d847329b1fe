//! Reading the app's tables beside its backup: it must cost neither the app nor the backup anything.
#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::daemon::{Site, assert_same_pages, wait_for};
use common::{Sidecar, commits, python, traffic};
use lifeboat::sqlite::guard::{Barrier, ReadError, Reader, Rows};

/// More than any of these needs on a machine that is busy.
const BUDGET: Duration = Duration::from_secs(30);

fn rows(s: &mut Sidecar, sql: &str) -> Result<Rows, ReadError> {
    rows_within(s, sql, BUDGET)
}

fn rows_within(s: &mut Sidecar, sql: &str, budget: Duration) -> Result<Rows, ReadError> {
    let sql = sql.to_owned();
    let read = move |reader: Result<&Reader, ReadError>| reader?.rows(&sql, budget);
    let capture = s.capture.as_mut().unwrap();
    capture.inspect(budget, read).unwrap()
}

/// Between any two steps of the protocol the database is read, beside three writers with checkpoints of every kind: no gap, and page for
/// page equal.
#[test]
fn reading_between_all_steps_page_for_page() {
    let mut s = Sidecar::new();
    s.begin();
    let (mut total, mut sealed, mut left, mut captures, mut reads) = (0, 0, 0, 0, 0);
    let read = |s: &mut Sidecar, reads: &mut u32| {
        let found = rows(s, "select count(*), sum(length(a)) from t").unwrap();
        assert!(found[0][0].as_ref().unwrap().parse::<u64>().unwrap() > 0);
        *reads += 1;
    };
    // One round is plenty, but not on a machine whose disk is busy.
    for round in 0..10 {
        let seed = 70 + 3 * round;
        let apps: Vec<_> = (0..3).map(|i| traffic(&s.db, seed + i, 6.0)).collect();
        let end = Instant::now() + Duration::from_secs(7);
        while Instant::now() < end {
            read(&mut s, &mut reads);
            captures += u32::from(s.capture().is_some());
            read(&mut s, &mut reads);
            let on_zero = s.capture.as_ref().unwrap().guard().on_lock_zero();
            left += u32::from(on_zero && s.leave_lock_zero());
            read(&mut s, &mut reads);
            let barrier = s.checkpoint(captures % 20 == 0);
            sealed += u32::from(barrier == Some(Barrier::Sealed));
        }
        total += apps.into_iter().map(commits).sum::<u64>();
        println!("commits {total} captures {captures} sealed {sealed} left {left} reads {reads}");
        if total > 200 && captures > 30 && sealed > 2 && left > 2 && reads > 300 {
            s.assert_equal();
            return;
        }
    }
    panic!("the test exercised nothing");
}

/// What a reading must never do, tried.
#[test]
fn a_reading_writes_nothing_and_ends_in_time() {
    let mut s = Sidecar::new();
    s.begin();
    let refused = rows(&mut s, "delete from t returning id");
    assert!(
        matches!(refused, Err(ReadError::Statement(_))),
        "{refused:?}"
    );
    let missing = rows(&mut s, "select * from nothing_of_that_name");
    assert!(
        matches!(missing, Err(ReadError::Statement(_))),
        "{missing:?}"
    );
    // A checkpoint would move what the guard believes of the WAL.
    let checkpoint = rows(&mut s, "pragma wal_checkpoint(truncate)");
    assert!(
        matches!(checkpoint, Err(ReadError::Statement(_))),
        "{checkpoint:?}"
    );
    let endless =
        "with recursive n(i) as (select 1 union all select i+1 from n) select max(i) from n";
    let begun = Instant::now();
    let given_up = rows_within(&mut s, endless, Duration::from_millis(100));
    assert_eq!(given_up, Err(ReadError::Budget));
    assert!(begun.elapsed() < Duration::from_secs(10), "it never ended");
    // All of it left the connection as it was: what comes is captured and sealed without a gap.
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=randomblob(400)'); os._exit(0)",
    );
    assert!(s.capture().is_some());
    s.leave_lock_zero();
    assert_eq!(s.checkpoint(true), Some(Barrier::Sealed));
    s.assert_equal();
}

/// The real daemon reads as often as it may, beside an app that checkpoints and restarts its WAL.
#[test]
fn a_daemon_that_reads_all_the_time_captures_without_a_gap() {
    let mut site = Site::new().with_http();
    site.store_extra = "insight: { every: 100ms }\n".into();
    let daemon = site.start();
    site.sync();
    let (commits_before, changed) = (
        site.metric("lifeboat_sqlite_commits_total", "app"),
        site.metric("lifeboat_sqlite_changed_pages_total", "app"),
    );
    let app = traffic(&site.db, 11, 5.0);
    let total = commits(app);
    site.sync();
    wait_for(&daemon, "readings", || {
        site.metric("lifeboat_insight_timestamp_seconds", "app") > 0.0
    });
    assert_eq!(site.metric("lifeboat_gap_captures_total", "app"), 0.0);
    assert_eq!(site.metric("lifeboat_capture_errors_total", "app"), 0.0);
    assert_eq!(site.metric("lifeboat_database_up", "app"), 1.0);
    assert!(site.metric("lifeboat_insight_seconds_total", "app") > 0.0);
    let counted = site.metric("lifeboat_sqlite_commits_total", "app") - commits_before;
    // The app counts what it committed by itself; VACUUM and autocommitted statements are commits too.
    assert!(counted >= total as f64 * 0.9, "{counted} of {total}");
    assert!(site.metric("lifeboat_sqlite_changed_pages_total", "app") - changed >= counted);
    let number = |pragma: &str| -> f64 {
        let code = format!("print(conn().execute('pragma {pragma}').fetchone()[0])");
        python(&site.db, &code).parse().unwrap()
    };
    wait_for(&daemon, "the same numbers as SQLite's", || {
        site.metric("lifeboat_sqlite_free_pages", "app") == number("freelist_count")
            && site.metric("lifeboat_sqlite_schema_version", "app") == number("schema_version")
    });
    assert_eq!(
        site.metric("lifeboat_sqlite_page_size_bytes", "app"),
        number("page_size")
    );
    assert_same_pages(
        &site.copy_now("now.db"),
        &site.restore("restored.db", &[]),
        "after traffic with readings",
    );
    // The app's last close finds nobody in its way, and nothing of ours.
    assert_eq!(daemon.stop(), 0);
    python(
        &site.db,
        "c=conn(); c.execute('select 1 from t').fetchone(); c.close()",
    );
    for suffix in ["-wal", "-shm"] {
        let path = format!("{}{suffix}", site.db.display());
        assert!(!std::path::Path::new(&path).exists(), "{path} is left");
    }
}
