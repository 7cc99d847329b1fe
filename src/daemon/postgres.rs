//! What is dumped, of PostgreSQL and Redis: what a target is made of here, and one dump at a time for each server.

mod places;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::{Config, Databases, Origin, PostgresConfig};
use crate::observe::facts::{Board, PostgresFacts};
use crate::postgres::{
    self, Clients, Connection, DumpOptions, Dumped, Manifest, PostgresError, ReadBacks,
};
use crate::redis;
use crate::schedule::Schedule;
use crate::store::Store;
use crate::types::Millis;
pub use places::{Ask, open};
pub(super) use places::{Shut, of_roots, place_of, roots};

/// Between looks whether another process has ended its dump.
const TURN_EVERY: Duration = Duration::from_millis(200);

/// One database in its stores.
#[derive(Clone)]
pub struct Database {
    /// `app`, or `app/database` if the target has several.
    pub name: String,
    /// How it is kept.
    pub server: Arc<PostgresConfig>,
    /// What it is and how to reach it.
    pub origin: Origin,
    /// Its root in each store.
    pub stores: Vec<Store>,
    /// Held by whoever dumps from this server.
    turn: PathBuf,
}

/// Whether a name is that of a target or of one of its databases.
pub fn is_of(server: &PostgresConfig, name: &str) -> bool {
    match name.strip_prefix(server.name.as_str()) {
        Some("") => true,
        Some(rest) => rest.starts_with('/') && server.databases != Databases::Own,
        None => false,
    }
}

/// Work that blocks, on a thread of its own.
///
/// # Errors
/// The work's.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PostgresError> + Send + 'static,
) -> Result<T, PostgresError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(PostgresError::Io(
            "working on a thread",
            std::io::Error::other(e),
        )),
    }
}

fn turn_path(config: &Config, origin: &Origin) -> PathBuf {
    let folder = config.state_dir.clone().unwrap_or_else(std::env::temp_dir);
    let server = xxh3_64(origin.server().as_bytes());
    let kind = origin.kind().word();
    folder.join(format!("lifeboat-{kind}-{server:016x}.lock"))
}

/// Waits until nobody on this host dumps from the server; released when dropped, also by a kill.
async fn turn(path: &std::path::Path) -> Result<File, PostgresError> {
    let failed = |e| PostgresError::Io("locking the server for a dump", e);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed)?;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(TURN_EVERY).await,
            Err(e) => return Err(failed(e.into())),
        }
    }
}

pub(super) fn millis(at: Timestamp) -> Millis {
    Millis(at.as_millisecond())
}

/// Bytes before compression of the newest dump, divided by those of the one before it. `dumps` are by time.
pub(super) fn size_ratio(dumps: &[Manifest]) -> Option<f64> {
    let [.., before, newest] = dumps else {
        return None;
    };
    let (before, newest) = (before.dump.raw_size, newest.dump.raw_size);
    (before > 0).then(|| newest as f64 / before as f64)
}

/// How old a dump that began at `at` may become: see [`Schedule::allowed_age`].
pub fn objective(server: &PostgresConfig, at: Timestamp) -> Duration {
    match Schedule::parse(&server.schedule, &server.time_zone) {
        Ok(schedule) => schedule.allowed_age(at) + server.jitter,
        // The configuration has tried it.
        Err(_) => Duration::ZERO,
    }
}

impl Database {
    /// Changes the facts of one store.
    pub fn update(&self, board: &Board, store: &Store, change: impl FnOnce(&mut PostgresFacts)) {
        let stats = store.stats_handle();
        board.update_postgres(&self.name, &store.display(), |f| {
            f.stats = Some(stats);
            f.kind = self.origin.kind();
            f.database = self.origin.display();
            change(f);
        });
    }

    /// Changes the facts of every store.
    pub fn update_all(&self, board: &Board, change: impl Fn(&mut PostgresFacts)) {
        for store in &self.stores {
            self.update(board, store, &change);
        }
    }

    /// Client programs of the server's major.
    ///
    /// # Errors
    /// As [`Clients::for_server`].
    pub async fn clients(&self, connection: &Connection) -> Result<Clients, PostgresError> {
        let (connection, bin_dir) = (connection.clone(), self.server.bin_dir.clone());
        blocking(move || Clients::for_server(&connection, bin_dir.as_deref())).await
    }

    /// The database, if it is one of PostgreSQL.
    ///
    /// # Errors
    /// [`PostgresError::Refused`]: what is wanted cannot be done with another kind.
    pub fn connection(&self) -> Result<&Connection, PostgresError> {
        match &self.origin {
            Origin::Postgres(connection) => Ok(connection),
            Origin::Redis(_) => Err(PostgresError::Refused {
                what: format!("{} is a Redis server; nothing was changed", self.name),
                hint: format!(
                    "`lifeboat restore {} -o FILE` writes its RDB and says how to start a server from it",
                    self.name
                ),
            }),
        }
    }

    /// Finds out what would make a dump fail, or incomplete.
    ///
    /// # Errors
    /// [`PostgresError::Cannot`], with the next step.
    pub async fn preflight(&self) -> Result<(), PostgresError> {
        let server = Arc::clone(&self.server);
        match self.origin.clone() {
            Origin::Postgres(connection) => {
                let clients = self.clients(&connection).await?;
                let check = move || postgres::preflight(&clients, &connection, &server.dump.extra);
                blocking(check).await
            }
            Origin::Redis(connection) => {
                blocking(move || redis::preflight(&connection, server.bin_dir.as_deref())).await
            }
        }
    }

    /// Reads a dump back if the budget allows, then applies retention, in every store: a new dump takes the place of an old one only after
    /// that. What goes wrong is logged and shown.
    pub async fn maintain(&self, board: &Board) {
        for store in &self.stores {
            let damaged = match self.read_back(board, store).await {
                Ok(damaged) => damaged,
                Err(error) => {
                    tracing::warn!(target_name = self.name, %error, "no dump was read back");
                    Vec::new()
                }
            };
            let (policy, zone) = (&self.server.retention, &self.server.time_zone);
            match postgres::prune(store, policy, zone, Timestamp::now(), false).await {
                Ok(pruned) => self.pruned(board, store, pruned, damaged),
                Err(error) => {
                    tracing::error!(target_name = self.name, %error, hint = error.hint(), "dumps were not pruned");
                    let hint = error.hint();
                    let problem =
                        super::files_jobs::nothing_deleted(&error.to_string(), hint.as_deref());
                    self.update(board, store, |f| {
                        f.refusals += 1;
                        f.pruned_at = Some(millis(Timestamp::now()));
                        f.retention_problem = Some(problem);
                    });
                }
            }
        }
    }

    /// Facts of a pruning; `damaged` are the dumps that reading back has found so far.
    fn pruned(
        &self,
        board: &Board,
        store: &Store,
        pruned: postgres::Pruned,
        mut damaged: Vec<String>,
    ) {
        for (label, why) in &pruned.ending {
            let label = &label.label;
            tracing::info!(target_name = self.name, label, %why, "label ended");
        }
        let deleted = pruned.forgotten();
        if deleted > 0 {
            let bytes = pruned.bytes;
            tracing::info!(
                target_name = self.name,
                dumps = deleted,
                bytes,
                "dumps pruned"
            );
        }
        for id in &pruned.torn {
            tracing::error!(
                target_name = self.name,
                dump = id,
                store = store.display(),
                "this dump is not whole in the store"
            );
        }
        let bytes = |i: usize| pruned.dumps[i].stored_bytes();
        let held = crate::retention::copies::held(&pruned.decisions, bytes);
        let ratio = size_ratio(&pruned.dumps);
        let kept: Vec<bool> = pruned
            .decisions
            .iter()
            .map(crate::retention::copies::Decision::keeps)
            .collect();
        let left: Vec<Manifest> = pruned
            .dumps
            .into_iter()
            .zip(kept)
            .filter_map(|(manifest, keep)| keep.then_some(manifest))
            .collect();
        damaged.retain(|id| left.iter().any(|m| m.id == *id) && !pruned.torn.contains(id));
        damaged.extend(pruned.torn);
        self.update(board, store, |f| {
            f.retention_problem = None;
            f.pruned_at = Some(millis(Timestamp::now()));
            f.deleted += deleted as u64;
            f.dumps = left.len() as u64;
            f.oldest = left.first().map(|m| millis(m.began));
            f.dump_bytes = left.iter().map(Manifest::stored_bytes).sum();
            f.held = held;
            f.size_ratio = ratio.or(f.size_ratio);
            f.damaged = damaged;
        });
    }

    /// Reads one dump back if the budget allows; returns those that were found damaged so far.
    async fn read_back(&self, board: &Board, store: &Store) -> Result<Vec<String>, PostgresError> {
        let mut state = ReadBacks::load(store).await?;
        if self.server.read_budget == 0 {
            return Ok(state.damaged);
        }
        let now = Timestamp::now();
        let dumps = postgres::list(store).await?;
        if let Some(manifest) = state.next(&dumps, self.server.read_budget, now) {
            let id = manifest.id.clone();
            let source = postgres::Source {
                store: store.clone(),
                manifest: manifest.clone(),
                runtime: tokio::runtime::Handle::current(),
            };
            state.damaged.retain(|d| *d != id);
            match blocking(move || postgres::read_back(&source)).await {
                Ok(()) => {
                    tracing::info!(
                        target_name = self.name,
                        dump = id,
                        "dump read back: every byte is right"
                    );
                    state.right.insert(id, now);
                }
                Err(error @ PostgresError::Damaged { .. }) => {
                    tracing::error!(target_name = self.name, dump = id, %error, hint = error.hint(), "a dump is damaged");
                    state.right.remove(&id);
                    state.damaged.push(id);
                }
                Err(error) => return Err(error),
            }
        }
        state.save(store).await?;
        self.update(board, store, |f| {
            f.read_back_at = state.right.values().max().map(|at| millis(*at));
        });
        Ok(state.damaged)
    }

    /// Dumps now, after whoever is at it on this server. Facts go to the board.
    ///
    /// # Errors
    /// No store holds the dump then; or, with [`PostgresError::Partly`], not every store does.
    pub async fn dump(
        &self,
        board: &Board,
        label: Option<&str>,
    ) -> Result<Manifest, PostgresError> {
        let _turn = turn(&self.turn).await?;
        self.update_all(board, |f| f.running_since = Some(millis(Timestamp::now())));
        let begun = std::time::Instant::now();
        let result = self.dump_in_turn(label).await;
        self.update_all(board, |f| f.running_since = None);
        let seconds = begun.elapsed().as_secs_f64();
        match result {
            Ok(dumped) => self.report(board, dumped, seconds),
            Err(error) => {
                self.update_all(board, |f| failed(f, &error));
                Err(error)
            }
        }
    }

    async fn dump_in_turn(&self, label: Option<&str>) -> Result<Dumped, PostgresError> {
        self.preflight().await?;
        let mut previous = None;
        for store in &self.stores {
            // A store that is away does not hold up the others.
            match postgres::newest_good(store).await {
                Ok(found) => {
                    previous = found;
                    break;
                }
                Err(error) => tracing::debug!(%error, "listing dumps"),
            }
        }
        let options = DumpOptions {
            label: label.map(str::to_owned),
            ..self.server.dump.clone()
        };
        let (stores, previous, now) = (&self.stores, previous.as_ref(), Timestamp::now());
        match &self.origin {
            Origin::Postgres(connection) => {
                let clients = self.clients(connection).await?;
                postgres::dump(stores, connection, &clients, &options, previous, now).await
            }
            Origin::Redis(connection) => {
                let bin_dir = self.server.bin_dir.as_deref();
                redis::dump(stores, connection, bin_dir, &options, previous, now).await
            }
        }
    }

    fn report(
        &self,
        board: &Board,
        dumped: Dumped,
        seconds: f64,
    ) -> Result<Manifest, PostgresError> {
        let manifest = dumped.manifest;
        tracing::info!(
            target_name = self.name,
            dump = manifest.id,
            bytes = manifest.stored_bytes(),
            raw_bytes = manifest.dump.raw_size,
            seconds,
            "database dumped"
        );
        for anomaly in &manifest.anomalies {
            tracing::warn!(
                target_name = self.name,
                dump = manifest.id,
                anomaly,
                "this dump looks odd; its predecessors are kept"
            );
        }
        let mut missing = Vec::new();
        for (store, result) in self.stores.iter().zip(dumped.stores) {
            self.update(board, store, |f| match result {
                Ok(()) => {
                    f.runs += 1;
                    f.seconds = seconds;
                    f.objective = objective(&self.server, manifest.began);
                    shown(f, &manifest);
                    (f.last_error, f.hint) = (None, None);
                    f.dumps += 1;
                    f.oldest.get_or_insert(millis(manifest.began));
                    f.dump_bytes += manifest.stored_bytes();
                }
                Err(error) => {
                    failed(f, &error);
                    missing.push(format!("{}: {error}", store.display()));
                }
            });
        }
        if missing.is_empty() {
            Ok(manifest)
        } else {
            Err(PostgresError::Partly {
                id: manifest.id,
                missing: missing.join("; "),
            })
        }
    }
}

/// Facts of the newest dump.
pub(super) fn shown(f: &mut PostgresFacts, manifest: &Manifest) {
    let another = f.dump.as_ref().is_some_and(|id| *id != manifest.id);
    if another && f.raw_bytes > 0 {
        f.size_ratio = Some(manifest.dump.raw_size as f64 / f.raw_bytes as f64);
    }
    f.succeeded_at = Some(millis(manifest.began));
    f.dump = Some(manifest.id.clone());
    f.bytes = manifest.stored_bytes();
    f.raw_bytes = manifest.dump.raw_size;
    f.database_bytes = manifest.database_bytes;
    f.anomalies.clone_from(&manifest.anomalies);
}

pub(super) fn failed(f: &mut PostgresFacts, error: &PostgresError) {
    failed_for(f, error.to_string(), error.hint());
}

pub(super) fn failed_for(f: &mut PostgresFacts, error: String, hint: Option<String>) {
    f.runs += 1;
    f.failures += 1;
    f.failed_at = Some(millis(Timestamp::now()));
    f.last_error = Some(error);
    f.hint = hint;
}
