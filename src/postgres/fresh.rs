//! Databases that Lifeboat makes: marked by a comment while they are not finished, so that what a kill leaves behind is known.

use serde::{Deserialize, Serialize};

use super::after;
use super::manifest::Properties;
use super::restore::fill;
use super::{Checked, Clients, Connection, PostgresError, RestoreOptions, Source, check};

/// What a comment on a database says about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "lifeboat", rename_all = "kebab-case")]
pub(super) enum Mark {
    /// A restore is at work, or was killed.
    Unfinished {
        /// The database that it is for.
        of: String,
    },
    /// A restore replaced it.
    Kept {
        /// The name that it had.
        of: String,
        /// When, RFC 3339.
        at: String,
        /// Its own comment.
        comment: Option<String>,
    },
}

impl Mark {
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A database with a mark.
#[derive(Debug, Deserialize)]
struct Marked {
    name: String,
    comment: String,
    sessions: u64,
}

/// A connection to some database of the server that is not `name`: databases are made and renamed from there.
pub(super) fn aside(clients: &Clients, server: &Connection, name: &str) -> Connection {
    let postgres = server.with_database("postgres");
    if name != "postgres" && clients.sql(&postgres, "SELECT 1;", &[]).is_ok() {
        return postgres;
    }
    server.with_database("template1")
}

pub(super) fn exists(
    clients: &Clients,
    aside: &Connection,
    name: &str,
) -> Result<bool, PostgresError> {
    let sql = "SELECT count(*) FROM pg_database WHERE datname = :'name';";
    Ok(clients.sql(aside, sql, &[("name", name)])?.trim() == "1")
}

/// Whether the database of a connection is there and has anything in it. An empty one, as the image of PostgreSQL makes it at its first start, is
/// none: an app that finds it would fill it, and nobody would miss the backup. Blocks.
///
/// # Errors
/// [`PostgresError::Failed`].
pub fn has_data(clients: &Clients, connection: &Connection) -> Result<bool, PostgresError> {
    // What belongs to an extension came with it; of its indexes and the relations of its types only what they belong to is marked so.
    const OWN: &str = "SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'
         AND c.relkind IN ('r', 'p', 'm', 'v', 'f', 'S')
         AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
       + (SELECT count(*) FROM pg_largeobject_metadata);";
    let name = connection.database();
    Ok(exists(clients, &aside(clients, connection, name), name)?
        && clients.sql(connection, OWN, &[])?.trim() != "0")
}

/// Makes a database and marks it. With `like`, as the dumped one was: encoding and locale; another owner follows after it is filled.
pub(super) fn create(
    clients: &Clients,
    aside: &Connection,
    name: &str,
    of: &str,
    like: Option<&Properties>,
) -> Result<(), PostgresError> {
    let mut sql = "CREATE DATABASE :\"name\" TEMPLATE template0".to_owned();
    let none = Properties::default();
    let like = like.unwrap_or(&none);
    if !like.encoding.is_empty() {
        sql += " ENCODING :'encoding' LC_COLLATE :'collate' LC_CTYPE :'ctype'";
    }
    match like.provider.as_str() {
        "i" => sql += " LOCALE_PROVIDER icu ICU_LOCALE :'locale'",
        "b" => sql += " LOCALE_PROVIDER builtin BUILTIN_LOCALE :'locale'",
        _ => {}
    }
    sql += ";\nCOMMENT ON DATABASE :\"name\" IS :'mark';";
    let mark = Mark::Unfinished { of: of.to_owned() }.text();
    let values = [
        ("name", name),
        ("encoding", like.encoding.as_str()),
        ("collate", like.collate.as_str()),
        ("ctype", like.ctype.as_str()),
        ("locale", like.locale.as_str()),
        ("mark", mark.as_str()),
    ];
    clients.sql(aside, &sql, &values).map(|_| ())
}

/// Gives the room of every table back at once, the largest first, without a byte of new room. An extension's tables stay.
const EMPTY: &str = r"\unset ON_ERROR_STOP
SELECT format('DROP TABLE IF EXISTS %s CASCADE', c.oid::regclass) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'
  ORDER BY pg_total_relation_size(c.oid) DESC \gexec
";

/// A database that is being made: dropped with this, unless it is kept. Blocks.
pub(super) struct Fresh {
    clients: Clients,
    aside: Connection,
    name: String,
    keep: bool,
}

impl Fresh {
    pub(super) fn new(clients: &Clients, aside: &Connection, name: &str) -> Self {
        Self {
            clients: clients.clone(),
            aside: aside.clone(),
            name: name.to_owned(),
            keep: false,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// It is no longer ours to drop.
    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.keep {
            discard(&self.clients, &self.aside, &self.name);
        }
    }
}

/// Drops a database that was made here and is of no use. It is emptied first: `DROP DATABASE` begins with a checkpoint, and where this database
/// has filled the disk, a checkpoint crashes the whole server.
pub(super) fn discard(clients: &Clients, aside: &Connection, name: &str) {
    empty(clients, aside, name);
    let sql = "DROP DATABASE IF EXISTS :\"name\" WITH (FORCE);";
    if let Err(left) = clients.sql(aside, sql, &[("name", name)]) {
        tracing::warn!(database = name, error = %left, "the unfinished database could not be dropped");
    }
}

fn empty(clients: &Clients, aside: &Connection, name: &str) {
    if let Err(error) = clients.sql(&aside.with_database(name), EMPTY, &[]) {
        tracing::debug!(database = name, %error, "emptying the unfinished database");
    }
}

/// Every database with a mark.
pub(super) fn marked(
    clients: &Clients,
    aside: &Connection,
) -> Result<Vec<(String, Mark, u64)>, PostgresError> {
    let sql = "SELECT coalesce(json_agg(json_build_object('name', datname, 'comment', shobj_description(oid, 'pg_database'),
        'sessions', (SELECT count(*) FROM pg_stat_activity a WHERE a.datid = d.oid)) ORDER BY datname), '[]')
        FROM pg_database d WHERE shobj_description(oid, 'pg_database') LIKE '{\"lifeboat\":%';";
    let text = clients.sql(aside, sql, &[])?;
    let all: Vec<Marked> = serde_json::from_str(&text)
        .map_err(|e| PostgresError::Io("reading the catalogue", e.into()))?;
    let with_mark = |m: Marked| Some((m.name, serde_json::from_str(&m.comment).ok()?, m.sessions));
    Ok(all.into_iter().filter_map(with_mark).collect())
}

/// Drops what killed restores of a database left behind.
pub(super) fn sweep(clients: &Clients, aside: &Connection, of: &str) -> Result<(), PostgresError> {
    for (name, mark, sessions) in marked(clients, aside)? {
        let unfinished = matches!(&mark, Mark::Unfinished { of: o } if o == of);
        // A session is another restore at work.
        if unfinished && sessions == 0 {
            tracing::info!(
                database = name,
                "dropping what a killed restore left behind"
            );
            empty(clients, aside, &name);
            clients.sql(aside, "DROP DATABASE :\"name\";", &[("name", &name)])?;
        }
    }
    Ok(())
}

/// Restores into a database that must not exist yet, checks and analyses it. Any error of `pg_restore` is fatal. Blocks.
///
/// # Errors
/// The new database is dropped then; no other was touched.
pub fn into_new(
    source: &Source,
    server: &Connection,
    clients: &Clients,
    name: &str,
    options: &RestoreOptions,
) -> Result<Checked, PostgresError> {
    let (checked, fresh) = into_fresh(source, server, clients, name, options)?;
    unmark(clients, &aside(clients, server, name), fresh)?;
    Ok(checked)
}

/// [`into_new`], but for the last step: it goes with its guard, and is marked until then.
pub(super) fn into_fresh(
    source: &Source,
    server: &Connection,
    clients: &Clients,
    name: &str,
    options: &RestoreOptions,
) -> Result<(Checked, Fresh), PostgresError> {
    let aside = aside(clients, server, name);
    sweep(clients, &aside, name)?;
    create_like(clients, &aside, name, &source.manifest.properties)?;
    let fresh = Fresh::new(clients, &aside, name);
    let target = server.with_database(name);
    fill(source, &target, clients, options, &[])?;
    let checked = finish(source, &target, clients)?;
    after::run(clients, &target, options)?;
    Ok((checked, fresh))
}

/// It is finished.
fn unmark(clients: &Clients, aside: &Connection, fresh: Fresh) -> Result<(), PostgresError> {
    let sql = "COMMENT ON DATABASE :\"name\" IS NULL;";
    clients.sql(aside, sql, &[("name", fresh.name())])?;
    fresh.keep();
    Ok(())
}

/// With the dumped one's locale, or with the server's if it does not know that one.
fn create_like(
    clients: &Clients,
    aside: &Connection,
    name: &str,
    like: &Properties,
) -> Result<(), PostgresError> {
    match create(clients, aside, name, name, Some(like)) {
        Err(PostgresError::Failed { why, .. }) if why.contains("locale") => {
            tracing::warn!(
                locale = like.collate,
                "this server does not know the locale of the dump; taking its own: texts may sort otherwise"
            );
            create(clients, aside, name, name, None)
        }
        other => other,
    }
}

/// Checks and ANALYZE.
pub(super) fn finish(
    source: &Source,
    target: &Connection,
    clients: &Clients,
) -> Result<Checked, PostgresError> {
    let checked = check(clients, target, &source.manifest)?;
    clients.sql(target, "ANALYZE;", &[])?;
    Ok(checked)
}

/// Restores into the database of a URL, on whatever server: made if it is not there, otherwise it must be empty and is filled in one
/// transaction. Blocks.
///
/// # Errors
/// The database is gone or empty again then; only one that was filled and is not as it was dumped is there, and the error says so.
pub fn into_url(
    source: &Source,
    target: &Connection,
    clients: &Clients,
    options: &RestoreOptions,
) -> Result<Checked, PostgresError> {
    let name = target.database();
    let aside = aside(clients, target, name);
    // Who may not look there, as on some hosted servers, has a database already.
    if !exists(clients, &aside, name).unwrap_or(true) {
        return into_new(source, target, clients, name, options);
    }
    let objects = "SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%')
       + (SELECT count(*) FROM pg_largeobject_metadata);";
    let count = clients.sql(target, objects, &[])?;
    if count.trim() != "0" {
        return Err(PostgresError::Refused {
            what: format!(
                "the database {} is not empty; nothing was changed",
                target.display()
            ),
            hint: "name a database that does not exist or is empty, or use --in-place".into(),
        });
    }
    // What a script that fails has changed could not be taken back.
    if options.after.is_some() {
        return Err(PostgresError::Refused {
            what: format!(
                "{} exists, and --after-sql needs a database that can be dropped if it fails; nothing was changed",
                target.display()
            ),
            hint: "name a database that does not exist, or use --in-place".into(),
        });
    }
    if options.jobs > 1 {
        return Err(PostgresError::Refused {
            what: format!(
                "{} exists, and several jobs cannot fill it in one transaction; nothing was changed",
                target.display()
            ),
            hint: "leave --jobs out, or name a database that does not exist".into(),
        });
    }
    fill(source, target, clients, options, &["--single-transaction"])?;
    finish(source, target, clients).map_err(|error| match error {
        PostgresError::Damaged { id, why } => PostgresError::Damaged {
            id,
            why: format!("{why}; {} was filled with it", target.display()),
        },
        other => other,
    })
}

/// Restores tables, without indexes, keys and triggers, into a database that must not exist yet: beside the live ones. Blocks.
///
/// # Errors
/// The new database is dropped then; no other was touched.
pub fn tables(
    source: &Source,
    server: &Connection,
    clients: &Clients,
    name: &str,
    tables: &[String],
    options: &RestoreOptions,
) -> Result<Vec<Restored>, PostgresError> {
    let aside = aside(clients, server, name);
    sweep(clients, &aside, name)?;
    let chosen = choose(&source.manifest.counts, tables)?;
    create_like(clients, &aside, name, &source.manifest.properties)?;
    let fresh = Fresh::new(clients, &aside, name);
    let target = server.with_database(name);
    // All definitions, since a table's types and functions may lie anywhere; then the rows.
    fill(source, &target, clients, options, &["--section=pre-data"])?;
    let mut found = Vec::new();
    for (table, rows) in chosen {
        let (schema, plain) = parts(&table);
        let (schema, plain) = (format!("--schema={schema}"), format!("--table={plain}"));
        let only = ["--data-only", &schema, &plain];
        fill(source, &target, clients, options, &only)?;
        found.push(copied(clients, &target, &source.manifest.id, table, rows)?);
    }
    unmark(clients, &aside, fresh)?;
    Ok(found)
}

/// A table that was restored beside the live one.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// As SQL writes it.
    pub table: String,
    /// Rows.
    pub rows: u64,
    /// Its columns that can be written, as SQL writes them.
    pub columns: String,
}

fn copied(
    clients: &Clients,
    target: &Connection,
    id: &str,
    table: String,
    rows: u64,
) -> Result<Restored, PostgresError> {
    let sql = format!(
        "SELECT (SELECT count(*) FROM {table});
         SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
         WHERE attrelid = :'table'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '';"
    );
    let text = clients.sql(target, &sql, &[("table", &table)])?;
    let (count, columns) = text.trim_end().split_once('\n').unwrap_or((&text, ""));
    if count.trim() != rows.to_string() {
        return Err(PostgresError::Damaged {
            id: id.to_owned(),
            why: format!("{table} has {count} rows, not {rows}"),
        });
    }
    Ok(Restored {
        columns: columns.to_owned(),
        table,
        rows,
    })
}

/// The tables that are meant: `schema.table` as SQL writes it, or the table alone if only one schema has it.
fn choose(
    counts: &std::collections::BTreeMap<String, u64>,
    wanted: &[String],
) -> Result<Vec<(String, u64)>, PostgresError> {
    let mut chosen = Vec::new();
    for name in wanted {
        let means = |full: &&String| {
            let (schema, plain) = parts(full);
            *full == name || plain == *name || format!("{schema}.{plain}") == *name
        };
        let found: Vec<&String> = counts.keys().filter(means).collect();
        match found.as_slice() {
            [one] => chosen.push(((*one).clone(), counts[*one])),
            [] => {
                return Err(PostgresError::Refused {
                    what: format!(
                        "the dump holds no rows of a table \"{name}\"; nothing was changed"
                    ),
                    hint: "`lifeboat list NAME --json` shows the tables under `counts`".into(),
                });
            }
            several => {
                let names: Vec<&str> = several.iter().map(|n| n.as_str()).collect();
                return Err(PostgresError::Refused {
                    what: format!(
                        "\"{name}\" may be {}; nothing was changed",
                        names.join(" or ")
                    ),
                    hint: "name the schema too".into(),
                });
            }
        }
    }
    Ok(chosen)
}

/// Schema and table without quotes.
fn parts(full: &str) -> (String, String) {
    let mut found = vec![String::new()];
    let (mut quoted, mut rest) = (false, full.chars().peekable());
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => {
                rest.next();
                push(&mut found, '"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => found.push(String::new()),
            other => push(&mut found, other),
        }
    }
    let table = found.pop().unwrap_or_default();
    (found.pop().unwrap_or_default(), table)
}

fn push(parts: &mut [String], c: char) {
    if let Some(last) = parts.last_mut() {
        last.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_found_by_their_names() {
        let counts = [("public.a", 1), ("\"S.1\".\"x \"\"y\"", 2), ("other.a", 3)];
        let counts = counts.map(|(n, rows)| (n.to_owned(), rows)).into();
        let one = |name: &str| choose(&counts, &[name.to_owned()]).map(|mut c| c.pop().unwrap().1);
        assert_eq!(one("public.a").unwrap(), 1);
        assert_eq!(one("x \"y").unwrap(), 2);
        assert_eq!(one("S.1.x \"y").unwrap(), 2);
        assert!(
            one("a")
                .unwrap_err()
                .to_string()
                .contains("other.a or public.a")
        );
        assert!(one("b").is_err());
    }
}
