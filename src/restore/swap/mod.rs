//! Puts a restored file in the place of a database.
//!
//! Invariants
//! - The restored database is written to a temporary file beside its place, fsynced, and renamed; until then nothing is changed.
//! - A stale `-wal`, `-shm` or `-journal` never meets the restored file: SQLite would replay it. They are moved away **before** the rename, while
//!   the old database is already checkpointed (in place) or absent, so a crash between the steps leaves the old database whole, or
//!   no database and the restored one still to be renamed: running the restore again mends it.
//! - Into an empty place: an app that creates the database meanwhile loses nothing; the restore fails.
//! - In place: nobody else has the database open, proven by `proof` and held through the rename.
//! - One restore at a time writes to one place: the temporary file has one name for each place and is locked. What a killed restore left there
//!   is taken over by the next.
//! - One restore in place or undo of a database at a time, from its first look at the store on: it holds a lock beside the database ([`hold`]).
//! - Old files are kept as `<name>.before-restore-<UTC time>`, which discovery ignores. They are never deleted here.

mod draft;
mod error;
mod undo;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, RenameFlags};
use tempfile::NamedTempFile;

pub use self::draft::{Held, hold, left_over, temporary};
pub(super) use self::error::OPEN_IN;
pub use self::error::SwapError;
pub use self::undo::{Kept, claim_undo, kept_for_undo, undo, undo_claimed};
use super::proof::Proof;
use crate::types::Millis;

/// What lies beside a database.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];
const KEPT: &str = ".before-restore-";
/// Ends the name of a mark: nothing was there.
const NONE: &str = ".none";

fn at(path: &Path) -> impl Fn(io::Error) -> SwapError + '_ {
    move |source| SwapError::Io {
        path: path.to_owned(),
        source,
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Puts the file at a path where nothing is. Stale companions there are moved away first. An app that creates a database there meanwhile keeps
/// it, with its WAL: this then fails.
pub fn put_new(file: NamedTempFile, path: &Path, now: Millis) -> Result<(), SwapError> {
    like_folder(&file, path)?;
    sync(&file)?;
    // Listed before the look at the database: what lies beside no database is stale, and what comes later is a starting app's.
    let stale = identities(path);
    if path.exists() {
        return Err(SwapError::Exists(path.to_owned()));
    }
    for (companion, identity) in stale {
        let from = with_suffix(path, companion);
        let to = with_suffix(&dated(path, KEPT, now), companion);
        match fs::rename(&from, &to) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            moved => moved.map_err(at(&from))?,
        }
        // SQLite deletes a stale WAL where it creates a database, and begins its own: that one goes back.
        if Identity::of(&to).is_some_and(|moved| moved != identity) {
            rustix::fs::renameat_with(CWD, &to, CWD, &from, RenameFlags::NOREPLACE)
                .map_err(|e| at(&to)(e.into()))?;
            return Err(SwapError::Exists(path.to_owned()));
        }
    }
    file.persist_noclobber(path)
        .map_err(|e| match e.error.kind() {
            io::ErrorKind::AlreadyExists => SwapError::Exists(path.to_owned()),
            _ => SwapError::Io {
                path: path.to_owned(),
                source: e.error,
            },
        })?;
    sync_folder(path)
}

/// Which file a name means. Numbers of deleted files are used again; the time of creation tells them apart where the file system keeps it.
#[derive(PartialEq)]
struct Identity(u64, u64, Option<SystemTime>);

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::symlink_metadata(path).ok()?;
        Some(Self(meta.dev(), meta.ino(), meta.created().ok()))
    }
}

fn identities(path: &Path) -> Vec<(&'static str, Identity)> {
    let found = COMPANIONS.map(|c| Some((c, Identity::of(&with_suffix(path, c))?)));
    found.into_iter().flatten().collect()
}

/// Proof that nobody has a database open, and the database brought home into one file; held until it is dropped.
pub struct Claim {
    _proof: Proof,
}

/// Claims the database at `path`. `None`: there is none. Blocks.
///
/// # Errors
/// [`SwapError::InUse`], [`SwapError::WalStays`], [`SwapError::Io`]. Nothing was changed.
pub fn claim(path: &Path) -> Result<Option<Claim>, SwapError> {
    Ok(match path.exists() {
        true => Some(Claim {
            _proof: Proof::take(path)?,
        }),
        false => None,
    })
}

/// Whether the database at `path` can be claimed at all: said before a restore of hours. Nothing is held or changed. Blocks.
///
/// # Errors
/// [`SwapError::InUse`], [`SwapError::Io`].
pub fn look(path: &Path) -> Result<(), SwapError> {
    match path.exists() {
        true => Proof::look(path),
        false => Ok(()),
    }
}

/// Replaces the database at `path`, which nobody may have open, and returns where the old one is kept.
pub fn put_in_place(
    file: NamedTempFile,
    path: &Path,
    now: Millis,
) -> Result<Option<PathBuf>, SwapError> {
    match claim(path)? {
        Some(claim) => put_claimed(file, path, claim, now).map(Some),
        None => put_nothing_there(file, path, now).map(|()| None),
    }
}

/// In place where no database is. A mark stays, so that an undo does not go back to what an earlier restore replaced.
fn put_nothing_there(file: NamedTempFile, path: &Path, now: Millis) -> Result<(), SwapError> {
    let mark = mark_of_none(path, KEPT, now)?;
    let done = put_new(file, path, now);
    if done.is_err() {
        // The mark says nothing then.
        let _ = fs::remove_file(&mark);
    }
    done
}

/// An empty file that says: at this moment nothing was there.
fn mark_of_none(path: &Path, word: &str, now: Millis) -> Result<PathBuf, SwapError> {
    let mark = with_suffix(&dated(path, word, now), NONE);
    File::create_new(&mark).map_err(at(&mark))?;
    Ok(mark)
}

/// Owner, mode and every byte on disk, as the file will have them in its place: what may fail fails before the first of several is put in place.
///
/// # Errors
/// [`SwapError::Io`]. Nothing was changed.
pub fn settle(file: &NamedTempFile, path: &Path) -> Result<(), SwapError> {
    match fs::metadata(path) {
        Ok(meta) => like(file, &meta)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => like_folder(file, path)?,
        Err(e) => return Err(at(path)(e)),
    }
    sync(file)
}

/// Replaces a claimed database, and returns where the old one is kept.
pub fn put_claimed(
    file: NamedTempFile,
    path: &Path,
    claim: Claim,
    now: Millis,
) -> Result<PathBuf, SwapError> {
    like(&file, &fs::metadata(path).map_err(at(path))?)?;
    sync(&file)?;
    let kept = keep(path, KEPT, now)?;
    file.persist(path).map_err(|e| SwapError::Io {
        path: path.to_owned(),
        source: e.error,
    })?;
    sync_folder(path)?;
    drop(claim);
    Ok(kept)
}

/// Moves a checkpointed database and what lies beside it to a dated name.
fn keep(path: &Path, word: &str, now: Millis) -> Result<PathBuf, SwapError> {
    move_companions(path, word, now)?;
    let kept = dated(path, word, now);
    if path.exists() {
        // A hard link first: at no moment is the old database without a name.
        fs::hard_link(path, &kept).map_err(at(&kept))?;
        return Ok(kept);
    }
    mark_of_none(path, word, now)
}

fn move_companions(path: &Path, word: &str, now: Millis) -> Result<(), SwapError> {
    for companion in COMPANIONS {
        let from = with_suffix(path, companion);
        if from.exists() {
            let to = with_suffix(&dated(path, word, now), companion);
            fs::rename(&from, &to).map_err(at(&from))?;
        }
    }
    Ok(())
}

fn dated(path: &Path, word: &str, now: Millis) -> PathBuf {
    let stamp: String = now
        .to_string()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '.')
        .collect();
    let base = with_suffix(path, &format!("{word}{stamp}"));
    if !base.exists() {
        return base;
    }
    // Twice within a millisecond.
    (2..u32::MAX)
        .map(|n| with_suffix(&base, &format!("-{n}")))
        .find(|p| !p.exists())
        .unwrap_or(base)
}

/// Owner and mode of the folder's files: owner of the folder, readable and writable as the folder is. In a folder that is everybody's, as
/// /tmp, and where this user may not give files away, the file stays this user's own.
fn like_folder(file: &NamedTempFile, path: &Path) -> Result<(), SwapError> {
    const STICKY: u32 = 0o1000;
    let meta = fs::metadata(folder(path)).map_err(at(path))?;
    let own = file.as_file().metadata().map_err(at(file.path()))?;
    let keep = |mode| give(file, own.uid(), own.gid(), mode);
    if meta.mode() & STICKY != 0 {
        return keep(0o600);
    }
    match give(file, meta.uid(), meta.gid(), meta.mode() & 0o666) {
        Err(SwapError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            keep(meta.mode() & 0o660 | 0o600)
        }
        done => done,
    }
}

fn like(file: &NamedTempFile, meta: &fs::Metadata) -> Result<(), SwapError> {
    give(file, meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

fn give(file: &NamedTempFile, uid: u32, gid: u32, mode: u32) -> Result<(), SwapError> {
    let own = file.as_file().metadata().map_err(at(file.path()))?;
    if (own.uid(), own.gid()) != (uid, gid) {
        std::os::unix::fs::fchown(file.as_file(), Some(uid), Some(gid)).map_err(at(file.path()))?;
    }
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(mode))
        .map_err(at(file.path()))
}

fn sync(file: &NamedTempFile) -> Result<(), SwapError> {
    file.as_file().sync_all().map_err(at(file.path()))
}

fn sync_folder(path: &Path) -> Result<(), SwapError> {
    let folder = folder(path);
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(at(folder))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::undo::KEPT_BY_UNDO;
    use super::*;

    fn database(path: &Path, value: i64) {
        let conn = Connection::open(path).unwrap();
        conn.execute_batch(&format!(
            "PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES({value})"
        ))
        .unwrap();
    }

    fn value(path: &Path) -> i64 {
        Connection::open(path)
            .unwrap()
            .query_row("SELECT a FROM t", [], |r| r.get(0))
            .unwrap()
    }

    fn restored(path: &Path, value: i64) -> NamedTempFile {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made.db");
        database(&made, value);
        let file = temporary(path, 1).unwrap();
        fs::copy(&made, file.path()).unwrap();
        file
    }

    #[test]
    fn in_a_folder_of_everybody_a_copy_is_private() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let path = dir.path().join("copy.db");
        put_new(restored(&path, 1), &path, Millis(1_000)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn in_place_and_undo() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        database(&path, 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let kept = put_in_place(restored(&path, 2), &path, Millis(1_000))
            .unwrap()
            .unwrap();
        assert_eq!((value(&path), value(&kept)), (2, 1));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        undo(&path, Millis(2_000)).unwrap();
        assert_eq!(value(&path), 1);
        assert!(matches!(
            undo(&path, Millis(3_000)),
            Err(SwapError::NothingKept(_))
        ));
    }

    /// Whoever waited for the lock holds it on the file that was replaced meanwhile: that proves nothing about the new one.
    #[test]
    fn what_took_the_name_while_a_claim_waited_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        database(&path, 1);
        let first = claim(&path).unwrap().unwrap();
        let late = restored(&dir.path().join("late.db"), 3);
        let place = path.clone();
        let second = std::thread::spawn(move || put_in_place(late, &place, Millis(2_000)));
        std::thread::sleep(std::time::Duration::from_millis(500));
        let draft = restored(&path, 2);
        put_claimed(draft, &path, first, Millis(1_000)).unwrap();
        let error = second.join().unwrap().unwrap_err();
        assert!(matches!(error, SwapError::InUse { .. }), "{error}");
        assert_eq!(value(&path), 2);
    }

    #[test]
    fn a_second_undo_does_not_go_back_to_an_earlier_restore() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        database(&path, 1);
        put_in_place(restored(&path, 2), &path, Millis(1_000)).unwrap();
        put_in_place(restored(&path, 3), &path, Millis(2_000)).unwrap();
        undo(&path, Millis(3_000)).unwrap();
        assert_eq!(value(&path), 2);
        let error = undo(&path, Millis(4_000)).unwrap_err();
        assert!(
            matches!(&error, SwapError::Undone { older, .. } if value(older) == 1),
            "{error}"
        );
        assert_eq!(value(&path), 2);
        // What comes next can be undone again.
        put_in_place(restored(&path, 4), &path, Millis(5_000)).unwrap();
        undo(&path, Millis(6_000)).unwrap();
        assert_eq!(value(&path), 2);
    }

    #[test]
    fn an_undo_that_was_killed_before_its_rename_is_done_when_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        database(&path, 1);
        put_in_place(restored(&path, 2), &path, Millis(1_000)).unwrap();
        keep(&path, KEPT_BY_UNDO, Millis(2_000)).unwrap();
        undo(&path, Millis(3_000)).unwrap();
        assert_eq!(value(&path), 1);
    }

    #[test]
    fn an_undo_of_a_restore_that_replaced_nothing_goes_back_to_nothing_older() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        database(&path, 1);
        put_in_place(restored(&path, 2), &path, Millis(1_000)).unwrap();
        fs::remove_file(&path).unwrap();
        put_in_place(restored(&path, 3), &path, Millis(2_000)).unwrap();
        let error = undo(&path, Millis(3_000)).unwrap_err();
        assert!(matches!(error, SwapError::NothingThere(_)), "{error}");
        assert_eq!(value(&path), 3);
        // A restore that failed leaves no mark.
        let other = dir.path().join("other.db");
        database(&other, 1);
        put_nothing_there(restored(&other, 2), &other, Millis(4_000)).unwrap_err();
        assert!(matches!(
            undo(&other, Millis(5_000)),
            Err(SwapError::NothingKept(_))
        ));
        // Undone onto an empty place, and asked again.
        put_in_place(restored(&path, 4), &path, Millis(6_000)).unwrap();
        put_in_place(restored(&path, 5), &path, Millis(7_000)).unwrap();
        fs::remove_file(&path).unwrap();
        undo(&path, Millis(8_000)).unwrap();
        assert_eq!(value(&path), 4);
        let error = undo(&path, Millis(9_000)).unwrap_err();
        assert!(matches!(error, SwapError::Undone { .. }), "{error}");
    }

    /// SQLite cannot read it, as an encrypted one: what its WAL holds cannot be brought home, so it goes along.
    #[test]
    fn the_wal_of_a_file_that_cannot_be_read_comes_back_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        fs::write(&path, [7; 8192]).unwrap();
        let wal = with_suffix(&path, "-wal");
        fs::write(&wal, [8; 4096]).unwrap();
        put_in_place(restored(&path, 2), &path, Millis(1_000)).unwrap();
        assert_eq!(value(&path), 2);
        undo(&path, Millis(2_000)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [7; 8192]);
        assert_eq!(fs::read(&wal).unwrap(), [8; 4096]);
    }

    #[test]
    fn refuses_what_is_open_or_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        database(&path, 1);
        assert!(matches!(
            put_new(restored(&path, 2), &path, Millis(0)),
            Err(SwapError::Exists(_))
        ));
        let mut app = std::process::Command::new("python3")
            .args(["-c", "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute('select * from t').fetchall(); print('open',flush=True); sys.stdin.read()"])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3 is missing: apt-get install python3");
        let mut line = String::new();
        io::BufRead::read_line(
            &mut io::BufReader::new(app.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        let error = put_in_place(restored(&path, 2), &path, Millis(0)).unwrap_err();
        assert!(matches!(error, SwapError::InUse { .. }), "{error}");
        drop(app.stdin.take());
        app.wait().unwrap();
        assert_eq!(value(&path), 1);
        put_in_place(restored(&path, 2), &path, Millis(0)).unwrap();
        assert_eq!(value(&path), 2);
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|i| i.unwrap().file_name())
            .collect();
        assert!(
            !left
                .iter()
                .any(|n| n.to_string_lossy().contains("lifeboat-restore")),
            "{left:?}"
        );
    }

    #[test]
    fn a_stale_wal_never_meets_the_restored_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let conn = Connection::open(&path).unwrap();
        conn.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES(77)")
            .unwrap();
        // As a crash leaves it: a WAL full of commits, and the database file lost.
        let wal = fs::read(with_suffix(&path, "-wal")).unwrap();
        drop(conn);
        fs::remove_file(&path).unwrap();
        fs::write(with_suffix(&path, "-wal"), wal).unwrap();
        put_new(restored(&path, 2), &path, Millis(0)).unwrap();
        assert_eq!(value(&path), 2);
    }

    #[test]
    fn too_little_room_is_said_before_anything() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            temporary(&dir.path().join("a.db"), u64::MAX),
            Err(SwapError::NoSpace { .. })
        ));
    }
}
