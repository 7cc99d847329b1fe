//! What a restored database is compared with.

use std::fmt::Write;

use super::{Clients, Connection, Manifest, PostgresError};

/// What was found to be right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// Tables whose rows were counted.
    pub tables: usize,
    /// Those rows.
    pub rows: u64,
}

/// Invalid indexes and constraints that were never checked, one a line.
const UNSOUND: &str = "SELECT 'index ' || indexrelid::regclass FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
  WHERE NOT indisvalid AND c.relkind = 'i'
UNION ALL SELECT 'constraint ' || quote_ident(conname) || ' of ' || conrelid::regclass FROM pg_constraint
  WHERE NOT convalidated AND conrelid <> 0 ORDER BY 1;
";

/// Indexes and constraints that are not valid. Blocks.
pub(super) fn unsound(
    clients: &Clients,
    connection: &Connection,
) -> Result<Vec<String>, PostgresError> {
    let text = clients.sql(connection, UNSOUND, &[])?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Compares the rows of every table with the manifest, and looks for what is not valid and was valid before. Blocks.
///
/// # Errors
/// [`PostgresError::Damaged`] for what differs.
pub fn check(
    clients: &Clients,
    target: &Connection,
    manifest: &Manifest,
) -> Result<Checked, PostgresError> {
    let damaged = |why: String| PostgresError::Damaged {
        id: manifest.id.clone(),
        why,
    };
    let mut sql = "SET row_security = off;\n".to_owned();
    for (i, table) in manifest.counts.keys().enumerate() {
        let literal = table.replace('\'', "''");
        // An extension fills its own tables when it is created: those hold more than the dump.
        let extension = format!(
            "EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = '{literal}'::regclass AND deptype = 'e')"
        );
        // Writing to a String does not fail.
        let _ = writeln!(
            sql,
            "SELECT {i}, CASE WHEN {extension} THEN -1 ELSE (SELECT count(*) FROM {table}) END;"
        );
    }
    let text = clients.sql(target, &sql, &[])?;
    let mut checked = Checked::default();
    let mut lines = text.lines();
    for (i, (table, expected)) in manifest.counts.iter().enumerate() {
        let found = lines
            .next()
            .and_then(|line| line.strip_prefix(&format!("{i}|")))
            .and_then(|count| count.parse::<i64>().ok())
            .ok_or_else(|| damaged(format!("the rows of {table} could not be counted")))?;
        if found >= 0 && found.unsigned_abs() != *expected {
            return Err(damaged(format!(
                "{table} has {found} rows after the restore, the dump has {expected}"
            )));
        }
        if found >= 0 {
            checked.tables += 1;
            checked.rows += *expected;
        }
    }
    let new: Vec<String> = unsound(clients, target)?
        .into_iter()
        .filter(|what| !manifest.unsound.contains(what))
        .collect();
    if !new.is_empty() {
        return Err(damaged(format!("not valid: {}", new.join(", "))));
    }
    Ok(checked)
}
