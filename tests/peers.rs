//! Real Litestream, a real S3 server, Azurite: both ways.
#![allow(missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::daemon::{Site, assert_same_pages, free_port, tool, wait_for};
use common::{commits, python, traffic};

fn litestream() -> Command {
    let mut command = Command::new(tool("venv/bin/litestream"));
    command.env_remove("AWS_CA_BUNDLE");
    command
}

fn litestream03() -> Command {
    let mut command = Command::new(tool("venv03/bin/litestream"));
    command.env_remove("AWS_CA_BUNDLE");
    command
}

fn litestream_restores(args: &[&str], out: &Path) {
    let _ = std::fs::remove_file(out);
    let result = litestream()
        .arg("restore")
        .arg("-o")
        .arg(out)
        .args(args)
        .output()
        .unwrap();
    assert!(
        result.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&result.stderr)
    );
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(mut command: Command, port: u16) -> Server {
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server(child);
    let begun = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the server does not listen"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

fn s3(root: &Path, port: u16) -> Server {
    std::fs::create_dir_all(root.join("bucket")).unwrap();
    let mut command = Command::new(tool("bin/s3s-fs"));
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command
        .args([
            "--access-key",
            "AKEXAMPLE",
            "--secret-key",
            "secret/with+signs",
        ])
        .arg(root);
    serve(command, port)
}

fn on_s3(site: &mut Site, port: u16) {
    site.store = "s3://bucket/backups".into();
    site.store_extra = format!(
        "  endpoint: http://127.0.0.1:{port}\n  region: us-east-1\n  access-key-id: AKEXAMPLE\n  secret-access-key: secret/with+signs\n"
    );
}

#[test]
fn litestream_restores_a_lifeboat_replica() {
    let site = Site::new();
    let daemon = site.start();
    let mut oracles = Vec::new();
    for round in 0..3 {
        commits(traffic(&site.db, 40 + round, 1.0));
        oracles.push((
            site.sync(),
            site.copy_now(&format!("o{round}.db")),
            jiff::Timestamp::now(),
        ));
        std::thread::sleep(Duration::from_millis(1100));
    }
    // Litestream refuses a time after the newest file.
    site.write("delete from t where id<9");
    site.sync();
    let newest = site.copy_now("newest.db");
    assert_eq!(daemon.stop(), 0);
    let url = format!("{}/app", site.store);
    let out = site.path("l.db");
    litestream_restores(&[&url], &out);
    assert_same_pages(&newest, &out, "newest by Litestream");
    for (txid, oracle, time) in &oracles {
        litestream_restores(&["-txid", &format!("{txid:016x}"), &url], &out);
        assert_same_pages(oracle, &out, "by TXID");
        let time = format!(
            "{:.0}",
            time.round(
                jiff::TimestampRound::new()
                    .smallest(jiff::Unit::Second)
                    .mode(jiff::RoundMode::Ceil)
            )
            .unwrap()
        );
        litestream_restores(&["-timestamp", &time, &url], &out);
        assert_same_pages(oracle, &out, "by time");
    }
}

/// Waits until Litestream restores what the database holds now: all of it was uploaded. It does not always get there before it is told to end (what
/// was rolled back at the end of the WAL can hold it up), so this has a bound, and what is compared later decides.
fn settle(site: &Site, litestream: fn() -> Command, config: &Path) {
    let (now, back) = (site.copy_now("arrived.db"), site.path("back.db"));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        let _ = std::fs::remove_file(&back);
        let out = litestream()
            .args(["restore", "-config"])
            .arg(config)
            .arg("-o")
            .arg(&back)
            .arg(&site.db)
            .output()
            .unwrap();
        let same = || std::panic::catch_unwind(|| assert_same_pages(&now, &back, "uploaded"));
        if out.status.success() && same().is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn litestream_replicates(site: &Site, port: Option<u16>) -> PathBuf {
    let config = site.path("litestream.yml");
    let replica = match port {
        None => format!("type: file\n      path: {}/ls", site.dir.path().display()),
        Some(port) => format!(
            "type: s3\n      bucket: bucket\n      path: ls\n      endpoint: http://127.0.0.1:{port}\n      region: us-east-1\n      force-path-style: true\n      access-key-id: AKEXAMPLE\n      secret-access-key: secret/with+signs"
        ),
    };
    std::fs::write(
        &config,
        format!(
            "dbs:\n  - path: {}\n    replica:\n      {replica}\n",
            site.db.display()
        ),
    )
    .unwrap();
    let log = std::fs::File::create(site.path("litestream.log")).unwrap();
    let mut child = litestream()
        .args(["replicate", "-config"])
        .arg(&config)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    commits(traffic(&site.db, 77, 2.0));
    settle(site, litestream, &config);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    child.wait().unwrap();
    config
}

/// Restores what Litestream made, takes it over in place from the same litestream.yml, and Litestream restores what comes of it.
fn takes_over(port: Option<u16>) {
    let mut site = Site::new();
    let _server = port.map(|p| s3(&site.path("s3"), p));
    let config = litestream_replicates(&site, port);
    let before = site.copy_now("before.db");
    let command = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command
            .args(args)
            .arg("-config")
            .arg(&config)
            .current_dir(site.dir.path())
            .env("LIFEBOAT_HTTP_LISTEN", "off");
        command
    };
    let out = site.path("restored.db");
    let run = command(&[
        "restore",
        site.db.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
    ])
    .output()
    .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    assert_same_pages(&before, &out, "Litestream's replica restored by Lifeboat");

    let log = std::fs::File::create(site.path("takeover.log")).unwrap();
    let child = command(&["replicate"])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let daemon = Server(child);
    let taken_over = || {
        let log = std::fs::read_to_string(site.path("takeover.log")).unwrap();
        log.contains("state-rebuilt")
    };
    let begun = Instant::now();
    while !taken_over() {
        // What it says instead is looked at below.
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "it does not begin"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    commits(traffic(&site.db, 78, 1.0));
    let synced = command(&["sync"]).output().unwrap();
    let log = std::fs::read_to_string(site.path("takeover.log")).unwrap();
    assert!(
        synced.status.success(),
        "{}\n{log}",
        String::from_utf8_lossy(&synced.stderr)
    );
    assert!(
        log.contains("state-rebuilt"),
        "continued, not begun anew: {log}"
    );
    let after = site.copy_now("after.db");
    std::fs::remove_file(&out).unwrap();
    let run = command(&[
        "restore",
        site.db.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
    ])
    .output()
    .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    assert_same_pages(&after, &out, "after the take-over");
    drop(daemon);
    let ours = site.path("by-litestream.db");
    let result = litestream()
        .args(["restore", "-config"])
        .arg(&config)
        .arg("-o")
        .arg(&ours)
        .arg(&site.db)
        .output()
        .unwrap();
    assert!(
        result.status.success(),
        "{}",
        String::from_utf8_lossy(&result.stderr)
    );
    assert_same_pages(
        &after,
        &ours,
        "the continued replica restored by Litestream",
    );
    site.instance.clear();
}

#[test]
fn litestream_file_replica_is_restored_and_taken_over() {
    takes_over(None);
}

#[test]
fn litestream_s3_replica_is_restored_and_taken_over() {
    takes_over(Some(free_port()));
}

/// Replicas of the real Litestream 0.3: the newest state, a moment between two commits, and what is said of a damaged one.
fn restores_03(port: Option<u16>) {
    let mut site = Site::new();
    let _server = port.map(|p| s3(&site.path("s3"), p));
    let config = site.path("litestream03.yml");
    let (replica, url) = match port {
        None => {
            let path = format!("{}/old", site.dir.path().display());
            (format!("path: {path}"), format!("file://{path}"))
        }
        Some(port) => (
            format!(
                "type: s3\n        bucket: bucket\n        path: old\n        endpoint: http://127.0.0.1:{port}\n        region: us-east-1\n        force-path-style: true\n        access-key-id: AKEXAMPLE\n        secret-access-key: secret/with+signs"
            ),
            "s3://bucket/old".to_owned(),
        ),
    };
    std::fs::write(
        &config,
        format!(
            "dbs:\n  - path: {}\n    replicas:\n      - {}\n        sync-interval: 100ms\n",
            site.db.display(),
            replica
        ),
    )
    .unwrap();
    let mut old = litestream03();
    old.args(["replicate", "-config"]).arg(&config);
    let log = std::fs::File::create(site.path("litestream03.log")).unwrap();
    let mut child = old
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    commits(traffic(&site.db, 91, 2.0));
    settle(&site, litestream03, &config);
    let between = site.copy_now("between.db");
    let moment = jiff::Timestamp::now();
    // Times of objects on S3 are whole seconds.
    std::thread::sleep(Duration::from_secs(2));
    commits(traffic(&site.db, 92, 1.0));
    site.write("update t set a='the last commit' where id=5");
    settle(&site, litestream03, &config);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    child.wait().unwrap();
    let newest = site.copy_now("newest.db");
    site.env = vec![
        ("AWS_ACCESS_KEY_ID".into(), "AKEXAMPLE".into()),
        ("AWS_SECRET_ACCESS_KEY".into(), "secret/with+signs".into()),
        ("AWS_REGION".into(), "us-east-1".into()),
    ];
    site.env.extend(port.map(|p| {
        (
            "AWS_ENDPOINT_URL_S3".into(),
            format!("http://127.0.0.1:{p}"),
        )
    }));
    let restore = |out: &Path, more: &[&str]| {
        let mut all = vec![
            "restore",
            url.as_str(),
            "-o",
            out.to_str().unwrap(),
            "--verify",
            "full",
        ];
        all.extend(more);
        site.ok(&all)
    };
    let plan = site.ok(&["restore", &url, "-o", "x.db", "--dry-run"]);
    assert!(
        plan.contains("litestream 0.3") && plan.contains("snapshot.lz4"),
        "{plan}"
    );
    let out = site.path("03.db");
    let said = restore(&out, &[]);
    assert!(said.contains("litestream 0.3"), "{said}");
    assert_same_pages(&newest, &out, "the newest state");
    let then = site.path("03-then.db");
    restore(&then, &["--at", &moment.to_string()]);
    assert_same_pages(&between, &then, "between two commits");
    let error = site.fails(3, &["restore", &url, "-o", "x.db", "--txid", "5"]);
    assert!(error.contains("--at TIME"), "{error}");
    let error = site.fails(
        3,
        &[
            "restore",
            &url,
            "-o",
            "x.db",
            "--at",
            "2001-01-01T00:00:00Z",
        ],
    );
    assert!(error.contains("no litestream 0.3 snapshot"), "{error}");
    if port.is_none() {
        let wals = site.path("old/generations");
        let generation = std::fs::read_dir(wals)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let mut names: Vec<_> = std::fs::read_dir(generation.join("wal"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        names.sort();
        let bytes = std::fs::read(&names[0]).unwrap();
        std::fs::write(&names[0], &bytes[..bytes.len() / 2]).unwrap();
        let error = site.fails(5, &["restore", &url, "-o", "x.db"]);
        let name = names[0].file_name().unwrap().to_str().unwrap();
        assert!(
            error.contains(name) && error.contains("nothing was changed"),
            "{error}"
        );
        std::fs::remove_file(&names[0]).unwrap();
        let error = site.fails(5, &["restore", &url, "-o", "x.db"]);
        assert!(
            error.contains("is missing from byte") && error.contains("hint:"),
            "{error}"
        );
        assert!(!site.path("x.db").exists());
    }
}

#[test]
fn litestream_03_file_replica_is_restored() {
    restores_03(None);
}

#[test]
fn litestream_03_s3_replica_is_restored() {
    restores_03(Some(free_port()));
}

/// Litestream goes on behind a Lifeboat replica, and what it adds is restored.
#[test]
fn litestream_continues_a_lifeboat_replica() {
    let site = Site::new();
    let daemon = site.start();
    commits(traffic(&site.db, 9, 1.0));
    site.sync();
    assert_eq!(daemon.stop(), 0);
    std::fs::rename(site.path("store/app"), site.path("ls")).unwrap();
    litestream_replicates(&site, None);
    let out = site.path("l.db");
    litestream_restores(&[&format!("file://{}", site.path("ls").display())], &out);
    assert_same_pages(&site.copy_now("o.db"), &out, "continued by Litestream");
}

#[test]
fn s3_end_to_end_with_an_outage() {
    let mut site = Site::new();
    let port = free_port();
    let server = s3(&site.path("s3"), port);
    on_s3(&mut site, port);
    let daemon = site.start();
    commits(traffic(&site.db, 5, 1.0));
    let txid = site.sync();
    let oracle = site.copy_now("o.db");
    let moment = jiff::Timestamp::now();
    std::thread::sleep(Duration::from_millis(300));
    drop(server);
    for i in 1..6 {
        site.write(&format!("update t set a='outage' where id={i}"));
        std::thread::sleep(Duration::from_millis(80));
    }
    let error = site.fails(1, &["sync", "--timeout", "2s"]);
    assert!(error.contains("spool"), "{error}");
    let _server = s3(&site.path("s3"), port);
    let after = site.sync();
    assert!(after > txid);
    assert_same_pages(
        &site.copy_now("o2.db"),
        &site.restore("r2.db", &[]),
        "after the outage",
    );
    assert_same_pages(
        &oracle,
        &site.restore("r.db", &["--txid", &format!("{txid:x}")]),
        "before it",
    );
    assert_same_pages(
        &oracle,
        &site.restore("r.db", &["--at", &moment.to_string()]),
        "by time, on a store that lists none",
    );
    assert_eq!(daemon.stop(), 0);
    // Stock Litestream reads it too.
    let out = site.path("l.db");
    let config = site.path("ls.yml");
    std::fs::write(&config, format!("dbs:\n  - path: {}\n    replica:\n      type: s3\n      bucket: bucket\n      path: backups/app\n      endpoint: http://127.0.0.1:{port}\n      region: us-east-1\n      force-path-style: true\n      access-key-id: AKEXAMPLE\n      secret-access-key: secret/with+signs\n", site.db.display())).unwrap();
    let result = litestream()
        .args(["restore", "-config"])
        .arg(&config)
        .arg("-o")
        .arg(&out)
        .arg(&site.db)
        .output()
        .unwrap();
    assert!(
        result.status.success(),
        "{}",
        String::from_utf8_lossy(&result.stderr)
    );
    assert_same_pages(&site.copy_now("o3.db"), &out, "Litestream from S3");
}

#[test]
fn s3_refusals_say_what_to_do() {
    let mut site = Site::new();
    let port = free_port();
    let _server = s3(&site.path("s3"), port);
    on_s3(&mut site, port);
    site.store = "s3://nosuchbucket/x".into();
    let error = site.fails(1, &["list"]);
    assert!(
        error.contains("NoSuchBucket") && error.contains("hint: create the bucket"),
        "{error}"
    );
    on_s3(&mut site, port);
    site.store_extra = site.store_extra.replace("secret/with+signs", "wrong");
    let error = site.fails(1, &["list"]);
    assert!(
        error.contains("hint: check access-key-id") && !error.contains(" wrong"),
        "{error}"
    );
    on_s3(&mut site, free_port());
    let error = site.fails(1, &["list"]);
    assert!(error.contains("hint: check the endpoint"), "{error}");
    // The daemon itself goes on and says why it is not ready.
    let daemon = site.start();
    wait_for(&daemon, "the reason", || {
        daemon.log().contains("error sending request") || daemon.log().contains("onnect")
    });
}

#[test]
fn azure_end_to_end() {
    let mut site = Site::new();
    let port = free_port();
    let mut command = Command::new(tool("azurite/node_modules/.bin/azurite-blob"));
    command.args([
        "--silent",
        "--skipApiVersionCheck",
        "--loose",
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        &port.to_string(),
        "--location",
    ]);
    command.arg(site.path("azurite"));
    let _server = serve(command, port);
    // Azurite's documented account and key.
    let key =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
    create_container(port, key);
    site.store = "abs://box/backups".into();
    site.store_extra = format!(
        "  endpoint: http://127.0.0.1:{port}/devstoreaccount1\n  account-name: devstoreaccount1\n  account-key: {key}\n"
    );
    let daemon = site.start();
    commits(traffic(&site.db, 6, 1.0));
    let txid = site.sync();
    let oracle = site.copy_now("o.db");
    site.write("delete from t");
    site.sync();
    assert_same_pages(
        &oracle,
        &site.restore("r.db", &["--txid", &format!("{txid:x}")]),
        "from Azure",
    );
    assert_eq!(daemon.stop(), 0);
}

/// Python has HMAC in its library: enough for one signed request.
fn create_container(port: u16, key: &str) {
    let code = format!(
        "import hmac,hashlib,base64,urllib.request,email.utils
date=email.utils.formatdate(usegmt=True)
text='PUT\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\nx-ms-date:'+date+'\\nx-ms-version:2021-08-06\\n/devstoreaccount1/devstoreaccount1/box\\nrestype:container'
sig=base64.b64encode(hmac.new(base64.b64decode('{key}'),text.encode(),hashlib.sha256).digest()).decode()
r=urllib.request.Request('http://127.0.0.1:{port}/devstoreaccount1/box?restype=container',method='PUT',headers={{'x-ms-date':date,'x-ms-version':'2021-08-06','Authorization':'SharedKey devstoreaccount1:'+sig}})
urllib.request.urlopen(r).read()"
    );
    python(Path::new("unused"), &code);
}
