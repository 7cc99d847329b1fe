//! A replica of litestream.yml: where its copies go, and how often.

use std::collections::BTreeMap;
use std::path::Path;

use serde_saphyr::Spanned;

use super::build::Builder;
use super::checked::RetentionConfig;
use super::error::{ConfigError, Place};
use super::expand::Text;
use super::litestream::{ignored, notice, unsupported};
use super::provider::provider_of_url;
use super::raw::RawReplica;
use super::store::{Secret, StoreConfig, StoreParts, file_url_of, url_of_bucket};
use super::values::Defaults;

/// Settings of a replica by name, own ones before global ones.
pub(super) type Settings = BTreeMap<&'static str, Text>;

/// What tunes Litestream only, and why it can be left out.
const IGNORED_SETTINGS: &[(&str, &str)] = &[
    (
        "validation_interval",
        "continuity is proven at every capture; `lifeboat verify` reads copies back",
    ),
    (
        "retention_check_interval",
        "retention is applied as copies are made",
    ),
    (
        "auto_recover",
        "recovery is always automatic and never loses history",
    ),
    ("max_sync_ltx_files", "uploads are bounded already"),
    ("sign_payload", "requests are signed as the store needs it"),
    (
        "require_content_md5",
        "checksums are sent as the store needs it",
    ),
    (
        "part_size",
        "the size of parts is chosen by the size of the file",
    ),
    ("concurrency", "uploads are bounded globally"),
];

/// What changes what is stored, and cannot be done.
const REFUSED_SETTINGS: &[(&str, &str)] = &[
    (
        "age",
        "take `age` out and turn on encryption of the bucket; restore old encrypted copies with Litestream 0.3",
    ),
    (
        "sse_customer_algorithm",
        "use the encryption that is set on the bucket",
    ),
    (
        "sse_customer_key",
        "use the encryption that is set on the bucket",
    ),
    (
        "sse_customer_key_path",
        "use the encryption that is set on the bucket",
    ),
    (
        "sse_kms_key_id",
        "set the key as the default encryption of the bucket",
    ),
];

/// A replica: where it is, and its own timing.
pub(super) fn replica_of(
    replica: Spanned<RawReplica>,
    globals: &Settings,
    builder: &mut Builder<'_, '_>,
) -> Result<(StoreConfig, Defaults), ConfigError> {
    let v = builder.values;
    let place = v.at(&replica);
    let mut raw = replica.value;
    let mut settings = globals.clone();
    settings.extend(raw.take_settings());
    for &(key, hint) in REFUSED_SETTINGS {
        if let Some(text) = settings.get(key) {
            return Err(unsupported(v.at(text), key, hint));
        }
    }
    for &(key, why) in IGNORED_SETTINGS {
        if settings.contains_key(key) {
            ignored(builder, key, why);
        }
    }
    if raw.name.is_some() {
        ignored(builder, "name", "a replica is known by its place");
    }
    let interval =
        |key: &str, name: &str| settings.get(key).map(|t| v.interval(name, t)).transpose();
    let timing = Defaults {
        max_lag: None,
        sync_interval: interval("sync_interval", "sync-interval")?,
        snapshot_interval: interval("snapshot_interval", "snapshot-interval")?,
        retention: interval("retention", "retention")?.map(RetentionConfig::plain),
    };
    let (kind, mut parts) = place_of(&raw, &settings, builder, &place)?;
    credentials(&mut parts, kind, &settings, builder)?;
    Ok((builder.checked_store(parts, place)?, timing))
}

/// Kind of store and its URL.
fn place_of(
    raw: &RawReplica,
    settings: &Settings,
    builder: &mut Builder<'_, '_>,
    place: &Place,
) -> Result<(&'static str, StoreParts), ConfigError> {
    let v = builder.values;
    let mut parts = StoreParts {
        prefix_is_exact: true,
        ..StoreParts::default()
    };
    let text = |key: &str, value: Option<&Text>| v.optional_text(key, value);
    let url = text("url", raw.url.as_ref())?;
    let path = text("path", raw.path.as_ref())?;
    let own_type = text("type", raw.r#type.as_ref())?;
    let scheme = url
        .as_deref()
        .and_then(|url| url.split_once("://"))
        .map(|(scheme, _)| scheme);
    let kind = match scheme.or(own_type.as_deref()).unwrap_or("file") {
        "s3" => "s3",
        "gs" => "gs",
        "abs" | "az" => "abs",
        "file" => "file",
        other @ ("sftp" | "webdav" | "webdavs" | "nats" | "oss") => {
            return Err(ConfigError::Unsupported {
                place: place.clone(),
                what: format!("a replica of type `{other}`"),
                hint: "keep the copies in s3, gs, abs or file".into(),
            });
        }
        _ => {
            let why = "must be s3, gs, abs or file".into();
            return Err(ConfigError::Invalid {
                place: place.clone(),
                key: "type".into(),
                why,
            });
        }
    };
    let invalid = |(key, why): (&str, String)| ConfigError::Invalid {
        place: place.clone(),
        key: key.into(),
        why,
    };
    if let Some(url) = url {
        if path.is_some() {
            return Err(ConfigError::Conflict {
                place: place.clone(),
                first: "url",
                second: "path",
            });
        }
        parts.url = url;
        if kind == "s3" {
            provider_of_url(&mut parts);
        }
    } else if kind == "file" {
        let Some(path) = path else {
            return Err(ConfigError::Missing {
                place: place.clone(),
                key: "path",
                why: "a file replica needs one",
            });
        };
        parts.url = file_url_of(Path::new(&path), v.host)
            .map_err(invalid)?
            .into();
    } else {
        let Some(bucket) = text("bucket", settings.get("bucket"))? else {
            return Err(ConfigError::Missing {
                place: place.clone(),
                key: "bucket",
                why: "the replica needs one",
            });
        };
        let path = path.unwrap_or_default();
        if path.starts_with('/') {
            notice(
                builder,
                format!("the slash at the start of the replica path {path} is left out"),
            );
        }
        parts.url = url_of_bucket(kind, &bucket, path.trim_matches('/')).map_err(invalid)?;
    }
    Ok((kind, parts))
}

/// Fills in what the kind of store knows. Settings of other kinds come from the global ones and mean nothing here.
fn credentials(
    parts: &mut StoreParts,
    kind: &str,
    settings: &Settings,
    builder: &mut Builder<'_, '_>,
) -> Result<(), ConfigError> {
    let v = builder.values;
    let text = |key: &str, name: &str| v.optional_text(name, settings.get(key));
    let flag = |key: &str, name: &str| settings.get(key).map(|t| v.flag(name, t)).transpose();
    let secret = |key: &str, name: &str| v.secret((name, settings.get(key)), ("", None));
    let from_env = |name: &str| v.env.non_empty(name).and_then(Secret::new);
    match kind {
        "s3" => {
            parts.endpoint = text("endpoint", "endpoint")?.or(parts.endpoint.take());
            parts.region = text("region", "region")?.or(parts.region.take());
            parts.force_path_style =
                flag("force_path_style", "force-path-style")?.or(parts.force_path_style);
            parts.skip_verify = flag("skip_verify", "skip-verify")?;
            parts.session_token = secret("session_token", "session-token")?;
            parts.access_key_id = secret("access_key_id", "access-key-id")?;
            parts.secret_access_key = secret("secret_access_key", "secret-access-key")?;
            if parts.access_key_id.is_none() && parts.secret_access_key.is_none() {
                parts.access_key_id = from_env("LITESTREAM_ACCESS_KEY_ID");
                parts.secret_access_key = from_env("LITESTREAM_SECRET_ACCESS_KEY");
            }
        }
        "abs" => {
            parts.endpoint = text("endpoint", "endpoint")?;
            parts.account_name = text("account_name", "account-name")?;
            parts.account_key = secret("account_key", "account-key")?;
            parts.sas_token = secret("sas_token", "sas-token")?;
            if parts.account_key.is_none() && parts.sas_token.is_none() {
                parts.account_key = from_env("LITESTREAM_AZURE_ACCOUNT_KEY");
            }
        }
        _ => {}
    }
    Ok(())
}
