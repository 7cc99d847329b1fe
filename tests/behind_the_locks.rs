//! The world changes behind SQLite's locks: files copied over the database, the WAL-index deleted, locks lost, bytes that rot. Either what is
//! captured equals the database afterwards, or a gap is said; never neither.
#![allow(missing_docs)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use common::{Image, Sidecar, python};
use lifeboat::sqlite::capture::{CaptureError, Outcome, write_base};
use lifeboat::sqlite::files::{PlainFile, is_attached};
use lifeboat::sqlite::guard::{Barrier, GapReason, GuardError};

/// Another state of the same database, complete in one file and of the same size: of another size SQLite itself would damage it at the next
/// commit.
fn backup(s: &Sidecar) -> PathBuf {
    let path = s.dir.path().join("backup.db");
    python(
        &s.db,
        &format!(
            "a=conn(); b=sqlite3.connect({:?}); a.backup(b)
b.execute('delete from t where id%3=0'); b.execute('update t set a=randomblob(300) where id%7=0'); b.commit(); b.close()",
            path.to_str().unwrap()
        ),
    );
    path
}

/// As `cp backup.db app.db` does: the inode stays, and so do the WAL and its index.
fn copy_over(s: &Sidecar, backup: &PathBuf) {
    let before = lifeboat::sqlite::files::file_id(&s.db).unwrap();
    std::fs::copy(backup, &s.db).unwrap();
    assert_eq!(before, lifeboat::sqlite::files::file_id(&s.db).unwrap());
}

/// Everything captured and in the database file, as after ten quiet seconds.
fn sealed() -> (Sidecar, PathBuf) {
    let mut s = Sidecar::new();
    s.begin();
    python(
        &s.db,
        "c=conn(); c.execute('update t set a=randomblob(400) where id%5=0'); os._exit(0)",
    );
    let backup = backup(&s);
    s.capture();
    s.leave_lock_zero();
    assert_eq!(s.checkpoint(true), Some(Barrier::Sealed));
    (s, backup)
}

fn commit(s: &Sidecar) {
    python(
        &s.db,
        "c=conn(); c.execute('insert into t(a) values(randomblob(100))'); os._exit(0)",
    );
}

fn gap_of(s: &mut Sidecar) -> GapReason {
    match s.try_capture().unwrap() {
        Outcome::Gap(reason) => reason,
        other => panic!("no gap: {other:?}"),
    }
}

#[test]
fn a_file_copied_over_the_database_is_seen_at_once() {
    let (mut s, backup) = sealed();
    assert!(s.capture().is_none(), "nothing changed");
    copy_over(&s, &backup);
    assert!(s.capture.as_ref().unwrap().pending().unwrap());
    assert_eq!(gap_of(&mut s), GapReason::FileOverwritten);
    s.gap();
    assert!(s.capture().is_none(), "and only once");
    commit(&s);
    s.assert_equal();
}

#[test]
fn a_file_copied_over_the_database_is_seen_behind_a_commit() {
    let (mut s, backup) = sealed();
    copy_over(&s, &backup);
    commit(&s);
    // Whatever comes first.
    let now = s.now();
    let capture = s.capture.as_mut().unwrap();
    let left = capture.leave_lock_zero(&s.spool, now);
    assert!(
        matches!(left, Err(CaptureError::Gap(GapReason::FileOverwritten))),
        "{left:?}"
    );
    assert_eq!(gap_of(&mut s), GapReason::FileOverwritten);
    s.gap();
    commit(&s);
    s.assert_equal();
}

#[test]
fn a_file_copied_over_the_database_is_seen_by_the_next_start() {
    for copied_while_down in [false, true] {
        let (mut s, backup) = sealed();
        if copied_while_down {
            s.stop();
            copy_over(&s, &backup);
        } else {
            copy_over(&s, &backup);
            s.stop();
        }
        assert_eq!(s.start(), Some(GapReason::FileOverwritten));
        commit(&s);
        s.assert_equal();
    }
    // And a start without any of it compares nothing.
    let (mut s, _) = sealed();
    s.stop();
    assert_eq!(s.start(), None);
    s.assert_equal();
}

/// What an app does by itself is no reason to compare: commits, its own checkpoints, restarts of the WAL, recovery after a kill.
#[test]
fn checkpoints_of_the_app_are_no_overwriting() {
    let (mut s, _) = sealed();
    for round in 0..6 {
        python(
            &s.db,
            &format!(
                "c=conn(); c.execute('pragma wal_autocheckpoint={}')
for i in range(40): c.execute('update t set a=randomblob(900) where id=?',(i*7+{round},))
c.execute('pragma wal_checkpoint'); os._exit(0)",
                [0, 5, 1000][round % 3]
            ),
        );
        s.leave_lock_zero();
        s.capture();
        s.checkpoint(round % 2 == 0);
        assert!(s.capture().is_none());
    }
    s.assert_equal();
}

#[test]
fn a_wal_index_that_was_deleted_or_replaced_is_seen() {
    let (mut s, _) = sealed();
    let index = s.dir.path().join("app.db-shm");
    std::fs::remove_file(&index).unwrap();
    let error = s.try_capture().unwrap_err();
    assert!(
        matches!(&error, CaptureError::Guard(GuardError::Replaced(p)) if p.ends_with("app.db-shm")),
        "{error}"
    );
    // The app begins a WAL-index of its own, which nobody here sees; it commits, restarts the WAL and commits.
    python(
        &s.db,
        "c=conn(); c.execute('insert into t(a) values(1)'); c.execute('pragma wal_checkpoint(truncate)'); c.execute('insert into t(a) values(2)'); os._exit(0)",
    );
    assert!(s.try_capture().is_err());
    s.stop();
    assert!(s.start().is_some(), "compared");
    s.assert_equal();
}

#[test]
fn a_lost_lock_is_a_gap() {
    let (mut s, _) = sealed();
    commit(&s);
    assert!(s.leave_lock_zero(), "on a mark, and still sealed");
    // What POSIX does to a process that closes any descriptor of the WAL-index.
    drop(File::open(s.dir.path().join("app.db-shm")).unwrap());
    drop(File::open(&s.db).unwrap());
    python(
        &s.db,
        "c=conn(); assert c.execute('pragma wal_checkpoint(restart)').fetchone()[0]==0; c.execute('insert into t(a) values(3)'); os._exit(0)",
    );
    assert_eq!(gap_of(&mut s), GapReason::LockLost);
    s.gap();
    s.assert_equal();
}

/// A bit that rots in a page that nobody writes, or a defect of ours: a base is compared with what was captured before it is complete.
#[test]
fn a_base_that_is_not_what_was_captured_is_never_completed() {
    let mut s = Sidecar::new();
    s.begin();
    let file = File::options().write(true).open(&s.db).unwrap();
    let mut byte = [0];
    let at = 4096 * 40 + 2000;
    file_read(&s.db, at, &mut byte);
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    // Closing it would drop the locks that are held here.
    std::mem::forget(file);
    let now = s.now();
    let capture = s.capture.as_mut().unwrap();
    let (view, _) = capture.view(&s.spool, now).unwrap();
    let header = capture.base_header(now);
    let error = write_base(&view, &header, Vec::new()).unwrap_err();
    assert!(matches!(error, CaptureError::Drift(_)), "{error}");
    drop(view);
    // One comparison, and the next one is right.
    let report = s.gap();
    assert_eq!(report.captured.unwrap().pages, 1);
    let now = s.now();
    let capture = s.capture.as_mut().unwrap();
    let (view, _) = capture.view(&s.spool, now).unwrap();
    let header = capture.base_header(now);
    let bytes = write_base(&view, &header, Vec::new()).unwrap();
    let mut image = Image::default();
    image.apply(&bytes);
    assert_eq!(image.differing(&Image::of_file(&s.db)), [0; 0]);
}

fn file_read(path: &std::path::Path, at: u64, buf: &mut [u8]) {
    let script = format!(
        "f=open(p,'rb'); f.seek({at}); print(f.read({})[0])",
        buf.len()
    );
    buf[0] = python(path, &script).parse().unwrap();
}

/// Whoever reads the app's folder in this process, as a backup of files does, takes no lock from SQLite.
#[test]
fn plain_reads_of_a_database_that_is_attached_cost_no_lock() {
    let mut s = Sidecar::new();
    s.begin();
    commit(&s);
    s.leave_lock_zero();
    assert!(is_attached(&s.db));
    let alias = s.dir.path().join("alias.data");
    std::fs::hard_link(&s.db, &alias).unwrap();
    assert!(is_attached(&alias), "however it is spelled");
    let file = PlainFile::new(File::open(&alias).unwrap());
    drop(file);
    python(
        &s.db,
        "c=conn(0); c.execute('update t set a=2 where id=8'); assert c.execute('pragma wal_checkpoint(truncate)').fetchone()[0]==1, 'the lock is gone'; os._exit(0)",
    );
    s.capture();
    std::fs::remove_file(&alias).unwrap();
    s.assert_equal();
    s.stop();
    assert!(!is_attached(&s.db));
}
