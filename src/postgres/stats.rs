//! What a server says about itself, read in one run of `psql`: at most 50 databases (the one of the URL
//! first, then the busiest), nothing written, nothing waited for.

use serde::Deserialize;

/// Statistics of a server. What the role may not read is `None` or missing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct ServerStats {
    /// As the server writes it.
    pub version: String,
    /// When it was started, seconds since 1970.
    pub started: f64,
    /// `max_connections`.
    pub max_connections: f64,
    /// It follows another server.
    pub replica: bool,
    /// How far it is behind that one, seconds.
    pub replica_lag: Option<f64>,
    /// Databases on the server that can be connected to.
    pub databases_all: usize,
    /// Each.
    pub databases: Vec<DatabaseStats>,
    /// Sessions by database and state; `None` without the right to see those of others.
    pub activity: Option<Vec<Activity>>,
    /// Replication slots, 50 at most.
    pub slots: Vec<Slot>,
}

/// One database.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct DatabaseStats {
    /// Its name.
    pub datname: String,
    /// Bytes on disk; `None` without the right to connect.
    pub size: Option<f64>,
    /// Sessions.
    pub numbackends: u64,
    /// Since the statistics were reset, as all below.
    pub xact_commit: u64,
    /// Transactions rolled back.
    pub xact_rollback: u64,
    /// Blocks read from the system.
    pub blks_read: u64,
    /// Blocks found in the server's memory.
    pub blks_hit: u64,
    /// Deadlocks found.
    pub deadlocks: u64,
    /// Queries cancelled because of a conflict with recovery.
    pub conflicts: u64,
    /// Bytes written to temporary files.
    pub temp_bytes: u64,
}

/// Sessions of one database in one state.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Activity {
    /// The database.
    pub datname: String,
    /// As PostgreSQL's `pg_stat_activity` names it.
    pub state: String,
    /// How many.
    pub count: u64,
    /// Age of their oldest transaction, seconds.
    pub oldest: f64,
}

/// A replication slot.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Slot {
    /// Its name.
    pub slot_name: String,
    /// Of logical slots.
    pub database: String,
    /// Somebody reads from it.
    pub active: bool,
    /// Bytes of WAL that the server keeps for it.
    pub behind: Option<f64>,
}

/// Sessions of this program, dumps among them, are left out of ages, not of counts. Every right is asked for before it is used: a missing one is no error.
pub(super) const STATS: &str = r"SET statement_timeout = '5s'; SET lock_timeout = '1s'; SET default_transaction_read_only = on;
WITH seen AS (
  SELECT d.oid, s.*, d.datname AS name FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid
  WHERE d.datallowconn AND NOT d.datistemplate
  ORDER BY d.datname = current_database() DESC, s.xact_commit DESC, d.datname LIMIT 50),
rights AS (SELECT pg_has_role(current_user, 'pg_read_all_stats', 'MEMBER') AS all_stats),
sessions AS (
  SELECT a.datname, a.state, count(*) AS count,
    coalesce(max(extract(epoch FROM clock_timestamp() - a.xact_start)) FILTER (WHERE a.application_name <> 'lifeboat'), 0) AS oldest
  FROM pg_stat_activity a JOIN seen ON seen.oid = a.datid
  WHERE a.backend_type = 'client backend' AND a.state IS NOT NULL GROUP BY 1, 2)
SELECT json_build_object(
 'version', current_setting('server_version'),
 'started', extract(epoch FROM pg_postmaster_start_time()),
 'max_connections', current_setting('max_connections')::float,
 'replica', pg_is_in_recovery(),
 'replica_lag', CASE WHEN pg_is_in_recovery() AND pg_last_wal_receive_lsn() IS DISTINCT FROM pg_last_wal_replay_lsn()
   THEN greatest(0, extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())) ELSE 0 END,
 'databases_all', (SELECT count(*) FROM pg_database WHERE datallowconn AND NOT datistemplate),
 'databases', (SELECT coalesce(json_agg(json_build_object(
     'datname', name,
     'size', CASE WHEN has_database_privilege(oid, 'CONNECT') OR (SELECT all_stats FROM rights) THEN pg_database_size(oid) END,
     'numbackends', numbackends, 'xact_commit', xact_commit, 'xact_rollback', xact_rollback, 'blks_read', blks_read, 'blks_hit', blks_hit,
     'deadlocks', deadlocks, 'conflicts', conflicts, 'temp_bytes', temp_bytes)), '[]') FROM seen),
 'activity', CASE WHEN (SELECT all_stats FROM rights) THEN
   (SELECT coalesce(json_agg(to_json(sessions)), '[]') FROM sessions) END,
 'slots', (SELECT coalesce(json_agg(json_build_object(
     'slot_name', slot_name, 'database', coalesce(database, ''), 'active', active,
     'behind', pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END, restart_lsn))), '[]')
   FROM (SELECT * FROM pg_replication_slots ORDER BY active, slot_name LIMIT 50) s))::text;
";
