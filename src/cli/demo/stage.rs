//! Where the demo plays: a temporary folder, the sidecar, the commands, and what is printed.

use std::cell::Cell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::super::Failure;
use super::{failed, text};

/// The sidecar listens within this, or something is wrong.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// And ends within this.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Stage {
    folder: tempfile::TempDir,
    sidecar: Option<Child>,
    address: String,
    quiet: bool,
    number: Cell<u32>,
    /// Somebody wants the show to end.
    stop: Arc<AtomicBool>,
}

impl Stage {
    pub(super) fn open(quiet: bool, stop: Arc<AtomicBool>) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("lifeboat-demo-")
            .tempdir()
            .map_err(failed)?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?.to_string();
        let dir = folder.path();
        let yaml = format!(
            "store: {{ url: \"file://{store}\" }}\nstate-dir: \"{state}\"\ninstance: demo\nmin-free: 64MiB\nhttp: {{ listen: \"{address}\" }}\nsqlite:\n  - dir: \"{storage}\"\n  - path: \"{storage}/production_cache.sqlite3\"\n",
            store = text(&dir.join("store")),
            state = text(&dir.join("state")),
            storage = text(&dir.join("storage")),
        );
        std::fs::write(dir.join("lifeboat.yml"), yaml).map_err(failed)?;
        Ok(Self {
            folder,
            sidecar: None,
            address,
            quiet,
            number: Cell::new(0),
            stop,
        })
    }

    pub(super) fn dir(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir().join("lifeboat.yml")
    }

    pub(super) fn page(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub(super) fn title(&self, words: &str) {
        self.number.set(self.number.get() + 1);
        if !self.quiet {
            println!("\n{}. {words}", self.number.get());
        }
    }

    pub(super) fn say(&self, words: &str) {
        if !self.quiet {
            println!("   {words}");
        }
    }

    /// Lets time pass.
    pub(super) fn pause(&self, time: Duration) -> Result<(), Failure> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.interrupted()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn interrupted(&self) -> Result<(), Failure> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Failure::new(
                1,
                "interrupted; the demo's folder is removed",
                None,
            ));
        }
        Ok(())
    }

    /// This program, knowing nothing of the configuration around it.
    fn program(&self, args: &[&str]) -> Result<Command, Failure> {
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        let ours = std::env::vars_os().map(|(name, _)| name);
        for name in ours.filter(|n| n.to_string_lossy().starts_with("LIFEBOAT_")) {
            command.env_remove(name);
        }
        command
            .env_remove("DATABASE_URL")
            .args(args)
            .arg("--config")
            .arg(self.config())
            .current_dir(self.dir())
            .stdin(Stdio::null());
        Ok(command)
    }

    pub(super) fn start_sidecar(mut self) -> Result<Self, Failure> {
        let log = File::create(self.dir().join("lifeboat.log")).map_err(failed)?;
        self.say("$ lifeboat run &");
        let child = self
            .program(&["run"])?
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        self.sidecar = Some(child);
        let begun = Instant::now();
        let socket = self.dir().join("state/lifeboat.sock");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if begun.elapsed() > START_PATIENCE {
                let log =
                    std::fs::read_to_string(self.dir().join("lifeboat.log")).unwrap_or_default();
                return Err(failed(format!("the sidecar did not start: {log}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(self)
    }

    /// Runs a command and shows what it prints.
    pub(super) fn command(&self, args: &[&str]) -> Result<(), Failure> {
        self.say(&format!("$ lifeboat {}", args.join(" ")));
        let out = self.program(args)?.output().map_err(failed)?;
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            self.say(&format!("  {line}"));
        }
        if out.status.success() {
            return Ok(());
        }
        self.interrupted()?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        Err(failed(format!("lifeboat {}: {said}", args.join(" "))))
    }

    /// Ends the sidecar in order; the folder goes with the stage.
    pub(super) fn close(mut self) {
        let Some(child) = &mut self.sidecar else {
            return;
        };
        if kill_process(Pid::from_child(child), Signal::TERM).is_err() {
            return;
        }
        let begun = Instant::now();
        while begun.elapsed() < STOP_PATIENCE && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(child) = &mut self.sidecar {
            // Ended already is fine.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
