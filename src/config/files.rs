//! Folders of files: what an entry of `files` says.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::build::Builder;
use super::checked::{RetentionConfig, TargetConfig, show_path, show_retention, show_store};
use super::error::{ConfigError, Place};
use super::paths;
use super::raw::RawFiles;
use super::store::{Secret, StoreConfig};
use super::values::{retention_of, target_name};

/// Files change more slowly than databases, and a run reads every name: once a day.
const DEFAULT_SCHEDULE: &str = "@daily";

/// Folders of files, kept together as one restic repository in each store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesConfig {
    /// Unique among all targets; letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Absolute; at least one. They need not exist yet.
    pub paths: Vec<PathBuf>,
    /// What is left out, in `.gitignore`'s patterns.
    pub exclude: Vec<String>,
    /// When, as a cron expression.
    pub schedule: String,
    /// What is kept for how long.
    pub retention: RetentionConfig,
    /// Of the repository: without it nobody reads what it holds.
    pub password: Secret,
    /// Make the repository if there is none.
    pub create: bool,
    /// Record an empty folder after a full one.
    pub allow_empty: bool,
    /// At least one; each holds a repository of its own.
    pub stores: Vec<StoreConfig>,
}

impl Builder<'_, '_> {
    /// An entry of `files`.
    pub(super) fn files_target(&mut self, raw: RawFiles, place: &Place) -> Result<(), ConfigError> {
        let v = self.values;
        let missing = |key, why| ConfigError::Missing {
            place: place.clone(),
            key,
            why,
        };
        let name = raw.name.ok_or_else(|| {
            missing(
                "name",
                "it is the folder in the store and the name on the command line",
            )
        })?;
        let name = target_name(v, &name)?;
        let mut folders = Vec::new();
        for path in raw.paths.unwrap_or_default() {
            let path = paths::resolved(v.text("paths", &path)?.as_ref(), v.host);
            if path.to_str().is_none() || path.parent().is_none() {
                return Err(ConfigError::Invalid {
                    place: place.clone(),
                    key: "paths".into(),
                    why: format!(
                        "{} cannot be taken: name folders below the root",
                        path.display()
                    ),
                });
            }
            folders.push(path);
        }
        folders.sort();
        folders.dedup();
        // A folder inside another is already there.
        let all = folders.clone();
        folders.retain(|p| !all.iter().any(|q| q != p && p.starts_with(q)));
        let Some(first) = folders.first().cloned() else {
            return Err(missing("paths", "there is nothing to keep without them"));
        };
        let mut exclude = Vec::new();
        for pattern in raw.exclude.unwrap_or_default() {
            let text = v.text("exclude", &pattern)?;
            let mut check = ignore::gitignore::GitignoreBuilder::new("/");
            if let Err(e) = check.add_line(None, &text) {
                return Err(v.invalid("exclude", &pattern, e.to_string()));
            }
            if text.starts_with('!') {
                return Err(v.invalid("exclude", &pattern, "cannot begin with `!`"));
            }
            exclude.push(text);
        }
        let mut stores = self.stores_of(raw.store, raw.stores, false)?;
        if stores.is_empty() {
            stores = self.shared_stores();
        }
        self.check_stores(&stores, &first, place)?;
        let schedule = match raw.schedule {
            Some(text) => {
                let expr = v.text("schedule", &text)?;
                crate::schedule::Schedule::parse(&expr, &jiff::tz::TimeZone::UTC)
                    .map_err(|e| v.invalid("schedule", &text, e.to_string()))?;
                expr
            }
            None => DEFAULT_SCHEDULE.into(),
        };
        let retention = match raw.retention {
            Some(raw) => retention_of(v, raw)?,
            None => self.defaults.retention.unwrap_or_default(),
        };
        let own = v.secret(
            ("password", raw.password.as_ref()),
            ("password-file", raw.password_file.as_ref()),
        )?;
        let password = match own {
            Some(password) => password,
            None => self.files_password()?.ok_or_else(|| missing("password", "a repository is encrypted; give `password`, `password-file` or LIFEBOAT_FILES_PASSWORD, and keep it where this server's loss does not reach it"))?,
        };
        let flag = |key, text: Option<super::expand::Text>| {
            text.map(|t| v.flag(key, &t))
                .transpose()
                .map(|f| f.unwrap_or(false))
        };
        self.files.push(FilesConfig {
            name,
            paths: folders,
            exclude,
            schedule,
            retention,
            password,
            create: flag("create", raw.create)?,
            allow_empty: flag("allow-empty", raw.allow_empty)?,
            stores,
        });
        Ok(())
    }

    fn files_password(&self) -> Result<Option<Secret>, ConfigError> {
        let set = |name| {
            self.variable(name);
            self.values.env.get(name).map(super::build::text_of)
        };
        let (key, file) = ("LIFEBOAT_FILES_PASSWORD", "LIFEBOAT_FILES_PASSWORD_FILE");
        self.environment
            .secret((key, set(key).as_ref()), (file, set(file).as_ref()))
    }
}

/// Names and places belong to one target each.
pub(super) fn check_unique(
    files: &[FilesConfig],
    targets: &[TargetConfig],
) -> Result<(), ConfigError> {
    for (i, one) in files.iter().enumerate() {
        let other = files[..i]
            .iter()
            .find(|f| f.name == one.name)
            .map(|f| f.paths[0].clone());
        let other = other.or_else(|| {
            targets
                .iter()
                .find(|t| t.name == one.name)
                .map(|t| t.path.clone())
        });
        if let Some(first) = other {
            return Err(ConfigError::SameName {
                name: one.name.clone(),
                first,
                second: one.paths[0].clone(),
            });
        }
    }
    Ok(())
}

/// For `config show`, without the password.
pub(super) fn show_files(files: &FilesConfig) -> Value {
    json!({
        "name": files.name,
        "paths": files.paths.iter().map(|p| show_path(p)).collect::<Vec<_>>(),
        "exclude": files.exclude,
        "schedule": files.schedule,
        "retention": show_retention(files.retention),
        "password": files.password.to_string(),
        "create": files.create,
        "allow-empty": files.allow_empty,
        "stores": files.stores.iter().map(show_store).collect::<Vec<_>>(),
    })
}
