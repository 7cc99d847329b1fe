//! A folder, a store and a configuration; and how a folder looks.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use aes256ctr_poly1305aes::Aes256CtrPoly1305Aes;
use aes256ctr_poly1305aes::aead::Aead;
use rustic_core::repofile::{KeyFile, MasterKey};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub(crate) const PASSWORD: &str = "correct horse";

pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    /// More keys of the target.
    pub(crate) extra: String,
    /// More keys of the file.
    pub(crate) top: String,
    /// Instead of the folder `store`: lines of YAML.
    pub(crate) stores: Option<String>,
    pub(crate) password: String,
    pub(crate) http: String,
    pub(crate) command: Vec<String>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        Self {
            dir,
            extra: "    create: true\n".into(),
            top: String::new(),
            stores: None,
            password: PASSWORD.into(),
            http: "off".into(),
            command: Vec::new(),
        }
    }

    /// With a key that costs little to open: for tests that run many commands.
    pub(crate) fn quick() -> Self {
        let site = Self::new();
        let (name, key, _) = cheap_key(PASSWORD);
        std::fs::create_dir_all(site.repository().join("keys")).unwrap();
        std::fs::write(site.repository().join(name), key).unwrap();
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.path("data").join(name)
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.path("store/uploads")
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.data(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn prepared(&self, args: &[&str]) -> Command {
        let store = format!("store: file://{}\n", self.path("store").display());
        let text = format!(
            "{}state-dir: {}\nhttp: {}\n{}files:\n  - name: uploads\n    paths: [{}]\n    password: {}\n{}",
            self.stores.as_ref().unwrap_or(&store),
            self.path("state").display(),
            self.http,
            self.top,
            self.path("data").display(),
            self.password,
            self.extra,
        );
        let config = self.path("lifeboat.yml");
        // Another process may be reading it.
        if std::fs::read_to_string(&config).ok().as_ref() != Some(&text) {
            std::fs::write(&config, text).unwrap();
        }
        let program = env!("CARGO_BIN_EXE_lifeboat").to_owned();
        let words: Vec<String> = self.command.iter().cloned().chain([program]).collect();
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(args)
            .arg("--config")
            .arg(config)
            // Files give way to everything else, so they get time.
            .env("LIFEBOAT_TIMEOUT", "10m")
            .current_dir(self.dir.path());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.prepared(args).output().unwrap()
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
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
    pub(crate) fn refused(&self, args: &[&str], code: i32) -> String {
        let out = self.run(args);
        let text = words(&out);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
        assert!(!text.contains("lifeboat: ok"), "{text}");
        assert!(!text.contains(PASSWORD), "{text}");
        text
    }

    pub(crate) fn backup(&self) -> Value {
        let text = self.ok(&["snapshot", "uploads", "--json"]);
        let value: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        value["backup"].clone()
    }

    pub(crate) fn points(&self) -> Vec<Value> {
        let text = self.ok(&["list", "uploads", "--json"]);
        let value: Value = serde_json::from_str(text.trim()).unwrap();
        value["points"].as_array().unwrap().clone()
    }

    pub(crate) fn restic(&self, args: &[&str]) -> String {
        let out = self.restic_output(args);
        assert!(out.status.success(), "restic {args:?}: {}", words(&out));
        words(&out)
    }

    pub(crate) fn restic_output(&self, args: &[&str]) -> Output {
        self.restic_command()
            .arg("-r")
            .arg(self.repository())
            .args(args)
            .output()
            .expect("restic is missing: apt-get install restic")
    }

    pub(crate) fn restic_command(&self) -> Command {
        let mut command = Command::new("restic");
        command.arg("--no-cache").env("RESTIC_PASSWORD", PASSWORD);
        command
    }
}

/// restic's key file, with its name, that takes the least work of scrypt.
pub(crate) fn cheap_key(password: &str) -> (String, Vec<u8>, [u8; 64]) {
    let (salt, mut user) = (vec![7; 64], [0; 64]);
    let params = scrypt::Params::new(1, 8, 1).unwrap();
    scrypt::scrypt(password.as_bytes(), &salt, &params, &mut user).unwrap();
    let master = MasterKey::new();
    let plain = serde_json::to_vec(&master).unwrap();
    let file = KeyFile {
        hostname: None,
        username: None,
        created: None,
        kdf: "scrypt".into(),
        n: 2,
        r: 8,
        p: 1,
        data: sealed(&user, &plain),
        salt,
    };
    let key = serde_json::to_vec(&file).unwrap();
    let name: String = Sha256::digest(&key)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let master = [master.encrypt, master.mac.k, master.mac.r].concat();
    (format!("keys/{name}"), key, master.try_into().unwrap())
}

/// restic's encryption.
pub(crate) fn sealed(key: &[u8; 64], plain: &[u8]) -> Vec<u8> {
    let nonce = [9; 16];
    let cipher = Aes256CtrPoly1305Aes::new(key.into());
    let sealed = cipher.encrypt((&nonce).into(), plain).unwrap();
    [&nonce[..], &sealed].concat()
}

/// The way back.
pub(crate) fn unsealed(key: &[u8; 64], sealed: &[u8]) -> Vec<u8> {
    let (nonce, rest) = sealed.split_first_chunk::<16>().unwrap();
    let cipher = Aes256CtrPoly1305Aes::new(key.into());
    cipher.decrypt(nonce.into(), rest).unwrap()
}

pub(crate) fn words(out: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

/// Everything below a folder: name, kind, mode, owner, size, time, links, target, content.
pub(crate) fn picture(root: &Path) -> Vec<String> {
    fn look(root: &Path, path: &Path, out: &mut Vec<String>) {
        let m = path.symlink_metadata().unwrap();
        let kind = m.file_type();
        let content = if kind.is_file() {
            Sha256::digest(std::fs::read(path).unwrap()).to_vec()
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

pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
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

pub(crate) fn packs(site: &Site) -> Vec<PathBuf> {
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

/// Killed when dropped.
pub(crate) struct Running(pub(crate) std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn wait_for(what: &str, done: impl FnMut() -> bool) {
    wait(what, Duration::from_millis(50), done);
}

/// For what is over in a moment: a run that is to be ended in its middle.
pub(crate) fn closely(what: &str, done: impl FnMut() -> bool) {
    wait(what, Duration::from_millis(1), done);
}

fn wait(what: &str, pause: Duration, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "no {what} within two minutes"
        );
        std::thread::sleep(pause);
    }
}
