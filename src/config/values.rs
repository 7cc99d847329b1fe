//! Single values: from text to checked.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_saphyr::Spanned;

use super::checked::{
    DEFAULT_SNAPSHOT_INTERVAL, DEFAULT_SYNC_INTERVAL, MinFree, RetentionConfig, SqliteOptions,
};
use super::discover::is_target_name;
use super::error::ConfigError;
use super::expand::{Resolver, Text};
use super::raw::{RawLabels, RawRetention, ScalarOr};
use super::store::StoreConfig;
use super::units::{UnitError, parse_duration, parse_size};
use crate::labels::Rules;

/// Values that targets share unless they say otherwise.
#[derive(Clone, Default)]
pub(super) struct Defaults {
    pub(super) sync_interval: Option<Duration>,
    pub(super) snapshot_interval: Option<Duration>,
    pub(super) max_lag: Option<Duration>,
    pub(super) retention: Option<RetentionConfig>,
}

impl Defaults {
    /// These values, the missing ones from `other`.
    pub(super) fn or(self, other: &Self) -> Self {
        Self {
            sync_interval: self.sync_interval.or(other.sync_interval),
            snapshot_interval: self.snapshot_interval.or(other.snapshot_interval),
            max_lag: self.max_lag.or(other.max_lag),
            retention: self.retention.or(other.retention),
        }
    }

    pub(super) fn options(&self, stores: Vec<StoreConfig>, ensure_wal: bool) -> SqliteOptions {
        SqliteOptions {
            stores,
            sync_interval: self.sync_interval.unwrap_or(DEFAULT_SYNC_INTERVAL),
            snapshot_interval: self.snapshot_interval.unwrap_or(DEFAULT_SNAPSHOT_INTERVAL),
            max_lag: self.max_lag,
            retention: self.retention.unwrap_or_default(),
            ensure_wal,
            asserts: Vec::new(),
        }
    }
}

pub(super) fn target_name(values: &Resolver<'_>, text: &Text) -> Result<String, ConfigError> {
    let name = values.text("name", text)?;
    if is_target_name(&name) {
        Ok(name)
    } else {
        Err(values.invalid("name", text, "must be letters, digits, `.`, `_` and `-`"))
    }
}

pub(super) fn retention_of(
    values: &Resolver<'_>,
    raw: Spanned<ScalarOr<RawRetention>>,
) -> Result<RetentionConfig, ConfigError> {
    let at = Text::new(String::new(), raw.referenced, raw.defined);
    let raw = match raw.value {
        ScalarOr::Scalar(value) => {
            return plain_retention(values, "retention", &Text { value, ..at });
        }
        ScalarOr::Map(raw) => raw,
    };
    let count = |key, text: Option<Text>| text.map_or(Ok(0), |t| values.count(key, &t));
    let point_in_time = match raw.point_in_time {
        Some(text) => values.parsed("point-in-time", &text, parse_duration)?,
        None => RetentionConfig::default().point_in_time,
    };
    let retention = RetentionConfig {
        point_in_time,
        hourly: count("hourly", raw.hourly)?,
        daily: count("daily", raw.daily)?,
        weekly: count("weekly", raw.weekly)?,
        monthly: count("monthly", raw.monthly)?,
        yearly: count("yearly", raw.yearly)?,
        ..RetentionConfig::plain(point_in_time)
    };
    if retention == RetentionConfig::plain(Duration::ZERO) {
        return Err(values.invalid("retention", &at, "keeps nothing"));
    }
    Ok(retention)
}

/// A plain duration: any moment of that long.
pub(super) fn plain_retention(
    values: &Resolver<'_>,
    key: &str,
    text: &Text,
) -> Result<RetentionConfig, ConfigError> {
    values.interval(key, text).map(RetentionConfig::plain)
}

/// When labels end.
pub(super) fn labels_of(values: &Resolver<'_>, raw: RawLabels) -> Result<Rules, ConfigError> {
    let mut rules = Rules::DEFAULT;
    if let Some(text) = raw.keep {
        rules.keep = match values.count("keep", &text)? {
            0 => {
                return Err(values.invalid(
                    "keep",
                    &text,
                    "must be 1 or more: a label that ends at once protects nothing",
                ));
            }
            n => n as usize,
        };
    }
    if let Some(text) = raw.max_age {
        rules.max_age = values.interval("max-age", &text)?;
    }
    Ok(rules)
}

/// `10%` or bytes.
pub(super) fn min_free(values: &Resolver<'_>, text: &Text) -> Result<MinFree, ConfigError> {
    values.parsed("min-free", text, |value| {
        match value.trim().strip_suffix('%') {
            None => parse_size(value).map(MinFree::Bytes),
            Some(percent) => match percent.trim().parse() {
                Ok(percent @ 0..=99) => Ok(MinFree::Percent(percent)),
                _ => Err(UnitError::Size(value.to_owned())),
            },
        }
    })
}

pub(super) fn time_zone(values: &Resolver<'_>, text: &Text) -> Result<TimeZone, ConfigError> {
    let name = values.text("time-zone", text)?;
    if name.eq_ignore_ascii_case("utc") {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(&name).map_err(|_| {
        values.invalid(
            "time-zone",
            text,
            format!("`{name}` is not a known zone, as `Europe/Berlin` is"),
        )
    })
}

/// `0.0.0.0:9464`, `:9464`, `9464`, `localhost:9464`, or `off`.
pub(super) fn listen(
    values: &Resolver<'_>,
    key: &str,
    text: &Text,
) -> Result<Option<SocketAddr>, ConfigError> {
    let value = values.text(key, text)?;
    if ["off", "false", "no"].contains(&value.as_str()) {
        return Ok(None);
    }
    let any = |port: &str| {
        port.parse()
            .ok()
            .map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
    };
    let address = value
        .parse()
        .ok()
        .or_else(|| any(value.strip_prefix(':').unwrap_or(&value)))
        .or_else(|| {
            let port = value.strip_prefix("localhost:")?.parse().ok()?;
            Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        });
    match address {
        Some(address) => Ok(Some(address)),
        None => Err(values.invalid(
            key,
            text,
            "must be address and port, as 0.0.0.0:9464, or off",
        )),
    }
}
