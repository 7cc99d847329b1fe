//! Databases and folders: from entries of the file, the environment and the command line.

use std::path::{Path, PathBuf};

use super::build::Builder;
use super::checked::{DEFAULT_PATTERN, DirConfig, SqliteOptions, TargetConfig};
use super::discover::{check_pattern, is_target_name, stem};
use super::error::{ConfigError, Place};
use super::expand::Text;
use super::paths;
use super::raw::RawSqlite;
use super::store::{StoreConfig, StoreParts};
use super::values::{Defaults, target_name};

impl Builder<'_, '_> {
    /// An entry of `sqlite`.
    pub(super) fn sqlite(&mut self, raw: RawSqlite, place: &Place) -> Result<(), ConfigError> {
        let v = self.values;
        let conflict = |first, second| {
            Err(ConfigError::Conflict {
                place: place.clone(),
                first,
                second,
            })
        };
        let mut stores = self.stores_of(raw.store, raw.stores, false)?;
        if stores.is_empty() {
            stores = self.shared_stores();
        }
        let own = self.defaults_of(
            raw.sync_interval,
            raw.snapshot_interval,
            raw.max_lag,
            raw.retention,
        )?;
        let defaults = own.or(&self.defaults);
        let ensure_wal = raw
            .ensure_wal
            .as_ref()
            .map(|t| v.flag("ensure-wal", t))
            .transpose()?;
        let watch = raw.watch.as_ref().map(|t| v.flag("watch", t)).transpose()?;
        match (raw.path, raw.dir) {
            (Some(_), Some(_)) => conflict("path", "dir"),
            (None, None) => Err(ConfigError::Missing {
                place: place.clone(),
                key: "path",
                why: "an entry needs a `path` or a `dir`",
            }),
            (Some(_), None) if raw.pattern.is_some() => conflict("path", "pattern"),
            (Some(_), None) if raw.watch.is_some() => conflict("path", "watch"),
            (None, Some(_)) if raw.name.is_some() => conflict("dir", "name"),
            (None, Some(_)) if raw.assert.is_some() => conflict("dir", "assert"),
            (Some(path), None) => {
                let name = raw.name.as_ref().map(|t| target_name(v, t)).transpose()?;
                let path = PathBuf::from(v.text("path", &path)?);
                let mut options = defaults.options(stores, ensure_wal.unwrap_or(true));
                for sql in raw.assert.unwrap_or_default() {
                    options.asserts.push(v.text("assert", &sql)?);
                }
                self.target(name, &path, options, place)
            }
            (None, Some(dir)) => {
                if let (Some(true), Some(at)) = (ensure_wal, &raw.ensure_wal) {
                    return Err(v.invalid(
                        "ensure-wal",
                        at,
                        "is never done to databases found in a folder: list them by `path`",
                    ));
                }
                let pattern = match raw.pattern {
                    Some(text) => {
                        let pattern = v.text("pattern", &text)?;
                        check_pattern(&pattern).map_err(|why| v.invalid("pattern", &text, why))?;
                        Some(pattern)
                    }
                    None => None,
                };
                let dir = PathBuf::from(v.text("dir", &dir)?);
                self.dir(
                    &dir,
                    pattern,
                    watch.unwrap_or(false),
                    &defaults,
                    stores,
                    place,
                )
            }
        }
    }

    /// Adds a database by path.
    pub(super) fn target(
        &mut self,
        name: Option<String>,
        path: &Path,
        options: SqliteOptions,
        place: &Place,
    ) -> Result<(), ConfigError> {
        self.check_stores(&options.stores, path, place)?;
        let name = match name {
            Some(name) => name,
            None => path
                .file_name()
                .and_then(|n| n.to_str())
                .map(stem)
                .unwrap_or_default()
                .to_owned(),
        };
        if !is_target_name(&name) {
            return Err(ConfigError::Invalid {
                place: place.clone(),
                key: "path".into(),
                why: format!(
                    "the file name of {} is no name of a target (letters, digits, `.`, `_`, `-`): add a `name`",
                    path.display()
                ),
            });
        }
        let path = paths::resolved(path, self.values.host);
        if path.is_dir() {
            return Err(ConfigError::Invalid {
                place: place.clone(),
                key: "path".into(),
                why: format!("{} is a folder: use `dir`", path.display()),
            });
        }
        self.targets.push(TargetConfig {
            name,
            path,
            explicit: true,
            options,
        });
        Ok(())
    }

    /// Adds a folder.
    pub(super) fn dir(
        &mut self,
        dir: &Path,
        pattern: Option<String>,
        watch: bool,
        defaults: &Defaults,
        stores: Vec<StoreConfig>,
        place: &Place,
    ) -> Result<(), ConfigError> {
        self.check_stores(&stores, dir, place)?;
        self.dirs.push(DirConfig {
            dir: paths::resolved(dir, self.values.host),
            pattern: pattern.unwrap_or_else(|| DEFAULT_PATTERN.into()),
            watch,
            options: defaults.options(stores, false),
            retention_chosen: defaults.retention.is_some(),
            sync_interval_chosen: defaults.sync_interval.is_some(),
        });
        Ok(())
    }

    pub(super) fn check_stores(
        &self,
        stores: &[StoreConfig],
        what: &Path,
        place: &Place,
    ) -> Result<(), ConfigError> {
        if stores.is_empty() {
            return Err(ConfigError::NoStore {
                place: place.clone(),
                what: what.display().to_string(),
            });
        }
        for (i, store) in stores.iter().enumerate() {
            if stores[..i]
                .iter()
                .any(|other| (&other.url, &other.endpoint) == (&store.url, &store.endpoint))
            {
                let why = format!("{} is there twice", store.url);
                return Err(ConfigError::Invalid {
                    place: place.clone(),
                    key: "stores".into(),
                    why,
                });
            }
        }
        Ok(())
    }

    /// Whether a name is taken already.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.targets.iter().any(|t| t.name == name)
    }

    pub(super) fn shared_stores(&self) -> Vec<StoreConfig> {
        if self.stores.is_empty() {
            self.fallback_store.iter().cloned().collect()
        } else {
            self.stores.clone()
        }
    }

    /// Words of the command line: databases, folders, and stores for them.
    pub(super) fn command_line(&mut self, words: &[PathBuf]) -> Result<(), ConfigError> {
        let place = Place::CommandLine;
        let is_url = |word: &&PathBuf| word.to_str().is_some_and(|w| w.contains("://"));
        let (urls, databases): (Vec<_>, Vec<_>) = words.iter().partition(is_url);
        let mut stores = self.shared_stores();
        if !urls.is_empty() {
            // One database and URLs are Litestream's way of naming the replica's own place.
            let exact = databases.len() == 1 && !self.values.host.cwd.join(databases[0]).is_dir();
            let store_of = |word: &&PathBuf| {
                let url = word.to_string_lossy().into_owned();
                self.checked_store(
                    StoreParts {
                        url,
                        prefix_is_exact: exact,
                        ..StoreParts::default()
                    },
                    place.clone(),
                )
            };
            stores = urls.iter().map(store_of).collect::<Result<_, _>>()?;
        }
        let defaults = self.defaults.clone();
        for database in databases {
            if self.values.host.cwd.join(database).is_dir() {
                self.dir(database, None, true, &defaults, stores.clone(), &place)?;
            } else {
                self.target(
                    None,
                    database,
                    defaults.options(stores.clone(), true),
                    &place,
                )?;
            }
        }
        Ok(())
    }

    /// The mounted volume, if the environment names no databases.
    pub(super) fn volumes(&mut self) -> Result<(), ConfigError> {
        if !self.targets.is_empty() || !self.dirs.is_empty() {
            return Ok(());
        }
        let defaults = self.defaults.clone();
        match self
            .values
            .host
            .volumes
            .iter()
            .find(|volume| volume.is_dir())
        {
            Some(volume) => self.dir(
                volume,
                None,
                true,
                &defaults,
                self.shared_stores(),
                &Place::Environment,
            ),
            None if !self.postgres.is_empty() => Ok(()),
            None => Err(ConfigError::NoTargets {
                place: Place::Environment,
            }),
        }
    }

    /// `LIFEBOAT_DATABASES`: paths and folders separated by colons.
    pub(super) fn databases_of_environment(&mut self) -> Result<(), ConfigError> {
        let place = Place::Environment;
        let Some(Text { value: list, .. }) = self.variable("LIFEBOAT_DATABASES") else {
            return Ok(());
        };
        let defaults = self.defaults.clone();
        for word in list.split(':').filter(|word| !word.is_empty()) {
            let path = Path::new(word);
            if word.ends_with('/') || self.values.host.cwd.join(path).is_dir() {
                self.dir(path, None, true, &defaults, self.shared_stores(), &place)?;
            } else {
                self.target(
                    None,
                    path,
                    defaults.options(self.shared_stores(), true),
                    &place,
                )?;
            }
        }
        Ok(())
    }
}
