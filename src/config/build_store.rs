//! Stores: from raw values and the environment.

use serde_saphyr::Spanned;

use super::build::{Builder, text_of};
use super::error::{ConfigError, Place};
use super::expand::Text;
use super::raw::{RawStore, ScalarOr};
use super::store::{StoreConfig, StoreParts};

impl Builder<'_, '_> {
    /// The stores of the file or of one entry.
    pub(super) fn stores_of(
        &self,
        one: Option<Spanned<ScalarOr<RawStore>>>,
        many: Option<Vec<Spanned<ScalarOr<RawStore>>>>,
        shared: bool,
    ) -> Result<Vec<StoreConfig>, ConfigError> {
        match (one, many) {
            (Some(one), Some(_)) => Err(ConfigError::Conflict {
                place: self.values.at(&one),
                first: "store",
                second: "stores",
            }),
            // Only the one shared store is filled from the environment: with several it would be a guess which is meant.
            (Some(one), None) => Ok(vec![self.store_of(one, shared)?]),
            (None, many) => many
                .unwrap_or_default()
                .into_iter()
                .map(|raw| self.store_of(raw, false))
                .collect::<Result<_, _>>()
                .map(StoreConfig::told_apart),
        }
    }

    fn store_of(
        &self,
        raw: Spanned<ScalarOr<RawStore>>,
        fill: bool,
    ) -> Result<StoreConfig, ConfigError> {
        let v = self.values;
        let place = v.at(&raw);
        let (referenced, defined) = (raw.referenced, raw.defined);
        let raw = match raw.value {
            ScalarOr::Scalar(url) => RawStore {
                url: Some(Text::new(url, referenced, defined)),
                ..RawStore::default()
            },
            ScalarOr::Map(raw) => raw,
        };
        let Some(url) = raw.url else {
            return Err(ConfigError::Missing {
                place,
                key: "url",
                why: "a store needs one",
            });
        };
        let text = |key, value: &Option<Text>| v.optional_text(key, value.as_ref());
        let flag = |key, value: &Option<Text>| value.as_ref().map(|t| v.flag(key, t)).transpose();
        let secret = |key, value: &Option<Text>, file_key, file: &Option<Text>| {
            v.secret((key, value.as_ref()), (file_key, file.as_ref()))
        };
        let mut parts = StoreParts {
            url: v.text("url", &url)?,
            prefix_is_exact: false,
            endpoint: text("endpoint", &raw.endpoint)?,
            region: text("region", &raw.region)?,
            access_key_id: secret(
                "access-key-id",
                &raw.access_key_id,
                "access-key-id-file",
                &raw.access_key_id_file,
            )?,
            secret_access_key: secret(
                "secret-access-key",
                &raw.secret_access_key,
                "secret-access-key-file",
                &raw.secret_access_key_file,
            )?,
            session_token: secret(
                "session-token",
                &raw.session_token,
                "session-token-file",
                &raw.session_token_file,
            )?,
            profile: text("profile", &raw.profile)?,
            force_path_style: flag("force-path-style", &raw.force_path_style)?,
            skip_verify: flag("skip-verify", &raw.skip_verify)?,
            account_name: text("account-name", &raw.account_name)?,
            account_key: secret(
                "account-key",
                &raw.account_key,
                "account-key-file",
                &raw.account_key_file,
            )?,
            sas_token: secret(
                "sas-token",
                &raw.sas_token,
                "sas-token-file",
                &raw.sas_token_file,
            )?,
            google_credentials: secret(
                "google-credentials",
                &raw.google_credentials,
                "google-credentials-file",
                &raw.google_credentials_file,
            )?,
        };
        if fill {
            self.fill(&mut parts)?;
        }
        self.checked_store(parts, place)
    }

    /// Joins and checks the parts of a store.
    pub(super) fn checked_store(
        &self,
        parts: StoreParts,
        place: Place,
    ) -> Result<StoreConfig, ConfigError> {
        StoreConfig::new(parts, self.values.host).map_err(|(key, why)| ConfigError::Invalid {
            place,
            key: key.into(),
            why,
        })
    }

    /// Endpoint, region and keys from the environment, where `parts` has none and its kind of store knows them.
    fn fill(&self, parts: &mut StoreParts) -> Result<(), ConfigError> {
        let is_s3 = parts.url.starts_with("s3://");
        let variable = |name| self.variable(name).map(|text| text.value);
        if parts.endpoint.is_none() && !parts.url.starts_with("file://") {
            parts.endpoint = variable("LIFEBOAT_ENDPOINT");
        }
        if parts.region.is_none() && is_s3 {
            parts.region = variable("LIFEBOAT_REGION");
        }
        if is_s3
            && parts.access_key_id.is_none()
            && parts.secret_access_key.is_none()
            && parts.profile.is_none()
        {
            // Set but empty is an error, not absence: secrets that were not passed on look like that.
            let set = |name| {
                self.variable(name);
                self.values.env.get(name).map(text_of)
            };
            let secret = |key: &'static str, file_key: &'static str| {
                self.environment
                    .secret((key, set(key).as_ref()), (file_key, set(file_key).as_ref()))
            };
            parts.access_key_id = secret("LIFEBOAT_ACCESS_KEY_ID", "LIFEBOAT_ACCESS_KEY_ID_FILE")?;
            parts.secret_access_key = secret(
                "LIFEBOAT_SECRET_ACCESS_KEY",
                "LIFEBOAT_SECRET_ACCESS_KEY_FILE",
            )?;
        }
        Ok(())
    }

    /// `LIFEBOAT_STORE_URL`, if the file names no store.
    pub(super) fn store_of_environment(&self) -> Result<Option<StoreConfig>, ConfigError> {
        self.variable("LIFEBOAT_STORE_URL");
        let Some(url) = self.values.env.get("LIFEBOAT_STORE_URL") else {
            return Ok(None);
        };
        let url = self.environment.text("LIFEBOAT_STORE_URL", &text_of(url))?;
        let mut parts = StoreParts {
            url,
            ..StoreParts::default()
        };
        self.fill(&mut parts)?;
        self.checked_store(parts, Place::Environment).map(Some)
    }
}
