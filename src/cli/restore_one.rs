//! One SQLite database of a restore: first everything that changes nothing, then the swap.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::args::{Global, RestoreArgs};
use super::restore::{Job, Source, is_blank};
use super::restore_all::leave;
use super::restore_options as options;
use super::{Failure, counted};
use crate::config::Config;
use crate::daemon::control::{Client, Request};
use crate::daemon::fleet::{open_replica, socket_path, system_now};
use crate::daemon::snapshot::Wanted;
use crate::labels;
use crate::restore::edit::Edit;
use crate::restore::plan::PlanError;
use crate::restore::swap::{self, Claim, SwapError, kept_for_undo, undo_claimed};
use crate::restore::{Output, Ready, Report, RestoreError, Tried, Verify, prepare};
use crate::types::Millis;

/// The bound on pinning the present state before a restore in place.
const PIN_TIMEOUT_MS: u64 = 30_000;

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|e| RestoreError::Local(std::io::Error::other(e)))??)
}

/// One target, with everything done that changes nothing.
pub(super) struct Prepared {
    job: Job,
    step: Step,
    /// While this lives, the daemon keeps away from the database.
    _released: Option<Client>,
}

enum Step {
    /// `--dry-run` said it all.
    Told,
    Undo(Option<Claim>),
    Put(Box<Ready>),
}

/// `None`: with --if-replica-exists, if the replica vanished meanwhile.
pub(super) async fn prepared(
    global: &Global,
    args: &RestoreArgs,
    config: Option<&Config>,
    job: Job,
    sources: Vec<Source>,
    edit: &Edit,
    pins: &mut Vec<Pinned>,
) -> Result<Option<Prepared>, Failure> {
    let path = job.output.path().to_owned();
    if args.dry_run {
        if args.undo {
            let back = kept_for_undo(&path).map_err(RestoreError::from)?.path;
            if global.json {
                println!(
                    "{}",
                    json!({ "target": job.name, "kind": "sqlite", "dry-run": true, "back": back })
                );
            } else {
                println!(
                    "{}: {} would be put back; nothing was changed",
                    job.name,
                    back.display()
                );
            }
        } else {
            dry_run(global, &job, &sources)?;
            if !global.json {
                options::announce(&job.name, edit);
            }
        }
        return Ok(Some(Prepared {
            job,
            step: Step::Told,
            _released: None,
        }));
    }
    // The daemon lets go of the database until this ends.
    let released = match (config, &job.output) {
        (Some(config), Output::InPlace(_)) => {
            pins.extend(pin_present(config, &job.name, &path).await);
            release(config, &job.name).await?
        }
        _ => None,
    };
    if let (Output::InPlace(path), false) = (&job.output, args.undo) {
        // Before a download of hours; it is looked at again, and locked, when it is replaced.
        let path = path.clone();
        blocking(move || Ok(swap::look(&path)?)).await?;
    }
    if let Some(folder) = path
        .parent()
        .filter(|p| args.all && !p.as_os_str().is_empty())
    {
        std::fs::create_dir_all(folder)
            .map_err(|e| Failure::new(1, format!("{}: {e}", folder.display()), None))?;
    }
    let step = if args.undo {
        Step::Undo(None)
    } else {
        match from_any(&job, sources, options::verify(args), edit).await {
            Err(RestoreError::Plan(e)) if args.if_replica_exists && e != PlanError::NoBase => {
                leave(global, &job.name, "absent", &e.to_string());
                return Ok(None);
            }
            result => Step::Put(Box::new(result?)),
        }
    };
    Ok(Some(Prepared {
        job,
        step,
        _released: released,
    }))
}

impl Prepared {
    pub(super) fn name(&self) -> &str {
        &self.job.name
    }

    /// Nobody may have it open from here on. Blocks.
    pub(super) fn claim(&mut self) -> Result<(), RestoreError> {
        match &mut self.step {
            Step::Told => Ok(()),
            Step::Undo(claim) => {
                *claim = swap::claim_undo(self.job.output.path())?;
                Ok(())
            }
            Step::Put(ready) => ready.claim(),
        }
    }

    /// Puts it in place, and says so.
    pub(super) async fn finish(
        self,
        global: &Global,
        args: &RestoreArgs,
        now: Millis,
    ) -> Result<(), Failure> {
        let path = self.job.output.path().to_owned();
        let job = self.job;
        match self.step {
            Step::Told => Ok(()),
            Step::Undo(claim) => {
                let (back, kept) = blocking(move || Ok(undo_claimed(&path, claim, now)?)).await?;
                if global.json {
                    println!(
                        "{}",
                        json!({ "target": job.name, "kind": "sqlite", "back": back, "kept": kept })
                    );
                    return Ok(());
                }
                match kept {
                    Some(kept) => println!(
                        "{}: {} is back; the database that it replaced is {}",
                        job.name,
                        back.display(),
                        kept.display()
                    ),
                    None => println!(
                        "{}: {} is back; nothing was there",
                        job.name,
                        back.display()
                    ),
                }
                Ok(())
            }
            Step::Put(ready) => {
                let report = blocking(move || ready.put(now)).await?;
                tell(global, args, &job, &report);
                Ok(())
            }
        }
    }
}

fn tell(global: &Global, args: &RestoreArgs, job: &Job, report: &Report) {
    let path = job.output.path();
    if global.json {
        let value = json!({
            "target": job.name, "path": path, "txid": report.plan.txid().map(|t| t.to_string()), "as_of": report.plan.as_of().to_string(),
            "bytes": report.bytes, "files": report.plan.objects().len(), "checksum": format!("{:016x}", report.checksum.get()),
            "checksum_recorded": report.checksum_known, "edited": report.edited, "tried": tried(job), "kept": report.kept, "seconds": report.took.as_secs_f64(),
        });
        println!("{value}");
        return;
    }
    println!(
        "{}: {} is the database at {} ({} bytes from {} in {:.1} s; checksum {})",
        job.name,
        path.display(),
        report.plan.point(),
        report.bytes,
        counted(report.plan.objects().len() as u64, "file"),
        report.took.as_secs_f64(),
        if report.checksum_known {
            "equals the recorded one"
        } else {
            "not recorded by the replica"
        },
    );
    if let (Some(newest), true) = (job.tried.first(), args.last_good) {
        match newest.wrong {
            None => println!("{}: this is the newest point, and it is sound", job.name),
            Some(_) => println!(
                "{}: the newest sound point of {} that were tried; what was committed later is not in it",
                job.name,
                job.tried.len()
            ),
        }
    }
    options::tell(&job.name, &report.edited, args);
    if let Some(kept) = &report.kept {
        println!(
            "{}: the old database is kept as {}; `lifeboat restore {} --undo` swaps it back",
            job.name,
            kept.display(),
            job.name
        );
    }
}

fn tried(job: &Job) -> Vec<serde_json::Value> {
    let one = |t: &Tried| json!({ "txid": t.point.txid.to_string(), "at": t.point.at.to_string(), "wrong": t.wrong });
    job.tried.iter().map(one).collect()
}

/// What is there now stays restorable from the store, too. At 3 a.m. a store or database that does not allow it must not stop a restore: the
/// old files are kept beside the database in any case.
async fn pin_present(config: &Config, name: &str, path: &Path) -> Option<Pinned> {
    if !path.exists() || is_blank(path) {
        return None;
    }
    let wanted = Wanted {
        targets: vec![name.to_owned()],
        label: labels::auto("before-restore", system_now()),
        version: None,
        timeout_ms: PIN_TIMEOUT_MS,
        files: Vec::new(),
    };
    let timeout = Duration::from_millis(PIN_TIMEOUT_MS);
    let why =
        match super::snapshot::anywhere(config.clone(), wanted, timeout, config.shutdown_timeout)
            .await
        {
            Ok(done) => match (done.label, done.targets.into_iter().find_map(|t| t.error)) {
                (Some(label), None) => {
                    eprintln!("{name}: what is there now is pinned as {label}");
                    let target = name.to_owned();
                    return Some(Pinned { target, label });
                }
                (_, Some(error)) => error,
                (None, None) => done.error.unwrap_or_else(|| "no answer".into()),
            },
            Err(failure) => failure.message,
        };
    eprintln!(
        "{name}: what is there now could not be pinned in the store ({why}); the old files are kept beside the database"
    );
    None
}

/// A label of what was there before a restore in place.
pub(super) struct Pinned {
    target: String,
    label: String,
}

impl Pinned {
    /// Nothing was changed, so what it pins needs no label: only so many of them are kept, and those of restores that did something would have to
    /// give way.
    pub(super) async fn take_back(self, config: &Config) {
        let Self { target, label } = self;
        let known = config.targets.iter().find(|t| t.name == target);
        for store in known.iter().flat_map(|t| &t.options.stores) {
            let deleted = async {
                let store = open_replica(store, &target).await?;
                labels::delete_named(&store, &label).await
            };
            let bound = Duration::from_millis(PIN_TIMEOUT_MS);
            let why = match tokio::time::timeout(bound, deleted).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".into(),
            };
            tracing::warn!(
                target_name = target,
                label,
                why,
                "the pin of a restore that changed nothing stays"
            );
        }
    }
}

async fn release(config: &Config, name: &str) -> Result<Option<Client>, Failure> {
    let failed = |why: String| {
        Failure::new(
            4,
            format!("the daemon did not let go of {name}: {why}; nothing was changed"),
            Some("stop it, then restore again".into()),
        )
    };
    let Some(mut client) = Client::connect(&socket_path(config))
        .await
        .map_err(|e| failed(e.to_string()))?
    else {
        return Ok(None);
    };
    let answer = client
        .ask(&Request::Release {
            target: name.to_owned(),
        })
        .await
        .map_err(|e| failed(e.to_string()))?;
    match answer.targets.into_iter().find_map(|t| t.error) {
        Some(error) => Err(failed(error)),
        None => Ok(Some(client)),
    }
}

/// From the best store; where it fails, from another one that holds the same point. An older point is for a person to choose.
async fn from_any(
    job: &Job,
    sources: Vec<Source>,
    verify: Verify,
    edit: &Edit,
) -> Result<Ready, RestoreError> {
    let mut sources = sources.into_iter().peekable();
    loop {
        let source = sources.next().ok_or(PlanError::Empty)?;
        let (bar, output) = (progress(), job.output.clone());
        let ticks = bar.clone();
        let count = move |n| ticks.inc(n);
        let (store, goal, edit) = (&source.store, source.goal, edit.clone());
        let result = prepare(store, goal, output, verify, edit, count).await;
        bar.finish_and_clear();
        let is_stores_fault = matches!(
            result,
            Err(RestoreError::Store(_)
                | RestoreError::Corrupt { .. }
                | RestoreError::Hole(_)
                | RestoreError::Checksum { .. })
        );
        let same = |other: &Source| {
            source.plan.txid().is_some() && other.plan.txid() == source.plan.txid()
        };
        match result {
            Err(error) if is_stores_fault && sources.peek().is_some_and(same) => {
                eprintln!(
                    "{}: {}: {error}; trying the next store, which holds the same point",
                    job.name,
                    store.display()
                );
            }
            result => return result,
        }
    }
}

fn dry_run(global: &Global, job: &Job, sources: &[Source]) -> Result<(), Failure> {
    let Some(Source { store, plan, .. }) = sources.first() else {
        return Ok(());
    };
    let objects = plan.objects();
    let bytes: u64 = objects.iter().map(|o| o.1).sum();
    let path = job.output.path();
    if matches!(job.output, Output::New(_)) && path.exists() {
        return Err(RestoreError::from(SwapError::Exists(path.to_owned())).into());
    }
    if global.json {
        let files: Vec<_> = objects
            .iter()
            .map(|(name, bytes)| json!({ "file": name, "bytes": bytes }))
            .collect();
        println!(
            "{}",
            json!({ "target": job.name, "store": store.display(), "txid": plan.txid().map(|t| t.to_string()), "as_of": plan.as_of().to_string(), "bytes": bytes, "files": files })
        );
        return Ok(());
    }
    println!(
        "{}: {} to {}: {bytes} bytes to read from {}",
        job.name,
        plan.point(),
        path.display(),
        store.display(),
    );
    for (name, bytes) in &objects {
        println!("  {name} {bytes} bytes");
    }
    Ok(())
}

fn progress() -> indicatif::ProgressBar {
    if std::io::stderr().is_terminal() {
        indicatif::ProgressBar::new_spinner()
    } else {
        indicatif::ProgressBar::hidden()
    }
}
