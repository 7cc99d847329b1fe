//! The server's own client programs, and how they reach it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::JoinHandle;

use url::Url;

use super::PostgresError;
use crate::config::Secret;

/// What a program says on stderr is kept up to this: errors stand at the end of a short text.
const STDERR_MAX_BYTES: u64 = 64 * 1024;

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

/// How to reach one database. `Debug` shows no password.
#[derive(Clone, Debug)]
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

    fn apply(&self, command: &mut Command) {
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

fn decode(text: &str) -> Option<String> {
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

/// Client programs of one major.
#[derive(Clone, Debug)]
pub struct Clients {
    folder: Option<PathBuf>,
    /// The server's major version.
    pub major: u32,
    /// As `pg_dump --version` prints it.
    pub version: String,
}

impl Clients {
    /// Asks the server for its major and finds the clients of that major: `bin_dir`, else Debian's folder, else PATH. Blocks.
    ///
    /// # Errors
    /// [`PostgresError::Failed`] if the server does not answer; [`PostgresError::Client`] if no client of its major is here.
    pub fn for_server(
        connection: &Connection,
        bin_dir: Option<&Path>,
    ) -> Result<Self, PostgresError> {
        let any = Self {
            folder: bin_dir.map(Path::to_owned),
            major: 0,
            version: String::new(),
        };
        let number = any.sql(connection, "SHOW server_version_num", &[])?;
        let major = number.trim().parse::<u32>().unwrap_or(0) / 10_000;
        let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        let folder = match bin_dir {
            Some(folder) => Some(folder.to_owned()),
            None => debian.join("pg_dump").exists().then_some(debian),
        };
        let mut found = Self {
            folder,
            major,
            version: String::new(),
        };
        let output = found
            .command("pg_dump")
            .arg("--version")
            .output()
            .map_err(|e| PostgresError::Client(format!("pg_dump cannot be started: {e}")))?;
        found.version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let own = found.version.rsplit(' ').find_map(|word| {
            let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u32>().ok()
        });
        if own != Some(major) {
            return Err(PostgresError::Client(format!(
                "the server is PostgreSQL {major}, the client here is \"{}\"",
                found.version
            )));
        }
        Ok(found)
    }

    fn command(&self, program: &str) -> Command {
        match &self.folder {
            Some(folder) => Command::new(folder.join(program)),
            None => Command::new(program),
        }
    }

    /// Starts a program with pipes.
    pub(super) fn start(
        &self,
        program: &'static str,
        arguments: &[&str],
        connection: Option<&Connection>,
    ) -> Result<Running, PostgresError> {
        let mut command = self.command(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(connection) = connection {
            connection.apply(&mut command);
        }
        let mut child = command
            .spawn()
            .map_err(|e| PostgresError::Client(format!("{program} cannot be started: {e}")))?;
        let said = child.stderr.take().map(listen);
        Ok(Running {
            program,
            child,
            said,
        })
    }

    /// Runs SQL, with `values` as psql's variables (`:'name'` and `:"name"` quote them), and returns the rows as text. Blocks.
    ///
    /// # Errors
    /// [`PostgresError::Failed`].
    pub fn sql(
        &self,
        connection: &Connection,
        sql: &str,
        values: &[(&str, &str)],
    ) -> Result<String, PostgresError> {
        let values: Vec<String> = values.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mut arguments = vec!["-XAtqw", "-v", "ON_ERROR_STOP=1", "-f", "-"];
        for value in &values {
            arguments.extend(["-v", value]);
        }
        let mut running = self.start("psql", &arguments, Some(connection))?;
        if let Some(mut stdin) = running.child.stdin.take() {
            // A psql that cannot connect reads nothing: its exit status says why.
            let _ = stdin.write_all(sql.as_bytes());
        }
        let mut out = String::new();
        if let Some(mut stdout) = running.child.stdout.take() {
            stdout
                .read_to_string(&mut out)
                .map_err(|e| PostgresError::Io("reading from psql", e))?;
        }
        running.finish()?;
        Ok(out)
    }
}

fn listen(mut stderr: ChildStderr) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        // A broken pipe ends the text; the exit status decides.
        let _ = stderr
            .by_ref()
            .take(STDERR_MAX_BYTES)
            .read_to_end(&mut text);
        let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        String::from_utf8_lossy(&text).trim().to_owned()
    })
}

/// A program with pipes; killed if dropped before [`Running::finish`].
pub(super) struct Running {
    program: &'static str,
    pub(super) child: Child,
    said: Option<JoinHandle<String>>,
}

impl Running {
    /// Waits for its end, which must be exit status 0.
    pub(super) fn finish(mut self) -> Result<(), PostgresError> {
        let status = self
            .child
            .wait()
            .map_err(|e| PostgresError::Io("waiting for a client", e))?;
        let said = self.said.take().and_then(|t| t.join().ok());
        if status.success() {
            return Ok(());
        }
        let said = said.filter(|s| !s.is_empty());
        Err(PostgresError::Failed {
            program: self.program,
            why: said.unwrap_or_else(|| status.to_string()),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
