//! litestream.yml, as Litestream 0.3 and 0.5 read it.
//!
//! What changes where data goes or whether it is protected is honoured or refused; what only tunes Litestream's own
//! machinery is left out with a notice.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::build::Builder;
use super::checked::{DEFAULT_SNAPSHOT_INTERVAL, DEFAULT_SYNC_INTERVAL, RetentionConfig};
use super::discover::{check_pattern, is_target_name, stem};
use super::error::{ConfigError, Place};
use super::litestream_replica::{Settings, replica_of};
use super::raw::{RawLitestream, RawLitestreamDb};
use super::units::{format_duration, parse_duration};
use super::values::{Defaults, listen, plain_retention};

/// Reads litestream.yml into `builder`.
pub(super) fn read(
    mut raw: RawLitestream,
    builder: &mut Builder<'_, '_>,
) -> Result<(), ConfigError> {
    let settings: Settings = raw.take_settings().into_iter().collect();
    globals(&raw, builder)?;
    let snapshot = raw.snapshot.unwrap_or_default();
    let v = builder.values;
    builder.defaults = Defaults {
        max_lag: None,
        sync_interval: None,
        snapshot_interval: snapshot
            .interval
            .map(|t| v.interval("snapshot.interval", &t))
            .transpose()?,
        retention: snapshot
            .retention
            .map(|t| plain_retention(v, "snapshot.retention", &t))
            .transpose()?,
    };
    builder.fill_defaults_from_environment()?;
    for db in raw.dbs.unwrap_or_default() {
        let place = v.at(&db);
        database(db.value, &settings, builder, &place)?;
    }
    Ok(())
}

/// Adds a notice once.
pub(super) fn notice(builder: &mut Builder<'_, '_>, text: String) {
    if !builder.notices.contains(&text) {
        builder.notices.push(text);
    }
}

pub(super) fn ignored(builder: &mut Builder<'_, '_>, key: &str, why: &str) {
    notice(
        builder,
        format!(
            "`{}` of litestream.yml is ignored: {why}",
            key.replace('_', "-")
        ),
    );
}

fn globals(raw: &RawLitestream, builder: &mut Builder<'_, '_>) -> Result<(), ConfigError> {
    let v = builder.values;
    if let Some(exec) = &raw.exec
        && !v.expand("exec", exec)?.is_empty()
    {
        return Err(unsupported(
            v.at(exec),
            "exec",
            "start the app beside lifeboat: in its own container or service",
        ));
    }
    if let Some(addr) = &raw.addr
        && !v.expand("addr", addr)?.is_empty()
    {
        builder.http = Some(listen(v, "addr", addr)?);
    }
    if let Some(text) = &raw.shutdown_sync_timeout {
        let timeout = v.parsed("shutdown-sync-timeout", text, parse_duration)?;
        // Zero turns retries off in Litestream; here the last upload always gets its time.
        builder.shutdown_timeout = (!timeout.is_zero()).then_some(timeout);
    }
    let logs = "use --log-level and --log-format, or LIFEBOAT_LOG_LEVEL and LIFEBOAT_LOG_FORMAT";
    let levels = "files are rolled up after 30s, 5m, 1h and 24h";
    let captures = "captures are kept until they are rolled up";
    for (given, key, why) in [
        (
            raw.mcp_addr.is_some(),
            "mcp-addr",
            "there is no such server here",
        ),
        (raw.levels.is_some(), "levels", levels),
        (raw.logging.is_some(), "logging", logs),
        (
            raw.socket.is_some(),
            "socket",
            "the control socket lies in the state directory",
        ),
        (
            raw.validation.is_some(),
            "validation",
            "continuity is proven at every capture",
        ),
        (raw.l0_retention.is_some(), "l0-retention", captures),
        (
            raw.l0_retention_check_interval.is_some(),
            "l0-retention-check-interval",
            captures,
        ),
        (
            raw.verify_compaction.is_some(),
            "verify-compaction",
            "every compaction is verified",
        ),
        (
            raw.heartbeat_url.is_some(),
            "heartbeat-url",
            "nothing is pinged: watch /readyz or the metrics instead",
        ),
        (
            raw.heartbeat_interval.is_some(),
            "heartbeat-interval",
            "nothing is pinged",
        ),
        (
            raw.shutdown_sync_interval.is_some(),
            "shutdown-sync-interval",
            "retries have their own pace",
        ),
    ] {
        if given {
            ignored(builder, key, why);
        }
    }
    Ok(())
}

pub(super) fn unsupported(place: Place, key: &str, hint: &str) -> ConfigError {
    ConfigError::Unsupported {
        place,
        what: format!("`{}`", key.replace('_', "-")),
        hint: hint.into(),
    }
}

/// An entry of `dbs`.
fn database(
    raw: RawLitestreamDb,
    globals: &Settings,
    builder: &mut Builder<'_, '_>,
    place: &Place,
) -> Result<(), ConfigError> {
    let v = builder.values;
    let conflict = |first, second| ConfigError::Conflict {
        place: place.clone(),
        first,
        second,
    };
    database_settings(&raw, builder)?;
    let replicas = match (raw.replica, raw.replicas) {
        (Some(_), Some(_)) => return Err(conflict("replica", "replicas")),
        (Some(one), None) => vec![one],
        (None, many) => many.unwrap_or_default(),
    };
    let mut stores = Vec::new();
    let mut timings = Vec::new();
    for replica in replicas {
        let (store, timing) = replica_of(replica, globals, builder)?;
        stores.push(store);
        timings.push(timing);
    }
    let defaults = joined(&timings, builder).or(&builder.defaults);
    if defaults.retention.is_none() {
        notice(builder, "no `retention` in litestream.yml: lifeboat keeps any moment of 7d, then 30 daily, 8 weekly and 12 monthly points (Litestream: 24h)".into());
    }
    let watch = raw
        .watch
        .as_ref()
        .map(|t| v.flag("watch", t))
        .transpose()?
        .unwrap_or(false);
    match (raw.path, raw.dir, raw.pattern) {
        (Some(_), Some(_), _) => Err(conflict("path", "dir")),
        (Some(_), None, _) if watch => Err(conflict("path", "watch")),
        (Some(path), None, _) => {
            let path = PathBuf::from(v.text("path", &path)?);
            let name = name_of(&path, builder);
            builder.target(name, &path, defaults.options(stores, true), place)
        }
        (None, Some(dir), Some(pattern)) => {
            let text = v.text("pattern", &pattern)?;
            check_pattern(&text).map_err(|why| v.invalid("pattern", &pattern, why))?;
            let dir = PathBuf::from(v.text("dir", &dir)?);
            builder.dir(&dir, Some(text), watch, &defaults, stores, place)
        }
        (None, Some(_), None) => Err(ConfigError::Missing {
            place: place.clone(),
            key: "pattern",
            why: "a `dir` of litestream.yml needs one",
        }),
        (None, None, _) => Err(ConfigError::Missing {
            place: place.clone(),
            key: "path",
            why: "an entry needs a `path` or a `dir`",
        }),
    }
}

/// Keys of a database other than path and replica.
fn database_settings(
    raw: &RawLitestreamDb,
    builder: &mut Builder<'_, '_>,
) -> Result<(), ConfigError> {
    let v = builder.values;
    for (key, value, hint) in [
        ("recursive", &raw.recursive, "add an entry for each folder"),
        (
            "restore-if-db-not-exists",
            &raw.restore_if_db_not_exists,
            "run `lifeboat restore PATH --if-not-exists --if-replica-exists` before the app starts",
        ),
    ] {
        if let Some(text) = value
            && v.flag(key, text)?
        {
            return Err(unsupported(v.at(text), key, hint));
        }
    }
    let checkpoints = "checkpoints are made without hindering the app";
    for (given, key, why) in [
        (
            raw.meta_path.is_some(),
            "meta-path",
            "set LIFEBOAT_STATE_DIR to choose where local state lies",
        ),
        (
            raw.meta_dir.is_some(),
            "meta-dir",
            "set LIFEBOAT_STATE_DIR to choose where local state lies",
        ),
        (
            raw.monitor_interval.is_some(),
            "monitor-interval",
            "changes are noticed at once",
        ),
        (
            raw.checkpoint_interval.is_some(),
            "checkpoint-interval",
            checkpoints,
        ),
        (
            raw.busy_timeout.is_some(),
            "busy-timeout",
            "the app is never waited for",
        ),
        (
            raw.min_checkpoint_page_count.is_some(),
            "min-checkpoint-page-count",
            checkpoints,
        ),
        (
            raw.max_checkpoint_page_count.is_some(),
            "max-checkpoint-page-count",
            checkpoints,
        ),
        (
            raw.truncate_page_n.is_some(),
            "truncate-page-n",
            checkpoints,
        ),
    ] {
        if given {
            ignored(builder, key, why);
        }
    }
    Ok(())
}

/// Litestream has no names: the stem of the file, with its folder's name before it if that is taken.
fn name_of(path: &Path, builder: &Builder<'_, '_>) -> Option<String> {
    let stem = stem(path.file_name()?.to_str()?);
    if !builder.has_name(stem) {
        return None;
    }
    let folder = path.parent()?.file_name()?.to_str()?;
    let name = format!("{folder}-{stem}");
    is_target_name(&name).then_some(name)
}

/// One database has one pace and one retention here: the safest of its replicas'.
fn joined(timings: &[Defaults], builder: &mut Builder<'_, '_>) -> Defaults {
    let sync: Vec<_> = timings.iter().filter_map(|t| t.sync_interval).collect();
    let snapshot: Vec<_> = timings.iter().filter_map(|t| t.snapshot_interval).collect();
    let retention: Vec<_> = timings
        .iter()
        .filter_map(|t| t.retention)
        .map(|r| r.point_in_time)
        .collect();
    // A replica without an interval of its own has the shared one, which may be the shortest.
    let all = |given: usize| given == timings.len();
    let shortest = |values: &[Duration], default: Duration| {
        let default = (!all(values.len())).then_some(default);
        values
            .iter()
            .copied()
            .chain(default.filter(|_| !values.is_empty()))
            .min()
    };
    for (key, values, which) in [
        ("sync-interval", &sync, "shortest"),
        ("snapshot-interval", &snapshot, "shortest"),
        ("retention", &retention, "longest"),
    ] {
        if values.windows(2).any(|pair| pair[0] != pair[1]) {
            let values: Vec<_> = values.iter().copied().map(format_duration).collect();
            let values = values.join(", ");
            notice(
                builder,
                format!(
                    "replicas of one database have several `{key}` ({values}): the {which} holds for all"
                ),
            );
        }
    }
    let shared = &builder.defaults;
    Defaults {
        max_lag: None,
        sync_interval: shortest(&sync, shared.sync_interval.unwrap_or(DEFAULT_SYNC_INTERVAL)),
        snapshot_interval: shortest(
            &snapshot,
            shared
                .snapshot_interval
                .unwrap_or(DEFAULT_SNAPSHOT_INTERVAL),
        ),
        retention: retention.into_iter().max().map(RetentionConfig::plain),
    }
}
