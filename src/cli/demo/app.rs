//! The app: four databases and a thread that writes to each.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use sha2::{Digest, Sha256};

pub(super) const PRODUCTION: &str = "production.sqlite3";
/// Statements that people really ran.
pub(super) const TERRIBLE: [&str; 2] = ["DELETE FROM orders", "DROP TABLE users"];
/// Between two commits of one thread: a busy small app.
const PAUSE: Duration = Duration::from_millis(10);

/// File, schema, first rows, and what the app does again and again.
const DATABASES: [(&str, &str, &str, &str); 4] = [
    (
        PRODUCTION,
        "CREATE TABLE users(id INTEGER PRIMARY KEY, email TEXT NOT NULL, created_at TEXT NOT NULL);
         CREATE TABLE orders(id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users(id), cents INTEGER NOT NULL, note TEXT, created_at TEXT NOT NULL);
         CREATE INDEX orders_of_user ON orders(user_id);",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
           INSERT INTO users SELECT i, 'user' || i || '@example.com', datetime('now') FROM n;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
           INSERT INTO orders SELECT i, 1 + i % 500, i * 37 % 9999, hex(randomblob(60)), datetime('now') FROM n;",
        "INSERT INTO orders(user_id, cents, note, created_at)
           SELECT id, abs(random()) % 9999, hex(randomblob(60)), datetime('now') FROM users WHERE id = 1 + abs(random()) % 500",
    ),
    (
        "production_cache.sqlite3",
        "CREATE TABLE solid_cache_entries(id INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB NOT NULL);",
        "INSERT INTO solid_cache_entries(key, value) VALUES (randomblob(16), randomblob(900));",
        "INSERT INTO solid_cache_entries(key, value) VALUES (randomblob(16), randomblob(900))",
    ),
    (
        "production_queue.sqlite3",
        "CREATE TABLE solid_queue_jobs(id INTEGER PRIMARY KEY, class_name TEXT NOT NULL, arguments TEXT, finished_at TEXT);",
        "INSERT INTO solid_queue_jobs(class_name, arguments) VALUES ('MailJob', '{}');",
        "INSERT INTO solid_queue_jobs(class_name, arguments) VALUES ('MailJob', hex(randomblob(40)))",
    ),
    (
        "production_cable.sqlite3",
        "CREATE TABLE solid_cable_messages(id INTEGER PRIMARY KEY, channel BLOB NOT NULL, payload BLOB NOT NULL);",
        "INSERT INTO solid_cable_messages(channel, payload) VALUES ('chat', randomblob(100));",
        "INSERT INTO solid_cable_messages(channel, payload) VALUES ('chat', randomblob(100))",
    ),
];

pub(super) fn create(storage: &Path) -> rusqlite::Result<()> {
    std::fs::create_dir_all(storage)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    for (file, schema, first, _) in DATABASES {
        let conn = Connection::open(storage.join(file))?;
        conn.pragma_update(None, "journal_mode", "wal")?;
        conn.execute_batch(&format!("BEGIN; {schema} {first} COMMIT;"))?;
    }
    Ok(())
}

fn tables(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut list =
        conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
    let names = list.query_map([], |r| r.get(0))?;
    names.collect()
}

/// Rows of each database.
pub(super) fn rows(storage: &Path) -> rusqlite::Result<Vec<(&'static str, i64)>> {
    let one = |file: &'static str| {
        let conn = Connection::open(storage.join(file))?;
        let mut rows = 0;
        for table in tables(&conn)? {
            rows += conn.query_row(&format!("SELECT count(*) FROM \"{table}\""), [], |r| {
                r.get::<_, i64>(0)
            })?;
        }
        Ok((file, rows))
    };
    DATABASES.iter().map(|d| one(d.0)).collect()
}

pub(super) fn orders(production: &Path) -> rusqlite::Result<i64> {
    let conn = Connection::open(production)?;
    conn.query_row("SELECT count(*) FROM orders", [], |r| r.get(0))
}

pub(super) fn disaster(production: &Path) -> rusqlite::Result<()> {
    let conn = Connection::open(production)?;
    conn.busy_timeout(Duration::from_secs(10))?;
    conn.pragma_update(None, "foreign_keys", "off")?;
    TERRIBLE.iter().try_for_each(|sql| conn.execute_batch(sql))
}

/// SHA-256 over the schema and every value of every row, the first 16 digits: what an app sees, read through SQLite.
pub(super) fn digest(path: &Path) -> rusqlite::Result<String> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(Duration::from_secs(10))?;
    let mut sum = Sha256::new();
    let queries =
        std::iter::once("SELECT type, name, sql FROM sqlite_schema ORDER BY name".to_owned())
            .chain(
                tables(&conn)?
                    .into_iter()
                    .map(|t| format!("SELECT * FROM \"{t}\" ORDER BY rowid")),
            );
    for sql in queries {
        sum.update(sql.as_bytes());
        let mut statement = conn.prepare(&sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                match row.get_ref(column)? {
                    ValueRef::Null => sum.update([0]),
                    ValueRef::Integer(n) => sum.update(n.to_le_bytes()),
                    ValueRef::Real(n) => sum.update(n.to_le_bytes()),
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                        sum.update((bytes.len() as u64).to_le_bytes());
                        sum.update(bytes);
                    }
                }
            }
        }
    }
    let sum = sum.finalize();
    Ok(hex::encode(&sum[..8]))
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    commits: AtomicU64,
    errors: AtomicU64,
    last_error: Mutex<String>,
    /// Whoever holds it keeps production still.
    gate: Mutex<()>,
}

/// Threads that write until dropped.
pub(super) struct App {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl App {
    pub(super) fn start(storage: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = DATABASES.iter().map(|(file, _, _, again)| {
            let (shared, path) = (Arc::clone(&shared), storage.join(file));
            let gated = *file == PRODUCTION;
            std::thread::spawn(move || write(&shared, &path, again, gated))
        });
        Self {
            threads: threads.collect(),
            shared,
        }
    }

    pub(super) fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// How many so far, and the last one.
    pub(super) fn errors(&self) -> (u64, String) {
        let last = self.shared.last_error.lock();
        (
            self.shared.errors.load(Ordering::Relaxed),
            last.unwrap_or_else(PoisonError::into_inner).clone(),
        )
    }

    /// Production stands still until this is dropped.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        self.shared
            .gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has closed its database, too.
            let _ = thread.join();
        }
    }
}

fn write(shared: &Shared, path: &PathBuf, sql: &str, gated: bool) {
    let open = || -> rusqlite::Result<Connection> {
        let conn = Connection::open(path)?;
        conn.busy_timeout(Duration::from_secs(5))?;
        conn.pragma_update(None, "synchronous", "normal")?;
        Ok(conn)
    };
    let Ok(conn) = open() else {
        shared.errors.fetch_add(1, Ordering::Relaxed);
        return;
    };
    while !shared.stop.load(Ordering::Relaxed) {
        {
            let _gate = gated.then(|| shared.gate.lock().unwrap_or_else(PoisonError::into_inner));
            match conn.execute(sql, []) {
                Ok(_) => shared.commits.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    let mut last = shared
                        .last_error
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    *last = error.to_string();
                    shared.errors.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
        std::thread::sleep(PAUSE);
    }
}
