//! `insight`: what is read of the app beside its backup, and how often.

use std::time::Duration;

use serde_json::{Value, json};
use serde_saphyr::Spanned;

use super::build::Builder;
use super::error::ConfigError;
use super::expand::Text;
use super::raw::{RawInsight, ScalarOr};
use super::units::format_duration;

/// Alerts on queues wait for minutes, so two looks a minute lose nothing, and a look that costs a millisecond stays invisible.
const DEFAULT_EVERY: Duration = Duration::from_secs(30);
/// More often would be felt by captures.
const EVERY_MIN: Duration = Duration::from_millis(100);
/// A job that is ready waits for a free worker; ten minutes are a queue that does not move.
const DEFAULT_MAX_QUEUE_WAIT: Duration = Duration::from_secs(10 * 60);
/// Solid Queue's own `process_alive_threshold`.
const DEFAULT_MAX_HEARTBEAT_AGE: Duration = Duration::from_secs(5 * 60);

/// What is read of the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsightConfig {
    /// Pages and schema version of SQLite databases.
    pub sqlite: bool,
    /// Solid Queue, Solid Cache and Solid Cable, in SQLite and PostgreSQL.
    pub rails: bool,
    /// Statistics of PostgreSQL servers.
    pub postgres: bool,
    /// Statistics of Redis servers.
    pub redis: bool,
    /// Space of the volumes of databases and local state. Not turned off with the rest: the backup needs room.
    pub volumes: bool,
    /// Memory and processors of the host.
    pub host: bool,
    /// Time between two looks at one database or server.
    pub every: Duration,
    /// Allowed age of the oldest job that is ready or due.
    pub max_queue_wait: Duration,
    /// A process of Solid Queue with an older heartbeat is dead.
    pub max_heartbeat_age: Duration,
}

impl Default for InsightConfig {
    fn default() -> Self {
        Self {
            sqlite: true,
            rails: true,
            postgres: true,
            redis: true,
            volumes: true,
            host: true,
            every: DEFAULT_EVERY,
            max_queue_wait: DEFAULT_MAX_QUEUE_WAIT,
            max_heartbeat_age: DEFAULT_MAX_HEARTBEAT_AGE,
        }
    }
}

impl Builder<'_, '_> {
    pub(super) fn insight_of(
        &self,
        raw: Spanned<ScalarOr<RawInsight>>,
    ) -> Result<InsightConfig, ConfigError> {
        let v = self.values;
        let mut insight = InsightConfig::default();
        let raw = match raw.value {
            ScalarOr::Scalar(text) => {
                let text = Text::new(text, raw.referenced, raw.defined);
                let on = v.flag("insight", &text)?;
                (insight.sqlite, insight.rails) = (on, on);
                (insight.postgres, insight.redis, insight.host) = (on, on, on);
                return Ok(insight);
            }
            ScalarOr::Map(map) => map,
        };
        for (key, text, on) in [
            ("sqlite", raw.sqlite, &mut insight.sqlite),
            ("rails", raw.rails, &mut insight.rails),
            ("postgres", raw.postgres, &mut insight.postgres),
            ("redis", raw.redis, &mut insight.redis),
            ("volumes", raw.volumes, &mut insight.volumes),
            ("host", raw.host, &mut insight.host),
        ] {
            if let Some(text) = text {
                *on = v.flag(key, &text)?;
            }
        }
        if let Some(text) = raw.every {
            insight.every = v.interval("every", &text)?;
            if insight.every < EVERY_MIN {
                return Err(v.invalid("every", &text, "must be 100ms or longer"));
            }
        }
        if let Some(text) = raw.max_queue_wait {
            insight.max_queue_wait = v.interval("max-queue-wait", &text)?;
        }
        if let Some(text) = raw.max_heartbeat_age {
            insight.max_heartbeat_age = v.interval("max-heartbeat-age", &text)?;
        }
        Ok(insight)
    }
}

/// For `config show`.
pub(super) fn show_insight(insight: &InsightConfig) -> Value {
    json!({
        "sqlite": insight.sqlite,
        "rails": insight.rails,
        "postgres": insight.postgres,
        "redis": insight.redis,
        "volumes": insight.volumes,
        "host": insight.host,
        "every": format_duration(insight.every),
        "max-queue-wait": format_duration(insight.max_queue_wait),
        "max-heartbeat-age": format_duration(insight.max_heartbeat_age),
    })
}
