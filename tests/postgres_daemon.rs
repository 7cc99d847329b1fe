//! The real binary beside a real PostgreSQL server.

mod pg;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use pg::{DATABASE, PASSWORD, Server, URL_PASSWORD, wait_for};
use serde_json::Value;

struct Site {
    server: Server,
    dir: tempfile::TempDir,
    /// More lines of the entry.
    extra: String,
    port: u16,
}

struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Site {
    fn new(extra: &str) -> Self {
        let server = Server::start();
        server.populated();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            server,
            dir: tempfile::tempdir().unwrap(),
            extra: extra.into(),
            port: listener.local_addr().unwrap().port(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let config = self.dir.path().join("lifeboat.yml");
        let folder = self.server.folder.path().display();
        let text = format!(
            "store: file://{root}/store\nstate-dir: {root}/state\nhttp: {{ listen: 127.0.0.1:{} }}\npostgres:
  - name: app\n    url: \"postgres://boss:${{SECRET}}@/an%20%22odd%22%20'name'?host={folder}&pool=5\"\n{}",
            self.port,
            self.extra,
            root = self.dir.path().display(),
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command
            .args(args)
            .arg("--config")
            .arg(config)
            .env("SECRET", URL_PASSWORD)
            .current_dir(self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
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
    fn refused(&self, args: &[&str], code: i32) -> String {
        let out = self.run(args);
        let text = words(&out);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
        assert!(!text.contains("lifeboat: ok"), "{text}");
        text
    }

    fn start(&self) -> Daemon {
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

    fn get(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let out = Command::new("curl")
            .args(["-s", "-m", "10", &url])
            .output()
            .expect("curl is missing: run bin/install-dev");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let mine = text.lines().filter(|l| l.starts_with(&format!("{name}{{")));
        mine.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    fn dumps(&self, target: &str) -> Vec<Value> {
        let text = self.ok(&["list", target, "--json"]);
        let value: Value = serde_json::from_str(text.lines().next().unwrap_or("{}")).unwrap();
        value["dumps"].as_array().cloned().unwrap_or_default()
    }
}

fn words(out: &Output) -> String {
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

#[test]
fn the_daemon_dumps_at_once_and_turns_red_without_its_server() {
    let mut site = Site::new("    schedule: '0 3 1 1 *'\n");
    let daemon = site.start();
    wait_for(|| site.metric("lifeboat_postgres_ready") == 1.0);
    let status: Value = serde_json::from_str(&site.get("/readyz")).unwrap();
    assert_eq!(status["status"], "safe", "{status}");
    assert_eq!(site.dumps("app").len(), 1);
    assert!(site.metric("lifeboat_postgres_dump_bytes") > 100_000.0);
    drop(daemon);

    // Nothing was missed: no dump at the next start.
    let daemon = site.start();
    wait_for(|| site.metric("lifeboat_postgres_ready") == 1.0);
    assert_eq!(site.metric("lifeboat_postgres_runs_total"), 0.0);
    drop(daemon);

    // A run was missed, but the server is gone.
    let store = site.dir.path().join("store");
    std::fs::remove_dir_all(&store).unwrap();
    site.server.stop();
    let daemon = site.start();
    wait_for(|| site.metric("lifeboat_postgres_runs_total") >= 1.0);
    let status: Value = serde_json::from_str(&site.get("/readyz")).unwrap();
    assert_eq!(status["status"], "unsafe", "{status}");
    let log = std::fs::read_to_string(&daemon.log).unwrap();
    assert!(log.contains("not dumped"), "{log}");
    for text in [log, site.get("/"), site.get("/metrics"), status.to_string()] {
        assert!(
            !text.contains(PASSWORD) && !text.contains(URL_PASSWORD),
            "{text}"
        );
    }
    assert_eq!(site.dumps("app").len(), 0);
}

#[test]
fn snapshots_dump_pin_and_reuse() {
    let mut site = Site::new("    schedule: '0 3 1 1 *'\n    on-deploy: reuse\n");
    let text = site.ok(&["snapshot"]);
    assert!(text.contains("app: dump "), "{text}");
    // The dump is young: it is pinned, not made again.
    site.ok(&["snapshot", "--label", "before-v1"]);
    let dumps = site.dumps("app");
    assert_eq!(dumps.len(), 1);
    assert_eq!(dumps[0]["labels"][0], "before-v1");
    assert_eq!(dumps[0]["dump"]["counts"]["public.orders"], 2000);
    assert!(dumps[0]["dump"]["globals"]["size"].as_u64().unwrap() > 100);

    site.extra = "    schedule: '0 3 1 1 *'\n".into();
    site.ok(&["snapshot", "app", "--label", "before-v1"]);
    let dumps = site.dumps("app");
    assert_eq!(dumps.len(), 2);
    assert_eq!(dumps[1]["labels"][0], "before-v1#2");

    // Through a daemon.
    let daemon = site.start();
    wait_for(|| site.metric("lifeboat_postgres_ready") == 1.0);
    site.ok(&["snapshot", "--label", "v2"]);
    assert_eq!(site.dumps("app").len(), 3);
    assert_eq!(site.metric("lifeboat_postgres_runs_total"), 1.0);
    drop(daemon);

    site.extra += "    on-deploy: skip\n";
    site.refused(&["snapshot", "--label", "v3"], 1);
    site.ok(&["snapshot", "app", "--label", "v3"]);
    assert_eq!(site.dumps("app").len(), 4);
}

#[test]
fn several_databases_of_a_server() {
    let site = Site::new("    databases: { except: [postgres] }\n");
    site.server.sql("postgres", "CREATE DATABASE second;");
    site.ok(&["snapshot", "app"]);
    let odd = format!("app/{DATABASE}");
    assert_eq!(site.dumps(&odd).len(), 1);
    assert_eq!(site.dumps("app/second").len(), 1);
    site.ok(&["snapshot", "app/second", "--label", "L"]);
    assert_eq!(site.dumps("app/second").len(), 2);
    assert_eq!(site.dumps(&odd).len(), 1);
    let text = site.refused(&["list", "app/third"], 2);
    assert!(text.contains("app/second"), "{text}");
    let text = site.ok(&["list"]);
    assert!(text.contains(&odd), "{text}");
}
