//! From a URL to an object store: one door for every request, counted, bounded in time, with errors for people.
//!
//! What this does **not** do: know what objects mean. Layout and ownership are [`crate::replica`]'s.

mod error;
mod open;
mod stream;

pub use error::{Class, StoreError};
pub use open::StoreSpec;
pub use stream::{Piece, reader};

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload,
};

use crate::types::Millis;

/// Above this an upload is multipart: below, one request is cheaper and atomic. S3's own advice is to switch between 5 and 100 MiB.
const SINGLE_PUT_MAX_BYTES: u64 = 8 << 20;
/// Metadata key of the capture time, as Litestream writes it.
const TIMESTAMP_KEY: &str = "litestream-timestamp";
/// The same on Azure, whose keys have no dashes.
const TIMESTAMP_KEY_AZURE: &str = "litestreamtimestamp";
/// Bound of one small request. An outage must be reported within seconds.
const SMALL_TIMEOUT: Duration = Duration::from_secs(20);

/// What kind of service a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// S3 and what speaks its protocol.
    S3,
    /// Azure Blob.
    Azure,
    /// Google Cloud Storage.
    Google,
    /// A folder.
    File,
    /// In this process; for tests.
    Memory,
}

/// Whether a put may replace an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Only if the key is free, where the store honours that.
    Create,
    /// Replaces.
    Overwrite,
}

/// One object as listed or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Key below the store's root.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When the store received it.
    pub modified: Millis,
    /// Capture time, if the answer carried it: listings of S3, Azure and Google do not.
    pub created: Option<Millis>,
}

/// Counters since the start, for metrics.
#[derive(Debug, Default)]
pub struct Stats {
    put: AtomicU64,
    get: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    errors: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Stats {
    /// Requests by kind.
    pub fn requests(&self) -> BTreeMap<&'static str, u64> {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        [
            ("put", get(&self.put)),
            ("get", get(&self.get)),
            ("list", get(&self.list)),
            ("delete", get(&self.delete)),
        ]
        .into()
    }

    /// Bytes uploaded.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Bytes downloaded.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Failed requests.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// A store, or a folder in it.
#[derive(Clone, Debug)]
pub struct Store {
    kind: Kind,
    inner: Arc<dyn ObjectStore>,
    root: Path,
    display: String,
    stats: Arc<Stats>,
}

impl Store {
    /// Opens a store. Makes no request to it; credentials may be fetched.
    pub async fn open(spec: &StoreSpec) -> Result<Self, StoreError> {
        open::open(spec).await
    }

    /// Wraps an object store, for tests and fault injection.
    pub fn from_object_store(
        kind: Kind,
        inner: Arc<dyn ObjectStore>,
        root: Path,
        display: String,
    ) -> Self {
        Self {
            kind,
            inner,
            root,
            display,
            stats: Arc::default(),
        }
    }

    /// Kind of service.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// URL without secrets.
    pub fn display(&self) -> &str {
        &self.display
    }

    /// Counters, shared with every folder of this store.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// A folder of this store.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        let root = name
            .split('/')
            .filter(|p| !p.is_empty())
            .fold(self.root.clone(), |path, part| path.join(part));
        Self {
            root,
            display: format!("{}/{name}", self.display.trim_end_matches('/')),
            ..self.clone()
        }
    }

    /// The folder on disk, for a `file://` store.
    pub fn folder(&self) -> Option<std::path::PathBuf> {
        (self.kind == Kind::File)
            .then(|| std::path::PathBuf::from(format!("/{}", percent_decode(self.root.as_ref()))))
    }

    /// Writes a small object.
    pub async fn put(
        &self,
        key: &str,
        body: Bytes,
        mode: PutMode,
        created: Option<Millis>,
    ) -> Result<(), StoreError> {
        count(&self.stats.put, 1);
        let size = body.len() as u64;
        let options = PutOptions {
            mode: mode_of(mode),
            attributes: self.attributes(created),
            ..Default::default()
        };
        let path = self.path(key);
        let work = self
            .inner
            .put_opts(&path, PutPayload::from_bytes(body), options);
        let timeout = SMALL_TIMEOUT + Duration::from_secs(size / (100 << 10));
        self.timed("write", key, timeout, work).await?;
        self.stamp_file(key, created)?;
        count(&self.stats.sent_bytes, size);
        Ok(())
    }

    /// Uploads a local file and returns its size. Large files go in parts; then nothing is visible before the end, and `Create` is
    /// checked with one request before the first part.
    pub async fn put_file(
        &self,
        key: &str,
        path: &FilePath,
        mode: PutMode,
        created: Option<Millis>,
    ) -> Result<u64, StoreError> {
        let local = |e: std::io::Error| StoreError::local(path, e);
        let size = tokio::fs::metadata(path).await.map_err(local)?.len();
        if size <= SINGLE_PUT_MAX_BYTES {
            let body = tokio::fs::read(path).await.map_err(local)?;
            self.put(key, body.into(), mode, created).await?;
            return Ok(size);
        }
        if mode == PutMode::Create {
            match self.head(key).await {
                Ok(_) => return Err(StoreError::exists(self, key)),
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        stream::put_file(self, key, path, created).await
    }

    /// Uploads what a blocking thread sends. Unless the last piece is [`Piece::End`], nothing becomes visible.
    pub async fn put_stream(
        &self,
        key: &str,
        pieces: tokio::sync::mpsc::Receiver<Piece>,
        created: Option<Millis>,
    ) -> Result<u64, StoreError> {
        stream::put_stream(self, key, pieces, created).await
    }

    /// Reads a small object.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        count(&self.stats.get, 1);
        let path = self.path(key);
        let work = async {
            self.inner
                .get_opts(&path, GetOptions::default())
                .await?
                .bytes()
                .await
        };
        let bytes = self.timed("read", key, SMALL_TIMEOUT * 6, work).await?;
        count(&self.stats.received_bytes, bytes.len() as u64);
        Ok(bytes)
    }

    /// Reads a part of an object.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        count(&self.stats.get, 1);
        let path = self.path(key);
        let bytes = self
            .timed(
                "read",
                key,
                SMALL_TIMEOUT * 3,
                self.inner.get_range(&path, range),
            )
            .await?;
        count(&self.stats.received_bytes, bytes.len() as u64);
        Ok(bytes)
    }

    /// Size and times of an object.
    pub async fn head(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        count(&self.stats.get, 1);
        let path = self.path(key);
        let options = GetOptions {
            head: true,
            ..Default::default()
        };
        let result = self
            .timed(
                "look up",
                key,
                SMALL_TIMEOUT,
                self.inner.get_opts(&path, options),
            )
            .await?;
        let created = self.created(&result.attributes);
        Ok(self.info(&result.meta, created))
    }

    /// Every object below a prefix (a whole path segment). A missing folder is empty.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        count(&self.stats.list, 1);
        let path = self.path(prefix);
        let work = async {
            let stream: BoxStream<'_, object_store::Result<ObjectMeta>> =
                self.inner.list(Some(&path));
            stream.try_collect::<Vec<_>>().await
        };
        match self.timed("list", prefix, SMALL_TIMEOUT * 6, work).await {
            Ok(found) => Ok(found.iter().map(|meta| self.info(meta, None)).collect()),
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Deletes an object; a missing one is fine.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        count(&self.stats.delete, 1);
        let path = self.path(key);
        match self
            .timed("delete", key, SMALL_TIMEOUT, self.inner.delete(&path))
            .await
        {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        }
    }

    /// Whether the store refuses to create a key twice. Some accept the header and ignore it, so it is tried.
    pub async fn probe_conditional_create(&self, key: &str) -> Result<bool, StoreError> {
        self.put(key, Bytes::from_static(b"probe"), PutMode::Overwrite, None)
            .await?;
        let honoured = match self
            .put(key, Bytes::from_static(b"probe"), PutMode::Create, None)
            .await
        {
            Ok(()) => false,
            Err(e) if e.is_exists() => true,
            Err(e) if e.class() == Class::Unsupported => false,
            Err(e) => return Err(e),
        };
        self.delete(key).await?;
        Ok(honoured)
    }

    /// Removes what a killed upload to a folder left half-written (`<name>#<n>`). Only the owner of the folder may call this. Other stores
    /// keep parts of unfinished uploads out of sight; a lifecycle rule of the bucket ends them.
    pub fn remove_unfinished(&self, prefix: &str) {
        let Some(folder) = self.folder() else { return };
        for item in std::fs::read_dir(folder.join(prefix))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = item.file_name();
            let unfinished = name
                .to_str()
                .and_then(|n| n.rsplit_once('#'))
                .is_some_and(|(_, n)| n.parse::<u32>().is_ok());
            if unfinished && let Err(error) = std::fs::remove_file(item.path()) {
                tracing::warn!(file = %item.path().display(), %error, "cannot remove an unfinished upload");
            }
        }
    }

    /// One cheap request that fails if the key was revoked or the bucket is gone.
    pub async fn check(&self) -> Result<(), StoreError> {
        match self.head("lifeboat/owner.json").await {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        }
    }

    fn path(&self, key: &str) -> Path {
        key.split('/')
            .filter(|p| !p.is_empty())
            .fold(self.root.clone(), |path, part| path.join(part))
    }

    fn info(&self, meta: &ObjectMeta, created: Option<Millis>) -> ObjectInfo {
        let full = meta.location.as_ref();
        let key = full
            .strip_prefix(self.root.as_ref())
            .unwrap_or(full)
            .trim_start_matches('/')
            .to_owned();
        let modified = Millis(meta.last_modified.timestamp_millis());
        let created = if self.kind == Kind::File {
            Some(modified)
        } else {
            created
        };
        ObjectInfo {
            key,
            size: meta.size,
            modified,
            created,
        }
    }

    fn timestamp_key(&self) -> Option<&'static str> {
        match self.kind {
            Kind::S3 | Kind::Google | Kind::Memory => Some(TIMESTAMP_KEY),
            Kind::Azure => Some(TIMESTAMP_KEY_AZURE),
            Kind::File => None,
        }
    }

    fn attributes(&self, created: Option<Millis>) -> Attributes {
        let mut attributes = Attributes::new();
        if let (Some(created), Some(key)) = (created, self.timestamp_key()) {
            attributes.insert(Attribute::Metadata(key.into()), created.to_string().into());
        }
        attributes
    }

    fn created(&self, attributes: &Attributes) -> Option<Millis> {
        let text = attributes.get(&Attribute::Metadata(self.timestamp_key()?.into()))?;
        let time: jiff::Timestamp = text.as_ref().parse().ok()?;
        Some(Millis(time.as_millisecond()))
    }

    /// A folder has no metadata: the capture time is the file's own, as Litestream has it.
    fn stamp_file(&self, key: &str, created: Option<Millis>) -> Result<(), StoreError> {
        let (Some(folder), Some(created)) = (self.folder(), created) else {
            return Ok(());
        };
        let path = folder.join(key);
        let time =
            SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(created.0).unwrap_or(0));
        let set = || {
            std::fs::File::options()
                .write(true)
                .open(&path)?
                .set_modified(time)
        };
        set().map_err(|e| StoreError::local(&path, e))
    }

    async fn timed<T>(
        &self,
        op: &'static str,
        key: &str,
        limit: Duration,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        let result = match tokio::time::timeout(limit, work).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(e)) => StoreError::from_source(self, op, key, e),
            Err(_) => StoreError::timeout(self, op, key, limit),
        };
        if !result.is_not_found() && !result.is_exists() {
            count(&self.stats.errors, 1);
        }
        Err(result)
    }

    async fn start_multipart(
        &self,
        key: &str,
        created: Option<Millis>,
    ) -> Result<Box<dyn object_store::MultipartUpload>, StoreError> {
        count(&self.stats.put, 1);
        let options = PutMultipartOptions {
            attributes: self.attributes(created),
            ..Default::default()
        };
        let path = self.path(key);
        self.timed(
            "start writing",
            key,
            SMALL_TIMEOUT,
            self.inner.put_multipart_opts(&path, options),
        )
        .await
    }
}

fn mode_of(mode: PutMode) -> object_store::PutMode {
    match mode {
        PutMode::Create => object_store::PutMode::Create,
        PutMode::Overwrite => object_store::PutMode::Overwrite,
    }
}

/// `object_store` escapes odd characters of a local path.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = text
            .get(i + 1..i + 3)
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[i], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
