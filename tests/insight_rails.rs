//! Solid Queue, Solid Cache and Solid Cable, in tables as Rails 8 makes them.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::daemon::{Site, assert_same_pages, wait_for};
use common::solid::{app, make};
use common::{Sidecar, python, traffic};
use lifeboat::insight::solid::{self, Question};
use lifeboat::observe::insight::{AppFacts, Jobs};
use lifeboat::sqlite::guard::{ReadError, Reader};
use serde_json::Value;

const BUDGET: Duration = Duration::from_secs(30);

fn site(insight: &str) -> Site {
    let mut site = Site::new().with_http();
    site.store_extra = format!("insight: {{ every: 100ms, {insight} }}\n");
    site
}

fn up(site: &Site) -> Value {
    serde_json::from_str(&site.get("/up")).unwrap_or_default()
}

#[test]
fn what_a_rails_app_keeps_in_sqlite_is_in_the_metrics() {
    let site = site("max-queue-wait: 1h");
    let daemon = site.start();
    site.sync();
    assert_eq!(up(&site)["queue"], "none", "there are no such tables yet");
    make(&site.db);
    app(
        &site.db,
        "
for i in range(7): job('default','ready',30-i)
for i in range(2): job('mailers','ready',300)
pause('mailers')
for i in range(3): job('default','scheduled',-3600)
for i in range(4): job('reports','claimed')
for i in range(5): job('reports','failed')
job('reports','blocked')
beat('Worker'); beat('Worker',5); beat('Worker',4000); beat('Dispatcher'); beat('Supervisor(fork)')
entries(50,1000); messages(20)",
    );
    let jobs = |queue: &str, state: &str| {
        let labels = format!("queue=\"{queue}\",state=\"{state}\"");
        site.metric("lifeboat_queue_jobs", &labels)
    };
    wait_for(&daemon, "the queue", || jobs("default", "ready") == 7.0);
    let counts = [
        ("mailers", "ready", 2.0),
        ("default", "scheduled", 3.0),
        ("reports", "claimed", 4.0),
        ("reports", "failed", 5.0),
        ("reports", "blocked", 1.0),
        ("reports", "ready", 0.0),
    ];
    for (queue, state, count) in counts {
        assert_eq!(jobs(queue, state), count, "{queue} {state}");
    }
    let processes =
        |kind: &str| site.metric("lifeboat_queue_processes", &format!("kind=\"{kind}\""));
    assert_eq!((processes("Worker"), processes("Dispatcher")), (2.0, 1.0));
    assert_eq!(processes("Supervisor(fork)"), 1.0);
    assert_eq!(site.metric("lifeboat_queue_paused", "mailers"), 1.0);
    // The paused queue's job is older.
    let waited = site.metric("lifeboat_queue_oldest_ready_seconds", "app");
    assert!((29.0..200.0).contains(&waited), "{waited}");
    let due = site.metric("lifeboat_queue_next_scheduled_timestamp_seconds", "app");
    let now = jiff::Timestamp::now().as_second() as f64;
    assert!(
        (now + 3_000.0..now + 3_700.0).contains(&due),
        "{due} at {now}"
    );
    assert_eq!(site.metric("lifeboat_queue_overdue_seconds", "app"), 0.0);
    assert_eq!(site.metric("lifeboat_queue_stuck", "app"), 0.0);
    assert_eq!(site.metric("lifeboat_cache_entries", "app"), 50.0);
    let bytes = site.metric("lifeboat_cache_bytes", "app");
    assert!((50.0 * 1140.0..50.0 * 1160.0).contains(&bytes), "{bytes}");
    assert_eq!(site.metric("lifeboat_cable_messages", "app"), 20.0);
    for oldest in [
        "lifeboat_cache_oldest_timestamp_seconds",
        "lifeboat_cable_oldest_timestamp_seconds",
    ] {
        let at = site.metric(oldest, "app");
        assert!((now - 300.0..now + 60.0).contains(&at), "{oldest}: {at}");
    }
    let up = up(&site);
    assert_eq!(
        (&up["database"], &up["queue"], &up["cache"]),
        (&"ok".into(), &"ok".into(), &"ok".into()),
        "{up}"
    );
    assert_eq!(up["targets"][0]["backup"]["safe"], true, "{up}");
    assert_eq!(site.metric("lifeboat_insight_given_up_total", "app"), 0.0);
}

#[test]
fn each_part_is_off_by_one_key() {
    for (off, there, gone) in [
        (
            "sqlite: false",
            "lifeboat_queue_jobs",
            "lifeboat_sqlite_free_pages",
        ),
        (
            "rails: false",
            "lifeboat_sqlite_free_pages",
            "lifeboat_queue_jobs",
        ),
    ] {
        let site = site(off);
        make(&site.db);
        app(&site.db, "job('default','ready')");
        let daemon = site.start();
        wait_for(&daemon, there, || site.get("/metrics").contains(there));
        assert!(!site.get("/metrics").contains(gone), "{off}");
    }
    let mut site = Site::new().with_http();
    site.store_extra = "insight: off\n".into();
    let daemon = site.start();
    site.sync();
    wait_for(&daemon, "a database that capture can read", || {
        up(&site)["database"] == "ok"
    });
    let text = site.get("/metrics");
    assert!(!text.contains("lifeboat_insight") && !text.contains("node_"));
    assert!(text.contains("lifeboat_volume_free_bytes"), "{text}");
}

/// A table of the app that only has the name costs the app's database nothing: it is well, and what could not be asked is counted.
#[test]
fn other_tables_of_these_names_are_no_fault() {
    let site = site("");
    python(
        &site.db,
        "c=conn(); c.execute('create table solid_queue_ready_executions(id integer primary key, mine)')
c.execute('create view solid_cable_messages as select a as created_at, a as id from t'); os._exit(0)",
    );
    let daemon = site.start();
    wait_for(&daemon, "questions without an answer", || {
        site.metric("lifeboat_insight_given_up_total", "app") > 0.0
    });
    assert_eq!(site.metric("lifeboat_database_up", "app"), 1.0);
    assert_eq!(site.metric("lifeboat_capture_errors_total", "app"), 0.0);
    assert!(
        !site.get("/metrics").contains("lifeboat_cable_messages"),
        "a view is not read"
    );
    site.sync();
}

fn ask(s: &mut Sidecar) -> AppFacts {
    let read = |reader: Result<&Reader, ReadError>| -> Result<AppFacts, ReadError> {
        let mut facts = AppFacts::default();
        let tables: BTreeSet<String> = solid::TABLES.map(str::to_owned).into();
        let reader = reader?;
        solid::read(&mut facts, &tables, |question| {
            reader.rows(question.sql(), BUDGET).map(Some)
        })?;
        Ok(facts)
    };
    let capture = s.capture.as_mut().unwrap();
    capture.inspect(BUDGET, read).unwrap().unwrap()
}

/// Of many entries a part is read, and stands for all of them.
#[test]
fn a_large_cache_is_estimated_and_large_queues_are_bounded() {
    let mut s = Sidecar::new();
    make(&s.db);
    app(
        &s.db,
        "entries(40000,20); messages(15000)
for i in range(15000): job('bulk','scheduled',-60)
for i in range(300): job('q%d' % i,'ready',5)",
    );
    s.begin();
    let facts = ask(&mut s);
    let (cache, cable, queue) = (
        facts.cache.unwrap(),
        facts.cable.unwrap(),
        facts.queue.unwrap(),
    );
    let near = |found: u64, real: f64| (found as f64 - real).abs() < real * 0.05;
    assert!(near(cache.entries.unwrap(), 40_000.0), "{cache:?}");
    assert!(near(cache.bytes.unwrap(), 40_000.0 * 171.0), "{cache:?}");
    assert_eq!(cable.messages, 15_000);
    assert_eq!(queue.queues["bulk"][&Jobs::Scheduled], solid::COUNTED);
    let ready: u64 = queue
        .queues
        .values()
        .filter_map(|q| q.get(&Jobs::Ready))
        .sum();
    assert_eq!(ready, 300, "what is not named is in the sum");
    assert!(queue.queues.len() <= 41, "{}", queue.queues.len());
}

/// SQLite's own count of its steps: but for ready jobs, which are counted, ten times the rows cost no more.
#[test]
fn no_question_reads_a_whole_table() {
    let steps = |rows: u32| -> Vec<(Question, i32)> {
        let s = Sidecar::new();
        make(&s.db);
        app(
            &s.db,
            &format!(
                "
for state in ('ready','scheduled','blocked','claimed','failed'):
    for i in range({rows}): job('q%d' % (i%3), state, 10)
entries({rows},10); messages({rows}); beat('Worker')"
            ),
        );
        let conn = rusqlite::Connection::open(&s.db).unwrap();
        let all = Question::ALL.into_iter();
        all.map(|question| {
            let mut statement = conn.prepare(question.sql()).unwrap();
            let mut rows = statement.query([]).unwrap();
            while rows.next().unwrap().is_some() {}
            drop(rows);
            let steps = statement.get_status(rusqlite::StatementStatus::VmStep);
            let sorted = statement.get_status(rusqlite::StatementStatus::Sort);
            // Groups may be sorted by their count, never a table by its rows.
            assert!(sorted <= 2, "{question:?} sorts {sorted} times");
            (question, steps)
        })
        .collect()
    };
    let (some, many) = (steps(11_000), steps(22_000));
    for ((question, some), (_, many)) in some.into_iter().zip(many) {
        println!("{question:?}: {some} and {many} steps");
        if question == Question::Count(Jobs::Ready) {
            continue;
        }
        assert!(
            many < some + some / 10 + 1_000,
            "{question:?}: {some}, {many}"
        );
    }
}

/// The database is let go of, replaced and taken away again and again while it is read all the time.
#[test]
fn released_replaced_and_vanished_while_it_is_read() {
    let site = site("");
    make(&site.db);
    app(&site.db, "job('default','ready')");
    let daemon = site.start();
    site.sync();
    for round in 0..4 {
        let app = traffic(&site.db, 40 + round, 1.0);
        common::commits(app);
        site.sync();
        // In place: let go of, replaced, attached again.
        site.ok(&["restore", "app", "--in-place"]);
        site.write("update t set a='after the restore' where id=1");
        site.sync();
        assert_same_pages(
            &site.copy_now("now.db"),
            &site.restore("restored.db", &[]),
            &format!("round {round}"),
        );
    }
    // Taken away, and another one put there.
    let other = site.copy_now("other.db");
    for suffix in ["", "-wal", "-shm"] {
        // Not all of them need be there.
        let _ = std::fs::remove_file(format!("{}{suffix}", site.db.display()));
    }
    wait_for(&daemon, "a database that is gone", || {
        site.metric("lifeboat_database_up", "app") == 0.0 && up(&site)["database"] == "failed"
    });
    assert_eq!(
        site.metric("lifeboat_queue_stuck", "app"),
        0.0,
        "it is gone, not stuck"
    );
    python(
        &other,
        "c=conn(); c.execute('pragma journal_mode=wal'); c.execute(\"update t set a='another' where id=2\"); c.close()",
    );
    std::fs::rename(&other, &site.db).unwrap();
    wait_for(&daemon, "the other one", || up(&site)["database"] == "ok");
    site.sync();
    assert_same_pages(
        &site.copy_now("now.db"),
        &site.restore("restored.db", &[]),
        "after all of it",
    );
    assert_eq!(daemon.stop(), 0);
}

/// The app's WAL is reset as if nobody read.
#[test]
fn the_wal_stays_small_while_it_is_read() {
    let site = site("");
    make(&site.db);
    app(&site.db, "entries(3000,200); messages(3000)");
    let daemon = site.start();
    site.sync();
    let wal = format!("{}-wal", site.db.display());
    let sizes = python(
        &site.db,
        &format!(
            "c=conn(); c.execute('pragma synchronous=normal'); top=0; written=0
for i in range(300):
    c.execute('update t set a=randomblob(500) where id between ? and ?',(i%20*100,i%20*100+400)); written+=60
    top=max(top,os.path.getsize({wal:?})); time.sleep(.03)
print(top); os._exit(0)"
        ),
    );
    let top: u64 = sizes.parse().unwrap();
    let looks = site.metric("lifeboat_insight_seconds_total", "app");
    println!("the WAL grew to {top} bytes; looks took {looks} s");
    // Some 75 MB were written.
    assert!(top < 24 << 20, "{top} bytes");
    site.sync();
    assert_eq!(site.metric("lifeboat_gap_captures_total", "app"), 0.0);
    assert_eq!(daemon.stop(), 0);
}
