//! The real binary and its configuration beside a server.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::{DATABASE, PASSWORD, Server, URL_PASSWORD, wait_for};

pub struct Site {
    pub server: Server,
    pub dir: tempfile::TempDir,
    /// More lines of the entry.
    pub extra: String,
    pub port: u16,
    /// Pages and API show everything to those who know it; none by default.
    pub token: &'static str,
    /// The role that dumps.
    pub user: String,
    /// Folder of the socket that it goes through; the server's own by default.
    pub socket: Option<PathBuf>,
}

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

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Site {
    pub fn new(extra: &str) -> Self {
        Self::on(Server::start(), extra)
    }

    pub fn on(server: Server, extra: &str) -> Self {
        server.populated();
        Self {
            server,
            dir: tempfile::tempdir().unwrap(),
            extra: extra.into(),
            port: super::port::free_port(),
            token: "",
            user: "boss".into(),
            socket: None,
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let config = self.dir.path().join("lifeboat.yml");
        let folder = self
            .socket
            .as_deref()
            .unwrap_or(self.server.folder.path())
            .display();
        let token = match self.token {
            "" => String::new(),
            token => format!(", token: {token}"),
        };
        let text = format!(
            "store: file://{root}/store\nstate-dir: {root}/state\nhttp: {{ listen: 127.0.0.1:{}{token} }}\npostgres:
  - name: app\n    url: \"postgres://{}:${{SECRET}}@/an%20%22odd%22%20'name'?host={folder}&port={}&pool=5\"\n{}",
            self.port,
            self.user,
            self.server.port,
            self.extra,
            root = self.dir.path().display(),
        );
        // Another process may be reading it.
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

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let text = words(&out);
        assert!(out.status.success(), "{args:?}: {text}");
        let stdout = String::from_utf8(out.stdout).unwrap();
        if !args.contains(&"--json") && args[0] != "list" {
            let last = stdout.lines().last().unwrap_or_default();
            assert!(last.starts_with("lifeboat: ok"), "{args:?}: {text}");
        }
        stdout
    }

    #[track_caller]
    pub fn refused(&self, args: &[&str], code: i32) -> String {
        let out = self.run(args);
        let text = words(&out);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
        assert!(!text.contains("lifeboat: ok"), "{text}");
        text
    }

    pub fn start(&self) -> Daemon {
        let log = self.dir.path().join("run.log");
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
        let daemon = Daemon { child, log };
        let socket = self.dir.path().join("state/lifeboat.sock");
        wait_for(|| std::os::unix::net::UnixStream::connect(&socket).is_ok());
        daemon
    }

    pub fn get(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let out = Command::new("curl")
            .args(["-s", "-m", "10", &url])
            .args(["-H", &format!("Authorization: Bearer {}", self.token)])
            .output()
            .expect("curl is missing: run bin/install-dev");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let mine = text.lines().filter(|l| l.starts_with(&format!("{name}{{")));
        mine.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    pub fn dumps(&self, target: &str) -> Vec<Value> {
        let text = self.ok(&["list", target, "--json"]);
        let value: Value = serde_json::from_str(text.lines().next().unwrap_or("{}")).unwrap();
        value["dumps"].as_array().cloned().unwrap_or_default()
    }
}

pub fn words(out: &Output) -> String {
    let text = format!(
        "{}\n{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(
        !text.contains(PASSWORD) && !text.contains(URL_PASSWORD),
        "{text}"
    );
    text
}

impl Site {
    pub fn fingerprint(&self, database: &str) -> String {
        self.server.fingerprint(database)
    }

    /// Databases with what the catalogue says about them.
    pub fn catalogue(&self) -> String {
        self.server.sql(
            "postgres",
            "SELECT datname, pg_get_userbyid(datdba), (SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(datacl) a), datconnlimit, shobj_description(oid, 'pg_database') IS NULL FROM pg_database ORDER BY 1;
             SELECT setrole::regrole, setconfig FROM pg_db_role_setting ORDER BY 1, 2;",
        )
    }
}

impl Site {
    /// Restores every dump that is listed and compares it with the database, which must not have changed since.
    #[track_caller]
    pub fn every_listed_dump_restores(&self, expected: usize) {
        let dumps = self.dumps("app");
        assert_eq!(dumps.len(), expected, "{dumps:?}");
        let original = self.fingerprint(DATABASE);
        for dump in &dumps {
            let id = dump["dump"]["id"].as_str().unwrap();
            self.ok(&["restore", "app", "--into-new", "proof", "--dump", id]);
            assert_eq!(self.fingerprint("proof"), original, "{id}");
            self.server.sql("postgres", "DROP DATABASE proof;");
        }
    }
}
