//! From a [`StoreSpec`] to a client: which kind, which bucket, which root, what limits of time.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::bucket::Bucket;
use super::error::{Class, classify};
use super::file::DirectoryStore;
use super::spec::StoreSpec;
use super::{Kind, aws};

/// A server on the other side of the world answers a SYN in well under a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Kept short of the idle limits of common servers and load balancers (60 s and more), so that a
/// request seldom meets a connection that was just closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long one request is repeated. An outage is reported after this and a last attempt.
const RETRY_BUDGET: Duration = Duration::from_secs(8);

/// Pauses between repeats stay under this, so that the budget is used and not overslept.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// How the environment is read; tests bring their own.
pub(super) type Env<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

/// Why a store cannot be opened, before it is known by name.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) class: Class,
    pub(super) reason: String,
}

impl Problem {
    pub(super) fn new(class: Class, reason: impl Into<String>) -> Self {
        Self {
            class,
            reason: reason.into(),
        }
    }

    pub(super) fn config(reason: impl Into<String>) -> Self {
        Self::new(Class::Config, reason)
    }
}

impl From<object_store::Error> for Problem {
    /// Builders fail only on what they were given.
    fn from(error: object_store::Error) -> Self {
        let (class, reason) = classify(&error);
        let class = if class == Class::Other {
            Class::Config
        } else {
            class
        };
        Self { class, reason }
    }
}

/// A client and where in it the store begins.
pub(super) struct Opened {
    pub(super) inner: Arc<dyn ObjectStore>,
    pub(super) root: Path,
    /// S3's, to be asked about itself.
    pub(super) bucket: Option<Bucket>,
}

/// The kind of store a URL means.
pub(super) fn kind(url: &Url) -> Option<Kind> {
    Some(match url.scheme() {
        "s3" => Kind::S3,
        "gs" => Kind::Google,
        "abs" | "az" | "azure" => Kind::Azure,
        "file" => Kind::File,
        "memory" => Kind::Memory,
        _ => return None,
    })
}

/// Makes the client.
pub(super) async fn open(kind: Kind, spec: &StoreSpec, env: Env<'_>) -> Result<Opened, Problem> {
    let spec = &with_query(spec)?;
    let mut bucket = None;
    let (inner, root): (Arc<dyn ObjectStore>, Path) = match kind {
        Kind::S3 => {
            let (client, asked) = aws::build(spec, env, host(&spec.url, "bucket")?).await?;
            bucket = Some(asked);
            (client, url_root(&spec.url)?)
        }
        Kind::Google => (google(spec, env)?, url_root(&spec.url)?),
        Kind::Azure => (azure(spec, env)?, url_root(&spec.url)?),
        Kind::Memory => (memory(&spec.url), url_root(&spec.url)?),
        Kind::File => {
            let directory = spec.url.to_file_path().map_err(|()| {
                Problem::config("not an absolute path; write file:///path, with three slashes")
            })?;
            let root =
                Path::from_absolute_path(&directory).map_err(|e| Problem::config(e.to_string()))?;
            (Arc::new(DirectoryStore::new(directory)), root)
        }
    };
    Ok(Opened {
        inner,
        root,
        bucket,
    })
}

/// Settings may be in the URL's query, as Litestream allows: `s3://bucket/path?endpoint=...`.
fn with_query(spec: &StoreSpec) -> Result<StoreSpec, Problem> {
    let mut out = spec.clone();
    for (key, value) in spec.url.query_pairs() {
        let value = value.into_owned();
        match key.as_ref() {
            "endpoint" => out.endpoint = Some(value),
            "region" => out.region = Some(value),
            "forcePathStyle" | "force-path-style" => {
                let parsed = value.parse::<bool>();
                let style =
                    parsed.map_err(|_| Problem::config(format!("{key} is true or false")))?;
                out.force_path_style = Some(style);
            }
            _ => return Err(Problem::config(format!("unknown setting {key} in the URL"))),
        }
    }
    Ok(out)
}

fn host<'a>(url: &'a Url, what: &str) -> Result<&'a str, Problem> {
    url.host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| Problem::config(format!("the URL has no {what}")))
}

fn url_root(url: &Url) -> Result<Path, Problem> {
    Path::from_url_path(url.path()).map_err(|e| Problem::config(e.to_string()))
}

/// No limit for a whole request here: a part of many MiB on a slow line is slow, not dead. The caller
/// bounds each operation by its size.
pub(super) fn client_options(allow_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout_disabled()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .with_allow_http(allow_http)
}

pub(super) fn retry_config() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: MAX_BACKOFF,
            base: 2.0,
        },
        // The time is the bound; this only keeps a server that refuses at once from being hammered.
        max_retries: 20,
        retry_timeout: RETRY_BUDGET,
    }
}

/// An endpoint as people write it. Without a scheme it is https: plain http must be asked for.
pub(super) fn endpoint_url(text: &str) -> Result<Url, Problem> {
    let full = match text.contains("://") {
        true => text.to_owned(),
        false => format!("https://{text}"),
    };
    let url = Url::parse(&full).map_err(|e| Problem::config(format!("endpoint: {e}")))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(Problem::config(format!(
            "endpoint begins with {other}://, not https://"
        ))),
    }
}

pub(super) fn allow_http(endpoint: Option<&Url>) -> bool {
    endpoint.is_some_and(|url| url.scheme() == "http")
}

/// Account, container and endpoint of an Azure URL. Three forms:
/// `abs://container/path`, `abs://container@account.blob.core.windows.net/path`, and Litestream's
/// `abs://account@container/path`. A dot tells them apart: container names have none.
fn azure_parts(url: &Url) -> Result<(Option<String>, String, Option<Url>), Problem> {
    let host = host(url, "container")?;
    let user = url.username();
    Ok(match (user.is_empty(), host.split_once('.')) {
        (true, None) => (None, host.to_owned(), None),
        (true, Some(_)) => {
            let reason = format!(
                "no container: write {}://container@{host}/path",
                url.scheme()
            );
            return Err(Problem::config(reason));
        }
        (false, None) => (Some(user.to_owned()), host.to_owned(), None),
        (false, Some((account, _))) => {
            let endpoint = endpoint_url(host)?;
            (Some(account.to_owned()), user.to_owned(), Some(endpoint))
        }
    })
}

fn azure(spec: &StoreSpec, env: Env<'_>) -> Result<Arc<dyn ObjectStore>, Problem> {
    let (url_account, container, url_endpoint) = azure_parts(&spec.url)?;
    let first = |names: &[&str]| names.iter().find_map(|name| env(name));
    let account = spec.account_name.clone().or(url_account).or_else(|| {
        first(&[
            "LITESTREAM_AZURE_ACCOUNT_NAME",
            "AZURE_STORAGE_ACCOUNT_NAME",
            "AZURE_STORAGE_ACCOUNT",
        ])
    });
    let account = account.ok_or_else(|| Problem::config("no account-name"))?;
    let endpoint = match &spec.endpoint {
        Some(text) => Some(endpoint_url(text)?),
        None => url_endpoint,
    };
    // The client itself reads what is left: client secret, federated token, managed identity.
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_account(account)
        .with_container_name(container)
        .with_client_options(client_options(allow_http(endpoint.as_ref())))
        .with_retry(retry_config());
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/').to_owned());
    }
    let env_key = || {
        first(&[
            "LITESTREAM_AZURE_ACCOUNT_KEY",
            "AZURE_STORAGE_ACCOUNT_KEY",
            "AZURE_STORAGE_KEY",
        ])
    };
    let builder = match (&spec.account_key, &spec.sas_token) {
        (Some(key), _) => builder
            .with_access_key(key)
            .with_credential_type("access_key"),
        (None, Some(sas)) => sas_authorization(builder, sas),
        (None, None) => match (env_key(), env("AZURE_STORAGE_SAS_TOKEN")) {
            (Some(key), _) => builder
                .with_access_key(key)
                .with_credential_type("access_key"),
            (None, Some(sas)) => sas_authorization(builder, &sas),
            (None, None) => builder,
        },
    };
    Ok(Arc::new(builder.build()?))
}

fn sas_authorization(builder: MicrosoftAzureBuilder, sas: &str) -> MicrosoftAzureBuilder {
    let pairs: Vec<(String, String)> =
        url::form_urlencoded::parse(sas.trim_start_matches('?').as_bytes())
            .into_owned()
            .collect();
    builder
        .with_sas_authorization(pairs)
        .with_credential_type("sas_token")
}

fn google(spec: &StoreSpec, env: Env<'_>) -> Result<Arc<dyn ObjectStore>, Problem> {
    let endpoint = spec.endpoint.as_deref().map(endpoint_url).transpose()?;
    let given = spec
        .google_credentials
        .clone()
        .or_else(|| env("GOOGLE_APPLICATION_CREDENTIALS"));
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(host(&spec.url, "bucket")?)
        .with_client_options(client_options(allow_http(endpoint.as_ref())))
        .with_retry(retry_config());
    if let Some(endpoint) = &endpoint {
        builder = builder.with_base_url(endpoint.as_str().trim_end_matches('/'));
    }
    builder = match given {
        Some(json) if json.trim_start().starts_with('{') => builder.with_service_account_key(json),
        Some(path) => builder.with_application_credentials(path),
        // Emulators take any token; without one the client would ask the metadata server.
        None if endpoint.is_some() => builder.with_bearer_token("anonymous"),
        None => builder,
    };
    Ok(Arc::new(builder.build()?))
}

/// `memory://name` is one store for the whole process; `memory://` is a new one each time.
fn memory(url: &Url) -> Arc<dyn ObjectStore> {
    type Named = Mutex<Vec<(String, Arc<InMemory>)>>;
    static NAMED: LazyLock<Named> = LazyLock::new(Named::default);
    let name = url.host_str().unwrap_or_default();
    if name.is_empty() {
        return Arc::new(InMemory::new());
    }
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, store)) = named.iter().find(|(known, _)| known == name) {
        return Arc::clone(store) as Arc<dyn ObjectStore>;
    }
    let store = Arc::new(InMemory::new());
    named.push((name.to_owned(), Arc::clone(&store)));
    store
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn three_forms_of_azure_urls() {
        let parts = |text| azure_parts(&url(text)).ok().unwrap();
        assert_eq!(parts("abs://box/p"), (None, "box".into(), None));
        assert_eq!(
            parts("abs://acct@box/p"),
            (Some("acct".into()), "box".into(), None)
        );
        let (account, container, endpoint) = parts("az://box@acct.blob.core.windows.net/p");
        assert_eq!(
            (account.as_deref(), container.as_str()),
            (Some("acct"), "box")
        );
        assert_eq!(
            endpoint.unwrap().as_str(),
            "https://acct.blob.core.windows.net/"
        );
        assert!(azure_parts(&url("abs://acct.blob.core.windows.net/p")).is_err());
        assert!(azure_parts(&url("abs:///p")).is_err());
    }

    #[test]
    fn plain_http_must_be_written() {
        assert_eq!(endpoint_url("host:9000").ok().unwrap().scheme(), "https");
        assert!(allow_http(endpoint_url("http://host").ok().as_ref()));
        assert!(!allow_http(endpoint_url("https://host").ok().as_ref()));
        assert!(!allow_http(None));
        assert!(endpoint_url("ftp://host").is_err());
    }

    #[tokio::test]
    async fn wrong_settings_are_config_errors() {
        let none = |_: &str| None;
        for text in [
            "s3:///x",
            "gs:///x",
            "abs://box/x",
            "s3://b/x?acl=public",
            "s3://b/x?forcePathStyle=1",
        ] {
            let mut spec = StoreSpec::new(url(text));
            spec.region = Some("r".into());
            let kind = kind(&spec.url).unwrap();
            let problem = open(kind, &spec, &none).await.err().unwrap();
            assert_eq!(problem.class, Class::Config, "{text}: {}", problem.reason);
        }
        assert_eq!(kind(&url("ftp://x/y")), None);
    }

    #[test]
    fn named_memory_is_shared() {
        let (a, b) = (
            memory(&url("memory://shared-name")),
            memory(&url("memory://shared-name")),
        );
        assert!(Arc::ptr_eq(&a, &b));
        let (a, b) = (memory(&url("memory://")), memory(&url("memory://")));
        assert!(!Arc::ptr_eq(&a, &b));
    }
}
