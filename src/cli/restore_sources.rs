//! Where a restore of a SQLite database reads: every store that answers, the best first.

use super::args::RestoreArgs;
use super::restore::{Job, Source};
use super::{Failure, restore_options as options};
use crate::config::{Config, TargetConfig};
use crate::daemon::fleet::open_replica;
use crate::restore::plan::{Goal, Plan, PlanError};
use crate::restore::swap::SwapError;
use crate::restore::{GONE, Output, Planned, RestoreError, planned};
use crate::store::{Store, StoreSpec};
use crate::types::Txid;

/// Plans from every store that answers.
pub(super) async fn sources(
    job: &mut Job,
    args: &RestoreArgs,
    config: Option<&Config>,
    mut goal: Goal,
) -> Result<Vec<Source>, Failure> {
    if args.last_good {
        let path = job.output.path();
        if matches!(job.output, Output::New(_)) && path.exists() {
            return Err(RestoreError::from(SwapError::Exists(path.to_owned())).into());
        }
        let found = options::newest_good(&job.name, &job.stores, path, args).await;
        (goal, job.tried) = found.map_err(|new| Failure::of_stores(job.unopened.take(), new))?;
    }
    let mut found = Vec::new();
    let mut failed = job.unopened.take();
    // The newest file behind a hole in a chain, and what was said of it.
    let mut torn: Option<(Txid, Failure)> = None;
    for store in &job.stores {
        let source = async {
            let goal = match &args.label {
                Some(label) => super::labels::goal(store, label, config, args.all).await?,
                None => goal,
            };
            Ok::<_, Failure>((goal, planned(store, goal).await))
        };
        let source = match source.await {
            Ok((goal, Ok((plan, catalog)))) => {
                if let Planned::Ltx(plan) = &plan {
                    fast_clock(&job.name, plan, catalog.passed_over(plan, goal));
                }
                Ok(Source {
                    store: store.clone(),
                    goal,
                    plan,
                })
            }
            Ok((_, Err(error))) => {
                if let RestoreError::Hole(hole) = &error
                    && torn
                        .as_ref()
                        .is_none_or(|(newest, _)| *newest < hole.newest)
                {
                    torn = Some((hole.newest, RestoreError::Hole(*hole).into()));
                }
                Err(no_plan(error))
            }
            Err(failure) => Err(failure),
        };
        match source {
            Ok(source) => found.push(source),
            Err(failure) => {
                if job.stores.len() > 1 {
                    eprintln!("{}: {}: {}", job.name, store.display(), failure.message);
                }
                failed = Some(Failure::of_stores(failed, failure));
            }
        }
    }
    // Stable: of equal points the first store's.
    found.sort_by_key(|s| std::cmp::Reverse((s.plan.as_of(), s.plan.txid())));
    let Some(best) = found.first() else {
        return failed.map_or(Ok(found), Err);
    };
    // Another store is as good only if it reaches as far.
    match (torn, best.plan.txid()) {
        (Some((newest, mut failure)), Some(txid)) if txid < newest => {
            failure.hint = Some(format!(
                "to have the last point that can be restored, from {}: --txid {txid}",
                best.store.display()
            ));
            Err(failure)
        }
        _ => Ok(found),
    }
}

/// The point before the first one that is dated later never holds a later change, but it may lack some.
fn fast_clock(name: &str, plan: &Plan, passed_over: usize) {
    if passed_over > 0 {
        eprintln!(
            "{name}: after TXID {} {} also dated at or before that time, behind one that is dated later: a clock was fast; `lifeboat list {name}` shows them, --txid restores one",
            plan.reaches,
            match passed_over {
                1 => "1 point is".to_owned(),
                n => format!("{n} points are"),
            },
        );
    }
}

/// Files without a base are no new target: something was there, and an app that starts without it would hide that.
pub(super) fn no_plan(error: RestoreError) -> Failure {
    let is_torn = matches!(error, RestoreError::Plan(PlanError::NoBase));
    let mut failure = Failure::from(error);
    if is_torn {
        failure.code = 5;
        failure.hint = Some(GONE.into());
    }
    failure
}

pub(super) async fn from_url(url: &str, args: &RestoreArgs) -> Result<Job, Failure> {
    let spec = StoreSpec::from_text(url)?;
    let store = Store::open(&spec).await?;
    let output = args.output.clone().ok_or_else(|| {
        Failure::new(
            2,
            "restoring from a URL needs a place",
            Some("add -o PATH".into()),
        )
    })?;
    Ok(Job {
        name: url.to_owned(),
        stores: vec![store],
        unopened: None,
        output: Output::New(output),
        tried: Vec::new(),
    })
}

pub(super) async fn job(
    target: &TargetConfig,
    args: &RestoreArgs,
    all: bool,
) -> Result<Job, Failure> {
    let mut stores = Vec::new();
    let mut failed = None;
    let own = match &args.from {
        Some(url) => {
            stores.push(Store::open(&StoreSpec::from_text(url)?).await?);
            &[]
        }
        None => target.options.stores.as_slice(),
    };
    for store in own {
        match open_replica(store, &target.name).await {
            Ok(store) => stores.push(store),
            Err(error) => {
                eprintln!("{}: {error}", target.name);
                failed.get_or_insert(Failure::from(error));
            }
        }
    }
    if stores.is_empty()
        && let Some(failure) = failed
    {
        return Err(failure);
    }
    let output = match &args.output {
        Some(folder) if all => {
            Output::New(folder.join(target.path.file_name().unwrap_or_default()))
        }
        Some(path) => Output::New(path.clone()),
        None if args.in_place || args.undo => Output::InPlace(target.path.clone()),
        None => Output::New(target.path.clone()),
    };
    Ok(Job {
        name: target.name.clone(),
        stores,
        unopened: failed,
        output,
        tried: Vec::new(),
    })
}
