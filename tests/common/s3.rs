//! A real S3 server for a site.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::daemon::{Site, free_port, tool};
use super::link::Link;

/// Ends with the test.
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The site's store is in one from now on, behind a link that holds or refuses requests.
pub fn behind_a_link(site: &mut Site) -> (Link, Server) {
    let port = free_port();
    std::fs::create_dir_all(site.path("s3/bucket")).unwrap();
    let server = Command::new(tool("bin/s3s-fs"))
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .args(["--access-key", "AKEXAMPLE", "--secret-key", "secret"])
        .arg(site.path("s3"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Server)
        .unwrap();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let link = Link::to(port);
    site.store = "s3://bucket/backups".into();
    site.store_extra = format!(
        "  endpoint: http://127.0.0.1:{}\n  region: us-east-1\n  access-key-id: AKEXAMPLE\n  secret-access-key: secret\n",
        link.port
    );
    (link, server)
}
