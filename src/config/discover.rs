//! Databases in a folder, by names and metadata alone.
//!
//! No file is ever opened here: closing any descriptor of a database drops the POSIX locks that SQLite holds on it in
//! this process.

use std::collections::HashSet;
use std::fs::{DirEntry, FileType};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checked::{DirConfig, RetentionConfig, SqliteOptions, TargetConfig};

/// Jobs that matter are done within days.
const QUEUE_RETENTION: Duration = Duration::from_secs(7 * 86_400);
/// Messages on a cable are worthless after a day.
const CABLE_RETENTION: Duration = Duration::from_secs(86_400);
/// Cable tables change all the time and are worth little: one upload a minute.
const CABLE_SYNC_INTERVAL: Duration = Duration::from_secs(60);

/// What a look into a folder found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// New targets, in the order of their file names.
    pub taken: Vec<TargetConfig>,
    /// Files that match the pattern but are left out, and why.
    pub left: Vec<(PathBuf, String)>,
}

/// Looks once into `dir` for databases that are not in `known` yet. Says nothing about whether the files are databases.
///
/// # Errors
/// When the folder cannot be listed. A file that vanishes meanwhile is no error.
pub fn discover(dir: &DirConfig, known: &[TargetConfig]) -> io::Result<Discovery> {
    let paths: HashSet<_> = known.iter().map(|t| t.path.clone()).collect();
    let mut names: HashSet<_> = known.iter().map(|t| t.name.clone()).collect();
    let mut entries = std::fs::read_dir(&dir.dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(DirEntry::file_name);
    let mut found = Discovery::default();
    for entry in entries {
        let path = dir.dir.join(entry.file_name());
        let matches = entry
            .file_name()
            .to_str()
            .is_none_or(|name| pattern_matches(&dir.pattern, name));
        if !matches || paths.contains(&path) {
            continue;
        }
        let kind = match entry.file_type() {
            Ok(kind) => kind,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let name = entry.file_name();
        match name.to_str().map(|name| (name, judge(name, kind))) {
            None => found.left.push((path, "its name is not UTF-8".into())),
            Some((_, Verdict::Silent)) => {}
            Some((_, Verdict::Leave(reason))) => found.left.push((path, reason)),
            Some((file_name, Verdict::Take(stem))) => {
                if !names.insert(stem.to_owned()) {
                    let reason = format!(
                        "another target is named `{stem}`: list it by `path` with a `name` of its own"
                    );
                    found.left.push((path, reason));
                    continue;
                }
                let options = options_for(dir, stem, file_name);
                found.taken.push(TargetConfig {
                    name: stem.to_owned(),
                    path,
                    explicit: false,
                    options,
                });
            }
        }
    }
    Ok(found)
}

/// The target that a database at `path` would be, were it there: what a store remembers and an empty volume has lost. `None` if `dir` would
/// not take it.
pub fn absent(dir: &DirConfig, path: &Path) -> Option<TargetConfig> {
    let file_name = path.file_name()?.to_str()?;
    let stem = stem(file_name);
    let taken = path.parent() == Some(&dir.dir)
        && pattern_matches(&dir.pattern, file_name)
        && copy_reason(file_name).is_none()
        && is_target_name(stem);
    taken.then(|| TargetConfig {
        name: stem.to_owned(),
        path: path.to_owned(),
        explicit: false,
        options: options_for(dir, stem, file_name),
    })
}

/// Why a database is not taken unless it is listed, by its name.
pub fn why_left(file_name: &str) -> Option<&'static str> {
    copy_reason(file_name).or_else(|| stem(file_name).ends_with("_cache").then_some(CACHE))
}

const CACHE: &str = "a cache can be built again: list it by `path` to protect it";

enum Verdict<'a> {
    /// A database; its target is named so.
    Take(&'a str),
    /// Not a database, and nobody would think so.
    Silent,
    /// Left out, for a reason that people should see.
    Leave(String),
}

fn judge(file_name: &str, kind: FileType) -> Verdict<'_> {
    let leave = |reason: &str| Verdict::Leave(reason.to_owned());
    if kind.is_dir()
        || ["-wal", "-shm", "-journal"]
            .iter()
            .any(|s| file_name.ends_with(s))
    {
        return Verdict::Silent;
    }
    // Our own scratch and kept copies.
    if file_name.contains(".lifeboat-") || file_name.contains("-lifeboat-") {
        return Verdict::Silent;
    }
    if kind.is_symlink() {
        return leave("a symbolic link: list it by `path` to protect it");
    }
    if !kind.is_file() {
        return leave("not a regular file");
    }
    if file_name.starts_with('.') {
        return leave("a hidden file");
    }
    if let Some(why) = copy_reason(file_name) {
        return leave(why);
    }
    let stem = stem(file_name);
    if !is_target_name(stem) {
        return leave(
            "its name has characters other than letters, digits, `.`, `_` and `-`: list it by `path` with a `name`",
        );
    }
    if stem.ends_with("_cache") {
        return leave(CACHE);
    }
    Verdict::Take(stem)
}

/// Why a name looks like a copy of a database.
fn copy_reason(file_name: &str) -> Option<&'static str> {
    let lower = file_name.to_ascii_lowercase();
    if lower.starts_with("backup-") || lower.starts_with("backup_") {
        return Some("a backup copy by its name");
    }
    if lower.contains(".before-") || lower.contains(".bak") || lower.contains(".backup") {
        return Some("a kept copy by its name");
    }
    has_date(&lower).then_some("a dated copy by its name")
}

/// Whether a name holds a date: `20261120`, `2026-11-20`, `2026_11_20` or `2026.11.20`, alone or before more digits of
/// a time.
fn has_date(name: &str) -> bool {
    let bytes = name.as_bytes();
    let number = |at: usize, len: usize| -> Option<u32> {
        let digits = bytes.get(at..at + len)?;
        digits
            .iter()
            .all(u8::is_ascii_digit)
            .then(|| digits.iter().fold(0, |n, d| n * 10 + u32::from(d - b'0')))
    };
    let is_date = |year: Option<u32>, month: Option<u32>, day: Option<u32>| {
        matches!(year, Some(1970..=2199))
            && matches!(month, Some(1..=12))
            && matches!(day, Some(1..=31))
    };
    (0..bytes.len()).any(|at| {
        if at > 0 && bytes[at - 1].is_ascii_digit() {
            return false;
        }
        let separated = matches!((bytes.get(at + 4), bytes.get(at + 7)), (Some(a), Some(b)) if a == b && b"-_.".contains(a));
        is_date(number(at, 4), number(at + 4, 2), number(at + 6, 2))
            || separated && is_date(number(at, 4), number(at + 5, 2), number(at + 8, 2))
    })
}

fn options_for(dir: &DirConfig, stem: &str, file_name: &str) -> SqliteOptions {
    let mut options = dir.options.clone();
    options.ensure_wal = false;
    let (queue, cable) = (stem.ends_with("_queue"), stem.ends_with("_cable"));
    if !dir.retention_chosen && (queue || cable) {
        let lasts = if queue {
            QUEUE_RETENTION
        } else {
            CABLE_RETENTION
        };
        options.retention = RetentionConfig {
            labels: options.retention.labels,
            ..RetentionConfig::plain(lasts)
        };
    }
    if !dir.sync_interval_chosen && cable {
        options.sync_interval = CABLE_SYNC_INTERVAL;
    }
    for store in &mut options.stores {
        if store.prefix_is_exact {
            *store = store.below(file_name);
        }
    }
    options
}

/// A file name without its last extension.
pub(super) fn stem(file_name: &str) -> &str {
    match file_name.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => file_name,
    }
}

/// Letters, digits, `.`, `_`, `-`, and not only dots: a name is also a folder in the store.
pub(super) fn is_target_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !name.is_empty() && name.bytes().all(allowed) && !name.bytes().all(|b| b == b'.')
}

/// Why a pattern cannot be used.
pub(super) fn check_pattern(pattern: &str) -> Result<(), &'static str> {
    if pattern.contains('/') {
        return Err("must be a pattern of file names, without `/`");
    }
    if pattern.contains(['[', ']', '\\']) {
        return Err("knows only `*`, `?` and `{a,b}`");
    }
    match (pattern.matches('{').count(), pattern.matches('}').count()) {
        (0, 0) => Ok(()),
        (1, 1) if pattern.find('{') < pattern.find('}') => Ok(()),
        _ => Err("can hold one pair of braces"),
    }
}

/// Whether a name fits a pattern that [`check_pattern`] accepts.
fn pattern_matches(pattern: &str, name: &str) -> bool {
    let braces = pattern
        .split_once('{')
        .and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    match braces {
        None => glob(pattern.as_bytes(), name.as_bytes()),
        Some((before, (choices, after))) => choices.split(',').any(|choice| {
            glob(
                format!("{before}{choice}{after}").as_bytes(),
                name.as_bytes(),
            )
        }),
    }
}

/// `*` and `?`, in time proportional to the product of the lengths at worst.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where the last `*` was, and how much of the name it has eaten.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match &mut star {
                Some((at, eaten)) => {
                    *eaten += 1;
                    (p, n) = (*at + 1, *eaten);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::checked::{
        DEFAULT_PATTERN, DEFAULT_SNAPSHOT_INTERVAL, DEFAULT_SYNC_INTERVAL,
    };
    use proptest::prelude::*;
    use std::path::Path;

    fn dir_config(dir: &Path) -> DirConfig {
        DirConfig {
            dir: dir.into(),
            pattern: DEFAULT_PATTERN.into(),
            watch: true,
            options: SqliteOptions {
                stores: vec![],
                sync_interval: DEFAULT_SYNC_INTERVAL,
                snapshot_interval: DEFAULT_SNAPSHOT_INTERVAL,
                max_lag: None,
                retention: RetentionConfig::default(),
                ensure_wal: true,
                asserts: vec![],
            },
            retention_chosen: false,
            sync_interval_chosen: false,
        }
    }

    fn touch(dir: &Path, names: &[&str]) {
        for name in names {
            std::fs::write(dir.join(name), b"").unwrap();
        }
    }

    fn names(found: &Discovery) -> Vec<&str> {
        found.taken.iter().map(|t| t.name.as_str()).collect()
    }

    #[test]
    fn takes_databases_and_says_what_it_left() {
        let dir = tempfile::tempdir().unwrap();
        touch(
            dir.path(),
            &[
                "production.sqlite3",
                "production.sqlite3-wal",
                "production_queue.sqlite3",
                "production_cable.sqlite3",
                "production_cache.sqlite3",
                "small.db",
                "notes.txt",
                "backup-monday.sqlite3",
                "production-2026-11-20.sqlite3",
                "production_20261120103000.sqlite3",
                "production.sqlite3.before-restore-20261120T103000Z",
                "production.before-restore-x.sqlite3",
                "production.lifeboat-restore.sqlite3",
                "with space.db",
                ".hidden.db",
                "small.sqlite3",
            ],
        );
        std::fs::create_dir(dir.path().join("folder.sqlite3")).unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        touch(&dir.path().join("sub"), &["deep.sqlite3"]);
        std::os::unix::fs::symlink("production.sqlite3", dir.path().join("link.sqlite3")).unwrap();

        let found = discover(&dir_config(dir.path()), &[]).unwrap();
        assert_eq!(
            names(&found),
            [
                "production",
                "production_cable",
                "production_queue",
                "small"
            ]
        );
        let left: Vec<_> = found
            .left
            .iter()
            .map(|(p, why)| (p.file_name().unwrap().to_str().unwrap(), why.as_str()))
            .collect();
        let why = |name: &str| left.iter().find(|(n, _)| *n == name).map(|(_, why)| *why);
        assert_eq!(
            why("production_cache.sqlite3"),
            Some("a cache can be built again: list it by `path` to protect it")
        );
        assert_eq!(
            why("backup-monday.sqlite3"),
            Some("a backup copy by its name")
        );
        assert_eq!(
            why("production-2026-11-20.sqlite3"),
            Some("a dated copy by its name")
        );
        assert_eq!(
            why("production_20261120103000.sqlite3"),
            Some("a dated copy by its name")
        );
        assert_eq!(
            why("production.before-restore-x.sqlite3"),
            Some("a kept copy by its name")
        );
        assert_eq!(why(".hidden.db"), Some("a hidden file"));
        assert_eq!(
            why("link.sqlite3"),
            Some("a symbolic link: list it by `path` to protect it")
        );
        assert!(why("with space.db").is_some() && why("small.sqlite3").is_some());
        assert_eq!(left.len(), 9, "{left:?}");

        for target in &found.taken {
            let retention = target.options.retention;
            let expected = match target.name.as_str() {
                "production_queue" => (RetentionConfig::plain(QUEUE_RETENTION), 1),
                "production_cable" => (RetentionConfig::plain(CABLE_RETENTION), 60),
                _ => (RetentionConfig::default(), 1),
            };
            assert_eq!(
                (retention, target.options.sync_interval.as_secs()),
                expected,
                "{}",
                target.name
            );
            assert!(!target.options.ensure_wal && !target.explicit);
        }
    }

    #[test]
    fn what_is_known_is_not_taken_again_and_its_name_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["a.sqlite3", "b.sqlite3", "c.sqlite3"]);
        let config = dir_config(dir.path());
        let mut known = discover(&config, &[]).unwrap().taken;
        known.truncate(1);
        known.push(TargetConfig {
            name: "b".into(),
            path: "/elsewhere/b.db".into(),
            ..known[0].clone()
        });
        let found = discover(&config, &known).unwrap();
        assert_eq!(names(&found), ["c"]);
        assert_eq!(found.left.len(), 1);
        assert!(found.left[0].1.contains("another target is named `b`"));
    }

    #[test]
    fn chosen_values_hold_for_queue_and_cable_too() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["x_queue.db", "x_cable.db"]);
        let config = DirConfig {
            retention_chosen: true,
            sync_interval_chosen: true,
            ..dir_config(dir.path())
        };
        for target in discover(&config, &[]).unwrap().taken {
            assert_eq!(target.options.retention, RetentionConfig::default());
            assert_eq!(target.options.sync_interval, DEFAULT_SYNC_INTERVAL);
        }
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        assert!(discover(&dir_config(Path::new("/nowhere/at/all")), &[]).is_err());
    }

    #[test]
    fn dates_in_names() {
        for name in [
            "x-20261120",
            "2026-11-20x",
            "x_2026_11_20.db",
            "x2026.11.20-10",
            "20261120T103000",
        ] {
            assert!(has_date(name), "{name}");
        }
        for name in [
            "x",
            "tenant-12345678",
            "v2026",
            "2026-1-2",
            "99999999",
            "2026-13-20",
            "2026-11_20",
            "120261120",
        ] {
            assert!(!has_date(name), "{name}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            (DEFAULT_PATTERN, "a.sqlite3", true),
            (DEFAULT_PATTERN, "a.db", true),
            (DEFAULT_PATTERN, "a.db-wal", false),
            ("*", "anything", true),
            ("production*.sqlite3", "production_queue.sqlite3", true),
            ("production*.sqlite3", "staging.sqlite3", false),
            ("?.db", "a.db", true),
            ("?.db", "ab.db", false),
            ("*a*b*", "xxaxxbxx", true),
            ("a.db", "a.db", true),
        ] {
            assert_eq!(pattern_matches(pattern, name), expected, "{pattern} {name}");
        }
        for pattern in ["a/b", "[ab].db", "{a", "}a{", "{a}{b}"] {
            assert!(check_pattern(pattern).is_err(), "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn patterns_never_panic(pattern in "[a*?{},]{0,12}", name in "[ab.]{0,12}") {
            let _ = pattern_matches(&pattern, &name);
        }

        #[test]
        fn names_never_panic(name in "\\PC*") {
            let _ = (has_date(&name), copy_reason(&name), stem(&name), is_target_name(&name));
        }
    }
}
