//! Servers that are dumped, under the names of postgres_exporter and redis_exporter, each with our label `target`.

use super::{Scrape, Spec, TARGET};
use crate::observe::servers::{Said, ServerFacts, server_verdict};
use crate::observe::view::View;
use crate::postgres::{self, Activity, DatabaseStats, Kind, Slot};
use crate::redis;

const DATABASE: &[&str] = &["target", "datname"];
const ACTIVITY: &[&str] = &["target", "datname", "state"];
const SLOT: &[&str] = &["target", "slot_name", "database"];
const REDIS_DATABASE: &[&str] = &["target", "db"];

const LEFT_OUT: Spec = (
    "lifeboat_insight_databases_left_out",
    "Databases of the server beyond the 50 that are reported",
    TARGET,
);
const PG_UP: Spec = ("pg_up", "1 if the server answered the last look", TARGET);
const REDIS_UP: Spec = ("redis_up", "1 if the server answered the last look", TARGET);

type OfServer = (Spec, fn(&postgres::ServerStats) -> Option<f64>);
const PG: [OfServer; 4] = [
    (
        (
            "pg_postmaster_start_time_seconds",
            "When the server was started",
            TARGET,
        ),
        |s| Some(s.started),
    ),
    (
        (
            "pg_settings_max_connections",
            "Sessions that the server takes",
            TARGET,
        ),
        |s| Some(s.max_connections),
    ),
    (
        (
            "pg_replication_is_replica",
            "1 if the server follows another one",
            TARGET,
        ),
        |s| Some(f64::from(u8::from(s.replica))),
    ),
    (
        (
            "pg_replication_lag_seconds",
            "How far it is behind that one; 0 if it follows none",
            TARGET,
        ),
        |s| s.replica_lag,
    ),
];

type OfDatabase = (&'static str, &'static str, fn(&DatabaseStats) -> u64);
const PG_DATABASE: [OfDatabase; 7] = [
    (
        "pg_stat_database_xact_commit",
        "Transactions committed",
        |d| d.xact_commit,
    ),
    (
        "pg_stat_database_xact_rollback",
        "Transactions rolled back",
        |d| d.xact_rollback,
    ),
    (
        "pg_stat_database_blks_read",
        "Blocks read from the system",
        |d| d.blks_read,
    ),
    (
        "pg_stat_database_blks_hit",
        "Blocks found in the server's memory",
        |d| d.blks_hit,
    ),
    ("pg_stat_database_deadlocks", "Deadlocks", |d| d.deadlocks),
    (
        "pg_stat_database_conflicts",
        "Queries cancelled because of a conflict with recovery",
        |d| d.conflicts,
    ),
    (
        "pg_stat_database_temp_bytes",
        "Bytes written to temporary files",
        |d| d.temp_bytes,
    ),
];
const PG_SIZE: Spec = (
    "pg_database_size_bytes",
    "Size of the database on disk",
    DATABASE,
);
const PG_BACKENDS: Spec = ("pg_stat_database_numbackends", "Sessions", DATABASE);
const PG_ACTIVITY: Spec = ("pg_stat_activity_count", "Sessions by state", ACTIVITY);
const PG_OLDEST: Spec = (
    "pg_stat_activity_max_tx_duration",
    "Age of the oldest transaction in seconds",
    ACTIVITY,
);
const PG_SLOT_ACTIVE: Spec = (
    "pg_replication_slots_active",
    "1 if somebody reads from the slot",
    SLOT,
);
const PG_SLOT_BEHIND: Spec = (
    "pg_replication_slots_pg_wal_lsn_diff",
    "Bytes of WAL that the server keeps for the slot",
    SLOT,
);

/// Name, meaning, field of INFO.
type Field = (&'static str, &'static str, &'static str);
const REDIS_GAUGES: [Field; 15] = [
    (
        "redis_uptime_in_seconds",
        "Since it was started",
        "uptime_in_seconds",
    ),
    (
        "redis_connected_clients",
        "Connections",
        "connected_clients",
    ),
    (
        "redis_max_clients",
        "Connections that it takes",
        "maxclients",
    ),
    (
        "redis_blocked_clients",
        "Connections that wait for something",
        "blocked_clients",
    ),
    (
        "redis_memory_used_bytes",
        "Memory that the data takes",
        "used_memory",
    ),
    (
        "redis_memory_used_rss_bytes",
        "Memory that the process takes",
        "used_memory_rss",
    ),
    (
        "redis_memory_max_bytes",
        "Memory that the data may take; 0 for no limit",
        "maxmemory",
    ),
    (
        "redis_loading_dump_file",
        "1 while it loads its data",
        "loading",
    ),
    (
        "redis_rdb_last_save_timestamp_seconds",
        "When it last saved its data to disk",
        "rdb_last_save_time",
    ),
    (
        "redis_rdb_changes_since_last_save",
        "Changes since then",
        "rdb_changes_since_last_save",
    ),
    (
        "redis_rdb_last_bgsave_status",
        "1 if its last save went well",
        "rdb_last_bgsave_status",
    ),
    (
        "redis_aof_enabled",
        "1 if it writes an append-only file",
        "aof_enabled",
    ),
    (
        "redis_aof_last_write_status",
        "1 if its last write to that went well",
        "aof_last_write_status",
    ),
    (
        "redis_connected_slaves",
        "Replicas that follow it",
        "connected_slaves",
    ),
    (
        "redis_master_link_up",
        "Of a replica: 1 if it reaches its master",
        "master_link_status",
    ),
];
const REDIS_COUNTERS: [Field; 7] = [
    (
        "redis_commands_processed_total",
        "Commands",
        "total_commands_processed",
    ),
    (
        "redis_connections_received_total",
        "Connections taken",
        "total_connections_received",
    ),
    (
        "redis_rejected_connections_total",
        "Connections refused for want of room",
        "rejected_connections",
    ),
    (
        "redis_expired_keys_total",
        "Keys that expired",
        "expired_keys",
    ),
    (
        "redis_evicted_keys_total",
        "Keys thrown out for want of memory",
        "evicted_keys",
    ),
    (
        "redis_keyspace_hits_total",
        "Keys looked up and found",
        "keyspace_hits",
    ),
    (
        "redis_keyspace_misses_total",
        "Keys looked up and not found",
        "keyspace_misses",
    ),
];
const REDIS_KEYS: Spec = ("redis_db_keys", "Keys", REDIS_DATABASE);
const REDIS_EXPIRING: Spec = ("redis_db_keys_expiring", "Keys that expire", REDIS_DATABASE);

impl Scrape {
    /// No series of what was not read: 0 would be a value.
    pub(super) fn servers(&self, view: &View) -> prometheus::Result<()> {
        let all = &view.servers;
        for (spec, kind) in [(PG_UP, Kind::Postgres), (REDIS_UP, Kind::Redis)] {
            let mine = all.iter().filter(|f| f.kind == kind && f.at.is_some());
            let up = |f: &ServerFacts| f64::from(u8::from(server_verdict(f, view.now).is_up()));
            self.gauge(spec, mine.map(|f| (vec![f.name.as_str()], up(f))))?;
        }
        let postgres = all.iter().filter_map(|f| match &f.said {
            Some(Said::Postgres(stats)) => Some((f.name.as_str(), &**stats)),
            _ => None,
        });
        self.postgres_servers(&postgres.collect::<Vec<_>>())?;
        let redis = all.iter().filter_map(|f| match &f.said {
            Some(Said::Redis(stats)) => Some((f.name.as_str(), &**stats)),
            _ => None,
        });
        self.redis_servers(&redis.collect::<Vec<_>>())
    }

    fn postgres_servers(&self, all: &[(&str, &postgres::ServerStats)]) -> prometheus::Result<()> {
        for (spec, get) in PG {
            let values = all.iter();
            let values = values.filter_map(|(name, s)| Some((vec![*name], get(s)?)));
            self.gauge(spec, values)?;
        }
        let left_out =
            |s: &postgres::ServerStats| s.databases_all.saturating_sub(s.databases.len());
        let left_out = all
            .iter()
            .map(|(name, s)| (vec![*name], left_out(s) as f64));
        self.gauge(LEFT_OUT, left_out)?;
        let databases: Vec<(Vec<&str>, &DatabaseStats)> = all
            .iter()
            .flat_map(|(name, s)| {
                let each = s.databases.iter();
                each.map(|d| (vec![*name, d.datname.as_str()], d))
            })
            .collect();
        let sizes = databases.iter();
        self.gauge(
            PG_SIZE,
            sizes.filter_map(|(l, d)| Some((l.clone(), d.size?))),
        )?;
        let backends = databases.iter();
        self.gauge(
            PG_BACKENDS,
            backends.map(|(l, d)| (l.clone(), d.numbackends as f64)),
        )?;
        for (name, help, get) in PG_DATABASE {
            let values = databases.iter().map(|(l, d)| (l.clone(), get(d)));
            self.counter((name, help, DATABASE), values)?;
        }
        let activity: Vec<(Vec<&str>, &Activity)> = all
            .iter()
            .flat_map(|(name, s)| {
                let each = s.activity.iter().flatten();
                each.map(|a| (vec![*name, a.datname.as_str(), a.state.as_str()], a))
            })
            .collect();
        let counts = activity.iter();
        self.gauge(
            PG_ACTIVITY,
            counts.map(|(l, a)| (l.clone(), a.count as f64)),
        )?;
        let oldest = activity.iter();
        self.gauge(PG_OLDEST, oldest.map(|(l, a)| (l.clone(), a.oldest)))?;
        let slots: Vec<(Vec<&str>, &Slot)> = all
            .iter()
            .flat_map(|(name, s)| {
                let each = s.slots.iter();
                each.map(|t| (vec![*name, t.slot_name.as_str(), t.database.as_str()], t))
            })
            .collect();
        let active = slots.iter();
        let active = active.map(|(l, t)| (l.clone(), f64::from(u8::from(t.active))));
        self.gauge(PG_SLOT_ACTIVE, active)?;
        let behind = slots.iter();
        self.gauge(
            PG_SLOT_BEHIND,
            behind.filter_map(|(l, t)| Some((l.clone(), t.behind?))),
        )
    }

    fn redis_servers(&self, all: &[(&str, &redis::ServerStats)]) -> prometheus::Result<()> {
        for (name, help, field) in REDIS_GAUGES {
            let values = all.iter();
            let values = values.filter_map(|(name, s)| Some((vec![*name], s.number(field)?)));
            self.gauge((name, help, TARGET), values)?;
        }
        for (name, help, field) in REDIS_COUNTERS {
            let values = all.iter();
            let values = values.filter_map(|(name, s)| Some((vec![*name], s.number(field)?)));
            self.counter_of_seconds((name, help, TARGET), values)?;
        }
        let keys: Vec<(Vec<&str>, (f64, f64))> = all
            .iter()
            .flat_map(|(name, s)| {
                let each = s.keys.iter();
                each.map(|(db, keys)| (vec![*name, db.as_str()], *keys))
            })
            .collect();
        self.gauge(REDIS_KEYS, keys.iter().map(|(l, k)| (l.clone(), k.0)))?;
        self.gauge(REDIS_EXPIRING, keys.iter().map(|(l, k)| (l.clone(), k.1)))
    }
}

/// One of everything.
#[cfg(test)]
pub(super) fn sample() -> Vec<ServerFacts> {
    let postgres = postgres::ServerStats {
        replica_lag: Some(0.0),
        databases: vec![DatabaseStats {
            size: Some(1.0),
            ..DatabaseStats::default()
        }],
        activity: Some(vec![Activity::default()]),
        slots: vec![Slot {
            behind: Some(0.0),
            ..Slot::default()
        }],
        ..postgres::ServerStats::default()
    };
    let mut redis = redis::ServerStats::default();
    for (_, _, field) in REDIS_GAUGES.iter().chain(&REDIS_COUNTERS) {
        redis.numbers.insert((*field).to_owned(), 1.0);
    }
    redis.keys.insert("db0".into(), (1.0, 1.0));
    let said = [
        (Kind::Postgres, Said::Postgres(Box::new(postgres))),
        (Kind::Redis, Said::Redis(Box::new(redis))),
    ];
    let facts = said.map(|(kind, said)| ServerFacts {
        kind,
        name: kind.word().into(),
        at: Some(crate::types::Millis(1)),
        said: Some(said),
        ..ServerFacts::default()
    });
    facts.into()
}
