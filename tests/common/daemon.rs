//! The real binary beside a real app.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use super::port::free_port;
use super::python;

/// A folder with a database, a configuration and a store.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub db: PathBuf,
    pub store: String,
    pub instance: String,
    pub env: Vec<(String, String)>,
    pub extra: String,
    pub store_extra: String,
    /// `off`, or `{ listen: ... }`.
    pub http: String,
    /// The machine that tests run on may be nearly full; what happens at the floor has tests of its own.
    pub min_free: &'static str,
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pub log: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn tool(path: &str) -> PathBuf {
    let found = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(".tools")
        .join(path);
    assert!(
        found.exists(),
        "{} is missing: run bin/install-dev",
        found.display()
    );
    found
}

impl Site {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("app.sqlite3");
        python(
            &db,
            "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(id integer primary key,a)')
c.execute('begin'); c.executemany('insert into t(a) values(?)',((os.urandom(500),) for _ in range(3000))); c.execute('commit')",
        );
        let store = format!("file://{}/store", dir.path().display());
        Self {
            dir,
            db,
            store,
            instance: "web1".into(),
            env: Vec::new(),
            extra: String::new(),
            store_extra: String::new(),
            http: "off".into(),
            min_free: "16MiB",
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> PathBuf {
        let path = self.path(&format!("lifeboat-{}.yml", self.instance));
        let text = format!(
            "store:\n  url: {}\n{}state-dir: {}\ninstance: {}\nhttp: {}\nmin-free: {}\nsqlite:\n  - path: {}\n    sync-interval: 50ms\n{}",
            self.store,
            self.store_extra,
            self.path(&format!("state-{}", self.instance)).display(),
            self.instance,
            self.http,
            self.min_free,
            self.db.display(),
            self.extra,
        );
        // Another process may be reading it.
        if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            std::fs::write(&path, text).unwrap();
        }
        path
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command
            .args(args)
            .arg("--config")
            .arg(self.config())
            .current_dir(self.dir.path());
        command
            .envs(self.env.iter().cloned())
            .env_remove("AWS_CA_BUNDLE");
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed and returns its stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let (stdout, stderr) = (
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        assert!(
            out.status.success(),
            "{args:?}: {:?}\n{stdout}\n{stderr}",
            out.status
        );
        stdout.into_owned()
    }

    /// Runs a command that must fail with this exit code and returns its stderr.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let out = self.run(args);
        let (stdout, stderr) = (
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        assert_eq!(
            out.status.code(),
            Some(code),
            "{args:?}\n{stdout}\n{stderr}"
        );
        assert!(!stdout.contains("lifeboat: ok"), "{stdout}");
        stderr.into_owned()
    }

    pub fn start(&self) -> Daemon {
        let log = self.path(&format!("run-{}.log", self.instance));
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = self
            .command(&["run"])
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        let socket = self.path(&format!("state-{}/lifeboat.sock", self.instance));
        let daemon = Daemon { child, log };
        wait_for(&daemon, "the control socket", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        daemon
    }

    /// Everything committed so far is durable; returns the TXID.
    pub fn sync(&self) -> u64 {
        let out = self.ok(&["sync", "--json"]);
        let answer: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
        u64::from_str_radix(answer["targets"][0]["txid"].as_str().unwrap(), 16).unwrap()
    }

    /// Serves HTTP on a free port.
    pub fn with_http(mut self) -> Self {
        self.http = format!("{{ listen: 127.0.0.1:{} }}", free_port());
        self
    }

    /// Body of a page of the daemon.
    pub fn get(&self, path: &str) -> String {
        let address = self
            .http
            .trim_start_matches("{ listen: ")
            .trim_end_matches(" }");
        let out = Command::new("curl")
            .args(["-s", "-m", "10", &format!("http://{address}{path}")])
            .output()
            .expect("curl is missing: run bin/install-dev");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Sum of a metric over its series whose labels contain `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.get("/metrics");
        let mine = text.lines().filter(|l| {
            l.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
        });
        mine.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// A sync that may be cut off.
    pub fn start_sync(&self) -> Daemon {
        let child = self
            .command(&["sync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Daemon {
            child,
            log: PathBuf::new(),
        }
    }

    /// TXIDs of all restore points.
    pub fn points(&self) -> Vec<u64> {
        let list: Value = serde_json::from_str(&self.ok(&["list", "--json"])).unwrap();
        let points = list[0]["points"].as_array().unwrap();
        points
            .iter()
            .map(|p| u64::from_str_radix(p["txid"].as_str().unwrap(), 16).unwrap())
            .collect()
    }

    /// What was rolled up at the end of a half minute is there twice: leaves the single captures. No daemon may be at work.
    pub fn forget_roll_ups(&self) {
        for level in 1..=4 {
            // Mostly there is none.
            let _ = std::fs::remove_dir_all(self.path(&format!("store/app/ltx/{level}")));
        }
    }

    pub fn restore(&self, name: &str, args: &[&str]) -> PathBuf {
        let out = self.path(name);
        // An earlier copy of the same name is in the way of none.
        let _ = std::fs::remove_file(&out);
        let mut all = vec!["restore", "app", "-o", out.to_str().unwrap()];
        all.extend(args);
        let said = self.ok(&all);
        assert!(said.contains("lifeboat: ok restore"), "{said}");
        out
    }

    pub fn write(&self, sql: &str) {
        python(
            &self.db,
            &format!("c=conn(); c.execute({sql:?}); os._exit(0)"),
        );
    }

    /// A copy of the database as SQLite sees it now, made beside the app without checkpointing: the oracle.
    pub fn copy_now(&self, name: &str) -> PathBuf {
        let copy = self.path(name);
        python(
            &self.db,
            &format!(
                "a=conn(); b=sqlite3.connect({:?}); a.backup(b); b.close(); os._exit(0)",
                copy.to_str().unwrap()
            ),
        );
        copy
    }
}

impl Daemon {
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM; returns the exit code.
    pub fn stop(mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code().unwrap_or(-1)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Every request to this folder fails from now on: a file is in its place. At one stroke: a daemon at work would make the folder anew
/// in between.
pub fn take_away(folder: &Path) {
    let away = folder.with_extension("away");
    std::fs::write(&away, b"in the way").unwrap();
    exchange(folder, &away);
}

/// What was taken away is back.
pub fn bring_back(folder: &Path) {
    let away = folder.with_extension("away");
    exchange(folder, &away);
    std::fs::remove_file(away).unwrap();
}

fn exchange(a: &Path, b: &Path) {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
}

/// Captures are rolled up where a half minute of the clock ends: waits until that is so many seconds away.
pub fn before_a_roll_up(seconds: i64) {
    let left = || 30 - jiff::Timestamp::now().as_second().rem_euclid(30);
    while left() < seconds {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Longer than anything takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(90);

pub fn wait_for(daemon: &Daemon, what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(
            begun.elapsed() < PATIENCE,
            "waited in vain for {what}\n{}",
            daemon.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Two database files hold the same pages. Bytes 18 and 19 (WAL mode), 24 to 27, 40 to 43 and 92 to 99 (counters) may differ where one is
/// a backup made by SQLite itself.
pub fn assert_same_pages(a: &Path, b: &Path, what: &str) {
    let (mut a, mut b) = (std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    for bytes in [&mut a, &mut b] {
        bytes[18..20].fill(0);
        bytes[24..28].fill(0);
        bytes[40..44].fill(0);
        bytes[92..100].fill(0);
    }
    assert_eq!(a.len(), b.len(), "{what}: sizes differ");
    let size = match u16::from_be_bytes([a[16], a[17]]) {
        1 => 65536,
        n => usize::from(n),
    };
    let differing: Vec<usize> = a
        .chunks(size)
        .zip(b.chunks(size))
        .enumerate()
        .filter(|(_, (x, y))| x != y)
        .map(|(i, _)| i + 1)
        .collect();
    assert!(
        differing.is_empty(),
        "{what}: pages {:?} differ",
        &differing[..differing.len().min(9)]
    );
}
