//! The files as they are written: names and shapes only, every value still text with its line.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{DeserializeError, Spanned};

use super::error::{ConfigError, Place};
use super::expand::Text;

/// A value whose content does not matter, only that it is there.
pub(super) type Loose = Spanned<IgnoredAny>;

/// A single value, or a map of keys.
pub(super) enum ScalarOr<T> {
    Scalar(String),
    Map(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ScalarOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = ScalarOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a single value or a map of keys")
            }

            fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
                Ok(ScalarOr::Scalar(value.into()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(ScalarOr::Scalar(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(ScalarOr::Scalar(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
                Ok(ScalarOr::Scalar(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
                Ok(ScalarOr::Scalar(value.to_string()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(ScalarOr::Map)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// A key that stands in the file must have a value: `access-key-id:` with nothing behind it is a mistake, and
/// serde's own `Option` would read it as absent.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A map of a file: every key optional, unknown keys refused. `Debug` is left out: values may be secrets.
macro_rules! raw {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub(super) struct $name {
            $(#[serde(default, deserialize_with = "present")] pub(super) $field: Option<$kind>,)+
        }
    };
}

raw!(
    /// lifeboat.yml.
    RawConfig {
        store: Spanned<ScalarOr<RawStore>>,
        stores: Vec<Spanned<ScalarOr<RawStore>>>,
        sqlite: Vec<Spanned<RawSqlite>>,
        sync_interval: Text,
        snapshot_interval: Text,
        max_lag: Text,
        retention: Spanned<ScalarOr<RawRetention>>,
        labels: RawLabels,
        state_dir: Text,
        http: Spanned<ScalarOr<RawHttp>>,
        shutdown_timeout: Text,
        store_check: Text,
        min_free: Text,
        time_zone: Text,
        instance: Text,
        postgres: Vec<Spanned<RawPostgres>>,
        drill: Spanned<ScalarOr<RawDrill>>,
        insight: Spanned<ScalarOr<RawInsight>>,
        notify: Vec<Spanned<RawNotify>>,
        files: Vec<Spanned<RawFiles>>,
        redis: Vec<Spanned<RawRedis>>,
        probes: Vec<Spanned<RawProbe>>,
    }
);

raw!(
    /// `labels`.
    RawLabels { keep: Text, max_age: Text }
);

raw!(
    /// An entry of `sqlite`.
    RawSqlite {
        name: Text,
        path: Text,
        dir: Text,
        pattern: Text,
        watch: Text,
        store: Spanned<ScalarOr<RawStore>>,
        stores: Vec<Spanned<ScalarOr<RawStore>>>,
        sync_interval: Text,
        snapshot_interval: Text,
        max_lag: Text,
        retention: Spanned<ScalarOr<RawRetention>>,
        ensure_wal: Text,
        assert: Vec<Text>,
    }
);

raw!(
    /// An entry of `files`.
    RawFiles {
        name: Text,
        paths: Vec<Text>,
        exclude: Vec<Text>,
        schedule: Text,
        retention: Spanned<ScalarOr<RawRetention>>,
        password: Text,
        password_file: Text,
        create: Text,
        allow_empty: Text,
        store: Spanned<ScalarOr<RawStore>>,
        stores: Vec<Spanned<ScalarOr<RawStore>>>,
    }
);

raw!(
    /// An entry of `postgres`.
    RawPostgres {
        name: Text,
        url: Text,
        url_file: Text,
        host: Text,
        port: Text,
        user: Text,
        password: Text,
        password_file: Text,
        database: Text,
        sslmode: Text,
        sslrootcert: Text,
        databases: Spanned<RawDatabases>,
        schedule: Text,
        time_zone: Text,
        jitter: Text,
        retention: Spanned<ScalarOr<RawRetention>>,
        bin_dir: Text,
        pg_dump_args: Vec<Text>,
        compression_level: Text,
        compression_threads: Text,
        lock_wait_timeout: Text,
        statistics: Text,
        restore_url: Text,
        restore_url_file: Text,
        drill_url: Text,
        drill_url_file: Text,
        assert: Vec<Text>,
        on_deploy: Text,
        max_age: Text,
        read_budget: Text,
        store: Spanned<ScalarOr<RawStore>>,
        stores: Vec<Spanned<ScalarOr<RawStore>>>,
    }
);

raw!(
    /// An entry of `redis`.
    RawRedis {
        name: Text,
        url: Text,
        url_file: Text,
        password: Text,
        password_file: Text,
        schedule: Text,
        time_zone: Text,
        jitter: Text,
        retention: Spanned<ScalarOr<RawRetention>>,
        bin_dir: Text,
        compression_level: Text,
        compression_threads: Text,
        on_deploy: Text,
        max_age: Text,
        read_budget: Text,
        store: Spanned<ScalarOr<RawStore>>,
        stores: Vec<Spanned<ScalarOr<RawStore>>>,
    }
);

raw!(
    /// `databases: { except: [...] }`.
    RawExcept { except: Vec<Text> }
);

/// `databases`: `all`, a list of names, or all but some.
pub(super) enum RawDatabases {
    Word(String),
    Names(Vec<Text>),
    Except(RawExcept),
}

impl<'de> Deserialize<'de> for RawDatabases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = RawDatabases;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`all`, a list of names, or `{ except: [...] }`")
            }

            fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
                Ok(RawDatabases::Word(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(RawDatabases::Names)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                RawExcept::deserialize(MapAccessDeserializer::new(map)).map(RawDatabases::Except)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

raw!(
    /// A store.
    RawStore {
        url: Text,
        endpoint: Text,
        region: Text,
        access_key_id: Text,
        access_key_id_file: Text,
        secret_access_key: Text,
        secret_access_key_file: Text,
        session_token: Text,
        session_token_file: Text,
        profile: Text,
        force_path_style: Text,
        skip_verify: Text,
        account_name: Text,
        account_key: Text,
        account_key_file: Text,
        sas_token: Text,
        sas_token_file: Text,
        google_credentials: Text,
        google_credentials_file: Text,
    }
);

raw!(
    /// Tiers of a retention.
    RawRetention {
        point_in_time: Text,
        hourly: Text,
        daily: Text,
        weekly: Text,
        monthly: Text,
        yearly: Text,
    }
);

raw!(
    /// `drill`.
    RawDrill { schedule: Text, scratch_dir: Text }
);

raw!(
    /// `insight`.
    RawInsight {
        sqlite: Text,
        rails: Text,
        postgres: Text,
        redis: Text,
        volumes: Text,
        host: Text,
        every: Text,
        max_queue_wait: Text,
        max_heartbeat_age: Text,
    }
);

raw!(
    /// An entry of `notify`.
    RawNotify {
        name: Text,
        slack: Text,
        slack_file: Text,
        webhook: Text,
        webhook_file: Text,
        secret: Text,
        secret_file: Text,
        healthchecks: Text,
        healthchecks_file: Text,
        email: Text,
        from: Text,
        smtp: Text,
        smtp_file: Text,
        events: Vec<Text>,
        after: Text,
        remind: Text,
        every: Text,
    }
);

raw!(
    /// An entry of `probes`.
    RawProbe {
        name: Text,
        url: Text,
        url_file: Text,
        every: Text,
        timeout: Text,
        expect: Text,
    }
);

raw!(
    /// `http`.
    RawHttp { listen: Text, token: Text, token_file: Text }
);

/// A map of litestream.yml with the settings that Litestream allows both at the top and in a replica.
macro_rules! raw_with_replica_settings {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),+ $(,)? }) => {
        raw_with_replica_settings!(@ $(#[$doc])* $name { $($field: $kind),+ } {
            retention, retention_check_interval, snapshot_interval, sync_interval, validation_interval, auto_recover,
            max_sync_ltx_files, access_key_id, secret_access_key, session_token, region, bucket, endpoint,
            force_path_style, sign_payload, require_content_md5, skip_verify, part_size, concurrency, sse_customer_algorithm,
            sse_customer_key, sse_customer_key_path, sse_kms_key_id, account_name, account_key, sas_token, host, user,
            password, key_path, concurrent_writes, host_key, webdav_url, webdav_username, webdav_password, jwt, seed,
            creds, nkey, username, token, tls, client_cert, client_key, max_reconnects, reconnect_wait, timeout,
        });
    };
    (@ $(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),+ } { $($setting:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub(super) struct $name {
            $(#[serde(default, deserialize_with = "present")] pub(super) $field: Option<$kind>,)+
            $(#[serde(default, deserialize_with = "present")] $setting: Option<Text>,)+
            #[serde(default, deserialize_with = "present")] root_cas: Option<Loose>,
            #[serde(default, deserialize_with = "present")] age: Option<Loose>,
        }

        impl $name {
            /// Takes the replica settings out: name, as fields are written here, and value (empty for lists and maps).
            pub(super) fn take_settings(&mut self) -> Vec<(&'static str, Text)> {
                let loose = |value: Option<Loose>| value.map(|v| Text::new(String::new(), v.referenced, v.defined));
                [
                    $((stringify!($setting), self.$setting.take()),)+
                    ("root_cas", loose(self.root_cas.take())),
                    ("age", loose(self.age.take())),
                ]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect()
            }
        }
    };
}

raw_with_replica_settings!(
    /// litestream.yml, of Litestream 0.3 and 0.5.
    RawLitestream {
        dbs: Vec<Spanned<RawLitestreamDb>>,
        addr: Text,
        mcp_addr: Text,
        exec: Text,
        snapshot: RawLitestreamSnapshot,
        levels: Loose,
        logging: Loose,
        socket: Loose,
        validation: Loose,
        l0_retention: Loose,
        l0_retention_check_interval: Loose,
        verify_compaction: Loose,
        heartbeat_url: Loose,
        heartbeat_interval: Loose,
        shutdown_sync_timeout: Text,
        shutdown_sync_interval: Loose,
    }
);

raw!(
    /// `snapshot` of Litestream 0.5.
    RawLitestreamSnapshot { interval: Text, retention: Text }
);

raw!(
    /// An entry of `dbs`.
    RawLitestreamDb {
        path: Text,
        dir: Text,
        pattern: Text,
        recursive: Text,
        watch: Text,
        meta_path: Loose,
        meta_dir: Loose,
        monitor_interval: Loose,
        checkpoint_interval: Loose,
        busy_timeout: Loose,
        min_checkpoint_page_count: Loose,
        max_checkpoint_page_count: Loose,
        truncate_page_n: Loose,
        restore_if_db_not_exists: Text,
        replica: Spanned<RawReplica>,
        replicas: Vec<Spanned<RawReplica>>,
    }
);

raw_with_replica_settings!(
    /// A replica of a database.
    RawReplica {
        name: Loose,
        r#type: Text,
        path: Text,
        url: Text,
    }
);

/// Whether a text is a litestream.yml: only that has `dbs` at the top. Text that is not a map is not.
pub(super) fn is_litestream(text: &str) -> bool {
    let top: Result<std::collections::BTreeMap<String, IgnoredAny>, _> =
        serde_saphyr::from_str(text);
    top.is_ok_and(|top| top.contains_key("dbs"))
}

/// Reads a file's text.
pub(super) fn parse<T: DeserializeOwned + Default>(
    text: &str,
    path: &Path,
) -> Result<T, ConfigError> {
    // A file of comments only is an empty configuration, not a syntax error.
    if text.lines().all(|line| {
        line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim() == "---"
    }) {
        return Ok(T::default());
    }
    // No snippets of the file in errors: the lines around an error may hold secrets.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| parse_error(&error, path))
}

/// The parser's error as ours. Never repeats a value.
fn parse_error(error: &DeserializeError, path: &Path) -> ConfigError {
    let error = error.without_snippet();
    let place = Place::File(path.into(), error.location().map_or(0, |l| l.line()));
    let message = match error {
        DeserializeError::SerdeUnknownField {
            field, expected, ..
        } => {
            return ConfigError::UnknownKey {
                place,
                key: field.clone(),
                nearest: nearest(field, expected.iter().copied()),
                known: expected.clone(),
            };
        }
        DeserializeError::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{key}` stands here twice")
        }
        DeserializeError::NullIntoString { .. } => "a key has no value".into(),
        DeserializeError::SerdeInvalidType { expected, .. }
        | DeserializeError::SerdeInvalidValue { expected, .. } => {
            format!("expected {expected}")
        }
        DeserializeError::Unexpected { expected, .. } if *expected == "sequence start" => {
            "expected a list: lines that begin with `- `, or [ ]".into()
        }
        DeserializeError::Unexpected { expected, .. } => format!("expected {expected}"),
        DeserializeError::MultipleDocuments { .. } => {
            "the file holds more than one document".into()
        }
        DeserializeError::UnknownAnchor { .. } => {
            "an alias names an anchor that is not there".into()
        }
        DeserializeError::ExternalMessage { msg, .. } => format!("not valid YAML: {msg}"),
        _ => "not valid YAML, or not of the shape of a configuration".into(),
    };
    ConfigError::Yaml { place, message }
}

/// The known word most like `word`, if any is near.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Jaro-Winkler similarity below which a suggestion confuses more than it helps.
    const NEAR: f64 = 0.8;
    let same = word.replace('_', "-").to_ascii_lowercase();
    known
        .into_iter()
        .map(|k| {
            (
                strsim::jaro_winkler(&same, &k.replace('_', "-").to_ascii_lowercase()),
                k,
            )
        })
        .filter(|(score, _)| *score >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}
