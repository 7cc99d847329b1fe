//! The doctor finds what is wrong, says how to mend it, and leaves nothing behind.
#![allow(missing_docs)]

mod common;
#[allow(dead_code)]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use common::daemon::Site;
use common::python;
use serde_json::Value;

/// Its answer, and its exit code.
fn doctor(site: &Site, args: &[&str]) -> (Value, i32) {
    let mut all = vec!["doctor", "--json"];
    all.extend(args);
    let out = site.run(&all);
    let said = String::from_utf8(out.stdout).unwrap();
    let answer: Value = serde_json::from_str(&said).unwrap_or_else(|e| {
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        panic!("{e}: {said}{error}")
    });
    for check in answer["checks"].as_array().unwrap() {
        let is_right = check["status"] == "ok";
        assert_eq!(
            is_right,
            check["fix"].is_null(),
            "every finding has a fix: {check}"
        );
    }
    (answer, out.status.code().unwrap())
}

/// The details of checks of a kind and a status.
fn found(answer: &Value, check: &str, status: &str) -> Vec<String> {
    let all = answer["checks"].as_array().unwrap().iter();
    all.filter(|c| c["check"] == check && c["status"] == status)
        .map(|c| format!("{}: {} ({})", c["subject"], c["detail"], c["fix"]))
        .collect()
}

fn one(answer: &Value, check: &str, status: &str, words: &str) {
    let found = found(answer, check, status);
    assert!(
        found.iter().any(|f| f.contains(words)),
        "no {check} {status} with {words:?} in {found:?}\n{answer:#}"
    );
}

fn objects(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|e| e.unwrap().path())
        .map(|p| if p.is_dir() { objects(&p) } else { 1 })
        .sum()
}

#[test]
fn a_patient_in_good_health() {
    let mut site = Site::new();
    site.extra = "drill: { schedule: '0 4 * * *' }\n".into();
    let daemon = site.start();
    site.sync();
    let (answer, code) = doctor(&site, &[]);
    assert_eq!(code, 0, "{answer:#}");
    assert_eq!(answer["ok"], true);
    for (check, words) in [
        ("permissions", "reads and writes"),
        ("journal mode", "WAL"),
        ("daemon", "replicated by process"),
        ("disk", "free"),
        ("state", "writable"),
        ("store", "written, read, listed and deleted"),
        ("store", "conditional creates are honoured"),
        ("replica", "restorable up to"),
        ("owner", "web1"),
    ] {
        one(&answer, check, "ok", words);
    }
    one(&answer, "store", "warning", "same disk");
    // The configuration and the log of the test itself.
    assert_eq!(answer["unprotected"]["files"], 2, "{answer:#}");
    assert!(answer["unprotected"]["databases"] == serde_json::json!([]));
    let scratch = site.path("store/app/lifeboat/doctor");
    assert!(
        !scratch.exists() || objects(&scratch) == 0,
        "nothing is left in the store"
    );
    let bill = &answer["bill"][0];
    assert_eq!(bill["target"], "app");
    assert_eq!(bill["reads"], 730, "one store check an hour: {bill}");
    assert_eq!(bill["full-copies"], 18, "{bill}");
    assert!(
        bill["writes-at-most"].as_u64().unwrap() > 52_000_000,
        "every 50 ms: {bill}"
    );
    assert_eq!(bill["cost"], Value::Null, "a folder costs nothing: {bill}");
    let words = site.ok(&["doctor"]);
    assert!(
        words.contains("Expected bill of a month") && words.contains("lifeboat: ok doctor checks="),
        "{words}"
    );
    daemon.stop();
    let (answer, _) = doctor(&site, &[]);
    one(&answer, "daemon", "warning", "lifeboat run");
}

#[test]
fn databases_that_cannot_be_replicated() {
    let mut site = Site::new();
    let plain = site.path("plain.sqlite3");
    python(&plain, "conn().execute('create table t(a)')");
    std::fs::write(
        site.path("text.sqlite3"),
        "no database at all, but long enough",
    )
    .unwrap();
    std::fs::write(site.path("empty.sqlite3"), "").unwrap();
    for (name, more) in [
        ("plain", "    ensure-wal: false\n"),
        ("text", ""),
        ("empty", ""),
        ("later", ""),
        ("nowhere/far", ""),
    ] {
        let path = site.path(&format!("{name}.sqlite3"));
        site.extra += &format!("  - path: {}\n{more}", path.display());
    }
    let (answer, code) = doctor(&site, &[]);
    assert_eq!(code, 1);
    one(&answer, "journal mode", "failed", "not WAL");
    one(&answer, "database", "failed", "no SQLite database");
    one(&answer, "database", "warning", "the file is empty");
    one(
        &answer,
        "database",
        "warning",
        "later.sqlite3 is not there yet",
    );
    one(&answer, "database", "warning", "app.sqlite3, plain.sqlite3");
    one(&answer, "database", "failed", "nowhere is not there");
    assert_eq!(answer["ok"], false);
    let out = site.run(&["doctor"]);
    assert!(!String::from_utf8_lossy(&out.stdout).contains("lifeboat: ok"));
    assert!(String::from_utf8_lossy(&out.stderr).contains("checks failed"));
}

#[test]
fn what_nothing_protects_is_counted() {
    let site = Site::new();
    let put = |name: &str, bytes: usize| {
        let path = site.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![b'x'; bytes]).unwrap();
    };
    put("ab/cd/abcdefghijklmnopqrstuvwxyz12", 1000);
    put("ab/ef/abefghijklmnopqrstuvwxyz1234", 500);
    put("exports/report.csv", 7000);
    put("app.sqlite3.before-restore-20261120T103000.000Z", 40);
    put("store/other/file", 9_000_000);
    put("state-web1/scratch", 9_000_000);
    for name in [
        "forgotten.sqlite3",
        "deep/inside/old.db",
        "app_cache.sqlite3",
    ] {
        put(name, 0);
        python(&site.path(name), "conn().execute('create table t(a)')");
    }
    let (answer, code) = doctor(&site, &[]);
    assert_eq!(code, 0, "{answer:#}");
    let volume = &answer["unprotected"];
    // Beside those three: the configuration file of the test itself.
    let own = std::fs::metadata(site.path("lifeboat-web1.yml"))
        .unwrap()
        .len();
    assert_eq!(volume["files"], 4, "{volume:#}");
    assert_eq!(volume["bytes"], 8500 + own, "{volume:#}");
    assert_eq!(volume["uploads"], 2, "{volume:#}");
    assert_eq!(volume["kept"], 1, "{volume:#}");
    assert_eq!(
        volume["databases"].as_array().unwrap().len(),
        2,
        "{volume:#}"
    );
    assert_eq!(volume["caches"].as_array().unwrap().len(), 1, "{volume:#}");
    assert!(
        volume["largest"][0][0]
            .as_str()
            .unwrap()
            .ends_with("/exports"),
        "{volume:#}"
    );
    one(&answer, "unprotected", "warning", "forgotten.sqlite3");
    one(&answer, "unprotected", "warning", "deep/inside/old.db");
    one(
        &answer,
        "unprotected",
        "warning",
        "2 of them look like uploads",
    );
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("one"), "1").unwrap();
    let (answer, _) = doctor(&site, &["--volume", elsewhere.path().to_str().unwrap()]);
    assert_eq!(answer["unprotected"]["files"], 1, "{answer:#}");
}

/// A store that lets nobody in; returns its port.
fn forbidding() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // One request is all that is read of a connection; the client may hang up first.
            let _ = stream.read(&mut [0; 8192]);
            let answer = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

#[test]
fn stores_servers_and_replicas_that_are_not_right() {
    let mut site = Site::new();
    site.sync();
    site.write("delete from t where id = 1");
    site.sync();
    site.write("delete from t where id = 2");
    site.sync();
    // Another host, with nothing of the first one's state.
    site.instance = "web2".into();
    let (answer, _) = doctor(&site, &[]);
    one(&answer, "owner", "warning", "lifeboat claim app");
    site.instance = "web1".into();

    site.extra += &format!(
        "files:\n  - name: uploads\n    paths: [{}]\n    password: battery-staple\n    store: {{ url: s3://bucket, endpoint: \"http://127.0.0.1:{}\", region: x, access-key-id: AKIAEXAMPLE, secret-access-key: wJalrSECRET }}\npostgres:\n  - name: pg\n    url: postgres://app:hunter2@127.0.0.1:1/app\n",
        site.path("gone").display(),
        forbidding(),
    );
    let (answer, code) = doctor(&site, &[]);
    assert_eq!(code, 1);
    one(&answer, "store", "failed", "s3://bucket");
    one(&answer, "encryption", "warning", "plain http");
    one(&answer, "files", "failed", "gone is not there");
    one(&answer, "server", "failed", "pg");
    let text = answer.to_string();
    for secret in ["battery-staple", "wJalrSECRET", "AKIAEXAMPLE", "hunter2"] {
        assert!(!text.contains(secret), "{secret}");
    }

    // An object in the middle is gone.
    site.extra = String::new();
    let level = site.path("store/app/ltx/0");
    let mut names: Vec<_> = std::fs::read_dir(&level)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    names.sort();
    std::fs::remove_file(&names[names.len() - 2]).unwrap();
    let (answer, code) = doctor(&site, &[]);
    assert_eq!(code, 1);
    one(&answer, "replica", "failed", "is missing");
}

#[test]
fn a_configuration_that_is_wrong_is_the_first_finding() {
    let mut site = Site::new();
    site.extra = "retenshun: 7d\n".into();
    let (answer, code) = doctor(&site, &[]);
    assert_eq!(code, 2);
    one(&answer, "configuration", "failed", "retenshun");
}

/// Root may do everything: then somebody else is asked.
fn as_nobody(site: &Site) -> Output {
    let mut command = site.command(&["doctor", "--json"]);
    if rustix::process::geteuid().is_root() {
        let copy = site.path("lifeboat");
        std::fs::copy(env!("CARGO_BIN_EXE_lifeboat"), &copy).unwrap();
        let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(copy)
            .args(args)
            .current_dir(site.dir.path());
    }
    command
        .output()
        .expect("setpriv is missing: apt-get install util-linux")
}

#[test]
fn a_database_of_somebody_else() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(site.dir.path(), 0o755);
    mode(&site.db, 0o444);
    let out = as_nobody(&site);
    let answer: Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)));
    assert_eq!(out.status.code(), Some(1));
    one(&answer, "permissions", "failed", "options: { user:");
}

/// A request up to the end of its body.
fn request(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let head = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(end) = head {
            let text = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = text.split("\r\ncontent-length: ").nth(1);
            let length: usize =
                length.map_or(0, |l| l.lines().next().unwrap().trim().parse().unwrap());
            if bytes.len() >= end + 4 + length {
                return bytes;
            }
        }
        match stream.read(&mut buffer).unwrap() {
            0 => return bytes,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}

/// A real S3 server, but for the requests that `rule` answers itself: (method, target) to (status, body). Returns its port.
fn in_front(server: SocketAddr, rule: fn(&str, &str) -> Option<(u16, &'static str)>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let asked = request(&mut stream);
            let line = String::from_utf8_lossy(&asked);
            let mut words = line.split_whitespace();
            let (Some(method), Some(target)) = (words.next(), words.next()) else {
                continue;
            };
            let answer = match rule(method, target) {
                Some((status, body)) => format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                )
                .into_bytes(),
                None => {
                    let mut real = TcpStream::connect(server).unwrap();
                    let end = asked.iter().position(|b| *b == b'\n').unwrap() + 1;
                    real.write_all(&asked[..end]).unwrap();
                    real.write_all(b"connection: close\r\n").unwrap();
                    real.write_all(&asked[end..]).unwrap();
                    let mut answer = Vec::new();
                    real.read_to_end(&mut answer).unwrap();
                    answer
                }
            };
            // The client may have hung up.
            let _ = stream.write_all(&answer);
        }
    });
    port
}

const DENIED: (u16, &str) = (
    403,
    "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
);

fn on_s3(port: u16) -> Site {
    let mut site = Site::new();
    site.store = "s3://bucket/myapp".into();
    site.store_extra = format!(
        "  endpoint: http://127.0.0.1:{port}\n  region: us-east-1\n  access-key-id: {}\n  secret-access-key: {}\n",
        support::S3_ACCESS_KEY,
        support::S3_SECRET_KEY
    );
    site
}

#[test]
fn each_right_that_keys_lack_is_named() {
    let server = support::s3();
    type Rule = fn(&str, &str) -> Option<(u16, &'static str)>;
    let rules: [(&str, &str, Rule); 4] = [
        (
            "s3:PutObject on arn:aws:s3:::bucket/*",
            "nothing can be backed up",
            |m, _| (m == "PUT").then_some(DENIED),
        ),
        (
            "s3:GetObject on arn:aws:s3:::bucket/*",
            "cannot be restored",
            |m, t| {
                (m == "GET" && t.contains("/doctor/") && !t.contains("list-type")).then_some(DENIED)
            },
        ),
        (
            "s3:ListBucket on arn:aws:s3:::bucket ",
            "restore points cannot be found",
            |m, t| (m == "GET" && t.contains("list-type")).then_some(DENIED),
        ),
        (
            "s3:DeleteObject on arn:aws:s3:::bucket/*",
            "the bill grows",
            |m, _| (m == "DELETE").then_some(DENIED),
        ),
    ];
    for (right, without, rule) in rules {
        let site = on_s3(in_front(server.address, rule));
        let (answer, code) = doctor(&site, &[]);
        assert_eq!(code, 1, "{right}");
        let failed = found(&answer, "store", "failed");
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(
            failed[0].contains(&format!("allow {right}")) && failed[0].contains(without),
            "{right}: {failed:?}"
        );
    }
    // With all of them nothing is left behind.
    let site = on_s3(in_front(server.address, |_, _| None));
    let (answer, code) = doctor(&site, &[]);
    assert_eq!(code, 0, "{answer:#}");
    one(&answer, "store", "ok", "written, read, listed and deleted");
    one(&answer, "bucket", "ok", "not known");
}

#[test]
fn rules_of_the_bucket_that_would_delete_backups() {
    let server = support::s3();
    let site = on_s3(in_front(server.address, |_, target| {
        if target.contains("lifecycle") {
            Some((
                200,
                "<LifecycleConfiguration><Rule><ID>tidy</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter><Expiration><Days>30</Days></Expiration>\
                 <Transition><Days>7</Days><StorageClass>GLACIER</StorageClass></Transition></Rule></LifecycleConfiguration>",
            ))
        } else if target.contains("versioning") {
            Some((
                200,
                "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
            ))
        } else if target.contains("object-lock") {
            Some((
                404,
                "<Error><Code>ObjectLockConfigurationNotFoundError</Code></Error>",
            ))
        } else {
            None
        }
    }));
    let (answer, code) = doctor(&site, &[]);
    assert_eq!(code, 1);
    one(&answer, "bucket", "failed", "deletes objects after 30 days");
    one(&answer, "bucket", "failed", "GLACIER after 7 days");
    one(&answer, "bucket", "warning", "paid for ever");
    one(&answer, "store", "ok", "written, read, listed and deleted");

    let site = on_s3(in_front(server.address, |_, target| {
        let asked = ["lifecycle", "versioning", "object-lock"];
        asked.iter().any(|a| target.contains(a)).then_some(DENIED)
    }));
    let (answer, code) = doctor(&site, &[]);
    assert_eq!(code, 0, "keys that may not ask are good keys: {answer:#}");
    one(&answer, "bucket", "ok", "s3:GetLifecycleConfiguration");
}

#[test]
fn a_database_in_memory_is_told() {
    let memory = Path::new("/dev/shm");
    let folder = tempfile::tempdir_in(memory).expect("a tmpfs at /dev/shm");
    let path = folder.path().join("fast.sqlite3");
    python(
        &path,
        "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(a)')",
    );
    let mut site = Site::new();
    site.extra = format!("  - path: {}\n", path.display());
    let (answer, _) = doctor(&site, &[]);
    one(&answer, "volume", "warning", "is in memory");
}
