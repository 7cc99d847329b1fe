use thiserror::Error;

use crate::store::StoreError;

/// What went wrong with a PostgreSQL target.
#[derive(Debug, Error)]
pub enum PostgresError {
    /// The URL.
    #[error("the PostgreSQL URL {0}")]
    Url(&'static str),
    /// A client program is not there, or of another major.
    #[error("{0}; nothing was changed")]
    Client(String),
    /// The server or a client program refused.
    #[error("{program} failed: {why}")]
    Failed {
        /// Which program.
        program: &'static str,
        /// What it said last.
        why: String,
    },
    /// SQL of the user that was to run on a restored database.
    #[error("{name} failed: {why}; nothing was changed")]
    Script {
        /// Its file.
        name: String,
        /// What `psql` said, with the statement.
        why: String,
    },
    /// A dump would fail, or would not be complete.
    #[error("{what}; nothing was dumped")]
    Cannot {
        /// Why.
        what: String,
        /// The next step.
        hint: String,
    },
    /// It would not be safe.
    #[error("{what}")]
    Refused {
        /// What would not be, and what happened to the data.
        what: String,
        /// The next step.
        hint: String,
    },
    /// There is no such dump or database.
    #[error("{0}")]
    Nothing(String),
    /// A dump is not what its manifest says.
    #[error("dump {id} is damaged: {why}")]
    Damaged {
        /// The dump.
        id: String,
        /// What differs.
        why: String,
    },
    /// Some stores hold a dump, others do not.
    #[error("dump {id} is not in every store: {missing}; it is in the others")]
    Partly {
        /// The dump.
        id: String,
        /// Stores and reasons.
        missing: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Pipes, threads, files.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
}

impl PostgresError {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { hint, .. } | Self::Cannot { hint, .. } => Some(hint.clone()),
            Self::Script { .. } => Some("mend the statement and restore again: all of it runs in one transaction on a fresh database".into()),
            Self::Nothing(_) => Some("`lifeboat list` shows what there is".into()),
            Self::Url(_) => Some("as postgres://user:password@host:5432/database".into()),
            Self::Client(what) if what.contains("redis-cli") => Some("install redis-tools, or give `bin-dir`".into()),
            Self::Client(_) => Some("install the clients of the server's own major (Debian: postgresql-client-N), or name their folder: `bin-dir`".into()),
            Self::Failed { program: "redis-cli", why } if why.contains("WRONGPASS") || why.contains("NOAUTH") || why.contains("NOPERM") => {
                Some("check the user and the password of the URL; the user needs: +info +ping +sync +psync +replconf".into())
            }
            Self::Failed { why, .. } if why.contains("password authentication failed") => {
                Some("check the user and the password of the URL".into())
            }
            Self::Failed { why, .. } if why.contains("permission denied") => {
                Some("GRANT pg_read_all_data TO the role of the URL; large objects and row-level security need the owner or a superuser".into())
            }
            Self::Failed { why, .. } if why.contains("certificate verify failed") || why.contains("server certificate for") => {
                Some("give the certificate of the server's authority as sslrootcert, and the host by the name in the server's certificate".into())
            }
            Self::Failed { why, .. } if why.contains("no encryption") => {
                Some("this server wants TLS: add ?sslmode=verify-full to the URL, or require".into())
            }
            Self::Failed { why, .. } if why.contains("unsupported startup parameter") => {
                Some("this is a pooler: give the server's own address and port".into())
            }
            Self::Failed { why, .. } if why.contains("could not translate host name") || why.contains("Connection refused") || why.contains("No such file or directory") => {
                Some("is the server running, and can it be reached from here? check host and port".into())
            }
            Self::Failed { program: "pg_restore", why } if why.contains("role \"") && why.contains("does not exist") => {
                Some("create the roles of the dump first with --globals, or restore with --no-owner --no-privileges".into())
            }
            Self::Failed { program: "pg_restore", why } if why.contains("must be") || why.contains("permission denied") => {
                Some("give a role with more rights as `restore-url`".into())
            }
            Self::Failed { why, .. } if why.contains("No space left on device") => {
                Some("the disk of the server is full: make room there and try again".into())
            }
            Self::Io(_, error) if error.kind() == std::io::ErrorKind::StorageFull => {
                Some("make room and try again; temporary files go to TMPDIR".into())
            }
            Self::Failed { .. } | Self::Io(..) => None,
            Self::Partly { .. } => Some("the next run tries again".into()),
            Self::Damaged { .. } => Some("restore another dump: `lifeboat list` shows them".into()),
            Self::Store(e) => e.hint(),
        }
    }

    /// See the design: 1 failed, 2 usage or configuration, 5 verification failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Url(_) | Self::Client(_) => 2,
            Self::Damaged { .. } => 5,
            Self::Refused { .. } => 4,
            Self::Nothing(_) => 3,
            Self::Failed { .. }
            | Self::Script { .. }
            | Self::Cannot { .. }
            | Self::Partly { .. }
            | Self::Store(_)
            | Self::Io(..) => 1,
        }
    }
}
