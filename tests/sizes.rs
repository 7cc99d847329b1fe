//! Every page size, and a database beyond the page that SQLite keeps for locks (at 1 GiB), through the binary, in bounded memory.
#![allow(missing_docs)]

mod common;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use common::daemon::{Daemon, Site};
use common::python;

/// The bound on a sidecar and on a restore, whatever the size of the database.
const PEAK_MAX_KIB: u64 = 96 << 10;

fn new_database(site: &Site, page_size: u32, rows: &str) {
    for companion in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(site.path(&format!("app.sqlite3{companion}")));
    }
    python(
        &site.db,
        &format!(
            "c=conn(); c.execute('pragma page_size={page_size}'); c.execute('pragma journal_mode=off'); c.execute('pragma synchronous=off')
c.execute('create table t(id integer primary key,a)'); c.execute(\"\"\"{rows}\"\"\"); c.execute('pragma journal_mode=wal')
assert c.execute('pragma page_size').fetchone()[0]=={page_size}"
        ),
    );
}

/// Byte for byte, in bounded memory: the app's file holds everything once its WAL is checkpointed.
fn assert_equal(site: &Site, restored: &Path, what: &str) {
    python(
        &site.db,
        "assert conn().execute('pragma wal_checkpoint(truncate)').fetchone()[0]==0",
    );
    let mut files = [&site.db, restored].map(|p| File::open(p).unwrap());
    let len = files[0].metadata().unwrap().len();
    assert_eq!(len, files[1].metadata().unwrap().len(), "{what}: size");
    let mut buf = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let mut at = 0;
    while at < len {
        let n = (len - at).min(1 << 20) as usize;
        for (file, buf) in files.iter_mut().zip(&mut buf) {
            file.read_exact(&mut buf[..n]).unwrap();
        }
        assert!(
            buf[0][..n] == buf[1][..n],
            "{what}: differs in the MiB at {at}"
        );
        at += n as u64;
    }
}

#[test]
fn every_page_size() {
    for page_size in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        let site = Site::new();
        new_database(
            &site,
            page_size,
            "with recursive n(i) as (select 1 union all select i+1 from n where i<400) insert into t select i, randomblob(i*7) from n",
        );
        let daemon = site.start();
        site.sync();
        // Enough for several lives of the WAL, with an app that checkpoints by itself; then a smaller database.
        for _ in 0..3 {
            python(
                &site.db,
                "c=conn(); c.execute('pragma wal_autocheckpoint=20')
for i in range(60): c.execute('update t set a=randomblob(3000) where id=?',(1+i*5,))",
            );
            site.sync();
        }
        python(
            &site.db,
            "c=conn(); c.execute('delete from t where id>200'); c.execute('vacuum')",
        );
        site.sync();
        assert_eq!(daemon.stop(), 0);
        let restored = site.restore("restored.db", &["--verify", "full"]);
        assert_equal(&site, &restored, &format!("page size {page_size}"));
    }
}

fn peak_of_daemon(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Peak resident memory of a command that must succeed, in KiB.
fn peak_of(site: &Site, args: &[&str]) -> u64 {
    let plain = site.command(args);
    let out = std::process::Command::new("python3")
        .args(["-c", "import resource,subprocess,sys; subprocess.run(sys.argv[1:],check=True,stdout=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"])
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(site.dir.path())
        .output()
        .expect("python3 is missing: run bin/install-dev");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).trim().parse().unwrap()
}

#[test]
fn heavy_beyond_the_lock_page_in_bounded_memory() {
    let site = Site::new();
    // 1.2 GiB; every row differs, half of each is random.
    new_database(
        &site,
        4096,
        "with recursive n(i) as (select 1 union all select i+1 from n where i<37000) insert into t select i, randomblob(17000)||zeroblob(17000) from n",
    );
    let size = std::fs::metadata(&site.db).unwrap().len();
    assert!(size > (1 << 30) + (100 << 20), "{size}");
    let daemon = site.start();
    // The snapshot, with an app that writes on both sides of the lock page meanwhile.
    python(
        &site.db,
        "c=conn()
for i in range(300): c.execute('update t set a=randomblob(34000) where id in (?,?,?)',(1+i*10,31000+i*10,33000+i*10))",
    );
    site.ok(&["sync", "--timeout", "300s"]);
    python(
        &site.db,
        "c=conn(); c.execute('insert into t select id+100000,randomblob(40000) from t where id<200')",
    );
    site.sync();
    let peak = peak_of_daemon(&daemon);
    assert_eq!(daemon.stop(), 0);
    eprintln!("snapshot and captures of {size} bytes: peak {peak} KiB");
    assert!(peak < PEAK_MAX_KIB, "snapshot: {peak} KiB");
    let out = site.path("restored.db");
    let peak = peak_of(&site, &["restore", "app", "-o", out.to_str().unwrap()]);
    eprintln!("restore: peak {peak} KiB");
    assert!(peak < PEAK_MAX_KIB, "restore: {peak} KiB");
    assert_equal(&site, &out, "beyond the lock page");
    // Down while the app writes: one comparison of every page, in as little memory.
    python(
        &site.db,
        "c=conn(); c.execute('update t set a=randomblob(20000) where id=32900'); c.execute('pragma wal_checkpoint(truncate)')",
    );
    let peak = peak_of(&site, &["sync", "--timeout", "300s"]);
    eprintln!("gap capture: peak {peak} KiB");
    assert!(peak < PEAK_MAX_KIB, "gap capture: {peak} KiB");
    std::fs::remove_file(&out).unwrap();
    site.ok(&["restore", "app", "-o", out.to_str().unwrap()]);
    assert_equal(&site, &out, "after a gap");
}
