//! A real Redis server on a socket of its own, ended with the test.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub const PASSWORD: &str = "p@ss/word:1";
const URL_PASSWORD: &str = "p%40ss%2Fword%3A1";

pub struct Redis {
    child: Child,
    pub folder: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Redis {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = launch(folder.path());
        let server = Self { child, folder };
        server.answers();
        server
    }

    pub fn restart(&mut self) {
        self.child = launch(self.folder.path());
        self.answers();
    }

    fn answers(&self) {
        let begun = Instant::now();
        while self.run(&["PING"]) != "PONG" {
            assert!(begun.elapsed() < Duration::from_secs(60), "no Redis");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// With SIGKILL.
    pub fn kill(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn run(&self, args: &[&str]) -> String {
        let out = Command::new("redis-cli")
            .arg("-s")
            .arg(self.folder.path().join("redis.sock"))
            .args(args)
            .env("REDISCLI_AUTH", PASSWORD)
            .output()
            .expect("redis-cli is missing: run bin/install-dev");
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    pub fn url(&self) -> String {
        let folder = self.folder.path().display();
        format!("unix://:{URL_PASSWORD}@{folder}/redis.sock")
    }
}

fn launch(folder: &Path) -> Child {
    Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--requirepass", PASSWORD])
        .arg("--unixsocket")
        .arg(folder.join("redis.sock"))
        .arg("--dir")
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is missing: run bin/install-dev")
}
