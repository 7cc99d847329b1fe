//! Finds the configuration: file, environment or command line.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::build::Builder;
use super::checked::{Config, ConfigSource};
use super::error::{ConfigError, Place};
use super::expand::{Environment, Resolver};
use super::litestream;
use super::raw::{self, RawConfig};

/// Variables that give values of a configuration.
pub(super) const CONFIG_VARIABLES: [&str; 21] = [
    "LIFEBOAT_ACCESS_KEY_ID",
    "LIFEBOAT_ACCESS_KEY_ID_FILE",
    "LIFEBOAT_DATABASES",
    "LIFEBOAT_ENDPOINT",
    "LIFEBOAT_FILES_PASSWORD",
    "LIFEBOAT_FILES_PASSWORD_FILE",
    "LIFEBOAT_HTTP_LISTEN",
    "LIFEBOAT_HTTP_TOKEN",
    "LIFEBOAT_HTTP_TOKEN_FILE",
    "LIFEBOAT_INSTANCE",
    "LIFEBOAT_NOTIFY_HEALTHCHECKS",
    "LIFEBOAT_NOTIFY_SLACK",
    "LIFEBOAT_NOTIFY_WEBHOOK",
    "LIFEBOAT_NOTIFY_WEBHOOK_SECRET",
    "LIFEBOAT_REGION",
    "LIFEBOAT_RETENTION",
    "LIFEBOAT_SECRET_ACCESS_KEY",
    "LIFEBOAT_SECRET_ACCESS_KEY_FILE",
    "LIFEBOAT_STATE_DIR",
    "LIFEBOAT_STORE_URL",
    "LIFEBOAT_SYNC_INTERVAL",
];

/// Variables that every command reads besides.
const COMMON_VARIABLES: [&str; 3] = [
    "LIFEBOAT_CONFIG",
    "LIFEBOAT_LOG_FORMAT",
    "LIFEBOAT_LOG_LEVEL",
];

/// Every `LIFEBOAT_` variable with a meaning of its own. Flags of commands may have more: see
/// [`LoadArgs::known_variables`].
pub fn known_variables() -> impl Iterator<Item = &'static str> {
    CONFIG_VARIABLES.into_iter().chain(COMMON_VARIABLES)
}

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct LoadArgs {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// Databases named as arguments. Words with `://` are stores for them, as in `litestream replicate DB URL`.
    pub databases: Vec<PathBuf>,
    /// Further `LIFEBOAT_` variables that the command line knows (one for each flag).
    pub known_variables: Vec<String>,
}

/// What the machine looks like; a value, so that tests need no other machine.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) cwd: PathBuf,
    pub(super) home: Option<PathBuf>,
    /// `/etc`.
    pub(super) etc: PathBuf,
    /// Folders where containers keep databases, in order of preference.
    pub(super) volumes: Vec<PathBuf>,
    pub(super) hostname: String,
}

impl Host {
    fn of_process(env: &Environment) -> Result<Self, ConfigError> {
        let cwd = Path::new(".")
            .canonicalize()
            .map_err(|source| ConfigError::Read {
                what: "the working directory",
                path: ".".into(),
                source,
            })?;
        // Linux only; elsewhere the shell's own variable has to do.
        let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .ok()
            .map(|name| name.trim().to_owned());
        let hostname = kernel
            .filter(|n| !n.is_empty())
            .or_else(|| env.non_empty("HOSTNAME").map(str::to_owned));
        Ok(Self {
            cwd,
            home: env.non_empty("HOME").map(PathBuf::from),
            etc: "/etc".into(),
            volumes: vec!["/rails/storage".into(), "/data".into()],
            hostname: hostname.unwrap_or_else(|| "unknown-host".into()),
        })
    }

    #[cfg(test)]
    pub(super) fn for_tests(root: &Path) -> Self {
        Self {
            cwd: root.into(),
            home: Some(root.into()),
            etc: root.join("etc"),
            volumes: vec![root.join("rails/storage"), root.join("data")],
            hostname: "box".into(),
        }
    }
}

/// Loads the configuration: databases on the command line (with `--config` or `$LIFEBOAT_CONFIG`: beside those of
/// the file), else the first of `--config`, `$LIFEBOAT_CONFIG`, `./lifeboat.yml`, `/etc/lifeboat.yml`,
/// `/etc/litestream.yml`, else the environment alone. The environment fills in what a file leaves out.
///
/// Reads configuration and secret files and lists folders; opens no database.
///
/// # Errors
/// Any [`ConfigError`]; nothing was changed.
pub fn load(args: &LoadArgs, env: &Environment) -> Result<Config, ConfigError> {
    load_on(args, env, &Host::of_process(env)?)
}

pub(super) fn load_on(
    args: &LoadArgs,
    env: &Environment,
    host: &Host,
) -> Result<Config, ConfigError> {
    let chosen = args
        .config
        .clone()
        .or_else(|| env.non_empty("LIFEBOAT_CONFIG").map(PathBuf::from));
    let searched = [
        host.cwd.join("lifeboat.yml"),
        host.etc.join("lifeboat.yml"),
        host.etc.join("litestream.yml"),
    ];
    let (config, used) = match (chosen, args.databases.is_empty()) {
        (Some(path), _) => from_file(&path, args, env, host)?,
        (None, false) => from_command_line(args, &searched, env, host)?,
        (None, true) => match searched.iter().find(|path| exists(path)) {
            Some(path) => from_file(path, args, env, host)?,
            None if is_environment_enough(env) => from_environment(env, host)?,
            None => {
                // A typing error in the name of a variable is the likeliest reason to find nothing.
                check_variables(args, env, &BTreeSet::new())?;
                return Err(ConfigError::NotFound {
                    searched: searched.to_vec(),
                });
            }
        },
    };
    check_variables(args, env, &used)?;
    Ok(config)
}

/// A file that is there but cannot be looked at counts: reading it gives the error.
fn exists(path: &Path) -> bool {
    !matches!(path.metadata(), Err(e) if e.kind() == io::ErrorKind::NotFound)
}

fn is_environment_enough(env: &Environment) -> bool {
    ["LIFEBOAT_STORE_URL", "LIFEBOAT_DATABASES"]
        .iter()
        .any(|name| env.get(name).is_some())
}

type Loaded = (Config, BTreeSet<String>);

fn from_file(
    path: &Path,
    args: &LoadArgs,
    env: &Environment,
    host: &Host,
) -> Result<Loaded, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        what: "the configuration",
        path: path.into(),
        source,
    })?;
    let source = ConfigSource::File(path.into());
    let origin = Place::File(path.into(), 0);
    if raw::is_litestream(&text)
        || path
            .file_name()
            .is_some_and(|name| name == "litestream.yml")
    {
        let resolver = Resolver::new(env, host, origin, true);
        let mut builder = Builder::new(&resolver);
        litestream::read(raw::parse(&text, path)?, &mut builder)?;
        builder.command_line(&args.databases)?;
        let config = builder.finish(source)?;
        return Ok((config, resolver.used()));
    }
    let resolver = Resolver::new(env, host, origin, false);
    let mut builder = Builder::new(&resolver);
    builder.read(raw::parse::<RawConfig>(&text, path)?)?;
    builder.command_line(&args.databases)?;
    let config = builder.finish(source)?;
    Ok((config, resolver.used()))
}

fn from_environment(env: &Environment, host: &Host) -> Result<Loaded, ConfigError> {
    let resolver = Resolver::new(env, host, Place::Environment, false);
    let mut builder = Builder::new(&resolver);
    builder.read(RawConfig::default())?;
    builder.database_url()?;
    builder.volumes()?;
    Ok((builder.finish(ConfigSource::Environment)?, resolver.used()))
}

fn from_command_line(
    args: &LoadArgs,
    searched: &[PathBuf],
    env: &Environment,
    host: &Host,
) -> Result<Loaded, ConfigError> {
    let resolver = Resolver::new(env, host, Place::CommandLine, false);
    let mut builder = Builder::new(&resolver);
    builder.default_store()?;
    builder.read(RawConfig::default())?;
    builder.command_line(&args.databases)?;
    if let Some(path) = searched.iter().find(|path| exists(path)) {
        let notice = format!(
            "{} is not read: databases are named on the command line (--config reads both)",
            path.display()
        );
        builder.notices.push(notice);
    }
    Ok((builder.finish(ConfigSource::CommandLine)?, resolver.used()))
}

/// What the hooks of the Kamal kit and `bin/lifeboat-restore` read; who exports them may call Lifeboat, too.
const OF_THE_HOOKS: [&str; 7] = [
    "LIFEBOAT_ACCESSORY",
    "LIFEBOAT_HOSTS",
    "LIFEBOAT_MIN_FREE_MB",
    "LIFEBOAT_SECRETS",
    "LIFEBOAT_SKIP",
    "LIFEBOAT_WAIT",
    "LIFEBOAT_WEBHOOK",
];

/// Refuses `LIFEBOAT_` variables that nothing reads: a misspelt one would leave something unprotected in silence.
fn check_variables(
    args: &LoadArgs,
    env: &Environment,
    used: &BTreeSet<String>,
) -> Result<(), ConfigError> {
    let of_flags = args.known_variables.iter().map(String::as_str);
    let mut known: Vec<&str> = known_variables().collect();
    known.extend(of_flags);
    for name in env.names().filter(|name| name.starts_with("LIFEBOAT_")) {
        // Kubernetes and old Docker links set these in every container beside a service called lifeboat.
        let foreign = name.starts_with("LIFEBOAT_SERVICE_")
            || name == "LIFEBOAT_PORT"
            || name.starts_with("LIFEBOAT_PORT_")
            || OF_THE_HOOKS.contains(&name);
        if !foreign && !used.contains(name) && !known.contains(&name) {
            let nearest = raw::nearest(name, known.iter().copied()).map(str::to_owned);
            return Err(ConfigError::UnknownVariable {
                name: name.into(),
                nearest,
            });
        }
    }
    Ok(())
}
