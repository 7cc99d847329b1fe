//! Solid Queue in PostgreSQL: what is restored was the truth at an earlier moment, and nobody should get yesterday's mail twice.
#![allow(missing_docs)]

mod pg;

use pg::DATABASE;
use pg::site::Site;

/// Solid Queue's tables in a schema of their own, as far as jobs and pauses go, and four jobs: one waits, one is planned, one failed, one is
/// done.
const QUEUE: &str = "CREATE SCHEMA \"Jobs\"; SET search_path TO \"Jobs\";
CREATE TABLE solid_queue_jobs(id bigserial PRIMARY KEY, queue_name varchar NOT NULL, finished_at timestamp(6));
CREATE TABLE solid_queue_pauses(id bigserial PRIMARY KEY, queue_name varchar NOT NULL UNIQUE, created_at timestamp(6) NOT NULL);
CREATE TABLE solid_queue_recurring_tasks(id bigserial PRIMARY KEY, queue_name varchar);
CREATE TABLE solid_queue_ready_executions(id bigserial PRIMARY KEY, job_id bigint REFERENCES solid_queue_jobs ON DELETE CASCADE);
CREATE TABLE solid_queue_scheduled_executions(LIKE solid_queue_ready_executions INCLUDING ALL);
CREATE TABLE solid_queue_failed_executions(LIKE solid_queue_ready_executions INCLUDING ALL);
INSERT INTO solid_queue_jobs(queue_name, finished_at) VALUES ('mailers', NULL), ('mailers', NULL), ('it''s', NULL), ('done', now());
INSERT INTO solid_queue_ready_executions(job_id) VALUES (1); INSERT INTO solid_queue_scheduled_executions(job_id) VALUES (2);
INSERT INTO solid_queue_failed_executions(job_id) VALUES (3); INSERT INTO solid_queue_recurring_tasks(queue_name) VALUES ('nightly'), (NULL);
INSERT INTO solid_queue_pauses(queue_name, created_at) VALUES ('done', now());";

fn ask(site: &Site, sql: &str) -> String {
    let sql = format!("SET search_path TO \"Jobs\"; {sql}");
    site.server.sql(DATABASE, &sql).trim().to_owned()
}

fn paused(site: &Site) -> String {
    let all = "SELECT string_agg(queue_name, ',' ORDER BY queue_name) FROM solid_queue_pauses;";
    ask(site, all)
}

fn jobs(site: &Site) -> String {
    let all = "SELECT string_agg(id::text, ',' ORDER BY id) FROM solid_queue_jobs;";
    ask(site, all)
}

#[test]
fn jobs_in_postgresql_run_wait_or_go() {
    let site = Site::new("    schedule: '0 3 1 1 *'\n");
    site.server.sql(DATABASE, QUEUE);
    site.ok(&["snapshot", "--label", "v1"]);

    // One target: they run, as they did.
    site.ok(&["restore", "app", "--in-place"]);
    assert_eq!(
        (paused(&site), jobs(&site)),
        ("done".into(), "1,2,3,4".into())
    );

    // Everything comes back: they wait, and the restore says so.
    let text = site.ok(&["restore", "--all", "--label", "v1", "--in-place"]);
    assert!(
        text.contains("QUEUES PAUSED: default, it's, mailers, nightly"),
        "{text}"
    );
    assert_eq!(paused(&site), "default,done,it's,mailers,nightly");
    assert_eq!(jobs(&site), "1,2,3,4");
    site.ok(&["restore", "--all", "--undo"]);
    assert_eq!(paused(&site), "done", "what was replaced is as it was");

    // Removed: the failed and the finished one stay.
    let text = site.ok(&["restore", "app", "--in-place", "--queue", "empty"]);
    assert!(text.contains("removed 2 jobs"), "{text}");
    assert_eq!((paused(&site), jobs(&site)), ("done".into(), "3,4".into()));
    site.ok(&["restore", "--all", "--in-place", "--queue", "keep"]);
    assert_eq!(paused(&site), "done");

    // Where it would do nothing it is refused.
    let text = site.refused(&["restore", "app", "-o", "x.pgc", "--queue", "paused"], 2);
    assert!(text.contains("--in-place"), "{text}");

    // A Solid Queue that cannot be paused: nothing is swapped.
    ask(&site, "DROP TABLE solid_queue_pauses;");
    site.ok(&["snapshot", "app"]);
    let text = site.refused(&["restore", "app", "--in-place", "--queue", "paused"], 4);
    assert!(
        text.contains("solid_queue_pauses") && text.contains("--queue keep"),
        "{text}"
    );
    assert_eq!(jobs(&site), "1,2,3,4");
}
