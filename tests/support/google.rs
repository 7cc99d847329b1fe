//! As much of Google Cloud Storage's XML interface as the client uses, in memory, in this process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;

/// The one bucket there is.
pub(crate) const BUCKET: &str = "bucket";

#[derive(Clone)]
struct Object {
    body: Bytes,
    metadata: Vec<(String, String)>,
    generation: u64,
}

#[derive(Default)]
struct Upload {
    metadata: Vec<(String, String)>,
    parts: BTreeMap<u32, Bytes>,
}

#[derive(Default)]
pub(crate) struct Bucket {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    counter: u64,
    parts_from: Option<Instant>,
}

impl Bucket {
    /// Multipart uploads neither finished nor aborted.
    pub(crate) fn unfinished(&self) -> usize {
        self.uploads.len()
    }

    /// Until then every part is answered with "service unavailable".
    pub(crate) fn refuse_parts_until(&mut self, end: Instant) {
        self.parts_from = Some(end);
    }
}

pub(crate) type Shared = Arc<Mutex<Bucket>>;

/// Serves until the test's runtime ends.
pub(crate) async fn serve() -> (SocketAddr, Shared) {
    let shared = Shared::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let address = listener.local_addr().expect("address");
    let app = axum::Router::new()
        .fallback(handle)
        .with_state(Arc::clone(&shared));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, shared)
}

fn answer(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
}

fn refuse(status: StatusCode, code: &str) -> Response {
    answer(
        status,
        format!("<Error><Code>{code}</Code><Message>no</Message></Error>"),
    )
}

fn decode(text: &str) -> String {
    let pair = format!("k={text}");
    let decoded = url::form_urlencoded::parse(pair.as_bytes()).next();
    decoded.map(|(_, v)| v.into_owned()).unwrap_or_default()
}

async fn handle(State(shared): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.expect("body");
    let query: BTreeMap<String, String> =
        url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    let path = head.uri.path().trim_start_matches('/');
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    // What the client sends to an emulator when it has no credentials.
    let token = head.headers.get("authorization");
    if token.is_none_or(|value| value != "Bearer anonymous") {
        return refuse(StatusCode::UNAUTHORIZED, "AuthenticationRequired");
    }
    if decode(bucket) != BUCKET {
        return refuse(StatusCode::NOT_FOUND, "NoSuchBucket");
    }
    let mut bucket = shared.lock().expect("lock");
    let key = decode(key);
    match (head.method, query.get("uploadId")) {
        (Method::GET, None) if key.is_empty() => list(&bucket, &query),
        (Method::PUT, Some(id)) => put_part(&mut bucket, id, &query, body),
        (Method::POST, Some(id)) => complete(&mut bucket, id, key),
        (Method::POST, None) => {
            bucket.counter += 1;
            let id = bucket.counter.to_string();
            let metadata = metadata(&head.headers);
            let upload = Upload {
                metadata,
                ..Upload::default()
            };
            bucket.uploads.insert(id.clone(), upload);
            let xml = format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            );
            answer(StatusCode::OK, xml)
        }
        (Method::DELETE, Some(id)) => match bucket.uploads.remove(id) {
            Some(_) => answer(StatusCode::NO_CONTENT, ""),
            None => refuse(StatusCode::NOT_FOUND, "NoSuchUpload"),
        },
        (Method::PUT, None) => {
            let must_be_new = head.headers.get("x-goog-if-generation-match").is_some();
            if must_be_new && bucket.objects.contains_key(&key) {
                return refuse(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
            }
            let metadata = metadata(&head.headers);
            stored(&mut bucket, key, body, metadata)
        }
        (Method::DELETE, None) => match bucket.objects.remove(&key) {
            Some(_) => answer(StatusCode::NO_CONTENT, ""),
            None => refuse(StatusCode::NOT_FOUND, "NoSuchKey"),
        },
        (Method::GET | Method::HEAD, _) => get(&bucket, &key, &head.headers),
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

fn metadata(headers: &HeaderMap) -> Vec<(String, String)> {
    let own = headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-goog-meta-"));
    own.map(|(name, value)| (name.to_string(), value.to_str().expect("ascii").to_owned()))
        .collect()
}

fn stored(
    bucket: &mut Bucket,
    key: String,
    body: Bytes,
    metadata: Vec<(String, String)>,
) -> Response {
    bucket.counter += 1;
    let generation = bucket.counter;
    let object = Object {
        body,
        metadata,
        generation,
    };
    bucket.objects.insert(key, object);
    tagged(answer(StatusCode::OK, ""), generation)
}

fn tagged(mut response: Response, generation: u64) -> Response {
    let headers = response.headers_mut();
    headers.insert("etag", format!("\"{generation}\"").parse().expect("header"));
    headers.insert("x-goog-generation", generation.into());
    headers.insert(
        "last-modified",
        "Fri, 20 Nov 2026 21:28:34 GMT".parse().expect("header"),
    );
    response
}

fn put_part(
    bucket: &mut Bucket,
    id: &str,
    query: &BTreeMap<String, String>,
    body: Bytes,
) -> Response {
    if bucket.parts_from.is_some_and(|end| Instant::now() < end) {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
    }
    let number = query["partNumber"].parse().expect("part number");
    match bucket.uploads.get_mut(id) {
        Some(upload) => {
            upload.parts.insert(number, body);
            tagged(answer(StatusCode::OK, ""), u64::from(number))
        }
        None => refuse(StatusCode::NOT_FOUND, "NoSuchUpload"),
    }
}

fn complete(bucket: &mut Bucket, id: &str, key: String) -> Response {
    let Some(upload) = bucket.uploads.remove(id) else {
        return refuse(StatusCode::NOT_FOUND, "NoSuchUpload");
    };
    let body = upload.parts.into_values().collect::<Vec<_>>().concat();
    let response = stored(bucket, key, body.into(), upload.metadata);
    let xml = "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>";
    let (head, _) = response.into_parts();
    Response::from_parts(head, xml.into())
}

fn get(bucket: &Bucket, key: &str, headers: &HeaderMap) -> Response {
    let Some(object) = bucket.objects.get(key) else {
        return refuse(StatusCode::NOT_FOUND, "NoSuchKey");
    };
    let total = object.body.len();
    let range = headers.get("range").map(|value| {
        let text = value
            .to_str()
            .expect("ascii")
            .trim_start_matches("bytes=")
            .to_owned();
        let (start, end) = text.split_once('-').expect("range");
        let end = end.parse().map_or(total, |end: usize| total.min(end + 1));
        start.parse::<usize>().expect("range")..end
    });
    let mut response = match &range {
        Some(range) => answer(
            StatusCode::PARTIAL_CONTENT,
            object.body.slice(range.clone()),
        ),
        None => answer(StatusCode::OK, object.body.clone()),
    };
    if let Some(range) = range {
        let value = format!("bytes {}-{}/{total}", range.start, range.end - 1);
        response
            .headers_mut()
            .insert("content-range", value.parse().expect("header"));
    }
    for (name, value) in &object.metadata {
        let name: axum::http::HeaderName = name.parse().expect("header");
        response
            .headers_mut()
            .insert(name, value.parse().expect("header"));
    }
    tagged(response, object.generation)
}

fn list(bucket: &Bucket, query: &BTreeMap<String, String>) -> Response {
    let prefix = query.get("prefix").map(String::as_str).unwrap_or_default();
    let mut xml = String::from("<ListBucketResult>");
    for (key, object) in bucket
        .objects
        .iter()
        .filter(|(key, _)| key.starts_with(prefix))
    {
        let (size, tag) = (object.body.len(), object.generation);
        write!(
            xml,
            "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{tag}</ETag>\
             <LastModified>2026-11-20T21:28:34.000Z</LastModified></Contents>"
        )
        .expect("write to a string");
    }
    xml.push_str("</ListBucketResult>");
    answer(StatusCode::OK, xml)
}
