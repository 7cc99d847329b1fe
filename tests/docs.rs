//! The documentation does what it says: blocks marked `sh test` run as they stand, every other Lifeboat command at least parses, links lead
//! somewhere.
#![allow(missing_docs)]

mod common;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::kamal::{Project, repo, text};

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![repo("README.md")];
    let docs = std::fs::read_dir(repo("docs")).unwrap();
    pages.extend(
        docs.map(|f| f.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "md")),
    );
    pages.sort();
    pages
}

/// One `##` section, and what is run in it: the hidden blocks of the lab and those that readers see.
fn sections(page: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(page).unwrap();
    let mut found: Vec<(String, String)> = Vec::new();
    let mut end = None;
    for line in text.lines() {
        match end {
            Some(mark) if line == mark => end = None,
            Some(_) => found.last_mut().unwrap().1 += &format!("{line}\n"),
            None if line.starts_with("## ") => found.push((line[3..].to_owned(), String::new())),
            None if line == "```sh test" => end = Some("```"),
            None if line == "<!-- lab" => end = Some("-->"),
            None => {}
        }
    }
    assert_eq!(end, None, "{}: a block does not end", page.display());
    found.retain(|(_, script)| !script.is_empty());
    found
}

/// A fresh server with an app and a sidecar for each section.
fn run(page: &str, wanted: &[&str]) {
    let sections = sections(&repo(page));
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
    let titles: Vec<String> = sections(&repo("docs/runbooks.md"))
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

#[test]
fn quick_start() {
    run("docs/kamal.md", &["SQLite"]);
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
