//! HTTPS servers with certificates of their own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ends with the test.
pub struct TlsServer {
    child: Child,
    pub port: u16,
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl TlsServer {
    /// With `NAME.pem` and `NAME.key` of the folder.
    pub fn new(folder: &Path, name: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/tls_receiver.py");
        let mut child = Command::new("python3")
            .args([
                script,
                "https",
                &format!("{name}.pem"),
                &format!("{name}.key"),
            ])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is missing: run bin/install-dev");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next().unwrap().unwrap().parse().unwrap();
        // Its further lines have to go somewhere.
        std::thread::spawn(move || lines.count());
        Self { child, port }
    }
}

fn openssl(folder: &Path, args: &str) {
    let out = Command::new("openssl")
        .args(args.split(' '))
        .current_dir(folder)
        .output()
        .expect("openssl is missing: run bin/install-dev");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args}\n{said}");
}

/// An authority, and certificates for `localhost` that are good for so many days.
pub fn certificates(folder: &Path, leaves: &[(&str, &str)]) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(
        folder,
        &format!("req -x509 {key} -days 2 -keyout ca.key -out ca.pem -subj /CN=authority"),
    );
    std::fs::write(
        folder.join("leaf.ext"),
        "subjectAltName=DNS:localhost\nbasicConstraints=critical,CA:FALSE\n",
    )
    .unwrap();
    for (name, days) in leaves {
        openssl(
            folder,
            &format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN=leaf"),
        );
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} -extfile leaf.ext -out {name}.pem"
            ),
        );
    }
    openssl(
        folder,
        &format!(
            "req -x509 {key} -days 90 -keyout alone.key -out alone.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost"
        ),
    );
}
