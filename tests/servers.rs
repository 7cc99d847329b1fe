//! What a real PostgreSQL and a real Redis say of themselves, and what is said when they do not.
#![allow(missing_docs)]

mod common;
mod pg;

use common::redis::Redis;
use pg::site::{Daemon, Site};
use pg::{DATABASE, URL_PASSWORD, wait_for};
use serde_json::Value;

/// A daemon beside both servers, which looks often.
fn site(redis: &Redis, more: &str) -> Site {
    Site::new(&format!(
        "    schedule: '0 3 1 1 *'\nredis:\n  - name: cache\n    url: \"{}\"\n    schedule: '0 3 1 1 *'\ninsight:\n  every: 300ms\n{more}",
        redis.url()
    ))
}

/// The value of the one series with these labels.
fn value(site: &Site, series: &str) -> Option<f64> {
    let text = site.get("/metrics");
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels: Vec<&str> = labels.trim_end_matches('}').split(';').collect();
    let mut found = text.lines().filter(|l| {
        let rest = l.strip_prefix(name);
        rest.is_some_and(|r| r.starts_with(['{', ' ']) && labels.iter().all(|l| r.contains(l)))
    });
    let value = found.next()?.rsplit_once(' ')?.1.parse().ok();
    assert!(found.next().is_none(), "{series} is several\n{text}");
    value
}

fn is(site: &Site, series: &str, wanted: f64) -> bool {
    value(site, series) == Some(wanted)
}

fn service(site: &Site, name: &str) -> Value {
    let status: Value = serde_json::from_str(&site.get("/api/v1/status")).unwrap();
    let all = status["services"].as_array().unwrap();
    all.iter().find(|s| s["name"] == name).unwrap().clone()
}

/// Programs at work on looks, by a word of their command line.
fn programs(daemon: &Daemon, word: &str) -> usize {
    let is = |pid: &u32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains(word)
    };
    pg::children(daemon.pid()).iter().filter(|p| is(p)).count()
}

#[test]
fn both_servers_are_shown_as_their_exporters_show_them() {
    let redis = Redis::start();
    redis.run(&["SET", "a", "1"]);
    redis.run(&["SET", "b", "1", "EX", "1000"]);
    redis.run(&["-n", "3", "SET", "c", "1"]);
    redis.run(&["CONFIG", "SET", "maxmemory", "100mb"]);
    let site = site(&redis, "");
    let server = &site.server;
    server.sql(
        "postgres",
        "SELECT pg_create_physical_replication_slot('standby', true);",
    );
    let daemon = site.start();
    wait_for(|| {
        is(&site, "pg_up{target=\"app\"}", 1.0) && is(&site, "redis_up{target=\"cache\"}", 1.0)
    });
    // As SQL says it.
    let asked = |sql: &str| -> f64 { server.sql(DATABASE, sql).trim().parse().unwrap() };
    let size = asked("SELECT pg_database_size(current_database());");
    let odd = "datname=\"an \\\"odd\\\" 'name'\"";
    let of = |name: &str, more: &str| value(&site, &format!("{name}{{target=\"app\"{more}}}"));
    let shown = of("pg_database_size_bytes", &format!(";{odd}")).unwrap();
    assert!((shown / size - 1.0).abs() < 0.1, "{shown} of {size}");
    assert_eq!(
        of("pg_settings_max_connections", ""),
        Some(asked("SHOW max_connections;"))
    );
    assert!(of("pg_stat_database_numbackends", &format!(";{odd}")).unwrap() >= 1.0);
    assert_eq!(of("pg_replication_is_replica", ""), Some(0.0));
    assert_eq!(
        of("pg_replication_slots_active", ";slot_name=\"standby\""),
        Some(0.0)
    );
    assert!(
        of(
            "pg_replication_slots_pg_wal_lsn_diff",
            ";slot_name=\"standby\""
        )
        .unwrap()
            >= 0.0
    );
    let commits = || of("pg_stat_database_xact_commit", ";datname=\"postgres\"").unwrap();
    let before = commits();
    for _ in 0..20 {
        server.sql("postgres", "SELECT 1;");
    }
    wait_for(|| commits() >= before + 20.0);
    // A transaction that is left open.
    let mut session = common_session(server);
    wait_for(|| {
        let state = format!(";{odd};state=\"idle in transaction\"");
        of("pg_stat_activity_count", &state) == Some(1.0)
            && of("pg_stat_activity_max_tx_duration", &state).is_some_and(|s| s > 0.5)
    });
    session.kill().unwrap();
    session.wait().unwrap();
    // Redis.
    let of = |name: &str, more: &str| value(&site, &format!("{name}{{target=\"cache\"{more}}}"));
    assert_eq!(of("redis_db_keys", ";db=\"db0\""), Some(2.0));
    assert_eq!(of("redis_db_keys_expiring", ";db=\"db0\""), Some(1.0));
    assert_eq!(of("redis_db_keys", ";db=\"db3\""), Some(1.0));
    assert_eq!(of("redis_memory_max_bytes", ""), Some(104_857_600.0));
    assert!(of("redis_memory_used_bytes", "").unwrap() > 100_000.0);
    assert!(of("redis_rdb_last_save_timestamp_seconds", "").unwrap() > 1e9);
    assert!(of("redis_commands_processed_total", "").unwrap() >= 4.0);
    for name in ["app", "cache"] {
        assert_eq!(service(&site, name)["state"], "up");
    }
    assert!(
        !site.get("/metrics").contains("word:1") && !site.get("/metrics").contains(URL_PASSWORD)
    );
    drop(daemon);
}

/// A session of psql that holds a transaction open.
fn common_session(server: &pg::Server) -> std::process::Child {
    use std::io::Write;
    let mut child = std::process::Command::new("psql")
        .args(["-X", "-q", "-d", DATABASE])
        .env("PGHOST", server.folder.path())
        .env("PGPORT", server.port.to_string())
        .env("PGUSER", "boss")
        .env("PGPASSWORD", pg::PASSWORD)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("psql is missing: run bin/install-dev");
    let stdin = child.stdin.as_mut().unwrap();
    stdin.write_all(b"BEGIN; SELECT txid_current();\n").unwrap();
    stdin.flush().unwrap();
    child
}

#[test]
fn a_role_with_few_rights_shows_what_it_may_read() {
    let redis = Redis::start();
    let mut site = site(&redis, "");
    let quoted = DATABASE.replace('"', "\"\"");
    site.server.sql(
        "postgres",
        &format!("CREATE ROLE few LOGIN PASSWORD '{}'; CREATE DATABASE closed; REVOKE CONNECT ON DATABASE closed FROM PUBLIC; GRANT CONNECT ON DATABASE \"{quoted}\" TO few;", pg::PASSWORD),
    );
    site.user = "few".into();
    let daemon = site.start();
    wait_for(|| is(&site, "pg_up{target=\"app\"}", 1.0));
    let text = site.get("/metrics");
    assert!(
        text.contains("pg_stat_database_numbackends{datname=\"closed\""),
        "{text}"
    );
    assert!(
        !text.contains("pg_database_size_bytes{datname=\"closed\""),
        "{text}"
    );
    assert!(
        text.contains("pg_database_size_bytes{datname=\"an"),
        "{text}"
    );
    assert!(!text.contains("pg_stat_activity_count{"), "{text}");
    assert_eq!(service(&site, "app")["state"], "up");
    site.server.sql("postgres", "GRANT pg_monitor TO few;");
    wait_for(|| {
        let text = site.get("/metrics");
        text.contains("pg_stat_activity_count{")
            && text.contains("pg_database_size_bytes{datname=\"closed\"")
    });
    drop(daemon);
}

#[test]
fn servers_that_end_and_come_back() {
    let mut redis = Redis::start();
    let mut site = site(&redis, "");
    let daemon = site.start();
    wait_for(|| {
        is(&site, "pg_up{target=\"app\"}", 1.0) && is(&site, "redis_up{target=\"cache\"}", 1.0)
    });
    site.server.kill();
    redis.kill();
    wait_for(|| {
        is(&site, "pg_up{target=\"app\"}", 0.0) && is(&site, "redis_up{target=\"cache\"}", 0.0)
    });
    let (app, cache) = (service(&site, "app"), service(&site, "cache"));
    assert_eq!(
        (&app["state"], &cache["state"]),
        (&"down".into(), &"down".into())
    );
    assert!(
        app["reasons"].to_string().contains("connection to server"),
        "{app}"
    );
    assert!(
        cache["reasons"].to_string().contains("Could not connect"),
        "{cache}"
    );
    // What is not known any more is not shown as if it were.
    let text = site.get("/metrics");
    assert!(
        !text.contains("pg_database_size_bytes{") && !text.contains("redis_memory_used_bytes{")
    );
    let table = String::from_utf8(site.run(&["status"]).stdout).unwrap();
    assert!(
        table.contains("down") && table.contains("postgres"),
        "{table}"
    );
    site.server.restart();
    redis.restart();
    wait_for(|| {
        is(&site, "pg_up{target=\"app\"}", 1.0) && is(&site, "redis_up{target=\"cache\"}", 1.0)
    });
    assert_eq!(service(&site, "app")["state"], "up");
    let log = std::fs::read_to_string(&daemon.log).unwrap();
    assert_eq!(
        log.matches("the server does not answer").count(),
        2,
        "{log}"
    );
    assert!(
        !log.contains("word:1") && !log.contains(URL_PASSWORD),
        "{log}"
    );
    // Nothing is left running.
    wait_for(|| programs(&daemon, "psql") + programs(&daemon, "INFO") == 0);
}

/// A server that takes connections and answers nothing.
#[test]
fn a_server_that_hangs_is_down_and_leaves_nothing_running() {
    let redis = Redis::start();
    let site = site(&redis, "");
    let daemon = site.start();
    wait_for(|| {
        is(&site, "pg_up{target=\"app\"}", 1.0) && is(&site, "redis_up{target=\"cache\"}", 1.0)
    });
    redis.signal(rustix::process::Signal::STOP);
    wait_for(|| is(&site, "redis_up{target=\"cache\"}", 0.0));
    let said = service(&site, "cache")["reasons"].to_string();
    assert!(said.contains("no answer within 10 s"), "{said}");
    assert!(programs(&daemon, "INFO") <= 1, "looks pile up");
    // It delays no other.
    let asked = || {
        value(
            &site,
            "pg_stat_database_xact_commit{target=\"app\";datname=\"postgres\"}",
        )
    };
    let before = asked();
    site.server.sql("postgres", "SELECT 1;");
    wait_for(|| asked() > before);
    redis.signal(rustix::process::Signal::CONT);
    wait_for(|| is(&site, "redis_up{target=\"cache\"}", 1.0));
}

#[test]
fn either_is_off_by_one_key() {
    let redis = Redis::start();
    let mut site = site(&redis, "  postgres: false\n");
    let daemon = site.start();
    wait_for(|| is(&site, "redis_up{target=\"cache\"}", 1.0));
    assert!(
        !site.get("/metrics").contains("\npg_"),
        "{}",
        site.get("/metrics")
    );
    drop(daemon);
    site.extra = site.extra.replace("postgres: false", "redis: false");
    let daemon = site.start();
    wait_for(|| is(&site, "pg_up{target=\"app\"}", 1.0));
    assert!(
        !site.get("/metrics").contains("\nredis_"),
        "{}",
        site.get("/metrics")
    );
    drop(daemon);
}
