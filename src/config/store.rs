//! Where copies go: a URL and what is needed to reach it.

use std::fmt;
use std::path::Path;

use url::Url;

use super::load::Host;
use super::paths;

/// A value that is never printed. Never empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// `None` for an empty value: an empty credential is a mistake, never a choice.
    pub fn new(value: impl Into<String>) -> Option<Self> {
        let value = value.into();
        (!value.is_empty()).then_some(Self(value))
    }

    /// The value. Whoever calls this keeps it out of logs and errors.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// Amazon S3 and everything that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
    /// A folder.
    File,
}

impl StoreKind {
    /// Only schemes that were checked come here: what is none of the others is Azure's.
    fn of_scheme(scheme: &str) -> Self {
        match scheme {
            "s3" => Self::S3,
            "gs" => Self::Google,
            "file" => Self::File,
            _ => Self::Azure,
        }
    }

    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Google => "gs",
            Self::Azure => "abs",
            Self::File => "file",
        }
    }
}

/// One store. What is absent here is taken from the machine (`AWS_*`, `AZURE_*`, `GOOGLE_*`, instance roles) by
/// whoever opens the store. Says nothing about whether the store exists or lets us in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// `s3://bucket/path`, `gs://bucket/path`, `abs://container/path` or `file:///path`: no user, query or fragment,
    /// and no slash at the end.
    pub url: Url,
    /// The URL is the replica's own place (litestream.yml): the target's name is not appended.
    pub prefix_is_exact: bool,
    /// Base URL of the service, with scheme, without a slash at the end.
    pub endpoint: Option<String>,
    /// Another store beside it has the same URL: the endpoint tells them apart, also where they are shown.
    pub tells_endpoint: bool,
    /// S3 region.
    pub region: Option<String>,
    /// S3 key id.
    pub access_key_id: Option<Secret>,
    /// S3 key. There exactly if `access_key_id` is.
    pub secret_access_key: Option<Secret>,
    /// S3 session token.
    pub session_token: Option<Secret>,
    /// Profile in the AWS configuration files.
    pub profile: Option<String>,
    /// Bucket in the path, not in the host name; by default with every endpoint that is not Amazon's. `None` without either: an endpoint of
    /// the environment and the bucket's name decide.
    pub force_path_style: Option<bool>,
    /// Certificates are not verified.
    pub skip_verify: bool,
    /// Plain HTTP: the endpoint says so.
    pub allow_http: bool,
    /// Azure account.
    pub account_name: Option<String>,
    /// Azure account key.
    pub account_key: Option<Secret>,
    /// Azure shared access signature.
    pub sas_token: Option<Secret>,
    /// Google service account as JSON text.
    pub google_credentials: Option<Secret>,
}

/// What the user wrote in and around a store URL, before it is put together.
#[derive(Clone, Default)]
pub(super) struct StoreParts {
    pub(super) url: String,
    pub(super) prefix_is_exact: bool,
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) access_key_id: Option<Secret>,
    pub(super) secret_access_key: Option<Secret>,
    pub(super) session_token: Option<Secret>,
    pub(super) profile: Option<String>,
    pub(super) force_path_style: Option<bool>,
    pub(super) skip_verify: Option<bool>,
    pub(super) account_name: Option<String>,
    pub(super) account_key: Option<Secret>,
    pub(super) sas_token: Option<Secret>,
    pub(super) google_credentials: Option<Secret>,
}

/// A key of a store that breaks a rule: the key and the rule.
pub(super) type StoreError = (&'static str, String);

impl StoreConfig {
    /// What kind of store the URL names.
    pub fn kind(&self) -> StoreKind {
        StoreKind::of_scheme(self.url.scheme())
    }

    /// Checks and joins the parts. Errors never repeat the URL: a mistaken one may hold a password.
    pub(super) fn new(mut parts: StoreParts, host: &Host) -> Result<Self, StoreError> {
        let url = parse_url(&mut parts, host)?;
        let kind = StoreKind::of_scheme(url.scheme());
        check_keys(&parts, kind)?;
        let endpoint = parts.endpoint.as_deref().map(parse_endpoint).transpose()?;
        let amazon = |e: &String| e.ends_with(".amazonaws.com") || e.ends_with(".amazonaws.com.cn");
        Ok(Self {
            url,
            prefix_is_exact: parts.prefix_is_exact,
            force_path_style: parts
                .force_path_style
                .or(endpoint.as_ref().map(|e| !amazon(e))),
            allow_http: endpoint.as_ref().is_some_and(|e| e.starts_with("http://")),
            endpoint,
            tells_endpoint: false,
            region: parts.region,
            access_key_id: parts.access_key_id,
            secret_access_key: parts.secret_access_key,
            session_token: parts.session_token,
            profile: parts.profile,
            skip_verify: parts.skip_verify.unwrap_or(false),
            account_name: parts.account_name,
            account_key: parts.account_key,
            sas_token: parts.sas_token,
            google_credentials: parts.google_credentials,
        })
    }

    /// Notes which of them only their endpoints tell apart.
    pub(super) fn told_apart(mut stores: Vec<Self>) -> Vec<Self> {
        let urls: Vec<Url> = stores.iter().map(|s| s.url.clone()).collect();
        for store in &mut stores {
            store.tells_endpoint = urls.iter().filter(|url| **url == store.url).count() > 1;
        }
        stores
    }

    /// The store one name deeper.
    pub(super) fn below(&self, name: &str) -> Self {
        let mut below = self.clone();
        // Every URL accepted here has a path, or a host that can have one.
        if let Ok(mut segments) = below.url.path_segments_mut() {
            segments.pop_if_empty().push(name);
        }
        below
    }
}

/// Keys must mean something for the kind of store, and those that belong together must be there together.
fn check_keys(parts: &StoreParts, kind: StoreKind) -> Result<(), StoreError> {
    for (key, given, kinds) in [
        (
            "endpoint",
            parts.endpoint.is_some(),
            [StoreKind::S3, StoreKind::Azure, StoreKind::Google].as_slice(),
        ),
        ("region", parts.region.is_some(), &[StoreKind::S3]),
        (
            "access-key-id",
            parts.access_key_id.is_some(),
            &[StoreKind::S3],
        ),
        (
            "secret-access-key",
            parts.secret_access_key.is_some(),
            &[StoreKind::S3],
        ),
        (
            "session-token",
            parts.session_token.is_some(),
            &[StoreKind::S3],
        ),
        ("profile", parts.profile.is_some(), &[StoreKind::S3]),
        (
            "force-path-style",
            parts.force_path_style.is_some(),
            &[StoreKind::S3],
        ),
        (
            "account-name",
            parts.account_name.is_some(),
            &[StoreKind::Azure],
        ),
        (
            "account-key",
            parts.account_key.is_some(),
            &[StoreKind::Azure],
        ),
        ("sas-token", parts.sas_token.is_some(), &[StoreKind::Azure]),
        (
            "google-credentials",
            parts.google_credentials.is_some(),
            &[StoreKind::Google],
        ),
    ] {
        if given && !kinds.contains(&kind) {
            return Err((
                key,
                format!("means nothing for a {}:// store", kind.scheme()),
            ));
        }
    }
    match (&parts.access_key_id, &parts.secret_access_key) {
        (Some(_), None) => return Err(("access-key-id", "needs a `secret-access-key`".into())),
        (None, Some(_)) => {
            return Err(("secret-access-key", "needs an `access-key-id`".into()));
        }
        _ => {}
    }
    if parts.account_key.is_some() && parts.sas_token.is_some() {
        return Err(("sas-token", "and `account-key` exclude each other".into()));
    }
    Ok(())
}

/// `s3://...` from bucket and path, which may hold characters with a meaning in URLs.
pub(super) fn url_of_bucket(scheme: &str, bucket: &str, path: &str) -> Result<String, StoreError> {
    let mut url = Url::parse(&format!("{scheme}://{bucket}")).map_err(|_| {
        (
            "bucket",
            "is not the name of a bucket or container".to_owned(),
        )
    })?;
    if url.host_str() != Some(bucket) {
        return Err(("bucket", "is not the name of a bucket or container".into()));
    }
    url.set_path(path);
    Ok(url.into())
}

fn parse_url(parts: &mut StoreParts, host: &Host) -> Result<Url, StoreError> {
    let text = std::mem::take(&mut parts.url);
    let known = "must start with s3://, gs://, abs://, az:// or file://";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(("url", known.into()));
    };
    if scheme == "file" {
        return file_url(&text, rest, host);
    }
    if !["s3", "gs", "abs", "az"].contains(&scheme) {
        return Err(("url", known.into()));
    }
    // One spelling for Azure, so that equal places compare equal.
    let canonical = if scheme == "az" {
        format!("abs://{rest}")
    } else {
        text
    };
    let mut url = Url::parse(&canonical).map_err(|e| ("url", format!("is not a URL: {e}")))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(("url", "names no bucket".into()));
    }
    if url.password().is_some() || (!url.username().is_empty() && url.scheme() != "abs") {
        return Err((
            "url",
            "must not hold credentials: give them in their own keys".into(),
        ));
    }
    if !url.username().is_empty() {
        // Litestream's abs://ACCOUNT@CONTAINER/PATH.
        parts
            .account_name
            .get_or_insert_with(|| url.username().to_owned());
        url.set_username("")
            .map_err(|()| ("url", "is not a URL".to_owned()))?;
    }
    if url.port().is_some() {
        return Err((
            "url",
            "has a port: the address of the service belongs in `endpoint`".into(),
        ));
    }
    read_query(&url, parts)?;
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// Litestream's parameters of S3 URLs.
fn read_query(url: &Url, parts: &mut StoreParts) -> Result<(), StoreError> {
    for (name, value) in url.query_pairs() {
        let value = value.into_owned();
        match name.as_ref() {
            "endpoint" => _ = parts.endpoint.get_or_insert(value),
            "region" => _ = parts.region.get_or_insert(value),
            "forcePathStyle" | "force-path-style" => {
                _ = parts.force_path_style.get_or_insert(value == "true")
            }
            "skipVerify" | "skip-verify" => _ = parts.skip_verify.get_or_insert(value == "true"),
            // How requests are signed is the client's own business.
            "signPayload" | "sign-payload" | "requireContentMD5" | "require-content-md5" => {}
            _ => {
                return Err((
                    "url",
                    "has a parameter that is not known: use the keys beside `url`".into(),
                ));
            }
        }
    }
    Ok(())
}

/// `file:///absolute`, or `file://relative` to the working directory.
fn file_url(text: &str, rest: &str, host: &Host) -> Result<Url, StoreError> {
    let decoded;
    let path = if rest.starts_with('/') {
        let url = Url::parse(text).map_err(|e| ("url", format!("is not a URL: {e}")))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(("url", "holds `?` or `#`: write them as %3F and %23".into()));
        }
        decoded = url
            .to_file_path()
            .map_err(|()| ("url", "is not the path of a folder".to_owned()))?;
        decoded.as_path()
    } else if rest.is_empty() {
        return Err(("url", "names no folder".into()));
    } else {
        Path::new(rest)
    };
    file_url_of(path, host)
}

/// The URL of a folder.
pub(super) fn file_url_of(path: &Path, host: &Host) -> Result<Url, StoreError> {
    Url::from_file_path(paths::absolute(path, host))
        .map_err(|()| ("path", "is not the path of a folder".to_owned()))
}

fn parse_endpoint(text: &str) -> Result<String, StoreError> {
    let text = text.trim_end_matches('/');
    let local = |t: &str| {
        ["localhost", "127.", "[::1]"]
            .iter()
            .any(|l| t.starts_with(l))
    };
    let full = match text.split_once("://") {
        Some(_) => text.to_owned(),
        None if local(text) => format!("http://{text}"),
        None => format!("https://{text}"),
    };
    let url = Url::parse(&full).map_err(|e| ("endpoint", format!("is not a URL: {e}")))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(("endpoint", "must start with https:// or http://".into()));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(("endpoint", "must not hold credentials or parameters".into()));
    }
    Ok(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(url: &str) -> Result<StoreConfig, StoreError> {
        let parts = StoreParts {
            url: url.into(),
            ..StoreParts::default()
        };
        StoreConfig::new(parts, &Host::for_tests(Path::new("/nowhere/here")))
    }

    #[test]
    fn urls_get_one_spelling() {
        for (text, expected) in [
            ("s3://bucket/path/", "s3://bucket/path"),
            ("s3://Bucket_1", "s3://Bucket_1"),
            ("gs://bucket/a/b", "gs://bucket/a/b"),
            ("az://box/p", "abs://box/p"),
            ("abs://account@box/p", "abs://box/p"),
            ("file:///var/backups/", "file:///var/backups"),
            ("file:///a%20b", "file:///a%20b"),
            (
                "file://./lifeboat-store",
                "file:///nowhere/here/lifeboat-store",
            ),
            ("file://store", "file:///nowhere/here/store"),
        ] {
            let store = store(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!(store.url.as_str(), expected, "{text}");
        }
        assert_eq!(
            store("abs://acc@box").unwrap().account_name.as_deref(),
            Some("acc")
        );
    }

    #[test]
    fn urls_that_cannot_work_are_refused_without_being_repeated() {
        for text in [
            "",
            "bucket/path",
            "/var/backups",
            "ftp://hidden/x",
            "sftp://u:hidden@h/x",
            "s3://",
            "s3:///path",
            "s3://id:hidden@bucket/p",
            "abs://a:hidden@box",
            "s3://localhost:9000/hidden",
            "abs://box?sig=hidden",
            "file://",
            "file:///a?b",
        ] {
            let (key, why) = store(text).expect_err(text);
            assert_eq!(key, "url", "{text}");
            assert!(!why.contains("hidden"), "{why}");
        }
    }

    #[test]
    fn litestream_url_parameters() {
        let store = store("s3://b/p?endpoint=localhost:9000&region=eu&skipVerify=true").unwrap();
        assert_eq!(store.url.as_str(), "s3://b/p");
        assert_eq!(store.endpoint.as_deref(), Some("http://localhost:9000"));
        assert_eq!(store.region.as_deref(), Some("eu"));
        assert!(store.skip_verify && store.force_path_style == Some(true) && store.allow_http);
    }

    #[test]
    fn endpoints() {
        for (text, expected) in [
            ("https://s3.example.com/", Some("https://s3.example.com")),
            (
                "nyc3.digitaloceanspaces.com",
                Some("https://nyc3.digitaloceanspaces.com"),
            ),
            ("http://minio:9000", Some("http://minio:9000")),
            (
                "127.0.0.1:10000/devstoreaccount1",
                Some("http://127.0.0.1:10000/devstoreaccount1"),
            ),
            ("ftp://x", None),
            ("https://u:p@h", None),
            ("", None),
        ] {
            assert_eq!(parse_endpoint(text).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn keys_must_fit_the_kind_of_store_and_come_in_pairs() {
        let host = Host::for_tests(Path::new("/"));
        let with = |change: fn(&mut StoreParts), url: &str| {
            let mut parts = StoreParts {
                url: url.into(),
                ..StoreParts::default()
            };
            change(&mut parts);
            StoreConfig::new(parts, &host).err().map(|(key, _)| key)
        };
        assert_eq!(
            with(|p| p.account_name = Some("a".into()), "s3://b"),
            Some("account-name")
        );
        assert_eq!(
            with(|p| p.region = Some("a".into()), "file:///b"),
            Some("region")
        );
        assert_eq!(
            with(|p| p.access_key_id = Secret::new("a"), "s3://b"),
            Some("access-key-id")
        );
        assert_eq!(
            with(|p| p.secret_access_key = Secret::new("a"), "s3://b"),
            Some("secret-access-key")
        );
        assert_eq!(with(|p| p.account_name = Some("a".into()), "abs://b"), None);
    }

    #[test]
    fn secrets_do_not_print_and_are_never_empty() {
        let secret = Secret::new("hunter2").unwrap();
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.reveal(), "hunter2");
        assert_eq!(Secret::new(""), None);
    }

    #[test]
    fn buckets_and_paths_become_urls() {
        assert_eq!(
            url_of_bucket("s3", "b", "a b/c?d#e").unwrap(),
            "s3://b/a%20b/c%3Fd%23e"
        );
        assert_eq!(url_of_bucket("s3", "b", "").unwrap(), "s3://b");
        assert!(url_of_bucket("s3", "a/b", "").is_err());
        assert!(url_of_bucket("s3", "u@b", "").is_err());
        let store = store("s3://b").unwrap();
        assert_eq!(store.below("x.db").below("y").url.as_str(), "s3://b/x.db/y");
    }
}
