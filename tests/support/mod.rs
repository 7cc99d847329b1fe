//! Servers that tests talk to, on loopback, ended with the test that started them.

pub(crate) mod google;

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it answers; Node takes seconds on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The access key of [`s3`].
pub(crate) const S3_ACCESS_KEY: &str = "test-access-key";
/// The secret key of [`s3`].
pub(crate) const S3_SECRET_KEY: &str = "test-secret-key";
/// Azurite's well-known account and key (public, the same in every installation).
pub(crate) const AZURITE_ACCOUNT: &str = "devstoreaccount1";
/// See [`AZURITE_ACCOUNT`].
pub(crate) const AZURITE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A running server and its directory; both end with the value.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// It answers nobody for so long, as a machine that is swapping.
    #[allow(dead_code, reason = "not every test binary uses it")]
    pub(crate) fn pause(&self, time: Duration) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let signal = |s| rustix::process::kill_process(pid, s).expect("signal the server");
        signal(rustix::process::Signal::STOP);
        std::thread::sleep(time);
        signal(rustix::process::Signal::CONT);
    }
}

/// A path under `.tools`, where `bin/install-dev` puts everything.
fn tool(path: &str) -> PathBuf {
    let full = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(".tools")
        .join(path);
    assert!(
        full.exists(),
        "{} is missing: run bin/install-dev",
        full.display()
    );
    full
}

/// A port nobody listens on now. Another process can take it before the server does: [`start`] notices
/// that and tries the next.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind to loopback");
    listener.local_addr().expect("address")
}

fn start(command: impl Fn(SocketAddr, &Path) -> Command) -> Server {
    for _ in 0..5 {
        let address = free_address();
        let directory = tempfile::tempdir().expect("temporary directory");
        let log = directory.path().with_extension("log");
        let output = File::create(&log).expect("log file");
        let child = command(address, directory.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("log file"))
            .stderr(output)
            .spawn()
            .expect("start the server");
        let _ = std::fs::remove_file(&log);
        let mut server = Server {
            child,
            address,
            directory,
        };
        let deadline = Instant::now() + START_TIMEOUT;
        while server.child.try_wait().expect("wait").is_none() {
            if TcpStream::connect(address).is_ok() {
                return server;
            }
            assert!(
                Instant::now() < deadline,
                "server did not start within {START_TIMEOUT:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    panic!("server ended at once, five times");
}

/// An S3 server. Buckets are the directories in its directory.
pub(crate) fn s3() -> Server {
    let program = tool("bin/s3s-fs");
    let server = start(|address, directory| {
        let mut command = Command::new(&program);
        command
            .args([
                "--host",
                &address.ip().to_string(),
                "--port",
                &address.port().to_string(),
            ])
            .args(["--access-key", S3_ACCESS_KEY, "--secret-key", S3_SECRET_KEY])
            .arg(directory);
        command
    });
    std::fs::create_dir(server.directory.path().join("bucket")).expect("make the bucket");
    server
}

/// An Azure Blob server. It has no container yet: see [`azurite_container`].
pub(crate) fn azurite() -> Server {
    let program = tool("azurite/node_modules/.bin/azurite-blob");
    start(|address, directory| {
        let mut command = Command::new(&program);
        command
            .args([
                "--blobHost",
                &address.ip().to_string(),
                "--blobPort",
                &address.port().to_string(),
            ])
            .args([
                "--silent",
                "--skipApiVersionCheck",
                "--disableTelemetry",
                "--location",
            ])
            .arg(directory);
        command
    })
}

/// Makes a container in Azurite, with Node, which Azurite needs anyway.
pub(crate) fn azurite_container(server: &Server, container: &str) {
    const SCRIPT: &str = r#"
        const [account, key, host, container] = process.argv.slice(1);
        const date = new Date().toUTCString(), version = "2021-12-02";
        const text = "PUT" + "\n".repeat(12) + `x-ms-date:${date}\nx-ms-version:${version}\n`
            + `/${account}/${account}/${container}\nrestype:container`;
        const hmac = require("crypto").createHmac("sha256", Buffer.from(key, "base64"));
        const signature = hmac.update(text, "utf8").digest("base64");
        fetch(`http://${host}/${account}/${container}?restype=container`, {
            method: "PUT",
            headers: { "x-ms-date": date, "x-ms-version": version,
                       authorization: `SharedKey ${account}:${signature}` },
        }).then(async r => {
            if (r.status !== 201) { console.error(r.status, await r.text()); process.exit(1); }
        });
    "#;
    let status = Command::new("node")
        .args([
            "-e",
            SCRIPT,
            AZURITE_ACCOUNT,
            AZURITE_KEY,
            &server.address.to_string(),
            container,
        ])
        .status()
        .expect("node runs: run bin/install-dev");
    assert!(status.success(), "making the container failed");
}
