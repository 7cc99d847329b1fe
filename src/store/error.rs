use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::Store;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// No such object.
    NotFound,
    /// The key is taken.
    Exists,
    /// Wrong or missing credentials, or no permission.
    Denied,
    /// No such bucket or container.
    NoBucket,
    /// Too many requests.
    Throttled,
    /// No connection.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// The disk of a `file://` store is full.
    NoSpace,
    /// The store cannot do this.
    Unsupported,
    /// The configuration of the store.
    Config,
    /// Anything else.
    Other,
}

impl Class {
    /// The word in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::Exists => "exists",
            Self::Denied => "denied",
            Self::NoBucket => "no-bucket",
            Self::Throttled => "throttled",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::NoSpace => "no-space",
            Self::Unsupported => "unsupported",
            Self::Config => "config",
            Self::Other => "other",
        }
    }
}

/// A failed request: what, where, why.
#[derive(Debug, Error)]
#[error("{store}: cannot {op} {key}: {reason}")]
pub struct StoreError {
    store: String,
    op: &'static str,
    key: String,
    class: Class,
    reason: String,
    #[source]
    source: Option<Box<object_store::Error>>,
}

impl StoreError {
    pub(super) fn from_source(
        store: &Store,
        op: &'static str,
        key: &str,
        source: object_store::Error,
    ) -> Self {
        let class = classify(&source);
        let reason = reason(class, &source);
        Self {
            store: store.display().to_owned(),
            op,
            key: key.to_owned(),
            class,
            reason,
            source: Some(Box::new(source)),
        }
    }

    pub(super) fn timeout(store: &Store, op: &'static str, key: &str, limit: Duration) -> Self {
        let reason = format!("no answer within {} s", limit.as_secs());
        Self {
            store: store.display().to_owned(),
            op,
            key: key.to_owned(),
            class: Class::Timeout,
            reason,
            source: None,
        }
    }

    pub(super) fn exists(store: &Store, key: &str) -> Self {
        let reason = "an object is there already".to_owned();
        Self {
            store: store.display().to_owned(),
            op: "create",
            key: key.to_owned(),
            class: Class::Exists,
            reason,
            source: None,
        }
    }

    pub(super) fn aborted(store: &Store, key: &str) -> Self {
        let reason = "the upload was given up; nothing is visible there".to_owned();
        Self {
            store: store.display().to_owned(),
            op: "write",
            key: key.to_owned(),
            class: Class::Other,
            reason,
            source: None,
        }
    }

    pub(super) fn local(path: &Path, error: std::io::Error) -> Self {
        let class = if error.kind() == std::io::ErrorKind::StorageFull {
            Class::NoSpace
        } else {
            Class::Other
        };
        let store = "local file".to_owned();
        Self {
            store,
            op: "use",
            key: path.display().to_string(),
            class,
            reason: error.to_string(),
            source: None,
        }
    }

    pub(super) fn config(store: &str, reason: String) -> Self {
        Self {
            store: store.to_owned(),
            op: "open",
            key: "store".into(),
            class: Class::Config,
            reason,
            source: None,
        }
    }

    /// Its kind.
    pub fn class(&self) -> Class {
        self.class
    }

    /// No such object.
    pub fn is_not_found(&self) -> bool {
        self.class == Class::NotFound
    }

    /// The key is taken.
    pub fn is_exists(&self) -> bool {
        self.class == Class::Exists
    }

    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        Some(
            match self.class {
                Class::Denied => "check the access key and secret, and that they may read, write, list and delete in this bucket",
                Class::NoBucket => "create the bucket, or correct its name in the store's URL",
                Class::Throttled => "the store asks to slow down; it is retried by itself",
                Class::Unreachable | Class::Timeout => "check the endpoint and the network; it is retried by itself",
                Class::NoSpace => "free space on the store's disk",
                Class::Config => "see docs/stores.md for the URL and keys of each kind of store",
                Class::NotFound | Class::Exists | Class::Unsupported | Class::Other => return None,
            }
            .to_owned(),
        )
    }
}

fn classify(error: &object_store::Error) -> Class {
    use object_store::Error as E;
    let text = chain(error);
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if has(&[
        "NoSuchBucket",
        "ContainerNotFound",
        "The specified bucket does not exist",
    ]) {
        return Class::NoBucket;
    }
    match error {
        E::NotFound { .. } => Class::NotFound,
        E::AlreadyExists { .. } | E::Precondition { .. } => Class::Exists,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => Class::Denied,
        E::NotImplemented { .. } | E::NotSupported { .. } => Class::Unsupported,
        _ if has(&["No space left", "StorageFull"]) => Class::NoSpace,
        _ if has(&[
            "403",
            "401",
            "AccessDenied",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "Permission denied",
        ]) =>
        {
            Class::Denied
        }
        _ if has(&["SlowDown", "429", "503"]) => Class::Throttled,
        _ if has(&["timed out", "Timeout"]) => Class::Timeout,
        _ if has(&[
            "error sending request",
            "onnection refused",
            "dns error",
            "onnect error",
            "onnection reset",
        ]) =>
        {
            Class::Unreachable
        }
        _ => Class::Other,
    }
}

/// The last cause says most; URLs with signatures in them are left out.
fn reason(class: Class, error: &object_store::Error) -> String {
    let text = match class {
        Class::NotFound => return "no such object".into(),
        Class::Exists => return "an object is there already".into(),
        Class::NoBucket => return "no such bucket".into(),
        _ => chain(error),
    };
    let cut = text.split('?').next().unwrap_or(&text);
    cut.chars().take(400).collect()
}

fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(e) = source {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = e.source();
    }
    text
}
