//! Every command of the documentation is run: those of each page by the script of its name in tests/pages, as they stand, on real databases and
//! servers. A command that no script runs fails the page's test; a page without a test fails, too.
//!
//! Not here: blocks marked `sh test` (tests/docs.rs, tests/quick_start.rs), `sh test-postgresql` (tests/runbooks_postgresql.rs) and
//! `console transcript` (tests/transcripts.rs).
#![allow(missing_docs)]

mod common;
mod pg;
#[allow(dead_code, reason = "a part of it is used here")]
mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::kamal::{Project, repo, text};
use common::pages::{blocks, commands, pages};
use common::receiver::{Manner, Receiver};
use common::{python, solid};
use pg::{Server, URL_PASSWORD, programs};

/// What a page needs beside a folder and an S3 server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Postgres,
    Redis,
    /// A database with the tables of Solid Queue, and a job that waits.
    Solid,
    /// Somebody who takes notifications.
    Receiver,
    /// A project with servers, and the stand-in for Kamal.
    Kamal,
}
use Need::*;

macro_rules! pages {
    ($($test:ident $page:literal $needs:expr;)*) => {
        const PAGES: &[&str] = &[$($page),*];
        $(#[test] fn $test() { run($page, &$needs); })*
    };
}

pages! {
    readme "README.md" [Receiver];
    demo "docs/demo.md" [];
    doctor "docs/doctor.md" [];
    drills "docs/drills.md" [];
    evidence "docs/evidence.md" [];
    files "docs/files.md" [];
    follow "docs/follow.md" [];
    init "docs/init.md" [];
    labels "docs/labels.md" [];
    litestream "docs/litestream.md" [];
    migrating_from_litestream "docs/migrating-from-litestream.md" [Kamal];
    notifications "docs/notifications.md" [Receiver];
    observability "docs/observability.md" [Postgres];
    postgresql "docs/postgresql.md" [Postgres];
    redis "docs/redis.md" [Redis];
    restore "docs/restore.md" [Postgres, Solid];
    runbooks "docs/runbooks.md" [Kamal];
}

/// Commands that only CI can run: what runs them, and by which words.
fn elsewhere() -> Vec<(String, PathBuf, String)> {
    let list = std::fs::read_to_string(repo("tests/pages/elsewhere")).unwrap();
    let lines = list.lines().filter(|l| !l.starts_with('#'));
    lines
        .map(|line| {
            let parts: Vec<&str> = line.split(" | ").collect();
            let [command, file, words] = parts[..] else {
                panic!("tests/pages/elsewhere: {line}")
            };
            (command.into(), repo(file), words.into())
        })
        .collect()
}

fn run(page: &str, needs: &[Need]) {
    let name = Path::new(page).file_stem().unwrap().to_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for folder in [
        "bin",
        "work",
        "tmp",
        "root/backups",
        "root/data",
        "root/etc",
        "root/rails/storage",
        "root/run/secrets",
        "root/tmp",
    ] {
        std::fs::create_dir_all(path(folder)).unwrap();
    }
    for file in ["out", "ran", "pids"] {
        std::fs::write(path(file), "").unwrap();
    }
    for program in ["lifeboat", "cargo"] {
        symlink(repo("tests/pages").join(program), path("bin").join(program)).unwrap();
    }
    let wanted = commands(&repo(page));
    std::fs::write(path("commands"), wanted.join("\n") + "\n").unwrap();

    let s3 = support::s3();
    for bucket in ["my-backups", "production-backups"] {
        std::fs::create_dir(s3.directory.path().join(bucket)).unwrap();
    }
    let mut env = vec![
        ("AWS_ENDPOINT_URL", format!("http://{}", s3.address)),
        ("AWS_ACCESS_KEY_ID", support::S3_ACCESS_KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", support::S3_SECRET_KEY.into()),
        ("AWS_REGION", "us-east-1".into()),
        ("BUCKETS", s3.directory.path().display().to_string()),
    ];
    let mut path_of_programs = format!("{}:{}", path("bin").display(), programs().display());
    let project = needs.contains(&Kamal).then(Project::new);
    if let Some(project) = &project {
        env.push(("STUB", project.path("stub").display().to_string()));
        env.push(("STUB_PATH", project.container_path()));
        env.push(("PROJECT", project.path("project").display().to_string()));
        path_of_programs += &format!(":{}", project.path("bin").display());
    }
    let postgres = needs.contains(&Postgres).then(|| {
        let server = Server::start();
        server.sql("postgres", "CREATE DATABASE app;");
        server
    });
    if let Some(server) = &postgres {
        let folder = server.folder.path().display();
        env.push((
            "DATABASE_URL",
            format!("postgres://boss:{URL_PASSWORD}@/app?host={folder}"),
        ));
    }
    let redis = needs.contains(&Redis).then(common::redis::Redis::start);
    if let Some(redis) = &redis {
        env.push(("REDIS_URL", redis.url()));
        env.push((
            "REDIS_SOCKET",
            redis.folder.path().join("redis.sock").display().to_string(),
        ));
        env.push(("REDISCLI_AUTH", common::redis::PASSWORD.into()));
    }
    let receiver = needs
        .contains(&Receiver)
        .then(|| Receiver::new(Manner::Good));
    if let Some(receiver) = &receiver {
        env.push(("RECEIVER", format!("http://127.0.0.1:{}", receiver.port)));
    }
    if needs.contains(&Solid) {
        let db = path("solid.sqlite3");
        python(&db, "conn().execute('pragma journal_mode=wal')");
        solid::make(&db);
        solid::app(&db, "job('default', 'ready')");
        env.push(("SOLID", db.display().to_string()));
    }

    let script = format!(
        "set -euE -o pipefail\ntrap 'kill -9 $(cat \"$LAB/pids\") 2>/dev/null || true' EXIT\ntrap 'echo \"tests/pages/{name}.sh: line $LINENO: $BASH_COMMAND\" >&2; tail -20 \"$LAB/out\" | sed \"s/^/    /\" >&2' ERR\n. '{0}/lab.sh'\n. '{0}/{name}.sh'\n",
        repo("tests/pages").display()
    );
    let out = Command::new("bash")
        .args(["-c", &script])
        .current_dir(path("work"))
        .env_clear()
        .env(
            "PATH",
            format!("{path_of_programs}:/usr/local/bin:/usr/bin:/bin"),
        )
        .env("HOME", dir.path())
        .env("TMPDIR", path("tmp"))
        .env("LAB", dir.path())
        .env("PAGE", repo(page))
        .env("TOOLS", repo(".tools"))
        .env("LIFEBOAT", env!("CARGO_BIN_EXE_lifeboat"))
        .env("LIFEBOAT_HTTP_LISTEN", "off")
        .env("LIFEBOAT_INSTANCE", "web1")
        .env("THEN", a_day_ago())
        .envs(env)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    for pid in std::fs::read_to_string(path("pids")).unwrap().lines() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            // Gone already is fine.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let log = std::fs::read_to_string(path("daemon.log")).unwrap_or_default();
    assert!(out.status.success(), "{page}\n{}\n{log}", text(&out));

    let ran = std::fs::read_to_string(path("ran")).unwrap();
    let ran: BTreeSet<&str> = ran.lines().collect();
    let elsewhere = elsewhere();
    let forgotten: Vec<&String> = wanted
        .iter()
        .filter(|c| !ran.contains(c.as_str()) && !elsewhere.iter().any(|(e, ..)| e == *c))
        .collect();
    assert!(
        forgotten.is_empty(),
        "{page}: tests/pages/{name}.sh does not run {forgotten:#?}"
    );
}

/// A moment that is a day ago, to the minute, as a person writes it.
fn a_day_ago() -> String {
    let then = jiff::Timestamp::now() - jiff::Span::new().hours(24);
    then.strftime("%Y-%m-%dT%H:%M").to_string()
}

#[test]
fn every_page_with_commands_is_run() {
    let elsewhere = elsewhere();
    let mut seen = BTreeSet::new();
    for page in pages() {
        let all = commands(&page);
        seen.extend(all.clone());
        let here = all.iter().any(|c| !elsewhere.iter().any(|(e, ..)| e == c));
        let name = page.strip_prefix(repo("")).unwrap().to_str().unwrap();
        assert_eq!(
            here,
            PAGES.contains(&name),
            "{name}: has it commands ({here}), and a test in tests/pages.rs?"
        );
    }
    assert!(seen.len() > 100, "only {} commands were found", seen.len());
    for (command, file, words) in elsewhere {
        assert!(seen.contains(&command), "no page has: {command}");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            text.contains(&words),
            "{} does not run {words}",
            file.display()
        );
    }
}

/// What a block may be: something that is run or loaded, or what another program prints or takes.
#[test]
fn every_block_is_of_a_kind_that_is_tested() {
    for page in pages() {
        let name = page.file_name().unwrap().to_str().unwrap();
        for block in blocks(&page) {
            let known = match block.language.as_str() {
                // Above.
                "" | "sh" | "sql" => true,
                // tests/docs.rs
                "yaml" => true,
                "sh test" => ["runbooks.md", "kamal.md"].contains(&name),
                "sh test-postgresql" => name == "runbooks-postgresql.md",
                // tests/transcripts.rs knows the pages.
                other if other.starts_with("console transcript") => true,
                // Shown, not run.
                "json" | "ruby" | "text" => true,
                _ => false,
            };
            assert!(
                known,
                "{name}: what tests a block marked {:?}?",
                block.language
            );
        }
    }
}
