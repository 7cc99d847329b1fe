//! Dumps of a real Redis server, and what becomes of them when something fails.
#![allow(missing_docs)]

#[path = "common/port.rs"]
#[allow(unreachable_pub, reason = "shared with other binaries")]
mod port;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PASSWORD: &str = "p@ss/word:1";
const URL_PASSWORD: &str = "p%40ss%2Fword%3A1";
/// More than pipes and sockets hold.
const BIG_BYTES: usize = 24 * 1024 * 1024;

#[track_caller]
fn wait_for(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A server on a socket in a folder of its own, ended with the test.
struct Server {
    child: Child,
    folder: tempfile::TempDir,
    /// The append-only files, which it prefers to an RDB.
    append: bool,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn launch(folder: &Path, more: &[&str]) -> Child {
    Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--requirepass", PASSWORD])
        .args(["--enable-debug-command", "yes", "--daemonize", "no"])
        .arg("--unixsocket")
        .arg(folder.join("redis.sock"))
        .arg("--dir")
        .arg(folder)
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is missing: run bin/install-dev")
}

impl Server {
    fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = launch(folder.path(), more);
        Self::answering(Self {
            child,
            folder,
            append: false,
        })
    }

    /// From an RDB, as the instructions say.
    fn from_rdb(file: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(file, folder.path().join("dump.rdb")).unwrap();
        let child = launch(folder.path(), &["--appendonly", "no"]);
        let mut server = Self::answering(Self {
            child,
            folder,
            append: false,
        });
        server.run(&["CONFIG", "SET", "appendonly", "yes"]);
        server.append = true;
        server
    }

    fn answering(self) -> Self {
        wait_for(|| self.cli(&["PING"]).is_ok_and(|answer| answer == "PONG"));
        self
    }

    fn cli(&self, args: &[&str]) -> Result<String, String> {
        let out = self.command(args).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        match out.status.success() && !text.starts_with("ERR") && !text.starts_with("NO") {
            true => Ok(text),
            false => Err(text + &String::from_utf8_lossy(&out.stderr)),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("redis-cli");
        command
            .arg("-s")
            .arg(self.folder.path().join("redis.sock"))
            .args(args)
            .env("REDISCLI_AUTH", PASSWORD);
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        self.cli(args).unwrap_or_else(|e| panic!("{args:?}: {e}"))
    }

    /// Every type, several databases, times to live, values that are no text.
    fn populate(&self) {
        self.run(&[
            "EVAL",
            "for i = 1, 2000 do redis.call('SET', 'key:' .. i, 'value ' .. i) end",
            "0",
        ]);
        self.run(&["RPUSH", "list", "a", "b", "c"]);
        self.run(&["SADD", "set", "x", "y"]);
        self.run(&["ZADD", "sorted", "1.5", "one", "2.5", "two"]);
        self.run(&["HSET", "hash", "field", "va\nl\u{fc}e"]);
        self.run(&["XADD", "stream", "*", "sensor", "1"]);
        self.run(&["SET", "session", "1", "EX", "100000"]);
        self.run(&["-n", "3", "SET", "elsewhere", "yes"]);
        self.run(&[
            "EVAL",
            "redis.call('SET', 'bytes', string.char(0, 255, 10, 13, 0))",
            "0",
        ]);
    }

    /// A value that does not compress.
    fn fill(&self) {
        let mut noise = vec![0_u8; BIG_BYTES];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for chunk in noise.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        let mut child = self
            .command(&["-x", "SET", "big"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&noise).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// Of every key in every database.
    fn digest(&self) -> String {
        let digest = self.run(&["DEBUG", "DIGEST"]);
        assert_eq!(digest.len(), 40, "{digest}");
        digest
    }

    fn kill(&mut self) {
        for process in children(self.child.id())
            .into_iter()
            .chain([self.child.id()])
        {
            signal(process, Signal::KILL);
        }
        // Gone already is fine.
        let _ = self.child.wait();
    }

    fn restart(&mut self) {
        self.child = launch(self.folder.path(), &[]);
        wait_for(|| self.cli(&["PING"]).is_ok());
    }
}

fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
    {
        let text = std::fs::read_to_string(task.unwrap().path().join("children"));
        found.extend(
            text.unwrap_or_default()
                .split_whitespace()
                .filter_map(|p| p.parse::<u32>().ok()),
        );
    }
    found
}

/// To a process that this test started, or one that such a process started.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // Gone already is fine.
        let _ = kill_process(pid, signal);
    }
}

/// The real binary beside it.
struct Site {
    server: Server,
    dir: tempfile::TempDir,
    user: String,
    extra: String,
    port: u16,
}

impl Site {
    fn new(server: Server) -> Self {
        Self {
            server,
            dir: tempfile::tempdir().unwrap(),
            user: String::new(),
            extra: "    schedule: '0 3 1 1 *'\n".into(),
            port: port::free_port(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let config = self.path("lifeboat.yml");
        let text = format!(
            "store: file://{root}/store\nstate-dir: {root}/state\nhttp: {{ listen: 127.0.0.1:{} }}\nredis:\n  - name: cache\n    url: \"unix://{}:${{SECRET}}@{}\"\n{}",
            self.port,
            self.user,
            self.server.folder.path().join("redis.sock").display(),
            self.extra,
            root = self.dir.path().display(),
        );
        if std::fs::read_to_string(&config).ok().as_ref() != Some(&text) {
            std::fs::write(&config, text).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command
            .args(args)
            .arg("--config")
            .arg(config)
            .env("SECRET", URL_PASSWORD)
            .current_dir(self.dir.path());
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let out = self.command(args).output().unwrap();
        let text = words(&out);
        assert!(out.status.success(), "{args:?}: {text}");
        text
    }

    #[track_caller]
    fn refused(&self, args: &[&str], code: i32) -> String {
        let out = self.command(args).output().unwrap();
        let text = words(&out);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
        assert!(!text.contains("lifeboat: ok"), "{text}");
        text
    }

    fn dumps(&self) -> Vec<Value> {
        let text = self.ok(&["list", "cache", "--json"]);
        let value: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        value["dumps"].as_array().cloned().unwrap_or_default()
    }

    fn metric(&self, name: &str) -> f64 {
        let url = format!("http://127.0.0.1:{}/metrics", self.port);
        let out = Command::new("curl").args(["-s", "-m", "10", &url]).output();
        let text =
            String::from_utf8_lossy(&out.expect("curl is missing: run bin/install-dev").stdout)
                .into_owned();
        let mine = text.lines().filter(|l| l.starts_with(&format!("{name}{{")));
        mine.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Starts a server from every dump that is listed, and compares it with the one that was dumped.
    #[track_caller]
    fn every_listed_dump_restores(&self, expected: usize) {
        let dumps = self.dumps();
        assert_eq!(dumps.len(), expected, "{dumps:?}");
        for dump in &dumps {
            let file = self.path("proof.rdb");
            let id = dump["dump"]["id"].as_str().unwrap();
            self.ok(&[
                "restore",
                "cache",
                "-o",
                file.to_str().unwrap(),
                "--dump",
                id,
            ]);
            assert_eq!(
                Server::from_rdb(&file).digest(),
                self.server.digest(),
                "{id}"
            );
            std::fs::remove_file(file).unwrap();
        }
    }
}

fn words(out: &Output) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(
        !text.contains(PASSWORD) && !text.contains(URL_PASSWORD),
        "{text}"
    );
    text
}

#[test]
fn a_dump_starts_another_server() {
    for diskless in ["yes", "no"] {
        let server = Server::start(&[
            "--repl-diskless-sync",
            diskless,
            "--repl-diskless-sync-delay",
            "0",
        ]);
        let site = Site::new(server);
        // A server without a key, too.
        site.ok(&["snapshot"]);
        site.every_listed_dump_restores(1);
        site.server.populate();
        std::fs::remove_dir_all(site.path("store")).unwrap();
        let text = site.ok(&["snapshot", "--label", "before-v2"]);
        assert!(text.contains("lifeboat: ok"), "{text}");
        let dump = &site.dumps()[0];
        assert_eq!(dump["labels"][0], "before-v2", "{dump}");
        assert_eq!(dump["dump"]["kind"], "redis", "{dump}");
        assert_eq!(dump["dump"]["counts"]["db0"], 2007, "{dump}");
        assert_eq!(dump["dump"]["counts"]["db3"], 1, "{dump}");
        site.every_listed_dump_restores(1);
        let text = site.ok(&["verify", "cache"]);
        assert!(text.contains("every byte"), "{text}");
        let file = site.path("by-label.rdb");
        let text = site.ok(&[
            "restore",
            "cache",
            "--label",
            "before-v2",
            "-o",
            file.to_str().unwrap(),
        ]);
        assert!(
            text.contains("SHUTDOWN NOSAVE") && text.contains("appendonly"),
            "{text}"
        );
        let magic = std::fs::read(&file).unwrap();
        assert!(magic.starts_with(b"REDIS"));
        let text = site.refused(&["restore", "cache", "--in-place"], 4);
        assert!(text.contains("-o FILE"), "{text}");
        site.refused(&["drill", "cache"], 2);
        let text = site.ok(&["restore", "--all", "--in-place"]);
        assert!(text.contains("cache: left as it is"), "{text}");
        let folder = site.path("all");
        site.ok(&["restore", "--all", "-o", folder.to_str().unwrap()]);
        assert_eq!(
            Server::from_rdb(&folder.join("cache.rdb")).digest(),
            site.server.digest()
        );
    }
}

#[test]
fn least_rights_and_what_is_refused() {
    let mut site = Site::new(Server::start(&[]));
    site.server.populate();
    site.user = "backup".into();
    let text = site.refused(&["snapshot"], 1);
    assert!(
        text.contains("redis-cli failed") && text.contains("hint: check the user"),
        "{text}"
    );
    let rights = ["+info", "+ping", "+psync", "+replconf"];
    let secret = format!(">{PASSWORD}");
    site.server
        .run(&[&["ACL", "SETUSER", "backup", "on", &secret][..], &rights].concat());
    site.refused(&["snapshot"], 1);
    assert_eq!(site.dumps().len(), 0);
    site.server.run(&["ACL", "SETUSER", "backup", "+sync"]);
    site.ok(&["snapshot"]);
    site.every_listed_dump_restores(1);

    site.server.kill();
    let text = site.refused(&["snapshot"], 1);
    assert!(text.contains("hint: is the server running"), "{text}");
    assert_eq!(site.dumps().len(), 1);

    // Without a checksum nobody can say that a copy is right.
    let mut site = Site::new(Server::start(&["--rdbchecksum", "no"]));
    site.server.populate();
    let text = site.refused(&["snapshot"], 1);
    assert!(text.contains("rdbchecksum yes"), "{text}");
    assert_eq!(site.dumps().len(), 0);
    site.extra += "    bin-dir: /nonexistent\n";
    let text = site.refused(&["snapshot"], 2);
    assert!(text.contains("redis-tools"), "{text}");
}

#[test]
fn a_server_or_a_client_that_is_killed_in_the_middle() {
    let mut site = Site::new(Server::start(&[]));
    site.server.populate();
    site.server.run(&["CONFIG", "SET", "save", ""]);
    site.server.run(&["SAVE"]);
    for victim in ["server", "client", "lifeboat"] {
        site.server.fill();
        let child = site
            .command(&["snapshot", "cache"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut client = 0;
        // What it passed on; lifeboat takes nothing while it is stopped, so it cannot have ended.
        let passed = |pid: u32| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
            let line = text.lines().find_map(|l| l.strip_prefix("wchar: "));
            line.and_then(|n| n.parse::<usize>().ok()).unwrap_or(0)
        };
        wait_for(|| {
            client = children(child.id())
                .into_iter()
                .find(|pid| {
                    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    line.windows(5).any(|w| w == b"--rdb")
                })
                .unwrap_or(0);
            client != 0
        });
        signal(child.id(), Signal::STOP);
        wait_for(|| passed(client) > 60_000);
        assert!(passed(client) < BIG_BYTES);
        match victim {
            "server" => site.server.kill(),
            "client" => signal(client, Signal::KILL),
            _ => signal(child.id(), Signal::KILL),
        }
        signal(child.id(), Signal::CONT);
        let out = child.wait_with_output().unwrap();
        let text = words(&out);
        assert!(
            !out.status.success() && !text.contains("lifeboat: ok"),
            "{victim}: {text}"
        );
        if victim != "lifeboat" {
            assert!(text.contains("redis-cli failed"), "{victim}: {text}");
        }
        assert_eq!(site.dumps().len(), 0, "{victim}");
        if victim == "server" {
            site.server.restart();
        }
    }
    site.ok(&["snapshot"]);
    site.every_listed_dump_restores(1);
}

#[test]
fn damage_and_loss_are_found() {
    let mut site = Site::new(Server::start(&[]));
    site.server.populate();
    site.extra += "    retention: { daily: 1 }\n    read-budget: 1GiB\n";
    site.ok(&["snapshot"]);
    site.ok(&["snapshot"]);
    let before = site.dumps();
    site.ok(&["prune", "cache"]);
    assert_eq!(site.dumps().len(), 1, "{before:?}");
    let good = site.dumps()[0]["dump"]["id"].as_str().unwrap().to_owned();
    // An app that lost everything must not push the last good dump out.
    site.server.run(&["FLUSHALL"]);
    let text = site.ok(&["snapshot"]);
    assert!(
        text.contains("WARNING: databases are gone: db0, db3"),
        "{text}"
    );
    site.ok(&["snapshot"]);
    site.ok(&["prune", "cache"]);
    assert!(
        site.dumps()
            .iter()
            .any(|d| d["dump"]["id"] == good.as_str())
    );

    let file = site.path("out.rdb");
    let dump = site.path(&format!("store/cache/dumps/{good}/dump.rdb.zst"));
    let whole = std::fs::read(&dump).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for bad in [&flipped[..], &whole[..whole.len() / 2]] {
        std::fs::write(&dump, bad).unwrap();
        let text = site.refused(
            &[
                "restore",
                "cache",
                "--dump",
                &good,
                "-o",
                file.to_str().unwrap(),
            ],
            5,
        );
        assert!(text.contains("damaged"), "{text}");
        assert!(!file.exists());
    }
    let mut daemon = site
        .command(&["run"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(|| site.metric("lifeboat_redis_damaged") == 1.0);
    assert_eq!(site.metric("lifeboat_redis_ready"), 0.0);
    assert_eq!(site.metric("lifeboat_postgres_ready"), 0.0);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    std::fs::remove_dir_all(site.path("store")).unwrap();
    let mut daemon = site
        .command(&["run"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(|| site.metric("lifeboat_redis_ready") == 1.0);
    assert_eq!(site.metric("lifeboat_redis_runs_total"), 1.0);
    assert!(site.metric("lifeboat_redis_dump_bytes") > 50.0);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    site.every_listed_dump_restores(1);
}
