//! The databases of a target, in the stores that can be opened.

use std::sync::Arc;

use super::{Database, blocking, turn_path};
use crate::config::{Config, Databases, Origin, PostgresConfig, StoreConfig};
use crate::daemon::files::place;
use crate::daemon::fleet::open_replica;
use crate::postgres::{Clients, PostgresError, databases};
use crate::store::{Store, StoreError};

/// Where the databases of a target with several of them lie in the store, each under its escaped name.
const DATABASES: &str = "databases";

/// Where the names of databases come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The server: what is to be dumped.
    Server,
    /// The stores: what can be restored, whether the server is up or not. Named databases are always among them.
    Stores,
}

/// Opens the databases of a target.
///
/// # Errors
/// The store's; the server's, if it is asked.
pub async fn open(
    config: &Config,
    server: &PostgresConfig,
    ask: Ask,
) -> Result<Vec<Database>, PostgresError> {
    let (roots, mut shut) = roots(server).await;
    match shut.pop() {
        Some((_, error)) => Err(error.into()),
        None => of_roots(config, server, ask, roots).await,
    }
}

/// The stores of a target that can be opened, and those that cannot.
pub(in crate::daemon) async fn roots(server: &PostgresConfig) -> (Vec<Store>, Vec<Shut>) {
    let (mut roots, mut shut) = (Vec::new(), Vec::new());
    for store in &server.stores {
        match open_replica(store, &server.name).await {
            Ok(root) => roots.push(root),
            Err(error) => shut.push((store.clone(), error)),
        }
    }
    (roots, shut)
}

/// A store that cannot be opened, and why.
pub(in crate::daemon) type Shut = (StoreConfig, StoreError);

/// The databases of a target in some of its stores.
///
/// # Errors
/// As [`open`].
pub(in crate::daemon) async fn of_roots(
    config: &Config,
    server: &PostgresConfig,
    ask: Ask,
    roots: Vec<Store>,
) -> Result<Vec<Database>, PostgresError> {
    let shared = Arc::new(server.clone());
    let one = |database: Option<&str>| Database {
        name: match database {
            Some(database) => format!("{}/{database}", server.name),
            None => server.name.clone(),
        },
        server: Arc::clone(&shared),
        origin: match (&server.origin, database) {
            (Origin::Postgres(connection), Some(database)) => {
                Origin::Postgres(connection.with_database(database))
            }
            (origin, _) => origin.clone(),
        },
        stores: match database {
            Some(database) => roots
                .iter()
                .map(|root| root.child(DATABASES).child(&escape(database)))
                .collect(),
            None => roots.clone(),
        },
        turn: turn_path(config, &server.origin),
    };
    let names = match (&server.databases, ask) {
        (Databases::Own, _) => return Ok(vec![one(None)]),
        (Databases::Named(names), Ask::Server) => names.clone(),
        (Databases::Named(names), Ask::Stores) => {
            let mut found = stored(&roots).await?;
            found.extend(names.iter().cloned());
            found.sort();
            found.dedup();
            found
        }
        (Databases::All | Databases::Except(_), Ask::Stores) => stored(&roots).await?,
        (Databases::All | Databases::Except(_), Ask::Server) => {
            let Origin::Postgres(connection) = server.origin.clone() else {
                return Ok(vec![one(None)]);
            };
            let bin_dir = server.bin_dir.clone();
            let except = match &server.databases {
                Databases::Except(names) => names.clone(),
                _ => Vec::new(),
            };
            let all = blocking(move || {
                let clients = Clients::for_server(&connection, bin_dir.as_deref())?;
                databases(&clients, &connection)
            })
            .await?;
            all.into_iter().filter(|n| !except.contains(n)).collect()
        }
    };
    Ok(names.iter().map(|name| one(Some(name))).collect())
}

/// Where a database lies in a store, as [`Store::display`] would say it.
pub(in crate::daemon) fn place_of(
    server: &PostgresConfig,
    name: &str,
    store: &StoreConfig,
) -> String {
    let database = name.strip_prefix(&format!("{}/", server.name));
    let below = database.map(|database| format!("{DATABASES}/{}", escape(database)));
    place(store, &server.name, below.as_deref())
}

/// Databases that have something in a store.
async fn stored(roots: &[Store]) -> Result<Vec<String>, PostgresError> {
    let mut names = Vec::new();
    for root in roots {
        for object in root.list(DATABASES).await? {
            let name = object.key.split('/').nth(1).and_then(unescape);
            names.extend(name);
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// A name as one segment of a key: other bytes than letters, digits, `_` and `-` as `=XX`.
fn escape(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => out.push(char::from(byte)),
            other => out += &format!("={other:02X}"),
        }
    }
    out
}

fn unescape(segment: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'=' {
            let digits = [rest.next()?, rest.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_databases_go_through_keys() {
        for name in ["app", "an \"odd\" 'name'", "a/b", "..", "Ünï=20", "a=b", ""] {
            let segment = escape(name);
            assert_eq!(unescape(&segment).as_deref(), Some(name));
            assert!(!segment.contains(['/', '.', ' ', '%']), "{segment}");
        }
        assert_eq!(unescape("a=2"), None);
        assert_eq!(unescape("a=FF"), None);
    }
}
