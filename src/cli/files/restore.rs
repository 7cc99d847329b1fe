//! `lifeboat restore` of files.

use std::path::PathBuf;

use serde_json::json;

use super::{DAMAGED, NAMED, blocking};
use crate::cli::args::{Global, RestoreArgs};
use crate::cli::restore_all::Planned;
use crate::cli::{Failure, ok, restore_undo};
use crate::config::{Config, FilesConfig, parse_time};
use crate::daemon::files::{left_out, open_in};
use crate::files::{self, FilesError, Goal, LeftOut, Output, Point, Restored, Target, Undone};

fn goal(config: &Config, args: &RestoreArgs) -> Result<Goal, Failure> {
    let usage = |text: String, hint: &str| Failure::new(2, text, Some(hint.into()));
    let goal = match (&args.at, &args.label, &args.snapshot) {
        (Some(at), _, _) => {
            let at = parse_time(at, jiff::Timestamp::now(), &config.time_zone)
                .map_err(|e| usage(format!("--at: {e}"), "`lifeboat list` shows what there is"))?;
            let at = jiff::Timestamp::from_millisecond(at.0)
                .map_err(|e| usage(format!("--at: {e}"), "`lifeboat list` shows what there is"))?;
            Goal::At(at)
        }
        (_, Some(label), _) => Goal::Label(label.clone()),
        (_, _, Some(id)) => Goal::Id(id.clone()),
        (None, None, None) => Goal::Newest,
    };
    Ok(goal)
}

/// What is to be done with one target, planned.
pub(in crate::cli) struct Job {
    name: String,
    work: Work,
}

enum Work {
    /// The stores that have it, the best first.
    Restore(Vec<(Target, Point)>, Output),
    /// What the last restore in place kept.
    Undo(Box<FilesConfig>, LeftOut),
}

impl Job {
    /// The folder that it fills, and the target's name.
    pub(in crate::cli) fn folder(&self) -> Option<(PathBuf, String)> {
        match &self.work {
            Work::Restore(_, Output::Folder(folder)) => Some((folder.clone(), self.name.clone())),
            _ => None,
        }
    }

    pub(in crate::cli) fn name(&self) -> &str {
        &self.name
    }

    /// When what an undo would put back was replaced, as its place is named.
    pub(in crate::cli) fn replaced(&self) -> Option<String> {
        let Work::Undo(config, _) = &self.work else {
            return None;
        };
        let kept = files::kept(config, None).ok()?;
        kept.into_iter().map(|back| back.time).max()
    }

    /// Does it; returns what to say of it.
    pub(in crate::cli) async fn run(
        self,
        global: &Global,
        args: &RestoreArgs,
    ) -> Result<String, Failure> {
        let name = self.name;
        match self.work {
            Work::Undo(files, _) if args.dry_run => {
                let path = args.path.clone();
                let found = files::kept(&files, path.as_deref())?;
                if global.json {
                    let back = found
                        .iter()
                        .map(|b| json!({ "path": b.path, "kept": b.kept }));
                    let back: Vec<_> = back.collect();
                    println!(
                        "{}",
                        json!({ "target": name, "kind": "files", "dry-run": true, "back": back })
                    );
                    return Ok(format!("target={name} dry-run"));
                }
                for back in found {
                    let path = back.path.display();
                    match &back.kept {
                        Some(kept) => println!("{name}: would swap {} back", kept.display()),
                        None => println!("{name}: would move {path} aside: nothing was there"),
                    }
                }
                Ok(format!("target={name} dry-run"))
            }
            Work::Undo(files, left_out) => {
                let path = args.path.clone();
                let done =
                    blocking(move || files::undo(&files, &left_out, path.as_deref())).await?;
                undone(global, &name, &done);
                Ok(format!("target={name} undone"))
            }
            Work::Restore(sources, _) if args.dry_run => {
                if let Some((target, point)) = sources.first() {
                    would(global, &name, target, point);
                }
                Ok(format!("target={name} dry-run"))
            }
            Work::Restore(sources, output) => {
                let (done, instead_of) = from_any(&name, sources, &output, args).await?;
                told(global, &name, &done, instead_of.as_ref())?;
                Ok(format!(
                    "target={name} snapshot={} files={} checked",
                    done.point.short(),
                    done.files
                ))
            }
        }
    }
}

/// Whether a snapshot holds less than another: it is older, or partial beside a complete one.
fn is_less(point: &Point, best: &Point) -> bool {
    (!point.partial, point.time) < (!best.partial, best.time)
}

/// From the first store that can; what a failed one left is taken away before the next is asked. With it the better snapshot that could not be
/// restored, and its store.
async fn from_any(
    name: &str,
    sources: Vec<(Target, Point)>,
    output: &Output,
    args: &RestoreArgs,
) -> Result<(Restored, Option<(String, Point)>), Failure> {
    let mut left = sources.len();
    let mut first: Option<Failure> = None;
    let best = sources
        .first()
        .map(|(target, point)| (target.store.display(), point.clone()));
    for (target, point) in sources {
        left -= 1;
        let older = best.as_ref().filter(|(_, best)| is_less(&point, best));
        if let Some((store, best)) = older {
            eprintln!(
                "{name}: warning: going on with an older snapshot, {}{} of {:.0} in {}, because {} of {:.0} in {store} cannot be restored",
                if point.partial { "partial " } else { "" },
                point.short(),
                point.time,
                target.store.display(),
                best.short(),
                best.time
            );
        }
        let (goal, output, path) = (Goal::Id(point.id), output.clone(), args.path.clone());
        let last = left == 0;
        let done = tokio::task::spawn_blocking(move || {
            files::restore(&target, &goal, path.as_deref(), &output, !last)
        })
        .await
        .map_err(|e| Failure::new(1, format!("the work broke off: {e}"), None))?;
        match done {
            Ok(done) => return Ok((done, older.cloned())),
            Err(error) if error.is_local() || (last && first.is_none()) => return Err(error.into()),
            Err(error) => {
                eprintln!("{name}: {error}");
                first.get_or_insert(error.into());
            }
        }
    }
    Err(first.unwrap_or_else(|| Failure::new(3, format!("{name} is in no store"), None)))
}

/// Every target of files, for `--all`. Without a place only folders that are missing or empty are restored.
pub(in crate::cli) async fn plan_all(
    config: &Config,
    args: &RestoreArgs,
) -> Result<Vec<Planned<Job>>, Failure> {
    let mut all = Vec::new();
    for files in &config.files {
        let name = &files.name;
        if args.undo {
            all.push(match files::kept(files, None) {
                Ok(_) => Planned::Job(undo(config, files)),
                Err(error @ (FilesError::NothingKept(_) | FilesError::UndoneAlready { .. })) => {
                    Planned::Absent(name.clone(), error.to_string())
                }
                Err(error) => return Err(error.into()),
            });
            continue;
        }
        let output = match &args.output {
            Some(folder) => {
                let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
                Output::Folder(folder.join(name))
            }
            None => Output::InPlace,
        };
        let left_out = left_out(config);
        let full = |path: &PathBuf| files::has_content(files, &left_out, path);
        let there = match &output {
            Output::Folder(folder) => match std::fs::read_dir(folder) {
                Ok(mut entries) => entries.next().is_some(),
                Err(_) => folder.exists(),
            },
            Output::InPlace => !args.in_place && files.paths.iter().any(full),
        };
        if there && args.if_not_exists {
            all.push(Planned::Exists(name.clone(), "there are files".into()));
            continue;
        }
        if there {
            return Err(Failure::new(
                4,
                format!("{name}: there are files; nothing was changed"),
                Some("--in-place keeps them aside; --if-not-exists leaves them alone".into()),
            ));
        }
        let is_nothing = |(_, point): &(Target, Point)| point.ours && point.files == 0;
        all.push(match sources(config, files, args).await {
            // An app without uploads: there is nothing to bring at every start.
            Ok(sources)
                if args.if_not_exists
                    && matches!(output, Output::InPlace)
                    && sources.iter().all(is_nothing) =>
            {
                Planned::Exists(name.clone(), "its snapshot holds no files".into())
            }
            Ok(sources) => Planned::Job(Job {
                name: name.clone(),
                work: Work::Restore(sources, output),
            }),
            Err(failure) if failure.code == 3 && args.if_replica_exists => {
                Planned::Absent(name.clone(), failure.message)
            }
            Err(failure) => return Err(failure.of(name)),
        });
    }
    Ok(all)
}

fn undo(config: &Config, files: &FilesConfig) -> Job {
    Job {
        name: files.name.clone(),
        work: Work::Undo(Box::new(files.clone()), left_out(config)),
    }
}

/// The stores that hold what is wanted, the best first: the newest snapshot, and of equal ones the first store.
async fn sources(
    config: &Config,
    files: &FilesConfig,
    args: &RestoreArgs,
) -> Result<Vec<(Target, Point)>, Failure> {
    let goal = goal(config, args)?;
    let mut found = Vec::new();
    let mut failed: Option<Failure> = None;
    for store in &files.stores {
        let one = async {
            let target = open_in(config, files, store).await?;
            let (listing, goal) = (target.clone(), goal.clone());
            let point = blocking(move || files::locate(&listing, &goal));
            Ok::<_, Failure>((target, point.await?))
        };
        match one.await {
            Ok(source) => found.push(source),
            Err(failure) => {
                if files.stores.len() > 1 {
                    eprintln!("{}: {}", files.name, failure.message);
                }
                failed = Some(Failure::of_stores(failed, failure));
            }
        }
    }
    // Stable: of equal ones the first store's.
    found.sort_by_key(|(_, p)| std::cmp::Reverse((!p.partial, p.time)));
    match failed {
        Some(failure) if found.is_empty() => Err(failure),
        _ => Ok(found),
    }
}

pub(in crate::cli) async fn restore(
    global: &Global,
    config: &Config,
    files: &FilesConfig,
    args: &RestoreArgs,
) -> Result<(), Failure> {
    let output = match (&args.output, args.in_place || args.undo) {
        (Some(folder), _) => {
            Output::Folder(std::path::absolute(folder).unwrap_or_else(|_| folder.clone()))
        }
        (None, true) => Output::InPlace,
        (None, false) => {
            return Err(Failure::new(
                2,
                format!("where should \"{}\" be restored?", files.name),
                Some("add -o FOLDER, or --in-place, which keeps the old content for --undo".into()),
            ));
        }
    };
    let job = if args.undo {
        undo(config, files)
    } else {
        Job {
            name: files.name.clone(),
            work: Work::Restore(sources(config, files, args).await?, output),
        }
    };
    restore_undo::begin(config, args);
    let words = job.run(global, args).await?;
    ok(&format!("restore {words}"));
    Ok(())
}

fn would(global: &Global, name: &str, target: &Target, point: &Point) {
    let store = target.store.display();
    if global.json {
        println!(
            "{}",
            json!({ "target": name, "kind": "files", "store": store, "would_restore": point })
        );
        return;
    }
    println!(
        "{name}: would restore snapshot {} of {:.0}: {} files, {} bytes from {store}",
        point.short(),
        point.time,
        point.files,
        point.bytes
    );
}

fn undone(global: &Global, name: &str, done: &[Undone]) {
    if global.json {
        println!(
            "{}",
            json!({ "target": name, "kind": "files", "undone": done })
        );
        return;
    }
    for one in done {
        println!(
            "{name}: {} is as it was before the restore",
            one.path.display()
        );
        if let Some(kept) = &one.kept {
            println!(
                "{name}: what it replaced is in {}; delete it when it is not needed",
                kept.display()
            );
        }
    }
}

fn told(
    global: &Global,
    name: &str,
    done: &Restored,
    instead_of: Option<&(String, Point)>,
) -> Result<(), Failure> {
    if global.json {
        let instead_of = instead_of
            .map(|(store, p)| json!({ "store": store, "snapshot": p.id, "time": p.time }));
        println!(
            "{}",
            json!({ "target": name, "kind": "files", "restore": done, "instead_of": instead_of })
        );
    } else {
        for path in &done.paths {
            println!(
                "{name}: {} is as in snapshot {} of {:.0}",
                path.display(),
                done.point.short(),
                done.point.time
            );
        }
        println!(
            "{name}: {} files, {} bytes in {:.1} s",
            done.files,
            done.bytes,
            done.took.as_secs_f64()
        );
        for kept in &done.kept {
            println!(
                "{name}: the old content is kept in {}; `lifeboat restore {name} --undo` swaps it back",
                kept.display()
            );
        }
        for line in done.differences.iter().take(NAMED) {
            println!("    {line}");
        }
    }
    if done.point.partial {
        tracing::warn!(
            snapshot = done.point.short(),
            "this snapshot is partial: some files could not be read when it was made"
        );
    }
    if done.differences_count > 0 {
        return Err(Failure::new(
            DAMAGED,
            format!(
                "{} things are not as in the snapshot; see above",
                done.differences_count
            ),
            Some(
                "owners, devices and some attributes can be set by root only: restore as root"
                    .into(),
            ),
        ));
    }
    Ok(())
}
