//! Solid Queue, Cache and Cable in a real PostgreSQL.
#![allow(missing_docs)]

mod common;
mod pg;

use pg::site::Site;
use pg::{DATABASE, wait_for};

/// Sum of a metric over its series whose labels contain `labels`.
fn sum(site: &Site, name: &str, labels: &[&str]) -> f64 {
    let text = site.get("/metrics");
    let mine = text.lines().filter(|l| {
        let rest = l.strip_prefix(name);
        rest.is_some_and(|r| r.starts_with('{') && labels.iter().all(|l| r.contains(l)))
    });
    let values = mine.map(|l| l.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap());
    values.sum()
}

const JOBS: &str = "
INSERT INTO solid_queue_jobs(queue_name, class_name, created_at, updated_at)
  SELECT CASE WHEN n % 3 = 0 THEN 'mailers' ELSE 'default' END, 'ReportJob', now() AT TIME ZONE 'utc', now() AT TIME ZONE 'utc' FROM generate_series(1, 30) n;
INSERT INTO solid_queue_ready_executions(job_id, queue_name, created_at)
  SELECT id, queue_name, now() AT TIME ZONE 'utc' - interval '20 minutes' FROM solid_queue_jobs WHERE id <= 12;
INSERT INTO solid_queue_failed_executions(job_id, created_at) SELECT id, now() FROM solid_queue_jobs WHERE id BETWEEN 13 AND 15;
INSERT INTO solid_queue_processes(kind, last_heartbeat_at, pid, created_at, name)
  VALUES ('Worker', now() AT TIME ZONE 'utc', 1, now(), 'w'), ('Dispatcher', now() AT TIME ZONE 'utc', 2, now(), 'd');
INSERT INTO solid_cache_entries(key, value, created_at, key_hash, byte_size)
  SELECT 'k', 'v', now() AT TIME ZONE 'utc', n * 1000, 100 FROM generate_series(1, 7) n;
INSERT INTO solid_cable_messages(channel, payload, created_at, channel_hash) SELECT 'r', 'p', now() AT TIME ZONE 'utc', 7 FROM generate_series(1, 4);
";

#[test]
fn queue_cache_and_cable_are_read_where_they_are() {
    let mut site = Site::new("    schedule: '0 3 1 1 *'\ninsight:\n  every: 300ms\n");
    site.server.sql(DATABASE, &common::solid::postgres());
    site.server.sql(DATABASE, JOBS);
    let daemon = site.start();
    wait_for(|| sum(&site, "lifeboat_queue_jobs", &["state=\"ready\""]) == 12.0);
    let jobs = |queue: &str, state: &str| {
        let (queue, state) = (format!("queue=\"{queue}\""), format!("state=\"{state}\""));
        sum(
            &site,
            "lifeboat_queue_jobs",
            &["target=\"app\"", &queue, &state],
        )
    };
    assert_eq!(
        (jobs("default", "ready"), jobs("mailers", "ready")),
        (8.0, 4.0)
    );
    assert_eq!(
        (jobs("default", "failed"), jobs("mailers", "failed")),
        (2.0, 1.0)
    );
    let waits = sum(&site, "lifeboat_queue_oldest_ready_seconds", &["app"]);
    assert!((1_190.0..1_400.0).contains(&waits), "{waits}");
    assert_eq!(
        sum(&site, "lifeboat_queue_processes", &["kind=\"Worker\""]),
        1.0
    );
    assert_eq!(sum(&site, "lifeboat_cache_entries", &["app"]), 7.0);
    assert_eq!(sum(&site, "lifeboat_cache_bytes", &["app"]), 700.0);
    assert_eq!(sum(&site, "lifeboat_cable_messages", &["app"]), 4.0);
    // A job that waits for twenty minutes although a worker lives.
    assert!(
        site.get("/up").contains("\"queue\":\"stuck\""),
        "{}",
        site.get("/up")
    );
    // A table that may not be read has no value, and the rest has.
    site.server.sql(
        DATABASE,
        &format!("CREATE ROLE few LOGIN PASSWORD '{}'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO few; REVOKE ALL ON solid_cache_entries FROM few;", pg::PASSWORD),
    );
    drop(daemon);
    site.user = "few".into();
    let daemon = site.start();
    wait_for(|| sum(&site, "lifeboat_queue_jobs", &["state=\"ready\""]) == 12.0);
    assert_eq!(sum(&site, "lifeboat_cable_messages", &["app"]), 4.0);
    let text = site.get("/metrics");
    assert!(!text.contains("lifeboat_cache_entries{"), "{text}");
    assert!(sum(&site, "lifeboat_insight_given_up_total", &["app"]) >= 1.0);
    drop(daemon);
}

/// Rails' four databases on one server, each read where it is, in one run.
#[test]
fn every_dumped_database_is_looked_into() {
    let site = Site::new("    databases: all\n    schedule: '@daily'\ninsight:\n  every: 300ms\n");
    for database in ["shop_queue", "shop_cache"] {
        site.server
            .sql("postgres", &format!("CREATE DATABASE {database};"));
    }
    site.server.sql("shop_queue", &common::solid::postgres());
    site.server.sql("shop_queue", JOBS);
    site.server.sql("postgres", "CREATE DATABASE locked;");
    let _daemon = site.start();
    wait_for(|| {
        sum(
            &site,
            "lifeboat_queue_jobs",
            &["target=\"app/shop_queue\"", "state=\"ready\""],
        ) == 12.0
    });
    let text = site.get("/metrics");
    assert!(
        !text.contains(
            "lifeboat_queue_jobs{queue=\"default\",state=\"ready\",target=\"app/shop_cache\""
        ),
        "{text}"
    );
    // A single look may fail where the machine is so busy that its questions run into their own time limits.
    wait_for(|| sum(&site, "lifeboat_database_up", &["app/shop_cache"]) == 1.0);
    // One that takes no connections any more: the others are read all the same.
    site.server.sql(
        "postgres",
        "ALTER DATABASE shop_cache ALLOW_CONNECTIONS false;",
    );
    wait_for(|| {
        let text = site.get("/metrics");
        text.contains("lifeboat_database_up{target=\"app/shop_cache\"} 0")
    });
    wait_for(|| sum(&site, "lifeboat_database_up", &["app/shop_queue"]) == 1.0);
    wait_for(|| sum(&site, "pg_up", &["app"]) == 1.0);
    let before = sum(
        &site,
        "lifeboat_insight_timestamp_seconds",
        &["app/shop_queue"],
    );
    wait_for(|| {
        sum(
            &site,
            "lifeboat_insight_timestamp_seconds",
            &["app/shop_queue"],
        ) > before
    });
}
