//! Servers whose databases are dumped: what an entry of `postgres` or `redis` says.

use std::path::PathBuf;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::{Value, json};
use serde_saphyr::Spanned;

use super::build::{Builder, text_of};
use super::checked::{RetentionConfig, TargetConfig, show_retention, show_store};
use super::discover::is_target_name;
use super::error::{ConfigError, Place};
use super::expand::Text;
use super::files::FilesConfig;
use super::paths;
use super::raw::{RawDatabases, RawPostgres, RawRedis, RawRetention, ScalarOr};
use super::store::{Secret, StoreConfig};
use super::units::{format_duration, parse_duration, parse_size};
use super::values::{retention_of, target_name, time_zone};
use crate::postgres::{Connection, DumpOptions, Kind, Parts};
use crate::redis;
use crate::schedule::Schedule;

/// A dump reads the whole database: once an hour is what most can bear, and few want more.
const DEFAULT_SCHEDULE: &str = "@hourly";
/// A dump that is younger than this is good enough for a deploy with `on-deploy: reuse`.
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// Name of the target that `DATABASE_URL` gives, if the database's own name cannot be one.
const DEFAULT_NAME: &str = "postgres";
/// Levels of zstd.
const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// Which databases of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Databases {
    /// The one of the URL.
    Own,
    /// All, also those that appear later; templates left out.
    All,
    /// These.
    Named(Vec<String>),
    /// All but these.
    Except(Vec<String>),
}

/// What a labelled snapshot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDeploy {
    /// Dumps.
    Always,
    /// Pins a recent dump if there is one.
    Reuse,
    /// Leaves the target out, unless it is named.
    Skip,
}

impl OnDeploy {
    fn word(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Reuse => "reuse",
            Self::Skip => "skip",
        }
    }
}

/// What is dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Databases of a PostgreSQL server.
    Postgres(Connection),
    /// A Redis server.
    Redis(redis::Connection),
}

impl Origin {
    /// Which of them.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Postgres(_) => Kind::Postgres,
            Self::Redis(_) => Kind::Redis,
        }
    }

    /// The server, in words, without user and password.
    pub fn server(&self) -> String {
        match self {
            Self::Postgres(connection) => connection.server(),
            Self::Redis(connection) => connection.server(),
        }
    }

    /// As a URL for people, without user and password.
    pub fn display(&self) -> String {
        match self {
            Self::Postgres(connection) => connection.display(),
            Self::Redis(connection) => connection.display(),
        }
    }
}

/// Databases of one server, of whichever kind, that are dumped on a schedule.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// Unique among all targets; letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// What it is and how to reach it. No password is shown by `Debug`.
    pub origin: Origin,
    /// A role with more rights, for restores.
    pub restore: Option<Connection>,
    /// A server that drills may fill and empty.
    pub drill: Option<Connection>,
    /// SQL that must be true of a drilled dump.
    pub asserts: Vec<String>,
    /// Which databases.
    pub databases: Databases,
    /// When, as a cron expression in `time_zone`.
    pub schedule: String,
    /// The schedule's zone.
    pub time_zone: TimeZone,
    /// A run begins up to this much later, at random.
    pub jitter: Duration,
    /// What is kept for how long; `point_in_time` keeps every dump of that long.
    pub retention: RetentionConfig,
    /// Folder of the client programs.
    pub bin_dir: Option<PathBuf>,
    /// How dumps are made.
    pub dump: DumpOptions,
    /// What a labelled snapshot does.
    pub on_deploy: OnDeploy,
    /// How old a dump may be to be reused.
    pub max_age: Duration,
    /// Bytes a day that are read back from each store to be checked; 0 is none.
    pub read_budget: u64,
    /// At least one.
    pub stores: Vec<StoreConfig>,
}

impl PostgresConfig {
    /// It could be drilled, and there is no server for it.
    pub fn lacks_drills(&self) -> bool {
        self.origin.kind() == Kind::Postgres && self.drill.is_none()
    }
}

impl Builder<'_, '_> {
    /// An entry of `postgres`.
    pub(super) fn postgres_target(
        &mut self,
        raw: RawPostgres,
        place: &Place,
    ) -> Result<(), ConfigError> {
        let origin = Origin::Postgres(self.connection(&raw, place)?);
        self.dumped(raw, origin, place)
    }

    /// An entry of `redis`.
    pub(super) fn redis_target(&mut self, raw: RawRedis, place: &Place) -> Result<(), ConfigError> {
        let v = self.values;
        let url = v.secret(
            ("url", raw.url.as_ref()),
            ("url-file", raw.url_file.as_ref()),
        )?;
        let password = v.secret(
            ("password", raw.password.as_ref()),
            ("password-file", raw.password_file.as_ref()),
        )?;
        let Some(url) = url else {
            return Err(ConfigError::Missing {
                place: place.clone(),
                key: "url",
                why: "as redis://:password@host:6379",
            });
        };
        let connection =
            redis::Connection::from_url(url.reveal()).map_err(|e| ConfigError::Invalid {
                place: place.clone(),
                key: "url".into(),
                why: e.to_string(),
            })?;
        let common = RawPostgres {
            name: raw.name,
            schedule: raw.schedule,
            time_zone: raw.time_zone,
            jitter: raw.jitter,
            retention: raw.retention,
            bin_dir: raw.bin_dir,
            compression_level: raw.compression_level,
            compression_threads: raw.compression_threads,
            on_deploy: raw.on_deploy,
            max_age: raw.max_age,
            read_budget: raw.read_budget,
            store: raw.store,
            stores: raw.stores,
            ..RawPostgres::default()
        };
        let origin = Origin::Redis(connection.with_password(password));
        self.dumped(common, origin, place)
    }

    /// What entries of both kinds say.
    fn dumped(
        &mut self,
        raw: RawPostgres,
        origin: Origin,
        place: &Place,
    ) -> Result<(), ConfigError> {
        let v = self.values;
        let Some(name) = &raw.name else {
            return Err(ConfigError::Missing {
                place: place.clone(),
                key: "name",
                why: "it is the folder in the store and the name on the command line",
            });
        };
        let name = target_name(v, name)?;
        let statistics = raw
            .statistics
            .as_ref()
            .map(|t| v.flag("statistics", t))
            .transpose()?;
        let url = |key, url: &Option<Text>, file_key, file: &Option<Text>| {
            let found = v.secret((key, url.as_ref()), (file_key, file.as_ref()))?;
            found.map(|url| connection_of(&url, key, place)).transpose()
        };
        let restore = url(
            "restore-url",
            &raw.restore_url,
            "restore-url-file",
            &raw.restore_url_file,
        )?;
        let drill = url(
            "drill-url",
            &raw.drill_url,
            "drill-url-file",
            &raw.drill_url_file,
        )?;
        let mut stores = self.stores_of(raw.store, raw.stores, false)?;
        if stores.is_empty() {
            stores = self.shared_stores();
        }
        self.check_stores(&stores, origin.display().as_ref(), place)?;
        let zone = match &raw.time_zone {
            Some(text) => time_zone(v, text)?,
            None => self.time_zone.clone().unwrap_or(TimeZone::UTC),
        };
        let schedule = match &raw.schedule {
            Some(text) => {
                let expr = v.text("schedule", text)?;
                Schedule::parse(&expr, &zone)
                    .map_err(|e| v.invalid("schedule", text, e.to_string()))?;
                expr
            }
            None => DEFAULT_SCHEDULE.into(),
        };
        let duration = |key, text: &Option<Text>, default| {
            let given = text.as_ref().map(|t| v.parsed(key, t, parse_duration));
            given.unwrap_or(Ok(default))
        };
        let bin_dir = raw
            .bin_dir
            .as_ref()
            .map(|t| v.text("bin-dir", t))
            .transpose()?;
        let read_budget = raw
            .read_budget
            .as_ref()
            .map(|t| v.parsed("read-budget", t, parse_size));
        let asserts = raw.assert.unwrap_or_default();
        let asserts = asserts.iter().map(|t| v.text("assert", t));
        let one = PostgresConfig {
            name,
            origin,
            restore,
            drill,
            asserts: asserts.collect::<Result<_, _>>()?,
            databases: self.databases(raw.databases)?,
            schedule,
            time_zone: zone,
            jitter: duration("jitter", &raw.jitter, Duration::ZERO)?,
            retention: match raw.retention {
                Some(raw) => self.dump_retention(raw)?,
                None => self.defaults.retention.unwrap_or_else(default_retention),
            },
            bin_dir: bin_dir.map(|dir| paths::absolute(dir.as_ref(), v.host)),
            dump: DumpOptions {
                statistics: statistics.unwrap_or(false),
                ..self.dump_options(
                    raw.pg_dump_args,
                    raw.compression_level.as_ref(),
                    raw.compression_threads.as_ref(),
                    raw.lock_wait_timeout.as_ref(),
                )?
            },
            on_deploy: match &raw.on_deploy {
                Some(text) => match v.text("on-deploy", text)?.as_str() {
                    "always" => OnDeploy::Always,
                    "reuse" => OnDeploy::Reuse,
                    "skip" => OnDeploy::Skip,
                    _ => return Err(v.invalid("on-deploy", text, "must be always, reuse or skip")),
                },
                None => OnDeploy::Always,
            },
            max_age: duration("max-age", &raw.max_age, DEFAULT_MAX_AGE)?,
            read_budget: read_budget.unwrap_or(Ok(0))?,
            stores,
        };
        self.postgres.push(one);
        Ok(())
    }

    /// `url`, or the parts, or libpq's own variables.
    fn connection(&self, raw: &RawPostgres, place: &Place) -> Result<Connection, ConfigError> {
        let v = self.values;
        let url = v.secret(
            ("url", raw.url.as_ref()),
            ("url-file", raw.url_file.as_ref()),
        )?;
        let password = v.secret(
            ("password", raw.password.as_ref()),
            ("password-file", raw.password_file.as_ref()),
        )?;
        if let Some(url) = url {
            let parts = [
                ("host", &raw.host),
                ("port", &raw.port),
                ("user", &raw.user),
                ("database", &raw.database),
                ("sslmode", &raw.sslmode),
                ("sslrootcert", &raw.sslrootcert),
            ];
            if let Some((second, _)) = parts.into_iter().find(|(_, part)| part.is_some()) {
                return Err(ConfigError::Conflict {
                    place: place.clone(),
                    first: "url",
                    second,
                });
            }
            return Ok(connection_of(&url, "url", place)?.with_password(password));
        }
        let part = |key, text: &Option<Text>, variable| {
            let own = text.as_ref().map(|t| v.text(key, t)).transpose()?;
            Ok::<_, ConfigError>(own.or_else(|| v.env.non_empty(variable).map(str::to_owned)))
        };
        let database = part("database", &raw.database, "PGDATABASE")?;
        let any = raw.databases.as_ref().map(|_| "postgres".to_owned());
        let parts = Parts {
            host: part("host", &raw.host, "PGHOST")?,
            port: part("port", &raw.port, "PGPORT")?,
            user: part("user", &raw.user, "PGUSER")?,
            password: password.or_else(|| v.env.non_empty("PGPASSWORD").and_then(Secret::new)),
            database: database.or(any),
            sslmode: part("sslmode", &raw.sslmode, "PGSSLMODE")?,
            sslrootcert: part("sslrootcert", &raw.sslrootcert, "PGSSLROOTCERT")?,
        };
        Connection::from_parts(parts).map_err(|_| ConfigError::Missing {
            place: place.clone(),
            key: "url",
            why: "give a `url`, or `host`, `user` and `database`, or set PGDATABASE",
        })
    }

    fn databases(&self, raw: Option<Spanned<RawDatabases>>) -> Result<Databases, ConfigError> {
        let v = self.values;
        let Some(raw) = raw else {
            return Ok(Databases::Own);
        };
        let at = Text::new(String::new(), raw.referenced, raw.defined);
        let names = |names: Vec<Text>| {
            let names: Result<Vec<_>, _> = names.iter().map(|t| v.text("databases", t)).collect();
            match names {
                Ok(names) if names.is_empty() => Err(v.invalid("databases", &at, "names none")),
                names => names,
            }
        };
        match raw.value {
            RawDatabases::Word(word) => {
                let text = Text {
                    value: word,
                    ..at.clone()
                };
                match v.text("databases", &text)?.as_str() {
                    "all" => Ok(Databases::All),
                    _ => Err(v.invalid(
                        "databases",
                        &text,
                        "must be `all`, a list of names, or `{ except: [...] }`",
                    )),
                }
            }
            RawDatabases::Names(list) => Ok(Databases::Named(names(list)?)),
            RawDatabases::Except(map) => {
                Ok(Databases::Except(names(map.except.unwrap_or_default())?))
            }
        }
    }

    /// In dumps, `point-in-time` keeps every dump: nothing of it by default.
    fn dump_retention(
        &self,
        raw: Spanned<ScalarOr<RawRetention>>,
    ) -> Result<RetentionConfig, ConfigError> {
        let v = self.values;
        let at = Text::new(String::new(), raw.referenced, raw.defined);
        let silent = matches!(&raw.value, ScalarOr::Map(map) if map.point_in_time.is_none());
        let mut retention = retention_of(v, raw)?;
        if silent {
            retention.point_in_time = Duration::ZERO;
        }
        if retention == RetentionConfig::plain(Duration::ZERO) {
            return Err(v.invalid("retention", &at, "keeps nothing"));
        }
        Ok(retention)
    }

    fn dump_options(
        &self,
        arguments: Option<Vec<Text>>,
        level: Option<&Text>,
        threads: Option<&Text>,
        lock_wait: Option<&Text>,
    ) -> Result<DumpOptions, ConfigError> {
        let v = self.values;
        let mut options = DumpOptions::default();
        for text in arguments.unwrap_or_default() {
            let argument = v.text("pg-dump-args", &text)?;
            refuse_argument(&argument).map_err(|why| v.invalid("pg-dump-args", &text, why))?;
            options.extra.push(argument);
        }
        if let Some(text) = level {
            options.level = v
                .text("compression-level", text)?
                .parse()
                .ok()
                .filter(|level| LEVELS.contains(level))
                .ok_or_else(|| v.invalid("compression-level", text, "must be 1 to 19"))?;
        }
        if let Some(text) = threads {
            options.threads = v.count("compression-threads", text)?;
        }
        if let Some(text) = lock_wait {
            let wait = v.interval("lock-wait-timeout", text)?;
            options.lock_wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        }
        Ok(options)
    }

    /// `DATABASE_URL`, if it is of PostgreSQL: enough for a container without a file.
    pub(super) fn database_url(&mut self) -> Result<(), ConfigError> {
        let place = Place::Environment;
        let Some(url) = self.values.env.non_empty("DATABASE_URL") else {
            return Ok(());
        };
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            self.notices
                .push("DATABASE_URL is not used: it does not begin with postgres://".into());
            return Ok(());
        }
        let secret = Secret::new(url).ok_or_else(|| ConfigError::EmptyCredential {
            place: place.clone(),
            key: "DATABASE_URL".into(),
        })?;
        let connection = connection_of(&secret, "DATABASE_URL", &place)?;
        let name = match is_target_name(connection.database()) {
            true => connection.database().to_owned(),
            false => DEFAULT_NAME.to_owned(),
        };
        let raw = RawPostgres {
            name: Some(text_of(&name)),
            url: Some(text_of(url)),
            ..RawPostgres::default()
        };
        self.postgres_target(raw, &place)
    }
}

fn connection_of(url: &Secret, key: &str, place: &Place) -> Result<Connection, ConfigError> {
    Connection::from_url(url.reveal()).map_err(|e| ConfigError::Invalid {
        place: place.clone(),
        key: key.into(),
        why: e.to_string(),
    })
}

/// Arguments that would change where a dump goes, or what it is.
fn refuse_argument(argument: &str) -> Result<(), &'static str> {
    const OWN: [&str; 16] = [
        "--file",
        "--format",
        "--compress",
        "--jobs",
        "--dbname",
        "--host",
        "--port",
        "--username",
        "--password",
        "--no-password",
        "--lock-wait-timeout",
        "--encoding",
        "--help",
        "--version",
        "--verbose",
        "--create",
    ];
    if !argument.starts_with("--") {
        return Err("each argument must begin with `--`, as --exclude-table-data=logs");
    }
    let name = argument.split('=').next().unwrap_or(argument);
    // pg_dump takes any beginning of a name that means one option.
    if OWN.iter().any(|own| own.starts_with(name)) {
        return Err("is Lifeboat's own to set");
    }
    Ok(())
}

/// A day of hours, a month of days, and months for a year.
fn default_retention() -> RetentionConfig {
    RetentionConfig {
        hourly: 24,
        daily: 30,
        weekly: 8,
        monthly: 12,
        ..RetentionConfig::plain(Duration::ZERO)
    }
}

/// Names belong to one target each.
pub(super) fn check_unique(
    postgres: &[PostgresConfig],
    files: &[FilesConfig],
    targets: &[TargetConfig],
) -> Result<(), ConfigError> {
    for (i, one) in postgres.iter().enumerate() {
        let others = postgres[..i].iter().filter(|p| p.name == one.name);
        let others = others.map(|p| PathBuf::from(p.origin.display()));
        let files = files.iter().filter(|f| f.name == one.name);
        let targets = targets.iter().filter(|t| t.name == one.name);
        let mut taken = others
            .chain(files.map(|f| f.paths[0].clone()))
            .chain(targets.map(|t| t.path.clone()));
        if let Some(first) = taken.next() {
            return Err(ConfigError::SameName {
                name: one.name.clone(),
                first,
                second: one.origin.display().into(),
            });
        }
    }
    Ok(())
}

/// For `config show`, without passwords.
pub(super) fn show_dumped(one: &PostgresConfig) -> Value {
    let mut shown = json!({
        "name": one.name,
        "server": one.origin.server(),
        "schedule": one.schedule,
        "time-zone": one.time_zone.iana_name().unwrap_or("UTC"),
        "jitter": format_duration(one.jitter),
        "retention": show_retention(one.retention),
        "bin-dir": one.bin_dir,
        "compression-level": one.dump.level,
        "compression-threads": one.dump.threads,
        "on-deploy": one.on_deploy.word(),
        "max-age": format_duration(one.max_age),
        "read-budget": one.read_budget,
        "stores": one.stores.iter().map(show_store).collect::<Vec<_>>(),
    });
    if let Origin::Postgres(connection) = &one.origin {
        shown["database"] = json!(connection.database());
        shown["databases"] = match &one.databases {
            Databases::Own => json!([connection.database()]),
            Databases::All => json!("all"),
            Databases::Named(names) => json!(names),
            Databases::Except(names) => json!({ "except": names }),
        };
        shown["restore-url"] = json!(one.restore.as_ref().map(Connection::display));
        shown["drill-url"] = json!(one.drill.as_ref().map(Connection::display));
        shown["assert"] = json!(one.asserts);
        shown["pg-dump-args"] = json!(one.dump.extra);
        let wait = Duration::from_millis(one.dump.lock_wait_ms.into());
        shown["statistics"] = json!(one.dump.statistics);
        shown["lock-wait-timeout"] = json!(format_duration(wait));
    }
    shown
}
