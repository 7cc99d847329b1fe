//! URLs, credentials and clients.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use object_store::aws::{AmazonS3Builder, AwsCredential, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, CredentialProvider, ObjectStore, RetryConfig};
use url::Url;

use super::{Kind, Store, StoreError};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One attempt of one request, parts of 8 MiB and more included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Retries of one request: the daemon itself tries again for ever, so an outage must surface soon.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);
/// Credentials are fetched again this long before they end.
const CREDENTIALS_MARGIN: Duration = Duration::from_secs(5 * 60);

/// A store as configured. What is `None` comes from the environment or the provider's own chain.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StoreSpec {
    /// `s3://`, `gs://`, `abs://`, `az://`, `file://`, `memory://`.
    pub url: String,
    /// For S3-compatible servers, Azurite and emulators.
    pub endpoint: Option<String>,
    /// S3.
    pub region: Option<String>,
    /// S3.
    pub access_key_id: Option<String>,
    /// S3.
    pub secret_access_key: Option<String>,
    /// S3.
    pub session_token: Option<String>,
    /// Profile of the AWS configuration files.
    pub profile: Option<String>,
    /// S3: bucket in the path instead of the host name. Default: with an endpoint.
    pub force_path_style: Option<bool>,
    /// Azure.
    pub account_name: Option<String>,
    /// Azure.
    pub account_key: Option<String>,
    /// Azure.
    pub sas_token: Option<String>,
    /// Google: path of a service account file, or its JSON.
    pub google_credentials: Option<String>,
}

impl fmt::Debug for StoreSpec {
    /// Only what is no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSpec")
            .field("url", &redact(&self.url))
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// A URL without user information and query.
fn redact(url: &str) -> String {
    match Url::parse(url) {
        Ok(mut u) => {
            u.set_query(None);
            // Fails only for URLs that cannot have any.
            let _ = u.set_password(None);
            u.to_string().trim_end_matches('/').to_owned()
        }
        Err(_) => url.split('?').next().unwrap_or_default().to_owned(),
    }
}

pub(super) async fn open(spec: &StoreSpec) -> Result<Store, StoreError> {
    let display = redact(&spec.url);
    let bad = |reason: String| StoreError::config(&display, reason);
    let url = Url::parse(&spec.url).map_err(|e| bad(format!("not a URL: {e}")))?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let root = Path::from(url.path().trim_matches('/'));
    let built =
        |result: object_store::Result<Arc<dyn ObjectStore>>| result.map_err(|e| bad(e.to_string()));
    let need = |what: &str| {
        if host.is_empty() {
            Err(bad(format!("the URL names no {what}")))
        } else {
            Ok(())
        }
    };
    let (kind, inner, root): (Kind, Arc<dyn ObjectStore>, Path) = match url.scheme() {
        "s3" => {
            need("bucket")?;
            (Kind::S3, s3(spec, &host).await.map_err(bad)?, root)
        }
        "gs" => {
            need("bucket")?;
            (Kind::Google, built(google(spec, &host))?, root)
        }
        "abs" | "az" | "azure" => {
            need("container")?;
            (Kind::Azure, built(azure(spec, &url, &host))?, root)
        }
        "file" => {
            let folder = if host.is_empty() {
                url.path().to_owned()
            } else {
                format!("/{host}{}", url.path())
            };
            let root = Path::from_absolute_path(&folder).map_err(|e| bad(e.to_string()))?;
            (
                Kind::File,
                Arc::new(LocalFileSystem::new().with_fsync(true)),
                root,
            )
        }
        "memory" => (Kind::Memory, Arc::new(InMemory::new()), root),
        other => {
            return Err(bad(format!(
                "\"{other}://\" is not supported: use s3, gs, abs, az or file"
            )));
        }
    };
    Ok(Store::from_object_store(kind, inner, root, display))
}

fn retry() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(2),
        base: 2.0,
    };
    RetryConfig {
        backoff,
        max_retries: 4,
        retry_timeout: RETRY_TIMEOUT,
    }
}

fn client(endpoint: Option<&str>) -> ClientOptions {
    let plain = endpoint.is_some_and(|e| e.starts_with("http://"));
    ClientOptions::new()
        .with_allow_http(plain)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT)
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

async fn s3(spec: &StoreSpec, bucket: &str) -> Result<Arc<dyn ObjectStore>, String> {
    let endpoint = spec
        .endpoint
        .clone()
        .or_else(|| env("AWS_ENDPOINT_URL_S3"))
        .or_else(|| env("AWS_ENDPOINT_URL"));
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_retry(retry())
        .with_client_options(client(endpoint.as_deref()))
        .with_conditional_put(S3ConditionalPut::ETagMatch);
    let path_style = spec.force_path_style.unwrap_or(endpoint.is_some());
    builder = builder.with_virtual_hosted_style_request(!path_style);
    let mut region = spec
        .region
        .clone()
        .or_else(|| env("AWS_REGION"))
        .or_else(|| env("AWS_DEFAULT_REGION"));
    match (&spec.access_key_id, &spec.secret_access_key) {
        (Some(id), Some(secret)) => {
            builder = builder
                .with_access_key_id(id)
                .with_secret_access_key(secret);
            if let Some(token) = &spec.session_token {
                builder = builder.with_token(token);
            }
        }
        (None, None) => {
            let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest());
            if let Some(profile) = &spec.profile {
                loader = loader.profile_name(profile);
            }
            let config = loader.load().await;
            region = region.or_else(|| config.region().map(ToString::to_string));
            let provider = config
                .credentials_provider()
                .ok_or("no AWS credentials are configured")?;
            builder = builder.with_credentials(Arc::new(AwsChain {
                provider,
                cached: tokio::sync::Mutex::default(),
            }));
        }
        _ => return Err("access-key-id and secret-access-key belong together".into()),
    }
    if let Some(endpoint) = &endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder = builder.with_region(region.unwrap_or_else(|| "us-east-1".into()));
    Ok(Arc::new(builder.build().map_err(|e| e.to_string())?))
}

fn google(spec: &StoreSpec, bucket: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_retry(retry())
        .with_client_options(client(spec.endpoint.as_deref()));
    match &spec.google_credentials {
        Some(json) if json.trim_start().starts_with('{') => {
            builder = builder.with_service_account_key(json)
        }
        Some(path) => builder = builder.with_service_account_path(path),
        None => {}
    }
    if let Some(endpoint) = &spec.endpoint {
        builder = builder.with_base_url(endpoint);
        if spec.google_credentials.is_none() {
            builder = builder.with_skip_signature(true);
        }
    }
    Ok(Arc::new(builder.build()?))
}

/// `abs://CONTAINER/PATH`, or Litestream's `abs://ACCOUNT@CONTAINER/PATH`.
fn azure(
    spec: &StoreSpec,
    url: &Url,
    container: &str,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_retry(retry())
        .with_client_options(client(spec.endpoint.as_deref()));
    let account = spec
        .account_name
        .clone()
        .or_else(|| Some(url.username().to_owned()).filter(|u| !u.is_empty()));
    if let Some(account) = account {
        builder = builder.with_account(account);
    }
    if let Some(key) = &spec.account_key {
        builder = builder.with_access_key(key);
    }
    if let Some(token) = &spec.sas_token {
        let pairs = url::form_urlencoded::parse(token.trim_start_matches('?').as_bytes())
            .into_owned()
            .collect::<Vec<_>>();
        builder = builder.with_sas_authorization(pairs);
    }
    if let Some(endpoint) = &spec.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    Ok(Arc::new(builder.build()?))
}

/// The whole AWS chain (environment, profile, web identity, container and instance roles) behind `object_store`'s own trait.
#[derive(Debug)]
struct AwsChain {
    provider: SharedCredentialsProvider,
    cached: tokio::sync::Mutex<Option<(Arc<AwsCredential>, Option<SystemTime>)>>,
}

#[async_trait::async_trait]
impl CredentialProvider for AwsChain {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut cached = self.cached.lock().await;
        if let Some((credential, expiry)) = cached.as_ref()
            && expiry.is_none_or(|at| at > SystemTime::now() + CREDENTIALS_MARGIN)
        {
            return Ok(credential.clone());
        }
        let found = self.provider.provide_credentials().await.map_err(|e| {
            object_store::Error::Unauthenticated {
                path: "AWS credentials".into(),
                source: Box::new(e),
            }
        })?;
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        });
        *cached = Some((credential.clone(), found.expiry()));
        Ok(credential)
    }
}
