//! `lifeboat restore --all`: what is restored beside the SQLite databases. Everything is planned before the first thing is written.

use std::collections::VecDeque;
use std::path::PathBuf;

use serde_json::json;

use super::Failure;
use super::args::{Global, RestoreArgs};
use super::restore::Changed;
use super::restore_undo::digits;
use super::{files, postgres_restore};
use crate::config::Config;

/// Targets of the other kinds, ready to be restored.
pub(super) struct Others {
    dumps: Vec<postgres_restore::Job>,
    /// Dumps that wait for their last step.
    ready: VecDeque<postgres_restore::Ready>,
    files: Vec<files::Job>,
    /// What there was to do.
    pub(super) count: Counts,
}

/// How many targets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Of the configuration.
    pub(super) targets: usize,
    /// There already, so left alone.
    pub(super) existing: usize,
    /// Without a backup, or not part of the label.
    pub(super) absent: usize,
}

/// What to do with a target, or its name and why it is left alone.
pub(super) enum Planned<J> {
    Job(J),
    /// It is there, and `--if-not-exists` was given.
    Exists(String, String),
    /// Nothing to restore.
    Absent(String, String),
}

/// Says why a target is left alone: `word` is `exists`, `absent` or `older`.
pub(super) fn leave(global: &Global, target: &str, word: &str, why: &str) {
    if global.json {
        println!("{}", json!({ "target": target, "left": word, "why": why }));
    } else if word == "older" {
        println!("{target}: {why}; it stays as it is");
    } else {
        println!("{target}: {why}; nothing to do");
    }
}

impl Counts {
    fn take<J>(&mut self, global: &Global, planned: Planned<J>) -> Option<J> {
        self.targets += 1;
        match planned {
            Planned::Job(job) => return Some(job),
            Planned::Exists(target, why) => {
                leave(global, &target, "exists", &why);
                self.existing += 1;
            }
            Planned::Absent(target, why) => {
                leave(global, &target, "absent", &why);
                self.absent += 1;
            }
        }
        None
    }
}

impl Others {
    /// Nothing.
    pub(super) fn none() -> Self {
        Self {
            dumps: Vec::new(),
            ready: VecDeque::new(),
            files: Vec::new(),
            count: Counts::default(),
        }
    }

    /// Finds what is wanted of every target.
    pub(super) async fn plan(
        global: &Global,
        config: &Config,
        args: &RestoreArgs,
    ) -> Result<Self, Failure> {
        let mut all = Self::none();
        for planned in postgres_restore::plan_all(config, args).await? {
            all.dumps.extend(all.count.take(global, planned));
        }
        for planned in files::plan_all(config, args).await? {
            all.files.extend(all.count.take(global, planned));
        }
        Ok(all)
    }

    /// Nothing is to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.dumps.is_empty() && self.files.is_empty()
    }

    /// Of an undo: when what it would put back was replaced, of each target.
    pub(super) fn replaced(&self) -> Vec<String> {
        let dumps = self
            .dumps
            .iter()
            .filter_map(|job| job.replaced().map(digits));
        let files = self.files.iter().filter_map(files::Job::replaced);
        let files = files.map(|at| digits(&at));
        dumps.chain(files).collect()
    }

    /// Leaves out what was replaced before `since`, and says so.
    pub(super) fn leave_older(&mut self, global: &Global, since: &str) {
        let mut absent = 0;
        let mut is_newer = |name: &str, at: Option<String>| {
            let is_newer = at.as_deref().is_none_or(|at| at >= since);
            if !is_newer {
                leave(
                    global,
                    name,
                    "older",
                    "what it replaced is of an earlier restore",
                );
                absent += 1;
            }
            is_newer
        };
        self.dumps
            .retain(|job| is_newer(job.name(), job.replaced().map(digits)));
        self.files
            .retain(|job| is_newer(job.name(), job.replaced().map(|at| digits(&at))));
        self.count.absent += absent;
    }

    /// Where something will be written.
    pub(super) fn places(&self) -> Vec<(PathBuf, String)> {
        let dumps = self.dumps.iter().filter_map(postgres_restore::Job::file);
        let files = self.files.iter().filter_map(files::Job::folder);
        dumps.chain(files).collect()
    }

    /// Restores every dump beside what is live: what takes long and may fail is done before anything is replaced.
    ///
    /// # Errors
    /// No live database was changed, and what was made is gone.
    pub(super) async fn prepare(
        &mut self,
        global: &Global,
        args: &RestoreArgs,
        changed: &mut Changed,
    ) -> Result<(), Failure> {
        for job in std::mem::take(&mut self.dumps) {
            // A file is in its place at once.
            changed.0 |= job.file().is_some() && !args.dry_run;
            match job.prepare(global, args).await {
                Ok(ready) => self.ready.push_back(ready),
                Err(failure) => {
                    self.discard().await;
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    /// Takes away databases that were made and will not be used.
    async fn discard(&mut self) {
        while let Some(ready) = self.ready.pop_front() {
            ready.discard().await;
        }
    }

    /// Puts the dumps in their places. `names` grows by what is done.
    pub(super) async fn dumps(
        &mut self,
        global: &Global,
        args: &RestoreArgs,
        changed: &mut Changed,
        names: &mut Vec<String>,
    ) -> Result<(), Failure> {
        while let Some(ready) = self.ready.pop_front() {
            let name = ready.name().to_owned();
            if let Err(failure) = ready.finish(global, args, changed).await {
                self.discard().await;
                return Err(failure);
            }
            names.push(name);
        }
        Ok(())
    }

    /// Restores the files, which rows of the databases point at.
    pub(super) async fn files(
        &mut self,
        global: &Global,
        args: &RestoreArgs,
        changed: &mut Changed,
        names: &mut Vec<String>,
    ) -> Result<(), Failure> {
        for job in std::mem::take(&mut self.files) {
            let name = job.name().to_owned();
            changed.0 |= !args.dry_run;
            job.run(global, args).await?;
            names.push(name);
        }
        Ok(())
    }
}
