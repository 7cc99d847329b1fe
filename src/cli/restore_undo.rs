//! `lifeboat restore --all --undo`: which targets the last restore replaced.

use std::path::PathBuf;

use super::Failure;
use super::args::{Global, RestoreArgs};
use super::restore::{Job, Source};
use super::restore_all::Others;
use crate::config::Config;
use crate::daemon::fleet::socket_path;
use crate::restore::RestoreError;
use crate::restore::swap::{SwapError, kept_for_undo};

/// A time, or what begins with one in a name, as its digits in UTC, to the millisecond or finer: so they can be compared as texts. What one
/// restore in place replaced carries times from its begin on; what earlier ones did lies before it.
pub(super) fn digits(at: &str) -> String {
    at.chars().filter(char::is_ascii_digit).collect()
}

fn record(config: &Config) -> PathBuf {
    socket_path(config).with_file_name("last-restore")
}

/// Call right before the first thing is replaced: a restore that failed before that replaced nothing, and is none to take back.
pub(super) fn begin(config: &Config, args: &RestoreArgs) {
    if !args.in_place || args.dry_run {
        return;
    }
    let path = record(config);
    let now = jiff::Timestamp::now()
        .strftime("%Y%m%dT%H%M%S%.3f")
        .to_string();
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&path, now));
    // At 3 a.m. this is no reason not to restore: `--all --undo` then goes by the newest copy.
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "cannot note when this restore began");
    }
}

/// Of everything that could be put back, what the last restore replaced and nothing that an earlier one did. All of it is looked at before
/// anything is changed.
pub(super) fn of_the_last_restore(
    global: &Global,
    config: &Config,
    planned: Vec<(Job, Vec<Source>)>,
    others: &mut Others,
) -> Result<Vec<(Job, Vec<Source>)>, Failure> {
    let mut found = Vec::new();
    let mut first = None;
    for (job, _) in planned {
        match kept_for_undo(job.output.path()) {
            Ok(kept) => found.push((job, kept)),
            Err(
                error @ (SwapError::NothingKept(_)
                | SwapError::NothingThere(_)
                | SwapError::Undone { .. }),
            ) => {
                eprintln!("{}: {error}", job.name);
                first.get_or_insert(error);
            }
            Err(error) => return Err(RestoreError::from(error).into()),
        }
    }
    let began = std::fs::read_to_string(record(config)).ok();
    let began = began.map(|text| digits(&text));
    let times = found.iter().map(|(_, kept)| digits(&kept.stamp));
    let newest = times.chain(others.replaced()).max();
    let Some(since) = began.or(newest.clone()) else {
        return match first {
            Some(error) => Err(RestoreError::from(error).into()),
            None => Ok(Vec::new()),
        };
    };
    if newest.is_none_or(|newest| newest < since) {
        return Err(Failure::new(
            4,
            format!(
                "the restore that began at {since} replaced nothing that could be put back; nothing was changed"
            ),
            Some("`lifeboat restore NAME --undo` puts back what an earlier one replaced".into()),
        ));
    }
    found.retain(|(job, kept)| {
        let is_older = digits(&kept.stamp) < since;
        if is_older {
            eprintln!(
                "{}: {} is what an earlier restore replaced; it stays as it is (`lifeboat restore {} --undo` swaps it back)",
                job.name,
                kept.path.display(),
                job.name
            );
        }
        !is_older
    });
    others.leave_older(global, &since);
    Ok(found
        .into_iter()
        .map(|(job, _)| (job, Vec::new()))
        .collect())
}
