//! `lifeboat verify` of SQLite targets: everything that the restore of any listed point would read.

use serde_json::json;

use super::inspect::chosen;
use super::{Failure, counted, ok};
use crate::config::Config;
use crate::daemon::fleet::open_replica;
use crate::restore::RestoreError;
use crate::restore::check::{Checked, check};

/// Points that are named one by one.
const NAMED: usize = 3;

pub(super) async fn verify(
    config: Config,
    names: Vec<String>,
    as_json: bool,
) -> Result<(), Failure> {
    let targets = chosen(&config, &names)?;
    let mut objects = 0_usize;
    let mut failures: Vec<Failure> = Vec::new();
    for target in &targets {
        for store in &target.options.stores {
            let replica = open_replica(store, &target.name).await?;
            let place = format!("{} in {}", target.name, replica.display());
            // One that is damaged or away says nothing of the others.
            match check(&replica).await {
                Ok(checked) => {
                    objects += checked.objects;
                    show(&target.name, &replica.display(), &checked, as_json);
                    failures.extend(failure(&place, &checked));
                }
                Err(error) => {
                    let failure = Failure::from(error);
                    failures.push(Failure {
                        message: format!("{place}: {}", failure.message),
                        ..failure
                    });
                }
            }
        }
    }
    // Damage is told before a store that was away.
    failures.sort_by_key(|f| std::cmp::Reverse(f.code == 5));
    let mut failures = failures.into_iter();
    if let Some(mut first) = failures.next() {
        for other in failures {
            first.message = format!("{}; {}", first.message, other.message);
        }
        return Err(first);
    }
    ok(&format!(
        "verify targets={} objects={objects}",
        targets.len()
    ));
    Ok(())
}

fn show(target: &str, store: &str, checked: &Checked, as_json: bool) {
    if as_json {
        let damaged: Vec<_> = checked
            .damaged
            .iter()
            .map(|d| json!({ "file": d.entry.span.to_string(), "reason": d.reason }))
            .collect();
        let lost: Vec<String> = checked.lost.iter().map(|p| p.txid.to_string()).collect();
        let value = json!({
            "target": target, "store": store, "objects": checked.objects, "bytes": checked.bytes,
            "points": checked.points.len(), "newest": checked.newest.map(|p| p.txid.to_string()),
            "missing": checked.hole.map(|h| h.missing.to_string()), "damaged": damaged, "lost": lost,
        });
        println!("{value}");
        return;
    }
    if let (true, Some(newest)) = (checked.is_whole(), checked.newest) {
        println!(
            "{target} in {store}: {} read and right ({} bytes); {}, up to TXID {} of {}",
            counted(checked.objects as u64, "object"),
            checked.bytes,
            counted(checked.points.len() as u64, "point"),
            newest.txid,
            newest.at
        );
    }
}

fn failure(place: &str, checked: &Checked) -> Option<Failure> {
    if checked.is_whole() {
        return None;
    }
    let mut wrong: Vec<String> = checked
        .damaged
        .iter()
        .map(|d| format!("LTX file {}: {}", d.entry.span, d.reason))
        .collect();
    if let Some(hole) = checked.hole {
        wrong.push(RestoreError::Hole(hole).to_string());
    }
    if !checked.lost.is_empty() {
        let named: Vec<String> = checked
            .lost
            .iter()
            .take(NAMED)
            .map(|p| format!("{} of {}", p.txid, p.at))
            .collect();
        let more = checked.lost.len().saturating_sub(NAMED);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        wrong.push(format!(
            "{} of {} points cannot be restored: {}{more}",
            checked.lost.len(),
            checked.points.len(),
            named.join(", ")
        ));
    }
    let hint = match checked.newest {
        Some(p) => format!(
            "the newest point without it is {} of {}: `lifeboat restore --txid {}`",
            p.txid, p.at, p.txid
        ),
        None => "no point can be restored from here; look at the target's other stores".into(),
    };
    Some(Failure::new(
        5,
        format!("{place}: {}", wrong.join("; ")),
        Some(hint),
    ))
}
