//! The server's own client programs, and how they reach it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Connection, PostgresError};

/// What a program says on stderr is kept up to this: errors stand at the end of a short text.
const STDERR_MAX_BYTES: u64 = 64 * 1024;

/// Client programs of one major.
#[derive(Clone, Debug)]
pub struct Clients {
    folder: Option<PathBuf>,
    /// The server's major version.
    pub major: u32,
    /// As `pg_dump --version` prints it.
    pub version: String,
    stop: Option<Stop>,
}

/// Ends programs at work, from another thread.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Mutex<Stopping>>);

#[derive(Debug, Default)]
struct Stopping {
    asked: bool,
    programs: Vec<OwnedFd>,
}

impl Stop {
    /// Kills what runs, and what is started from now on.
    pub fn stop(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked = true;
        for program in state.programs.drain(..) {
            // Gone already is fine: the descriptor never means another process.
            let _ = pidfd_send_signal(&program, Signal::KILL);
        }
    }

    /// Whether it was asked for.
    pub fn is_stopped(&self) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked
    }

    fn watch(&self, child: &Child) {
        let pid = Pid::from_raw(child.id().cast_signed());
        let Some(Ok(program)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
            return;
        };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.asked {
            let _ = pidfd_send_signal(&program, Signal::KILL);
        } else {
            state.programs.push(program);
        }
    }
}

/// Calls [`Stop::stop`] when dropped: whoever waits for work on another thread may be dropped himself.
#[derive(Debug)]
pub struct StopOnDrop(pub Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
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
        let any = Self::any(bin_dir);
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
            stop: None,
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

    /// Programs that depend on no server's version.
    pub(crate) fn any(folder: Option<&Path>) -> Self {
        Self {
            folder: folder.map(Path::to_owned),
            major: 0,
            version: String::new(),
            stop: None,
        }
    }

    /// Starts a program with pipes.
    pub(super) fn start(
        &self,
        program: &'static str,
        arguments: &[&str],
        connection: Option<&Connection>,
    ) -> Result<Running, PostgresError> {
        self.spawn(program, |command| {
            command.args(arguments);
            if let Some(connection) = connection {
                connection.apply(command);
            }
        })
    }

    /// Starts a program with pipes; `prepare` gives it arguments and environment.
    pub(crate) fn spawn(
        &self,
        program: &'static str,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Running, PostgresError> {
        let mut command = self.command(program);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        prepare(&mut command);
        let mut child = command
            .spawn()
            .map_err(|e| PostgresError::Client(format!("{program} cannot be started: {e}")))?;
        let said = child.stderr.take().map(listen);
        let running = Running {
            program,
            child,
            said,
        };
        if let Some(stop) = &self.stop {
            stop.watch(&running.child);
        }
        Ok(running)
    }

    /// The same, with programs that end when `stop` says so.
    #[must_use]
    pub fn stopped_by(&self, stop: &Stop) -> Self {
        Self {
            stop: Some(stop.clone()),
            ..self.clone()
        }
    }

    /// Opens a session that stays open between questions.
    pub(super) fn session(&self, connection: &Connection) -> Result<Session, PostgresError> {
        let arguments = ["-XAtqw", "-v", "ON_ERROR_STOP=1", "-f", "-"];
        let mut running = self.start("psql", &arguments, Some(connection))?;
        let out = running.child.stdout.take();
        Ok(Session {
            out: out.map(BufReader::new),
            running,
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
        let (out, ended) = self.sql_said(connection, sql, values)?;
        ended?;
        Ok(out)
    }

    /// The same, with what came before a failure. Blocks.
    pub(super) fn sql_said(
        &self,
        connection: &Connection,
        sql: &str,
        values: &[(&str, &str)],
    ) -> Result<(String, Result<(), PostgresError>), PostgresError> {
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
        let ended = running.finish();
        Ok((out, ended))
    }
}

/// A session of psql.
pub(super) struct Session {
    running: Running,
    out: Option<BufReader<ChildStdout>>,
}

impl Session {
    /// Asks for one line.
    pub(super) fn ask(&mut self, sql: &str) -> Result<String, PostgresError> {
        let failed = |e| PostgresError::Io("talking to psql", e);
        if let Some(stdin) = &mut self.running.child.stdin {
            // A psql that cannot connect reads nothing; its end says why.
            let _ = writeln!(stdin, "{sql}").and_then(|()| stdin.flush());
        }
        let mut line = String::new();
        if let Some(out) = &mut self.out {
            out.read_line(&mut line).map_err(failed)?;
        }
        if line.is_empty() {
            drop(self.running.child.stdin.take());
            return Err(self.running.failure());
        }
        Ok(line)
    }

    /// Closes it.
    pub(super) fn end(mut self) -> Result<(), PostgresError> {
        drop(self.running.child.stdin.take());
        self.running.finish()
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
pub(crate) struct Running {
    program: &'static str,
    pub(crate) child: Child,
    said: Option<JoinHandle<String>>,
}

impl Running {
    /// Waits for its end, and says why it is one.
    fn failure(&mut self) -> PostgresError {
        match self.wait() {
            Err(error) => error,
            Ok(()) => PostgresError::Failed {
                program: self.program,
                why: "it ended without an answer".into(),
            },
        }
    }

    /// Waits for its end, which must be exit status 0.
    pub(crate) fn finish(mut self) -> Result<(), PostgresError> {
        self.wait()
    }

    fn wait(&mut self) -> Result<(), PostgresError> {
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
