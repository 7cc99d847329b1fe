//! The documentation does what it says: blocks marked `sh test` run as they stand, every other Lifeboat command at least parses, links lead
//! somewhere.
#![allow(missing_docs)]

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use common::kamal::{Project, repo, text};
use common::pages::{blocks, pages, sections};

/// A fresh server with an app and a sidecar for each section.
fn run(page: &str, wanted: &[&str]) {
    let sections = sections(&repo(page), "sh test");
    let titles: Vec<&str> = sections.iter().map(|(t, _)| t.as_str()).collect();
    for title in wanted {
        assert!(
            titles.contains(title),
            "{page} has no tested section {title:?}, but {titles:?}"
        );
    }
    for (title, script) in sections
        .iter()
        .filter(|(t, _)| wanted.contains(&t.as_str()))
    {
        let project = Project::new();
        let bin = project.path("project/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(project.path("project/config")).unwrap();
        if page.ends_with("runbooks.md") {
            symlink(repo("bin/lifeboat-restore"), bin.join("lifeboat-restore")).unwrap();
        }
        symlink(repo(""), project.path("project/lifeboat")).unwrap();
        let script = format!("set -eu\nlab sidecar\nlab settle\nset -x\n{script}");
        let out = project
            .command(Path::new("/bin/bash"))
            .args(["-c", &script])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let log = std::fs::read_to_string(project.host("web1", "log")).unwrap_or_default();
        let hooks = project.read("hook-output");
        assert!(
            out.status.success(),
            "{page}: {title}\n{}\n{hooks}\n{log}",
            text(&out)
        );
    }
}

const RUNBOOKS: [&str; 7] = [
    "Lost server",
    "Bad migration",
    "Deleted rows",
    "Corrupt database",
    "Rollback to a version",
    "Moving hosts",
    "Staging from production",
];

#[test]
fn every_runbook_has_a_test() {
    let titles: Vec<String> = sections(&repo("docs/runbooks.md"), "sh test")
        .into_iter()
        .map(|(t, _)| t)
        .collect();
    assert_eq!(titles, RUNBOOKS);
}

#[test]
fn runbook_lost_server() {
    run("docs/runbooks.md", &RUNBOOKS[..1]);
}

#[test]
fn runbook_bad_migration() {
    run("docs/runbooks.md", &RUNBOOKS[1..2]);
}

#[test]
fn runbook_deleted_rows() {
    run("docs/runbooks.md", &RUNBOOKS[2..3]);
}

#[test]
fn runbook_corrupt_database() {
    run("docs/runbooks.md", &RUNBOOKS[3..4]);
}

#[test]
fn runbook_rollback_to_a_version() {
    run("docs/runbooks.md", &RUNBOOKS[4..5]);
}

#[test]
fn runbook_moving_hosts() {
    run("docs/runbooks.md", &RUNBOOKS[5..6]);
}

#[test]
fn runbook_staging_from_production() {
    run("docs/runbooks.md", &RUNBOOKS[6..7]);
}

/// Lines of code: of fenced and of indented blocks.
fn code(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            lines.push(line.trim().to_owned());
        }
    }
    lines
}

/// The Lifeboat command of a line, wherever it stands: alone, after `$`, or quoted for `kamal accessory exec`.
fn command(line: &str) -> Option<&str> {
    let line = line.strip_prefix("$ ").unwrap_or(line);
    if line.starts_with("lifeboat ") {
        return Some(line);
    }
    let quoted = line.find("\"lifeboat ").map(|at| &line[at + 1..])?;
    Some(
        quoted
            .split_once('"')
            .map_or(quoted, |(command, _)| command),
    )
}

/// As a shell splits it, up to a comment, a pipe or a redirection.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in command.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => words.last_mut().unwrap().push(c),
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c.is_whitespace() => words.push(String::new()),
            None => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|w| !w.is_empty() && w != "...");
    let end = words
        .iter()
        .position(|w| w.starts_with('#') || w == "|" || w == ">" || w == "&&" || w == "||");
    words.truncate(end.unwrap_or(words.len()));
    words
}

/// What stands between backquotes, outside of blocks.
fn inline(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced && !line.starts_with("    ") {
            prose += line;
            prose += " ";
        }
    }
    let spans = prose.split('`').skip(1).step_by(2);
    spans.map(str::to_owned).collect()
}

#[test]
fn every_command_parses() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for line in code(&text) {
            let Some(command) = command(&line) else {
                continue;
            };
            seen += 1;
            if let Err(error) = lifeboat::cli::parse(words(command).into_iter().map(Into::into)) {
                wrong.push(format!("{}: {line}\n{error}", page.display()));
            }
        }
    }
    // In the middle of a sentence, too.
    for page in pages() {
        for span in inline(&std::fs::read_to_string(&page).unwrap()) {
            let Some(command) = command(&span) else {
                continue;
            };
            seen += 1;
            let parsed = lifeboat::cli::parse(words(command).into_iter().map(Into::into));
            if let Err(error) = parsed {
                wrong.push(format!("{}: `{span}`\n{error}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 40, "only {seen} commands were found");
    // And the check can fail.
    assert!(
        lifeboat::cli::parse(
            ["lifeboat", "restore", "--no-such"]
                .map(Into::into)
                .into_iter()
        )
        .is_err()
    );
}

#[test]
fn links_lead_somewhere() {
    let mut seen = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for part in text.split("](").skip(1) {
            let link = part.split(')').next().unwrap();
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            let path = page.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(path.exists(), "{}: {link}", page.display());
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} links were found");
}

/// What each `${...}` of an example stands for.
const VALUES: [(&str, &str); 11] = [
    ("DATABASE_URL", "postgres://app:secret@db/app"),
    ("DRILL_URL", "postgres://drill:secret@scratch/postgres"),
    ("REDIS_URL", "redis://cache:6379"),
    ("SLACK_WEBHOOK_URL", "https://hooks.example.com/services/1"),
    ("SMTP_PASSWORD", "secret"),
    ("AWS_ACCESS_KEY_ID", "key"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
    ("BACKUP_KEY_ID", "key"),
    ("BACKUP_SECRET", "secret"),
    ("AZURE_ACCOUNT_KEY", "c2VjcmV0"),
    ("AZURE_KEY", "c2VjcmV0"),
];

/// An example as a whole configuration, with what it leaves out.
fn whole(example: &serde_json::Value) -> serde_json::Value {
    let mut whole = example.clone();
    let map = whole.as_object_mut().expect("a map");
    let targets = ["sqlite", "files", "postgres", "redis"];
    if !targets.iter().any(|t| map.contains_key(*t)) {
        map.insert(
            "sqlite".into(),
            serde_json::json!([{ "path": "production.sqlite3" }]),
        );
    }
    let store_of_its_own = example["sqlite"][0].get("stores").is_some();
    if !map.contains_key("store") && !store_of_its_own {
        map.insert("store".into(), "file:///backups/myapp".into());
    }
    whole
}

/// What `lifeboat config check` says of a configuration; files under /run/secrets are there.
fn check(config: &serde_json::Value) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let secrets = dir.path().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    let mut yaml = config.to_string();
    for name in yaml
        .split("/run/secrets/")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect::<Vec<_>>()
    {
        let value = match name.as_str() {
            "postgres" => VALUES[0].1,
            "backup.json" => "{}",
            _ => "secret",
        };
        std::fs::write(secrets.join(name), value).unwrap();
    }
    yaml = yaml
        .replace("/run/secrets", secrets.to_str().unwrap())
        .replace("/rails/storage", dir.path().to_str().unwrap());
    let file = dir.path().join("lifeboat.yml");
    std::fs::write(&file, yaml).unwrap();
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_lifeboat"))
        .args(["config", "check", "--config"])
        .arg(file)
        .current_dir(dir.path())
        .env_clear()
        .envs(VALUES)
        .env("LIFEBOAT_FILES_PASSWORD", "secret")
        .output()
        .unwrap();
    let said = text(&out);
    // A variable that the example has no use for is said and does no harm.
    match out.status.code() {
        Some(0) => Ok(()),
        _ => Err(said),
    }
}

/// Every example of a configuration is one that Lifeboat takes, and a word of it that is wrong is found.
#[test]
fn every_example_of_a_configuration_loads() {
    let (mut seen, mut kamal) = (0, 0);
    for page in pages() {
        for block in blocks(&page).iter().filter(|b| b.language == "yaml") {
            let example = block.lines.join("\n");
            let parsed: serde_json::Value = serde_saphyr::from_str(&example)
                .unwrap_or_else(|e| panic!("{}: {e}\n{example}", page.display()));
            if parsed.get("accessories").or(parsed.get("env")).is_some() {
                kamal += 1;
                accessory(&parsed);
                continue;
            }
            seen += 1;
            let mut config = whole(&parsed);
            if let Err(error) = check(&config) {
                panic!("{}\n{example}\n{error}", page.display());
            }
            config["no-such-key"] = 1.into();
            assert!(check(&config).is_err(), "{example}");
        }
    }
    assert!(seen > 15, "only {seen} examples were found");
    assert_eq!(kamal, 2);
}

/// What stands below `env: clear:` of an accessory is known to Lifeboat, and its port is open to the host alone.
fn accessory(example: &serde_json::Value) {
    let accessory = example.pointer("/accessories/lifeboat").unwrap_or(example);
    for (name, value) in accessory["env"]["clear"].as_object().unwrap() {
        let value = value.as_str().unwrap().replace("/etc/litestream.yml", "");
        if value.is_empty() {
            assert_eq!(name, "LIFEBOAT_CONFIG");
            continue;
        }
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_lifeboat"))
            .args(["config", "check"])
            .env_clear()
            .env("LIFEBOAT_STORE_URL", "s3://my-backups/myapp")
            .env("LIFEBOAT_DATABASES", "production.sqlite3")
            .env(name, value)
            .output()
            .unwrap();
        assert!(out.status.success(), "{name}: {}", text(&out));
    }
    if let Some(port) = accessory.get("port") {
        assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{port}");
    }
}
