//! Reading one file, never through a link, and never twice as long as it was.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::SignedDuration;
use rustic_core::repofile::Node;
use rustic_core::{ErrorKind, ReadSourceOpen, RusticError, RusticResult};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::sqlite::files::PlainFile;

use super::record::Record;

/// Said of what is behind a link by now.
const LEADS_OUT: &str = "a folder above it was replaced by a link while it was read";

/// Ticks of file systems' clocks are shorter than this.
const FRESH: SignedDuration = SignedDuration::from_secs(2);
/// Read at a time when a file is read again.
const AGAIN_BYTES: usize = 1 << 16;

/// A configured path. Everything below it is opened from here, so that a folder that becomes a link leads nowhere.
pub(super) struct Root {
    path: PathBuf,
    /// `None` for a single file.
    folder: Option<OwnedFd>,
}

impl Root {
    /// A path that is there.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let folder = if path.is_dir() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Some(rustix::fs::open(path, flags, Mode::empty())?)
        } else {
            None
        };
        Ok(Self {
            path: path.into(),
            folder,
        })
    }

    /// Which.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the folder is still what lies at its path.
    pub(super) fn is_here(&self) -> bool {
        let Some(folder) = &self.folder else {
            return true;
        };
        let opened = rustix::fs::fstat(folder).map(|m| (m.st_dev, m.st_ino));
        let there = rustix::fs::stat(&self.path).map(|m| (m.st_dev, m.st_ino));
        opened.is_ok() && opened == there
    }

    /// Opens something below, not through links. An old kernel cannot, nor can some containers: there the last name alone is no link.
    fn below(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let relative = path.strip_prefix(&self.path).ok();
        let relative = relative.filter(|r| !r.as_os_str().is_empty());
        if let (Some(folder), Some(relative)) = (&self.folder, relative) {
            let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            match openat2(folder, relative, flags, Mode::empty(), within) {
                Ok(file) => return Ok(file.into()),
                Err(Errno::LOOP | Errno::XDEV) => return Err(io::Error::other(LEADS_OUT)),
                Err(Errno::NOSYS | Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        File::options()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
    }

    /// What was listed is really below, and is still the same.
    ///
    /// # Errors
    /// The system's; or it is something else by now.
    pub(super) fn holds(&self, path: &Path, node: &Node) -> io::Result<()> {
        let found = self.below(path, OFlags::PATH)?.metadata()?;
        match found.ino() == node.meta.inode {
            true => Ok(()),
            false => Err(io::Error::other(
                "was replaced while it was listed; the next run reads it",
            )),
        }
    }
}

/// A file that is about to be read.
pub(super) struct Open {
    pub(super) root: Arc<Root>,
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) inode: u64,
    pub(super) modified: Option<jiff::Timestamp>,
    pub(super) record: Arc<Record>,
}

fn modified(found: &Metadata) -> Option<jiff::Timestamp> {
    let time = found.modified().ok()?;
    jiff::Timestamp::try_from(time).ok()
}

impl ReadSourceOpen for Open {
    type Reader = Reader;

    fn open(self) -> RusticResult<Reader> {
        match self.try_open() {
            Ok(file) => Ok(Reader {
                file,
                left: self.size,
                of: self,
                seen: Box::default(),
            }),
            Err(error) => {
                self.record.lose(self.root.path(), &self.path, &error);
                Err(RusticError::with_source(
                    ErrorKind::InputOutput,
                    "cannot open",
                    error,
                ))
            }
        }
    }
}

impl Open {
    fn try_open(&self) -> io::Result<PlainFile> {
        // A pipe that took the place of the file must not block the run.
        let file = self.root.below(&self.path, OFlags::NONBLOCK)?;
        let file = PlainFile::new(file);
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("is no file any more"));
        }
        // What is appended belongs to the next run; another file under the name is neither the old one nor the new one.
        if found.ino() != self.inode {
            return Err(io::Error::other(
                "was replaced between listing and reading; the next run reads it",
            ));
        }
        Ok(file)
    }
}

/// Reads exactly as many bytes as the file had when it was listed: what is appended meanwhile belongs to the next run, and a file that
/// became shorter is an error.
pub(super) struct Reader {
    file: PlainFile,
    left: u64,
    of: Open,
    /// Hash of what was read.
    seen: Box<Xxh3>,
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let want = usize::try_from(self.left).map_or(buf.len(), |left| left.min(buf.len()));
        let result = match (&*self.file).read(&mut buf[..want]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
            Ok(0) if want > 0 => Err(io::Error::other("became shorter while it was read")),
            other => other,
        };
        match result {
            Ok(n) => {
                self.seen.update(&buf[..n]);
                self.left -= n as u64;
                if self.left == 0 {
                    self.look_again();
                }
                Ok(n)
            }
            Err(error) => {
                let of = &self.of;
                of.record.lose(of.root.path(), &of.path, &error);
                Err(error)
            }
        }
    }
}

impl Reader {
    /// A file that was written to in the middle may be half old and half new. Read again it is then another one, unless it only grew.
    fn look_again(&self) {
        let path = &self.of.path;
        let touched = self.file.metadata().map(|now| {
            now.size() != self.of.size || modified(&now) != self.of.modified || self.is_fresh()
        });
        let same = touched.and_then(|touched| Ok(!touched || self.same_again()?));
        match same {
            Ok(true) => {}
            Ok(false) => self.of.record.fail(
                path,
                "changed while it was read; the next run reads it again",
            ),
            Err(error) => self.of.record.fail(path, error),
        }
    }

    /// Two writes within one tick of the file system's clock leave the same time.
    fn is_fresh(&self) -> bool {
        let age = |at: jiff::Timestamp| jiff::Timestamp::now().duration_since(at);
        self.of.modified.is_none_or(|at| age(at) < FRESH)
    }

    fn same_again(&self) -> io::Result<bool> {
        let mut again = Xxh3::new();
        let mut buf = vec![0; AGAIN_BYTES];
        let mut at = 0;
        while at < self.of.size {
            let want = usize::try_from(self.of.size - at).map_or(buf.len(), |l| l.min(buf.len()));
            match self.file.read_at(&mut buf[..want], at)? {
                0 => return Ok(false),
                n => {
                    again.update(&buf[..n]);
                    at += n as u64;
                }
            }
        }
        Ok(again.digest128() == self.seen.digest128())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        dir: tempfile::TempDir,
        record: Arc<Record>,
    }

    impl Case {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("d")).unwrap();
            std::fs::write(dir.path().join("d/f"), vec![1; 100_000]).unwrap();
            Self {
                dir,
                record: Arc::default(),
            }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("d/f")
        }

        /// As listed now.
        fn listed(&self) -> Open {
            let found = self.path().metadata().unwrap();
            Open {
                root: Arc::new(Root::open(self.dir.path()).unwrap()),
                path: self.path(),
                size: found.size(),
                inode: found.ino(),
                modified: modified(&found),
                record: Arc::clone(&self.record),
            }
        }

        fn said(&self) -> String {
            let names = self.record.names();
            names.into_values().collect::<Vec<_>>().join("; ")
        }
    }

    fn all(mut reader: Reader) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        reader.read_to_end(&mut content).map(|_| content)
    }

    #[test]
    fn what_is_quiet_is_read_and_nothing_is_said() {
        let case = Case::new();
        let content = all(case.listed().open().unwrap()).unwrap();
        assert_eq!(content, vec![1; 100_000]);
        assert_eq!((case.said().as_str(), case.record.vanished()), ("", 0));
    }

    #[test]
    fn what_grows_is_read_as_it_was() {
        let case = Case::new();
        let open = case.listed();
        let mut file = File::options().append(true).open(case.path()).unwrap();
        io::Write::write_all(&mut file, &[2; 1000]).unwrap();
        assert_eq!(all(open.open().unwrap()).unwrap(), vec![1; 100_000]);
        assert_eq!(case.said(), "");
    }

    #[test]
    fn what_is_rewritten_in_the_middle_is_named() {
        for bytes in [100_000, 150_000] {
            let case = Case::new();
            let mut reader = case.listed().open().unwrap();
            let mut first = [0; 1000];
            reader.read_exact(&mut first).unwrap();
            std::fs::write(case.path(), vec![2; bytes]).unwrap();
            all(reader).unwrap();
            assert!(
                case.said().contains("changed while it was read"),
                "{}",
                case.said()
            );
        }
    }

    #[test]
    fn what_becomes_shorter_is_an_error_and_named() {
        let case = Case::new();
        let open = case.listed();
        File::options()
            .write(true)
            .open(case.path())
            .unwrap()
            .set_len(10)
            .unwrap();
        assert!(all(open.open().unwrap()).is_err());
        assert!(case.said().contains("became shorter"), "{}", case.said());
    }

    #[test]
    fn what_vanishes_is_counted_and_is_no_failure() {
        let case = Case::new();
        let open = case.listed();
        std::fs::remove_file(case.path()).unwrap();
        assert!(open.open().is_err());
        assert_eq!((case.said().as_str(), case.record.vanished()), ("", 1));
    }

    #[test]
    fn nothing_is_read_through_a_link_or_from_a_pipe() {
        type Change = fn(&Case);
        let outside = |case: &Case| {
            let outside = case.dir.path().join("outside");
            std::fs::create_dir_all(&outside).unwrap();
            std::fs::write(outside.join("f"), vec![9; 100_000]).unwrap();
            outside
        };
        let changes: [(Change, &str); 4] = [
            (
                |case| {
                    std::fs::remove_file(case.path()).unwrap();
                    std::os::unix::fs::symlink(case.dir.path().join("outside/f"), case.path())
                        .unwrap();
                },
                LEADS_OUT,
            ),
            (
                |case| {
                    let folder = case.dir.path().join("d");
                    std::fs::rename(&folder, case.dir.path().join("away")).unwrap();
                    std::os::unix::fs::symlink(case.dir.path().join("outside"), folder).unwrap();
                },
                LEADS_OUT,
            ),
            (
                |case| {
                    std::fs::remove_file(case.path()).unwrap();
                    let mode = Mode::from_raw_mode(0o600);
                    let fifo = rustix::fs::FileType::Fifo;
                    rustix::fs::mknodat(rustix::fs::CWD, case.path(), fifo, mode, 0).unwrap();
                },
                "is no file any more",
            ),
            (
                |case| std::fs::rename(case.dir.path().join("outside/f"), case.path()).unwrap(),
                "was replaced between listing and reading",
            ),
        ];
        for (change, why) in changes {
            let case = Case::new();
            outside(&case);
            let open = case.listed();
            change(&case);
            assert!(open.open().is_err());
            assert!(case.said().contains(why), "{why}: {}", case.said());
        }
    }
}
