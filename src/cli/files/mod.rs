//! Commands on folders of files.

mod backup;
mod care;
mod restore;

use super::args::FilesAction;
use super::{Failure, ok};
use crate::config::{Config, FilesConfig};
use crate::daemon::files::open_in;
use crate::files::{self, FilesError, Target};

pub(super) use backup::{back_up_as, free_label, has_label, snapshot};
pub(super) use care::{drill, list, prune, verify};
pub(super) use restore::{Job, plan_all, restore};

/// Files named in a report on one screen.
const NAMED: usize = 20;
/// Exit code of what does not pass a check.
pub(super) const DAMAGED: u8 = 5;

/// Targets that are no files.
pub(super) enum Rest {
    /// There are none, or none was meant.
    None,
    /// All of them.
    All,
    /// These.
    Named(Vec<String>),
}

impl Rest {
    /// As names, where none means all; `None` if there is nothing.
    pub(super) fn names(self) -> Option<Vec<String>> {
        match self {
            Self::None => None,
            Self::All => Some(Vec::new()),
            Self::Named(names) => Some(names),
        }
    }
}

/// Which of the targets that were named (all, if none was) are files, and which are not.
pub(super) fn split(
    config: &Config,
    names: &[String],
) -> Result<(Vec<FilesConfig>, Rest), Failure> {
    if names.is_empty() {
        let others = !config.targets.is_empty() || !config.dirs.is_empty();
        let rest = if others { Rest::All } else { Rest::None };
        return Ok((config.files.clone(), rest));
    }
    let is_files = |name: &&String| config.files.iter().any(|f| f.name == **name);
    let (mine, rest): (Vec<_>, Vec<_>) = names.iter().partition(is_files);
    let mine = config.files.iter().filter(|f| mine.contains(&&f.name));
    let rest = match rest.is_empty() {
        true => Rest::None,
        false => Rest::Named(rest.into_iter().cloned().collect()),
    };
    Ok((mine.cloned().collect(), rest))
}

/// Work that blocks, on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FilesError> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(Failure::new(
            1,
            format!("the work broke off: {error}"),
            None,
        )),
    }
}

pub(super) async fn run(config: Config, action: FilesAction) -> Result<(), Failure> {
    let FilesAction::Init { targets } = action;
    let (mine, rest) = split(&config, &targets)?;
    if let Rest::Named(names) = rest {
        return Err(Failure::new(
            2,
            format!("no target of files is named \"{}\"", names.join("\", \"")),
            Some("`lifeboat config show` lists the targets".into()),
        ));
    }
    let mut made = 0;
    each(&config, &mine, async |files, target| {
        let place = target.store.display();
        let new = blocking(move || files::create(&target)).await?;
        made += usize::from(new);
        let word = if new { "made" } else { "was there" };
        println!("{}: the repository in {place} {word}", files.name);
        Ok(())
    })
    .await?;
    ok(&format!("files init targets={} made={made}", mine.len()));
    Ok(())
}

/// Does something with every target in each of its stores. What fails in one keeps nobody from the others; then it is said: damage
/// before anything else, and otherwise what came first.
async fn each(
    config: &Config,
    mine: &[FilesConfig],
    mut work: impl AsyncFnMut(&FilesConfig, Target) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let several = mine.iter().map(|f| f.stores.len()).sum::<usize>() > 1;
    let (mut worst, mut count): (Option<Failure>, _) = (None, 0);
    for files in mine {
        for store in &files.stores {
            let done = match open_in(config, files, store).await {
                Ok(target) => work(files, target).await,
                Err(error) => Err(error.into()),
            };
            let Err(failure) = done else { continue };
            count += 1;
            if several {
                eprintln!("{}: {}", files.name, failure.message);
            }
            if worst
                .as_ref()
                .is_none_or(|w| w.code != DAMAGED && failure.code == DAMAGED)
            {
                worst = Some(failure);
            }
        }
    }
    let Some(mut worst) = worst else {
        return Ok(());
    };
    if count > 1 {
        worst.message += &format!(" (and {} more, see above)", count - 1);
    }
    Err(worst)
}
