//! Every way known to lose or invent data between an app's WAL and a sidecar, against SQLite in other processes.
#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{Image, Sidecar, commits, python, python_output, traffic};
use lifeboat::sqlite::capture::Outcome;
use lifeboat::sqlite::guard::{Barrier, GapReason, Guard, GuardError};

/// The whole protocol beside three writers: spills, rollbacks, app checkpoints of every kind, VACUUM, growth without frames.
#[test]
fn three_writers_page_for_page() {
    let mut s = Sidecar::new();
    s.begin();
    let (mut total, mut sealed, mut lock_zero_left, mut captures) = (0, 0, 0, 0);
    // One round is plenty, but not on a machine whose disk is busy.
    for round in 0..10 {
        let seed = 7 + 3 * round;
        let apps: Vec<_> = (0..3).map(|i| traffic(&s.db, seed + i, 8.0)).collect();
        let end = Instant::now() + Duration::from_secs(9);
        while Instant::now() < end {
            if s.capture().is_some() {
                captures += 1;
            }
            let was = s.capture.as_ref().unwrap().guard().on_lock_zero();
            if was && s.leave_lock_zero() {
                lock_zero_left += 1;
            }
            if s.checkpoint(captures % 20 == 0) == Some(Barrier::Sealed) {
                sealed += 1;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        total += apps.into_iter().map(commits).sum::<u64>();
        println!(
            "commits {total} captures {captures} sealed {sealed} lock zero left {lock_zero_left}"
        );
        if total > 200 && captures > 30 && sealed > 3 && lock_zero_left > 3 {
            s.assert_equal();
            return;
        }
    }
    panic!("the test exercised nothing");
}

fn shim(s: &Sidecar) -> String {
    let out = s.dir.path().join("shim.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/app/fsync_shim.c");
    let status = std::process::Command::new("cc")
        .args([
            "-shared",
            "-fPIC",
            "-o",
            out.to_str().unwrap(),
            source,
            "-ldl",
        ])
        .status()
        .expect("cc is missing: apt-get install gcc libc6-dev");
    assert!(status.success());
    out.to_str().unwrap().to_owned()
}

/// An app that dies, or gets an error, in the fsync of its commit leaves valid commit frames that never committed.
fn phantom(mode: &str) {
    let mut s = Sidecar::new();
    let shim = shim(&s);
    s.begin();
    python(
        &s.db,
        "c=conn(); c.execute('create table u(a)'); c.execute('drop table u'); os._exit(0)",
    );
    s.capture();
    let env = [("LD_PRELOAD", shim.as_str()), ("FSYNC_SHIM", mode)];
    let code = "c=conn(0); c.execute('pragma synchronous=full'); c.execute('begin')
for i in range(1,50): c.execute('update t set a=? where id=?',(b'PHANTOM'*100,i))
c.execute('commit')";
    let out = python_output(&s.db, code, &env);
    assert!(!out.status.success(), "the shim made the commit fail");
    let wal = std::fs::metadata(s.db.with_extension("db-wal"))
        .unwrap()
        .len();
    assert!(
        s.capture().is_none(),
        "phantom frames were captured; the WAL has {wal} bytes"
    );
    for i in 0..4 {
        python(
            &s.db,
            &format!(
                "c=conn(); c.execute('update t set a=? where id={}',(b'REAL',)); os._exit(0)",
                2000 + i
            ),
        );
        assert!(
            s.capture().is_some(),
            "an acknowledged commit was not captured"
        );
    }
    let bytes: Vec<u8> = s.restored().pages.values().flatten().copied().collect();
    assert!(
        !bytes.windows(14).any(|w| w == b"PHANTOMPHANTOM"),
        "a transaction that never happened"
    );
    s.assert_equal();
}

#[test]
fn phantom_commit_of_a_killed_app() {
    phantom("kill");
}

#[test]
fn phantom_commit_of_a_failed_fsync() {
    phantom("eio");
}

#[test]
fn spilled_and_rolled_back_frames_are_not_captured() {
    let mut s = Sidecar::new();
    s.begin();
    python(
        &s.db,
        "c=conn(); c.execute('pragma cache_size=5'); c.execute('begin')
for i in range(1,2000): c.execute('update t set a=? where id=?',(b'SPILL'*100,i))
c.execute('rollback'); os._exit(0)",
    );
    assert!(s.capture().is_none());
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=1 where id=5'); os._exit(0)",
    );
    assert!(s.capture().is_some());
    s.assert_equal();
}

/// Salts and sequence one higher, and five commits that no one saw.
#[test]
fn restart_while_down_is_a_gap() {
    let mut s = Sidecar::new();
    s.begin();
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=2 where id=7'); os._exit(0)",
    );
    s.capture();
    assert_eq!(s.checkpoint(true), Some(Barrier::Sealed));
    s.stop();
    python(
        &s.db,
        "r=conn(); a=conn(); r.execute('begin'); r.execute('select * from t limit 1').fetchall()
for i in range(5): a.execute('update t set a=3 where id=?',(100+i,))
r.execute('commit'); a.execute('pragma wal_checkpoint(passive)').fetchall(); a.execute('update t set a=4 where id=9'); os._exit(0)",
    );
    assert_eq!(s.start(), Some(GapReason::NotWatching));
    s.assert_equal();
}

#[test]
fn restart_of_the_sidecar_in_the_same_life_needs_no_comparison() {
    let mut s = Sidecar::new();
    s.begin();
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=2 where id=7'); os._exit(0)",
    );
    s.capture();
    s.stop();
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=2 where id=8'); os._exit(0)",
    );
    assert_eq!(s.start(), None);
    assert!(s.capture().is_some());
    s.assert_equal();
}

#[test]
fn nothing_changed_while_down_costs_no_txid() {
    let mut s = Sidecar::new();
    s.begin();
    s.capture();
    let before = s.txid();
    s.stop();
    python(
        &s.db,
        "c=conn(); c.execute('pragma wal_checkpoint(truncate)').fetchall()",
    );
    s.start();
    assert_eq!(s.txid(), before);
    s.assert_equal();
}

/// The app truncates the WAL right behind a sealed checkpoint: salts and sequence say nothing, the seal does.
#[test]
fn truncate_by_the_app_after_a_seal_is_continuous() {
    let mut s = Sidecar::new();
    s.begin();
    for round in 0..5 {
        python(
            &s.db,
            &format!(
                "c=conn(); c.execute('update t set a=? where id=?',(b'x'*300,{round}+1)); os._exit(0)"
            ),
        );
        s.capture();
        assert_eq!(s.checkpoint(true), Some(Barrier::Sealed));
        python(
            &s.db,
            "c=conn()
for i in range(3): assert c.execute('pragma wal_checkpoint(truncate)').fetchone()[0]==0
d=conn(); d.execute('update t set a=randomblob(20) where id=50'); os._exit(0)",
        );
        assert!(s.capture().is_some());
        assert!(s.leave_lock_zero());
    }
    s.assert_equal();
}

/// While frames are not captured, nobody can restart the WAL.
#[test]
fn the_app_cannot_truncate_what_is_not_captured() {
    let mut s = Sidecar::new();
    s.begin();
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=2 where id=7'); os._exit(0)",
    );
    assert!(s.leave_lock_zero());
    python(
        &s.db,
        "c=conn(0); c.execute('update t set a=2 where id=8'); assert c.execute('pragma wal_checkpoint(truncate)').fetchone()[0]==1; os._exit(0)",
    );
    assert!(s.capture().is_some());
    s.assert_equal();
}

/// A directory scan and header reads by this process must not drop SQLite's locks.
#[test]
fn locks_survive_scans_of_the_folder() {
    let mut s = Sidecar::new();
    s.begin();
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=2 where id=7'); os._exit(0)",
    );
    s.leave_lock_zero();
    let folder = s.dir.path().to_owned();
    let pid = std::process::id().to_string();
    let locks = || {
        let text = std::fs::read_to_string("/proc/locks").unwrap();
        text.lines()
            .filter(|l| l.contains("POSIX") && l.split_whitespace().nth(4) == Some(&pid))
            .count()
    };
    let before = locks();
    assert!(before > 0, "SQLite holds locks in this process");
    for _ in 0..50 {
        for item in std::fs::read_dir(&folder).unwrap() {
            item.unwrap().metadata().unwrap();
        }
        // A second holder of the same file shares the descriptor instead of opening and closing another.
        let second = lifeboat::sqlite::files::DbFile::open(&s.db).unwrap();
        drop(second);
        let (view, _) = s
            .capture
            .as_mut()
            .unwrap()
            .view(&s.spool, lifeboat::types::Millis(1))
            .unwrap();
        drop(view);
    }
    assert_eq!(locks(), before);
    python(
        &s.db,
        "c=conn(0); c.execute('update t set a=2 where id=8'); assert c.execute('pragma wal_checkpoint(truncate)').fetchone()[0]==1, 'the lock is gone'; os._exit(0)",
    );
    s.capture();
    s.assert_equal();
}

#[test]
fn never_rests_on_lock_zero() {
    let mut s = Sidecar::new();
    s.begin();
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=2 where id=7'); os._exit(0)",
    );
    s.capture();
    assert_eq!(s.checkpoint(true), Some(Barrier::Sealed));
    let capture = s.capture.as_mut().unwrap();
    assert!(capture.guard().on_lock_zero());
    assert!(!s.leave_lock_zero(), "nothing to hold yet");
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=3 where id=7'); os._exit(0)",
    );
    assert!(s.leave_lock_zero());
    // On a mark an app's passive checkpoint can copy frames; on lock 0 it could not.
    let copied = python(
        &s.db,
        "c=conn(); print(c.execute('pragma wal_checkpoint(passive)').fetchone()[2]); os._exit(0)",
    );
    assert_ne!(copied, "0");
    s.assert_equal();
}

/// The barrier holds the write lock only for what the cheap part left.
#[test]
fn a_large_wal_is_checkpointed_before_the_barrier() {
    let mut s = Sidecar::new();
    s.begin();
    python(
        &s.db,
        "c=conn(); c.execute('pragma wal_autocheckpoint=0')
for r in range(4):
    c.execute('begin'); c.executemany('update t set a=? where id=?',((os.urandom(900),i) for i in range(1,3000))); c.execute('commit')
os._exit(0)",
    );
    assert!(s.capture.as_ref().unwrap().guard().wal_bytes() > 4 << 20);
    s.capture();
    assert_eq!(s.checkpoint(false), Some(Barrier::Sealed));
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=3 where id=7'); os._exit(0)",
    );
    s.capture();
    let index = s.capture.as_ref().unwrap().guard().observe().unwrap();
    assert!(index.max_frame < 10, "the WAL was restarted: {index:?}");
    s.assert_equal();
}

#[test]
fn replaced_and_recreated_databases_are_compared() {
    let mut s = Sidecar::new();
    s.begin();
    let copy = s.dir.path().join("copy.db");
    python(&s.db, &format!("c=conn(); c.execute('vacuum into {:?}'); d=sqlite3.connect({:?}); d.execute('pragma journal_mode=wal'); d.execute('update t set a=9 where id=3'); d.commit(); d.close()", copy.to_str().unwrap(), copy.to_str().unwrap()).replace('"', "\\\"").replace("\\\"", "\""));
    for suffix in ["-wal", "-shm"] {
        let mut path = s.db.as_os_str().to_owned();
        path.push(suffix);
        std::fs::remove_file(path).unwrap();
    }
    std::fs::rename(&copy, &s.db).unwrap();
    assert!(matches!(
        s.try_capture(),
        Err(lifeboat::sqlite::capture::CaptureError::Guard(
            GuardError::Replaced(_)
        ))
    ));
    s.stop();
    assert_eq!(s.start(), Some(GapReason::FileReplaced));
    s.assert_equal();
}

#[test]
fn vacuum_and_shrinking() {
    let mut s = Sidecar::new();
    s.begin();
    python(
        &s.db,
        "c=conn(); c.execute('delete from t where id>500'); c.execute('vacuum'); os._exit(0)",
    );
    s.capture();
    python(
        &s.db,
        "c=conn(); c.executemany('insert into t(a) values(?)',((os.urandom(700),) for _ in range(900))); os._exit(0)",
    );
    s.capture();
    s.assert_equal();
}

#[test]
fn gap_capture_holds_only_pages_that_differ() {
    let mut s = Sidecar::new();
    s.begin();
    s.stop();
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=zeroblob(400) where id in (5,1500)'); c.execute('pragma wal_checkpoint(truncate)').fetchall()",
    );
    assert_eq!(s.start(), Some(GapReason::NotWatching));
    let last = s
        .spool
        .entries()
        .into_iter()
        .max_by_key(|e| e.span.max())
        .unwrap();
    let bytes = std::fs::read(s.spool.path(last.span)).unwrap();
    let mut decoder = lifeboat::ltx::Decoder::new(&bytes[..]).unwrap();
    let (mut pages, mut buf) = (0, Vec::new());
    while decoder.next_page(&mut buf).unwrap().is_some() {
        pages += 1;
    }
    assert!(
        (1..=5).contains(&pages),
        "{pages} pages for two changed rows"
    );
    s.assert_equal();
}

#[test]
fn page_size_change_needs_a_new_base() {
    let mut s = Sidecar::new();
    s.begin();
    s.stop();
    python(
        &s.db,
        "c=conn(); c.execute('pragma journal_mode=delete'); c.execute('pragma page_size=8192'); c.execute('vacuum'); c.execute('pragma journal_mode=wal'); c.close()",
    );
    let (guard, _) = Guard::attach(&s.db, true).unwrap();
    let (table, trusted) = lifeboat::sqlite::pages::PageTable::open(&s.table())
        .unwrap()
        .unwrap();
    assert!(trusted);
    let now = s.now();
    let (mut capture, gap) =
        lifeboat::sqlite::capture::Capture::resume(guard, table, common::IDENTITY, now).unwrap();
    assert_eq!(gap, Some(GapReason::FileReplaced));
    let report = capture.gap(&s.table(), &s.spool, now).unwrap();
    assert!(report.new_base);
    let (view, _) = capture.view(&s.spool, now).unwrap();
    let base = lifeboat::sqlite::capture::write_base(&view, &capture.base_header(now), Vec::new())
        .unwrap();
    drop(view);
    s.base = Image::default();
    let header = s.base.apply(&base);
    assert_eq!((header.page_size.get(), header.max), (8192, capture.txid()));
    s.spool.clear().unwrap();
    s.capture = Some(capture);
    s.assert_equal();
}

#[test]
fn what_cannot_be_watched_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert!(matches!(
        Guard::attach(&at("none.db"), true),
        Err(GuardError::Missing(_))
    ));
    std::fs::write(at("empty.db"), b"").unwrap();
    assert!(matches!(
        Guard::attach(&at("empty.db"), true),
        Err(GuardError::Empty(_))
    ));
    std::fs::write(at("text.db"), vec![b'x'; 4096]).unwrap();
    assert!(matches!(
        Guard::attach(&at("text.db"), true),
        Err(GuardError::NotADatabase(_))
    ));
    python(
        &at("journal.db"),
        "c=conn(); c.execute('create table t(a)')",
    );
    let error = Guard::attach(&at("journal.db"), false).unwrap_err();
    assert!(
        matches!(error, GuardError::NotWal(..))
            && error.hint().unwrap().contains("journal_mode=WAL")
    );
    let (_guard, turned_on) = Guard::attach(&at("journal.db"), true).unwrap();
    assert!(turned_on);
}

/// A second sidecar in another process refuses and says who has it. (Here the other process is Python with the same `flock`.)
#[test]
fn a_second_sidecar_on_this_host_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("a.db");
    python(
        &db,
        "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(a)')",
    );
    let mut other = std::process::Command::new("python3")
        .args(["-c", "import fcntl,sys; f=open(sys.argv[1]); fcntl.flock(f,fcntl.LOCK_EX); print('held',flush=True); sys.stdin.read()"])
        .arg(&db)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(other.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    match Guard::attach(&db, true) {
        Err(GuardError::Held(_, who)) => assert!(who.contains(&other.id().to_string()), "{who}"),
        result => panic!("{result:?}"),
    }
    drop(other.stdin.take());
    other.wait().unwrap();
    Guard::attach(&db, true).unwrap();
}

/// The sidecar's own captures of a database that is in use never change it.
#[test]
fn idle_captures_write_nothing() {
    let mut s = Sidecar::new();
    s.begin();
    let before = s.txid();
    for _ in 0..50 {
        assert!(matches!(s.try_capture().unwrap(), Outcome::Nothing));
        assert!(!s.capture.as_ref().unwrap().pending().unwrap());
        s.checkpoint(false);
    }
    assert_eq!(s.txid(), before);
    s.assert_equal();
}
