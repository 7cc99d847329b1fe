//! How to reach one server.

use std::process::Command;

use thiserror::Error;
use url::Url;

use crate::config::Secret;

/// Where `redis-cli` looks for a password.
const PASSWORD: &str = "REDISCLI_AUTH";
const DEFAULT_PORT: u16 = 6379;

/// Why a URL is none, without any part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the Redis URL {0}")]
pub struct UrlError(&'static str);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Tcp { host: String, port: u16, tls: bool },
    Socket(String),
}

/// How to reach one server. `Debug` shows no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    place: Place,
    user: Option<String>,
    password: Option<Secret>,
    /// PEM file of the authority that signed the server's certificate; the system's otherwise.
    authority: Option<String>,
}

impl Connection {
    /// Reads `redis://user:password@host:port`, `rediss://` for TLS (`?cacert=FILE`), `unix:///path/to/socket`. A database behind the port is
    /// dropped: a dump holds all of them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_url(text: &str) -> Result<Self, UrlError> {
        // A user without a host, for sockets, is none for the URL standard.
        let text = text.replacen("@/", "@-/", 1);
        let url = Url::parse(&text).map_err(|_| UrlError("cannot be read"))?;
        let decoded = |text: &str| {
            let decoded = crate::postgres::decode(text);
            decoded.ok_or(UrlError("holds a wrong %-escape"))
        };
        let tls = url.scheme() == "rediss";
        let place = match url.scheme() {
            "redis" | "rediss" => {
                let host = url.host_str().filter(|h| !h.is_empty());
                let host = host.ok_or(UrlError("names no host"))?;
                Place::Tcp {
                    // An address of IPv6 stands in brackets.
                    host: decoded(host.trim_matches(['[', ']']))?,
                    port: url.port().unwrap_or(DEFAULT_PORT),
                    tls,
                }
            }
            "unix" | "redis+unix" if url.path().len() > 1 => Place::Socket(decoded(url.path())?),
            "unix" | "redis+unix" => return Err(UrlError("names no socket")),
            _ => return Err(UrlError("must begin with redis://, rediss:// or unix://")),
        };
        let user = decoded(url.username())?;
        let password = url.password().map(decoded).transpose()?;
        let authority = url.query_pairs().find(|(key, _)| key == "cacert");
        Ok(Self {
            place,
            user: Some(user).filter(|u| !u.is_empty()),
            password: password.and_then(Secret::new),
            authority: authority.map(|(_, file)| file.into_owned()),
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

    /// The server, in words, without user and password.
    pub fn server(&self) -> String {
        match &self.place {
            Place::Tcp { host, port, .. } => format!("{host}:{port}"),
            Place::Socket(path) => path.clone(),
        }
    }

    /// The server as a URL for people.
    pub fn display(&self) -> String {
        match &self.place {
            Place::Tcp { tls: true, .. } => format!("rediss://{}", self.server()),
            Place::Tcp { .. } => format!("redis://{}", self.server()),
            Place::Socket(path) => format!("unix://{path}"),
        }
    }

    pub(super) fn apply(&self, command: &mut Command) {
        match &self.place {
            Place::Tcp { host, port, tls } => {
                command.args(["-h", host, "-p", &port.to_string()]);
                if *tls {
                    command.args(["--tls", "--sni", host]);
                }
            }
            Place::Socket(path) => {
                command.args(["-s", path]);
            }
        }
        if let Some(file) = &self.authority {
            command.args(["--cacert", file]);
        }
        if let Some(user) = &self.user {
            command.args(["--user", user]);
        }
        // What this process inherited must not be sent to another server.
        match &self.password {
            Some(password) => command.env(PASSWORD, password.reveal()),
            None => command.env_remove(PASSWORD),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let arguments = |text: &str| {
            let connection = Connection::from_url(text).unwrap();
            assert!(!format!("{connection:?} {}", connection.display()).contains("s3cret"));
            let mut command = Command::new("redis-cli");
            connection.apply(&mut command);
            let words = command.get_args().map(|a| a.to_str().unwrap().to_owned());
            let password = command.get_envs().find(|(name, _)| *name == PASSWORD);
            let password = password.unwrap().1.map(|p| p.to_str().unwrap().to_owned());
            (words.collect::<Vec<_>>().join(" "), password)
        };
        let with =
            |words: &str, password: Option<&str>| (words.to_owned(), password.map(str::to_owned));
        assert_eq!(arguments("redis://h"), with("-h h -p 6379", None));
        assert_eq!(
            arguments("redis://:s3cret%2F1@h:7/3"),
            with("-h h -p 7", Some("s3cret/1"))
        );
        assert_eq!(
            arguments("rediss://me:s3cret@[::1]/?cacert=/ca.pem"),
            with(
                "-h ::1 -p 6379 --tls --sni ::1 --cacert /ca.pem --user me",
                Some("s3cret")
            )
        );
        assert_eq!(
            arguments("unix:///run/redis/a%20b.sock"),
            with("-s /run/redis/a b.sock", None)
        );
        assert_eq!(
            arguments("unix://me:s3cret@/run/redis.sock"),
            with("-s /run/redis.sock --user me", Some("s3cret"))
        );
        for bad in [
            "redis:",
            "redis://",
            "http://h",
            "unix://",
            "redis://h/%zz",
            "hidden",
        ] {
            let error = Connection::from_url(bad);
            if bad == "redis://h/%zz" {
                assert!(error.is_ok(), "the database is not looked at");
            } else {
                assert!(!error.unwrap_err().to_string().contains("hidden"), "{bad}");
            }
        }
    }
}
