//! What would make a dump fail, or worse, make it incomplete; found out before it begins.

use serde::Deserialize;

use super::{Clients, Connection, PostgresError};

/// Objects named in a message.
const NAMED: usize = 3;
/// Pairs of sessions that are compared: a pooler may hand out another connection once.
const POOLER_TRIES: usize = 3;

/// Tables, sequences and large objects that the role cannot read in full. What belongs to an extension is not dumped.
const READABLE: &str = "WITH mine AS (
  SELECT c.oid, c.relkind, format('%I.%I', n.nspname, c.relname) AS name, n.oid AS schema
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%'
    AND c.relkind IN ('r', 'p', 'm', 'S')
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
SELECT json_build_object(
  'unreadable', (SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM mine
    WHERE NOT has_schema_privilege(schema, 'USAGE')
       OR NOT CASE relkind WHEN 'S' THEN has_sequence_privilege(oid, 'SELECT') ELSE has_table_privilege(oid, 'SELECT') END),
  'row_security', (SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM mine
    WHERE relkind IN ('r', 'p') AND row_security_active(oid)),
  'large_objects', (SELECT count(*) FROM pg_largeobject_metadata m
    WHERE NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
      AND current_setting('lo_compat_privileges') = 'off'
      AND NOT pg_has_role(m.lomowner, 'USAGE')
      AND NOT EXISTS (SELECT FROM aclexplode(m.lomacl) a
        WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))))::text;
";

#[derive(Debug, Deserialize)]
struct Readable {
    unreadable: Vec<String>,
    row_security: Vec<String>,
    large_objects: u64,
}

/// Looks. `extra` are arguments of `pg_dump`: what they leave out is not asked for. Blocks.
///
/// # Errors
/// [`PostgresError::Cannot`] with the hint; [`PostgresError::Failed`] if the server does not answer.
pub fn preflight(
    clients: &Clients,
    connection: &Connection,
    extra: &[String],
) -> Result<(), PostgresError> {
    if pooled(clients, connection)? {
        return cannot(
            "the connection goes through a pooler that gives each transaction another session (as PgBouncer with pool_mode = transaction); pg_dump needs one session".into(),
            "give the server's own address and port as `url`, or a pool with pool_mode = session",
        );
    }
    let text = clients.sql(connection, READABLE, &[])?;
    let found: Readable = serde_json::from_str(&text)
        .map_err(|e| PostgresError::Io("reading the catalogue", e.into()))?;
    let has = |names: &[&str]| {
        extra
            .iter()
            .any(|a| names.iter().any(|name| a.starts_with(name)))
    };
    // pg_dump itself knows best what is left out then.
    let chosen = has(&[
        "--table",
        "--schema",
        "--exclude-table",
        "--exclude-schema",
        "--schema-only",
    ]);
    if !found.unreadable.is_empty() && !chosen {
        return cannot(
            format!("the role may not read {}", named(&found.unreadable)),
            "GRANT pg_read_all_data TO it (PostgreSQL 14 and later), or SELECT on these, or leave them out with pg-dump-args",
        );
    }
    if !found.row_security.is_empty() && !chosen && !has(&["--enable-row-security"]) {
        return cannot(
            format!(
                "row-level security hides rows of {} from the role",
                named(&found.row_security)
            ),
            "ALTER ROLE ... BYPASSRLS, or dump as the owner of these tables or a superuser",
        );
    }
    if found.large_objects > 0 && !chosen && !has(&["--no-blobs", "--no-large-objects"]) {
        return cannot(
            format!(
                "the role may not read {} large objects",
                found.large_objects
            ),
            "dump as their owner or a superuser, GRANT SELECT ON LARGE OBJECT, or leave them out with pg-dump-args: [--no-blobs]",
        );
    }
    Ok(())
}

fn cannot(what: String, hint: &str) -> Result<(), PostgresError> {
    Err(PostgresError::Cannot {
        what,
        hint: hint.into(),
    })
}

fn named(all: &[String]) -> String {
    let shown = all[..all.len().min(NAMED)].join(", ");
    match all.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Whether two sessions that are open at the same time are one on the server: then a pooler hands sessions out by transaction.
fn pooled(clients: &Clients, connection: &Connection) -> Result<bool, PostgresError> {
    let mut first = clients.session(connection)?;
    for _ in 0..POOLER_TRIES {
        let one = first.ask("SELECT pg_backend_pid();")?;
        let other = clients.sql(connection, "BEGIN; SELECT pg_backend_pid(); COMMIT;", &[])?;
        if one.trim() == other.trim() {
            return Ok(true);
        }
    }
    first.end()?;
    Ok(false)
}
