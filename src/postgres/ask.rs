//! Questions to several databases of one server in one run of `psql`. Whatever one of them cannot answer has no answer; the others have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write as _;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::stats::{STATS, ServerStats};
use super::{Clients, Connection, PostgresError};

/// Rows of values as text, `None` for NULL.
type Rows = Vec<Vec<Option<String>>>;

/// Something to ask, where a table is.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The table, looked for along the search path.
    pub table: &'static str,
    /// A query without a semicolon.
    pub sql: &'static str,
}

/// What one database answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// Which of the tables are there; `None` if it could not be connected to.
    pub tables: Option<BTreeSet<String>>,
    /// By the number of the question.
    pub rows: BTreeMap<usize, Rows>,
}

/// Statistics of the server, and the answers of each of `databases`, in their order. Blocks.
///
/// # Errors
/// [`PostgresError::Failed`] if the server does not answer; [`PostgresError::Client`] without `psql`.
pub fn look(
    clients: &Clients,
    connection: &Connection,
    databases: &[String],
    questions: &[Asked],
) -> Result<(ServerStats, Vec<Answers>), PostgresError> {
    let script = script(connection, databases, questions);
    let names: Vec<String> = (0..databases.len()).map(|n| format!("db{n}")).collect();
    let values = names.iter().zip(databases);
    let values: Vec<(&str, &str)> = values.map(|(n, d)| (n.as_str(), d.as_str())).collect();
    let (text, ended) = clients.sql_said(connection, &script, &values)?;
    if text.is_empty() {
        ended?;
    }
    let unread = |e: serde_json::Error| PostgresError::Io("reading the statistics", e.into());
    // One JSON document after the other; PostgreSQL breaks lines within them.
    let mut documents = serde_json::Deserializer::from_str(&text);
    let stats = ServerStats::deserialize(&mut documents).map_err(unread)?;
    let mut all = vec![Answers::default(); databases.len()];
    // What came before psql was cut off holds.
    while let (Err(_), Ok(line)) = (documents.end(), Line::deserialize(&mut documents)) {
        let Line {
            db,
            tables,
            q,
            rows,
        } = line;
        let Some(answers) = all.get_mut(db) else {
            continue;
        };
        match q {
            None => answers.tables = tables.map(|t| t.into_iter().collect()),
            Some(q) => {
                let rows = rows.unwrap_or_default().into_iter().map(|r| r.0);
                answers.rows.insert(q, rows.collect());
            }
        }
    }
    Ok((stats, all))
}

fn script(connection: &Connection, databases: &[String], questions: &[Asked]) -> String {
    let mut tables: Vec<&str> = questions.iter().map(|q| q.table).collect();
    tables.sort_unstable();
    tables.dedup();
    let list: Vec<String> = tables.iter().map(|t| format!("'{t}'")).collect();
    let list = list.join(",");
    let mut text = STATS.to_owned() + "\\set ON_ERROR_STOP off\n";
    if questions.is_empty() {
        return text;
    }
    for (db, database) in databases.iter().enumerate() {
        // A connection that fails would end psql; the rights are asked for before it.
        let other = database != connection.database();
        if other {
            let _ = writeln!(
                text,
                "\\set there false\nSELECT EXISTS (SELECT FROM pg_database WHERE datname = :'db{db}' AND datallowconn AND has_database_privilege(oid, 'CONNECT')) AS there \\gset\n\\if :there\n\\connect :\"db{db}\""
            );
        }
        // A question waits for no lock, and takes the server's time for a second at most.
        text += "SET statement_timeout = '1s'; SET lock_timeout = '200ms'; SET default_transaction_read_only = on;\n";
        for (n, _) in tables.iter().enumerate() {
            // Those of the database before it must not stand for this one.
            let _ = writeln!(text, "\\set t{n} false");
        }
        let there = tables.iter().enumerate();
        let there = there.map(|(n, t)| format!("to_regclass('{t}') IS NOT NULL AS t{n}"));
        let there = there.collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "SELECT {there} \\gset");
        let _ = writeln!(
            text,
            "SELECT json_build_object('db', {db}, 'tables', coalesce((SELECT json_agg(t) FROM unnest(ARRAY[{list}]) t WHERE to_regclass(t) IS NOT NULL), '[]'))::text;"
        );
        for (q, asked) in questions.iter().enumerate() {
            let n = tables.iter().position(|t| *t == asked.table).unwrap_or(0);
            let _ = writeln!(
                text,
                "\\if :t{n}\nSELECT json_build_object('db', {db}, 'q', {q}, 'rows', coalesce((SELECT json_agg(row_to_json(a)) FROM ({}) a), '[]'))::text;\n\\endif",
                asked.sql
            );
        }
        if other {
            text += "\\endif\n";
        }
    }
    text
}

#[derive(Deserialize)]
struct Line {
    db: usize,
    tables: Option<Vec<String>>,
    q: Option<usize>,
    rows: Option<Vec<Row>>,
}

/// A row as JSON: its columns in their order, whatever their names.
struct Row(Vec<Option<String>>);

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Columns;

        impl<'de> Visitor<'de> for Columns {
            type Value = Row;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a row")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
                let mut row = Vec::new();
                while let Some((_, value)) = map.next_entry::<String, Value>()? {
                    row.push(match value {
                        Value::Null => None,
                        Value::String(text) => Some(text),
                        other => Some(other.to_string()),
                    });
                }
                Ok(Row(row))
            }
        }

        deserializer.deserialize_map(Columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_the_order_of_their_columns() {
        let text = r#"{"db":0,"q":1,"rows":[{"z":"a","?column?":7,"?column?":null}]}"#;
        let line: Line = serde_json::from_str(text).unwrap();
        let rows: Rows = line.rows.unwrap().into_iter().map(|r| r.0).collect();
        assert_eq!(rows, [[Some("a".to_owned()), Some("7".to_owned()), None]]);
    }
}
