//! What Kamal needs: the accessory, aliases, hooks, names of secrets.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::project::{Project, parse};

const ALIASES: &str = include_str!("../../../config/kamal/aliases.yml");
const IMAGE: &str = "ghcr.io/your-org/lifeboat:latest";
/// Hooks of the kit.
const HOOKS: [(&str, &str); 4] = [
    (
        "lifeboat.sh",
        include_str!("../../../config/kamal/hooks/lifeboat.sh"),
    ),
    (
        "pre-deploy",
        include_str!("../../../config/kamal/hooks/pre-deploy"),
    ),
    (
        "pre-app-boot",
        include_str!("../../../config/kamal/hooks/pre-app-boot"),
    ),
    (
        "post-deploy",
        include_str!("../../../config/kamal/hooks/post-deploy"),
    ),
];
const RESTORE: (&str, &str) = (
    "bin/lifeboat-restore",
    include_str!("../../../bin/lifeboat-restore"),
);
/// What every version of the kit's hooks has in it, and nothing else.
const SHARED: &str = "/lifeboat.sh\"";
const KEYS: [&str; 2] = ["LIFEBOAT_ACCESS_KEY_ID", "LIFEBOAT_SECRET_ACCESS_KEY"];

/// Names of the secrets of the accessory.
fn secret_names(project: &Project, needs_keys: bool) -> Vec<&'static str> {
    let mut names = Vec::new();
    if needs_keys {
        names.extend(KEYS);
    }
    if project.has_postgres() {
        names.push("DATABASE_URL");
    }
    names
}

/// Lines under `accessories:`, indented by two.
pub(super) fn accessory(project: &Project, needs_keys: bool) -> String {
    let secrets = secret_names(project, needs_keys);
    let mut out = format!(
        "  lifeboat:\n    image: {IMAGE}   # CHANGE THIS: where your image is\n    host: {}\n",
        project
            .hosts
            .first()
            .map_or("192.0.2.10   # CHANGE THIS: the app's server", |h| h)
    );
    if !secrets.is_empty() {
        out += "    env:\n      secret:\n";
        for name in secrets {
            out += &format!("        - {name}\n");
        }
    }
    out += "    files:\n      - config/lifeboat.yml:/etc/lifeboat.yml\n    volumes:\n";
    for (source, target) in &project.volumes {
        out += &format!("      - {source}:{}\n", target.display());
    }
    out += &format!(
        "      - {}_lifeboat:/var/lib/lifeboat\n    port: \"127.0.0.1:9464:9464\"   # never without the address: Docker opens ports past the host's firewall\n    options:\n      stop-timeout: 60\n      uts: host\n",
        project.service
    );
    out
}

/// Lines under `aliases:`, indented by two.
pub(super) fn aliases() -> String {
    ALIASES
        .lines()
        .filter(|l| l.starts_with("  "))
        .map(|l| format!("{l}\n"))
        .collect()
}

/// `deploy.yml` with a block under a key: everything else stays as it was written.
///
/// # Errors
/// In words, if the file is written in a way that this does not understand; then it has to be done by hand.
pub(super) fn with_block(text: &str, key: &str, block: &str) -> Result<String, String> {
    let by_hand = || format!("`{key}:` in config/deploy.yml is not a plain block");
    let before = parse(text)?;
    let start = text.lines().position(|l| {
        let rest = l.strip_prefix(key).and_then(|r| r.strip_prefix(':'));
        rest.is_some_and(|r| r.trim().is_empty() || r.trim().starts_with('#'))
    });
    let after = match start {
        Some(start) => {
            let lines: Vec<&str> = text.lines().collect();
            let child = lines[start + 1..]
                .iter()
                .find(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'));
            let indent = child.map_or(2, |l| l.len() - l.trim_start().len());
            if indent == 0 && !before[key].is_null() {
                return Err(by_hand());
            }
            let indent = if indent == 0 { 2 } else { indent };
            let block: String = block.lines().map(|l| reindented(l, indent)).collect();
            format!(
                "{}\n{block}{}\n",
                lines[..=start].join("\n"),
                lines[start + 1..].join("\n")
            )
        }
        None if before.get(key).is_some() => return Err(by_hand()),
        None => format!("{}\n\n{key}:\n{block}", text.trim_end()),
    };
    // Nothing else may have changed.
    let mut parsed = parse(&after)?;
    let added = parse(&format!("{key}:\n{block}"))?;
    let names: Vec<String> = added[key]
        .as_object()
        .map_or(Vec::new(), |m| m.keys().cloned().collect());
    let map = parsed[key].as_object_mut().ok_or_else(by_hand)?;
    for name in &names {
        if map.remove(name) != Some(added[key][name].clone()) {
            return Err(by_hand());
        }
    }
    if map.is_empty() && !before[key].is_object() {
        parsed[key] = before[key].clone();
        if before.get(key).is_none()
            && let Some(all) = parsed.as_object_mut()
        {
            all.remove(key);
        }
    }
    if parsed != before {
        return Err(by_hand());
    }
    Ok(after)
}

fn reindented(line: &str, step: usize) -> String {
    let depth = (line.len() - line.trim_start().len()) / 2;
    format!("{}{}\n", " ".repeat(depth * step), line.trim_start())
}

/// `deploy.yml` with the accessory and the aliases that are not there yet; `None` if nothing is missing.
///
/// # Errors
/// As [`with_block`].
pub(super) fn deploy_yml(
    text: &str,
    project: &Project,
    needs_keys: bool,
) -> Result<Option<String>, String> {
    let mut out = text.to_owned();
    if !project.accessories.iter().any(|a| a == "lifeboat") {
        out = with_block(&out, "accessories", &accessory(project, needs_keys))?;
    }
    let there = parse(&out)?;
    let missing: String = aliases()
        .lines()
        .filter(|l| {
            let name = l.trim().split(':').next().unwrap_or_default();
            there["aliases"][name] == Value::Null
        })
        .map(|l| format!("{l}\n"))
        .collect();
    if !missing.is_empty() {
        out = with_block(&out, "aliases", &missing)?;
    }
    Ok((out != text).then_some(out))
}

/// What is to be done with a file of the kit.
pub(super) enum Script {
    /// It is there, as it should be.
    Same(PathBuf),
    /// To be written.
    New(PathBuf, &'static str),
    /// Somebody else's hook has the name: to be written beside it, under this one.
    Beside(PathBuf, &'static str),
    /// The kit's own, but not this version's, or changed.
    Changed(PathBuf),
}

/// The files of the kit. Nothing that is there is replaced.
pub(super) fn scripts(project: &Project) -> Vec<Script> {
    let hooks = HOOKS
        .iter()
        .map(|(name, text)| script(project.hooks.join(name), text));
    hooks.chain([script(RESTORE.0.into(), RESTORE.1)]).collect()
}

fn script(path: PathBuf, text: &'static str) -> Script {
    let Ok(own) = std::fs::read_to_string(&path) else {
        return Script::New(path, text);
    };
    let mode = std::fs::metadata(&path).map_or(0, |m| m.permissions().mode());
    if own == text {
        // Kamal refuses a hook that cannot be run.
        return match mode & 0o111 == 0o111 {
            true => Script::Same(path),
            false => Script::New(path, text),
        };
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with("lifeboat") || own.contains(SHARED) {
        return Script::Changed(path);
    }
    let beside = path.with_file_name(format!("lifeboat-{name}"));
    match script(beside, text) {
        Script::New(beside, text) => Script::Beside(beside, text),
        there => there,
    }
}

/// Lines for `.kamal/secrets` that are not in it.
pub(super) fn secrets(text: &str, project: &Project, needs_keys: bool) -> String {
    let missing = secret_names(project, needs_keys)
        .into_iter()
        .filter(|name| {
            let is_it = |l: &str| l.split('=').next().is_some_and(|n| n.trim() == *name);
            !text.lines().any(is_it)
        });
    missing.map(|name| format!("{name}=${name}\n")).collect()
}

/// Writes an executable file, its folders too.
pub(super) fn write_script(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &str = "  lifeboat:\n    image: x\n    env:\n      secret: [A]\n";

    #[test]
    fn a_block_goes_where_it_belongs_and_nothing_else_changes() {
        let there = "service: a\naccessories:   # others\n    # of them\n    db:\n        image: postgres:17\naliases:\n  x: y\n";
        let after = with_block(there, "accessories", BLOCK).unwrap();
        assert!(
            after.contains(
                "    lifeboat:\n        image: x\n        env:\n            secret: [A]\n"
            ),
            "{after}"
        );
        assert_eq!(
            parse(&after).unwrap()["accessories"]["db"]["image"],
            "postgres:17"
        );
        let without = "service: a\nenv:\n  clear: { A: <%= 1 %> }\n# accessories:\n#   db:\n";
        let after = with_block(without, "accessories", BLOCK).unwrap();
        assert!(after.starts_with(without.trim_end()), "{after}");
        let empty = "accessories:\nservice: a\n";
        let after = with_block(empty, "accessories", BLOCK).unwrap();
        assert_eq!(parse(&after).unwrap()["service"], "a");
    }

    #[test]
    fn what_is_not_understood_is_left_to_a_person() {
        for text in [
            "accessories: {}\n",
            "accessories: { db: { image: x } }\n",
            "accessories: &a\n  db: 1\n",
            "\"accessories\":\n  db: 1\n",
        ] {
            assert!(with_block(text, "accessories", BLOCK).is_err(), "{text}");
        }
    }
}
