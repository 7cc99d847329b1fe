//! Files, with stock restic as referee.
#![allow(missing_docs)]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const PASSWORD: &str = "correct horse";

struct Site {
    dir: tempfile::TempDir,
    /// More keys of the target.
    extra: String,
    /// More keys of the file.
    top: String,
    password: String,
    http: String,
    command: Vec<String>,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        Self {
            dir,
            extra: "    create: true\n".into(),
            top: String::new(),
            password: PASSWORD.into(),
            http: "off".into(),
            command: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self, name: &str) -> PathBuf {
        self.path("data").join(name)
    }

    fn repository(&self) -> PathBuf {
        self.path("store/uploads")
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.data(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    fn prepared(&self, args: &[&str]) -> Command {
        let text = format!(
            "store: file://{}\nstate-dir: {}\nhttp: {}\n{}files:\n  - name: uploads\n    paths: [{}]\n    password: {}\n{}",
            self.path("store").display(),
            self.path("state").display(),
            self.http,
            self.top,
            self.path("data").display(),
            self.password,
            self.extra,
        );
        let config = self.path("lifeboat.yml");
        std::fs::write(&config, text).unwrap();
        let program = env!("CARGO_BIN_EXE_lifeboat").to_owned();
        let words: Vec<String> = self.command.iter().cloned().chain([program]).collect();
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(args)
            .arg("--config")
            .arg(config)
            .current_dir(self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.prepared(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let text = words(&out);
        assert!(out.status.success(), "{args:?}: {text}");
        let stdout = String::from_utf8(out.stdout).unwrap();
        if !args.contains(&"--json") && args[0] != "list" {
            assert!(
                stdout
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .starts_with("lifeboat: ok"),
                "{text}"
            );
        }
        stdout
    }

    /// Runs a command that must fail with this exit code; returns what it said.
    fn refused(&self, args: &[&str], code: i32) -> String {
        let out = self.run(args);
        let text = words(&out);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
        assert!(!text.contains("lifeboat: ok"), "{text}");
        assert!(!text.contains(PASSWORD), "{text}");
        text
    }

    fn backup(&self) -> Value {
        let text = self.ok(&["snapshot", "uploads", "--json"]);
        let value: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        value["backup"].clone()
    }

    fn points(&self) -> Vec<Value> {
        let text = self.ok(&["list", "uploads", "--json"]);
        let value: Value = serde_json::from_str(text.trim()).unwrap();
        value["points"].as_array().unwrap().clone()
    }

    fn restic(&self, args: &[&str]) -> String {
        let out = self.restic_output(args);
        assert!(out.status.success(), "restic {args:?}: {}", words(&out));
        words(&out)
    }

    fn restic_output(&self, args: &[&str]) -> Output {
        Command::new("restic")
            .args(["--no-cache", "-r"])
            .arg(self.repository())
            .args(args)
            .env("RESTIC_PASSWORD", PASSWORD)
            .output()
            .expect("restic is missing: apt-get install restic")
    }
}

fn words(out: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

/// Everything below a folder: name, kind, mode, owner, size, time, links, target, content.
fn picture(root: &Path) -> Vec<String> {
    fn look(root: &Path, path: &Path, out: &mut Vec<String>) {
        let m = path.symlink_metadata().unwrap();
        let kind = m.file_type();
        let content = if kind.is_file() {
            use sha2::Digest;
            sha2::Sha256::digest(std::fs::read(path).unwrap()).to_vec()
        } else if kind.is_symlink() {
            use std::os::unix::ffi::OsStrExt;
            std::fs::read_link(path)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec()
        } else {
            Vec::new()
        };
        let size = if kind.is_dir() { 0 } else { m.size() };
        let links = if kind.is_dir() { 0 } else { m.nlink() };
        out.push(format!(
            "{:?} {:o} {}:{} {size} {}.{} {links} {content:x?}",
            path.strip_prefix(root).unwrap(),
            m.mode(),
            m.uid(),
            m.gid(),
            m.mtime(),
            m.mtime_nsec(),
        ));
        if kind.is_dir() {
            let mut below: Vec<_> = std::fs::read_dir(path)
                .unwrap()
                .map(|e| e.unwrap().path())
                .collect();
            below.sort();
            below.iter().for_each(|p| look(root, p, out));
        }
    }
    let mut out = Vec::new();
    look(root, root, &mut out);
    out
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes.div_ceil(8))
        .flat_map(|_| next())
        .take(bytes)
        .collect()
}

/// A tree with everything that file systems have.
fn odd_tree(site: &Site) {
    use std::os::unix::ffi::OsStrExt;
    site.write("a", b"hello");
    site.write("sub/big", &noise(1, 3_000_000));
    site.write("sub/deep/er/empty", b"");
    std::fs::create_dir(site.data("nothing")).unwrap();
    std::os::unix::fs::symlink("a", site.data("link")).unwrap();
    std::os::unix::fs::symlink("/not/there", site.data("dangling")).unwrap();
    std::fs::hard_link(site.data("a"), site.data("sub/hard")).unwrap();
    std::fs::File::create(site.data("sparse"))
        .unwrap()
        .set_len(6 << 20)
        .unwrap();
    for name in [
        &b"new\nline"[..],
        b"not \xff utf8",
        b"\"quoted\\",
        "schön ☃".as_bytes(),
        b"-rf",
        b" ",
    ] {
        std::fs::write(
            site.path("data").join(std::ffi::OsStr::from_bytes(name)),
            name,
        )
        .unwrap();
    }
    let mode = |name, mode| {
        std::fs::set_permissions(site.data(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("a", 0o4750);
    mode("sub", 0o2770);
    mode("nothing", 0o1777);
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(978_307_200, 123_456_789);
    for name in ["a", "sub/deep", "nothing", ""] {
        std::fs::File::open(site.data(name))
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
}

#[test]
fn restic_reads_ours() {
    let site = Site::new();
    odd_tree(&site);
    let before = picture(&site.path("data"));
    site.ok(&["snapshot", "uploads", "--label", "v1"]);
    let check = site.restic(&["check", "--read-data"]);
    assert!(check.contains("no errors were found"), "{check}");
    assert!(site.restic(&["snapshots"]).contains("label=v1"));
    site.restic(&[
        "restore",
        "latest",
        "--target",
        site.path("theirs").to_str().unwrap(),
    ]);
    let theirs = site
        .path("theirs")
        .join(site.path("data").strip_prefix("/").unwrap());
    assert_eq!(before, picture(&theirs));
    site.ok(&["restore", "uploads", "-o", "ours"]);
    assert_eq!(before, picture(&site.path("ours")));
    let blocks = |p: PathBuf| p.metadata().unwrap().blocks();
    assert!(blocks(site.path("ours/sparse")) < 64, "holes stay holes");
}

#[test]
fn ours_reads_restic_and_both_go_on() {
    let site = Site::new();
    odd_tree(&site);
    site.restic(&["init"]);
    site.restic(&["backup", site.path("data").to_str().unwrap()]);
    let before = picture(&site.path("data"));
    site.ok(&["restore", "uploads", "-o", "ours"]);
    assert_eq!(before, picture(&site.path("ours")));
    site.write("more", b"later");
    let second = site.backup();
    assert!(
        second["uploaded"].as_u64().unwrap() < 100_000,
        "deduplicated: {second}"
    );
    assert_eq!(second["new"], 1, "{second}");
    site.restic(&["backup", site.path("data").to_str().unwrap()]);
    site.restic(&["check", "--read-data"]);
    assert_eq!(site.points().len(), 3);
}

#[test]
fn one_path_labels_ids_and_times() {
    let site = Site::new();
    site.write("dir/one", b"1");
    site.write("two", b"2");
    site.ok(&["snapshot", "uploads", "--label", "v1"]);
    site.write("dir/one", b"changed");
    let newest = site.backup();
    site.ok(&["restore", "uploads", "--path", "dir", "-o", "new"]);
    assert_eq!(std::fs::read(site.path("new/one")).unwrap(), b"changed");
    site.ok(&[
        "restore", "uploads", "--label", "v1", "--path", "dir/one", "-o", "old",
    ]);
    assert_eq!(std::fs::read(site.path("old/one")).unwrap(), b"1");
    let id = &newest["point"]["id"].as_str().unwrap()[..8];
    site.ok(&["restore", "uploads", "--snapshot", id, "-o", "by-id"]);
    assert_eq!(
        std::fs::read(site.path("by-id/dir/one")).unwrap(),
        b"changed"
    );
    site.refused(&["restore", "uploads", "--label", "nope", "-o", "x"], 3);
    site.refused(&["restore", "uploads", "--path", "nope", "-o", "x"], 3);
    site.refused(
        &["restore", "uploads", "--at", "1990-01-01T00:00", "-o", "x"],
        3,
    );
    let full = site.refused(&["restore", "uploads", "-o", "new"], 4);
    assert!(full.contains("not empty"), "{full}");
}

#[test]
fn passwords_and_creation_are_opt_in() {
    let mut site = Site::new();
    site.write("a", b"a");
    site.extra.clear();
    let none = site.refused(&["snapshot", "uploads"], 3);
    assert!(none.contains("lifeboat files init"), "{none}");
    assert!(!site.path("store").exists(), "nothing was made");
    site.ok(&["files", "init"]);
    site.ok(&["snapshot", "uploads"]);
    assert!(site.ok(&["files", "init"]).contains("was there"));
    site.password = "wrong".into();
    for args in [
        &["snapshot", "uploads"][..],
        &["list", "uploads"],
        &["restore", "uploads", "-o", "x"],
    ] {
        let text = site.refused(args, 1);
        assert!(text.contains("password does not open"), "{text}");
    }
    site.password = PASSWORD.into();
    assert_eq!(site.points().len(), 1);
}

#[test]
fn an_unmounted_volume_is_not_recorded() {
    let mut site = Site::new();
    site.write("a", b"a");
    site.backup();
    std::fs::remove_file(site.data("a")).unwrap();
    let text = site.refused(&["snapshot", "uploads"], 4);
    assert!(
        text.contains("is empty") && text.contains("allow-empty"),
        "{text}"
    );
    std::fs::create_dir(site.data("lost+found")).unwrap();
    site.refused(&["snapshot", "uploads"], 4);
    std::fs::remove_dir_all(site.path("data")).unwrap();
    site.refused(&["snapshot", "uploads"], 1);
    assert_eq!(site.points().len(), 1);
    std::fs::create_dir(site.path("data")).unwrap();
    site.extra += "    allow-empty: true\n";
    site.backup();
    assert_eq!(site.points().len(), 2);
}

#[test]
fn databases_and_excluded_files_are_left_out_and_unreadable_ones_named() {
    let mut site = Site::new();
    site.write("keep/file", b"x");
    site.write("cache/file", b"x");
    site.write("keep/a.tmp", b"x");
    site.write(
        "blob-without-name",
        b"SQLite format 3\0 uploaded by somebody",
    );
    site.write("secret", b"x");
    let made = Command::new("sqlite3")
        .arg(site.data("app.sqlite3"))
        .arg("create table t(a)")
        .status()
        .expect("sqlite3 is missing: apt-get install sqlite3");
    assert!(made.success());
    site.write("app.sqlite3-wal", b"x");
    site.extra += "    exclude: ['*.tmp', 'cache/']\n";
    // Root reads everything: go as somebody else.
    let out = Command::new("chown")
        .args(["-R", "65534:65534"])
        .arg(site.dir.path())
        .status()
        .unwrap();
    assert!(out.success(), "the tests of files need root");
    let go = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    site.command = go.split(' ').map(str::to_owned).collect();
    std::fs::set_permissions(site.data("secret"), std::fs::Permissions::from_mode(0o0)).unwrap();
    std::fs::create_dir(site.data("closed")).unwrap();
    std::fs::set_permissions(site.data("closed"), std::fs::Permissions::from_mode(0o0)).unwrap();
    let text = site.refused(&["snapshot", "uploads"], 1);
    for word in [
        "PARTIAL",
        "secret",
        "closed",
        "app.sqlite3",
        "list it under `sqlite:`",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let points = site.points();
    assert_eq!(points[0]["partial"], true);
    let names = site.restic(&["ls", "latest"]);
    for (name, there) in [
        ("keep/file", true),
        ("blob-without-name", true),
        ("cache", false),
        ("a.tmp", false),
        ("app.sqlite3", false),
        ("secret", false),
    ] {
        assert_eq!(names.contains(name), there, "{name}: {names}");
    }
    std::fs::remove_file(site.data("secret")).unwrap();
    std::fs::remove_dir(site.data("closed")).unwrap();
    site.ok(&["snapshot", "uploads"]);
    assert_eq!(site.points()[1]["partial"], false);
}

#[test]
fn in_place_keeps_the_old_content_and_leaves_databases() {
    let site = Site::new();
    site.write("dir/file", b"old");
    site.write("gone", b"gone");
    let before = picture(&site.path("data"));
    site.backup();
    site.write("dir/file", b"new");
    std::fs::remove_file(site.data("gone")).unwrap();
    site.write("extra", b"extra");
    let database = site.write("dir/live.sqlite3", b"SQLite format 3\0live");
    let text = site.ok(&["restore", "uploads", "--in-place"]);
    assert_eq!(std::fs::read(site.data("dir/file")).unwrap(), b"old");
    assert_eq!(std::fs::read(site.data("gone")).unwrap(), b"gone");
    assert!(!site.data("extra").exists());
    assert!(database.exists(), "a database stays where it is");
    let kept = std::fs::read_dir(site.path("data"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_str().unwrap().contains(".lifeboat-old-"))
        .unwrap();
    assert!(text.contains(kept.to_str().unwrap()), "{text}");
    assert_eq!(std::fs::read(kept.join("dir/file")).unwrap(), b"new");
    assert_eq!(std::fs::read(kept.join("extra")).unwrap(), b"extra");
    // The next backup leaves both out.
    let next = site.backup();
    assert_eq!(next["point"]["files"], 2, "{next}");
    std::fs::remove_dir_all(kept).unwrap();
    std::fs::remove_file(database).unwrap();
    let after = picture(&site.path("data"));
    let count = |lines: &[String]| lines.len();
    assert_eq!(count(&before), count(&after));
    site.ok(&["restore", "uploads", "--path", "gone", "--in-place"]);
    assert_eq!(std::fs::read(site.data("gone")).unwrap(), b"gone");
}

#[test]
fn prune_forgets_by_tiers_and_restic_finds_nothing_wrong() {
    let mut site = Site::new();
    site.extra += "    retention: { point-in-time: 0s, daily: 1 }\n";
    for n in 0..4_u64 {
        site.write("changing", &noise(n, 2_000_000));
        site.write(&format!("kept{n}"), &noise(100 + n, 100_000));
        let label = format!("v{n}");
        let args: &[&str] = if n == 1 {
            &["snapshot", "--label", &label]
        } else {
            &["snapshot"]
        };
        site.ok(args);
    }
    site.restic(&[
        "backup",
        "--tag",
        "by-hand",
        site.data("kept0").to_str().unwrap(),
    ]);
    site.write("last", b"x");
    site.ok(&["snapshot"]);
    let before = site.points();
    let text = site.ok(&["prune", "--dry-run"]);
    assert!(
        text.contains("label v1") && text.contains("not made by lifeboat"),
        "{text}"
    );
    assert_eq!(
        site.points().len(),
        before.len(),
        "a dry run changes nothing"
    );
    let text = site.ok(&["prune"]);
    assert_eq!(text.matches(": forget ").count(), 3, "{text}");
    let after = site.points();
    assert_eq!(after.len(), 3);
    assert!(after.iter().any(|p| p["labels"][0] == "v1"));
    site.restic(&["check", "--read-data"]);
    site.ok(&["verify"]);
    site.ok(&["drill"]);
    site.ok(&["restore", "uploads", "--label", "v1", "-o", "v1"]);
    assert_eq!(
        std::fs::read(site.path("v1/changing")).unwrap(),
        noise(1, 2_000_000)
    );
    // Nothing is left to forget, and the plan says so again and again.
    assert!(site.ok(&["prune"]).contains("forgotten=0"));
    site.restic(&["check", "--read-data"]);
}

fn packs(site: &Site) -> Vec<PathBuf> {
    let data = site.repository().join("data");
    let folders = std::fs::read_dir(data).unwrap().map(|e| e.unwrap().path());
    let mut packs: Vec<_> = folders
        .flat_map(|f| std::fs::read_dir(f).unwrap().map(|e| e.unwrap().path()))
        .collect();
    // A file that is being written changes its name.
    packs.retain(|p| p.metadata().is_ok() && !p.to_str().unwrap().contains('#'));
    packs.sort_by_key(|p| std::cmp::Reverse(p.metadata().map_or(0, |m| m.len())));
    packs
}

#[test]
fn a_damaged_repository_is_found_and_never_pruned() {
    let site = Site::new();
    for n in 0..6 {
        site.write(&format!("f{n}"), &noise(n, 2_000_000));
    }
    site.ok(&["snapshot"]);
    site.ok(&["verify"]);
    let pack = packs(&site)[0].clone();
    let good = std::fs::read(&pack).unwrap();
    // One bit.
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&pack, &bad).unwrap();
    let text = site.refused(&["verify"], 5);
    assert!(text.contains("is damaged"), "{text}");
    site.refused(&["drill"], 5);
    let text = site.refused(&["restore", "uploads", "-o", "bad"], 5);
    assert!(text.contains("is damaged"), "{text}");
    // Cut short, and gone.
    std::fs::write(&pack, &good[..good.len() / 2]).unwrap();
    site.refused(&["verify"], 5);
    site.refused(&["prune"], 5);
    std::fs::remove_file(&pack).unwrap();
    site.refused(&["verify"], 5);
    site.refused(&["prune"], 5);
    site.refused(&["drill"], 5);
    std::fs::write(&pack, &good).unwrap();
    site.ok(&["verify"]);
    site.ok(&["drill"]);
    assert_eq!(packs(&site).len(), packs(&site).len());
}

/// A lock as restic writes it, held by somebody else: made by restic itself, stopped in the middle.
#[test]
fn locks_are_respected_and_stale_ones_removed() {
    let site = Site::new();
    site.write("a", b"a");
    site.ok(&["snapshot"]);
    // restic backs up from a pipe that stays open: it holds a shared lock meanwhile.
    let mut restic = Command::new("restic")
        .args(["--no-cache", "backup", "--stdin", "-r"])
        .arg(site.repository())
        .env("RESTIC_PASSWORD", PASSWORD)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let locks = || std::fs::read_dir(site.repository().join("locks")).map_or(0, Iterator::count);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while locks() == 0 {
        assert!(std::time::Instant::now() < deadline, "restic takes no lock");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let text = site.refused(&["prune"], 4);
    assert!(text.contains("is locked by"), "{text}");
    site.ok(&["snapshot"]);
    // Killed: its lock stays, and is respected until it is stale.
    restic.kill().unwrap();
    restic.wait().unwrap();
    assert_eq!(locks(), 1);
    site.refused(&["prune"], 4);
    site.ok(&["snapshot"]);
    site.restic(&["unlock"]);
    site.ok(&["prune"]);
    assert_eq!(locks(), 0, "none of ours stays");
}

/// Killed when dropped.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while !done() {
        assert!(
            std::time::Instant::now() < deadline,
            "no {what} within two minutes"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn get(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(address) else {
        return String::new();
    };
    let mut text = String::new();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_daemon_backs_up_and_says_so() {
    let mut site = Site::new();
    site.write("a", b"a");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let address = format!("127.0.0.1:{port}");
    site.http = format!("{{ listen: {address} }}");
    let mut daemon = Running(site.prepared(&["run"]).spawn().unwrap());
    wait_for("snapshot", || {
        get(&address, "/readyz").contains("\"status\":\"safe\"")
    });
    assert_eq!(site.points().len(), 1);
    let metrics = get(&address, "/metrics");
    for line in [
        "lifeboat_files_ready{",
        "lifeboat_files_runs_total{result=\"complete\"",
    ] {
        let found = metrics
            .lines()
            .find(|l| l.starts_with(line))
            .unwrap_or_default();
        assert!(found.ends_with(" 1"), "{line}: {found}");
    }
    assert!(site.ok(&["status"]).contains("uploads"));
    // In order, and at once.
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
    // A folder that was emptied turns it red.
    std::fs::remove_file(site.data("a")).unwrap();
    site.extra += "    schedule: '* * * * *'\n";
    let _daemon = Running(site.prepared(&["run"]).spawn().unwrap());
    wait_for("refusal", || get(&address, "/readyz").contains("is empty"));
    assert!(get(&address, "/readyz").contains("503"), "not ready");
    assert_eq!(site.points().len(), 1);
}

#[test]
fn a_killed_run_is_gone_on_with() {
    let site = Site::new();
    site.write("first", b"first");
    site.backup();
    for n in 0..24 {
        site.write(&format!("big{n}"), &noise(n, 2_000_000));
    }
    let before = packs(&site).len();
    let mut run = Running(site.prepared(&["snapshot"]).spawn().unwrap());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while packs(&site).len() < before + 4 {
        assert!(std::time::Instant::now() < deadline, "no packs");
        assert!(
            run.0.try_wait().unwrap().is_none(),
            "it was too fast to be killed"
        );
    }
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    assert_eq!(site.points().len(), 1, "nothing was recorded");
    site.restic(&["unlock"]);
    site.restic(&["check", "--read-data"]);
    let mut run = Running(site.prepared(&["snapshot"]).spawn().unwrap());
    wait_for("pack", || packs(&site).len() > before + 4);
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    let second = site.backup();
    assert_eq!(second["resumed"], true, "{second}");
    let uploaded = second["uploaded"].as_u64().unwrap();
    assert!(uploaded < 48_000_000 - 12_000_000, "{uploaded} bytes again");
    site.ok(&["verify"]);
    site.ok(&["prune"]);
    site.restic(&["check", "--read-data"]);
}

#[test]
fn heavy_kills_at_random_moments_never_damage_what_was_there() {
    let site = Site::new();
    let mut known: Vec<(String, Vec<String>)> = Vec::new();
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(7_u64);
    println!("SEED={seed}");
    let moments = noise(seed, 8 * 16);
    for (round, moment) in moments.chunks(8).enumerate() {
        for n in 0..6 {
            site.write(
                &format!("r{round}/f{n}"),
                &noise((round * 10 + n) as u64, 900_000),
            );
        }
        site.write("same", &noise(round as u64, 2_000_000));
        let what = if round % 4 == 3 { "prune" } else { "snapshot" };
        let mut run = Running(site.prepared(&[what]).spawn().unwrap());
        let micros = u64::from_le_bytes(moment.try_into().unwrap()) % 1_500_000;
        std::thread::sleep(std::time::Duration::from_micros(micros));
        run.0.kill().unwrap();
        run.0.wait().unwrap();
        // The next run goes on whatever was left behind.
        let done = site.backup();
        let id = done["point"]["id"].as_str().unwrap().to_owned();
        known.push((id, picture(&site.path("data"))));
    }
    site.restic(&["unlock"]);
    site.restic(&["check", "--read-data"]);
    let there: Vec<String> = site
        .points()
        .iter()
        .map(|p| p["id"].as_str().unwrap().to_owned())
        .collect();
    for (id, wanted) in &known {
        assert!(there.contains(id), "{id} was kept by point-in-time");
        let to = format!("back-{}", &id[..8]);
        site.ok(&["restore", "uploads", "--snapshot", id, "-o", &to]);
        assert_eq!(&picture(&site.path(&to)), wanted);
        std::fs::remove_dir_all(site.path(&to)).unwrap();
    }
}

#[test]
fn a_stop_in_the_middle_leaves_no_lock() {
    let site = Site::new();
    for n in 0..24 {
        site.write(&format!("big{n}"), &noise(n, 2_000_000));
    }
    site.ok(&["files", "init"]);
    std::fs::create_dir_all(site.repository().join("data")).unwrap();
    let mut daemon = Running(site.prepared(&["run"]).spawn().unwrap());
    wait_for("pack", || packs(&site).len() > 2);
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
    let locks = std::fs::read_dir(site.repository().join("locks")).map_or(0, Iterator::count);
    assert_eq!((locks, site.points().len()), (0, 0));
    site.ok(&["snapshot"]);
    site.restic(&["check", "--read-data"]);
}
