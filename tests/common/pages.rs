//! Pages of the documentation: their blocks, and what in them is a command.

use std::path::{Path, PathBuf};

use super::kamal::repo;

/// A block of code.
#[derive(Debug)]
pub struct Block {
    /// What stands behind the fence; empty for an indented block.
    pub language: String,
    pub lines: Vec<String>,
}

/// README.md, CONTRIBUTING.md and everything in docs/.
pub fn pages() -> Vec<PathBuf> {
    let mut pages = vec![repo("README.md"), repo("CONTRIBUTING.md")];
    let docs = std::fs::read_dir(repo("docs")).unwrap();
    pages.extend(
        docs.map(|f| f.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "md")),
    );
    pages.sort();
    pages
}

/// Fenced and indented blocks of a page, without those that readers do not see.
pub fn blocks(page: &Path) -> Vec<Block> {
    let text = std::fs::read_to_string(page).unwrap();
    let mut found: Vec<Block> = Vec::new();
    let (mut fenced, mut hidden, mut indented) = (false, false, false);
    for line in text.lines() {
        if !fenced && line.starts_with("<!--") {
            hidden = true;
        }
        if hidden {
            hidden = !line.ends_with("-->");
            continue;
        }
        if let Some(info) = line.trim_start().strip_prefix("```") {
            fenced = !fenced;
            if fenced {
                let language = info.trim().to_owned();
                assert!(
                    !language.is_empty(),
                    "{}: a block without a language",
                    page.display()
                );
                found.push(Block {
                    language,
                    lines: Vec::new(),
                });
            }
        } else if fenced {
            found.last_mut().unwrap().lines.push(line.to_owned());
        } else if line.starts_with("    ") {
            if !indented {
                found.push(Block {
                    language: String::new(),
                    lines: Vec::new(),
                });
            }
            found.last_mut().unwrap().lines.push(line.trim().to_owned());
        }
        indented = !fenced && line.starts_with("    ");
    }
    assert!(
        !fenced && !hidden,
        "{}: a block does not end",
        page.display()
    );
    found
}

/// Without the remark at its end.
fn bare(line: &str) -> String {
    let remark = line
        .match_indices("# ")
        .find(|(at, _)| line[..*at].ends_with(' '));
    remark.map_or(line, |(at, _)| &line[..at]).trim().to_owned()
}

/// The commands of indented blocks and of those marked `sh`: what `tests/pages` runs. SQL counts by the first line of its block.
pub fn commands(page: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for block in blocks(page) {
        match block.language.as_str() {
            "" | "sh" => found.extend(block.lines.iter().map(|l| bare(l))),
            "sql" => found.push(format!("block {}", block.lines[0])),
            _ => {}
        }
    }
    found.retain(|line| !line.is_empty());
    found
}

/// One `##` section, and what is run in it: the hidden blocks of the lab and those that readers see.
pub fn sections(page: &Path, language: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(page).unwrap();
    let mut found: Vec<(String, String)> = Vec::new();
    let fence = format!("```{language}");
    let mut end = None;
    for line in text.lines() {
        match end {
            Some(mark) if line == mark => end = None,
            Some(_) => found.last_mut().unwrap().1 += &format!("{line}\n"),
            None if line.starts_with("## ") => found.push((line[3..].to_owned(), String::new())),
            None if line == fence => end = Some("```"),
            None if line == "<!-- lab" => end = Some("-->"),
            None => {}
        }
    }
    assert_eq!(end, None, "{}: a block does not end", page.display());
    found.retain(|(_, script)| !script.is_empty());
    found
}
