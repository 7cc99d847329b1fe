//! A restore in place: into a fresh database, which then takes the live one's name in one transaction.
//!
//! Invariants
//! 1. The live database is only ever renamed, in the transaction that gives its name to the restored one. A kill, an error or a lost
//!    connection leaves either everything as it was, or the swap done.
//! 2. Connections are never forbidden: the rename holds the lock that a new session needs, while the sessions that are there are ended.
//! 3. One restore in place of a database is at work at a time (`alone`).
//! 4. What was replaced is kept under a dated name, marked by a comment that says what it was. Nothing is dropped but what a restore made
//!    and did not finish.

use std::time::Duration;

use jiff::Timestamp;

use super::after;
use super::alone::Alone;
use super::catalog::about;
use super::fresh::{Fresh, Mark, aside, create, exists, finish, has_data, marked, sweep};
use super::manifest::Properties;
use super::queue::{Held, hold};
use super::restore::fill;
use super::{Checked, Clients, Connection, PostgresError, RestoreOptions, Source, Stop};

/// Bytes in the name of a database.
const NAME_MAX_BYTES: usize = 63;
/// Between two rounds of ending sessions while the rename waits for them; the server waits five seconds.
const END_SESSIONS_EVERY: Duration = Duration::from_millis(100);

/// What a restore in place did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Swapped {
    /// Name of the database that was replaced; `None` if there was none.
    pub kept: Option<String>,
    /// Sessions of the live database that were there right before the swap, which ends them.
    pub sessions: u64,
    /// What was checked before.
    pub checked: Checked,
    /// What was done to jobs of Solid Queue after that, if it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// The file of SQL that was run on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_sql: Option<String>,
}

/// A name that says what it was and when, within the server's limit.
fn dated(name: &str, what: &str, now: Timestamp) -> String {
    let suffix = format!("_{what}_{}", now.strftime("%Y%m%dt%H%M%Sz"));
    let mut end = name.len().min(NAME_MAX_BYTES.saturating_sub(suffix.len()));
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &name[..end])
}

/// A fresh database that is filled, checked and dressed: all that is left to do is a rename. It ends by [`Prepared::swap`], or is dropped, which
/// blocks; one that a kill left behind is swept by the next restore.
#[must_use]
pub struct Prepared {
    live: Connection,
    aside: Connection,
    clients: Clients,
    // Gone before the next restore may begin: fields are dropped in order.
    fresh: Fresh,
    is_there: bool,
    checked: Checked,
    held: Option<Held>,
    after_sql: Option<String>,
    stop: Stop,
    _alone: Alone,
}

/// Restores into a fresh database, checks it, and gives it settings and privileges of the live one. Blocks.
///
/// # Errors
/// The live database is as it was, and the fresh one is gone.
pub fn prepare(
    source: &Source,
    live: &Connection,
    clients: &Clients,
    options: &RestoreOptions,
    now: Timestamp,
) -> Result<Prepared, PostgresError> {
    let name = live.database();
    let aside = aside(clients, live, name);
    let alone = Alone::take(clients, &aside, name)?;
    // Whoever asked looked before it was alone.
    if !options.replace && has_data(clients, live)? {
        return Err(PostgresError::Refused {
            what: format!("{name} was filled in the meantime; nothing was changed"),
            hint: "another restore, or the app, was first: run it again".into(),
        });
    }
    sweep(clients, &aside, name)?;
    let is_there = exists(clients, &aside, name)?;
    let properties = match is_there {
        true => about(clients, live)?.properties,
        // As it was when it was dumped.
        false => source.manifest.properties.clone(),
    };
    may_swap(clients, &aside, name, is_there)?;
    let fresh = dated(name, "restoring", now);
    create(clients, &aside, &fresh, name, Some(&properties))?;
    let fresh = Fresh::new(clients, &aside, &fresh);
    let target = live.with_database(fresh.name());
    fill(source, &target, clients, options, &[])?;
    let checked = finish(source, &target, clients)?;
    let held = hold(clients, &target, options.queue)?;
    after::run(clients, &target, options)?;
    dress(clients, &aside, fresh.name(), &properties, options)?;
    Ok(Prepared {
        live: live.clone(),
        aside,
        clients: clients.clone(),
        fresh,
        is_there,
        checked,
        held,
        after_sql: options.after.as_ref().map(|a| a.name.clone()),
        stop: options.stop.clone(),
        _alone: alone,
    })
}

impl Prepared {
    /// The live database's name.
    pub fn database(&self) -> &str {
        self.live.database()
    }

    /// How many sessions of the live database the swap ends. Blocks.
    fn sessions(&self) -> Result<u64, PostgresError> {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = :'live' AND backend_type = 'client backend';";
        let count = self
            .clients
            .sql(&self.aside, sql, &[("live", self.database())])?;
        Ok(count.trim().parse().unwrap_or(0))
    }

    /// Gives the live database's name to the restored one. Blocks.
    ///
    /// # Errors
    /// The live database is as it was then, and the restored one is gone.
    pub fn swap(self, now: Timestamp) -> Result<Swapped, PostgresError> {
        let sessions = match self.sessions() {
            Ok(0) | Err(_) => 0,
            Ok(sessions) => {
                tracing::warn!(
                    database = self.database(),
                    sessions,
                    "ending the sessions of the live database for the swap: the app loses its connections"
                );
                sessions
            }
        };
        let result = self.rename(now);
        // It may have been done although the answer was lost.
        if result.is_ok() || !exists(&self.clients, &self.aside, self.fresh.name()).unwrap_or(false)
        {
            self.fresh.keep();
        }
        let kept = result?;
        Ok(Swapped {
            kept,
            sessions,
            checked: self.checked,
            held: self.held,
            after_sql: self.after_sql,
        })
    }

    fn rename(&self, now: Timestamp) -> Result<Option<String>, PostgresError> {
        if self.stop.is_stopped() {
            return Err(PostgresError::Io(
                "swapping the databases",
                std::io::ErrorKind::Interrupted.into(),
            ));
        }
        let name = self.live.database();
        let kept = self.is_there.then(|| dated(name, "before", now));
        let comment = match self.is_there {
            true => comment_of(&self.clients, &self.aside, name)?,
            false => None,
        };
        let change = Change {
            live: name,
            incoming: self.fresh.name(),
            kept: kept.as_deref(),
            comment,
            at: now,
        };
        change.run(&self.clients, &self.aside)?;
        Ok(kept)
    }
}

/// Swaps the database that the last restore replaced back; returns its dated name and the one that is kept now. Blocks.
///
/// # Errors
/// The live database is as it was then. [`PostgresError::Nothing`] if none is kept.
pub fn undo(
    live: &Connection,
    clients: &Clients,
    now: Timestamp,
) -> Result<(String, Option<String>), PostgresError> {
    let name = live.database();
    let aside = aside(clients, live, name);
    let _alone = Alone::take(clients, &aside, name)?;
    let (Kept { name: back, .. }, comment) = newest_kept(clients, &aside, name)?;
    let there = exists(clients, &aside, name)?;
    may_swap(clients, &aside, name, there)?;
    let away = there.then(|| dated(name, "undone", now));
    // The comment of the one that goes away is its own.
    let own = match there {
        true => comment_of(clients, &aside, name)?,
        false => None,
    };
    let change = Change {
        live: name,
        incoming: &back,
        kept: away.as_deref(),
        comment: own,
        at: now,
    };
    change.run_with(clients, &aside, comment.as_deref())?;
    Ok((back, away))
}

/// The database that [`undo`] would put back. Blocks.
///
/// # Errors
/// [`PostgresError::Nothing`]; the server's.
pub fn kept_for_undo(live: &Connection, clients: &Clients) -> Result<Kept, PostgresError> {
    let name = live.database();
    newest_kept(clients, &aside(clients, live, name), name).map(|(kept, _)| kept)
}

/// A database that was replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its name now.
    pub name: String,
    /// When it was replaced, RFC 3339 in UTC.
    pub at: String,
}

impl Kept {
    /// It was replaced by an undo: swapping it back would repeat the restore.
    pub fn is_by_undo(&self) -> bool {
        self.name.contains("_undone_")
    }
}

/// The newest database that a restore of `name` replaced, and the comment that it had.
fn newest_kept(
    clients: &Clients,
    aside: &Connection,
    name: &str,
) -> Result<(Kept, Option<String>), PostgresError> {
    let mut kept: Vec<(String, String, Option<String>)> = marked(clients, aside)?
        .into_iter()
        .filter_map(|(database, mark, _)| match mark {
            Mark::Kept { of, at, comment } if of == name => Some((at, database, comment)),
            _ => None,
        })
        .collect();
    kept.sort();
    let newest = kept.pop();
    let newest = newest.map(|(at, name, comment)| (Kept { name, at }, comment));
    newest.ok_or_else(|| {
        PostgresError::Nothing(format!(
            "no database that a restore of {name} replaced is there; nothing was changed"
        ))
    })
}

/// Whether this role may rename; found out before a restore of hours.
fn may_swap(
    clients: &Clients,
    aside: &Connection,
    name: &str,
    there: bool,
) -> Result<(), PostgresError> {
    let sql = "SELECT rolsuper OR rolcreatedb, rolsuper OR NOT :'there'::bool OR
        coalesce((SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = :'name'), true),
        (SELECT count(*) FROM pg_prepared_xacts WHERE database = :'name')
        FROM pg_roles WHERE rolname = current_user;";
    let there = if there { "true" } else { "false" };
    let text = clients.sql(aside, sql, &[("name", name), ("there", there)])?;
    let refuse = |what: String, hint: &str| {
        Err(PostgresError::Refused {
            what: format!("{what}; nothing was changed"),
            hint: hint.into(),
        })
    };
    let role = "give a role with more rights as `restore-url`";
    match text.trim().split('|').collect::<Vec<_>>()[..] {
        ["f", ..] => refuse("this role may not create databases".into(), role),
        [_, "f", _] => refuse(
            format!("this role does not own the database {name}, so it cannot rename it"),
            role,
        ),
        [_, _, "0"] => Ok(()),
        _ => refuse(
            format!("{name} holds prepared transactions, so it cannot be renamed"),
            "COMMIT PREPARED or ROLLBACK PREPARED them: see pg_prepared_xacts",
        ),
    }
}

fn comment_of(
    clients: &Clients,
    aside: &Connection,
    name: &str,
) -> Result<Option<String>, PostgresError> {
    let sql = "SELECT to_json(shobj_description(oid, 'pg_database')) FROM pg_database WHERE datname = :'name';";
    let text = clients.sql(aside, sql, &[("name", name)])?;
    Ok(serde_json::from_str(text.trim()).unwrap_or_default())
}

/// Owner, privileges and settings.
fn dress(
    clients: &Clients,
    aside: &Connection,
    name: &str,
    properties: &Properties,
    options: &RestoreOptions,
) -> Result<(), PostgresError> {
    let mut sql = "BEGIN;\n".to_owned();
    let mut add = |statement: &str| {
        sql += statement;
        sql += ";\n";
    };
    if !options.no_owner && !properties.owner.is_empty() {
        add("ALTER DATABASE :\"database\" OWNER TO :\"owner\"");
    }
    if !options.no_privileges {
        properties.grants.iter().for_each(|s| add(s));
    }
    properties.settings.iter().for_each(|s| add(s));
    if properties.connection_limit > 0 {
        let limit = properties.connection_limit;
        add(&format!(
            "ALTER DATABASE :\"database\" CONNECTION LIMIT {limit}"
        ));
    }
    sql += "COMMIT;";
    let values = [("database", name), ("owner", properties.owner.as_str())];
    clients.sql(aside, &sql, &values).map(|_| ())
}

/// One swap.
struct Change<'a> {
    live: &'a str,
    incoming: &'a str,
    kept: Option<&'a str>,
    /// The comment of the database that is replaced.
    comment: Option<String>,
    at: Timestamp,
}

impl Change<'_> {
    /// The new one takes over the comment, too.
    fn run(&self, clients: &Clients, aside: &Connection) -> Result<(), PostgresError> {
        self.run_with(clients, aside, self.comment.as_deref())
    }

    fn run_with(
        &self,
        clients: &Clients,
        aside: &Connection,
        comment: Option<&str>,
    ) -> Result<(), PostgresError> {
        let mark = Mark::Kept {
            of: self.live.to_owned(),
            at: self.at.to_string(),
            comment: self.comment.clone(),
        };
        let mut sql = "BEGIN;\n".to_owned();
        if self.kept.is_some() {
            sql += "ALTER DATABASE :\"live\" RENAME TO :\"kept\";\nCOMMENT ON DATABASE :\"kept\" IS :'mark';\n";
        }
        sql += "ALTER DATABASE :\"incoming\" RENAME TO :\"live\";\n";
        sql += match comment {
            Some(_) => "COMMENT ON DATABASE :\"live\" IS :'comment';\n",
            None => "COMMENT ON DATABASE :\"live\" IS NULL;\n",
        };
        sql += "COMMIT;";
        let mark = mark.text();
        let values = [
            ("live", self.live),
            ("incoming", self.incoming),
            ("kept", self.kept.unwrap_or_default()),
            ("mark", mark.as_str()),
            ("comment", comment.unwrap_or_default()),
        ];
        let done = std::thread::scope(|scope| {
            let renaming = scope.spawn(|| clients.sql(aside, &sql, &values));
            while !renaming.is_finished() {
                self.end_sessions(clients, aside);
                std::thread::sleep(END_SESSIONS_EVERY);
            }
            renaming.join()
        });
        let error = match done {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => PostgresError::Io("swapping the databases", std::io::Error::other("a panic")),
        };
        // The answer to COMMIT may have been lost.
        if !exists(clients, aside, self.incoming).unwrap_or(true) {
            return Ok(());
        }
        match error {
            PostgresError::Failed { why, .. } if why.contains("being accessed by other users") => {
                Err(PostgresError::Refused {
                    what: format!(
                        "{} has sessions that this role cannot end; nothing was changed",
                        self.live
                    ),
                    hint: "stop the app, or give a superuser or a member of pg_signal_backend as `restore-url`".into(),
                })
            }
            other => Err(other),
        }
    }

    fn end_sessions(&self, clients: &Clients, aside: &Connection) {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname IN (:'live', :'incoming') AND pid <> pg_backend_pid();";
        let values = [("live", self.live), ("incoming", self.incoming)];
        if let Err(error) = clients.sql(aside, sql, &values) {
            tracing::debug!(%error, "ending sessions");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dated_names_fit() {
        let now = "2026-11-21T07:15:00Z".parse().unwrap();
        assert_eq!(dated("app", "before", now), "app_before_20261121t071500z");
        for name in ["x".repeat(63), "ü".repeat(31), "é€".repeat(12)] {
            let dated = dated(&name, "restoring", now);
            assert!(
                dated.len() <= NAME_MAX_BYTES && dated.ends_with("_restoring_20261121t071500z")
            );
        }
    }
}
