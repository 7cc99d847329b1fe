//! The fault table's rows on servers and on the app itself; see `faults.rs`.
#![allow(missing_docs)]

mod common;
mod pg;

use common::faults::{Signs, shows, until};
use common::prometheus::Prometheus;
use common::receiver::{Manner, Receiver};
use common::redis::Redis;
use pg::site::{Daemon, Site};

/// A PostgreSQL, a Redis and an app, all well, and who watches them.
struct Scene {
    site: Site,
    redis: Redis,
    app: Receiver,
    hook: Receiver,
    daemon: Daemon,
    prometheus: Prometheus,
}

impl Scene {
    fn green() -> Self {
        let (app, hook) = (Receiver::new(Manner::Good), Receiver::new(Manner::Good));
        let redis = Redis::start();
        let site = Site::new(&format!(
            "    schedule: '0 3 1 1 *'\nredis:\n  - name: cache\n    url: \"{}\"\n    schedule: '0 3 1 1 *'\nprobes:\n  - name: web\n    url: {}\n    every: 500ms\ninsight:\n  every: 500ms\nnotify:\n  - webhook: {}\n    after: 500ms\n",
            redis.url(),
            app.url(),
            hook.url()
        ));
        let daemon = site.start();
        let prometheus = Prometheus::start(&format!("127.0.0.1:{}", site.port));
        let scene = Self {
            site,
            redis,
            app,
            hook,
            daemon,
            prometheus,
        };
        until(
            "green",
            &|| {
                format!(
                    "{}\n{}\n{:?}",
                    scene.site.get("/readyz"),
                    scene.log(),
                    ["pg_up", "redis_up", "probe_success", "up"]
                        .map(|q| scene.prometheus.query(q).len())
                )
            },
            || {
                scene.is_safe()
                    && ["pg_up == 1", "redis_up == 1", "probe_success == 1"]
                        .iter()
                        .all(|q| !scene.prometheus.query(q).is_empty())
            },
        );
        scene
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.daemon.log).unwrap_or_default()
    }

    fn is_safe(&self) -> bool {
        self.site.get("/readyz").contains("\"status\":\"safe\"")
    }

    fn shows(&self, fault: &str, signs: &Signs) {
        let get = |path: &str| self.site.get(path);
        let log = || self.log();
        shows(fault, (&get, &log), (&self.hook, &self.prometheus), signs);
        // It is there, and says 0: a series that is missing would be 0 in a sum, too.
        let (name, labels, _) = signs.metric;
        let text = self.site.get("/metrics");
        let zero = |l: &str| l.starts_with(name) && l.contains(labels) && l.ends_with(" 0");
        assert!(text.lines().any(zero), "{text}");
        assert!(self.is_safe(), "what was copied is as safe as it was");
    }

    fn recovers(&self, metric: &str, told: &str) {
        until("green again", &|| self.log(), || {
            !self.prometheus.query(&format!("{metric} == 1")).is_empty()
                && self.hook.phases(told) == ["started", "ended"]
        });
    }
}

fn zero(value: f64) -> bool {
    value == 0.0
}

#[test]
fn heavy_fault_postgresql_killed() {
    let mut scene = Scene::green();
    scene.site.server.kill();
    let signs = Signs {
        metric: ("pg_up", "app", zero),
        reason: "connection to server on socket",
        alert: "LifeboatDatabaseDown",
        told: "database-down",
    };
    scene.shows("PostgreSQL killed", &signs);
    assert!(scene.site.get("/up").contains("\"database\":\"failed\""));
    scene.site.server.restart();
    scene.recovers("pg_up", "database-down");
}

#[test]
fn heavy_fault_redis_killed() {
    let mut scene = Scene::green();
    scene.redis.kill();
    let signs = Signs {
        metric: ("redis_up", "cache", zero),
        reason: "Could not connect to Redis",
        alert: "LifeboatDatabaseDown",
        told: "database-down",
    };
    scene.shows("Redis killed", &signs);
    assert!(scene.site.get("/up").contains("\"cache\":\"failed\""));
    scene.redis.restart();
    scene.recovers("redis_up", "database-down");
}

/// A dump that lost most of its rows is kept, and said to be odd.
#[test]
fn heavy_fault_dump_looks_odd() {
    let scene = Scene::green();
    let server = &scene.site.server;
    let fill = "CREATE TABLE filling AS SELECT i, repeat(md5(i::text), 8) AS text FROM generate_series(1, 30000) i;";
    server.sql(pg::DATABASE, fill);
    scene.site.ok(&["snapshot", "--label", "full"]);
    let before = scene.site.metric("lifeboat_postgres_anomalies");
    assert_eq!(before, 0.0);
    server.sql(pg::DATABASE, "DELETE FROM filling WHERE i > 10;");
    scene.site.ok(&["snapshot", "--label", "lost"]);
    let signs = Signs {
        metric: ("lifeboat_postgres_anomalies", "app", |n| n > 0.0),
        reason: "look at the newest dump",
        alert: "LifeboatDumpOdd",
        told: "size-anomaly",
    };
    let get = |path: &str| scene.site.get(path);
    let log = || scene.log();
    let watched = (&scene.hook, &scene.prometheus);
    shows("dump looks odd", (&get, &log), watched, &signs);
    let ratio = scene.site.metric("lifeboat_postgres_size_ratio");
    assert!(ratio > 0.0 && ratio < 0.9, "{ratio}");
    assert!(scene.is_safe(), "it is complete");
}

#[test]
fn heavy_fault_app_failing() {
    let scene = Scene::green();
    scene.app.be(Manner::Broken);
    let signs = Signs {
        metric: ("probe_success", "web", zero),
        reason: "it answered 500",
        alert: "LifeboatAppDown",
        told: "app-down",
    };
    scene.shows("app failing", &signs);
    scene.app.be(Manner::Good);
    scene.recovers("probe_success", "app-down");
}
