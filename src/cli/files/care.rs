//! `list`, `verify`, `prune` and `drill` of files.

use serde_json::json;

use super::{blocking, each};
use crate::cli::Failure;
use crate::cli::labels::show_ended;
use crate::config::{Config, FilesConfig};
use crate::daemon::fleet::system_now;
use crate::files::{self, FilesError};
use crate::labels::{age, with_version};
use crate::types::Millis;

pub(in crate::cli) async fn list(
    config: &Config,
    mine: &[FilesConfig],
    as_json: bool,
) -> Result<(), Failure> {
    each(config, mine, async |files, target| {
        let store = target.store.display();
        let points = blocking(move || files::list(&target)).await?;
        if as_json {
            println!(
                "{}",
                json!({ "target": files.name, "kind": "files", "store": store, "points": points })
            );
            return Ok(());
        }
        println!("{} in {store}: {} snapshots", files.name, points.len());
        for p in &points {
            println!(
                "  {}  {:.0}  {:>5} ago  {:>9} files  {:>14} bytes{}{}",
                p.short(),
                p.time,
                age(Millis(p.time.as_millisecond()), system_now()),
                p.files,
                p.bytes,
                if p.partial { "  PARTIAL" } else { "" },
                p.labels
                    .iter()
                    .map(|l| format!("  {}", with_version(l, p.version.as_deref())))
                    .collect::<String>(),
            );
        }
        Ok(())
    })
    .await
}

/// Reads back what the newest restore would need.
pub(in crate::cli) async fn verify(
    config: &Config,
    mine: &[FilesConfig],
    as_json: bool,
) -> Result<(), Failure> {
    each(config, mine, async |files, target| {
        let store = target.store.display();
        let point = blocking(move || files::verify(&target)).await?;
        if as_json {
            println!(
                "{}",
                json!({ "target": files.name, "kind": "files", "store": store, "snapshot": point })
            );
        } else {
            println!(
                "{} in {store}: everything of snapshot {} of {:.0} read and right",
                files.name,
                point.short(),
                point.time
            );
        }
        Ok(())
    })
    .await
}

/// Applies retention; returns how many snapshots were forgotten, or would be.
pub(in crate::cli) async fn prune(
    config: &Config,
    mine: &[FilesConfig],
    dry_run: bool,
    as_json: bool,
) -> Result<usize, Failure> {
    let mut forgotten = 0;
    each(config, mine, async |files, target| {
            let zone = config.time_zone.clone();
            let pruned = blocking(move || files::prune(&target, &zone, dry_run)).await?;
            for decision in &pruned.decisions {
                let point = &pruned.points[decision.index];
                let reasons: Vec<String> =
                    decision.reasons.iter().map(ToString::to_string).collect();
                forgotten += usize::from(!decision.keeps());
                if as_json {
                    println!(
                        "{}",
                        json!({ "target": files.name, "kind": "files", "snapshot": point.id, "time": point.time, "keep": decision.keeps(), "reasons": reasons })
                    );
                } else if dry_run || !decision.keeps() {
                    let word = if decision.keeps() { "keep" } else { "forget" };
                    println!(
                        "{}: {word} {} of {:.0}: {}",
                        files.name,
                        point.short(),
                        point.time,
                        reasons.join(", ")
                    );
                }
            }
            show_ended(&files.name, &pruned.ending, as_json);
            if !as_json {
                println!(
                    "{}: {} bytes marked, to be deleted a day later; {} bytes marked earlier {}",
                    files.name,
                    pruned.marked_bytes,
                    pruned.deleted_bytes,
                    if dry_run {
                        "would be deleted"
                    } else {
                        "deleted"
                    },
                );
            }
        Ok(())
    })
    .await?;
    Ok(forgotten)
}

/// Restores a sample of each into scratch space.
pub(in crate::cli) async fn drill(
    config: &Config,
    mine: &[FilesConfig],
    as_json: bool,
) -> Result<(), Failure> {
    each(config, mine, async |files, target| {
            let store = target.store.display();
            let drill = blocking(move || {
                let scratch = tempfile::tempdir().map_err(|source| FilesError::Io {
                    path: std::env::temp_dir(),
                    source,
                })?;
                files::drill(&target, scratch.path())
            })
            .await?;
            if as_json {
                println!(
                    "{}",
                    json!({ "target": files.name, "kind": "files", "store": store, "drill": drill })
                );
            } else {
                println!(
                    "{} in {store}: {} files ({} bytes) of the snapshot of {:.0} restored and right in {:.1} s; {} of them equal to those on disk",
                    files.name,
                    drill.files,
                    drill.bytes,
                    drill.snapshot_time,
                    drill.seconds,
                    drill.equal_to_disk
                );
            }
        Ok(())
    })
    .await
}
