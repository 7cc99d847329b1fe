//! S3: region, addressing style and credentials.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::ProfileFileRegionProvider;
use aws_credential_types::provider::ProvideCredentials;
use object_store::aws::{AmazonS3Builder, AwsCredential, resolve_bucket_region};
use object_store::{CredentialProvider, ObjectStore};

use super::bucket::Bucket;
use super::error::{Class, NoCredentials};
use super::open::{Env, Problem, allow_http, client_options, endpoint_url, retry_config};
use super::spec::StoreSpec;

/// Credentials are renewed this long before they expire: longer than any one request with its repeats.
const RENEW_BEFORE: Duration = Duration::from_secs(5 * 60);

/// Bound for the whole credentials chain: its last link, the instance metadata service, is silently
/// dropped packets on most machines.
const CHAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The region that servers other than AWS expect in signatures, if they look at all.
const DEFAULT_REGION: &str = "us-east-1";

/// Makes the client. Asks the network only for the bucket's region, and only if it is AWS and nothing
/// names the region.
pub(super) async fn build(
    spec: &StoreSpec,
    env: Env<'_>,
    bucket: &str,
) -> Result<(Arc<dyn ObjectStore>, Bucket), Problem> {
    let endpoint = spec
        .endpoint
        .clone()
        .or_else(|| env("AWS_ENDPOINT_URL_S3"))
        .or_else(|| env("AWS_ENDPOINT_URL"))
        .map(|text| endpoint_url(&text))
        .transpose()?;
    let region = region(spec, env, bucket, endpoint.is_some()).await?;
    let path_style = spec
        .force_path_style
        .unwrap_or(endpoint.is_some() || bucket.contains('.'));
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&region)
        .with_virtual_hosted_style_request(!path_style)
        // One plain DELETE each: several S3 servers lack or limit the bulk call, and deletes are free.
        .with_disable_bulk_delete(true)
        .with_retry(retry_config());
    let options = client_options(allow_http(endpoint.as_ref()));
    builder = builder.with_client_options(options.clone());
    let mut url = match &endpoint {
        Some(endpoint) => endpoint.clone(),
        None => endpoint_url(&format!("s3.{region}.amazonaws.com"))?,
    };
    if path_style {
        let path = format!("{}/{bucket}", url.path().trim_end_matches('/'));
        url.set_path(&path);
    } else {
        let host = format!("{bucket}.{}", url.host_str().unwrap_or_default());
        url.set_host(Some(&host))
            .map_err(|e| Problem::config(format!("endpoint with bucket in host name: {e}")))?;
    }
    if let Some(mut endpoint) = endpoint {
        if !path_style {
            // The client wants the bucket in the endpoint's host name then.
            endpoint = url.clone();
        }
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    builder = match static_keys(spec, env)? {
        Some(keys) => {
            let builder = builder
                .with_access_key_id(keys.key_id)
                .with_secret_access_key(keys.secret_key);
            match keys.token {
                Some(token) => builder.with_token(token),
                None => builder,
            }
        }
        None => {
            let chain = Chain::new(spec.profile.clone(), region.clone());
            builder.with_credentials(Arc::new(chain))
        }
    };
    let client = builder.build()?;
    let asked = Bucket {
        url,
        region,
        credentials: Arc::clone(client.credentials()),
        options,
    };
    Ok((Arc::new(client), asked))
}

/// Keys that are simply given: in the spec, else in the environment unless a profile is asked for.
fn static_keys(spec: &StoreSpec, env: Env<'_>) -> Result<Option<AwsCredential>, Problem> {
    let from_env = |names: [&str; 2]| {
        let allowed = spec.profile.is_none();
        names
            .into_iter()
            .find_map(|name| env(name).filter(|_| allowed))
    };
    let (key_id, secret_key, token) = match (&spec.access_key_id, &spec.secret_access_key) {
        (None, None) => (
            from_env(["LITESTREAM_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"]),
            from_env(["LITESTREAM_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"]),
            spec.session_token.clone().or_else(|| {
                // Litestream's variables have no token; AWS's token belongs to AWS's key.
                let own = env("LITESTREAM_ACCESS_KEY_ID").is_some();
                env("AWS_SESSION_TOKEN").filter(|_| !own)
            }),
        ),
        (key, secret) => (key.clone(), secret.clone(), spec.session_token.clone()),
    };
    match (key_id, secret_key) {
        (Some(key_id), Some(secret_key)) => Ok(Some(AwsCredential {
            key_id,
            secret_key,
            token,
        })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(Problem::config("access-key-id without secret-access-key")),
        (None, Some(_)) => Err(Problem::config("secret-access-key without access-key-id")),
    }
}

/// Spec, environment, profile; then the bucket itself on AWS, and the usual placeholder elsewhere.
async fn region(
    spec: &StoreSpec,
    env: Env<'_>,
    bucket: &str,
    custom_endpoint: bool,
) -> Result<String, Problem> {
    let given = spec
        .region
        .clone()
        .or_else(|| env("AWS_REGION"))
        .or_else(|| env("AWS_DEFAULT_REGION"));
    if let Some(region) = given {
        return Ok(region);
    }
    if custom_endpoint {
        return Ok(DEFAULT_REGION.to_owned());
    }
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &spec.profile {
        profile = profile.profile_name(name);
    }
    if let Some(region) = profile.build().region().await {
        return Ok(region.to_string());
    }
    let options = client_options(false);
    let asked = tokio::time::timeout(CHAIN_TIMEOUT, resolve_bucket_region(bucket, &options)).await;
    match asked {
        Ok(Ok(region)) => Ok(region),
        Ok(Err(error)) => {
            let (class, reason) = super::error::classify(&error);
            let class = if reason.contains("not found") {
                Class::NoBucket
            } else {
                class
            };
            Err(Problem::new(
                class,
                format!("asking for the bucket's region: {reason}"),
            ))
        }
        Err(_) => Err(Problem::new(
            Class::Timeout,
            "asking for the bucket's region: no answer; set `region`",
        )),
    }
}

/// AWS's own chain (environment, profile, web identity, ECS, instance metadata), asked when the first
/// request needs it and again shortly before what it gave expires.
#[derive(Debug)]
struct Chain {
    profile: Option<String>,
    region: String,
    state: tokio::sync::Mutex<ChainState>,
}

#[derive(Debug, Default)]
struct ChainState {
    chain: Option<DefaultCredentialsChain>,
    cached: Option<(Arc<AwsCredential>, Option<SystemTime>)>,
}

impl Chain {
    fn new(profile: Option<String>, region: String) -> Self {
        Self {
            profile,
            region,
            state: tokio::sync::Mutex::default(),
        }
    }

    async fn build(&self) -> DefaultCredentialsChain {
        let region = aws_config::Region::new(self.region.clone());
        let mut builder = DefaultCredentialsChain::builder().region(region);
        if let Some(profile) = &self.profile {
            builder = builder.profile_name(profile);
        }
        builder.build().await
    }
}

#[async_trait]
impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut state = self.state.lock().await;
        if let Some((credential, expiry)) = &state.cached
            && expiry.is_none_or(|at| at > SystemTime::now() + RENEW_BEFORE)
        {
            return Ok(Arc::clone(credential));
        }
        let chain = match state.chain.take() {
            Some(chain) => chain,
            None => self.build().await,
        };
        let asked = tokio::time::timeout(CHAIN_TIMEOUT, chain.provide_credentials()).await;
        state.chain = Some(chain);
        let reason = match asked {
            Ok(Ok(found)) => {
                let credential = Arc::new(AwsCredential {
                    key_id: found.access_key_id().to_owned(),
                    secret_key: found.secret_access_key().to_owned(),
                    token: found.session_token().map(str::to_owned),
                });
                state.cached = Some((Arc::clone(&credential), found.expiry()));
                return Ok(credential);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", CHAIN_TIMEOUT.as_secs()),
        };
        // What is cached but nearly expired is better than nothing.
        if let Some((credential, Some(expiry))) = &state.cached
            && *expiry > SystemTime::now()
        {
            tracing::warn!(
                reason,
                "renewing AWS credentials failed, using the old ones"
            );
            return Ok(Arc::clone(credential));
        }
        Err(object_store::Error::Generic {
            store: "S3",
            source: Box::new(NoCredentials(reason)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use url::Url;

    fn spec() -> StoreSpec {
        StoreSpec::new(Url::parse("s3://bucket/x").unwrap())
    }

    fn env(name: &str) -> Option<String> {
        matches!(
            name,
            "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" | "AWS_SESSION_TOKEN"
        )
        .then(|| name.to_lowercase())
    }

    #[test]
    fn given_keys_beat_the_environment_as_a_whole() {
        let mut spec = spec();
        let found = static_keys(&spec, &env).unwrap().unwrap();
        assert_eq!(found.key_id, "aws_access_key_id");
        assert_eq!(found.token.as_deref(), Some("aws_session_token"));
        spec.access_key_id = Some("a".into());
        assert!(static_keys(&spec, &env).is_err(), "never mixes two sources");
        spec.secret_access_key = Some("s".into());
        let found = static_keys(&spec, &env).unwrap().unwrap();
        assert_eq!((found.key_id.as_str(), found.token), ("a", None));
    }

    #[test]
    fn a_profile_beats_the_environment() {
        let mut spec = spec();
        spec.profile = Some("p".into());
        assert!(static_keys(&spec, &env).unwrap().is_none());
    }

    #[tokio::test]
    async fn region_needs_no_network_when_it_is_known() {
        let mut spec = spec();
        let none = |_: &str| None;
        assert_eq!(
            region(&spec, &none, "b", true).await.unwrap(),
            DEFAULT_REGION
        );
        let eu = |name: &str| (name == "AWS_DEFAULT_REGION").then(|| "eu-west-1".to_owned());
        assert_eq!(region(&spec, &eu, "b", false).await.unwrap(), "eu-west-1");
        spec.region = Some("us-west-2".into());
        assert_eq!(region(&spec, &eu, "b", false).await.unwrap(), "us-west-2");
    }

    #[tokio::test]
    async fn every_addressing_style_builds() {
        for endpoint in [None, Some("http://127.0.0.1:9"), Some("minio.example:9000")] {
            for style in [None, Some(true), Some(false)] {
                let mut spec = spec();
                spec.endpoint = endpoint.map(str::to_owned);
                spec.region = Some("us-east-1".into());
                spec.force_path_style = style;
                let built = build(&spec, &env, "bucket").await;
                // An IP address cannot carry the bucket in front.
                let impossible = style == Some(false) && endpoint == Some("http://127.0.0.1:9");
                assert_eq!(built.is_err(), impossible, "{endpoint:?} {style:?}");
            }
        }
    }
}
