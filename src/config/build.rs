//! From raw values to a checked [`Config`].

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_saphyr::{Location, Spanned};

use super::checked::{
    Config, ConfigSource, DEFAULT_HTTP_LISTEN, DEFAULT_MIN_FREE_PERCENT, DEFAULT_SHUTDOWN_TIMEOUT,
    DEFAULT_STORE_CHECK, DirConfig, MinFree, TargetConfig,
};
use super::discover::discover;
use super::drill::DrillConfig;
use super::error::{ConfigError, Place};
use super::expand::{Resolver, Text};
use super::files::{self, FilesConfig};
use super::insight::InsightConfig;
use super::load::CONFIG_VARIABLES;
use super::notify::NotifyConfig;
use super::paths;
use super::postgres::{self, PostgresConfig};
use super::probe::ProbeConfig;
use super::raw::{RawConfig, RawHttp, RawRetention, ScalarOr};
use super::store::{Secret, StoreConfig, StoreParts, file_url_of};
use super::values::{
    Defaults, labels_of, listen, min_free, plain_retention, retention_of, time_zone,
};
use crate::labels::Rules;

/// Where to listen and the token; `None` where the file does not say it.
type HttpSettings = (Option<Option<SocketAddr>>, Option<Secret>);

/// Collects a configuration.
pub(super) struct Builder<'r, 'a> {
    pub(super) values: &'r Resolver<'a>,
    pub(super) environment: Resolver<'a>,
    pub(super) notices: Vec<String>,
    pub(super) defaults: Defaults,
    pub(super) http: Option<Option<SocketAddr>>,
    pub(super) shutdown_timeout: Option<Duration>,
    pub(super) stores: Vec<StoreConfig>,
    pub(super) fallback_store: Option<StoreConfig>,
    pub(super) targets: Vec<TargetConfig>,
    pub(super) dirs: Vec<DirConfig>,
    pub(super) files: Vec<FilesConfig>,
    pub(super) postgres: Vec<PostgresConfig>,
    pub(super) notify: Vec<NotifyConfig>,
    pub(super) probes: Vec<ProbeConfig>,
    http_token: Option<Secret>,
    labels: Rules,
    drill: DrillConfig,
    insight: InsightConfig,
    state_dir: Option<PathBuf>,
    store_check: Option<Duration>,
    min_free: Option<MinFree>,
    pub(super) time_zone: Option<TimeZone>,
    instance: Option<String>,
    /// Variables that gave a value; the others that are set are reported as not used.
    consumed: RefCell<BTreeSet<&'static str>>,
}

impl<'r, 'a> Builder<'r, 'a> {
    pub(super) fn new(values: &'r Resolver<'a>) -> Self {
        Self {
            values,
            environment: Resolver::new(values.env, values.host, Place::Environment, false),
            notices: Vec::new(),
            defaults: Defaults::default(),
            http: None,
            shutdown_timeout: None,
            stores: Vec::new(),
            fallback_store: None,
            targets: Vec::new(),
            dirs: Vec::new(),
            files: Vec::new(),
            postgres: Vec::new(),
            notify: Vec::new(),
            probes: Vec::new(),
            http_token: None,
            labels: Rules::DEFAULT,
            drill: DrillConfig::default(),
            insight: InsightConfig::default(),
            state_dir: None,
            store_check: None,
            min_free: None,
            time_zone: None,
            instance: None,
            consumed: RefCell::default(),
        }
    }

    /// The value of a variable that is about to be used; `None` if it is not set or empty.
    pub(super) fn variable(&self, name: &'static str) -> Option<Text> {
        self.consumed.borrow_mut().insert(name);
        self.values.env.non_empty(name).map(text_of)
    }

    /// Without any other store, copies go to `./lifeboat-store`.
    pub(super) fn default_store(&mut self) -> Result<(), ConfigError> {
        let url =
            file_url_of(Path::new("lifeboat-store"), self.values.host).map_err(|(key, why)| {
                ConfigError::Invalid {
                    place: self.values.line(0),
                    key: key.into(),
                    why,
                }
            })?;
        let parts = StoreParts {
            url: url.into(),
            ..StoreParts::default()
        };
        self.fallback_store = Some(self.checked_store(parts, self.values.line(0))?);
        Ok(())
    }

    /// lifeboat.yml.
    pub(super) fn read(&mut self, raw: RawConfig) -> Result<(), ConfigError> {
        self.stores = self.stores_of(raw.store, raw.stores, true)?;
        if self.stores.is_empty() {
            self.stores = self.store_of_environment()?.into_iter().collect();
        }
        self.defaults = self.defaults_of(
            raw.sync_interval,
            raw.snapshot_interval,
            raw.max_lag,
            raw.retention,
        )?;
        self.fill_defaults_from_environment()?;
        let v = self.values;
        self.state_dir = raw
            .state_dir
            .map(|t| v.text("state-dir", &t))
            .transpose()?
            .map(PathBuf::from);
        if let Some(http) = raw.http {
            let (listen, token) = self.http_of(http)?;
            (self.http, self.http_token) = (listen, token);
        }
        self.shutdown_timeout = raw
            .shutdown_timeout
            .map(|t| v.interval("shutdown-timeout", &t))
            .transpose()?;
        self.store_check = raw
            .store_check
            .map(|t| v.interval("store-check", &t))
            .transpose()?;
        self.min_free = raw.min_free.map(|t| min_free(v, &t)).transpose()?;
        self.time_zone = raw.time_zone.map(|t| time_zone(v, &t)).transpose()?;
        self.instance = raw.instance.map(|t| v.text("instance", &t)).transpose()?;
        if let Some(raw) = raw.labels {
            self.labels = labels_of(v, raw)?;
        }
        if let Some(raw) = raw.drill {
            self.drill = self.drill_of(raw)?;
        }
        if let Some(raw) = raw.insight {
            self.insight = self.insight_of(raw)?;
        }
        for entry in raw.notify.unwrap_or_default() {
            let place = v.at(&entry);
            self.notify_entry(entry.value, &place)?;
        }
        for entry in raw.probes.unwrap_or_default() {
            let place = v.at(&entry);
            self.probe_entry(entry.value, &place)?;
        }
        for entry in raw.files.unwrap_or_default() {
            let place = v.at(&entry);
            self.files_target(entry.value, &place)?;
        }
        for entry in raw.postgres.unwrap_or_default() {
            let place = v.at(&entry);
            self.postgres_target(entry.value, &place)?;
        }
        for entry in raw.redis.unwrap_or_default() {
            let place = v.at(&entry);
            self.redis_target(entry.value, &place)?;
        }
        match raw.sqlite {
            Some(entries) => {
                for entry in entries {
                    let place = v.at(&entry);
                    self.sqlite(entry.value, &place)?;
                }
                Ok(())
            }
            // Databases named on the command line are the only ones.
            None if v.line(0) == Place::CommandLine => Ok(()),
            None => self.databases_of_environment(),
        }
    }

    /// Sync interval and retention from the environment, where the file has none.
    pub(super) fn fill_defaults_from_environment(&mut self) -> Result<(), ConfigError> {
        if self.defaults.sync_interval.is_none() {
            self.defaults.sync_interval =
                self.of_environment("LIFEBOAT_SYNC_INTERVAL", Resolver::interval)?;
        }
        if self.defaults.retention.is_none() {
            self.defaults.retention = self.of_environment("LIFEBOAT_RETENTION", plain_retention)?;
        }
        Ok(())
    }

    fn of_environment<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&Resolver<'a>, &str, &Text) -> Result<T, ConfigError>,
    ) -> Result<Option<T>, ConfigError> {
        self.variable(name)
            .map(|text| parse(&self.environment, name, &text))
            .transpose()
    }

    pub(super) fn defaults_of(
        &self,
        sync_interval: Option<Text>,
        snapshot_interval: Option<Text>,
        max_lag: Option<Text>,
        retention: Option<Spanned<ScalarOr<RawRetention>>>,
    ) -> Result<Defaults, ConfigError> {
        let v = self.values;
        Ok(Defaults {
            sync_interval: sync_interval
                .map(|t| v.interval("sync-interval", &t))
                .transpose()?,
            snapshot_interval: snapshot_interval
                .map(|t| v.interval("snapshot-interval", &t))
                .transpose()?,
            max_lag: max_lag.map(|t| v.interval("max-lag", &t)).transpose()?,
            retention: retention.map(|raw| retention_of(v, raw)).transpose()?,
        })
    }

    /// Where to listen, if the file says it, and the token of pages and API.
    fn http_of(&self, raw: Spanned<ScalarOr<RawHttp>>) -> Result<HttpSettings, ConfigError> {
        let v = self.values;
        match raw.value {
            ScalarOr::Scalar(text) => {
                let text = Text::new(text, raw.referenced, raw.defined);
                Ok((Some(listen(v, "http", &text)?), None))
            }
            ScalarOr::Map(raw) => {
                let token = v.secret(
                    ("token", raw.token.as_ref()),
                    ("token-file", raw.token_file.as_ref()),
                )?;
                let listen = raw.listen.map(|text| listen(v, "listen", &text));
                Ok((listen.transpose()?, token))
            }
        }
    }

    /// A variable that is set and changes nothing is said, so that nobody relies on it.
    fn report_unused_variables(&mut self) {
        let why = match self.values.line(0) {
            Place::Environment => "nothing here needs it".to_owned(),
            place => format!("{place} comes first"),
        };
        for name in CONFIG_VARIABLES
            .iter()
            .filter(|name| !self.consumed.borrow().contains(**name))
        {
            if self.values.env.non_empty(name).is_some() {
                self.notices.push(format!("{name} is not used: {why}"));
            }
        }
    }

    /// Looks into the folders, checks what concerns several targets, and fills in the rest.
    pub(super) fn finish(mut self, source: ConfigSource) -> Result<Config, ConfigError> {
        check_unique(&self.targets)?;
        let listed = self.targets.iter_mut().map(|t| &mut t.options.retention);
        let found = self.dirs.iter_mut().map(|d| &mut d.options.retention);
        let dumped = self.postgres.iter_mut().map(|s| &mut s.retention);
        let files = self.files.iter_mut().map(|f| &mut f.retention);
        for retention in listed.chain(found).chain(dumped).chain(files) {
            retention.labels = self.labels;
        }
        for dir in &self.dirs {
            let found = discover(dir, &self.targets).map_err(|source| ConfigError::Read {
                what: "the database folder",
                path: dir.dir.clone(),
                source,
            })?;
            if found.taken.is_empty() {
                let here = |t: &TargetConfig| t.path.parent() == Some(&dir.dir);
                self.notices.push(match self.targets.iter().any(here) {
                    true => format!("no database in {} beside those listed", dir.dir.display()),
                    false => format!("no database in {} yet", dir.dir.display()),
                });
            }
            for target in &found.taken {
                self.notices.push(format!(
                    "found database {} as `{}`",
                    target.path.display(),
                    target.name
                ));
            }
            for (path, reason) in &found.left {
                self.notices
                    .push(format!("left out {}: {reason}", path.display()));
            }
            self.targets.extend(found.taken);
        }
        check_unique(&self.targets)?;
        files::check_unique(&self.files, &self.targets)?;
        postgres::check_unique(&self.postgres, &self.files, &self.targets)?;
        // One that is not watched stays for what the store may have of it.
        let no_databases = self.targets.is_empty() && !self.dirs.iter().any(|dir| dir.watch);
        if no_databases && self.files.is_empty() && self.postgres.is_empty() {
            return Err(ConfigError::NoTargets {
                place: self.values.line(0),
            });
        }
        if self.http.is_none() {
            self.http = self.of_environment("LIFEBOAT_HTTP_LISTEN", listen)?;
        }
        if self.http_token.is_none() {
            // An empty token is a mistake: it would open what it was to close.
            let set = |name| {
                self.variable(name);
                self.values.env.get(name).map(text_of)
            };
            let (key, file) = ("LIFEBOAT_HTTP_TOKEN", "LIFEBOAT_HTTP_TOKEN_FILE");
            let (token, path) = (set(key), set(file));
            let token = (key, token.as_ref());
            self.http_token = self.environment.secret(token, (file, path.as_ref()))?;
        }
        if self.state_dir.is_none() {
            self.state_dir = self
                .of_environment("LIFEBOAT_STATE_DIR", Resolver::text)?
                .map(PathBuf::from);
        }
        if self.instance.is_none() {
            self.instance = self.of_environment("LIFEBOAT_INSTANCE", Resolver::text)?;
        }
        self.notify_of_environment()?;
        self.report_unused_variables();
        let host = self.values.host;
        Ok(Config {
            source,
            targets: self.targets,
            dirs: self.dirs,
            files: self.files,
            postgres: self.postgres,
            notify: self.notify,
            probes: self.probes,
            labels: self.labels,
            drill: self.drill,
            insight: self.insight,
            state_dir: self.state_dir.map(|dir| paths::resolved(&dir, host)),
            http_token: self.http_token,
            http: self.http.unwrap_or(Some(DEFAULT_HTTP_LISTEN)),
            shutdown_timeout: self.shutdown_timeout.unwrap_or(DEFAULT_SHUTDOWN_TIMEOUT),
            store_check: self.store_check.unwrap_or(DEFAULT_STORE_CHECK),
            min_free: self
                .min_free
                .unwrap_or(MinFree::Percent(DEFAULT_MIN_FREE_PERCENT)),
            time_zone: self.time_zone.unwrap_or(TimeZone::UTC),
            instance: self.instance.unwrap_or_else(|| {
                let name = self
                    .values
                    .env
                    .non_empty("KAMAL_HOST")
                    .unwrap_or(&host.hostname);
                match self.values.env.non_empty("KAMAL_SERVICE") {
                    Some(service) => format!("{name}/{service}"),
                    None => name.to_owned(),
                }
            }),
            notices: self.notices,
        })
    }
}

pub(super) fn text_of(value: &str) -> Text {
    Text::new(value.to_owned(), Location::UNKNOWN, Location::UNKNOWN)
}

/// Names, paths and places in stores belong to one target each.
fn check_unique(targets: &[TargetConfig]) -> Result<(), ConfigError> {
    let mut names: HashMap<&str, &TargetConfig> = HashMap::new();
    let mut paths: HashMap<&Path, &TargetConfig> = HashMap::new();
    let mut places: HashMap<(String, Option<&str>), &TargetConfig> = HashMap::new();
    for target in targets {
        if let Some(other) = paths.insert(&target.path, target) {
            return Err(ConfigError::SamePath {
                path: target.path.clone(),
                first: other.name.clone(),
                second: target.name.clone(),
            });
        }
        let (second, name) = (target.path.clone(), target.name.clone());
        if let Some(other) = names.insert(&target.name, target) {
            return Err(ConfigError::SameName {
                name,
                first: other.path.clone(),
                second,
            });
        }
        for store in &target.options.stores {
            let place = if store.prefix_is_exact {
                store.clone()
            } else {
                store.below(&target.name)
            };
            let url = place.url.to_string();
            if let Some(other) = places.insert((url.clone(), store.endpoint.as_deref()), target) {
                return Err(ConfigError::SameStore {
                    url,
                    first: other.path.clone(),
                    second,
                });
            }
        }
    }
    Ok(())
}
