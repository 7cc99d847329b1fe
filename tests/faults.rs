//! The fault table of docs/observability.md: for each fault, the metric, the verdict, the alert and the notification that say so, from the
//! real binary, a real Prometheus with the project's rules, and a real receiver. Each prints how long it took.
#![allow(missing_docs)]

mod common;
mod pg;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::daemon::{Daemon, Site, bring_back, free_port, take_away, tool};
use common::faults::{Signs, metric, one, positive, shows, until};
use common::prometheus::Prometheus;
use common::receiver::{Manner, Receiver};

struct Scene {
    site: Site,
    hook: Receiver,
}

impl Scene {
    fn new(store_extra: &str) -> Self {
        let hook = Receiver::new(Manner::Good);
        let mut site = Site::new().with_http();
        site.store_extra = store_extra.into();
        site.extra = format!(
            "    max-lag: 1s\nnotify:\n  - webhook: {}\n    after: 500ms\n",
            hook.url()
        );
        Self { site, hook }
    }

    fn prometheus(&self) -> Prometheus {
        let listen = self.site.http.trim_start_matches("{ listen: ");
        Prometheus::start(listen.trim_end_matches(" }"))
    }

    fn is_safe(&self) -> bool {
        self.site.get("/readyz").contains("\"status\":\"safe\"")
    }

    /// A daemon that is safe, and a Prometheus that saw it.
    fn green(&self) -> (Daemon, Prometheus) {
        let daemon = self.site.start();
        self.site.sync();
        let prometheus = self.prometheus();
        until("green", &|| daemon.log(), || {
            self.is_safe() && !prometheus.query("lifeboat_ready == 1").is_empty()
        });
        (daemon, prometheus)
    }

    fn shows(&self, fault: &str, daemon: &Daemon, prometheus: &Prometheus, signs: &Signs) {
        let get = |path: &str| self.site.get(path);
        shows(
            fault,
            (&get, &|| daemon.log()),
            (&self.hook, prometheus),
            signs,
        );
    }

    /// Green again by itself, and told.
    fn recovers(&self, daemon: &Daemon, told: &str) {
        until(
            "green again",
            &|| format!("{}\n{}", self.site.get("/readyz"), daemon.log()),
            || self.is_safe() && self.hook.phases(told).last().is_some_and(|p| p == "ended"),
        );
    }

    /// As [`Scene::recovers`], and the alert is over: what comes next proves itself.
    fn is_over(&self, daemon: &Daemon, prometheus: &Prometheus, (told, alert): (&str, &str)) {
        self.recovers(daemon, told);
        until("the end of the alert", &|| daemon.log(), || {
            !prometheus.raises(alert)
        });
        self.hook.forget();
    }
}

#[test]
fn heavy_fault_store_down() {
    let scene = Scene::new("");
    let (daemon, prometheus) = scene.green();
    let site = &scene.site;
    take_away(&site.path("store"));
    site.write("update t set a='x' where id=1");
    let signs = Signs {
        metric: ("lifeboat_lag_seconds", "app", |v| v > 1.0),
        reason: "are not durable",
        alert: "LifeboatBackupLag",
        told: "store-unreachable",
    };
    scene.shows("store down", &daemon, &prometheus, &signs);
    bring_back(&site.path("store"));
    scene.recovers(&daemon, "unsafe");
}

#[test]
fn heavy_fault_queue_stuck() {
    let scene = Scene::new("insight: { every: 100ms, max-queue-wait: 2s }\n");
    let site = &scene.site;
    common::solid::make(&site.db);
    common::solid::app(&site.db, "beat('Worker'); beat('Dispatcher')");
    let (daemon, prometheus) = scene.green();
    until("a queue that moves", &|| daemon.log(), || {
        site.get("/up").contains("\"queue\":\"ok\"")
    });
    // The worker lives, and takes nothing.
    common::solid::app(&site.db, "job('default','ready')");
    let signs = Signs {
        metric: ("lifeboat_queue_stuck", "app", one),
        reason: "the oldest ready job has waited since",
        alert: "LifeboatQueueStuck",
        told: "queue-stuck",
    };
    scene.shows("queue stuck", &daemon, &prometheus, &signs);
    assert!(site.get("/up").contains("\"queue\":\"stuck\""));
    let services = site.get("/readyz");
    assert!(services.contains("the oldest ready job"), "{services}");
    assert!(
        scene.is_safe(),
        "a queue that is stuck is no matter of backups"
    );
    site.write("delete from solid_queue_ready_executions");
    let stuck = ("queue-stuck", "LifeboatQueueStuck");
    scene.is_over(&daemon, &prometheus, stuck);
    // A dispatcher that is gone: its job is due and never becomes ready.
    common::solid::app(&site.db, "job('default','scheduled',5)");
    let signs = Signs {
        metric: ("lifeboat_queue_overdue_seconds", "app", |v| v > 2.0),
        reason: "no dispatcher moves it",
        alert: "LifeboatQueueStuck",
        told: "queue-stuck",
    };
    scene.shows("queue not dispatched", &daemon, &prometheus, &signs);
    site.write("delete from solid_queue_scheduled_executions");
    scene.is_over(&daemon, &prometheus, stuck);
    // No worker has had a heartbeat for ten minutes, and a job is ready.
    site.write("delete from solid_queue_processes");
    common::solid::app(&site.db, "beat('Worker',600); job('default','ready',90)");
    let signs = Signs {
        metric: ("lifeboat_queue_processes", "kind=\"Worker\"", |v| v == 0.0),
        reason: "no worker has had a heartbeat since",
        alert: "LifeboatQueueWithoutWorkers",
        told: "queue-stuck",
    };
    scene.shows("workers gone", &daemon, &prometheus, &signs);
}

/// Ends with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn s3(root: &Path, port: u16, secret: &str) -> Guard {
    std::fs::create_dir_all(root.join("bucket")).unwrap();
    let child = Command::new(tool("bin/s3s-fs"))
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .args(["--access-key", "AKEXAMPLE", "--secret-key", secret])
        .arg(root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let guard = Guard(child);
    until("the S3 server", &String::new, || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    guard
}

#[test]
fn heavy_fault_credentials_revoked() {
    let port = free_port();
    let mut scene = Scene::new(&format!(
        "  endpoint: http://127.0.0.1:{port}\n  region: us-east-1\n  access-key-id: AKEXAMPLE\n  secret-access-key: first-secret\n"
    ));
    scene.site.store = "s3://bucket/backups".into();
    let root = scene.site.path("s3");
    let server = s3(&root, port, "first-secret");
    let (daemon, prometheus) = scene.green();
    drop(server);
    let _server = s3(&root, port, "another-secret");
    scene.site.write("update t set a='x' where id=1");
    let signs = Signs {
        metric: ("lifeboat_store_errors_total", "class=\"denied\"", positive),
        reason: "unreachable since",
        alert: "LifeboatTargetUnsafe",
        told: "store-unreachable",
    };
    scene.shows("credentials revoked", &daemon, &prometheus, &signs);
}

/// Ends the tracer, which lets the process go on.
struct Tracer(Child);

impl Drop for Tracer {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        // Gone already is fine.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.0.wait();
    }
}

fn inject(scene: &Scene, daemon: &Daemon, calls: &str, fault: &str) -> Tracer {
    let mut tracer = Command::new("strace")
        .args(["-f", "-p", &daemon.pid().to_string(), "-o"])
        .arg(scene.site.path("strace.log"))
        .args(["-e", &format!("trace={calls}")])
        .args(["-e", &format!("inject={calls}:{fault}")])
        .stderr(Stdio::piped())
        .spawn()
        .map(Tracer)
        .expect("strace is missing: run bin/install-dev");
    // It says so when it is attached.
    std::io::Read::read_exact(tracer.0.stderr.as_mut().unwrap(), &mut [0]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    tracer
}

#[test]
fn heavy_fault_disk_full() {
    let scene = Scene::new("");
    let (daemon, prometheus) = scene.green();
    let tracer = inject(&scene, &daemon, "fsync,fdatasync", "error=ENOSPC");
    scene.site.write("update t set a='x' where id=1");
    let signs = Signs {
        metric: ("lifeboat_capture_errors_total", "app", positive),
        reason: "No space left",
        alert: "LifeboatTargetUnsafe",
        told: "unsafe",
    };
    scene.shows("disk full", &daemon, &prometheus, &signs);
    drop(tracer);
    scene.recovers(&daemon, "unsafe");
}

#[test]
fn heavy_fault_capture_stalled() {
    let scene = Scene::new("");
    let (daemon, prometheus) = scene.green();
    // The disk of the state directory hangs: each write takes an hour, and nothing returns an error.
    let tracer = inject(&scene, &daemon, "fdatasync,fsync", "delay_enter=3600000000");
    scene.site.write("update t set a='x' where id=1");
    let signs = Signs {
        metric: ("lifeboat_lag_seconds", "app", |v| v > 1.0),
        reason: "are not durable",
        alert: "LifeboatBackupLag",
        told: "unsafe",
    };
    scene.shows("capture stalled", &daemon, &prometheus, &signs);
    drop(tracer);
    scene.recovers(&daemon, "unsafe");
}

/// A process that is stopped tells nobody: the alarm is raised by who misses it.
#[test]
fn heavy_fault_sidecar_paused() {
    let mut scene = Scene::new("");
    let pings = Receiver::new(Manner::Good);
    scene.site.extra.push_str(&format!(
        "  - healthchecks: {}\n    every: 500ms\n    after: 500ms\n",
        pings.url()
    ));
    let (daemon, prometheus) = scene.green();
    let heard = || pings.requests().len();
    until("a heartbeat", &|| daemon.log(), || heard() > 3);
    let pid = rustix::process::Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let took = until("the alert", &String::new, || {
        prometheus.raises("LifeboatAbsent") && prometheus.raises("LifeboatInstanceDown")
    });
    let before = heard();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(heard(), before, "no heartbeat");
    println!("sidecar paused: alert {:.1} s", took.as_secs_f64());
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    until("green again", &|| daemon.log(), || {
        scene.is_safe() && heard() > before
    });
}

#[test]
fn heavy_fault_drill_failing() {
    let scene = Scene::new("drill: '@monthly'\n");
    let site = &scene.site;
    site.sync();
    // The newest base is damaged; the drill before the start says so, and its record is read at the start.
    let mut bases: Vec<_> = walk(&site.path("store"))
        .into_iter()
        .filter(|p| p.to_string_lossy().contains("/ltx/9/"))
        .collect();
    let base = bases.pop().unwrap();
    let mut bytes = std::fs::read(&base).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&base, bytes).unwrap();
    let out = site.run(&["drill", "app"]);
    assert_ne!(out.status.code(), Some(0));
    let daemon = site.start();
    let prometheus = scene.prometheus();
    let signs = Signs {
        metric: ("lifeboat_drill_timestamp_seconds", "app", positive),
        reason: "the drill of",
        alert: "LifeboatDrillFailed",
        told: "drill-failed",
    };
    scene.shows("drill failing", &daemon, &prometheus, &signs);
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path());
    entries
        .flat_map(|p| if p.is_dir() { walk(&p) } else { vec![p] })
        .collect()
}

#[test]
fn heavy_fault_volume_nearly_full() {
    let mut scene = Scene::new("");
    let (daemon, prometheus) = scene.green();
    // Of the volume that holds the database and, here, the local state.
    let room = |scene: &Scene| {
        let text = scene.site.get("/metrics");
        let of = |name: &str| metric(&text, name, "");
        (
            of("lifeboat_volume_free_bytes"),
            of("lifeboat_volume_min_free_bytes"),
        )
    };
    let (free, floor) = room(&scene);
    assert!(free > 1.5 * floor && floor > 0.0, "{free} {floor}");
    assert!(!prometheus.raises("LifeboatDiskLow"));
    assert!(!scene.site.get("/readyz").contains("the spool is dropped"));
    drop(daemon);
    // No volume of a test machine has so much free.
    scene.site.min_free = "99%";
    let daemon = scene.site.start();
    let signs = Signs {
        metric: ("lifeboat_volume_min_free_bytes", "", |floor| floor > 1e9),
        reason: "the spool is dropped",
        alert: "LifeboatDiskLow",
        told: "disk-low",
    };
    scene.shows("volume nearly full", &daemon, &prometheus, &signs);
    let (free, floor) = room(&scene);
    assert!(free < 1.5 * floor, "{free} {floor}");
    until("safe", &|| daemon.log(), || scene.is_safe());
    drop(daemon);
    scene.site.min_free = "16MiB";
    let daemon = scene.site.start();
    let over = ("disk-low", "LifeboatDiskLow");
    scene.is_over(&daemon, &prometheus, over);
    assert!(!scene.site.get("/readyz").contains("the spool is dropped"));
}

/// The file is damaged below the app: what reads that part of it fails, here as in the app.
#[test]
fn heavy_fault_database_unreadable() {
    let scene = Scene::new("insight: { every: 100ms }\n");
    let site = &scene.site;
    common::solid::make(&site.db);
    common::solid::app(&site.db, "beat('Worker')");
    let place = common::python(
        &site.db,
        "c=conn(); assert c.execute('pragma wal_checkpoint(truncate)').fetchone()[0]==0
n=c.execute(\"select rootpage from sqlite_schema where name='solid_queue_processes'\").fetchone()[0]
s=c.execute('pragma page_size').fetchone()[0]; print((n-1)*s, s)",
    );
    let (offset, size) = place.split_once(' ').unwrap();
    let offset: u64 = offset.parse().unwrap();
    let put = |bytes: &[u8]| {
        let file = std::fs::File::options().write(true).open(&site.db);
        file.unwrap().write_all_at(bytes, offset).unwrap();
    };
    let mut page = vec![0; size.parse().unwrap()];
    let file = std::fs::File::open(&site.db).unwrap();
    file.read_exact_at(&mut page, offset).unwrap();
    drop(file);
    let (daemon, prometheus) = scene.green();
    until("readable", &|| daemon.log(), || {
        let text = site.get("/metrics");
        text.contains("lifeboat_database_up{target=\"app\"} 1")
            && !prometheus.query("lifeboat_database_up == 1").is_empty()
    });
    put(&vec![0xff; page.len()]);
    // It reads again what somebody wrote to.
    site.write("update t set a='x' where id=1");
    let signs = Signs {
        metric: ("lifeboat_database_up", "app", |v| v == 0.0),
        reason: "the database cannot be read: ",
        alert: "LifeboatDatabaseDown",
        told: "database-down",
    };
    scene.shows("database unreadable", &daemon, &prometheus, &signs);
    let text = site.get("/metrics");
    assert!(
        text.contains("lifeboat_database_up{target=\"app\"} 0"),
        "{text}"
    );
    assert!(site.get("/up").contains("\"database\":\"failed\""));
    put(&page);
    site.write("update t set a='y' where id=1");
    scene.is_over(
        &daemon,
        &prometheus,
        ("database-down", "LifeboatDatabaseDown"),
    );
    assert!(site.get("/up").contains("\"database\":\"ok\""));
}

#[test]
fn heavy_fault_ownership_lost() {
    let scene = Scene::new("");
    let (daemon, prometheus) = scene.green();
    // Another instance takes the replica over on purpose.
    let owner = walk(&scene.site.path("store"))
        .into_iter()
        .find(|p| p.ends_with("owner.json"))
        .unwrap();
    let text = std::fs::read_to_string(&owner).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&text).unwrap();
    other["instance"] = "web2".into();
    other["epoch"] = (other["epoch"].as_u64().unwrap() + 1).into();
    std::fs::write(&owner, other.to_string()).unwrap();
    for n in 0..5 {
        scene
            .site
            .write(&format!("update t set a='{n}' where id=1"));
        std::thread::sleep(Duration::from_millis(500));
    }
    drop(daemon);
    let daemon = scene.site.start();
    let signs = Signs {
        metric: ("lifeboat_ready", "app", |v| v == 0.0),
        reason: "web2",
        alert: "LifeboatTargetUnsafe",
        told: "ownership",
    };
    scene.shows("ownership lost", &daemon, &prometheus, &signs);
}

#[test]
fn heavy_fault_database_vanished() {
    let scene = Scene::new("");
    let (daemon, prometheus) = scene.green();
    let site = &scene.site;
    for end in ["", "-wal", "-shm"] {
        let path = site.path(&format!("app.sqlite3{end}"));
        std::fs::rename(&path, path.with_extension(format!("gone{end}"))).unwrap();
    }
    let signs = Signs {
        metric: ("lifeboat_state", "state=\"vanished\"", one),
        reason: "vanished",
        alert: "LifeboatDatabaseVanished",
        told: "unsafe",
    };
    scene.shows("database vanished", &daemon, &prometheus, &signs);
    // To the app it is down as well; there is one message about it.
    until("the app's side of it", &|| daemon.log(), || {
        let text = site.get("/metrics");
        text.contains("lifeboat_database_up{target=\"app\"} 0")
            && site.get("/up").contains("the database file is gone")
            && prometheus.raises("LifeboatDatabaseDown")
    });
    for end in ["-wal", "-shm", ""] {
        let path = site.path(&format!("app.sqlite3{end}"));
        std::fs::rename(path.with_extension(format!("gone{end}")), &path).unwrap();
    }
    scene.recovers(&daemon, "unsafe");
}

/// Files that cannot be read, for the targets that are not databases.
#[test]
fn heavy_fault_files_unreadable() {
    let mut scene = Scene::new("");
    let uploads = scene.site.path("uploads");
    scene.site.extra.push_str(&format!(
        "files:\n  - name: uploads\n    paths: [{}]\n    password: test-only\n    create: true\n",
        uploads.display()
    ));
    // The folder is not there: an unmounted volume.
    let daemon = scene.site.start();
    let prometheus = scene.prometheus();
    let signs = Signs {
        metric: ("lifeboat_files_runs_total", "result=\"failed\"", positive),
        reason: "there is no complete snapshot yet",
        alert: "LifeboatFilesUnsafe",
        told: "files-failed",
    };
    scene.shows("folder not mounted", &daemon, &prometheus, &signs);
}

#[test]
fn heavy_fault_postgresql_down() {
    let hook = Receiver::new(Manner::Good);
    let mut site = pg::site::Site::new(&format!(
        "    schedule: '0 3 1 1 *'\nnotify:\n  - webhook: {}\n    after: 500ms\n",
        hook.url()
    ));
    // The first dump is due at the start.
    site.server.stop();
    let daemon = site.start();
    let prometheus = Prometheus::start(&format!("127.0.0.1:{}", site.port));
    let signs = Signs {
        metric: (
            "lifeboat_postgres_runs_total",
            "result=\"failed\"",
            positive,
        ),
        reason: "there is no dump yet",
        alert: "LifeboatDumpUnsafe",
        told: "dump-failed",
    };
    let get = |path: &str| site.get(path);
    let log = || std::fs::read_to_string(&daemon.log).unwrap_or_default();
    shows(
        "PostgreSQL down",
        (&get, &log),
        (&hook, &prometheus),
        &signs,
    );
}

/// A certificate of the app that nobody renews.
#[test]
fn heavy_fault_certificate_ends() {
    let mut scene = Scene::new("");
    common::tls::certificates(scene.site.dir.path(), &[("soon", "7")]);
    let app = common::tls::TlsServer::new(scene.site.dir.path(), "soon");
    let authority = scene.site.path("ca.pem").display().to_string();
    scene.site.env.push(("SSL_CERT_FILE".into(), authority));
    scene.site.extra.push_str(&format!(
        "probes:\n  - name: web\n    url: https://localhost:{}/up\n    every: 500ms\n",
        app.port
    ));
    let (daemon, prometheus) = scene.green();
    let signs = Signs {
        metric: ("probe_ssl_earliest_cert_expiry", "web", positive),
        reason: "its certificate ends at",
        alert: "LifeboatCertificateEnds",
        told: "certificate",
    };
    scene.shows("certificate ends", &daemon, &prometheus, &signs);
    assert!(scene.is_safe() && scene.hook.phases("app-down").is_empty());
}

/// A clock that runs as the file says, for a process and its children.
struct FakeClock(std::path::PathBuf);

impl FakeClock {
    fn of(site: &mut Site) -> Self {
        let library = ["x86_64", "aarch64"]
            .map(|cpu| format!("/usr/lib/{cpu}-linux-gnu/faketime/libfaketime.so.1"))
            .into_iter()
            .find(|l| Path::new(l).exists())
            .expect("libfaketime is missing: run bin/install-dev");
        let file = site.path("clock");
        let named = file.display().to_string();
        site.env = vec![
            ("LD_PRELOAD".into(), library),
            ("FAKETIME_TIMESTAMP_FILE".into(), named),
            ("FAKETIME_NO_CACHE".into(), "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
        ];
        Self(file)
    }

    /// Ahead by so many hours and to the 50th second of a minute, so that what runs each minute does so soon.
    fn set(&self, hours: i64) {
        let now = jiff::Timestamp::now().as_second();
        let seconds = hours * 3600 + 50 - now.rem_euclid(60);
        std::fs::write(&self.0, format!("{seconds:+}")).unwrap();
    }
}

/// A day ahead by mistake, and back: it is said, schedules go on at once, and retention deletes nothing while a snapshot is of tomorrow.
#[test]
fn heavy_fault_clock_set_and_retention_refused() {
    let mut scene = Scene::new("");
    let clock = FakeClock::of(&mut scene.site);
    let uploads = scene.site.path("uploads");
    std::fs::create_dir(&uploads).unwrap();
    std::fs::write(uploads.join("a"), "a").unwrap();
    scene.site.extra.push_str(&format!(
        "files:\n  - name: uploads\n    paths: [{}]\n    password: test-only\n    create: true\n    schedule: '* * * * *'\n",
        uploads.display()
    ));
    clock.set(0);
    let (daemon, prometheus) = scene.green();
    let runs = || {
        let text = scene.site.get("/metrics");
        metric(&text, "lifeboat_files_runs_total", "result=\"complete\"")
    };
    let one_more = |daemon: &Daemon, what: &str| {
        let before = runs();
        let took = until(what, &|| daemon.log(), || runs() > before);
        println!("{what}: after {took:.1?}");
    };
    until("the first snapshot", &|| daemon.log(), || runs() > 0.0);

    clock.set(25);
    let signs = Signs {
        metric: ("lifeboat_clock_step_seconds", "", |s| s > 86_000.0),
        reason: "it was set ahead by",
        alert: "LifeboatClockSet",
        told: "clock",
    };
    scene.shows("clock set ahead", &daemon, &prometheus, &signs);
    one_more(&daemon, "a snapshot of tomorrow");

    clock.set(0);
    let back = |s: f64| s < -86_000.0;
    until("set back", &|| daemon.log(), || {
        let text = scene.site.get("/metrics");
        back(metric(&text, "lifeboat_clock_step_seconds", ""))
            && scene.site.get("/readyz").contains("it was set back by")
    });
    // By its schedule, and not tomorrow.
    one_more(&daemon, "a snapshot after the clock was set back");
    assert_eq!(daemon.stop(), 0);

    // It prunes after its first run.
    clock.set(0);
    let daemon = scene.site.start();
    until("scraped", &|| daemon.log(), || {
        let zero = "lifeboat_files_retention_refused_total == 0";
        !prometheus.query(zero).is_empty()
    });
    let signs = Signs {
        metric: ("lifeboat_files_retention_refused_total", "", positive),
        reason: "retention deletes nothing",
        alert: "LifeboatRetentionRefused",
        told: "retention",
    };
    scene.shows("retention refused", &daemon, &prometheus, &signs);
    let kept = scene.site.run(&["list", "uploads", "--json"]);
    let kept = String::from_utf8_lossy(&kept.stdout).into_owned();
    assert!(kept.matches("\"id\"").count() >= 3, "{kept}");
}
