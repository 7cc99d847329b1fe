//! Jobs of Solid Queue in a restored database, held back before the app sees it: some of them may have been done since.

use serde::{Deserialize, Serialize};

use super::{Clients, Connection, PostgresError};

/// What happens to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueJobs {
    /// They run when the app starts.
    #[default]
    Keep,
    /// They wait: every queue is paused, as Solid Queue itself pauses one.
    Paused,
    /// They are gone. Failed and finished jobs stay.
    Empty,
}

/// What was done to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Queues that were paused here; those that were paused before are not named.
    pub paused: Vec<String>,
    /// Jobs that were removed.
    pub removed: u64,
}

/// A schema with Solid Queue's tables, which came and went with its versions.
#[derive(Debug, Deserialize)]
struct Schema {
    name: String,
    tables: Vec<String>,
}

const SCHEMAS: &str = "SELECT coalesce(json_agg(json_build_object('name', name, 'tables', tables)), '[]') FROM
  (SELECT schemaname AS name, json_agg(tablename) AS tables FROM pg_tables WHERE tablename LIKE 'solid\\_queue\\_%'
   GROUP BY schemaname HAVING bool_or(tablename = 'solid_queue_jobs')) found;";
/// Tables whose rows Solid Queue takes as work to be done.
const EXECUTIONS: [&str; 4] = ["ready", "scheduled", "blocked", "claimed"];

/// Does it in a database that nobody else knows of. `None`: nothing was to be done, or there is no Solid Queue. Blocks.
///
/// # Errors
/// [`PostgresError::Refused`] for a Solid Queue of before queues could be paused; the server's.
pub(super) fn hold(
    clients: &Clients,
    database: &Connection,
    wanted: QueueJobs,
) -> Result<Option<Held>, PostgresError> {
    if wanted == QueueJobs::Keep {
        return Ok(None);
    }
    let text = clients.sql(database, SCHEMAS, &[])?;
    let schemas: Vec<Schema> = serde_json::from_str(&text)
        .map_err(|e| PostgresError::Io("reading the catalogue", e.into()))?;
    let mut held = None;
    for schema in &schemas {
        let held = held.get_or_insert_with(Held::default);
        let run = |sql: &str| {
            let sql =
                format!("BEGIN;\nSET LOCAL search_path TO :\"schema\", pg_catalog;\n{sql}COMMIT;");
            clients.sql(database, &sql, &[("schema", &schema.name)])
        };
        if wanted == QueueJobs::Empty {
            let gone = run(&schema.empty())?;
            held.removed += gone.trim().parse::<u64>().unwrap_or(0);
            continue;
        }
        if !schema.has("pauses") {
            return Err(PostgresError::Refused {
                what: "its Solid Queue has no table solid_queue_pauses; nothing was changed".into(),
                hint: "`--queue empty` removes the jobs, `--queue keep` leaves them to run".into(),
            });
        }
        held.paused
            .extend(run(&schema.pause())?.lines().map(str::to_owned));
    }
    Ok(held)
}

impl Schema {
    fn has(&self, table: &str) -> bool {
        self.tables
            .iter()
            .any(|t| t.strip_prefix("solid_queue_") == Some(table))
    }

    /// Every queue that a job or a recurring task names; its rows are the queues that were not paused.
    fn pause(&self) -> String {
        let mut names = "SELECT queue_name FROM solid_queue_jobs".to_owned();
        if self.has("recurring_tasks") {
            names += " UNION SELECT queue_name FROM solid_queue_recurring_tasks";
        }
        // Recurring tasks without a queue go there.
        names += " UNION SELECT 'default'";
        format!(
            "INSERT INTO solid_queue_pauses(queue_name, created_at)
  SELECT queue_name, now() AT TIME ZONE 'UTC' FROM ({names}) named
  WHERE queue_name <> '' AND queue_name NOT IN (SELECT queue_name FROM solid_queue_pauses) ORDER BY 1
  RETURNING queue_name;\n"
        )
    }

    /// Its one row is the number of jobs that went.
    fn empty(&self) -> String {
        let mut sql = String::new();
        for kind in EXECUTIONS {
            if self.has(&format!("{kind}_executions")) {
                sql += &format!("DELETE FROM solid_queue_{kind}_executions;\n");
            }
        }
        let mut open = "finished_at IS NULL".to_owned();
        if self.has("failed_executions") {
            open += " AND id NOT IN (SELECT job_id FROM solid_queue_failed_executions)";
        }
        if self.has("recurring_executions") {
            sql += &format!(
                "DELETE FROM solid_queue_recurring_executions WHERE job_id IN (SELECT id FROM solid_queue_jobs WHERE {open});\n"
            );
        }
        if self.has("semaphores") {
            // They count jobs that are no more.
            sql += "DELETE FROM solid_queue_semaphores;\n";
        }
        sql + &format!(
            "WITH gone AS (DELETE FROM solid_queue_jobs WHERE {open} RETURNING 1) SELECT count(*) FROM gone;\n"
        )
    }
}
