//! What a store is: its URL and everything needed to be let in.

use std::fmt;

use url::Url;

use super::error::{Class, Op, StoreError};
use super::{Kind, Store};

/// A store as configured. `None` means: look in the environment, then use the provider's default.
///
/// Makes no promise that the store exists or that the credentials work: [`Store::check`] does.
#[derive(Clone)]
pub struct StoreSpec {
    /// `s3://bucket/path`, `gs://bucket/path`, `abs://container/path` (or `az://`), `file:///path`;
    /// `memory://name` for tests.
    pub url: Url,
    /// The server's URL, for everything that is not the provider's own (MinIO, R2, Azurite, ...).
    /// Without a scheme `https://` is meant. `http://` is possible only by writing it here.
    pub endpoint: Option<String>,
    /// S3: the bucket's region.
    pub region: Option<String>,
    /// S3: access key.
    pub access_key_id: Option<String>,
    /// S3: secret of the access key.
    pub secret_access_key: Option<String>,
    /// S3: token of temporary credentials.
    pub session_token: Option<String>,
    /// S3: profile in `~/.aws/config` and `~/.aws/credentials`.
    pub profile: Option<String>,
    /// S3: bucket in the path (`true`) or in the host name (`false`). Default: in the path for a given
    /// endpoint and for bucket names with dots.
    pub force_path_style: Option<bool>,
    /// Azure: storage account.
    pub account_name: Option<String>,
    /// Azure: the account's key, base64.
    pub account_key: Option<String>,
    /// Azure: shared access signature, the query string of a signed URL.
    pub sas_token: Option<String>,
    /// Google: path of a credentials file, or its JSON.
    pub google_credentials: Option<String>,
}

impl StoreSpec {
    /// A store by its URL alone.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            profile: None,
            force_path_style: None,
            account_name: None,
            account_key: None,
            sas_token: None,
            google_credentials: None,
        }
    }

    /// Reads a URL as people write it: also a plain path (`/backups`, `./backups`) and
    /// `file://./backups`, both relative to the working directory.
    ///
    /// # Errors
    /// [`Class::Config`] for what is neither.
    pub fn from_text(text: &str) -> Result<Self, StoreError> {
        let fail = |reason: String| {
            StoreError::new(
                Op::Open,
                Kind::File,
                &text.into(),
                "",
                Class::Config,
                reason,
            )
        };
        let path = match text.strip_prefix("file://") {
            Some(rest) if rest.starts_with('.') => Some(rest),
            Some(_) => None,
            None if text.starts_with(['/', '.']) => Some(text),
            None => None,
        };
        let url = match path {
            Some(path) => {
                let path = std::path::absolute(path).map_err(|e| fail(e.to_string()))?;
                Url::from_directory_path(path).map_err(|()| fail("not a path".to_owned()))?
            }
            None => Url::parse(text).map_err(|e| fail(e.to_string()))?,
        };
        Ok(Self::new(url))
    }

    /// Every secret in here, to be cut out of messages.
    pub(super) fn secrets(&self) -> Vec<String> {
        let json = |s: &String| s.trim_start().starts_with('{');
        // Servers and clients show a signature decoded and among other parameters.
        let signature = self.sas_token.as_deref().and_then(|sas| {
            url::form_urlencoded::parse(sas.trim_start_matches('?').as_bytes())
                .find(|(name, _)| name == "sig")
                .map(|(_, value)| value.into_owned())
        });
        [
            self.secret_access_key.clone(),
            self.session_token.clone(),
            self.account_key.clone(),
            self.sas_token.clone(),
            signature,
            self.google_credentials.clone().filter(json),
            self.url.password().map(str::to_owned),
        ]
        .into_iter()
        .flatten()
        .filter(|secret| !secret.is_empty())
        .collect()
    }
}

impl fmt::Debug for StoreSpec {
    /// Secrets show only whether they are there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &Option<String>| secret.as_ref().map(|_| "***");
        f.debug_struct("StoreSpec")
            .field("url", &Store::display_url(&self.url))
            .field("endpoint", &self.endpoint.as_deref().map(without_user))
            .field("region", &self.region)
            .field("access_key_id", &self.access_key_id)
            .field("secret_access_key", &hidden(&self.secret_access_key))
            .field("session_token", &hidden(&self.session_token))
            .field("profile", &self.profile)
            .field("force_path_style", &self.force_path_style)
            .field("account_name", &self.account_name)
            .field("account_key", &hidden(&self.account_key))
            .field("sas_token", &hidden(&self.sas_token))
            .field("google_credentials", &hidden(&self.google_credentials))
            .finish()
    }
}

/// An endpoint without `user:password@` and query.
fn without_user(endpoint: &str) -> String {
    match Url::parse(endpoint) {
        Ok(url) => Store::display_url(&url),
        Err(_) => "***".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_no_secret() {
        let mut spec =
            StoreSpec::new(Url::parse("s3://user:hunter2@bucket/x?sig=hunter2").unwrap());
        let secret = || Some("hunter2".to_owned());
        spec.secret_access_key = secret();
        spec.session_token = secret();
        spec.account_key = secret();
        spec.sas_token = secret();
        spec.google_credentials = secret();
        spec.endpoint = Some("https://me:hunter2@host/?k=hunter2".to_owned());
        let text = format!("{spec:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("bucket"), "{text}");
    }

    #[test]
    fn a_signature_is_a_secret_in_both_forms() {
        let mut spec = StoreSpec::new(Url::parse("abs://box/x").unwrap());
        spec.sas_token = Some("?sv=2021&sig=a%2Fb%3D".to_owned());
        assert_eq!(spec.secrets(), ["?sv=2021&sig=a%2Fb%3D", "a/b="]);
    }

    #[test]
    fn paths_become_file_urls() {
        let here = std::env::current_dir().unwrap();
        for text in ["file://./store", "./store"] {
            let spec = StoreSpec::from_text(text).unwrap();
            assert_eq!(spec.url.to_file_path().unwrap(), here.join("store"));
        }
        let spec = StoreSpec::from_text("/backups/a b").unwrap();
        assert_eq!(spec.url.as_str(), "file:///backups/a%20b/");
        assert_eq!(StoreSpec::from_text("s3://b/p").unwrap().url.scheme(), "s3");
        assert_eq!(
            StoreSpec::from_text("nonsense").unwrap_err().class(),
            Class::Config
        );
    }
}
