//! From a URL to an object store: credentials, limits of time, one error, counters.
//!
//! - A [`Store`] is a root in a bucket, container or directory. Keys are relative to it, without a slash
//!   at either end; [`Store::child`] goes one level down and shares client and counters.
//! - Every operation is bounded in time: an outage is an error after about ten seconds, not minutes. The
//!   client repeats failed requests within that bound; nothing above needs quick retries.
//! - A successful write is acknowledged by the store, and on `file://` flushed to disk.
//! - This module does not promise that a listing shows what another writer is just writing, nor that a
//!   failed write left nothing: after a timeout the object may be there.

mod aws;
mod bucket;
mod error;
mod file;
mod get;
mod open;
mod reader;
mod spec;
mod stats;
mod sum;
pub mod testing;
mod upload;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{
    Attribute, AttributeValue, Attributes, ObjectStore, ObjectStoreExt, PutOptions, PutPayload,
};
use url::Url;

pub use bucket::{Answer, BucketRules, Rule};
pub use error::{Class, Op, StoreError};
pub use reader::reader;
pub use spec::StoreSpec;
pub use stats::{LATENCY_BOUNDS_SECONDS, Stats};
pub use sum::StoreSum;
pub use upload::{Piece, SINGLE_PUT_MAX_BYTES};

use crate::types::Millis;

/// Bound for a small request with all its repeats.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(14);

/// The slowest line that is still served: 64 KiB/s, half a megabit.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;

/// Bound for a listing: a request for each thousand objects, and restores list hundreds of thousands.
const LIST_PAGE_TIMEOUT: Duration = Duration::from_secs(14);

/// Objects in one page of a listing, for all providers we know.
const LIST_PAGE_OBJECTS: u64 = 1000;

/// Object metadata that Litestream keeps an LTX object's time under, on S3, OSS and Google.
const CREATED_KEY: &str = "litestream-timestamp";

/// The same on Azure, whose metadata names have no dashes.
const CREATED_KEY_AZURE: &str = "litestreamtimestamp";

/// Kinds of stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// S3 and what speaks its protocol.
    S3,
    /// Azure Blob Storage.
    Azure,
    /// Google Cloud Storage.
    Google,
    /// A directory.
    File,
    /// This process's memory, for tests.
    Memory,
}

impl Kind {
    /// The URL scheme, also used in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::S3 => "s3",
            Kind::Azure => "abs",
            Kind::Google => "gs",
            Kind::File => "file",
            Kind::Memory => "memory",
        }
    }
}

/// What a write does with a key that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Fail with [`Class::Exists`]. Some servers ignore the condition and overwrite:
    /// [`Store::probe_conditional_create`] finds out.
    Create,
    /// Replace the object.
    Overwrite,
}

/// An object as a listing or a request for it tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The key, relative to the store's root.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When the store says it was written. On `file://` this is the creation time below.
    pub modified: Millis,
    /// The creation time that its writer gave. Listings know it on `file://` only.
    pub created: Option<Millis>,
}

/// One root in one object store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    kind: Kind,
    inner: Arc<dyn ObjectStore>,
    root: Path,
    display: Arc<str>,
    // What tells it from another store of the same URL.
    beside: Arc<str>,
    secrets: Arc<[String]>,
    stats: Arc<Stats>,
    bucket: Option<Arc<bucket::Bucket>>,
}

impl Store {
    /// Makes the client for a store. Sends nothing that is billed, and does not find out whether the
    /// bucket exists or the credentials work: that is [`Store::check`]. On `file://` nothing is created
    /// before the first write.
    ///
    /// # Errors
    /// [`Class::Config`] for settings that cannot work. On AWS without a region anywhere, the bucket is
    /// asked for its own: [`Class::Unreachable`], [`Class::Timeout`] or [`Class::NoBucket`] then.
    pub async fn open(spec: &StoreSpec) -> Result<Store, StoreError> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let display: Arc<str> = Self::display_url(&spec.url).into();
        let secrets: Arc<[String]> = spec.secrets().into();
        let fail = |kind, class, reason: &str| {
            let reason = redact(reason, &secrets);
            StoreError::new(Op::Open, kind, &display, "", class, reason)
        };
        let Some(kind) = open::kind(&spec.url) else {
            let reason = format!("unknown kind of store {}://", spec.url.scheme());
            return Err(fail(Kind::File, Class::Config, &reason));
        };
        let opened = open::open(kind, spec, &env)
            .await
            .map_err(|problem| fail(kind, problem.class, &problem.reason))?;
        Ok(Self {
            kind,
            inner: opened.inner,
            root: opened.root,
            display,
            beside: Arc::default(),
            secrets,
            stats: Arc::default(),
            bucket: opened.bucket.map(Arc::new),
        })
    }

    /// A store over any client, for tests and fault injection. A given creation time must be something
    /// the client can keep.
    pub fn from_object_store(kind: Kind, inner: Arc<dyn ObjectStore>, root: Path) -> Store {
        Self {
            kind,
            inner,
            display: format!("{}://test/{root}", kind.as_str()).into(),
            beside: Arc::default(),
            root,
            secrets: Arc::default(),
            stats: Arc::default(),
            bucket: None,
        }
    }

    /// What the bucket does to objects by itself; `None` for all but S3. Reads three settings, once each, and changes nothing.
    pub async fn bucket_rules(&self) -> Option<BucketRules> {
        let mut rules = self.bucket.as_ref()?.rules().await;
        for reason in rules.reasons() {
            *reason = redact(reason, &self.secrets);
        }
        Some(rules)
    }

    /// Where it begins, below the bucket or folder.
    pub fn root(&self) -> &str {
        self.root.as_ref()
    }

    /// This store with another client around or instead of its own, for tests and fault injection.
    #[must_use]
    pub fn map_object_store(
        &self,
        wrap: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>,
    ) -> Store {
        let mut store = self.clone();
        store.inner = wrap(Arc::clone(&self.inner));
        store
    }

    /// The kind of store.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The URL without user, password and query; with the endpoint where only that tells it from another store.
    pub fn display(&self) -> String {
        format!("{}{}", self.display, self.beside)
    }

    /// This store, told from another one of the same URL by its endpoint.
    #[must_use]
    pub fn told_apart(mut self, endpoint: &str) -> Store {
        self.beside = Self::endpoint_shown(endpoint).into();
        self
    }

    /// How an endpoint is shown behind a URL.
    pub fn endpoint_shown(endpoint: &str) -> String {
        let shown = Url::parse(endpoint).map(|url| Self::display_url(&url));
        shown.map_or_else(|_| String::new(), |url| format!("?endpoint={url}"))
    }

    /// Counters, shared with every child and clone.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The counters, to be asked at any time.
    pub fn stats_handle(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// The store one level down. `name` may have several levels; a `.` or `..` in it is escaped.
    pub fn child(&self, name: &str) -> Store {
        let mut store = self.clone();
        for part in name.split('/').filter(|part| !part.is_empty()) {
            store.root = match Path::parse(format!("{}/{part}", store.root)) {
                Ok(root) => root,
                Err(_) => store.root.join(part),
            };
            store.display = format!("{}/{part}", store.display.trim_end_matches('/')).into();
        }
        store
    }

    /// The local path of a key, on `file://` only.
    pub fn local_path(&self, key: &str) -> Option<PathBuf> {
        let path = self.location(Op::Head, key).ok()?;
        let local = object_store::local::LocalFileSystem::new();
        (self.kind == Kind::File).then(|| local.path_to_filesystem(&path).ok())?
    }

    /// Removes what a killed upload to a folder left half-written (`<name>#<n>`). Only the owner of the folder may call this. Other
    /// stores keep parts of unfinished uploads out of sight; a lifecycle rule of the bucket ends them.
    pub fn remove_unfinished(&self, prefix: &str) {
        let Some(folder) = self.local_path(prefix) else {
            return;
        };
        for item in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = item.file_name();
            let number = name
                .to_str()
                .and_then(|n| n.rsplit_once('#'))
                .map(|(_, n)| n.parse::<u32>());
            if !matches!(number, Some(Ok(_))) {
                continue;
            }
            if let Err(error) = std::fs::remove_file(item.path()) {
                tracing::warn!(file = %item.path().display(), %error, "cannot remove an unfinished upload");
            }
        }
    }

    /// Writes an object in one request. `created` is kept as the object's time, as Litestream keeps it.
    ///
    /// # Errors
    /// [`Class::Exists`] if `mode` is [`PutMode::Create`] and the key is taken; it can have been taken by
    /// this very call, when the answer to its first attempt was lost. After [`Class::Timeout`] or
    /// [`Class::Unreachable`] the object may be there.
    pub async fn put(
        &self,
        key: &str,
        body: Bytes,
        mode: PutMode,
        created: Option<Millis>,
    ) -> Result<(), StoreError> {
        self.put_payload(key, body.into(), mode, created).await?;
        Ok(())
    }

    /// [`Store::put`] of an object that is in pieces, which are not copied together.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub async fn put_pieces(
        &self,
        key: &str,
        pieces: impl IntoIterator<Item = Bytes>,
        mode: PutMode,
    ) -> Result<(), StoreError> {
        let payload = pieces.into_iter().collect();
        self.put_payload(key, payload, mode, None).await?;
        Ok(())
    }

    /// Returns the ETag.
    async fn put_payload(
        &self,
        key: &str,
        payload: PutPayload,
        mode: PutMode,
        created: Option<Millis>,
    ) -> Result<Option<String>, StoreError> {
        let location = self.location(Op::Put, key)?;
        let bytes = payload.content_length() as u64;
        let options = PutOptions {
            mode: match mode {
                PutMode::Create => object_store::PutMode::Create,
                PutMode::Overwrite => object_store::PutMode::Overwrite,
            },
            attributes: self.attributes(created),
            ..Default::default()
        };
        let request = self.inner.put_opts(&location, payload, options);
        let done = self
            .bounded(Op::Put, key, request_timeout(bytes), request)
            .await?;
        self.stats.count_out(bytes);
        Ok(done.e_tag)
    }

    /// Every object under a prefix of whole path segments (empty: under the root), by key.
    ///
    /// # Errors
    /// Any class; a prefix with nothing under it is an empty list.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let location = self.location(Op::List, prefix)?;
        let mut stream = self.inner.list(Some(&location));
        let mut found = Vec::new();
        let outcome = loop {
            match tokio::time::timeout(LIST_PAGE_TIMEOUT, stream.try_next()).await {
                // Some tools keep an empty object for the directory itself: it has no key here.
                Ok(Ok(Some(meta))) => {
                    found.extend(self.info(meta, None).filter(|info| !info.key.is_empty()));
                }
                Ok(Ok(None)) => break Ok(()),
                Ok(Err(e)) => break Err(self.failed(Op::List, prefix, &e)),
                Err(_) => break Err(self.timed_out(Op::List, prefix, LIST_PAGE_TIMEOUT)),
            }
        };
        let pages = (found.len() as u64).div_ceil(LIST_PAGE_OBJECTS).max(1);
        self.stats.count(Op::List, pages);
        outcome?;
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// Names of the folders right under the root, in order.
    ///
    /// # Errors
    /// Any class; a root with nothing under it is an empty list.
    pub async fn folders(&self) -> Result<Vec<String>, StoreError> {
        let root = self.location(Op::List, "")?;
        let request = self.inner.list_with_delimiter(Some(&root));
        let found = self
            .bounded(Op::List, "", LIST_PAGE_TIMEOUT, request)
            .await?;
        let name = |path: &Path| path.parts().next_back().map(|p| p.as_ref().to_owned());
        let mut names: Vec<String> = found.common_prefixes.iter().filter_map(name).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Deletes an object. A missing one is fine.
    ///
    /// # Errors
    /// Any class but [`Class::NotFound`].
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let location = self.location(Op::Delete, key)?;
        let request = async {
            match self.inner.delete(&location).await {
                // A missing bucket also answers "not found": only a missing object is fine.
                Err(e) if error::classify(&e).0 == Class::NotFound => Ok(()),
                other => other,
            }
        };
        self.bounded(Op::Delete, key, REQUEST_TIMEOUT, request)
            .await
    }

    /// Whether a conditional create is honoured: some servers accept the header and ignore it. Writes
    /// `scratch_key` twice and deletes it; the key must be nobody else's.
    ///
    /// # Errors
    /// Any class; the scratch object may stay behind then.
    pub async fn probe_conditional_create(&self, scratch_key: &str) -> Result<bool, StoreError> {
        let body = || Bytes::from_static(b"probe");
        self.put(scratch_key, body(), PutMode::Overwrite, None)
            .await?;
        let second = self.put(scratch_key, body(), PutMode::Create, None).await;
        self.delete(scratch_key).await?;
        match second {
            Ok(()) => Ok(false),
            Err(e) if e.is_exists() => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// One cheap request that fails if the store is away, the bucket is gone or the key was revoked. Does
    /// not prove the right to write.
    ///
    /// # Errors
    /// Any class.
    pub async fn check(&self) -> Result<(), StoreError> {
        // A listing tells a missing bucket from a missing object, and needs no object. Nothing lies here.
        let location = self.location(Op::Check, "lifeboat-check")?;
        let request = self.inner.list_with_delimiter(Some(&location));
        self.bounded(Op::Check, "", REQUEST_TIMEOUT, request)
            .await?;
        Ok(())
    }

    fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }

    /// Full path of a key. Keys come from this program: a bad one is still an error, not a panic.
    fn location(&self, op: Op, key: &str) -> Result<Path, StoreError> {
        let path = Path::parse(format!("{}/{key}", self.root));
        path.map_err(|e| self.error(op, key, Class::Config, e.to_string()))
    }

    /// `None` for an object outside the root, which no client returns.
    fn info(&self, meta: object_store::ObjectMeta, created: Option<Millis>) -> Option<ObjectInfo> {
        let modified = Millis(meta.last_modified.timestamp_millis());
        let key = meta.location.as_ref().strip_prefix(self.root.as_ref())?;
        Some(ObjectInfo {
            key: key.trim_start_matches('/').to_owned(),
            size: meta.size,
            modified,
            created: match self.kind {
                Kind::File => Some(modified),
                _ => created,
            },
        })
    }

    fn attributes(&self, created: Option<Millis>) -> Attributes {
        let key = match self.kind {
            Kind::Azure => CREATED_KEY_AZURE,
            _ => CREATED_KEY,
        };
        let pair = |at: Millis| {
            (
                Attribute::Metadata(key.into()),
                AttributeValue::from(at.to_string()),
            )
        };
        created.map(pair).into_iter().collect()
    }

    /// Runs one request, counts it, and bounds it in time.
    async fn bounded<T>(
        &self,
        op: Op,
        key: &str,
        limit: Duration,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        self.stats.count(op, 1);
        let begun = std::time::Instant::now();
        let answer = tokio::time::timeout(limit, request).await;
        self.stats.count_latency(begun.elapsed());
        match answer {
            Ok(result) => result.map_err(|e| self.failed(op, key, &e)),
            Err(_) => Err(self.timed_out(op, key, limit)),
        }
    }

    fn failed(&self, op: Op, key: &str, error: &object_store::Error) -> StoreError {
        let (class, reason) = error::classify(error);
        self.error(op, key, class, reason)
    }

    fn timed_out(&self, op: Op, key: &str, limit: Duration) -> StoreError {
        let reason = format!("no answer within {} s", limit.as_secs());
        self.error(op, key, Class::Timeout, reason)
    }

    /// The one place where errors are made: counted and redacted.
    fn error(&self, op: Op, key: &str, class: Class, reason: impl AsRef<str>) -> StoreError {
        self.stats.count_error(class);
        let reason = redact(reason.as_ref(), &self.secrets);
        StoreError::new(op, self.kind, &self.display, key, class, reason)
    }

    /// A URL without user, password, query and fragment; Litestream's `abs://account@container` keeps
    /// its account, which is no secret.
    /// A URL without secrets, as messages name it.
    pub fn display_url(url: &Url) -> String {
        let mut shown = url.clone();
        shown.set_query(None);
        shown.set_fragment(None);
        // Fails only for URLs that can have none.
        let _ = shown.set_password(None);
        if open::kind(url) != Some(Kind::Azure) {
            let _ = shown.set_username("");
        }
        shown.as_str().trim_end_matches('/').to_owned()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({}, {})", self.display, self.root)
    }
}

/// Bound for a request with a body of this size.
fn request_timeout(bytes: u64) -> Duration {
    REQUEST_TIMEOUT + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND)
}

fn redact(text: &str, secrets: &[String]) -> String {
    secrets.iter().fold(text.to_owned(), |text, secret| {
        text.replace(secret.as_str(), "***")
    })
}

/// The creation time in an object's metadata, whoever wrote it.
fn created_in(attributes: &Attributes) -> Option<Millis> {
    let value = [CREATED_KEY, CREATED_KEY_AZURE]
        .into_iter()
        .find_map(|key| attributes.get(&Attribute::Metadata(key.into())))?;
    let time: jiff::Timestamp = value.parse().ok()?;
    Some(Millis(time.as_millisecond()))
}

fn millis_to_system(at: Millis) -> Option<SystemTime> {
    let since = Duration::from_millis(u64::try_from(at.0).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_has_no_secrets() {
        let shown = |text: &str| Store::display_url(&Url::parse(text).unwrap());
        assert_eq!(shown("s3://me:pw@bucket/a/?x=1#y"), "s3://bucket/a");
        assert_eq!(shown("abs://acct@box/p"), "abs://acct@box/p");
        assert_eq!(shown("file:///a/b/"), "file:///a/b");
    }

    #[tokio::test]
    async fn errors_are_redacted_and_counted() {
        let url = Url::parse("memory://").unwrap();
        let mut spec = StoreSpec::new(url);
        spec.secret_access_key = Some("hunter2".into());
        let store = Store::open(&spec).await.unwrap().child("app").child("db");
        let error = store.error(Op::Get, "k", Class::Other, "body: hunter2");
        assert_eq!(error.to_string(), "cannot read memory:/app/db/k: body: ***");
        assert_eq!(store.stats().errors(Class::Other), 1);
    }

    #[test]
    fn slow_lines_get_time() {
        assert_eq!(request_timeout(0).as_secs(), 14);
        assert_eq!(request_timeout(8 << 20).as_secs(), 14 + 128);
    }
}
