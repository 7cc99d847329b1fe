//! What the server says about a database.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::manifest::Properties;
use super::{Clients, Connection, PostgresError};

/// What goes into a manifest beside the dump itself.
#[derive(Debug, Deserialize)]
pub(super) struct About {
    pub(super) server_version: String,
    pub(super) database_bytes: u64,
    pub(super) extensions: BTreeMap<String, String>,
    pub(super) rows: BTreeMap<String, i64>,
    pub(super) properties: Properties,
}

/// The statements are written for a database called `:"database"` in psql, so that they can be run for one of another name.
const ABOUT: &str = r#"SELECT json_build_object(
 'server_version', current_setting('server_version'),
 'database_bytes', pg_database_size(d.oid),
 'extensions', (SELECT coalesce(json_object_agg(extname, extversion), '{}') FROM pg_extension),
 'rows', (SELECT coalesce(json_object_agg(n.nspname || '.' || c.relname, c.reltuples::bigint), '{}')
   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'),
 'properties', json_build_object(
   'owner', pg_get_userbyid(d.datdba),
   'encoding', pg_encoding_to_char(d.encoding),
   'collate', d.datcollate,
   'ctype', d.datctype,
   'provider', coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
   'locale', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', ''),
   'connection-limit', d.datconnlimit,
   'grants', CASE WHEN d.datacl IS NULL THEN '[]'::json ELSE (
     SELECT json_agg(s) FROM (
       SELECT 'REVOKE ALL ON DATABASE :"database" FROM PUBLIC' AS s
       UNION ALL
       SELECT format('GRANT %s ON DATABASE :"database" TO %s%s', a.privilege_type,
         CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
         CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
       FROM aclexplode(d.datacl) a) g) END,
   'settings', (SELECT coalesce(json_agg(format(
       CASE WHEN s.setrole = 0 THEN 'ALTER DATABASE :"database" SET %2$s' ELSE 'ALTER ROLE %1$I IN DATABASE :"database" SET %2$s' END,
       CASE WHEN s.setrole = 0 THEN 'x' ELSE pg_get_userbyid(s.setrole)::text END,
       quote_ident(split_part(c, '=', 1)) || ' TO ' ||
       CASE WHEN lower(split_part(c, '=', 1)) IN ('search_path', 'session_preload_libraries', 'local_preload_libraries', 'shared_preload_libraries',
           'temp_tablespaces', 'unix_socket_directories')
         THEN CASE WHEN substr(c, strpos(c, '=') + 1) = '""' THEN '''''' ELSE substr(c, strpos(c, '=') + 1) END ELSE quote_literal(substr(c, strpos(c, '=') + 1)) END)), '[]')
     FROM pg_db_role_setting s, unnest(s.setconfig) c WHERE s.setdatabase = d.oid)))::text
FROM pg_database d WHERE d.datname = current_database();
"#;

/// Asks. Blocks.
pub(super) fn about(clients: &Clients, connection: &Connection) -> Result<About, PostgresError> {
    let text = clients.sql(connection, ABOUT, &[])?;
    serde_json::from_str(&text).map_err(|e| PostgresError::Io("reading the catalogue", e.into()))
}

/// Names of the databases that can be connected to, without templates and what a drill or a restore is filling. Blocks.
///
/// # Errors
/// [`PostgresError::Failed`].
pub fn databases(clients: &Clients, connection: &Connection) -> Result<Vec<String>, PostgresError> {
    let text = clients.sql(
        connection,
        "SELECT coalesce(json_agg(datname ORDER BY datname), '[]') FROM pg_database WHERE datallowconn AND NOT datistemplate
           AND coalesce(shobj_description(oid, 'pg_database'), '') NOT LIKE '{\"lifeboat\":\"unfinished\"%';",
        &[],
    )?;
    serde_json::from_str(&text).map_err(|e| PostgresError::Io("reading the catalogue", e.into()))
}
