//! The quick starts of docs/kamal.md as they stand, each from an empty project to data that was restored: the accessory runs with what the page's own
//! YAML says, against a real S3 server.
#![allow(missing_docs)]

mod common;
mod pg;
#[allow(dead_code, reason = "a part of it is used here")]
mod support;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use common::kamal::{Project, repo, text};
use common::pages::{blocks, sections};
use pg::{Server, URL_PASSWORD, programs};
use serde_json::Value;

const PAGE: &str = "docs/kamal.md";
const TITLES: [&str; 2] = ["SQLite", "+ PostgreSQL"];

#[test]
fn every_section_with_commands_is_here() {
    let sections = sections(&repo(PAGE), "sh test");
    let titles: Vec<&str> = sections.iter().map(|(title, _)| title.as_str()).collect();
    assert_eq!(titles, TITLES);
}

/// What a person has when all is done: a laptop without any file of Lifeboat, a server with an app, a bucket.
struct Start {
    project: Project,
    s3: support::Server,
    postgres: Option<Server>,
}

impl Start {
    fn new() -> Self {
        let project = Project::empty(&["web1"]);
        project.app("web1");
        std::fs::remove_dir_all(project.path("project")).unwrap();
        std::fs::create_dir_all(project.path("project/config")).unwrap();
        symlink(repo(""), project.path("project/lifeboat")).unwrap();
        let s3 = support::s3();
        std::fs::create_dir(s3.directory.path().join("my-backups")).unwrap();
        Self {
            project,
            s3,
            postgres: None,
        }
    }

    fn with_postgres() -> Self {
        let server = Server::start();
        server.sql("postgres", "CREATE DATABASE app;");
        server.sql(
            "app",
            "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders SELECT generate_series(1, 1000);",
        );
        Self {
            postgres: Some(server),
            ..Self::new()
        }
    }

    fn database_url(&self, name: &str) -> String {
        let server = self.postgres.as_ref().unwrap();
        let folder = server.folder.path().display();
        format!("postgres://boss:{URL_PASSWORD}@/{name}?host={folder}")
    }

    /// Writes config/deploy.yml, and what Kamal would make of its accessory: the container's environment and mounts.
    fn deploy_yml(&self, accessory: &str) {
        let project = &self.project;
        std::fs::write(project.path("project/config/deploy.yml"), accessory).unwrap();
        let yaml: Value = serde_saphyr::from_str(accessory).unwrap();
        let accessory = &yaml["accessories"]["lifeboat"];
        let mut env = std::fs::read_to_string(project.host("web1", "env")).unwrap();
        // The store is the page's, at another address.
        env = env
            .lines()
            .filter(|l| !l.starts_with("LIFEBOAT_STORE_URL="))
            .map(|l| format!("{l}\n"))
            .collect();
        env += &format!("AWS_ENDPOINT_URL=http://{}\n", self.s3.address);
        for (name, value) in accessory["env"]["clear"].as_object().into_iter().flatten() {
            env += &format!("{name}={}\n", value.as_str().unwrap());
        }
        for name in accessory["env"]["secret"].as_array().unwrap() {
            let value = match name.as_str().unwrap() {
                "LIFEBOAT_ACCESS_KEY_ID" => support::S3_ACCESS_KEY.to_owned(),
                "LIFEBOAT_SECRET_ACCESS_KEY" => support::S3_SECRET_KEY.to_owned(),
                "DATABASE_URL" => self.database_url("app"),
                other => panic!("the page says nothing of {other}"),
            };
            env += &format!("{}={value}\n", name.as_str().unwrap());
        }
        let volumes = accessory["volumes"].to_string();
        if !volumes.contains(":/rails/storage") {
            let mounted: Vec<&str> = env
                .lines()
                .filter(|l| !l.starts_with("LIFEBOAT_DATABASES="))
                .collect();
            env = mounted.join("\n") + "\n";
        }
        if let Some(files) = accessory["files"].as_array() {
            assert_eq!(files[0], "config/lifeboat.yml:/etc/lifeboat.yml");
            let config = std::fs::read_to_string(repo("config/kamal/lifeboat.yml")).unwrap();
            let config = config
                .replace(
                    "/rails/storage",
                    project.host("web1", "volume").to_str().unwrap(),
                )
                .replace(
                    "/var/lib/lifeboat",
                    project.host("web1", "state").to_str().unwrap(),
                );
            std::fs::write(project.host("web1", "lifeboat.yml"), config).unwrap();
            let lines: Vec<&str> = env
                .lines()
                .filter(|l| {
                    !l.starts_with("LIFEBOAT_DATABASES=") && !l.starts_with("LIFEBOAT_STATE_DIR=")
                })
                .collect();
            env = lines.join("\n") + "\n";
        }
        std::fs::write(project.host("web1", "env"), env).unwrap();
        std::fs::write(project.host("web1", "boot-accessory"), "lab sidecar\n").unwrap();
    }

    fn run(&self, titles: &[&str]) {
        let script: String = sections(&repo(PAGE), "sh test")
            .into_iter()
            .filter(|(title, _)| titles.contains(&title.as_str()))
            .map(|(_, script)| script)
            .collect();
        let mut command: Command = self.project.command(Path::new("/bin/bash"));
        if self.postgres.is_some() {
            let path = format!(
                "{}:{}:/usr/local/bin:/usr/bin:/bin",
                self.project.path("bin").display(),
                programs().display()
            );
            command
                .env("PATH", path)
                .env("DATABASE_URL", self.database_url("app"))
                .env("CHECK_URL", self.database_url("app_check"));
        }
        let out = command
            .args(["-c", &format!("set -eux\n{script}")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let log = std::fs::read_to_string(self.project.host("web1", "log")).unwrap_or_default();
        let hooks = self.project.read("hook-output");
        assert!(out.status.success(), "{}\n{hooks}\n{log}", text(&out));
        let said = text(&out);
        assert!(said.contains("lifeboat: ok restore"), "{said}");
    }
}

/// The step "Take the hooks, the script for restores and the aliases", for a section that builds on another.
fn kit() -> String {
    let (_, script) = sections(&repo(PAGE), "sh test").swap_remove(0);
    let lines = script
        .lines()
        .filter(|l| ["mkdir ", "cp ", "grep "].iter().any(|c| l.starts_with(c)));
    lines.map(|l| format!("{l}\n")).collect()
}

fn example() -> String {
    let all = blocks(&repo(PAGE));
    let block = all.iter().find(|b| b.language == "yaml");
    block.expect("the accessory of the page").lines.join("\n") + "\n"
}

/// Rails writes aliases and hooks of its own into a new app: they stay.
#[test]
fn what_the_app_has_already_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(path(".kamal/hooks")).unwrap();
    std::fs::create_dir(path("config")).unwrap();
    std::fs::write(path(".kamal/hooks/pre-deploy"), "mine").unwrap();
    let own = "service: app\naliases:\n  console: app exec -i bin/rails console\n";
    std::fs::write(path("config/deploy.yml"), own).unwrap();
    std::os::unix::fs::symlink(repo(""), path("lifeboat")).unwrap();
    let run = || {
        let done = Command::new("bash")
            .args(["-euc", &kit()])
            .current_dir(dir.path())
            .status();
        assert!(done.unwrap().success());
    };
    run();
    let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    assert_eq!(read("config/deploy.yml"), own);
    assert_eq!(read(".kamal/hooks/pre-deploy"), "mine");
    assert!(read(".kamal/hooks/post-deploy").contains("lifeboat"));
    std::fs::write(path("config/deploy.yml"), "service: app\n").unwrap();
    run();
    run();
    assert_eq!(read("config/deploy.yml").matches("backup-list:").count(), 1);
}

/// The page's example is the file that it names, without the remarks.
#[test]
fn the_example_is_the_file() {
    let file = std::fs::read_to_string(repo("config/kamal/accessories/sqlite.yml")).unwrap();
    let parse = |text: &str| serde_saphyr::from_str::<Value>(text).unwrap();
    assert_eq!(parse(&example()), parse(&file));
}

#[test]
fn sqlite() {
    let start = Start::new();
    start.deploy_yml(&example());
    start.run(&TITLES[..1]);
    assert!(
        start
            .s3
            .directory
            .path()
            .join("my-backups/myapp/production")
            .exists()
    );
}

fn postgresql_with(file: &str) {
    let start = Start::with_postgres();
    let accessory = std::fs::read_to_string(repo("config/kamal/accessories").join(file)).unwrap();
    start.deploy_yml(&accessory);
    let kit = start
        .project
        .command(Path::new("/bin/bash"))
        .args(["-euc", &kit()])
        .output()
        .unwrap();
    assert!(kit.status.success(), "{}", text(&kit));
    start.run(&TITLES[1..]);
    assert!(
        start
            .s3
            .directory
            .path()
            .join("my-backups/myapp/app/dumps")
            .exists()
    );
}

#[test]
fn postgresql() {
    postgresql_with("postgresql.yml");
}

#[test]
fn postgresql_beside_sqlite() {
    postgresql_with("both.yml");
}
