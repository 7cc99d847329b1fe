//! Which dump a restore means.

use jiff::Timestamp;

use super::Failure;
use super::args::RestoreArgs;
use crate::config::{Config, parse_time};
use crate::daemon::postgres::Database;
use crate::labels::{self, Pin};
use crate::postgres::{self, Dumps, Manifest};
use crate::replica::past;
use crate::restore::GONE;
use crate::retention::copies::newest;
use crate::store::Store;

/// The dump that is meant, and the stores that hold it. Stores that are away are passed over.
pub(super) async fn find(
    config: &Config,
    database: &Database,
    args: &RestoreArgs,
) -> Result<(Manifest, Vec<Store>), Failure> {
    let before = match &args.at {
        Some(at) => {
            let usage = |e: &dyn std::fmt::Display| {
                let hint = Some("`lifeboat list` shows what there is".into());
                Failure::new(2, format!("--at: {e}"), hint)
            };
            let at = parse_time(at, Timestamp::now(), &config.time_zone).map_err(|e| usage(&e))?;
            Some(Timestamp::from_millisecond(at.0).map_err(|e| usage(&e))?)
        }
        None => None,
    };
    let mut found: Option<(Manifest, Vec<Store>)> = None;
    let mut why: Option<Failure> = None;
    for store in &database.stores {
        let chosen = choose(config, store, args, before).await;
        let manifest = match chosen {
            Ok(manifest) => manifest,
            Err(failure) => {
                tracing::warn!(
                    store = store.display(),
                    reason = failure.message,
                    "not restoring from this store"
                );
                why = Some(Failure::of_stores(why, failure));
                continue;
            }
        };
        match &mut found {
            Some((best, stores)) if best.id == manifest.id => stores.push(store.clone()),
            Some((best, _)) if best.began > manifest.began => {}
            _ => found = Some((manifest, vec![store.clone()])),
        }
    }
    found.ok_or_else(|| {
        why.unwrap_or_else(|| Failure::new(3, "there is no store to restore from", None))
    })
}

async fn choose(
    config: &Config,
    store: &Store,
    args: &RestoreArgs,
    before: Option<Timestamp>,
) -> Result<Manifest, Failure> {
    // Before the dumps: a label is written of one that is there.
    let known = match &args.label {
        Some(_) => labels::list(store).await?,
        None => Vec::new(),
    };
    let Dumps {
        dumps: mut all,
        damaged,
    } = postgres::dumps(store).await?;
    if all.is_empty()
        && damaged.is_empty()
        && let Some(lost) = lost(store).await?
    {
        return Err(lost);
    }
    // What cannot be read may be what is wanted: that there is nothing is not known then.
    let missing = |what: String| {
        match damaged.first() {
        None => nothing(what),
        Some(first) => Failure::new(
            5,
            format!(
                "{what}, and {} manifests cannot be read, the first is that of dump {first}; nothing was changed",
                damaged.len()
            ),
            Some("restore from another store if there is one; `lifeboat list` shows the dumps that are whole".into()),
        ),
    }
    };
    let pinned = match &args.label {
        Some(label) => {
            let label = super::labels::find(&known, label, args.all.then_some(config)).await?;
            match &label.pin {
                Pin::Postgres { dump }
                    if all.iter().all(|m| m.id != *dump) && damaged.is_empty() =>
                {
                    return Err(Failure::new(
                        5,
                        format!(
                            "label {} is lost: its dump {dump} is not in {} any more; nothing was changed",
                            label.label,
                            store.display()
                        ),
                        Some(GONE.into()),
                    ));
                }
                Pin::Postgres { dump } => Some(dump.clone()),
                other => {
                    return Err(nothing(format!(
                        "\"{}\" pins a {}",
                        label.label,
                        other.describe()
                    )));
                }
            }
        }
        None => args.dump.clone(),
    };
    if let Some(id) = pinned {
        let at = all.iter().position(|m| m.id == id);
        return match at {
            Some(at) => Ok(all.swap_remove(at)),
            None => Err(missing(format!(
                "there is no dump {id} in {}",
                store.display()
            ))),
        };
    }
    match before {
        Some(time) => all
            .into_iter()
            .rfind(|m| m.began <= time)
            .ok_or_else(|| missing(format!("no dump is as old as {time}"))),
        None => newest(all.iter().map(|m| m.began), Timestamp::now())
            .map(|at| all.swap_remove(at))
            .ok_or_else(|| missing(format!("there is no dump in {}", store.display()))),
    }
}

/// What to say of a store without dumps of which labels or drills tell.
pub(super) async fn lost(store: &Store) -> Result<Option<Failure>, Failure> {
    let Some(key) = past::witness(store, past::Kind::Dumps).await? else {
        return Ok(None);
    };
    // The first one may have come with its label since the listing.
    let Dumps { dumps, damaged } = postgres::dumps(store).await?;
    let are_gone = dumps.is_empty() && damaged.is_empty();
    let what = format!(
        "{} holds no dumps any more, but {key} tells of one that was there; nothing was changed",
        store.display()
    );
    Ok(are_gone.then(|| Failure::new(5, what, Some(GONE.into()))))
}

pub(super) fn nothing(what: String) -> Failure {
    Failure::new(
        3,
        format!("{what}; nothing was changed"),
        Some("`lifeboat list` shows what there is".into()),
    )
}
