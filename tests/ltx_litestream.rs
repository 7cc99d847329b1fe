//! LTX files against the real peer: Litestream restores ours, we read Litestream's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat::ltx::{Decoder, Encoder, Header, Written, merge, read_index};
use lifeboat::types::{
    Level, Lineage, Millis, PageSize, Pgno, RollingChecksum, Span, Txid, page_hash,
};
use rusqlite::Connection;

const INSTALL: &str = "bin/install-dev";

/// How long Litestream may take for something it does in well under a second.
const PATIENCE: Duration = Duration::from_secs(30);

type Pages = BTreeMap<u32, Vec<u8>>;

/// `$LITESTREAM_BIN`, or the places where an installation is looked for, or whatever is on the PATH.
fn litestream() -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let known = root.join(".tools/venv/bin/litestream");
    let known = known.is_file().then_some(known);
    let program = std::env::var_os("LITESTREAM_BIN")
        .map(PathBuf::from)
        .or(known)
        .unwrap_or("litestream".into());
    let version = Command::new(&program).arg("version").output();
    let version =
        version.unwrap_or_else(|e| panic!("run {}: {e}\n\nhint: {INSTALL}", program.display()));
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    assert!(
        version.contains("0.5."),
        "litestream {version} is not 0.5\n\nhint: {INSTALL}"
    );
    let mut command = Command::new(program);
    command.env_remove("AWS_CA_BUNDLE");
    command
}

fn restore(replica: &Path, out: &Path, more: &[&str]) -> Vec<u8> {
    let result = litestream()
        .arg("restore")
        .args(more)
        .arg("-o")
        .arg(out)
        .arg(format!("file://{}", replica.display()))
        .output()
        .unwrap();
    assert!(
        result.status.success(),
        "litestream restore: {}",
        String::from_utf8_lossy(&result.stderr)
    );
    let bytes = fs::read(out).unwrap();
    fs::remove_file(out).unwrap();
    bytes
}

fn pages_of(database: &[u8], page_size: PageSize) -> Pages {
    (1..)
        .zip(database.chunks(page_size.bytes()).map(<[u8]>::to_vec))
        .collect()
}

fn write_file(replica: &Path, level: Level, header: &Header, pages: &Pages) -> Written {
    let dir = replica.join(format!("ltx/{}", level.get()));
    fs::create_dir_all(&dir).unwrap();
    let name = Span::new(level, header.min, header.max)
        .unwrap()
        .file_name();
    let mut encoder = Encoder::new(fs::File::create(dir.join(name)).unwrap(), header).unwrap();
    for (&page, data) in pages {
        encoder.page(Pgno::new(page).unwrap(), data).unwrap();
    }
    encoder.finish().unwrap().1
}

fn decode(bytes: &[u8]) -> (Header, Pages) {
    let mut decoder = Decoder::new(bytes).unwrap();
    let (mut pages, mut buf) = (Pages::new(), Vec::new());
    while let Some(page) = decoder.next_page(&mut buf).unwrap() {
        pages.insert(page.get(), buf.clone());
    }
    (*decoder.header(), pages)
}

fn encode(header: &Header, pages: &Pages) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (&page, data) in pages {
        encoder.page(Pgno::new(page).unwrap(), data).unwrap();
    }
    encoder.finish().unwrap().0
}

/// The database file with everything committed in it.
fn settled(db: &Connection, path: &Path) -> Vec<u8> {
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
        row.get::<_, i64>(0)
    })
    .unwrap();
    fs::read(path).unwrap()
}

/// Every optional field set, so that Litestream is seen to pass over what it does not know.
fn header(page_size: PageSize, txid: u64, database: &[u8]) -> Header {
    let mut checksum = RollingChecksum::default();
    for (page, data) in pages_of(database, page_size) {
        checksum.add(page_hash(Pgno::new(page).unwrap(), &data));
    }
    let txid = Txid::new(txid).unwrap();
    Header {
        page_size,
        commit: (database.len() / page_size.bytes()) as u32,
        min: txid,
        max: txid,
        timestamp: Millis(1_795_000_000_000 + txid.get() as i64),
        wal_offset: 32,
        wal_size: 0,
        salt: (0, 0),
        lineage: Lineage::new(0xfeed_0000_0000_0001),
        pre: None,
        post: Some(checksum.finish()),
        epoch: 7,
    }
}

#[test]
fn litestream_restores_our_files() {
    for bytes in [512, 4096, 65536] {
        let page_size = PageSize::new(bytes).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (path, replica, out) = (
            dir.path().join("app.db"),
            dir.path().join("replica"),
            dir.path().join("out.db"),
        );
        let db = Connection::open(&path).unwrap();
        db.execute_batch(&format!(
            "PRAGMA page_size={bytes}; PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<300)
             INSERT INTO t SELECT i, randomblob(i * 7) FROM n;"
        ))
        .unwrap();
        let first = settled(&db, &path);
        let base = header(page_size, 1, &first);
        write_file(
            &replica,
            Level::SNAPSHOT,
            &base,
            &pages_of(&first, page_size),
        );
        assert!(
            restore(&replica, &out, &[]) == first,
            "page size {bytes}: base alone"
        );

        // Fewer pages than before, some of them new.
        db.execute_batch(
            "DELETE FROM t WHERE id % 3 > 0; UPDATE t SET data = zeroblob(900); VACUUM;",
        )
        .unwrap();
        let second = settled(&db, &path);
        assert!(second.len() < first.len());
        let old = pages_of(&first, page_size);
        let mut changed = pages_of(&second, page_size);
        changed.retain(|page, data| old.get(page) != Some(data));
        let next = Header {
            pre: base.post,
            ..header(page_size, 2, &second)
        };
        write_file(&replica, Level::CAPTURE, &next, &changed);
        assert!(
            restore(&replica, &out, &[]) == second,
            "page size {bytes}: newest"
        );
        assert!(
            restore(&replica, &out, &["-txid", "0000000000000001"]) == first,
            "page size {bytes}: by txid"
        );

        // The merge is a base of its own.
        let inputs =
            [(&base, &old), (&next, &changed)].map(|(header, pages)| encode(header, pages));
        let inputs = inputs
            .iter()
            .map(|bytes| Decoder::new(bytes.as_slice()).unwrap())
            .collect();
        let (merged, header, _) = merge(inputs, Vec::new()).unwrap();
        let (_, pages) = decode(&merged);
        assert!(pages == pages_of(&second, page_size));
        fs::remove_dir_all(&replica).unwrap();
        write_file(&replica, Level::SNAPSHOT, &header, &pages);
        assert!(
            restore(&replica, &out, &[]) == second,
            "page size {bytes}: merged"
        );
    }
}

/// LTX files below a directory, by level and name.
fn ltx_files(replica: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for level in fs::read_dir(replica.join("ltx")).into_iter().flatten() {
        files.extend(
            fs::read_dir(level.unwrap().path())
                .unwrap()
                .map(|entry| entry.unwrap().path()),
        );
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "ltx"));
    files.sort();
    files
}

/// Lets Litestream replicate a database that is written to, until it has made `captures` level-0 files and compacted
/// some of them, or patience ends.
fn replicate(dir: &Path, db: &Connection, captures: usize) -> PathBuf {
    let (config, replica) = (dir.join("litestream.yml"), dir.join("replica"));
    let text = format!(
        "levels:\n  - interval: 1s\ndbs:\n  - path: {}\n    monitor-interval: 50ms\n    replica:\n      type: file\n      \
         path: {}\n      sync-interval: 100ms\n",
        dir.join("app.db").display(),
        replica.display()
    );
    fs::write(&config, text).unwrap();
    let mut child = litestream()
        .arg("replicate")
        .arg("-config")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let enough = || {
        let (level_0, above): (Vec<_>, Vec<_>) = ltx_files(&replica)
            .into_iter()
            .partition(|file| file.starts_with(replica.join("ltx/0")));
        level_0.len() >= captures && !above.is_empty()
    };
    while !enough() && start.elapsed() < PATIENCE {
        db.execute(
            "INSERT INTO t (data) VALUES (randomblob(abs(random()) % 9000))",
            [],
        )
        .unwrap();
        std::thread::sleep(Duration::from_millis(40));
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    child.wait().unwrap();
    replica
}

#[test]
fn we_read_all_that_litestream_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let db = Connection::open(&path).unwrap();
    db.busy_timeout(PATIENCE).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB);",
    )
    .unwrap();
    let replica = replicate(dir.path(), &db, 15);

    let files = ltx_files(&replica);
    assert!(
        files.len() >= 15,
        "litestream made only {} files",
        files.len()
    );
    let mut captures = Vec::new();
    for file in &files {
        let bytes = fs::read(file).unwrap();
        let (header, pages) = decode(&bytes);
        let name = file.file_name().unwrap().to_str().unwrap();
        let span = Span::parse_file_name(Level::CAPTURE, name).unwrap();
        assert_eq!((span.min(), span.max()), (header.min, header.max), "{name}");

        let index = read_index(&bytes, bytes.len() as u64).unwrap();
        assert!(
            index
                .iter()
                .map(|(page, ..)| page.get())
                .eq(pages.keys().copied()),
            "{name}"
        );
        let again = encode(&header, &pages);
        assert!(decode(&again) == (header, pages), "{name}");
        if file.starts_with(replica.join("ltx/0")) {
            captures.push(bytes);
        }
    }
    assert!(captures.len() < files.len(), "litestream compacted nothing");

    let inputs = captures
        .iter()
        .map(|bytes| Decoder::new(bytes.as_slice()).unwrap())
        .collect();
    let (merged, header, _) = merge(inputs, Vec::new()).unwrap();
    assert_eq!(header.min, Txid::FIRST);
    let restored = restore(
        &replica,
        &dir.path().join("out.db"),
        &["-txid", &header.max.to_string()],
    );
    assert!(decode(&merged).1 == pages_of(&restored, header.page_size));
}
