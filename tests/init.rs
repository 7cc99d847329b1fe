//! `init` finds out what there is, and what it writes works.
#![allow(missing_docs)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::python;
use serde_json::Value;

const DEPLOY: &str = r#"# Name of your application. Used to uniquely configure containers.
service: shop

image: your-user/shop

servers:
  web:
    - 192.0.2.7
  # job:
  #   hosts:
  #     - 192.168.0.1

env:
  secret:
    - RAILS_MASTER_KEY
  clear:
    SOLID_QUEUE_IN_PUMA: true

# Aliases are triggered with "bin/kamal <alias>".
aliases:
  console: app exec --interactive --reuse "bin/rails console"

volumes:
  - "shop_storage:/rails/storage"

builder:
  arch: <%= ENV.fetch("ARCH", "amd64") %>
"#;

const DATABASE: &str = r#"default: &default
  adapter: sqlite3
  pool: <%= ENV.fetch("RAILS_MAX_THREADS") { 5 } %>
  timeout: 5000

development:
  <<: *default
  database: storage/development.sqlite3

production:
  primary:
    <<: *default
    database: storage/production.sqlite3
  cache:
    <<: *default
    database: storage/production_cache.sqlite3
    migrations_paths: db/cache_migrate
  queue:
    <<: *default
    database: storage/production_queue.sqlite3
  cable:
    <<: *default
    database: storage/production_cable.sqlite3
"#;

struct Place(tempfile::TempDir);

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            place.write(name, text);
        }
        place
    }

    fn rails() -> Self {
        Self::new(&[
            ("config/deploy.yml", DEPLOY),
            ("config/database.yml", DATABASE),
            (
                "config/storage.yml",
                "local:\n  service: Disk\n  root: <%= Rails.root.join(\"storage\") %>\n",
            ),
            (
                "config/environments/production.rb",
                "  config.active_storage.service = :local\n",
            ),
            (
                ".kamal/secrets",
                "RAILS_MASTER_KEY=$(cat config/master.key)",
            ),
        ])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn database(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        python(
            &path,
            "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table t(a)'); c.execute('insert into t values(1)')",
        );
        path
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lifeboat"))
            .args(args)
            .current_dir(self.0.path())
            .env("LIFEBOAT_STATE_DIR", self.path("state"))
            .env_remove("DATABASE_URL")
            .output()
            .unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{args:?}: {error}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn fails(&self, code: i32, args: &[&str]) -> String {
        let before = self.listing();
        let out = self.run(args);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains("nothing was written"), "{error}");
        assert_eq!(self.listing(), before, "{args:?}");
        error
    }

    fn listing(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn walk(folder: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                } else {
                    found.push((path.clone(), std::fs::read(path).unwrap()));
                }
            }
        }
        let mut found = Vec::new();
        walk(self.0.path(), &mut found);
        found.sort();
        found
    }
}

fn yaml(text: &str) -> Value {
    let plain = text.replace("<%= ENV.fetch(\"ARCH\", \"amd64\") %>", "x");
    serde_saphyr::from_str(&plain).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Targets of the written configuration, with the container's folders put where they are here.
fn targets(place: &Place, text: &str) -> Vec<String> {
    let text = text
        .replace("/rails/storage", place.path("volume").to_str().unwrap())
        .replace("/var/lib/lifeboat", place.path("state").to_str().unwrap());
    place.write("checked.yml", &text);
    let out = Command::new(env!("CARGO_BIN_EXE_lifeboat"))
        .args(["config", "show", "--json", "--config", "checked.yml"])
        .current_dir(place.0.path())
        .env("DATABASE_URL", "postgres://app:pw@db/shop")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{error}\n{text}");
    let shown: Value = serde_json::from_slice(&out.stdout).unwrap();
    let names = |key: &str| -> Vec<String> {
        let all = shown[key].as_array().unwrap().iter();
        all.map(|t| t["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut all = names("targets");
    all.extend(names("postgres"));
    all
}

#[test]
fn a_rails_project_on_a_laptop() {
    let place = Place::rails();
    let said = place.ok(&["init"]);
    assert_eq!(place.read("config/deploy.yml"), DEPLOY, "only shown");
    for expected in [
        "    host: 192.0.2.7\n",
        "      - shop_storage:/rails/storage\n",
        "wrote config/lifeboat.yml",
        "lifeboat init --kamal",
    ] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
    assert!(said.ends_with("lifeboat: ok init written=1\n"), "{said}");
    let text = place.read("config/lifeboat.yml");
    assert!(
        text.contains("s3://my-backups/shop") && text.contains("CHANGE THIS"),
        "{text}"
    );
    assert!(text.contains("# files:"), "uploads on disk: {text}");
    for name in ["", "_cache", "_queue", "_cable"] {
        place.database(&format!("volume/production{name}.sqlite3"));
    }
    assert_eq!(
        targets(&place, &text),
        ["production", "production_cable", "production_queue"]
    );
    // What is only a comment works, too.
    let files = text.replace("# files:", "files:").replace("\n#   ", "\n  ");
    let files = files.replace("${LIFEBOAT_FILES_PASSWORD}", "secret");
    targets(&place, &files);
}

#[test]
fn into_the_kamal_project() {
    let place = Place::rails();
    let said = place.ok(&["init", "--kamal", "--store", "s3://real/shop"]);
    let deploy = place.read("config/deploy.yml");
    let lost: Vec<&str> = DEPLOY
        .lines()
        .filter(|l| !deploy.lines().any(|d| d == *l))
        .collect();
    assert!(lost.is_empty(), "{lost:?}\n{deploy}");
    let (was, now) = (yaml(DEPLOY), yaml(&deploy));
    let accessory = &now["accessories"]["lifeboat"];
    assert_eq!(accessory["host"], "192.0.2.7");
    assert_eq!(accessory["volumes"][0], "shop_storage:/rails/storage");
    assert_eq!(accessory["volumes"][1], "shop_lifeboat:/var/lib/lifeboat");
    assert_eq!(accessory["port"], "127.0.0.1:9464:9464");
    assert_eq!(accessory["options"]["stop-timeout"], 60);
    assert!(now["aliases"]["backup-list"].is_string(), "{deploy}");
    assert_eq!(now["aliases"]["console"], was["aliases"]["console"]);
    for key in ["service", "servers", "env", "volumes", "builder"] {
        assert_eq!(now[key], was[key], "{key}");
    }
    let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kamal/hooks");
    for hook in ["lifeboat.sh", "pre-deploy", "pre-app-boot", "post-deploy"] {
        let path = place.path(&format!(".kamal/hooks/{hook}"));
        assert_eq!(
            std::fs::read(&path).unwrap(),
            std::fs::read(kit.join(hook)).unwrap()
        );
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o111,
            0o111,
            "{hook}"
        );
    }
    assert!(place.path("bin/lifeboat-restore").exists());
    assert_eq!(
        place.read(".kamal/secrets"),
        "RAILS_MASTER_KEY=$(cat config/master.key)\nLIFEBOAT_ACCESS_KEY_ID=$LIFEBOAT_ACCESS_KEY_ID\nLIFEBOAT_SECRET_ACCESS_KEY=$LIFEBOAT_SECRET_ACCESS_KEY\n"
    );
    assert!(
        place
            .read("config/lifeboat.yml")
            .contains("url: s3://real/shop\n")
    );
    assert!(!said.contains("put your bucket"), "{said}");

    // The steps as they are told: init, then the bucket, then --kamal.
    let place = Place::rails();
    place.ok(&["init"]);
    let edited = place
        .read("config/lifeboat.yml")
        .replace("my-backups", "real");
    place.write("config/lifeboat.yml", &edited);
    let said = place.ok(&["init", "--kamal"]);
    assert!(said.contains("stays as it is"), "{said}");
    assert_eq!(place.read("config/lifeboat.yml"), edited);
    assert!(place.path(".kamal/hooks/pre-deploy").exists());

    // Again: everything is there.
    let place = Place::rails();
    place.ok(&["init", "--kamal", "--store", "s3://real/shop"]);
    let before = place.listing();
    let said = place.ok(&["init", "--kamal", "--store", "s3://real/shop"]);
    assert!(said.ends_with("lifeboat: ok init written=0\n"), "{said}");
    assert_eq!(place.listing(), before);
}

#[test]
fn what_is_odd_about_a_project_is_said() {
    let place = Place::rails();
    place.write(".kamal/hooks/pre-deploy", "#!/bin/sh\necho mine\n");
    place.write(
        "config/deploy.yml",
        "service: shop\nservers:\n  web: [192.0.2.7, 192.0.2.8]\n  job: { hosts: [203.0.113.6, 192.0.2.7] }\nvolumes: [\"data:/data\"]\naccessories:\n    db:\n        image: postgres:17\n",
    );
    place.write(
        "config/database.yml",
        "production:\n  primary: { adapter: postgresql, url: <%= ENV['DATABASE_URL'] %> }\n  cache: { adapter: trilogy }\n  queue: { adapter: sqlite3, database: storage/production_queue.sqlite3 }\n",
    );
    let said = place.ok(&["init", "--kamal", "--json"]);
    let told: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let warnings = told["warnings"].to_string();
    for expected in [
        "cache is on trilogy",
        "mounts no volume there",
        "the app has 2 servers",
        "role job runs on 203.0.113.6: SQLite databases there are its own",
        "sh .kamal/hooks/lifeboat-pre-deploy",
    ] {
        assert!(warnings.contains(expected), "{expected} in {warnings}");
    }
    assert!(!warnings.contains("job runs on 192.0.2.7"), "{warnings}");
    assert_eq!(
        place.read(".kamal/hooks/pre-deploy"),
        "#!/bin/sh\necho mine\n"
    );
    assert!(place.path(".kamal/hooks/lifeboat-pre-deploy").exists());
    let now = yaml(&place.read("config/deploy.yml"));
    assert_eq!(now["accessories"]["db"]["image"], "postgres:17");
    let secrets = now["accessories"]["lifeboat"]["env"]["secret"].to_string();
    assert!(secrets.contains("DATABASE_URL"), "{secrets}");
    place.database("volume/production_queue.sqlite3");
    let all = targets(&place, &place.read("config/lifeboat.yml"));
    assert_eq!(all, ["production_queue", "app"]);
    // Nothing restores the dumps before somebody says where.
    let text = place.read("config/lifeboat.yml");
    assert!(
        text.contains("of PostgreSQL: where there is a `drill-url`"),
        "{text}"
    );
    let text = text.replace("# drill-url: ${DRILL_URL}", "drill-url: postgres://u@h/d");
    let text = text.replace("    # assert:", "    assert:");
    assert_eq!(targets(&place, &text), all);
}

#[test]
fn nothing_is_written_when_something_is_in_the_way() {
    let place = Place::rails();
    place.write("config/lifeboat.yml", "# mine\n");
    let error = place.fails(4, &["init"]);
    assert!(error.contains("--force"), "{error}");
    let before = place.listing();
    let said = place.ok(&["init", "--dry-run", "--kamal"]);
    assert_eq!(place.listing(), before);
    assert!(
        said.contains("# config/deploy.yml") && said.contains("written=0 dry-run"),
        "{said}"
    );
    let said = place.ok(&["init", "--dry-run"]);
    assert!(said.contains("# config/lifeboat.yml"), "{said}");
    assert_eq!(place.listing(), before);
    place.ok(&["init", "--force"]);
    assert!(place.read("config/lifeboat.yml").contains("sqlite:"));

    place.write("config/deploy.yml", "service: shop\naccessories: {}\n");
    let error = place.fails(1, &["init", "--force", "--kamal"]);
    assert!(error.contains("not a plain block"), "{error}");
    place.write("config/deploy.yml", "service: [shop\n");
    let error = place.fails(2, &["init", "--force"]);
    assert!(error.contains("config/deploy.yml"), "{error}");
    let empty = Place::new(&[("notes.txt", "no database")]);
    empty.fails(3, &["init", "."]);
    empty.fails(2, &["init", "nowhere"]);
    empty.fails(2, &["init", "--kamal"]);
}

/// From a folder full of databases to copies of each, without a word of configuration.
#[test]
fn a_folder_of_databases() {
    let place = Place::new(&[]);
    for name in [
        "data/production.sqlite3",
        "data/production_queue.sqlite3",
        "data/production_cache.sqlite3",
        "data/backup-2026-11-20.sqlite3",
        "data/with a space.data",
        "data/cost$s/it's.db",
        "data/cost$s/production.sqlite3",
    ] {
        place.database(name);
    }
    place.write("data/readme.db", "not a database at all");
    std::fs::create_dir(place.path("state")).unwrap();
    let store = format!("file://{}", place.path("store").display());
    let said = place.ok(&["init", "data", "--store", &store]);
    let text = place.read("lifeboat.yml");
    assert!(!text.contains("readme.db"), "{text}");
    assert!(
        said.contains("readme.db is named like a database"),
        "{said}"
    );
    for left in [
        "data/production_cache.sqlite3: a cache can be built again",
        "data/backup-2026-11-20.sqlite3: a backup copy by its name",
    ] {
        let line = said.lines().find(|l| l.contains(left));
        assert!(line.is_some_and(|l| l.starts_with("left out /")), "{said}");
    }
    place.ok(&["config", "check"]);
    assert!(said.contains("lifeboat doctor"), "{said}");
    let synced = place.ok(&["sync"]);
    let mut names: Vec<&str> = synced
        .lines()
        .filter(|l| l.contains("durable up to"))
        .filter_map(|l| l.split(':').next())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "cost-s-production",
            "it-s",
            "production",
            "production_queue",
            "with-a-space"
        ],
        "{text}\n{synced}"
    );
    for name in names {
        let out = format!("restored-{name}");
        place.ok(&["restore", name, "-o", &out, "--verify", "full"]);
        assert_eq!(
            python(
                &place.path(&out),
                "print(conn().execute('select a from t').fetchone()[0])"
            ),
            "1"
        );
    }
    assert!(
        !text.contains("_cache"),
        "a cache in a folder that is not taken whole: {text}"
    );
    // Without that file the folder is taken whole, and finds what comes.
    std::fs::remove_file(place.path("data/readme.db")).unwrap();
    place.ok(&["init", "data", "--store", &store, "--force"]);
    place.database("data/tomorrow.sqlite3");
    let synced = place.ok(&["sync"]);
    assert!(synced.contains("tomorrow: durable up to"), "{synced}");
    std::fs::remove_file(place.path("data/tomorrow.sqlite3")).unwrap();
    let again = place.ok(&["init", "data", "--store", &store]);
    assert!(again.ends_with("lifeboat: ok init written=0\n"), "{again}");
}
