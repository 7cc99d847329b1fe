//! One error for every store: what was asked, of which object, what kind of failure it is, why.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use object_store::client::{HttpError, HttpErrorKind};

use super::Kind;

/// Longest reason kept, in characters: providers answer with whole XML or HTML pages.
const MAX_REASON_CHARS: usize = 300;

/// What a store was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Make a client from a [`StoreSpec`](super::StoreSpec).
    Open,
    /// Write an object, or begin and finish a multipart upload.
    Put,
    /// Write one part of a multipart upload.
    Part,
    /// Read an object or a range of it.
    Get,
    /// Read an object's size and times.
    Head,
    /// List objects.
    List,
    /// Delete an object.
    Delete,
    /// The cheap check that the store still answers and still knows us.
    Check,
}

impl Op {
    /// Every operation, in the order of the counters.
    pub const ALL: [Op; 8] = [
        Op::Open,
        Op::Put,
        Op::Part,
        Op::Get,
        Op::Head,
        Op::List,
        Op::Delete,
        Op::Check,
    ];

    /// A stable word for metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Open => "open",
            Op::Put => "put",
            Op::Part => "part",
            Op::Get => "get",
            Op::Head => "head",
            Op::List => "list",
            Op::Delete => "delete",
            Op::Check => "check",
        }
    }
}

impl fmt::Display for Op {
    /// The verb for sentences.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Open => "open",
            Op::Put | Op::Part => "write",
            Op::Get | Op::Head => "read",
            Op::List => "list",
            Op::Delete => "delete",
            Op::Check => "check",
        })
    }
}

/// The kinds of failure that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The object is not there.
    NotFound,
    /// A conditional create found the key taken.
    Exists,
    /// The store refused our credentials or our rights, or there are none.
    Denied,
    /// The bucket, container or directory is not there.
    NoBucket,
    /// The store asked us to slow down.
    Throttled,
    /// No connection, a broken one, or a failing server.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// The store is full.
    NoSpace,
    /// The URL or a setting cannot work.
    Config,
    /// Anything else.
    Other,
}

impl Class {
    /// Every class, in the order of the counters.
    pub const ALL: [Class; 10] = [
        Class::NotFound,
        Class::Exists,
        Class::Denied,
        Class::NoBucket,
        Class::Throttled,
        Class::Unreachable,
        Class::Timeout,
        Class::NoSpace,
        Class::Config,
        Class::Other,
    ];

    /// A stable word for metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::NotFound => "not-found",
            Class::Exists => "exists",
            Class::Denied => "denied",
            Class::NoBucket => "no-bucket",
            Class::Throttled => "throttled",
            Class::Unreachable => "unreachable",
            Class::Timeout => "timeout",
            Class::NoSpace => "no-space",
            Class::Config => "config",
            Class::Other => "other",
        }
    }
}

/// A failed store operation.
///
/// The reason is text, not a source error: it went through redaction, and a source would carry the
/// unredacted original along. After [`Class::Timeout`] or [`Class::Unreachable`] a write may have
/// happened all the same.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {op} {}: {reason}", self.object())]
pub struct StoreError {
    op: Op,
    kind: Kind,
    key: String,
    store: Arc<str>,
    class: Class,
    reason: String,
}

impl StoreError {
    pub(super) fn new(
        op: Op,
        kind: Kind,
        store: &Arc<str>,
        key: &str,
        class: Class,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            op,
            kind,
            key: key.to_owned(),
            store: Arc::clone(store),
            class,
            reason: reason.into(),
        }
    }

    /// What was asked.
    pub fn op(&self) -> Op {
        self.op
    }

    /// The key, relative to the store's root; empty if the operation has none.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The kind of failure.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Why, without secrets.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The object is not there.
    pub fn is_not_found(&self) -> bool {
        self.class == Class::NotFound
    }

    /// A conditional create found the key taken. The one who took it may be an earlier attempt of the
    /// same call whose answer was lost.
    pub fn is_exists(&self) -> bool {
        self.class == Class::Exists
    }

    /// The same request can succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.class,
            Class::Throttled | Class::Unreachable | Class::Timeout
        )
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        let file = self.kind == Kind::File;
        let text = match self.class {
            Class::NotFound | Class::Exists | Class::Other => return None,
            Class::Denied if self.reason.contains("TimeTooSkewed") => {
                "this machine's clock differs from the store's: set it (NTP)"
            }
            Class::Denied if file => "let the user Lifeboat runs as write to the directory",
            Class::Denied => match self.kind {
                Kind::S3 => {
                    "check access-key-id, secret-access-key and the key's rights (s3:GetObject, \
                     s3:PutObject, s3:DeleteObject, s3:ListBucket, s3:AbortMultipartUpload)"
                }
                Kind::Azure => {
                    "check account-name and account-key or sas-token, and the key's rights"
                }
                _ => "check the service account's key and its role (Storage Object Admin)",
            },
            Class::NoBucket if file => "create the directory above it, or mount the volume",
            Class::NoBucket => "create the bucket or container, or correct its name and region",
            Class::Throttled => {
                "nothing to do: it is tried again; if it stays, ask the provider for more"
            }
            Class::Unreachable => "check the endpoint, DNS, firewall and whether the server runs",
            Class::Timeout => "check the network and the endpoint's port; it is tried again",
            Class::NoSpace => "free space in the store or shorten retention",
            Class::Config => "correct the store's settings; see docs/stores.md",
        };
        Some(text.to_owned())
    }

    /// The object's full URL, or the store's.
    fn object(&self) -> String {
        if self.key.is_empty() {
            self.store.to_string()
        } else {
            format!("{}/{}", self.store.trim_end_matches('/'), self.key)
        }
    }
}

/// The directory that a `file://` store lies in is missing.
#[derive(Debug, thiserror::Error)]
#[error("directory {0} does not exist")]
pub(super) struct MissingDirectory(pub(super) String);

/// No AWS credentials anywhere in the chain.
#[derive(Debug, thiserror::Error)]
#[error("no credentials: {0}")]
pub(super) struct NoCredentials(pub(super) String);

/// What the system's resolver says of a name that it does not know, or cannot ask for.
const NO_NAME: &str = "failed to lookup address information";

/// Finds the class and a short reason (not yet redacted) for a client's error.
pub(super) fn classify(error: &object_store::Error) -> (Class, String) {
    let text = error.to_string();
    let reason = reason(error, &text);
    let class = by_variant(error, &text)
        .or_else(|| by_source(error))
        .or_else(|| by_text(&text))
        .or_else(|| reason.contains(NO_NAME).then_some(Class::Unreachable))
        .unwrap_or(Class::Other);
    (class, reason)
}

fn by_variant(error: &object_store::Error, text: &str) -> Option<Class> {
    use object_store::Error::*;
    // Clients hand out the same answer as different variants, depending on the request.
    const NO_BUCKET: [&str; 5] = [
        "NoSuchBucket",
        "ContainerNotFound",
        "ContainerBeingDeleted",
        "bucket does not exist",
        // Azure's answer for an account that does not exist.
        "ResourceNotFound",
    ];
    if NO_BUCKET.iter().any(|code| text.contains(code)) {
        return Some(Class::NoBucket);
    }
    Some(match error {
        NotFound { .. } => Class::NotFound,
        AlreadyExists { .. } | Precondition { .. } => Class::Exists,
        PermissionDenied { .. } | Unauthenticated { .. } => Class::Denied,
        InvalidPath { .. } | UnknownConfigurationKey { .. } => Class::Config,
        _ => return None,
    })
}

fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |e: &&'a (dyn StdError + 'static)| {
        (*e).source()
    })
}

fn by_source(error: &object_store::Error) -> Option<Class> {
    chain(error).find_map(|e| {
        if e.is::<MissingDirectory>() {
            return Some(Class::NoBucket);
        }
        if e.is::<NoCredentials>() {
            return Some(Class::Denied);
        }
        if let Some(http) = e.downcast_ref::<HttpError>() {
            return match http.kind() {
                HttpErrorKind::Timeout => Some(Class::Timeout),
                HttpErrorKind::Connect | HttpErrorKind::Request | HttpErrorKind::Interrupted => {
                    Some(Class::Unreachable)
                }
                _ => None,
            };
        }
        match e.downcast_ref::<io::Error>()?.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Class::NoSpace),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Some(Class::Denied)
            }
            io::ErrorKind::TimedOut => Some(Class::Timeout),
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Some(Class::Unreachable),
            _ => None,
        }
    })
}

/// The client keeps status and body of an answer only as text.
fn by_text(text: &str) -> Option<Class> {
    const CODES: [(&str, Class); 17] = [
        ("XMinioStorageFull", Class::NoSpace),
        ("status code: 507", Class::NoSpace),
        ("ExpiredToken", Class::Denied),
        ("InvalidToken", Class::Denied),
        ("InvalidAccessKeyId", Class::Denied),
        ("SignatureDoesNotMatch", Class::Denied),
        ("AuthenticationFailed", Class::Denied),
        ("status code: 401", Class::Denied),
        ("status code: 403", Class::Denied),
        ("status code: 404", Class::NotFound),
        ("SlowDown", Class::Throttled),
        ("status code: 429", Class::Throttled),
        ("status code: 503", Class::Throttled),
        ("Received redirect", Class::Config),
        ("status code: 301", Class::Config),
        ("AuthorizationHeaderMalformed", Class::Config),
        ("status code: 5", Class::Unreachable),
    ];
    CODES
        .iter()
        .find(|(code, _)| text.contains(code))
        .map(|(_, class)| *class)
}

/// Provider's code and message if the answer carries them, else the innermost error.
fn reason(error: &object_store::Error, text: &str) -> String {
    let tag = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(body, _)| body)
    };
    let full = match (tag("Code"), tag("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        _ => chain(error)
            .last()
            .map_or_else(|| text.to_owned(), ToString::to_string),
    };
    let mut line = full.split_whitespace().collect::<Vec<_>>().join(" ");
    // Azure appends an id and the time: two equal failures would never look equal.
    if let Some(at) = line.find(" RequestId:") {
        line.truncate(at);
    }
    if line.chars().count() > MAX_REASON_CHARS {
        line = line.chars().take(MAX_REASON_CHARS).collect::<String>() + "...";
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> object_store::Error {
        object_store::Error::Generic {
            store: "test",
            source: source.into(),
        }
    }

    fn missing(body: &str) -> object_store::Error {
        object_store::Error::NotFound {
            path: "k".into(),
            source: body.to_owned().into(),
        }
    }

    #[test]
    fn answers_are_classified() {
        let http = |kind| generic(HttpError::new(kind, io::Error::other("x")));
        let cases = [
            (missing("gone"), Class::NotFound),
            (missing("<Code>NoSuchBucket</Code>"), Class::NoBucket),
            (missing("<Code>ContainerNotFound</Code>"), Class::NoBucket),
            (
                generic("status code: 404: <Code>NoSuchBucket</Code>"),
                Class::NoBucket,
            ),
            (http(HttpErrorKind::Timeout), Class::Timeout),
            (http(HttpErrorKind::Connect), Class::Unreachable),
            (
                generic(io::Error::from(io::ErrorKind::StorageFull)),
                Class::NoSpace,
            ),
            (generic(io::Error::from_raw_os_error(28)), Class::NoSpace),
            (generic(MissingDirectory("/x".into())), Class::NoBucket),
            (generic(NoCredentials("none".into())), Class::Denied),
            (generic("non-2xx status code: 503: busy"), Class::Throttled),
            (
                generic("non-2xx status code: 500: oops"),
                Class::Unreachable,
            ),
            (
                generic("status code: 400: <Code>ExpiredToken</Code>"),
                Class::Denied,
            ),
            (generic("what"), Class::Other),
        ];
        for (error, class) in cases {
            assert_eq!(classify(&error).0, class, "{error}");
        }
    }

    #[test]
    fn reason_is_the_providers_own_words_on_one_line() {
        let body = "<Error>\n<Code>AccessDenied</Code><Message>No\n way.</Message></Error>";
        assert_eq!(classify(&generic(body)).1, "AccessDenied: No way.");
        let long = "x".repeat(5000);
        assert!(classify(&generic(long)).1.len() < 400);
    }

    #[test]
    fn only_outages_are_retryable_and_every_actionable_class_has_a_hint() {
        for class in Class::ALL {
            for kind in [
                Kind::S3,
                Kind::Azure,
                Kind::Google,
                Kind::File,
                Kind::Memory,
            ] {
                let store = Arc::from("s3://b/r");
                let error = StoreError::new(Op::Put, kind, &store, "a/b", class, "why");
                assert_eq!(error.to_string(), "cannot write s3://b/r/a/b: why");
                let silent = matches!(class, Class::NotFound | Class::Exists | Class::Other);
                assert_eq!(error.hint().is_none(), silent);
                let outage = matches!(
                    class,
                    Class::Throttled | Class::Unreachable | Class::Timeout
                );
                assert_eq!(error.is_retryable(), outage);
            }
        }
    }
}
