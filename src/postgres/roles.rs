//! Roles and tablespaces of a dump, on a server where some of them may exist.

use std::collections::BTreeSet;

use super::{Clients, Connection, PostgresError};

/// Creates what is not there. Roles that exist keep their attributes; returns how many did. Blocks.
///
/// # Errors
/// [`PostgresError::Failed`] if the server cannot be asked; what single statements meet is logged by the server alone.
pub fn apply_globals(
    clients: &Clients,
    server: &Connection,
    sql: &str,
) -> Result<usize, PostgresError> {
    // The database to restore may not be there.
    let server = &super::fresh::aside(clients, server, server.database());
    let text = clients.sql(
        server,
        "SELECT json_agg(quote_ident(rolname)) FROM pg_roles;",
        &[],
    )?;
    let existing: BTreeSet<String> = serde_json::from_str(&text)
        .map_err(|e| PostgresError::Io("reading the catalogue", e.into()))?;
    let (kept, left) = without(sql, &existing);
    // A tablespace whose folder is not on this host must not end it.
    let script = format!("\\set ON_ERROR_STOP 0\n{kept}");
    clients.sql(server, &script, &[])?;
    Ok(left)
}

/// The script without what would change existing roles, and how many it creates of those.
fn without(sql: &str, existing: &BTreeSet<String>) -> (String, usize) {
    let mut left = 0;
    let mut kept = String::new();
    for line in sql.split_inclusive('\n') {
        let is_of = |start: &str| {
            line.strip_prefix(start).is_some_and(|rest| {
                let name = name_of(rest);
                existing.contains(name)
            })
        };
        if is_of("CREATE ROLE ") {
            left += 1;
        } else if !is_of("ALTER ROLE ") {
            kept += line;
        }
    }
    (kept, left)
}

/// The identifier that a text begins with, as it stands there.
fn name_of(text: &str) -> &str {
    let mut quoted = false;
    let end = text.find(|c: char| {
        quoted ^= c == '"';
        !quoted && matches!(c, ' ' | ';' | '\n')
    });
    &text[..end.unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn existing_roles_are_left_as_they_are() {
        let sql = "CREATE ROLE app;\nALTER ROLE app WITH NOLOGIN;\nCREATE ROLE \"odd one;\";\nALTER ROLE \"odd one;\" SET x TO 'y';\nCREATE ROLE apple;\nALTER ROLE apple WITH LOGIN;\nGRANT app TO apple;\n";
        let existing = BTreeSet::from(["app".to_owned(), "\"odd one;\"".to_owned()]);
        let (kept, left) = without(sql, &existing);
        assert_eq!(left, 2);
        assert_eq!(
            kept,
            "CREATE ROLE apple;\nALTER ROLE apple WITH LOGIN;\nGRANT app TO apple;\n"
        );
    }
}
