//! TLS to a real PostgreSQL server: every mode that a URL may ask for.
#![allow(missing_docs)]

mod pg;

use std::path::Path;
use std::process::Command;

use pg::site::Site;
use pg::{PASSWORD, URL_PASSWORD};

fn openssl(folder: &Path, args: &str) {
    let out = Command::new("openssl")
        .args(args.split(' '))
        .current_dir(folder)
        .output()
        .expect("openssl is missing: run bin/install-dev");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// An authority, and a certificate of it for `localhost`.
fn certificates(folder: &Path) {
    let new = "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for authority in ["ca", "other"] {
        openssl(
            folder,
            &format!(
                "{new} -x509 -days 2 -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"
            ),
        );
    }
    openssl(
        folder,
        &format!(
            "{new} -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout server.key -out server.csr"
        ),
    );
    openssl(
        folder,
        "x509 -req -in server.csr -days 2 -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy -out server.pem",
    );
}

#[test]
fn every_mode() {
    let mut site = Site::new("    schedule: '0 3 1 1 *'\n");
    let folder = site.server.folder.path().to_owned();
    certificates(&folder);
    let port = pg::port::free_port();
    let path = folder.display();
    site.server.settings = vec![
        "listen_addresses=127.0.0.1".into(),
        "ssl=on".into(),
        format!("ssl_cert_file={path}/server.pem"),
        format!("ssl_key_file={path}/server.key"),
        format!("hba_file={path}/hba"),
    ];
    // Over the network nobody comes in without TLS.
    std::fs::write(
        folder.join("hba"),
        "local all all scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
    if rustix::process::getuid().is_root() {
        let chown = Command::new("chown")
            .args(["-R", "postgres:postgres"])
            .arg(&folder)
            .status();
        assert!(chown.unwrap().success());
    }
    site.server.stop();
    site.server.port = port;
    site.server.restart();

    let run = |host: &str, parameters: &str| {
        let config = site.dir.path().join("tls.yml");
        let text = format!(
            "store: file://{root}/store\nstate-dir: {root}/state\nhttp: off\npostgres:\n  - name: app\n    url: \"postgres://boss:{URL_PASSWORD}@{host}:{port}/an%20%22odd%22%20'name'?{parameters}\"\n",
            root = site.dir.path().display(),
        );
        std::fs::write(&config, text).unwrap();
        let out = Command::new(env!("CARGO_BIN_EXE_lifeboat"))
            .args(["snapshot", "app", "--config"])
            .arg(config)
            .output()
            .unwrap();
        let words = pg::site::words(&out);
        (out.status.code(), words)
    };
    let good = format!("sslmode=verify-full&sslrootcert={path}/ca.pem");
    for (host, parameters) in [
        ("localhost", good.as_str()),
        ("localhost", "sslmode=require"),
        ("127.0.0.1", &good.replace("verify-full", "verify-ca")),
    ] {
        let (code, words) = run(host, parameters);
        assert_eq!(code, Some(0), "{parameters}: {words}");
    }
    for (host, parameters, reason) in [
        // The wrong authority, the wrong name, none at all.
        (
            "localhost",
            good.replace("ca.pem", "other.pem").as_str(),
            "sslrootcert",
        ),
        ("127.0.0.1", &good, "sslrootcert"),
        ("localhost", "sslmode=disable", "wants TLS"),
    ] {
        let (code, words) = run(host, parameters);
        assert_eq!(code, Some(1), "{parameters}: {words}");
        let hint = words
            .lines()
            .find(|l| l.starts_with("hint:"))
            .unwrap_or_default();
        assert!(hint.contains(reason), "{parameters}: {words}");
        assert!(!words.contains(PASSWORD), "{words}");
    }
    assert_eq!(site.dumps("app").len(), 3);
    site.every_listed_dump_restores(3);
}
