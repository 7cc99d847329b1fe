//! The unix socket on which commands find the daemon: one JSON object a line, one answer a line.
//!
//! Who may connect may open the socket's file: it is created with mode 0600, in the state directory.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::fleet::{Fleet, FleetError};

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// Make these targets durable; all if empty.
    Sync {
        /// Names.
        targets: Vec<String>,
        /// Bound on the answer.
        timeout_ms: u64,
    },
    /// What is safe now.
    Status,
    /// Make targets durable and pin them under a label.
    Snapshot(super::snapshot::Wanted),
    /// These targets were drilled, all if none is named: read what was found.
    Drilled {
        /// Names.
        targets: Vec<String>,
    },
    /// Let go of a database until this connection closes.
    Release {
        /// Name.
        target: String,
    },
}

/// One target's part of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetAnswer {
    /// Name.
    pub target: String,
    /// What is durable now, 16 hexadecimal digits.
    pub txid: Option<String>,
    /// Milliseconds that it took.
    pub ms: u64,
    /// Why not.
    pub error: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Everything asked was done.
    pub ok: bool,
    /// Each target.
    pub targets: Vec<TargetAnswer>,
}

/// Listens until dropped.
pub async fn listen(path: &Path, fleet: Arc<Fleet>) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let fleet = Arc::clone(&fleet);
        tokio::spawn(async move {
            if let Err(error) = serve(stream, &fleet).await {
                tracing::debug!(%error, "control connection ended");
            }
        });
    }
}

fn tell(fleet: &Fleet, wanted: &super::snapshot::Wanted, taken: &super::snapshot::Snapshot) {
    let label = taken.label.as_deref().unwrap_or(&wanted.label);
    let failed = taken
        .targets
        .iter()
        .filter_map(|t| Some(format!("{}: {}", t.target, t.error.as_ref()?)));
    let mut errors: Vec<String> = failed.chain(taken.error.clone()).collect();
    if !taken.ok && errors.is_empty() {
        errors.push("not every target is durable and pinned".into());
    }
    crate::notify::note_snapshot(fleet.board(), label, taken.targets.len(), errors);
}

async fn serve(stream: UnixStream, fleet: &Fleet) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let request: Request = serde_json::from_str(&line).map_err(std::io::Error::other)?;
        let mut held = None;
        let body = match request {
            Request::Sync {
                targets,
                timeout_ms,
            } => serde_json::to_vec(&sync(fleet, targets, Duration::from_millis(timeout_ms)).await),
            Request::Status => serde_json::to_vec(&crate::http::status_json(fleet.board()).await),
            Request::Snapshot(wanted) => {
                let instance = &fleet.config().instance;
                let taken = super::snapshot::snapshot(fleet, &wanted, instance).await;
                tell(fleet, &wanted, &taken);
                serde_json::to_vec(&taken)
            }
            Request::Drilled { targets } => {
                super::drills::learn(fleet, &targets).await;
                serde_json::to_vec(&Answer {
                    ok: true,
                    targets: Vec::new(),
                })
            }
            Request::Release { target } => {
                let result = fleet.release(&target).await;
                let error = match &result {
                    // What is not watched is not held: a database that vanished from its folder.
                    Ok(_) | Err(FleetError::Unknown(_)) => None,
                    Err(error) => Some(error.to_string()),
                };
                held = result.ok();
                serde_json::to_vec(&Answer {
                    ok: error.is_none(),
                    targets: vec![TargetAnswer {
                        target,
                        txid: None,
                        ms: 0,
                        error,
                    }],
                })
            }
        };
        let mut body = body.map_err(std::io::Error::other)?;
        body.push(b'\n');
        write.write_all(&body).await?;
        if held.is_some() {
            // Until the asker goes away, however it goes.
            while lines.next_line().await?.is_some() {}
            return Ok(());
        }
    }
    Ok(())
}

/// Each name once, in their order.
pub fn once(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    let is_new = |name: &String| seen.insert(name.clone());
    names.into_iter().filter(is_new).collect()
}

/// Makes targets durable, all at once.
pub async fn sync(fleet: &Fleet, targets: Vec<String>, timeout: Duration) -> Answer {
    let mut new = Vec::new();
    let names = if targets.is_empty() {
        // What was made a moment ago belongs to all, too.
        match tokio::time::timeout(timeout, fleet.look_everywhere()).await {
            Ok(failed) => new.extend(failed.into_iter().map(|(n, e)| (n, e.to_string()))),
            Err(_) => new.push((
                "new databases".to_owned(),
                "the watched folders could not be looked through in time".to_owned(),
            )),
        }
        fleet.names().await
    } else {
        once(targets)
    };
    let one = |name: String| async move {
        match tokio::time::timeout(timeout, fleet.sync(&name)).await {
            Ok(Ok(done)) => TargetAnswer {
                target: name,
                txid: Some(done.txid.to_string()),
                ms: u64::try_from(done.took.as_millis()).unwrap_or(u64::MAX),
                error: None,
            },
            Ok(Err(e)) => TargetAnswer {
                target: name,
                txid: None,
                ms: 0,
                error: Some(e.to_string()),
            },
            Err(_) => {
                let why = fleet.trouble(&name).map(|why| format!(": {why}"));
                let why = why.unwrap_or_default();
                let error = Some(format!("not durable within {} s{why}", timeout.as_secs()));
                TargetAnswer {
                    target: name,
                    txid: None,
                    ms: timeout.as_millis() as u64,
                    error,
                }
            }
        }
    };
    let mut targets = futures::future::join_all(names.into_iter().map(one)).await;
    targets.extend(new.into_iter().map(|(target, error)| TargetAnswer {
        target,
        txid: None,
        ms: 0,
        error: Some(error),
    }));
    let ok = !targets.is_empty() && targets.iter().all(|t| t.error.is_none());
    Answer { ok, targets }
}

/// A connection to a running daemon.
#[derive(Debug)]
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// `Ok(None)` if no daemon listens.
    pub async fn connect(path: &Path) -> std::io::Result<Option<Self>> {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        match UnixStream::connect(path).await {
            Ok(stream) => Ok(Some(Self(BufReader::new(stream)))),
            Err(e) if matches!(e.kind(), NotFound | ConnectionRefused) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Asks one thing.
    pub async fn ask(&mut self, request: &Request) -> std::io::Result<Answer> {
        self.ask_for(request).await
    }

    /// Asks what has an answer of its own form.
    pub async fn ask_for<T: serde::de::DeserializeOwned>(
        &mut self,
        request: &Request,
    ) -> std::io::Result<T> {
        let mut body = serde_json::to_vec(request).map_err(std::io::Error::other)?;
        body.push(b'\n');
        self.0.get_mut().write_all(&body).await?;
        let mut line = String::new();
        if self.0.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(std::io::Error::other)
    }
}
