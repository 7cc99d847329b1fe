//! How to reach one database.

use std::process::Command;

use url::Url;

use super::PostgresError;
use crate::config::Secret;

/// Stands for a host that a URL leaves out.
const NO_HOST: &str = "-";

/// Parameters of a URL that libpq reads from the environment. Others, as Rails' `pool`, are dropped.
const PARAMETERS: [(&str, &str); 8] = [
    ("host", "PGHOST"),
    ("port", "PGPORT"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
];

/// What a URL is made of, for those who have it in pieces.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// A name, an address, or the folder of a socket.
    pub host: Option<String>,
    /// The port.
    pub port: Option<String>,
    /// The role.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// The database.
    pub database: Option<String>,
    /// As libpq's `sslmode`.
    pub sslmode: Option<String>,
    /// As libpq's `sslrootcert`.
    pub sslrootcert: Option<String>,
}

/// How to reach one database. `Debug` shows no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    variables: Vec<(&'static str, String)>,
    password: Option<Secret>,
    database: String,
}

impl Connection {
    /// Reads `postgres://user:password@host:port/database?sslmode=...`; sockets as `postgres:///database?host=/folder`.
    ///
    /// # Errors
    /// [`PostgresError::Url`], without any part of the URL in it.
    pub fn from_url(text: &str) -> Result<Self, PostgresError> {
        // libpq takes a user without a host, for sockets; the URL standard does not.
        let text = text.replacen("@/", &format!("@{NO_HOST}/"), 1);
        let url = Url::parse(&text).map_err(|_| PostgresError::Url("cannot be read"))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(PostgresError::Url("must begin with postgres://"));
        }
        let decoded = |part: &str| decode(part).ok_or(PostgresError::Url("holds a wrong %-escape"));
        let database = decoded(url.path().trim_start_matches('/'))?;
        if database.is_empty() {
            return Err(PostgresError::Url("names no database"));
        }
        let mut variables = Vec::new();
        if let Some(host) = url.host_str().filter(|h| !h.is_empty() && *h != NO_HOST) {
            variables.push(("PGHOST", decoded(host)?));
        }
        if let Some(port) = url.port() {
            variables.push(("PGPORT", port.to_string()));
        }
        if !url.username().is_empty() {
            variables.push(("PGUSER", decoded(url.username())?));
        }
        for (key, value) in url.query_pairs() {
            if let Some((_, variable)) = PARAMETERS.iter().find(|(name, _)| *name == key) {
                variables.push((variable, value.into_owned()));
            }
        }
        let password = url
            .password()
            .map(decoded)
            .transpose()?
            .and_then(Secret::new);
        Ok(Self {
            variables,
            password,
            database,
        })
    }

    /// From pieces; what is missing is left to libpq's defaults, but for the database.
    ///
    /// # Errors
    /// [`PostgresError::Url`].
    pub fn from_parts(parts: Parts) -> Result<Self, PostgresError> {
        let database = parts.database.filter(|d| !d.is_empty());
        let variables = [
            ("PGHOST", parts.host),
            ("PGPORT", parts.port),
            ("PGUSER", parts.user),
            ("PGSSLMODE", parts.sslmode),
            ("PGSSLROOTCERT", parts.sslrootcert),
        ];
        Ok(Self {
            variables: variables
                .into_iter()
                .filter_map(|(name, value)| Some((name, value.filter(|v| !v.is_empty())?)))
                .collect(),
            password: parts.password,
            database: database.ok_or(PostgresError::Url("names no database"))?,
        })
    }

    /// The same, with another password.
    #[must_use]
    pub fn with_password(self, password: Option<Secret>) -> Self {
        Self {
            password: password.or(self.password),
            ..self
        }
    }

    /// The server, in words: host and port, without user and password.
    pub fn server(&self) -> String {
        let get = |name| self.variables.iter().rfind(|(n, _)| *n == name);
        let host = get("PGHOST").map_or("local socket", |(_, v)| v.as_str());
        match get("PGPORT") {
            Some((_, port)) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// Server and database without user and password, as a URL for people.
    pub fn display(&self) -> String {
        format!("postgres://{}/{}", self.server(), self.database)
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The same server and user, another database.
    #[must_use]
    pub fn with_database(&self, name: &str) -> Self {
        Self {
            database: name.to_owned(),
            ..self.clone()
        }
    }

    pub(super) fn apply(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            // What this process inherited must not point a client at another server.
            if name.to_str().is_some_and(|name| name.starts_with("PG")) {
                command.env_remove(name);
            }
        }
        command
            .env("PGAPPNAME", "lifeboat")
            .env("PGCLIENTENCODING", "UTF8")
            .env("PGDATABASE", &self.database)
            .env("LC_MESSAGES", "C");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if let Some(password) = &self.password {
            command.env("PGPASSWORD", password.reveal());
        }
    }
}

pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: u8| char::from(b).to_digit(16);
        let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
        bytes.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(bytes).ok().filter(|t| !t.contains('\0'))
}
