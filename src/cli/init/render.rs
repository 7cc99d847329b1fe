//! The text of `lifeboat.yml`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::project::{Database, Kind, Project};
use super::scan::{Found, Scan, matches_pattern};
use crate::config::why_left;

/// More databases in a folder than these are not listed one by one.
const LISTED_MAX: usize = 4;

/// What goes into the file.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Where it was found out, for the first lines.
    pub(super) from: String,
    pub(super) store: Option<String>,
    /// Becomes a part of the example's URL.
    pub(super) service: String,
    pub(super) databases: Vec<Listed>,
    /// Folders that are taken whole.
    pub(super) dirs: Vec<PathBuf>,
    pub(super) postgres: bool,
    pub(super) state_dir: Option<PathBuf>,
    /// A folder with uploads.
    pub(super) uploads: Option<PathBuf>,
}

/// A database with an entry of its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) path: PathBuf,
    /// Only if the file's own name is taken or does not do.
    pub(super) name: Option<String>,
    pub(super) note: String,
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn is_side(stem: &str) -> bool {
    ["_cache", "_queue", "_cable"]
        .iter()
        .any(|s| stem.ends_with(s))
}

/// Characters that a target may have in its name.
fn as_name(text: &str) -> String {
    let name: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    name.trim_matches(['.', '-']).to_owned()
}

impl Plan {
    /// Lists databases, and takes folders whole where that says more. Returns what is left out, and why.
    pub(super) fn take<'a>(&mut self, scan: &'a Scan) -> Vec<(&'a Path, &'static str)> {
        let mut folders: BTreeMap<&Path, Vec<&Found>> = BTreeMap::new();
        let mut left = Vec::new();
        for one in &scan.databases {
            if let Some(why) = why_left(&file_name(&one.path)) {
                left.push((one.path.as_path(), why));
                // The folder of a cache is one of databases.
                if !stem(&one.path).ends_with("_cache") {
                    continue;
                }
            }
            folders
                .entry(one.path.parent().unwrap_or(Path::new("/")))
                .or_default()
                .push(one);
        }
        let mut names = BTreeSet::new();
        for (folder, found) in folders {
            let is_here = |p: &PathBuf| p.parent() == Some(folder);
            let whole = found.iter().any(|f| matches_pattern(&f.path))
                && !scan.impostors.iter().any(is_here);
            let many = found.len() > LISTED_MAX;
            for one in &found {
                let side = is_side(&stem(&one.path));
                if stem(&one.path).ends_with("_cache") {
                    continue;
                }
                if whole && matches_pattern(&one.path) && (many || side) {
                    continue;
                }
                let note = crate::cli::doctor::size(one.bytes);
                self.list(one.path.clone(), note, &mut names);
            }
            if whole {
                self.dirs.push(folder.to_owned());
            }
        }
        left
    }

    fn list(&mut self, path: PathBuf, note: String, names: &mut BTreeSet<String>) {
        let own = stem(&path);
        let mut name = as_name(&own);
        if names.contains(&name) || name.is_empty() {
            let folder = path.parent().map(stem).unwrap_or_default();
            name = as_name(&format!("{folder}-{own}"));
        }
        let mut unique = name.clone();
        let mut n = 2;
        while !names.insert(unique.clone()) {
            unique = format!("{name}-{n}");
            n += 1;
        }
        let name = (unique != own).then_some(unique);
        self.databases.push(Listed { path, name, note });
    }

    /// Whether there is nothing to protect.
    pub(super) fn is_empty(&self) -> bool {
        self.databases.is_empty() && self.dirs.is_empty() && !self.postgres
    }

    /// What a Kamal project runs with.
    pub(super) fn of_project(project: &Project) -> Self {
        let mut plan = Plan {
            from: "config/deploy.yml and config/database.yml".into(),
            service: project.service.clone(),
            postgres: project.has_postgres(),
            state_dir: Some("/var/lib/lifeboat".into()),
            ..Plan::default()
        };
        let mut names = BTreeSet::new();
        for (role, path) in project.sqlite() {
            let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
            if matches_pattern(path) {
                plan.dirs.push(folder);
            }
            if !is_side(&stem(path)) || !matches_pattern(path) {
                plan.list(path.to_owned(), role.to_owned(), &mut names);
            }
        }
        let is_somewhere = |d: &Database| d.kind == Kind::Somewhere;
        let names_none = plan.databases.is_empty() && plan.dirs.is_empty();
        if project.databases.iter().any(is_somewhere) || names_none && !project.has_database_yml {
            plan.dirs
                .extend(project.volumes.iter().map(|(_, at)| at.clone()));
        }
        plan.dirs.sort();
        plan.dirs.dedup();
        if project.uploads_on_disk {
            plan.uploads = project.volumes.first().map(|(_, at)| at.clone());
        }
        plan
    }

    /// The file.
    pub(super) fn yaml(&self) -> String {
        let mut out = format!(
            "# What Lifeboat protects, and where to. Written by `lifeboat init` from {}.\n# Check it: lifeboat config check. Look around: lifeboat doctor. Every key: docs/configuration.md.\n\n",
            self.from
        );
        out += &self.store_yaml();
        if !self.databases.is_empty() || !self.dirs.is_empty() {
            out += &self.sqlite_yaml();
        }
        if self.postgres {
            out += "\npostgres:\n  - name: app\n    url: ${DATABASE_URL}\n    schedule: \"15 * * * *\"            # cron, in the time zone below\n    # A server that drills may create databases on: without it no dump is restored and checked.\n    # drill-url: ${DRILL_URL}\n    # assert: [\"select count(*) > 0 from users\"]\n";
        }
        if let Some(dir) = &self.state_dir {
            out += &format!(
                "\nstate-dir: {}          # a volume of its own: an upgrade then compares no pages\n",
                quoted(dir)
            );
        }
        let what = match (
            self.postgres,
            self.databases.is_empty() && self.dirs.is_empty(),
        ) {
            (false, _) => "each copy is",
            (true, false) => "each copy is (of PostgreSQL: where there is a `drill-url`)",
            (true, true) => "each dump is (where there is a `drill-url`)",
        };
        out += &format!(
            "time-zone: UTC\n\n# Every night {what} restored into scratch space and checked.\ndrill: {{ schedule: \"0 4 * * *\" }}\n"
        );
        if let Some(folder) = &self.uploads {
            out += &format!(
                "\n# Uploads of Active Storage are on the disk. To keep them too: a password of your own in the environment, and then\n# files:\n#   - name: uploads\n#     paths: [{}]\n#     password: ${{LIFEBOAT_FILES_PASSWORD}}\n#     schedule: \"30 * * * *\"\n#     create: true\n",
                quoted(folder)
            );
        }
        out
    }

    fn store_yaml(&self) -> String {
        let (url, note) = match &self.store {
            Some(url) => (url.clone(), ""),
            None => (
                format!("s3://my-backups/{}", as_name(&self.service)),
                "   # CHANGE THIS: your bucket; gs://, abs:// and file:/// work, too",
            ),
        };
        let region = match url.starts_with("s3://") {
            true => {
                "  region: ${LIFEBOAT_REGION:-us-east-1}\n  # Keys come from the environment: LIFEBOAT_ACCESS_KEY_ID and LIFEBOAT_SECRET_ACCESS_KEY.\n"
            }
            false => "",
        };
        format!("store:\n  url: {}{note}\n{region}", scalar(url.clone()))
    }

    fn sqlite_yaml(&self) -> String {
        let mut out = "\nsqlite:\n".to_owned();
        for one in &self.databases {
            out += &format!("  - path: {}     # {}\n", quoted(&one.path), one.note);
            if let Some(name) = &one.name {
                out += &format!("    name: {name}\n");
            }
        }
        if !self.databases.is_empty() {
            out += "    # What must be true of a restored copy, for drills:\n    # assert: [\"select count(*) > 0 from users\"]\n";
        }
        for dir in &self.dirs {
            out += &format!(
                "  # The rest of the folder, as databases come and go. Caches are left out: list one by `path` to keep it.\n  - dir: {}\n    watch: true\n",
                quoted(dir)
            );
        }
        out
    }
}

/// A path as a scalar of YAML, in which `${` would be a variable.
fn quoted(path: &Path) -> String {
    scalar(path.to_string_lossy().replace("${", "$${"))
}

fn scalar(text: String) -> String {
    let is_plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-:".contains(c));
    match is_plain {
        true => text,
        false => serde_json::Value::from(text).to_string(),
    }
}
