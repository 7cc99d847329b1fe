//! The configuration that everything else reads: valid by construction.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::drill::{DrillConfig, show_drill};
use super::files::{FilesConfig, show_files};
use super::insight::{InsightConfig, show_insight};
use super::notify::{NotifyConfig, show_notify};
use super::postgres::{PostgresConfig, show_dumped};
use super::probe::{ProbeConfig, show_probe};
use super::store::{Secret, StoreConfig};
use super::units::format_duration;
use crate::labels::Rules;
use crate::postgres::Kind;

/// One day.
const DAY: Duration = Duration::from_secs(86_400);

/// At most one upload per second and database under load: recent enough for people, few enough requests.
pub(super) const DEFAULT_SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// A snapshot a week: a restore reads at most a week of rolled-up changes.
pub(super) const DEFAULT_SNAPSHOT_INTERVAL: Duration = Duration::from_secs(7 * 86_400);
/// Time for the last upload at the end: longer than a slow upload, shorter than patience.
pub(super) const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// An idle database looks at its store once an hour, so that a revoked key does not stay green.
pub(super) const DEFAULT_STORE_CHECK: Duration = Duration::from_secs(3_600);
/// Part of the volume that the spool leaves to the app, in percent.
pub(super) const DEFAULT_MIN_FREE_PERCENT: u8 = 10;
/// Prometheus' conventional port range; every interface, because the container's network is the fence.
pub(super) const DEFAULT_HTTP_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 9464);
/// SQLite files as Rails and most others name them.
pub(super) const DEFAULT_PATTERN: &str = "*.{sqlite3,db}";

/// Where a configuration came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// A file.
    File(PathBuf),
    /// Environment variables alone.
    Environment,
    /// Databases named on the command line.
    CommandLine,
}

/// Everything that was configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it came from.
    pub source: ConfigSource,
    /// Databases: the listed ones first, then those found in folders when the configuration was loaded.
    /// Names, paths and exact store places are unique.
    pub targets: Vec<TargetConfig>,
    /// Folders to watch for databases that appear later; see [`discover`](super::discover).
    pub dirs: Vec<DirConfig>,
    /// Folders of files.
    pub files: Vec<FilesConfig>,
    /// PostgreSQL databases, by server.
    pub postgres: Vec<PostgresConfig>,
    /// Who is told of trouble.
    pub notify: Vec<NotifyConfig>,
    /// HTTP checks of the app itself.
    pub probes: Vec<ProbeConfig>,
    /// When labels end, as the retention of each target has it.
    pub labels: Rules,
    /// Restores that prove the copies.
    pub drill: DrillConfig,
    /// What is read of the app beside its backup.
    pub insight: InsightConfig,
    /// The one place for local state; beside each database if `None`.
    pub state_dir: Option<PathBuf>,
    /// Address of metrics, health and status; `None` if off.
    pub http: Option<SocketAddr>,
    /// What pages and API ask for.
    pub http_token: Option<Secret>,
    /// Time for the last capture and upload at the end.
    pub shutdown_timeout: Duration,
    /// How often an idle database looks at its store.
    pub store_check: Duration,
    /// Free space that is always left to the app.
    pub min_free: MinFree,
    /// Zone of times without an offset.
    pub time_zone: TimeZone,
    /// Who we are in `owner.json`: host, and service if it is known. Not unique by itself: two containers may
    /// carry one name.
    pub instance: String,
    /// What was mapped, ignored, found or left out, to be reported once at start.
    pub notices: Vec<String>,
}

/// One database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// Unique; letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Absolute. The database need not exist yet.
    pub path: PathBuf,
    /// Listed by its own path, as opposed to found in a folder.
    pub explicit: bool,
    /// How it is kept.
    pub options: SqliteOptions,
}

/// How a database is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteOptions {
    /// At least one.
    pub stores: Vec<StoreConfig>,
    /// At most one upload per interval under load.
    pub sync_interval: Duration,
    /// Time between full copies.
    pub snapshot_interval: Duration,
    /// Allowed age of a change that is not durable; `None`: ten sync intervals, 30 s at least.
    pub max_lag: Option<Duration>,
    /// What is kept for how long.
    pub retention: RetentionConfig,
    /// Turn WAL mode on; otherwise a database in another mode is an error of that target.
    pub ensure_wal: bool,
    /// SQL that must be true of a restored copy: the first column of the first row is a number other than 0.
    pub asserts: Vec<String>,
}

/// A folder of databases, not recursive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirConfig {
    /// Absolute, links resolved.
    pub dir: PathBuf,
    /// File names taken: `*`, `?` and `{a,b}`.
    pub pattern: String,
    /// Look for databases that appear and vanish.
    pub watch: bool,
    /// How its databases are kept. In a store with `prefix_is_exact`, each gets its file name appended, as
    /// Litestream does for a `dir`.
    pub options: SqliteOptions,
    /// The user chose the retention: it holds for queue and cable databases too.
    pub retention_chosen: bool,
    /// The user chose the sync interval: it holds for cable databases too.
    pub sync_interval_chosen: bool,
}

/// What is kept for how long. Keeps something: never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionConfig {
    /// Any moment of this long can be restored.
    pub point_in_time: Duration,
    /// Number of hourly points.
    pub hourly: u32,
    /// Number of daily points.
    pub daily: u32,
    /// Number of weekly points.
    pub weekly: u32,
    /// Number of monthly points.
    pub monthly: u32,
    /// Number of yearly points.
    pub yearly: u32,
    /// When labels end; the same for all targets.
    pub labels: Rules,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            daily: 30,
            weekly: 8,
            monthly: 12,
            ..Self::plain(DAY * 7)
        }
    }
}

impl RetentionConfig {
    /// Any moment of this long, and nothing older.
    pub const fn plain(point_in_time: Duration) -> Self {
        Self {
            point_in_time,
            hourly: 0,
            daily: 0,
            weekly: 0,
            monthly: 0,
            yearly: 0,
            labels: Rules::DEFAULT,
        }
    }
}

/// Free space that is always left to the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// Part of the volume, 0 to 99.
    Percent(u8),
    /// Bytes.
    Bytes(u64),
}

impl Default for MinFree {
    fn default() -> Self {
        Self::Percent(DEFAULT_MIN_FREE_PERCENT)
    }
}

impl MinFree {
    /// Bytes to leave free on a volume of `total` bytes.
    pub fn bytes_of(self, total: u64) -> u64 {
        match self {
            Self::Percent(percent) => total / 100 * u64::from(percent),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl Config {
    fn shown_dumps(&self, kind: Kind) -> Vec<Value> {
        let all = self.postgres.iter();
        all.filter(|s| s.origin.kind() == kind)
            .map(show_dumped)
            .collect()
    }

    /// The configuration as JSON, without secrets: for `config show`.
    pub fn show(&self) -> Value {
        let source = match &self.source {
            ConfigSource::File(path) => path.display().to_string(),
            ConfigSource::Environment => "environment".into(),
            ConfigSource::CommandLine => "command line".into(),
        };
        json!({
            "source": source,
            "targets": self.targets.iter().map(show_target).collect::<Vec<_>>(),
            "dirs": self.dirs.iter().map(show_dir).collect::<Vec<_>>(),
            "files": self.files.iter().map(show_files).collect::<Vec<_>>(),
            "postgres": self.shown_dumps(Kind::Postgres),
            "redis": self.shown_dumps(Kind::Redis),
            "notify": self.notify.iter().map(show_notify).collect::<Vec<_>>(),
            "probes": self.probes.iter().map(show_probe).collect::<Vec<_>>(),
            "labels": show_labels(&self.labels),
            "drill": show_drill(&self.drill),
            "insight": show_insight(&self.insight),
            "state-dir": self.state_dir.as_deref().map(show_path),
            "http": self.http.map_or("off".into(), |a| a.to_string()),
            "http-token": self.http_token.as_ref().map(ToString::to_string),
            "shutdown-timeout": format_duration(self.shutdown_timeout),
            "store-check": format_duration(self.store_check),
            "min-free": match self.min_free {
                MinFree::Percent(percent) => json!(format!("{percent}%")),
                MinFree::Bytes(bytes) => json!(bytes),
            },
            "time-zone": self.time_zone.iana_name().unwrap_or("UTC"),
            "instance": self.instance,
            "notices": self.notices,
        })
    }
}

pub(super) fn show_path(path: &Path) -> String {
    path.display().to_string()
}

fn show_target(target: &TargetConfig) -> Value {
    let mut shown = show_options(&target.options);
    shown["name"] = json!(target.name);
    shown["path"] = json!(show_path(&target.path));
    shown["explicit"] = json!(target.explicit);
    shown
}

fn show_dir(dir: &DirConfig) -> Value {
    let mut shown = show_options(&dir.options);
    shown["dir"] = json!(show_path(&dir.dir));
    shown["pattern"] = json!(dir.pattern);
    shown["watch"] = json!(dir.watch);
    shown
}

fn show_options(options: &SqliteOptions) -> Value {
    let retention = options.retention;
    json!({
        "stores": options.stores.iter().map(show_store).collect::<Vec<_>>(),
        "sync-interval": format_duration(options.sync_interval),
        "snapshot-interval": format_duration(options.snapshot_interval),
        "max-lag": options.max_lag.map(format_duration),
        "retention": show_retention(retention),
        "ensure-wal": options.ensure_wal,
        "assert": options.asserts,
    })
}

fn show_labels(rules: &Rules) -> Value {
    json!({ "keep": rules.keep, "max-age": format_duration(rules.max_age) })
}

pub(super) fn show_retention(retention: RetentionConfig) -> Value {
    json!({
        "point-in-time": format_duration(retention.point_in_time),
        "hourly": retention.hourly,
        "daily": retention.daily,
        "weekly": retention.weekly,
        "monthly": retention.monthly,
        "yearly": retention.yearly,
    })
}

pub(super) fn show_store(store: &StoreConfig) -> Value {
    let mut shown = json!({ "url": store.url.as_str(), "prefix-is-exact": store.prefix_is_exact });
    for (key, value) in [
        ("endpoint", &store.endpoint),
        ("region", &store.region),
        ("profile", &store.profile),
        ("account-name", &store.account_name),
    ] {
        if let Some(value) = value {
            shown[key] = json!(value);
        }
    }
    for (key, secret) in [
        ("access-key-id", &store.access_key_id),
        ("secret-access-key", &store.secret_access_key),
        ("session-token", &store.session_token),
        ("account-key", &store.account_key),
        ("sas-token", &store.sas_token),
        ("google-credentials", &store.google_credentials),
    ] {
        if let Some(secret) = secret {
            shown[key] = json!(secret.to_string());
        }
    }
    for (key, flag) in [
        ("force-path-style", store.force_path_style == Some(true)),
        ("skip-verify", store.skip_verify),
    ] {
        if flag {
            shown[key] = json!(true);
        }
    }
    shown
}
