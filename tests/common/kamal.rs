//! A project on a laptop, its servers, and a stand-in for Kamal between them.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::python;

/// A project on a laptop, and its servers.
pub struct Project {
    pub dir: tempfile::TempDir,
    pub env: Vec<(&'static str, String)>,
}

/// The sidecar of a server, ended when dropped.
pub struct Sidecar(Child);

impl Drop for Sidecar {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

impl Drop for Project {
    /// Ends the sidecars that `lab` started.
    fn drop(&mut self) {
        for pid in self.read("pids").lines().filter_map(|l| l.parse().ok()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                // Gone already is fine.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

impl Project {
    /// Servers without any database yet.
    pub fn empty(hosts: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let project = Self {
            env: vec![
                ("LIFEBOAT_MIN_FREE_MB", "1".into()),
                ("LIFEBOAT_VOLUME", "volume".into()),
            ],
            dir,
        };
        let hooks = project.path("project/.kamal/hooks");
        std::fs::create_dir_all(&hooks).unwrap();
        for hook in std::fs::read_dir(repo("config/kamal/hooks")).unwrap() {
            let hook = hook.unwrap();
            std::fs::copy(hook.path(), hooks.join(hook.file_name())).unwrap();
        }
        std::fs::create_dir_all(project.path("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_lifeboat"), project.path("bin/lifeboat")).unwrap();
        for program in ["kamal", "lab"] {
            symlink(
                repo("tests/kamal").join(program),
                project.path("bin").join(program),
            )
            .unwrap();
        }
        for host in hosts {
            project.server(host);
        }
        project
    }

    /// One server with an app that has data.
    pub fn new() -> Self {
        let project = Self::empty(&["web1"]);
        project.app("web1");
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn host(&self, host: &str, name: &str) -> PathBuf {
        self.path("stub/hosts").join(host).join(name)
    }

    pub fn db(&self, host: &str) -> PathBuf {
        self.host(host, "volume/production.sqlite3")
    }

    /// A server with an empty volume. All servers of one name have one store, as after the loss of the first.
    pub fn server(&self, host: &str) {
        self.server_called(host, host);
    }

    pub fn server_called(&self, host: &str, instance: &str) {
        for folder in ["volume", "state"] {
            std::fs::create_dir_all(self.host(host, folder)).unwrap();
        }
        let env = format!(
            "LIFEBOAT_STORE_URL=file://{}\nLIFEBOAT_DATABASES={}\nLIFEBOAT_STATE_DIR={}\nLIFEBOAT_HTTP_LISTEN=off\nLIFEBOAT_INSTANCE={instance}\n",
            self.path(&format!("store-{}", &host[..3])).display(),
            self.host(host, "volume").display(),
            self.host(host, "state").display(),
        );
        std::fs::write(self.host(host, "env"), env).unwrap();
    }

    pub fn app(&self, host: &str) {
        python(
            &self.db(host),
            "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(a)'); c.execute(\"insert into t values('first')\")",
        );
    }

    pub fn insert(&self, host: &str, value: &str) {
        python(
            &self.db(host),
            &format!("conn().execute(\"insert into t values('{value}')\")"),
        );
    }

    pub fn rows(&self, host: &str) -> String {
        python(
            &self.db(host),
            "print(','.join(r[0] for r in conn().execute('select a from t order by rowid')))",
        )
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path("stub").join(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path("stub").join(name)).unwrap_or_default()
    }

    pub fn with(mut self, key: &'static str, value: &str) -> Self {
        self.env.push((key, value.into()));
        self
    }

    /// PATH of the "container": the binary and the system's own programs.
    pub fn container_path(&self) -> String {
        format!("{}:/usr/bin:/bin", self.path("bin").display())
    }

    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.path("project"))
            .env_clear()
            .env(
                "PATH",
                format!(
                    "{}:/usr/local/bin:/usr/bin:/bin",
                    self.path("bin").display()
                ),
            )
            .env("TMPDIR", self.dir.path())
            .env("STUB", self.path("stub"))
            .env("STUB_PATH", self.container_path())
            .envs(self.env.iter().map(|(k, v)| (*k, v.as_str())));
        command
    }

    pub fn kamal(&self, args: &[&str]) -> Output {
        self.command(&self.path("bin/kamal"))
            .args(args)
            .output()
            .unwrap()
    }

    /// Must succeed; what the hooks said.
    pub fn deploys(&self, args: &[&str]) -> String {
        let out = self.kamal(args);
        let said = self.read("hook-output");
        assert!(out.status.success(), "{}\n{said}", text(&out));
        said
    }

    /// Must be stopped; what Kamal showed.
    pub fn is_stopped(&self, args: &[&str]) -> String {
        let running = self.read("running");
        let out = self.kamal(args);
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        assert_eq!(
            self.read("running"),
            running,
            "the running app is untouched"
        );
        let said = text(&out);
        assert!(
            said.contains("hint: ") && said.contains("LIFEBOAT_SKIP="),
            "{said}"
        );
        said
    }

    /// The labels in the store, in their order.
    pub fn labels(&self, host: &str) -> Vec<String> {
        let dir = self.path(&format!("store-{}/production/lifeboat/labels", &host[..3]));
        let mut found: Vec<(std::time::SystemTime, String)> = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .map(|f| {
                let f = f.unwrap();
                let label: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(f.path()).unwrap()).unwrap();
                let name = label["label"].as_str().unwrap().to_owned();
                (f.metadata().unwrap().modified().unwrap(), name)
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, name)| name).collect()
    }

    pub fn lifeboat(&self, host: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/lifeboat"));
        command
            .args(args)
            .current_dir(self.host(host, ""))
            .env_clear()
            .env("PATH", self.container_path());
        for line in std::fs::read_to_string(self.host(host, "env"))
            .unwrap()
            .lines()
        {
            let (key, value) = line.split_once('=').unwrap();
            command.env(key, value);
        }
        command
    }

    pub fn sidecar(&self, host: &str) -> Sidecar {
        let log = std::fs::File::create(self.host(host, "log")).unwrap();
        let child = self
            .lifeboat(host, &["run"])
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let sidecar = Sidecar(child);
        let begun = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.host(host, "log")).unwrap();
            let state = self.host(host, "state");
            let up = std::fs::read_dir(state).unwrap().any(|f| {
                let path = f.unwrap().path();
                path.extension().is_some_and(|e| e == "sock") && UnixStream::connect(path).is_ok()
            });
            if up {
                return sidecar;
            }
            assert!(begun.elapsed() < Duration::from_secs(90), "{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn restore(&self, args: &[&str]) -> Output {
        self.command(&repo("bin/lifeboat-restore"))
            .args(args)
            .output()
            .unwrap()
    }
}

pub fn text(out: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}
