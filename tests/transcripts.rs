//! What the documentation shows as printed is what is printed: each block marked `console transcript` is run, in order, on four databases of a Rails app with
//! a sidecar beside it. Times, sizes and numbers may differ; words may not.
//!
//! `UPDATE_TRANSCRIPTS=1 cargo nextest run --test transcripts` writes what is printed now into the pages.
#![allow(missing_docs)]

mod common;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::python;

const PAGES: [&str; 3] = ["docs/transcripts.md", "docs/doctor.md", "docs/init.md"];
/// Until everything is durable, on a machine that builds something else.
const PATIENCE: Duration = Duration::from_secs(200);
const DATABASES: [&str; 4] = [
    "production",
    "production_cable",
    "production_cache",
    "production_queue",
];
const DEPLOY: &str = "service: shop
image: your-user/shop
servers:
  web:
    - 192.0.2.7
volumes:
  - \"shop_storage:/rails/storage\"
";
const DATABASE: &str = "production:
  primary:
    adapter: sqlite3
    database: storage/production.sqlite3
  cache:
    adapter: sqlite3
    database: storage/production_cache.sqlite3
  queue:
    adapter: sqlite3
    database: storage/production_queue.sqlite3
  cable:
    adapter: sqlite3
    database: storage/production_cable.sqlite3
";

/// A server with an app's volume, a store and a sidecar; beside it the app's project on a laptop.
struct Scene {
    dir: tempfile::TempDir,
    sidecar: Option<Child>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(mut child) = self.sidecar.take() {
            // Gone already is fine.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in [
            "project/config",
            "bin",
            "storage/ab/cd",
            "state",
            "backups",
            "tmp",
        ] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let scene = Self { dir, sidecar: None };
        symlink(env!("CARGO_BIN_EXE_lifeboat"), scene.path("bin/lifeboat")).unwrap();
        std::fs::write(scene.path("project/config/deploy.yml"), DEPLOY).unwrap();
        std::fs::write(scene.path("project/config/database.yml"), DATABASE).unwrap();
        for name in DATABASES {
            python(
                &scene.path(&format!("storage/{name}.sqlite3")),
                "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table orders(id integer primary key, note)')
c.execute('begin'); c.executemany('insert into orders(note) values(?)', (('order %d' % i,) for i in range(2000))); c.execute('commit')",
            );
        }
        std::fs::write(
            scene.path("storage/ab/cd/abcdefghijklmnopqrstuvwxyz12"),
            [7; 4000],
        )
        .unwrap();
        let config = format!(
            "store: file://{0}/backups/myapp\nsqlite:\n  - dir: {0}/storage\n    watch: true\n    sync-interval: 50ms\nstate-dir: {0}/state\ninstance: web1\nhttp: off\nmin-free: 1MiB\n",
            scene.dir.path().display()
        );
        std::fs::write(scene.path("lifeboat.yml"), config).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.path("project"))
            .env_clear()
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.path("bin").display()),
            )
            .env("HOME", self.dir.path())
            .env("LIFEBOAT_CONFIG", self.path("lifeboat.yml"));
        command
    }

    fn start(&mut self) {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let child = self
            .command(env!("CARGO_BIN_EXE_lifeboat"))
            .arg("run")
            .stderr(log)
            .stdout(Stdio::null())
            .spawn();
        self.sidecar = Some(child.unwrap());
        let begun = Instant::now();
        while !self.path("state/lifeboat.sock").exists() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(50));
        }
        loop {
            let synced = self
                .command(env!("CARGO_BIN_EXE_lifeboat"))
                .args(["sync", "-q"])
                .output()
                .unwrap();
            if synced.status.success() {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{synced:?}\n{}",
                std::fs::read_to_string(self.path("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Paths as in the container, and the folders behind them.
    fn places(&self) -> [(&'static str, String); 5] {
        let here = |name: &str| self.path(name).display().to_string();
        [
            ("/rails/storage", here("storage")),
            ("/var/lib/lifeboat", here("state")),
            ("/backups", here("backups")),
            ("/etc/lifeboat.yml", here("lifeboat.yml")),
            (
                "/usr/local/bin/lifeboat",
                env!("CARGO_BIN_EXE_lifeboat").into(),
            ),
        ]
    }

    /// What a command prints, and its exit code.
    fn run(&self, command: &str) -> (String, i32) {
        let mut real = command.to_owned();
        for (shown, there) in self.places().iter().take(3) {
            real = real.replace(shown, there);
        }
        let out = self
            .command("bash")
            .args(["-c", &format!("{{ {real}\n}} 2>&1")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let mut said = String::from_utf8(out.stdout).unwrap();
        for (shown, there) in self.places() {
            said = said.replace(&there, shown);
        }
        (said, out.status.code().unwrap())
    }
}

/// A block of a page: where it is, what it runs, what it shows.
struct Block {
    /// Lines of the page between the fences.
    lines: std::ops::Range<usize>,
    exit: i32,
    /// Each command with what it printed.
    steps: Vec<(String, String)>,
}

enum Part {
    Transcript(Block),
    /// SQL that the app runs meanwhile: `<!-- app: ... -->`.
    App(String),
    /// Something else that happens: `<!-- sh: ... -->`.
    Shell(String),
}

fn parts(page: &str) -> Vec<Part> {
    let lines: Vec<&str> = page.lines().collect();
    let mut found = Vec::new();
    let mut at = 0;
    let hidden = |line: &str, what: &str| {
        let rest = line.strip_prefix(&format!("<!-- {what}: "))?;
        Some(
            rest.strip_suffix(" -->")
                .expect("a comment of one line")
                .to_owned(),
        )
    };
    while at < lines.len() {
        if let Some(sql) = hidden(lines[at], "app") {
            found.push(Part::App(sql));
        } else if let Some(command) = hidden(lines[at], "sh") {
            found.push(Part::Shell(command));
        } else if let Some(info) = lines[at].strip_prefix("```console transcript") {
            let exit = info
                .trim()
                .strip_prefix("exit=")
                .map_or(0, |n| n.parse().unwrap());
            let first = at + 1;
            at = first
                + lines[first..]
                    .iter()
                    .position(|l| *l == "```")
                    .expect("a closed block");
            let mut steps: Vec<(String, String)> = Vec::new();
            for line in &lines[first..at] {
                match line.strip_prefix("$ ") {
                    Some(command) => steps.push((command.to_owned(), String::new())),
                    None => steps.last_mut().expect("a command").1 += &format!("{line}\n"),
                }
            }
            found.push(Part::Transcript(Block {
                lines: first..at,
                exit,
                steps,
            }));
        }
        at += 1;
    }
    found
}

/// Without what differs from run to run: numbers, times, sizes, hashes, the width of columns; and without what only the machine decides.
fn masked(said: &str) -> Vec<String> {
    let mut skip = false;
    let mut lines = Vec::new();
    for line in said.lines() {
        let mut words = line.split_whitespace();
        let of_the_machine =
            |check: Option<&str>| matches!(check, Some("disk" | "volume" | "state"));
        match words.next() {
            Some("ok" | "WARNING" | "FAILED") => skip = of_the_machine(words.next()),
            Some("fix:") => {}
            _ => skip = false,
        }
        let mut masked: Vec<String> = line.split_whitespace().map(mask).collect();
        // `2s` and `2 s`.
        masked.dedup_by(|a, b| a == "#" && b == "#");
        let line = masked.join(" ");
        if !skip && !line.is_empty() {
            lines.push(line);
        }
    }
    lines
}

fn mask(word: &str) -> String {
    const UNITS: [&str; 10] = ["ms", "s", "m", "h", "d", "B", "kB", "MB", "GB", "KiB"];
    if UNITS.contains(&word) {
        return "#".into();
    }
    let mut out = String::new();
    for part in word.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let (text, end) = match part.char_indices().last() {
            Some((at, c)) if !c.is_ascii_alphanumeric() => part.split_at(at),
            _ => (part, ""),
        };
        let hex = text.len() >= 8 && text.chars().all(|c| c.is_ascii_hexdigit());
        let begins = text.starts_with(|c: char| c.is_ascii_digit());
        let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
        match (hex, begins) {
            (true, _) => out.push('#'),
            // A number with its unit, or a part of a time.
            (false, true) if rest.len() <= 3 || rest.starts_with('T') => out.push('#'),
            _ => out += text,
        }
        match end {
            "." | ":" | "-" | "+" if out.ends_with('#') => {}
            _ => out += end,
        }
    }
    while out.contains("##") {
        out = out.replace("##", "#");
    }
    out
}

fn run(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let page = std::fs::read_to_string(&path).unwrap();
    let update = std::env::var_os("UPDATE_TRANSCRIPTS").is_some();
    let mut scene = Scene::new();
    scene.start();
    let mut wrong = Vec::new();
    let mut printed: Vec<(std::ops::Range<usize>, String)> = Vec::new();
    for part in parts(&page) {
        let block = match part {
            Part::App(sql) => {
                python(
                    &scene.path("storage/production.sqlite3"),
                    &format!("c=conn(); c.execute({sql:?})"),
                );
                continue;
            }
            Part::Shell(command) => {
                let (said, code) = scene.run(&command);
                assert_eq!(code, 0, "{command}\n{said}");
                continue;
            }
            Part::Transcript(block) => block,
        };
        let mut now = String::new();
        let mut code = 0;
        for (command, shown) in &block.steps {
            let (said, its) = scene.run(command);
            code = its;
            if masked(&said) != masked(shown) {
                wrong.push(format!("$ {command}\n--- {name} shows\n{shown}--- and this is printed\n{said}{:#?}\n{:#?}", masked(shown), masked(&said)));
            }
            now += &format!("$ {command}\n{said}");
        }
        assert_eq!(code, block.exit, "{now}");
        printed.push((block.lines, now));
    }
    assert!(!printed.is_empty(), "{name} has no transcript");
    if update {
        let mut lines: Vec<String> = page.lines().map(str::to_owned).collect();
        for (place, now) in printed.into_iter().rev() {
            lines.splice(place, now.lines().map(str::to_owned));
        }
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        return;
    }
    assert!(
        wrong.is_empty(),
        "{}\nUPDATE_TRANSCRIPTS=1 cargo nextest run --test transcripts",
        wrong.join("\n")
    );
}

#[test]
fn a_day_with_lifeboat() {
    run(PAGES[0]);
}

#[test]
fn doctor() {
    run(PAGES[1]);
}

#[test]
fn init() {
    run(PAGES[2]);
}

#[test]
fn no_page_is_forgotten() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    for page in std::fs::read_dir(docs).unwrap() {
        let page = page.unwrap().path();
        if page.extension().is_some_and(|e| e == "md") {
            let shows = std::fs::read_to_string(&page)
                .unwrap()
                .contains("```console transcript");
            assert_eq!(
                shows,
                PAGES.iter().any(|p| page.ends_with(p)),
                "{}",
                page.display()
            );
        }
    }
}

#[test]
fn words_count_and_numbers_do_not() {
    let a = "web1  2026-11-21T12:00:00.123Z  2s ago  0000000000000003  12.5 kB  took 34ms\n\nok      disk  x\n        fix: y\nlifeboat: ok restore target=production txid=3";
    let b = "web1 2027-01-01T01:02:03.4Z 17 s ago 00000000000000af 1 MB took 1.2s\nlifeboat: ok restore target=production txid=21";
    assert_eq!(masked(a), masked(b), "{:?} {:?}", masked(a), masked(b));
    for other in [
        "web2x ago",
        "lifeboat: failed",
        "lifeboat: ok restore target=cable txid=3",
    ] {
        assert_ne!(
            masked("lifeboat: ok restore target=production txid=3"),
            masked(other)
        );
    }
}
