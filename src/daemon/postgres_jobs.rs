//! Scheduled dumps: one task for each PostgreSQL server.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::postgres::{Ask, Database, Shut, objective, of_roots, open, place_of, roots, shown};
use super::wait::{self, Woken};
use crate::config::{Config, Databases, PostgresConfig};
use crate::observe::facts::{Board, PostgresFacts};
use crate::postgres::{self, PostgresError};
use crate::schedule::Schedule;
use crate::store::Store;
use crate::types::Millis;

/// After a failed run, and twice as long after each further one, up to the next scheduled time.
const RETRY_FIRST: Duration = Duration::from_secs(5 * 60);
/// Doublings of that.
const RETRY_DOUBLINGS: u32 = 5;
/// Between two looks after the dumps that are there, beside those after each dump: reading back saves up its budget meanwhile.
const MAINTAIN_EVERY: SignedDuration = SignedDuration::from_hours(6);

/// All tasks. Dropping it does not end them: [`Jobs::stop`] does.
pub struct Jobs {
    tasks: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Jobs {
    /// Starts a task for each server.
    pub fn start(config: &Arc<Config>, board: &Arc<Board>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let tasks = config.postgres.iter().filter_map(|server| {
            // The configuration has tried it.
            let schedule = Schedule::parse(&server.schedule, &server.time_zone).ok()?;
            let job = Job {
                config: Arc::clone(config),
                server: server.clone(),
                schedule,
                board: Arc::clone(board),
            };
            let mut stopped = stopped.clone();
            Some(tokio::spawn(async move {
                tokio::select! {
                    // Dropping a dump ends its programs and its uploads.
                    _ = stopped.wait_for(|stop| *stop) => {}
                    () = job.run() => {}
                }
            }))
        });
        Self {
            tasks: tasks.collect(),
            stop,
        }
    }

    /// Ends them: a dump under way breaks off and is not listed.
    pub async fn stop(self) {
        // Fails only if every task has ended.
        let _ = self.stop.send(true);
        futures::future::join_all(self.tasks).await;
    }
}

struct Job {
    config: Arc<Config>,
    server: PostgresConfig,
    schedule: Schedule,
    board: Arc<Board>,
}

impl Job {
    async fn run(self) {
        let mut planned = Timestamp::now();
        let mut due = self.first_due().await;
        let mut failures = 0_u32;
        let mut maintain = Timestamp::now();
        loop {
            let at = Millis(due.as_millisecond());
            self.each(|f| f.next = Some(at));
            let woken = wait::until(planned, due.min(maintain)).await;
            let now = Timestamp::now();
            if woken == Woken::SetBack {
                due = due.min(self.next_after(now));
            }
            planned = now;
            if woken == Woken::SetBack || maintain < due {
                self.maintain().await;
                maintain = now.saturating_add(MAINTAIN_EVERY).unwrap_or(due);
                continue;
            }
            let done = self.once().await;
            let now = Timestamp::now();
            planned = now;
            let next = self.next_after(now);
            failures = if done { 0 } else { failures + 1 };
            due = next;
            if failures > 0 {
                let pause = RETRY_FIRST * 2_u32.pow(RETRY_DOUBLINGS.min(failures - 1));
                let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::ZERO);
                due = next.min(now.saturating_add(pause).unwrap_or(next));
            }
        }
    }

    async fn maintain(&self) {
        // What cannot be opened was said by the last run.
        let (roots, _) = roots(&self.server).await;
        match of_roots(&self.config, &self.server, Ask::Stores, roots).await {
            Ok(databases) => {
                for database in &databases {
                    database.maintain(&self.board).await;
                }
            }
            Err(error) => {
                tracing::warn!(target_name = self.server.name, %error, "the dumps were not looked after");
            }
        }
    }

    fn next_after(&self, at: Timestamp) -> Timestamp {
        let next = self.schedule.next_after(at).unwrap_or(Timestamp::MAX);
        delayed(next, self.server.jitter, rand::random::<f64>())
    }

    /// Until a dump says more.
    fn first_objective(&self, f: &mut PostgresFacts) {
        if f.objective.is_zero() {
            f.objective = objective(&self.server, Timestamp::now());
        }
    }

    fn is_mine(&self, name: &str) -> bool {
        super::postgres::is_of(&self.server, name)
    }

    fn each(&self, change: impl Fn(&mut PostgresFacts)) {
        for facts in self.board.postgres() {
            if self.is_mine(&facts.name) {
                self.board
                    .update_postgres(&facts.name, &facts.store, &change);
            }
        }
    }

    /// A run that was missed is made up for once; the first one is due at once.
    async fn first_due(&self) -> Timestamp {
        let now = Timestamp::now();
        let known = match open(&self.config, &self.server, Ask::Stores).await {
            Ok(known) => known,
            // Trying will say why.
            Err(_) => return now,
        };
        let mut oldest = None;
        for database in &known {
            let newest = self.newest(database).await;
            oldest = match (oldest, newest) {
                (_, None) => return now,
                (None, newest) => newest,
                (Some(a), Some(b)) => Some(std::cmp::min(a, b)),
            };
        }
        // A last run in the future means that a clock was wrong once.
        oldest.map_or(now, |last| {
            self.schedule.next_after(last.min(now)).unwrap_or(now)
        })
    }

    /// When the newest dump that every store holds was begun; fills in the facts.
    async fn newest(&self, database: &Database) -> Option<Timestamp> {
        let mut oldest: Option<Timestamp> = None;
        let mut missing = false;
        for store in &database.stores {
            let listed = postgres::list(store).await;
            let all = listed.unwrap_or_default();
            let last = all.last().map_or_else(Timestamp::now, |m| m.began);
            database.update(&self.board, store, |f| {
                f.objective = objective(&self.server, last);
                f.dumps = all.len() as u64;
                f.oldest = all.first().map(|m| super::postgres::millis(m.began));
                f.dump_bytes = all.iter().map(postgres::Manifest::stored_bytes).sum();
                f.size_ratio = super::postgres::size_ratio(&all);
                if let Some(newest) = all.last() {
                    shown(f, newest);
                    let took = newest.ended.duration_since(newest.began);
                    f.seconds = took.as_secs_f64();
                }
            });
            match all.last() {
                Some(newest) => oldest = Some(oldest.map_or(newest.began, |o| o.min(newest.began))),
                None => missing = true,
            }
        }
        oldest.filter(|_| !missing)
    }

    /// Every database of the server, one after the other. `false` if one of them failed.
    async fn once(&self) -> bool {
        let (roots, shut) = roots(&self.server).await;
        if roots.is_empty() {
            self.shut(&shut, &self.names());
            return false;
        }
        let asked = of_roots(&self.config, &self.server, Ask::Server, roots.clone()).await;
        let databases = match asked {
            Ok(databases) => databases,
            Err(error) => {
                self.unreachable(&error, roots).await;
                self.shut(&shut, &self.names());
                return false;
            }
        };
        let names: Vec<&str> = databases.iter().map(|d| d.name.as_str()).collect();
        let roots: Vec<String> = roots.iter().map(Store::display).collect();
        self.board
            .retain_postgres(|name| !self.is_mine(name) || names.contains(&name));
        // A store that cannot be opened holds up no other.
        self.shut(&shut, &names);
        if databases.is_empty() {
            self.nothing(&roots);
        }
        let mut done = shut.is_empty() && !databases.is_empty();
        for database in &databases {
            database.update_all(&self.board, |f| self.first_objective(f));
            if let Err(error) = database.dump(&self.board, None).await {
                tracing::error!(target_name = database.name, %error, hint = error.hint(), "database was not dumped");
                done = false;
            }
            database.maintain(&self.board).await;
        }
        done
    }

    /// A server that shows no database is no reason to be content: there is nothing that could turn red.
    fn nothing(&self, roots: &[String]) {
        let error = "the server shows no database that is to be dumped";
        let hint = "see `databases` of the configuration; a role is shown what it may connect to";
        tracing::error!(target_name = self.server.name, hint, "{error}");
        for root in roots {
            self.board.update_postgres(&self.server.name, root, |f| {
                f.kind = self.server.origin.kind();
                f.database = self.server.origin.display();
                self.first_objective(f);
                super::postgres::failed_for(f, error.to_owned(), Some(hint.to_owned()));
            });
        }
    }

    /// What is known of the server's databases without asking it.
    fn names(&self) -> Vec<String> {
        let known = self.board.postgres().into_iter().map(|f| f.name);
        let mut names: Vec<String> = known.filter(|name| self.is_mine(name)).collect();
        names.dedup();
        match &self.server.databases {
            _ if !names.is_empty() => names,
            Databases::Named(databases) => {
                let name = |database| format!("{}/{database}", self.server.name);
                databases.iter().map(name).collect()
            }
            _ => vec![self.server.name.clone()],
        }
    }

    /// Stores that cannot be opened get no dump, and are shown with the reason.
    fn shut(&self, shut: &[Shut], names: &[impl AsRef<str>]) {
        for (store, error) in shut {
            let root = place_of(&self.server, &self.server.name, store);
            tracing::error!(target_name = self.server.name, store = root, %error, hint = error.hint(), "no dump goes there: the store cannot be opened");
            for name in names.iter().map(AsRef::as_ref) {
                let place = place_of(&self.server, name, store);
                self.board.update_postgres(name, &place, |f| {
                    f.kind = self.server.origin.kind();
                    if f.database.is_empty() {
                        f.database = self.server.origin.display();
                    }
                    self.first_objective(f);
                    super::postgres::failed_for(f, error.to_string(), error.hint());
                });
            }
        }
    }

    /// The server could not be asked for its databases: everything known is late.
    async fn unreachable(&self, error: &PostgresError, roots: Vec<Store>) {
        tracing::error!(target_name = self.server.name, %error, hint = error.hint(), "databases were not dumped");
        let known = self.board.postgres();
        if !known.iter().any(|f| self.is_mine(&f.name)) {
            let whole = PostgresConfig {
                databases: Databases::Own,
                ..self.server.clone()
            };
            for database in of_roots(&self.config, &whole, Ask::Stores, roots)
                .await
                .into_iter()
                .flatten()
            {
                database.update_all(&self.board, |f| self.first_objective(f));
            }
        }
        self.each(|f| super::postgres::failed(f, error));
    }
}

/// A run at random within its jitter; `share` is from 0 to 1.
fn delayed(next: Timestamp, jitter: Duration, share: f64) -> Timestamp {
    let jitter = SignedDuration::try_from(jitter.mul_f64(share)).unwrap_or(SignedDuration::ZERO);
    next.saturating_add(jitter).unwrap_or(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_delay_is_within_the_jitter(at in 0_i64..4_000_000_000, jitter in 0_u64..100_000, share in 0.0_f64..1.0) {
            let next = Timestamp::from_second(at).unwrap();
            let jitter = Duration::from_secs(jitter);
            let late = delayed(next, jitter, share).duration_since(next);
            prop_assert!(!late.is_negative() && late.as_secs_f64() <= jitter.as_secs_f64());
            prop_assert!((late.as_secs_f64() - jitter.as_secs_f64() * share).abs() < 0.001);
        }
    }

    #[test]
    fn the_end_of_time_is_not_passed() {
        let hour = Duration::from_secs(3600);
        assert_eq!(delayed(Timestamp::MAX, hour, 1.0), Timestamp::MAX);
    }
}
