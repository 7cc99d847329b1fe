//! The command line: parse, load the configuration, run one command, print errors with hints, exit code.

mod absent;
mod args;
mod compat;
mod demo;
mod doctor;
mod drill;
mod evidence;
mod files;
mod follow;
mod init;
mod inspect;
mod labels;
mod log;
mod notify;
mod postgres;
mod postgres_care;
mod postgres_choose;
mod postgres_restore;
mod postgres_work;
mod restore;
mod restore_all;
mod restore_one;
mod restore_options;
mod restore_room;
mod restore_sources;
mod restore_undo;
mod run;
mod snapshot;
mod status;
mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::config::{Config, ConfigError, Environment, LoadArgs};
pub use args::{Cli, Command, Global};

/// What a command that failed says.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What failed, why, and what happened to the data.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
    /// See the design: 1 failed, 2 usage or configuration, 3 nothing to restore, 4 refusal, 5 verification failed.
    pub code: u8,
}

impl Failure {
    fn new(code: u8, message: impl ToString, hint: Option<String>) -> Self {
        Self {
            message: message.to_string(),
            hint,
            code,
        }
    }

    /// Of one target among several, unless it says so itself.
    fn of(self, target: &str) -> Self {
        let rest = self.message.strip_prefix(target);
        if rest.is_some_and(|rest| rest.starts_with([':', ' '])) {
            return self;
        }
        Self {
            message: format!("{target}: {}", self.message),
            ..self
        }
    }

    /// Of what several stores say where none has what is wanted. That there is nothing (3) is only true if each of them says so: one that does
    /// not answer may have it.
    fn of_stores(known: Option<Self>, new: Self) -> Self {
        match known {
            Some(known) if known.code != 3 || new.code == 3 => known,
            _ => new,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(error.exit_code(), &error, error.hint())
    }
}

impl From<crate::store::StoreError> for Failure {
    fn from(error: crate::store::StoreError) -> Self {
        let hint = error.hint();
        Self::new(1, error, hint)
    }
}

impl From<crate::labels::LabelError> for Failure {
    fn from(error: crate::labels::LabelError) -> Self {
        let hint = match &error {
            crate::labels::LabelError::Store(e) => e.hint(),
            crate::labels::LabelError::Damaged { .. } => Some(
                "look at the object; if it is beyond repair, delete it: its point is then not pinned any more".into(),
            ),
            crate::labels::LabelError::Used(_) => Some("choose another label".into()),
        };
        Self::new(1, error, hint)
    }
}

impl From<crate::labels::FindError> for Failure {
    fn from(error: crate::labels::FindError) -> Self {
        Self::new(error.exit_code(), &error, Some(error.hint()))
    }
}

impl From<crate::restore::RestoreError> for Failure {
    fn from(error: crate::restore::RestoreError) -> Self {
        Self::new(error.exit_code(), &error, error.hint())
    }
}

impl From<crate::files::FilesError> for Failure {
    fn from(error: crate::files::FilesError) -> Self {
        Self::new(error.exit_code(), &error, error.hint())
    }
}

impl From<crate::daemon::RunError> for Failure {
    fn from(error: crate::daemon::RunError) -> Self {
        Self::new(1, &error, error.hint())
    }
}

impl From<crate::daemon::fleet::FleetError> for Failure {
    fn from(error: crate::daemon::fleet::FleetError) -> Self {
        let code = if matches!(error, crate::daemon::fleet::FleetError::Unknown(_)) {
            2
        } else {
            1
        };
        Self::new(code, &error, error.hint())
    }
}

/// Reads a command line, program name first; Litestream's flags are understood.
///
/// # Errors
/// What clap says, help and version included.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(compat::translate(args))
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or_default()
}

/// `println!` panics where nobody reads any more, as `head` once it has its lines. What was under way ends as at any panic, in silence.
fn is_unread(panic: &str) -> bool {
    panic.starts_with("failed printing to stdout: Broken pipe")
}

/// Threads of rustic_core panic when the one that they report to has ended with an error. The error is what people have to read; where the work
/// itself panics, the caller says so.
fn quiet_threads() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let file = info.location().map_or("", std::panic::Location::file);
        let is_quiet = file.contains("rustic_core") || is_unread(panic_text(info.payload()));
        match is_quiet {
            true => tracing::debug!("{info}"),
            false => before(info),
        }
    }));
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    crate::memory::bound();
    quiet_threads();
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Printing help can only fail if nobody reads it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let goes_on = matches!(cli.command, Command::Run { .. } | Command::Follow(..));
    let log = match log::start(&cli.global, goes_on) {
        Ok(log) => log,
        Err(failure) => return report(&failure),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Each costs its stack and an arena. Long work is bounded by `fleet::HEAVY_JOBS`, so that what it waits for finds a thread.
        .max_blocking_threads(32)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::new(1, format!("cannot start: {error}"), None)),
    };
    let run = || runtime.block_on(dispatch(cli));
    let result = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(result) => result,
        Err(panic) if is_unread(panic_text(panic.as_ref())) => return ExitCode::FAILURE,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    // A download that nobody reads any more must not hold the exit.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    drop(log);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    let mut err = std::io::stderr().lock();
    // Nobody reads stderr: the exit code still says it.
    let _ = writeln!(err, "lifeboat: error: {}", failure.message);
    if let Some(hint) = &failure.hint {
        let _ = writeln!(err, "hint: {hint}");
    }
    ExitCode::from(failure.code)
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Run { databases } => run::run(load(global, databases)?).await,
        Command::Sync { targets, timeout } => {
            let config = load_for(global, &targets)?;
            let targets = inspect::by_name(&config, targets);
            run::sync(config, targets, &timeout, global.json).await
        }
        Command::Snapshot(args) => {
            let config = load_for(global, &args.targets)?;
            let targets = inspect::by_name(&config, args.targets);
            let args = args::SnapshotArgs { targets, ..args };
            snapshot::snapshot(config, args, global.json).await
        }
        Command::Files { action } => files::run(load(global, Vec::new())?, action).await,
        Command::Status(args) => status::status(load(global, Vec::new())?, args, global.json).await,
        Command::List { target } => {
            let config = load_for(global, target.as_slice())?;
            let config = absent::with_absent(config, target.as_deref()).await?;
            let dumps = postgres::split(&config, &Vec::from_iter(target.clone()));
            postgres::list(&config, &dumps, global.json).await?;
            let Some(names) = dumps.rest else {
                return Ok(());
            };
            let (mine, rest) = files::split(&config, &names)?;
            files::list(&config, &mine, global.json).await?;
            match rest.names() {
                Some(_) => inspect::list(config, target, global.json).await,
                None => Ok(()),
            }
        }
        Command::Verify { targets } => {
            let config = load_for(global, &targets)?;
            let targets = inspect::by_name(&config, targets);
            let dumps = postgres::split(&config, &targets);
            let (mine, rest) = dumps.files(&config)?;
            let count = postgres_care::verify(&config, &dumps, global.json).await?;
            files::verify(&config, &mine, global.json).await?;
            if let Some(names) = rest.names() {
                return verify::verify(config, names, global.json).await;
            }
            ok(&format!("verify targets={}", mine.len() + count));
            Ok(())
        }
        Command::Drill { targets } => {
            let config = load_for(global, &targets)?;
            let targets = inspect::by_name(&config, targets);
            drill::drill(config, targets, global.json).await
        }
        Command::Prune {
            targets,
            dry_run,
            accept,
        } => {
            let config = load_for(global, &targets)?;
            let targets = inspect::by_name(&config, targets);
            let dumps = postgres::split(&config, &targets);
            let (mine, rest) = dumps.files(&config)?;
            let (count, deleted) =
                postgres_care::prune(&config, &dumps, dry_run, accept, global.json).await?;
            let forgotten = files::prune(&config, &mine, dry_run, global.json).await? + deleted;
            if let Some(names) = rest.names() {
                return inspect::prune(config, names, dry_run, global.json).await;
            }
            let note = if dry_run { " dry-run" } else { "" };
            let targets = mine.len() + count;
            ok(&format!(
                "prune targets={targets} forgotten={forgotten}{note}"
            ));
            Ok(())
        }
        Command::Restore(args) => restore::restore(global, *args).await,
        Command::Claim(args) => {
            inspect::claim(load_for(global, &args.targets)?, args.targets, true).await
        }
        Command::Release(args) => {
            inspect::claim(load_for(global, &args.targets)?, args.targets, false).await
        }
        Command::Demo { keep } => demo::run(keep, global.json).await,
        Command::Follow(args) => follow::run(global, args).await,
        Command::Init(args) => init::run(global, &args),
        Command::Doctor { volumes } => doctor::run(global, volumes).await,
        Command::Evidence => evidence::run(load(global, Vec::new())?, global.json).await,
        Command::Notify { action } => {
            notify::run(load(global, Vec::new())?, action, global.json).await
        }
        Command::Health => inspect::health(load(global, Vec::new())?).await,
        Command::Config { action } => inspect::config(global, action),
        Command::Completions { shell } => {
            let mut command = <Cli as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut command, "lifeboat", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn load(global: &Global, databases: Vec<std::path::PathBuf>) -> Result<Config, Failure> {
    let args = LoadArgs {
        config: global.config.clone(),
        databases,
        known_variables: args::variables(),
    };
    Ok(crate::config::load(&args, &Environment::of_process())?)
}

/// The same for a command about some targets. `lifeboat sync app.sqlite3` works beside `lifeboat run app.sqlite3`, with no configuration at all.
fn load_for(global: &Global, names: &[String]) -> Result<Config, Failure> {
    let configured = global.config.is_some()
        || ["lifeboat.yml", "/etc/lifeboat.yml", "/etc/litestream.yml"]
            .iter()
            .any(|p| Path::new(p).exists())
        || ["LIFEBOAT_CONFIG", "LIFEBOAT_STORE_URL"]
            .iter()
            .any(|name| std::env::var_os(name).is_some());
    let is_path = |name: &&String| name.contains('/') || Path::new(name).extension().is_some();
    let databases = if !configured && Path::new("lifeboat-store").exists() {
        names.iter().filter(is_path).map(Into::into).collect()
    } else {
        Vec::new()
    };
    load(global, databases)
}

/// `1 point`, `2 points`.
fn counted(n: u64, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

/// The last line of a command that changed or checked something: printed only when it is true.
fn ok(words: &str) {
    println!("lifeboat: ok {words}");
}
