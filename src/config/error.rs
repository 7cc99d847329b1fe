//! Everything that can be wrong with a configuration.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where in the configuration something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of a file, 1-based; 0 when the line is not known.
    File(PathBuf, u64),
    /// The environment of the process.
    Environment,
    /// The words on the command line.
    CommandLine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, 0) => write!(f, "{}", path.display()),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment => f.write_str("environment"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// A configuration that cannot be used. Nothing was started or changed. Never holds the value of a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file or folder that is needed cannot be read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// What it is for.
        what: &'static str,
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not YAML, or YAML of the wrong shape.
    #[error("{place}: {message}")]
    Yaml {
        /// Where.
        place: Place,
        /// What the parser says.
        message: String,
    },
    /// A key that nothing reads.
    #[error("{place}: unknown key `{key}`")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// The known key most like it.
        nearest: Option<&'static str>,
        /// All keys known there.
        known: Vec<&'static str>,
    },
    /// A key or value with a meaning that this version cannot honour.
    #[error("{place}: {what} is not supported in this version")]
    Unsupported {
        /// Where.
        place: Place,
        /// The key or value.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// `${VAR}` of a variable that is not set.
    #[error("{place}: `{key}` needs the environment variable {variable}, which is not set")]
    UnsetVariable {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// The variable.
        variable: String,
    },
    /// A value that its key does not allow.
    #[error("{place}: `{key}`: {why}")]
    Invalid {
        /// Where.
        place: Place,
        /// The key or variable.
        key: String,
        /// The rule it breaks.
        why: String,
    },
    /// A credential that is there but empty.
    #[error("{place}: `{key}` is empty")]
    EmptyCredential {
        /// Where.
        place: Place,
        /// The key or variable.
        key: String,
    },
    /// Keys that exclude each other.
    #[error("{place}: `{first}` and `{second}` exclude each other")]
    Conflict {
        /// Where.
        place: Place,
        /// One key.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A key that must be there.
    #[error("{place}: `{key}` is missing: {why}")]
    Missing {
        /// Where.
        place: Place,
        /// The key.
        key: &'static str,
        /// What it is needed for.
        why: &'static str,
    },
    /// Two targets with one name.
    #[error("two targets are named `{name}`: {} and {}", first.display(), second.display())]
    SameName {
        /// The name.
        name: String,
        /// One database.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// One database listed twice.
    #[error("one database is listed twice: {} as `{first}` and as `{second}`", path.display())]
    SamePath {
        /// The database.
        path: PathBuf,
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// Two databases that would write into one replica.
    #[error("two databases would write to {url}: {} and {}", first.display(), second.display())]
    SameStore {
        /// The place in the store.
        url: String,
        /// One database.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Nothing to protect.
    #[error("{place}: there is no database to protect")]
    NoTargets {
        /// Where databases could have been listed.
        place: Place,
    },
    /// Databases, but nowhere to keep their copies.
    #[error("{place}: no store is given for {what}")]
    NoStore {
        /// Where.
        place: Place,
        /// Which databases.
        what: String,
    },
    /// No file, no environment, no command line.
    #[error("no configuration was found")]
    NotFound {
        /// The files looked for.
        searched: Vec<PathBuf>,
    },
    /// A `LIFEBOAT_` variable that nothing reads.
    #[error("unknown environment variable {name}")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The known variable most like it.
        nearest: Option<String>,
    },
}

impl ConfigError {
    /// What the process ends with: 2, usage or configuration.
    pub fn exit_code(&self) -> u8 {
        2
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "give the user that lifeboat runs as permission to read it".into()
            }
            Self::Read { .. } => {
                "check the path, and that the folder is mounted into the container".into()
            }
            // In a flow map the brace of a bare `${VAR}` ends or begins a map: the likeliest slip in a file that looks right.
            Self::Yaml { message, .. }
                if message.contains("flow mapping") || message.contains("flow sequence") =>
            {
                "inside { } and [ ], put quotes around \"${VAR}\"".into()
            }
            Self::Yaml { .. } => "`lifeboat config schema` prints the shape of the file".into(),
            Self::UnknownKey {
                nearest: Some(nearest),
                ..
            } => format!("did you mean `{nearest}`?"),
            Self::UnknownKey { known, .. } => format!("known keys here: {}", known.join(", ")),
            Self::Unsupported { hint, .. } => hint.clone(),
            Self::UnsetVariable { variable, .. } => {
                format!("set {variable}, or write ${{{variable}:-default}}")
            }
            Self::Invalid { .. } => return None,
            Self::EmptyCredential { key, .. } => {
                format!(
                    "give `{key}` a value, or leave it out to use the credentials of the environment or machine"
                )
            }
            Self::Conflict { first, second, .. } => format!("keep one of `{first}` and `{second}`"),
            Self::Missing { key, .. } => format!("add `{key}:`"),
            Self::SameName { .. } => "give one of them another `name:`".into(),
            Self::SamePath { .. } => "keep one of the two entries".into(),
            Self::SameStore { .. } => "give each database its own `path` or `url`".into(),
            Self::NoTargets { .. } => {
                "list databases under `sqlite:`, in LIFEBOAT_DATABASES, or on the command line"
                    .into()
            }
            Self::NoStore { .. } => {
                "add `store: { url: s3://bucket/path }`, or set LIFEBOAT_STORE_URL".into()
            }
            Self::NotFound { searched } => {
                let searched: Vec<_> = searched.iter().map(|p| p.display().to_string()).collect();
                format!(
                    "write one of {}, or set LIFEBOAT_STORE_URL, or name databases: `lifeboat run app.sqlite3`",
                    searched.join(", ")
                )
            }
            Self::UnknownVariable {
                nearest: Some(nearest),
                ..
            } => format!("did you mean {nearest}?"),
            Self::UnknownVariable { name, .. } => format!("unset {name}: nothing reads it"),
        })
    }
}
