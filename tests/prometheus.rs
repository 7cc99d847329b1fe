//! Metrics, rules and dashboard against a real Prometheus that scrapes a running Lifeboat with traffic.
#![allow(missing_docs)]

mod common;
mod pg;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use common::daemon::{Site, take_away, wait_for};
use common::prometheus::{Prometheus, project};
use common::redis::Redis;
use common::tls::{TlsServer, certificates};
use common::{commits, traffic};

fn promtool(args: &[&str]) {
    let out = Command::new("promtool")
        .args(args)
        .current_dir(project("config/prometheus"))
        .output()
        .expect("promtool is missing: run bin/install-dev");
    let said = String::from_utf8_lossy(&out.stdout);
    let erred = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}\n{said}\n{erred}");
}

/// Values of every line `key: value` of a YAML file that is written one key a line.
fn values(file: &str, key: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(project(file)).unwrap();
    let mine = text
        .lines()
        .filter_map(|l| l.split_once(key).map(|(_, v)| v));
    mine.map(|v| v.trim().trim_matches('"').to_owned())
        .collect()
}

#[test]
fn rules_fire_on_their_faults_and_are_silent_otherwise() {
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
    let alerts = values("config/prometheus/alerts.yml", "- alert:");
    assert!(alerts.len() > 20, "{alerts:?}");
    let named = values("config/prometheus/alerts_test.yml", "- name:");
    for alert in alerts {
        for end in [": well", ""] {
            let case = named.iter().any(|n| {
                n.starts_with(&format!("{alert}:")) && n.ends_with(end) == n.ends_with(": well")
            });
            assert!(case, "no case of {alert}{end}");
        }
    }
}

/// Expressions of the dashboard, as Grafana sends them with everything chosen.
fn dashboard() -> Vec<String> {
    let text = std::fs::read_to_string(project("dashboards/lifeboat.json")).unwrap();
    let board: Value = serde_json::from_str(&text).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let queries = panels.flat_map(|p| p["targets"].as_array().cloned().unwrap_or_default());
    queries
        .map(|q| q["expr"].as_str().unwrap().replace("$target", ".*"))
        .collect()
}

/// Names of metrics in an expression.
fn metrics_of(expression: &str) -> BTreeSet<&str> {
    expression
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|w| {
            ["lifeboat_", "process_", "node_", "probe_", "pg_", "redis_"]
                .iter()
                .any(|p| w.starts_with(p))
        })
        .collect()
}

/// Prometheus scrapes a Lifeboat with traffic, a drill, files, a PostgreSQL and a Redis; every query parses and returns data.
#[test]
fn heavy_every_query_returns_data_from_a_real_prometheus() {
    let mut site = Site::new().with_http();
    std::fs::create_dir(site.path("uploads")).unwrap();
    std::fs::write(site.path("uploads/a.txt"), "a").unwrap();
    certificates(site.dir.path(), &[("good", "90")]);
    let app = TlsServer::new(site.dir.path(), "good");
    let (server, redis) = (pg::Server::start(), Redis::start());
    redis.run(&["SET", "a", "1"]);
    let slot = "SELECT pg_create_physical_replication_slot('standby', true);";
    server.sql("postgres", slot);
    let authority = site.path("ca.pem").display().to_string();
    site.env.push(("SSL_CERT_FILE".into(), authority));
    site.extra = format!(
        "    max-lag: 2s\nprobes:\n  - name: app\n    url: https://localhost:{}/up\n    every: 1s\nnotify:\n  - slack: http://127.0.0.1:9/nobody-listens\nfiles:\n  - name: uploads\n    paths: [{}]\n    schedule: \"0 3 * * *\"\n    password: test-only\npostgres:\n  - name: pg\n    url: \"{}\"\nredis:\n  - name: cache\n    url: \"{}\"\n",
        app.port,
        site.path("uploads").display(),
        server.url(pg::URL_PASSWORD),
        redis.url()
    );
    site.store_extra = "drill: '@monthly'\ninsight: { every: 1s }\n".into();
    common::solid::make(&site.db);
    let jobs = "for state in ('ready','scheduled','claimed','failed','blocked'): job('default',state)
job('mailers','ready'); pause('mailers'); beat('Worker'); beat('Dispatcher'); entries(10,10); messages(3)";
    common::solid::app(&site.db, jobs);
    // The daemon reads the record of this drill when it starts.
    site.sync();
    site.ok(&["drill", "app"]);
    let daemon = site.start();
    let address = site.http.trim_start_matches("{ listen: ").to_owned();
    let prometheus = Prometheus::start(address.trim_end_matches(" }"));
    let app = traffic(&site.db, 7, 6.0);

    // The rules are loaded, and each is evaluated without an error.
    let mut rules = Vec::new();
    wait_for(&daemon, "evaluated rules", || {
        let answer = prometheus.ask("/api/v1/rules", "").unwrap_or_default();
        rules = answer["data"]["groups"][0]["rules"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        !rules.is_empty() && rules.iter().all(|r| r["health"] == "ok")
    });
    let mut waiting: BTreeSet<String> = dashboard().into_iter().collect();
    assert!(waiting.len() > 30, "{waiting:?}");
    for rule in &rules {
        let expression = rule["query"].as_str().unwrap();
        prometheus.query(expression);
        // A rule is silent when all is well: what it looks at must be there.
        waiting.extend(metrics_of(expression).into_iter().map(str::to_owned));
    }
    let begun = Instant::now();
    while !waiting.is_empty() {
        waiting.retain(|q| prometheus.query(q).is_empty());
        assert!(
            begun.elapsed() < Duration::from_secs(90),
            "no data: {waiting:#?}\n{}",
            site.get("/metrics")
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    commits(app);
    // Nothing is wrong, so nothing fires.
    let firing = prometheus.query("ALERTS{alertstate=\"firing\"}");
    assert!(firing.is_empty(), "{firing:?}");

    // A store that takes nothing shows in the rules within seconds.
    take_away(&site.path("store"));
    site.write("update t set a='x' where id=1");
    let pending = |alert: &str| prometheus.raises(alert);
    wait_for(&daemon, "alerts of a store that is away", || {
        pending("LifeboatTargetUnsafe") && pending("LifeboatBackupLag")
    });
    // So does a Lifeboat that is gone.
    daemon.kill();
    let begun = Instant::now();
    while !(pending("LifeboatAbsent") && pending("LifeboatInstanceDown")) {
        assert!(begun.elapsed() < Duration::from_secs(30), "no alert");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Counters of the store are read when Prometheus asks, also for requests that nothing reports.
#[test]
fn store_metrics_are_live_and_failures_have_a_class() {
    let site = Site::new().with_http();
    let daemon = site.start();
    site.sync();
    let count = |name: &str, labels: &str| site.metric(name, labels);
    assert!(count("lifeboat_store_sent_bytes_total", "") > 1_000.0);
    assert!(count("lifeboat_store_monthly_requests", "") > 720.0);
    let requests = count("lifeboat_store_requests_total", "");
    let timed = count("lifeboat_store_request_seconds_count", "");
    assert!(timed > 0.0 && timed <= requests, "{timed} of {requests}");
    // The store's folder becomes a file: every request fails from now on.
    take_away(&site.path("store"));
    let errors = || count("lifeboat_store_errors_total", "target=\"app\"");
    let before = errors();
    site.write("update t set a='x' where id=1");
    wait_for(&daemon, "a counted failure", || errors() > before);
    assert!(count("lifeboat_upload_errors_total", "") >= 1.0);
}
