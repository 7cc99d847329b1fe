//! `file://`: a directory tree. Reading, listing and deleting are `object_store`'s; writing is ours,
//! because a replica's files carry their creation time as modification time.
//!
//! - An object is written beside its final name as `<name>#<n>`, gets its time, is flushed, and only
//!   then appears under its name, whole, by a rename that refuses to replace where asked to.
//!   Directories are flushed too: a successful write survives a power cut.
//! - A crash leaves at most `<name>#<n>` files, which no listing shows. Each write takes a number of its
//!   own at random and touches no other file: they may belong to another process.
//! - The root directory is made by the first write; the directory above it never is, so that an
//!   unmounted volume is an error and not a backup on the wrong disk.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::error::MissingDirectory;
use super::upload::CreateOnly;
use super::{created_in, millis_to_system};

/// Staged names tried before giving up: each is one of four billion, so one that is in the way is met by chance.
const MAX_STAGED_NAMES: u32 = 16;

/// A directory as an object store, with keys from the file system's root.
#[derive(Debug)]
pub(super) struct DirectoryStore {
    inner: LocalFileSystem,
    root: PathBuf,
}

impl DirectoryStore {
    /// Touches nothing yet.
    pub(super) fn new(root: PathBuf) -> Self {
        Self {
            inner: LocalFileSystem::new().with_fsync(true),
            root,
        }
    }

    fn stage(
        &self,
        location: &Path,
    ) -> Result<impl FnOnce() -> io::Result<Staged> + Send + 'static> {
        let target = self.inner.path_to_filesystem(location)?;
        let root = self.root.clone();
        Ok(move || {
            require_place(&root)?;
            Staged::create(target)
        })
    }
}

impl fmt::Display for DirectoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.root.display())
    }
}

fn failed(error: io::Error) -> object_store::Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => object_store::Error::AlreadyExists {
            path: String::new(),
            source: Box::new(error),
        },
        _ => object_store::Error::Generic {
            store: "file",
            source: match error.downcast::<MissingDirectory>() {
                Ok(missing) => Box::new(missing),
                Err(error) => Box::new(error),
            },
        },
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?.map_err(failed)
}

/// The root, or the directory it would be made in. Without this an unmounted volume would look like an
/// empty store.
fn require_place(root: &FsPath) -> io::Result<()> {
    match root.parent() {
        Some(parent) if !root.is_dir() && !parent.is_dir() => {
            let missing = MissingDirectory(parent.display().to_string());
            Err(io::Error::new(io::ErrorKind::NotFound, missing))
        }
        _ => Ok(()),
    }
}

/// Makes a directory and those above it, flushing each entry.
fn ensure_directory(path: &FsPath) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => sync_parent(path),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => match path.parent() {
            Some(parent) => {
                ensure_directory(parent)?;
                ensure_directory(path)
            }
            None => Err(e),
        },
        Err(e) => Err(e),
    }
}

fn sync_parent(path: &FsPath) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// An object that is not visible yet; dropped unpublished, it is removed. Once it was renamed its staged name is nobody's: another writer may
/// have taken it.
#[derive(Debug)]
struct Staged {
    file: File,
    staging: PathBuf,
    target: PathBuf,
    renamed: AtomicBool,
}

impl Staged {
    fn create(target: PathBuf) -> io::Result<Self> {
        if let Some(parent) = target.parent()
            && !parent.is_dir()
        {
            ensure_directory(parent)?;
        }
        for _ in 0..MAX_STAGED_NAMES {
            let mut staging = target.clone().into_os_string();
            staging.push(format!("#{}", rand::random::<u32>()));
            let staging = PathBuf::from(staging);
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&staging)
            {
                Ok(file) => {
                    return Ok(Self {
                        file,
                        staging,
                        target,
                        renamed: AtomicBool::new(false),
                    });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::other(format!(
            "{MAX_STAGED_NAMES} unfinished uploads of this file are in the way: remove {}#*",
            target.display()
        )))
    }

    fn publish(&self, created: Option<SystemTime>, mode: &PutMode) -> io::Result<()> {
        if let Some(created) = created {
            self.file.set_modified(created)?;
        }
        self.file.sync_all()?;
        match mode {
            PutMode::Create => self.publish_if_free()?,
            _ => {
                fs::rename(&self.staging, &self.target)?;
                self.renamed.store(true, Ordering::Relaxed);
            }
        }
        sync_parent(&self.target)
    }
}

impl Staged {
    /// Rename that refuses to replace; a hard link where the file system lacks that (NFS). A file system
    /// with neither gives the link's error.
    fn publish_if_free(&self) -> io::Result<()> {
        let flags = RenameFlags::NOREPLACE;
        match renameat_with(CWD, &self.staging, CWD, &self.target, flags) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                fs::hard_link(&self.staging, &self.target)?;
            }
            other => {
                other?;
                self.renamed.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.renamed.load(Ordering::Relaxed) {
            // A failure leaves a file that no listing shows.
            let _ = fs::remove_file(&self.staging);
        }
    }
}

#[async_trait]
impl ObjectStore for DirectoryStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let stage = self.stage(location)?;
        let created = created_in(&opts.attributes).and_then(millis_to_system);
        blocking(move || {
            let staged = stage()?;
            let mut offset = 0;
            for chunk in &payload {
                staged.file.write_all_at(chunk, offset)?;
                offset += chunk.len() as u64;
            }
            staged.publish(created, &opts.mode)
        })
        .await?;
        Ok(no_tags())
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let staged = blocking(self.stage(location)?).await?;
        Ok(Box::new(DirectoryUpload {
            staged: Some(Arc::new(staged)),
            offset: 0,
            created: created_in(&opts.attributes).and_then(millis_to_system),
            mode: match opts.extensions.get::<CreateOnly>() {
                Some(CreateOnly) => PutMode::Create,
                None => PutMode::Overwrite,
            },
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let root = self.root.clone();
        let listing = self.inner.list(prefix);
        let checked = async move {
            let place = blocking(move || require_place(&root)).await;
            place.map(|()| listing)
        };
        stream::once(checked).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let root = self.root.clone();
        blocking(move || require_place(&root)).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn no_tags() -> PutResult {
    PutResult {
        e_tag: None,
        version: None,
        extensions: Default::default(),
    }
}

#[derive(Debug)]
struct DirectoryUpload {
    staged: Option<Arc<Staged>>,
    offset: u64,
    created: Option<SystemTime>,
    mode: PutMode,
}

fn ended() -> object_store::Error {
    failed(io::Error::other("upload has already ended"))
}

#[async_trait]
impl MultipartUpload for DirectoryUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let mut offset = self.offset;
        self.offset += data.content_length() as u64;
        let staged = self.staged.clone();
        Box::pin(async move {
            let staged = staged.ok_or_else(ended)?;
            blocking(move || {
                for chunk in &data {
                    staged.file.write_all_at(chunk, offset)?;
                    offset += chunk.len() as u64;
                }
                Ok(())
            })
            .await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.staged.take().ok_or_else(ended)?;
        let (created, mode) = (self.created, self.mode.clone());
        blocking(move || staged.publish(created, &mode)).await?;
        Ok(no_tags())
    }

    async fn abort(&mut self) -> Result<()> {
        let staged = self.staged.take();
        blocking(move || {
            drop(staged);
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;

    fn store(root: &FsPath) -> (DirectoryStore, Path) {
        let store = DirectoryStore::new(root.to_owned());
        (store, Path::from_absolute_path(root).unwrap())
    }

    fn names(root: &FsPath) -> Vec<String> {
        let entries = fs::read_dir(root).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn makes_its_own_directory_but_not_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let (fine, root) = store(&dir.path().join("store"));
        fine.list_with_delimiter(Some(&root)).await.unwrap();
        assert!(
            names(dir.path()).is_empty(),
            "nothing before the first write"
        );
        fine.put(&root.clone().join("a"), "x".into()).await.unwrap();
        let (unmounted, root) = store(&dir.path().join("gone/store"));
        let error = unmounted
            .put(&root.clone().join("a"), "x".into())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("gone does not exist"), "{error}");
        assert!(unmounted.list_with_delimiter(Some(&root)).await.is_err());
        assert_eq!(names(dir.path()), ["store"]);
    }

    #[tokio::test]
    async fn nothing_stays_beside_a_write_whatever_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (store, root) = store(dir.path());
        let key = root.join("k");
        let create = || PutOptions::from(PutMode::Create);
        store.put_opts(&key, "1".into(), create()).await.unwrap();
        let again = store
            .put_opts(&key, "2".into(), create())
            .await
            .unwrap_err();
        assert!(
            matches!(again, object_store::Error::AlreadyExists { .. }),
            "{again}"
        );
        let mut upload = store.put_multipart(&key).await.unwrap();
        upload.put_part("3".into()).await.unwrap();
        upload.abort().await.unwrap();
        assert!(upload.complete().await.is_err());
        let mut upload = store.put_multipart(&key).await.unwrap();
        upload.put_part("4".into()).await.unwrap();
        drop(upload);
        assert_eq!(fs::read(dir.path().join("k")).unwrap(), b"1");
        assert_eq!(names(dir.path()), ["k"]);
    }

    #[tokio::test]
    async fn leftovers_of_a_crash_are_neither_listed_nor_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("k#1"), "half").unwrap();
        let (store, root) = store(dir.path());
        store
            .put(&root.clone().join("k"), "whole".into())
            .await
            .unwrap();
        let listed: Vec<_> = store.list(Some(&root)).try_collect().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(names(dir.path()), ["k", "k#1"]);
    }

    /// Many writers of one key at once: one creates it, everybody else is told that it is there, and what replaces it is whole.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn writers_of_one_key_do_not_meet_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let (store, root) = store(dir.path());
        let store = Arc::new(store);
        let write = |key: Path, writer: u8, mode: PutMode| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                // In pieces, so that a file is half written for a while.
                let pieces = vec![bytes::Bytes::from(vec![writer; 4096]); 16];
                let payload: PutPayload = pieces.into_iter().collect();
                store.put_opts(&key, payload, mode.into()).await.map(drop)
            })
        };
        for round in 0..20 {
            let key = root.clone().join(format!("k{round}"));
            let file = dir.path().join(format!("k{round}"));
            let whole = || {
                let bytes = fs::read(&file).unwrap();
                assert_eq!(bytes.len(), 16 * 4096);
                assert!(bytes.iter().all(|b| *b == bytes[0]), "of two writers");
                bytes[0]
            };
            let creators: Vec<_> = (0..16)
                .map(|writer| write(key.clone(), writer, PutMode::Create))
                .collect();
            let mut winners = Vec::new();
            for (writer, result) in (0_u8..).zip(futures::future::join_all(creators).await) {
                match result.unwrap() {
                    Ok(()) => winners.push(writer),
                    Err(object_store::Error::AlreadyExists { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            assert_eq!(winners, [whole()]);
            let replacers = (16..32).map(|writer| write(key.clone(), writer, PutMode::Overwrite));
            for result in futures::future::join_all(replacers.collect::<Vec<_>>()).await {
                result.unwrap().unwrap();
            }
            assert!(whole() >= 16);
        }
        let left: Vec<String> = names(dir.path());
        assert_eq!(left.len(), 20, "{left:?}");
    }
}
