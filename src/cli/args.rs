use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

/// Backup and observability sidecar for apps on SQLite.
#[derive(Debug, Parser)]
#[command(
    name = "lifeboat",
    version,
    propagate_version = true,
    max_term_width = 110
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Configuration file [default: ./lifeboat.yml, /etc/lifeboat.yml, /etc/litestream.yml]
    #[arg(long, global = true, env = "LIFEBOAT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data as JSON on stdout
    #[arg(long, global = true, env = "LIFEBOAT_JSON")]
    pub json: bool,
    /// Form of the log on stderr
    #[arg(
        long,
        global = true,
        env = "LIFEBOAT_LOG_FORMAT",
        value_enum,
        default_value = "text"
    )]
    pub log_format: LogFormat,
    /// error, warn, info, debug or trace
    #[arg(
        long,
        global = true,
        env = "LIFEBOAT_LOG_LEVEL",
        default_value = "info",
        value_name = "LEVEL"
    )]
    pub log_level: String,
    /// Errors only
    #[arg(short, long, global = true, env = "LIFEBOAT_QUIET")]
    pub quiet: bool,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replicate until told to stop
    #[command(alias = "replicate")]
    Run {
        /// Databases; they replicate to ./lifeboat-store unless a store is configured
        databases: Vec<PathBuf>,
    },
    /// A show of half a minute: an app, a disaster, and the way back, all real
    Demo {
        /// Leave app and sidecar running until Ctrl-C
        #[arg(long, env = "LIFEBOAT_KEEP")]
        keep: bool,
    },
    /// Look around, write lifeboat.yml, and show what Kamal needs
    Init(InitArgs),
    /// Make everything committed so far durable; returns when it is
    Sync {
        /// Targets [default: all]
        targets: Vec<String>,
        /// Longest wait for each
        #[arg(long, env = "LIFEBOAT_TIMEOUT", default_value = "60s")]
        timeout: String,
    },
    /// Make everything up to now durable, databases first, then files, and pin it under a label
    Snapshot(SnapshotArgs),
    /// Repositories of files
    Files {
        /// What to do with them
        #[command(subcommand)]
        action: FilesAction,
    },
    /// What is safe now, as the running daemon says
    Status(StatusArgs),
    /// Restore points in the stores
    #[command(alias = "snapshots")]
    List {
        /// Target name or path [default: all]
        target: Option<String>,
    },
    /// Restore a database
    Restore(Box<RestoreArgs>),
    /// Keep a copy current from the store: a standby, or a database for readers on another host
    Follow(FollowArgs),
    /// Read back and check every object that the newest restore would need
    Verify {
        /// Targets [default: all]
        targets: Vec<String>,
    },
    /// Restore a sample into scratch space, check it, record the result
    Drill {
        /// Targets; those of PostgreSQL need a `drill-url` [default: all that can be drilled]
        targets: Vec<String>,
    },
    /// Check configuration, databases, volumes, stores and servers; say how to mend what is not right, and what it will cost
    Doctor {
        /// Folder in which to look for what no target protects [default: the folders of the databases]
        #[arg(long = "volume", value_name = "DIR", env = "LIFEBOAT_VOLUME")]
        volumes: Vec<PathBuf>,
    },
    /// What an auditor asks: targets, newest points, drills, retention, encryption, versions
    Evidence,
    /// Apply retention now
    Prune {
        /// Targets [default: all]
        targets: Vec<String>,
        /// Print what would be kept and deleted, and why; delete nothing
        #[arg(long, env = "LIFEBOAT_DRY_RUN")]
        dry_run: bool,
        /// PostgreSQL: the newest dump is as it should be, although it looks odd beside those before it
        #[arg(long, env = "LIFEBOAT_ACCEPT", requires = "targets")]
        accept: bool,
    },
    /// Take over a replica on purpose: this database is the one to go on with
    Claim(OwnerArgs),
    /// Hand a replica over: another instance may go on with it
    Release(OwnerArgs),
    /// Who is told of trouble
    Notify {
        /// What to do
        #[command(subcommand)]
        action: NotifyAction,
    },
    /// Liveness, for HEALTHCHECK
    Health,
    /// The configuration
    Config {
        /// What to do with it
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Completions for a shell
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
}

/// Whose replicas change hands. Never all without a word.
#[derive(Clone, Debug, Args)]
pub struct OwnerArgs {
    /// Targets
    #[arg(required_unless_present = "all")]
    pub targets: Vec<String>,
    /// Every target
    // Without a variable: one that is set for restores must not hand everything over.
    #[arg(long, conflicts_with = "targets")]
    pub all: bool,
}

/// What to follow, and where the copy is.
#[derive(Clone, Debug, Args)]
pub struct FollowArgs {
    /// Target name or replica URL
    pub source: String,
    /// The copy: made if it is not there; nobody else may write to it
    #[arg(short, long, value_name = "PATH", env = "LIFEBOAT_OUTPUT")]
    pub output: PathBuf,
    /// Between looks for something new
    #[arg(
        long,
        value_name = "DURATION",
        env = "LIFEBOAT_INTERVAL",
        default_value = "1s"
    )]
    pub interval: String,
    /// Catch up and end
    #[arg(long, env = "LIFEBOAT_ONCE")]
    pub once: bool,
}

/// Where to look and what to write.
#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    /// Folders with databases [default: config/deploy.yml and config/database.yml here, else mounted volumes]
    pub folders: Vec<PathBuf>,
    /// Store to write into the configuration
    #[arg(long, value_name = "URL", env = "LIFEBOAT_STORE_URL")]
    pub store: Option<String>,
    /// File to write [default: config/lifeboat.yml in a Kamal project, else lifeboat.yml]
    #[arg(short, long, value_name = "FILE", env = "LIFEBOAT_OUTPUT")]
    pub output: Option<PathBuf>,
    /// Also write the accessory and the aliases into config/deploy.yml, the hooks, bin/lifeboat-restore, and names of secrets
    #[arg(long, env = "LIFEBOAT_KAMAL")]
    pub kamal: bool,
    /// Replace a configuration that is there
    #[arg(long, env = "LIFEBOAT_FORCE")]
    pub force: bool,
    /// Show every file, write none
    #[arg(long, env = "LIFEBOAT_DRY_RUN")]
    pub dry_run: bool,
}

/// What to do with repositories of files.
#[derive(Clone, Debug, Subcommand)]
pub enum FilesAction {
    /// Make the repository of a target, once
    Init {
        /// Targets [default: all]
        targets: Vec<String>,
    },
}

/// What to do with notifications.
#[derive(Clone, Debug, Subcommand)]
pub enum NotifyAction {
    /// Send a test message through every channel
    Test {
        /// Names of channels [default: all]
        channels: Vec<String>,
    },
}

/// What to do with the configuration.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ConfigAction {
    /// Say whether it is right
    Check,
    /// Print what it means, without secrets
    Show,
    /// Print its JSON Schema
    Schema,
}

/// Whom to ask, and how often.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Address of the daemon's HTTP [default: its socket, then the configuration]
    #[arg(long, env = "LIFEBOAT_ADDRESS")]
    pub address: Option<String>,
    /// Show it again and again, until interrupted
    #[arg(short, long, env = "LIFEBOAT_WATCH")]
    pub watch: bool,
    /// Between two looks of --watch
    #[arg(
        long,
        env = "LIFEBOAT_INTERVAL",
        default_value = "2s",
        value_name = "TIME"
    )]
    pub interval: String,
}

/// What to pin, and under which name.
#[derive(Clone, Debug, Args)]
pub struct SnapshotArgs {
    /// Targets [default: all]
    pub targets: Vec<String>,
    /// A name that pins this point; a number is appended if it is taken
    #[arg(long, value_name = "LABEL", env = "LIFEBOAT_LABEL")]
    pub label: Option<String>,
    /// The app's version that this belongs to [default: X if the label is before-X]
    #[arg(long, value_name = "VERSION", env = "LIFEBOAT_DEPLOY")]
    pub deploy: Option<String>,
    /// Longest wait
    #[arg(long, env = "LIFEBOAT_TIMEOUT", default_value = "60s")]
    pub timeout: String,
}

/// What to restore, and where to.
#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    /// Target name, database path, or replica URL
    #[arg(required_unless_present_any = ["all", "from"])]
    pub source: Option<String>,
    /// Read this replica instead of the target's own; it is never claimed and never written
    #[arg(long, value_name = "URL", conflicts_with_all = ["all", "undo"], env = "LIFEBOAT_FROM")]
    pub from: Option<String>,
    /// Every target of the configuration
    #[arg(long, conflicts_with = "source", env = "LIFEBOAT_ALL")]
    pub all: bool,
    /// The last point at or before this time: RFC 3339, 2026-11-20T10:30, or 10m (ago)
    #[arg(long, value_name = "TIME", env = "LIFEBOAT_AT")]
    pub at: Option<String>,
    /// Exactly this point (hexadecimal, as `list` prints it)
    #[arg(
        long,
        value_name = "TXID",
        conflicts_with_all = ["at", "all"],
        env = "LIFEBOAT_TXID"
    )]
    pub txid: Option<String>,
    /// Files: the snapshot whose id begins like this
    #[arg(
        long,
        value_name = "ID",
        conflicts_with_all = ["at", "txid", "label"],
        env = "LIFEBOAT_SNAPSHOT_ID"
    )]
    pub snapshot: Option<String>,
    /// Exactly the point of this label: its name, name#2, or the version of its deploy
    #[arg(long, value_name = "LABEL", conflicts_with_all = ["at", "txid"], env = "LIFEBOAT_LABEL")]
    pub label: Option<String>,
    /// The newest point whose database passes SQLite's integrity_check (with --verify full: foreign keys, too)
    #[arg(
        long,
        conflicts_with_all = ["at", "txid", "label", "snapshot", "dump", "all"],
        env = "LIFEBOAT_LAST_GOOD"
    )]
    pub last_good: bool,
    /// The jobs of Solid Queue: they run, wait in paused queues, or are removed [default: keep for one target; paused with --all, --from or a URL]
    #[arg(long, value_enum, env = "LIFEBOAT_QUEUE")]
    pub queue: Option<QueueArg>,
    /// SQL to run on the restored copy before it appears; if a statement fails, nothing is changed
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "all",
        env = "LIFEBOAT_AFTER_SQL"
    )]
    pub after_sql: Option<PathBuf>,
    /// PostgreSQL: the dump with this id
    #[arg(
        long,
        value_name = "ID",
        conflicts_with_all = ["at", "txid", "label", "snapshot"],
        env = "LIFEBOAT_DUMP"
    )]
    pub dump: Option<String>,
    /// PostgreSQL: into a new database of this name on the same server
    #[arg(long, value_name = "NAME", conflicts_with_all = ["output", "in_place", "into"], env = "LIFEBOAT_INTO_NEW")]
    pub into_new: Option<String>,
    /// PostgreSQL: into the database of this URL, which must not exist or be empty
    #[arg(long, value_name = "URL", conflicts_with_all = ["output", "in_place"], env = "LIFEBOAT_INTO", hide_env_values = true)]
    pub into: Option<String>,
    /// PostgreSQL: only these tables, into a new database beside the live one
    #[arg(long, value_name = "TABLE", conflicts_with_all = ["output", "in_place", "into"], env = "LIFEBOAT_TABLE", value_delimiter = ',')]
    pub table: Vec<String>,
    /// PostgreSQL: restore over so many connections; above 1 the dump needs room in the temporary folder
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), env = "LIFEBOAT_JOBS")]
    pub jobs: u32,
    /// PostgreSQL: everything belongs to the role that restores
    #[arg(long, env = "LIFEBOAT_NO_OWNER")]
    pub no_owner: bool,
    /// PostgreSQL: without GRANTs
    #[arg(long, env = "LIFEBOAT_NO_PRIVILEGES")]
    pub no_privileges: bool,
    /// PostgreSQL: first create the dump's roles and tablespaces that are not there; they have no passwords
    #[arg(long, env = "LIFEBOAT_GLOBALS")]
    pub globals: bool,
    /// Files: only this folder or file
    #[arg(long, value_name = "PATH", env = "LIFEBOAT_PATH")]
    pub path: Option<PathBuf>,
    /// Where to (with --all: a folder)
    #[arg(short, long, value_name = "PATH", env = "LIFEBOAT_OUTPUT")]
    pub output: Option<PathBuf>,
    /// Replace the database; nobody may have it open; the old one is kept for --undo
    #[arg(long, conflicts_with = "output", env = "LIFEBOAT_IN_PLACE")]
    pub in_place: bool,
    /// Swap the copy that the last --in-place kept back
    #[arg(long, conflicts_with_all = ["at", "txid", "label", "last_good", "queue", "after_sql", "output", "in_place", "dump", "into", "into_new", "table"], env = "LIFEBOAT_UNDO")]
    pub undo: bool,
    /// Show what would be read, and stop
    #[arg(long, env = "LIFEBOAT_DRY_RUN")]
    pub dry_run: bool,
    /// SQLite's own checks of the restored database, beside the checksums
    #[arg(long, value_enum, default_value = "quick", env = "LIFEBOAT_VERIFY")]
    pub verify: VerifyArg,
    /// Do nothing, successfully, if the database exists
    #[arg(long, alias = "if-db-not-exists", env = "LIFEBOAT_IF_NOT_EXISTS")]
    pub if_not_exists: bool,
    /// Do nothing, successfully, if there is no replica
    #[arg(long, env = "LIFEBOAT_IF_REPLICA_EXISTS")]
    pub if_replica_exists: bool,
}

/// What happens to jobs.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum QueueArg {
    /// They run when the app starts.
    Keep,
    /// They wait until their queue is resumed.
    Paused,
    /// They are removed, but for those that failed.
    Empty,
}

/// SQLite's checks.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum VerifyArg {
    /// Checksums only
    None,
    /// `quick_check`
    Quick,
    /// `integrity_check` and `foreign_key_check`
    Full,
}

/// The environment variables of all flags.
pub(super) fn variables() -> Vec<String> {
    fn collect(command: &clap::Command, out: &mut Vec<String>) {
        let named = command
            .get_arguments()
            .filter_map(|a| a.get_env()?.to_str().map(str::to_owned));
        out.extend(named);
        command.get_subcommands().for_each(|c| collect(c, out));
    }
    let mut out = Vec::new();
    collect(&Cli::command(), &mut out);
    out
}
