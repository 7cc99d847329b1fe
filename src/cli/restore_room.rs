//! Whether the copies of a restore of several databases have room together: said before the first is read.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Failure;
use super::restore::{Job, Source};
use crate::restore::swap::{SwapError, left_over};
use crate::restore::{RestoreError, need};

/// One volume.
struct Volume {
    free: u64,
    need: u64,
    /// A place on it.
    path: PathBuf,
}

/// All of them lie beside their places before the first gets its name. Each is asked again where it is written, for others write, too.
///
/// # Errors
/// [`SwapError::NoSpace`]. Nothing was changed.
pub(super) async fn room_for_all(planned: &[(Job, Vec<Source>)]) -> Result<(), Failure> {
    let mut volumes: BTreeMap<u64, Volume> = BTreeMap::new();
    for (job, sources) in planned {
        let place = job.output.path();
        // A store or a folder that fails is for the restore itself to tell: another store may have the same point.
        let Some(source) = sources.first() else {
            continue;
        };
        let (Ok(need), Some((device, free))) =
            (need(&source.store, &source.plan).await, volume(place))
        else {
            continue;
        };
        let volume = volumes.entry(device).or_insert_with(|| Volume {
            free,
            need: 0,
            path: place.to_owned(),
        });
        volume.need = volume.need.saturating_add(need);
        // What a killed restore left there is taken over.
        volume.free = volume.free.saturating_add(left_over(place));
    }
    match volumes.into_values().find(|v| v.need > v.free) {
        None => Ok(()),
        Some(Volume { free, need, path }) => {
            let path = path.parent().map(Path::to_owned).unwrap_or(path);
            Err(RestoreError::from(SwapError::NoSpace { path, need, free }).into())
        }
    }
}

/// The device that a path will be on, and its free bytes.
fn volume(path: &Path) -> Option<(u64, u64)> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|p| p.is_dir())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    let device = std::fs::metadata(there).ok()?.dev();
    Some((device, stat.f_bavail.saturating_mul(stat.f_frsize)))
}
