//! A client with faults, for tests of everything that writes to a store. Not used outside tests.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, UploadPart,
};

/// What a client is asked, as faults see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A single-request write.
    Put,
    /// The beginning of a multipart upload.
    Begin,
    /// A part.
    Part,
    /// The end of a multipart upload.
    Complete,
    /// The abort of a multipart upload.
    Abort,
    /// A read, of content or of metadata.
    Get,
    /// A listing.
    List,
    /// A delete.
    Delete,
}

/// What happens to a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Not done; the connection fails.
    Unreachable,
    /// Not done; the credentials are refused.
    Denied,
    /// Not done; the store is full.
    NoSpace,
    /// Not done; the server is busy.
    Throttled,
    /// Not done; whoever asked panics.
    Panic,
    /// Done, but the answer is lost.
    LostAnswer,
    /// Done after a pause.
    Delay(Duration),
    /// A download ends silently after so many bytes.
    Truncate(u64),
    /// A conditional create overwrites.
    IgnoreCondition,
    /// Of what is sent, one bit arrives as another.
    Flip,
    /// Done; the answer's ETag looks like an MD5 and is none, as that of an object under a KMS key.
    OtherTag,
    /// Done; a listing says that objects whose path begins so were written so much earlier than they were.
    Older(Duration, String),
}

#[derive(Debug)]
struct Rule {
    call: Option<Call>,
    /// Only paths with this part.
    part: String,
    skip: u64,
    times: u64,
    fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    calls: Vec<(Call, String)>,
}

/// Steers a [`Faulty`] client. Clones steer the same one.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

impl Faults {
    /// From now on, lets `skip` calls pass and then does `fault` to `times` of them. `None` counts every
    /// call. Of several rules the first that applies wins; all of them count.
    pub fn inject(&self, call: Option<Call>, skip: u64, times: u64, fault: Fault) {
        self.lock().rules.push(Rule {
            call,
            part: String::new(),
            skip,
            times,
            fault,
        });
    }

    /// From now on, does `fault` to the next call of this kind whose path has this part.
    pub fn inject_at(&self, call: Call, part: &str, fault: Fault) {
        self.lock().rules.push(Rule {
            call: Some(call),
            part: part.to_owned(),
            skip: 0,
            times: 1,
            fault,
        });
    }

    /// Ends every fault.
    pub fn clear(&self) {
        self.lock().rules.clear();
    }

    /// Every call so far with its path, faulty or not.
    pub fn calls(&self) -> Vec<(Call, String)> {
        self.lock().calls.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, call: Call, path: &Path) -> Option<Fault> {
        let mut state = self.lock();
        state.calls.push((call, path.to_string()));
        let mut chosen = None;
        for rule in &mut state.rules {
            if rule.call.is_some_and(|wanted| wanted != call) || !path.as_ref().contains(&rule.part)
            {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.times > 0 && chosen.is_none() {
                rule.times -= 1;
                chosen = Some(rule.fault.clone());
            }
        }
        chosen
    }

    /// Runs a call with what the rules have for it.
    async fn run<T>(
        &self,
        call: Call,
        path: &Path,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match self.next(call, path) {
            Some(fault) => around(fault, path, work).await,
            None => work.await,
        }
    }
}

async fn around<T>(fault: Fault, path: &Path, work: impl Future<Output = Result<T>>) -> Result<T> {
    match fault {
        Fault::Delay(pause) => {
            tokio::time::sleep(pause).await;
            work.await
        }
        Fault::LostAnswer => {
            work.await?;
            Err(unreachable("answer lost"))
        }
        Fault::Truncate(_)
        | Fault::IgnoreCondition
        | Fault::Flip
        | Fault::OtherTag
        | Fault::Older(..) => work.await,
        Fault::Panic => panic!("injected at {path}"),
        refused => Err(refusal(&refused, path)),
    }
}

fn refusal(fault: &Fault, path: &Path) -> Error {
    let generic = |source: Box<dyn std::error::Error + Send + Sync>| Error::Generic {
        store: "faulty",
        source,
    };
    match fault {
        Fault::Denied => Error::PermissionDenied {
            path: path.to_string(),
            source: "injected".into(),
        },
        Fault::NoSpace => generic(Box::new(io::Error::from(io::ErrorKind::StorageFull))),
        Fault::Throttled => generic("status code: 503: injected".into()),
        _ => unreachable("injected"),
    }
}

fn unreachable(why: &str) -> Error {
    Error::Generic {
        store: "faulty",
        source: Box::new(HttpError::new(
            HttpErrorKind::Connect,
            io::Error::other(why.to_owned()),
        )),
    }
}

/// A client that does what [`Faults`] says and otherwise passes everything on.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    faults: Faults,
}

impl Faulty {
    /// Puts faults around a client; there are none at first.
    pub fn wrap(inner: Arc<dyn ObjectStore>) -> (Arc<dyn ObjectStore>, Faults) {
        let faults = Faults::default();
        let client = Self {
            inner,
            faults: faults.clone(),
        };
        (Arc::new(client), faults)
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        mut payload: PutPayload,
        mut opts: PutOptions,
    ) -> Result<PutResult> {
        let fault = self.faults.next(Call::Put, location);
        if matches!(fault, Some(Fault::Flip)) {
            payload = flipped(&payload);
        }
        if matches!(fault, Some(Fault::IgnoreCondition)) {
            opts.mode = PutMode::Overwrite;
        }
        let work = self.inner.put_opts(location, payload, opts);
        match fault {
            Some(Fault::OtherTag) => work.await.map(other_tag),
            Some(fault) => around(fault, location, work).await,
            None => work.await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let work = self.inner.put_multipart_opts(location, opts);
        let upload = self.faults.run(Call::Begin, location, work).await?;
        Ok(Box::new(FaultyUpload {
            upload,
            faults: self.faults.clone(),
            location: location.clone(),
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.faults.next(Call::Get, location);
        let work = self.inner.get_opts(location, options);
        match fault {
            Some(Fault::Truncate(bytes)) => Ok(truncated(work.await?, bytes)),
            Some(fault) => around(fault, location, work).await,
            None => work.await,
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (inner, faults) = (Arc::clone(&self.inner), self.faults.clone());
        locations
            .and_then(move |location| {
                let (inner, faults) = (Arc::clone(&inner), faults.clone());
                async move {
                    let one = futures::stream::once(futures::future::ready(Ok(location.clone())));
                    let work = inner.delete_stream(one.boxed()).try_collect::<Vec<_>>();
                    faults.run(Call::Delete, &location, work).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let path = prefix.cloned().unwrap_or_default();
        let listing = self.inner.list(prefix);
        let faults = self.faults.clone();
        let begin = async move {
            let fault = faults.next(Call::List, &path);
            let older = match &fault {
                Some(Fault::Older(by, prefix)) => Some((*by, prefix.clone())),
                _ => None,
            };
            let listing = match fault {
                Some(fault) => around(fault, &path, async { Ok(listing) }).await?,
                None => listing,
            };
            Ok::<_, Error>(listing.map_ok(move |mut object| {
                if let Some((by, prefix)) = &older
                    && object.location.as_ref().starts_with(prefix.as_str())
                {
                    object.last_modified -= *by;
                }
                object
            }))
        };
        futures::stream::once(begin).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let path = prefix.cloned().unwrap_or_default();
        let work = self.inner.list_with_delimiter(prefix);
        self.faults.run(Call::List, &path, work).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The same bytes but for one bit of the last one.
fn flipped(payload: &PutPayload) -> PutPayload {
    let mut bytes: Vec<u8> = payload.iter().flatten().copied().collect();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    bytes.into()
}

fn other_tag(mut result: PutResult) -> PutResult {
    result.e_tag = Some(format!("\"{:032x}\"", u128::MAX / 3));
    result
}

/// The same answer whose content silently ends early.
fn truncated(mut result: GetResult, bytes: u64) -> GetResult {
    let (meta, range) = (result.meta.clone(), result.range.clone());
    let (attributes, extensions) = (result.attributes.clone(), result.extensions.clone());
    if let GetResultPayload::File(_, _) = result.payload {
        result.range.end = result.range.end.min(result.range.start + bytes);
    }
    let cut = result.into_stream().scan(bytes, |left, chunk| {
        let keep = chunk.map(|chunk: Bytes| {
            // At most the chunk's length.
            let len = (*left).min(chunk.len() as u64) as usize;
            *left -= len as u64;
            chunk.slice(..len)
        });
        let ended = keep.as_ref().is_ok_and(Bytes::is_empty);
        futures::future::ready((!ended).then_some(keep))
    });
    GetResult {
        payload: GetResultPayload::Stream(cut.boxed()),
        meta,
        range,
        attributes,
        extensions,
    }
}

#[derive(Debug)]
struct FaultyUpload {
    upload: Box<dyn MultipartUpload>,
    faults: Faults,
    location: Path,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, mut data: PutPayload) -> UploadPart {
        let fault = self.faults.next(Call::Part, &self.location);
        if matches!(fault, Some(Fault::Flip)) {
            data = flipped(&data);
        }
        let work = self.upload.put_part(data);
        let location = self.location.clone();
        Box::pin(async move {
            match fault {
                Some(fault) => around(fault, &location, work).await,
                None => work.await,
            }
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let fault = self.faults.next(Call::Complete, &self.location);
        let work = self.upload.complete();
        match fault {
            Some(Fault::OtherTag) => work.await.map(other_tag),
            Some(fault) => around(fault, &self.location, work).await,
            None => work.await,
        }
    }

    async fn abort(&mut self) -> Result<()> {
        let work = self.upload.abort();
        self.faults.run(Call::Abort, &self.location, work).await
    }
}
