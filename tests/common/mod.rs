//! Shared by the integration tests: an app in another process, and the oracle.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

pub mod browser;
pub mod daemon;
pub mod faults;
pub mod kamal;
pub mod link;
pub mod mount;
pub mod pages;
pub mod port;
pub mod prometheus;
pub mod receiver;
pub mod redis;
pub mod s3;
pub mod solid;
pub mod tls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use lifeboat::ltx;
use lifeboat::replica::spool::Spool;
use lifeboat::sqlite::capture::{Capture, CaptureError, Captured, Identity, Outcome};
use lifeboat::sqlite::guard::{GapReason, Guard};
use lifeboat::types::{Lineage, Millis, RollingChecksum, Txid, page_hash};

/// Runs Python code against the system's own SQLite, with `p` as the database's path.
pub fn python(db: &Path, code: &str) -> String {
    let out = python_output(db, code, &[]);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

pub fn python_output(db: &Path, code: &str, env: &[(&str, &str)]) -> Output {
    let script = format!(
        "import sqlite3, os, sys, time\np={:?}\ndef conn(timeout=5):\n    return sqlite3.connect(p, isolation_level=None, timeout=timeout)\n{code}",
        db.to_str().unwrap()
    );
    Command::new("python3")
        .args(["-c", &script])
        .envs(env.iter().copied())
        .output()
        .expect("python3 is missing: apt-get install python3")
}

/// Starts the app's traffic.
pub fn traffic(db: &Path, seed: u64, seconds: f64) -> Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/app/traffic.py");
    Command::new("python3")
        .arg(script)
        .arg(db)
        .args([seed.to_string(), seconds.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is missing: apt-get install python3")
}

pub fn commits(child: Child) -> u64 {
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "the app failed");
    String::from_utf8(out.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// A database as pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub page_size: usize,
    pub pages: BTreeMap<u32, Vec<u8>>,
}

impl Image {
    /// What the file holds; call when everything is checkpointed.
    pub fn of_file(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let size = match u16::from_be_bytes([bytes[16], bytes[17]]) {
            1 => 65536,
            n => usize::from(n),
        };
        let pages = bytes
            .chunks(size)
            .zip(1..)
            .map(|(p, n)| (n, p.to_vec()))
            .collect();
        Self {
            page_size: size,
            pages,
        }
    }

    /// Applies one LTX file and checks the checksums that it carries.
    pub fn apply(&mut self, bytes: &[u8]) -> ltx::Header {
        let mut decoder = ltx::Decoder::new(bytes).unwrap();
        let header = *decoder.header();
        if let (Some(pre), false) = (header.pre, self.pages.is_empty()) {
            assert_eq!(
                self.checksum(),
                pre.get(),
                "pre-apply checksum of {}",
                header.min
            );
        }
        let mut buf = Vec::new();
        while let Some(page) = decoder.next_page(&mut buf).unwrap() {
            self.pages.insert(page.get(), buf.clone());
        }
        self.pages.retain(|p, _| *p <= header.commit);
        self.page_size = header.page_size.bytes();
        if let Some(post) = header.post {
            assert_eq!(
                self.checksum(),
                post.get(),
                "post-apply checksum of {}",
                header.max
            );
        }
        header
    }

    pub fn checksum(&self) -> u64 {
        let mut sum = RollingChecksum::default();
        for (page, data) in &self.pages {
            sum.add(page_hash(lifeboat::types::Pgno::new(*page).unwrap(), data));
        }
        sum.finish().get()
    }

    /// Pages that differ.
    pub fn differing(&self, other: &Image) -> Vec<u32> {
        let last = self
            .pages
            .keys()
            .chain(other.pages.keys())
            .max()
            .copied()
            .unwrap_or(0);
        (1..=last)
            .filter(|p| self.pages.get(p) != other.pages.get(p))
            .collect()
    }
}

/// One captured database with its state directory, without stores: what the capture layer writes.
pub struct Sidecar {
    pub dir: tempfile::TempDir,
    pub db: PathBuf,
    pub spool: Spool,
    pub capture: Option<Capture>,
    pub base: Image,
    pub clock: i64,
}

pub const IDENTITY: Identity = Identity {
    lineage: Lineage::new(0xfeed).unwrap(),
    epoch: 1,
};

impl Sidecar {
    /// A new database with a table `t` of 3,000 rows, in WAL mode.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("app.db");
        python(
            &db,
            "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(id integer primary key,a)')
c.execute('begin'); c.executemany('insert into t(a) values(?)',((os.urandom(500),) for _ in range(3000))); c.execute('commit')",
        );
        let spool = Spool::open(&dir.path().join("ltx")).unwrap();
        Self {
            dir,
            db,
            spool,
            capture: None,
            base: Image::default(),
            clock: 1_700_000_000_000,
        }
    }

    pub fn table(&self) -> PathBuf {
        self.dir.path().join("pages")
    }

    pub fn now(&mut self) -> Millis {
        self.clock += 10;
        Millis(self.clock)
    }

    /// First start: the base is kept as the image that all captures apply to.
    pub fn begin(&mut self) {
        let now = self.now();
        let (guard, _) = Guard::attach(&self.db, true).unwrap();
        let (mut capture, _) =
            Capture::begin(guard, &self.table(), &self.spool, IDENTITY, now).unwrap();
        let (view, captured) = capture.view(&self.spool, now).unwrap();
        assert!(captured.is_none(), "the app is quiet at the start");
        let header = capture.base_header(now);
        let bytes = lifeboat::sqlite::capture::write_base(&view, &header, Vec::new()).unwrap();
        self.base.apply(&bytes);
        self.capture = Some(capture);
    }

    pub fn stop(&mut self) {
        self.capture = None;
    }

    /// Start again on what is in the state directory; runs the gap capture that is due.
    pub fn start(&mut self) -> Option<GapReason> {
        let now = self.now();
        let (guard, _) = Guard::attach(&self.db, true).unwrap();
        let table =
            lifeboat::sqlite::capture::open_table(&self.table(), &self.spool, guard.page_size())
                .unwrap()
                .expect("the table is trusted");
        let (mut capture, gap) = Capture::resume(guard, table, IDENTITY, now).unwrap();
        if gap.is_some() {
            capture.gap(&self.table(), &self.spool, now).unwrap();
        }
        self.capture = Some(capture);
        gap
    }

    pub fn try_capture(&mut self) -> Result<Outcome, CaptureError> {
        let now = self.now();
        self.capture.as_mut().unwrap().capture(&self.spool, now)
    }

    /// Captures; a gap fails the test.
    pub fn capture(&mut self) -> Option<Captured> {
        match self.try_capture().unwrap() {
            Outcome::Nothing => None,
            Outcome::Captured(c) => Some(c),
            Outcome::Gap(reason) => panic!("gap: {reason:?}"),
        }
    }

    pub fn gap(&mut self) -> lifeboat::sqlite::capture::GapReport {
        let now = self.now();
        let table = self.table();
        self.capture
            .as_mut()
            .unwrap()
            .gap(&table, &self.spool, now)
            .unwrap()
    }

    pub fn checkpoint(&mut self, force: bool) -> Option<lifeboat::sqlite::guard::Barrier> {
        let now = self.now();
        self.capture
            .as_mut()
            .unwrap()
            .checkpoint(&self.spool, now, force)
            .unwrap()
            .0
    }

    /// Whether the reader is on a mark now.
    pub fn leave_lock_zero(&mut self) -> bool {
        let now = self.now();
        let capture = self.capture.as_mut().unwrap();
        capture.leave_lock_zero(&self.spool, now).unwrap().0
    }

    pub fn txid(&self) -> Txid {
        self.capture.as_ref().unwrap().txid()
    }

    /// Base and all captures applied, each checked by its checksums.
    pub fn restored(&self) -> Image {
        let mut image = self.base.clone();
        let mut entries = self.spool.entries();
        entries.sort_by_key(|e| e.span.max());
        for entry in entries {
            image.apply(&std::fs::read(self.spool.path(entry.span)).unwrap());
        }
        image
    }

    /// The oracle: what was captured equals the database, page for page. Ends the capture.
    pub fn assert_equal(&mut self) {
        self.capture();
        self.stop();
        python(
            &self.db,
            "r=conn().execute('pragma wal_checkpoint(truncate)').fetchone(); assert r[0]==0, r",
        );
        let live = Image::of_file(&self.db);
        let restored = self.restored();
        let differing = restored.differing(&live);
        assert!(
            differing.is_empty(),
            "{} pages differ: {:?}",
            differing.len(),
            &differing[..differing.len().min(9)]
        );
        let schema = python(
            &self.db,
            "print(conn().execute('select group_concat(name) from sqlite_schema').fetchone()[0])",
        );
        assert_eq!(schema, "t", "zero footprint");
    }
}
