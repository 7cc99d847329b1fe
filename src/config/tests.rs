//! Whole configurations: files, environments and command lines on a machine made for the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::load::{Host, load_on};
use super::*;
use crate::labels::Rules;

const DAY: Duration = Duration::from_secs(86_400);

/// A machine: an empty working directory, an environment, and arguments.
pub(super) struct Machine {
    dir: TempDir,
    env: Vec<(&'static str, String)>,
    args: LoadArgs,
}

impl Machine {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("temporary folder"),
            env: vec![],
            args: LoadArgs::default(),
        }
    }

    pub(super) fn with_file(text: &str) -> Self {
        Self::new().file("lifeboat.yml", text)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().canonicalize().expect("temporary folder")
    }

    fn file(self, name: &str, text: &str) -> Self {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(path, text).expect("file");
        self
    }

    pub(super) fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.push((name, value.into()));
        self
    }

    fn databases(mut self, words: &[&str]) -> Self {
        self.args.databases = words.iter().map(PathBuf::from).collect();
        self
    }

    fn config(mut self, path: &str) -> Self {
        self.args.config = Some(self.root().join(path));
        self
    }

    fn result(&self) -> Result<Config, ConfigError> {
        load_on(
            &self.args,
            &self.env.iter().cloned().collect(),
            &Host::for_tests(&self.root()),
        )
    }

    #[track_caller]
    fn load(&self) -> Config {
        self.result()
            .unwrap_or_else(|e| panic!("{e} ({:?})", e.hint()))
    }

    /// The error's text, without the folder of the machine, and its hint.
    #[track_caller]
    pub(super) fn error(&self) -> (String, String) {
        let error = self.result().err().unwrap_or_else(|| panic!("loads"));
        assert_eq!(error.exit_code(), 2);
        let root = format!("{}/", self.root().display());
        let clean = |text: String| text.replace(&root, "");
        (
            clean(error.to_string()),
            clean(error.hint().unwrap_or_default()),
        )
    }
}

fn target<'a>(config: &'a Config, name: &str) -> &'a TargetConfig {
    config
        .targets
        .iter()
        .find(|t| t.name == name)
        .unwrap_or_else(|| panic!("no target {name}"))
}

fn names(config: &Config) -> Vec<&str> {
    config.targets.iter().map(|t| t.name.as_str()).collect()
}

fn has_notice(config: &Config, part: &str) -> bool {
    config.notices.iter().any(|n| n.contains(part))
}

const FULL: &str = r#"
# everything at once
store:
  url: s3://my-backups/${APP:-myapp}/
  endpoint: https://s3.example.com
  region: eu-1
  access-key-id: 00123
  secret-access-key: ${SECRET}
sqlite:
  - path: storage/production.sqlite3
    sync-interval: 500ms
    snapshot-interval: 1d
    retention: { point-in-time: 3d, daily: 30, yearly: 2 }
  - path: ./storage/../storage/users.db
    name: people
    retention: 720h
    ensure-wal: false
    stores: [ "file://copies", { url: gs://b/p } ]
  - dir: storage
    pattern: "*.sqlite3"
    watch: true
state-dir: state
http: { listen: 127.0.0.1:9000 }
shutdown-timeout: 10s
store-check: 2h
min-free: 1GiB
time-zone: Europe/Berlin
instance: web-1
"#;

#[test]
fn labels_end_when_the_file_says_so() {
    let text = "store: s3://b\nlabels: { keep: 3, max-age: 400d }\nsqlite:\n  - { path: a.db, retention: 5d }\n  - { dir: data, watch: true }\npostgres: [{ name: p, url: 'postgres://h/d' }]\n";
    let config = Machine::with_file(text).file("data/x_queue.db", "").load();
    let rules = Rules {
        keep: 3,
        max_age: 400 * DAY,
    };
    assert_eq!(config.labels, rules);
    assert_eq!(config.postgres[0].retention.labels, rules);
    assert_eq!(config.dirs[0].options.retention.labels, rules);
    for target in &config.targets {
        assert_eq!(target.options.retention.labels, rules, "{}", target.name);
    }
    assert_eq!(config.targets.len(), 2);
    let shown = config.show();
    assert_eq!(
        shown["labels"],
        serde_json::json!({ "keep": 3, "max-age": "400d" })
    );
    let (error, _) = Machine::with_file(&text.replace("keep: 3", "keep: 0")).error();
    assert!(
        error.contains("`keep`") && error.contains("1 or more"),
        "{error}"
    );
}

#[test]
fn a_folder_whose_databases_are_all_listed_is_not_empty() {
    let text = "store: s3://b\nsqlite:\n  - path: data/a.sqlite3\n  - { dir: data, watch: true }\n";
    let setup = Machine::with_file(text).file("data/a.sqlite3", "");
    let config = setup.load();
    assert!(has_notice(&config, "data beside those listed"));
    let empty = Machine::with_file(&text.replace("data/a", "other/a")).file("data/x", "");
    assert!(has_notice(&empty.load(), "data yet"));
}

#[test]
fn a_full_file() {
    let odd = "a: \"b\" # 'c' ${APP} \\";
    let machine = Machine::with_file(FULL)
        .file("storage/production.sqlite3", "")
        .file("storage/production_queue.sqlite3", "")
        .file("storage/production_cache.sqlite3", "")
        .env("SECRET", odd);
    let config = machine.load();
    let root = machine.root();
    assert_eq!(config.source, ConfigSource::File(root.join("lifeboat.yml")));
    assert_eq!(names(&config), ["production", "people", "production_queue"]);

    let production = target(&config, "production");
    assert_eq!(production.path, root.join("storage/production.sqlite3"));
    assert!(production.explicit && production.options.ensure_wal);
    assert_eq!(production.options.sync_interval, Duration::from_millis(500));
    assert_eq!(production.options.snapshot_interval, DAY);
    let expected = RetentionConfig {
        daily: 30,
        yearly: 2,
        ..RetentionConfig::plain(3 * DAY)
    };
    assert_eq!(production.options.retention, expected);
    let [store] = production.options.stores.as_slice() else {
        panic!("one store")
    };
    assert_eq!(store.url.as_str(), "s3://my-backups/myapp");
    assert_eq!(
        store.access_key_id.as_ref().map(Secret::reveal),
        Some("00123")
    );
    assert_eq!(
        store.secret_access_key.as_ref().map(Secret::reveal),
        Some(odd)
    );
    assert!(store.force_path_style == Some(true) && !store.prefix_is_exact && !store.allow_http);

    let people = target(&config, "people");
    assert_eq!(people.path, root.join("storage/users.db"));
    assert_eq!(people.options.retention, RetentionConfig::plain(30 * DAY));
    assert!(!people.options.ensure_wal);
    let urls: Vec<_> = people
        .options
        .stores
        .iter()
        .map(|s| s.url.to_string())
        .collect();
    assert_eq!(
        urls,
        [
            format!("file://{}/copies", root.display()),
            "gs://b/p".into()
        ]
    );

    let queue = target(&config, "production_queue");
    assert!(!queue.explicit && !queue.options.ensure_wal);
    assert_eq!(queue.options.retention, RetentionConfig::plain(7 * DAY));
    assert!(has_notice(&config, "found database") && has_notice(&config, "left out"));

    assert_eq!(config.dirs.len(), 1);
    assert_eq!(
        (config.dirs[0].dir.clone(), config.dirs[0].pattern.as_str()),
        (root.join("storage"), "*.sqlite3")
    );
    assert_eq!(config.state_dir, Some(root.join("state")));
    assert_eq!(
        config.http.map(|a| a.to_string()).as_deref(),
        Some("127.0.0.1:9000")
    );
    assert_eq!(config.shutdown_timeout, Duration::from_secs(10));
    assert_eq!(config.store_check, Duration::from_secs(7200));
    assert_eq!(config.min_free, MinFree::Bytes(1 << 30));
    assert_eq!(config.time_zone.iana_name(), Some("Europe/Berlin"));
    assert_eq!(config.instance, "web-1");
}

#[test]
fn defaults() {
    let config = Machine::with_file("store: s3://b\nsqlite: [ { path: a.db } ]")
        .env("KAMAL_HOST", "10.0.0.1")
        .load();
    let options = &config.targets[0].options;
    assert_eq!(options.sync_interval, Duration::from_secs(1));
    assert_eq!(options.snapshot_interval, 7 * DAY);
    let retention = RetentionConfig {
        daily: 30,
        weekly: 8,
        monthly: 12,
        ..RetentionConfig::plain(7 * DAY)
    };
    assert_eq!(options.retention, retention);
    assert_eq!(
        config.http.map(|a| a.to_string()).as_deref(),
        Some("0.0.0.0:9464")
    );
    assert_eq!(config.shutdown_timeout, Duration::from_secs(30));
    assert_eq!(config.store_check, Duration::from_secs(3600));
    assert_eq!(config.min_free, MinFree::Percent(10));
    assert_eq!(config.min_free.bytes_of(1_000), 100);
    assert_eq!(
        (
            config.instance.as_str(),
            config.state_dir,
            config.notices.len()
        ),
        ("10.0.0.1", None, 0)
    );
}

#[test]
fn values_that_a_file_may_have() {
    let http = |text: &str| {
        let text = format!("store: s3://b\nsqlite: [{{path: a.db}}]\nhttp: {text}");
        Machine::with_file(&text).load().http.map(|a| a.to_string())
    };
    assert_eq!(http("off"), None);
    assert_eq!(http("{ listen: off }"), None);
    assert_eq!(http("9000").as_deref(), Some("0.0.0.0:9000"));
    assert_eq!(http("':9000'").as_deref(), Some("0.0.0.0:9000"));
    assert_eq!(http("localhost:9000").as_deref(), Some("127.0.0.1:9000"));
    assert_eq!(http("'[::]:9000'").as_deref(), Some("[::]:9000"));

    let retention = |text: &str| {
        let text = format!("store: s3://b\nsqlite: [{{path: a.db, retention: {text}}}]");
        Machine::with_file(&text).load().targets[0]
            .options
            .retention
    };
    assert_eq!(
        retention("{ hourly: 24 }"),
        RetentionConfig {
            hourly: 24,
            ..RetentionConfig::plain(7 * DAY)
        }
    );
    let daily_only = RetentionConfig {
        daily: 1,
        ..RetentionConfig::plain(Duration::ZERO)
    };
    assert_eq!(retention("{ point-in-time: 0, daily: 1 }"), daily_only);
    assert_eq!(retention("2w"), RetentionConfig::plain(14 * DAY));
}

#[test]
fn shared_values_hold_where_a_target_says_nothing() {
    let config = Machine::with_file(
        "store: s3://b\nsync-interval: 5s\nretention: 3d\nsqlite: [{path: a.db}, {path: b.db, retention: 1d}]",
    )
    .env("LIFEBOAT_SYNC_INTERVAL", "9s")
    .load();
    assert_eq!(
        target(&config, "a").options.sync_interval,
        Duration::from_secs(5)
    );
    assert_eq!(
        target(&config, "a").options.retention,
        RetentionConfig::plain(3 * DAY)
    );
    assert_eq!(
        target(&config, "b").options.retention,
        RetentionConfig::plain(DAY)
    );
    assert!(
        has_notice(&config, "LIFEBOAT_SYNC_INTERVAL is not used"),
        "{:?}",
        config.notices
    );
}

#[test]
fn secrets_from_files() {
    let file = "store: { url: abs://box, account-name: a, account-key-file: run/key }\nsqlite: [{path: a.db}]";
    let config = Machine::with_file(file).file("run/key", "k==\n").load();
    assert_eq!(
        config.targets[0].options.stores[0]
            .account_key
            .as_ref()
            .map(Secret::reveal),
        Some("k==")
    );

    let (text, _) = Machine::with_file(file).file("run/key", "\n").error();
    assert_eq!(text, "lifeboat.yml:1: `account-key-file` is empty");
    let (text, _) = Machine::with_file(file).error();
    assert_eq!(text, "cannot read the secret file run/key");
}

#[test]
fn secrets_are_not_shown() {
    let file = "store: { url: s3://b, access-key-id: hunter1, secret-access-key: hunter2, session-token: hunter3 }
sqlite: [{path: a.db}, {path: b.db, store: {url: abs://b, sas-token: hunter4}}, {path: c.db, store: {url: gs://b, google-credentials: '{\"hunter5\": 1}'}}]";
    let config = Machine::with_file(file).load();
    let shown = format!("{config:?} {}", config.show());
    assert!(!shown.contains("hunter"), "{shown}");
    assert!(shown.contains("***"));
    assert_eq!(
        config.show()["targets"][0]["retention"]["point-in-time"],
        "7d"
    );
}

#[test]
fn search_order() {
    let file = |name: &str| format!("store: s3://b\nsqlite: [{{path: {name}.db}}]");
    let machine = Machine::new()
        .file("c1.yml", &file("flag"))
        .file("c2.yml", &file("variable"))
        .file("lifeboat.yml", &file("here"))
        .file("etc/lifeboat.yml", &file("etc"))
        .file(
            "etc/litestream.yml",
            "dbs: [{path: old.db, replica: {url: s3://b/old}}]",
        );
    let root = machine.root();
    let variable = root.join("c2.yml").display().to_string();
    let mut machine = machine.config("c1.yml").env("LIFEBOAT_CONFIG", &variable);
    assert_eq!(names(&machine.load()), ["flag"]);
    machine.args.config = None;
    assert_eq!(names(&machine.load()), ["variable"]);
    machine.env.clear();
    for (name, file) in [
        ("here", "lifeboat.yml"),
        ("etc", "etc/lifeboat.yml"),
        ("old", "etc/litestream.yml"),
    ] {
        assert_eq!(names(&machine.load()), [name]);
        fs::remove_file(root.join(file)).expect("file");
    }
    let (text, hint) = machine.error();
    assert_eq!(text, "no configuration was found");
    assert!(
        hint.contains("write one of lifeboat.yml, etc/lifeboat.yml, etc/litestream.yml"),
        "{hint}"
    );
    let (text, _) = machine.config("gone.yml").error();
    assert_eq!(text, "cannot read the configuration gone.yml");
}

#[test]
fn environment_alone() {
    let machine = Machine::new()
        .env("LIFEBOAT_STORE_URL", "s3://b/app")
        .env("LIFEBOAT_ENDPOINT", "http://minio:9000")
        .env("LIFEBOAT_REGION", "eu")
        .env("LIFEBOAT_ACCESS_KEY_ID", "id")
        .env("LIFEBOAT_SECRET_ACCESS_KEY", "$ecret${X}")
        .env("LIFEBOAT_SYNC_INTERVAL", "2s")
        .env("LIFEBOAT_RETENTION", "48h")
        .env("LIFEBOAT_STATE_DIR", "/state")
        .env("LIFEBOAT_HTTP_LISTEN", "off")
        .env("LIFEBOAT_INSTANCE", "me")
        .env("LIFEBOAT_LOG_FORMAT", "json")
        .env("LIFEBOAT_LOG_LEVEL", "debug")
        .env("LIFEBOAT_PORT_9464_TCP", "tcp://1.2.3.4:9464");
    let (text, _) = machine.error();
    assert_eq!(text, "environment: there is no database to protect");

    let machine = machine
        .file("data/other.db", "")
        .file("rails/storage/production.sqlite3", "");
    let config = machine.load();
    assert_eq!(config.source, ConfigSource::Environment);
    assert_eq!(names(&config), ["production"]);
    let options = &config.targets[0].options;
    let store = &options.stores[0];
    assert_eq!(
        (store.endpoint.as_deref(), store.region.as_deref()),
        (Some("http://minio:9000"), Some("eu"))
    );
    assert_eq!(
        store.secret_access_key.as_ref().map(Secret::reveal),
        Some("$ecret${X}")
    );
    assert!(store.allow_http);
    assert_eq!(options.sync_interval, Duration::from_secs(2));
    assert_eq!(options.retention, RetentionConfig::plain(2 * DAY));
    assert_eq!(
        (config.state_dir.as_deref(), config.http),
        (Some(Path::new("/state")), None)
    );
    assert_eq!(
        (
            config.instance.as_str(),
            config.dirs.len(),
            config.dirs[0].watch
        ),
        ("me", 1, true)
    );
    assert!(!has_notice(&config, "not used"), "{:?}", config.notices);

    let root = machine.root();
    let list = format!(
        "{0}/data:{0}/rails/storage/production.sqlite3:{0}/later/",
        root.display()
    );
    fs::create_dir(root.join("later")).expect("folder");
    let config = machine.env("LIFEBOAT_DATABASES", &list).load();
    assert_eq!(names(&config), ["production", "other"]);
    assert!(target(&config, "production").options.ensure_wal);
    assert_eq!(config.dirs.len(), 2);
}

#[test]
fn bad_environments() {
    for (env, text, hint) in [
        (
            vec![("LIFEBOAT_STORE_URL", "")],
            "environment: `LIFEBOAT_STORE_URL`: has no value",
            "",
        ),
        (
            vec![("LIFEBOAT_STOREURL", "s3://b")],
            "unknown environment variable LIFEBOAT_STOREURL",
            "LIFEBOAT_STORE_URL?",
        ),
        (
            vec![
                ("LIFEBOAT_STORE_URL", "s3://b"),
                ("LIFEBOAT_RETENTON", "1d"),
            ],
            "unknown environment variable LIFEBOAT_RETENTON",
            "did you mean LIFEBOAT_RETENTION?",
        ),
        (
            vec![
                ("LIFEBOAT_STORE_URL", "s3://b"),
                ("LIFEBOAT_ACCESS_KEY_ID", ""),
                ("LIFEBOAT_SECRET_ACCESS_KEY", ""),
            ],
            "environment: `LIFEBOAT_ACCESS_KEY_ID` is empty",
            "",
        ),
        (
            vec![
                ("LIFEBOAT_STORE_URL", "s3://b"),
                ("LIFEBOAT_RETENTION", "long"),
            ],
            "environment: `LIFEBOAT_RETENTION`: `long` is not a duration",
            "",
        ),
        (
            vec![("LIFEBOAT_DATABASES", "/x/a.db")],
            "environment: no store is given for /x/a.db",
            "LIFEBOAT_STORE_URL",
        ),
    ] {
        let mut machine = Machine::new().file("data/a.db", "");
        machine.env = env.into_iter().map(|(n, v)| (n, v.to_owned())).collect();
        let (error, hinted) = machine.error();
        assert!(
            error.contains(text) && hinted.contains(hint),
            "{error} / {hinted}"
        );
    }
}

#[test]
fn a_variable_that_the_file_or_a_flag_uses_is_known() {
    let machine = Machine::with_file("store: ${LIFEBOAT_MINE}\nsqlite: [{path: a.db}]")
        .env("LIFEBOAT_MINE", "s3://b")
        .env("LIFEBOAT_STORE_URL", "s3://other")
        .env("LIFEBOAT_AT", "now");
    let (text, _) = machine.error();
    assert_eq!(text, "unknown environment variable LIFEBOAT_AT");
    let mut machine = machine;
    machine.args.known_variables = vec!["LIFEBOAT_AT".into()];
    let config = machine.load();
    assert_eq!(config.targets[0].options.stores[0].url.as_str(), "s3://b");
    assert!(
        has_notice(&config, "LIFEBOAT_STORE_URL is not used"),
        "{:?}",
        config.notices
    );
}

#[test]
fn the_environment_fills_in_what_the_file_leaves_out() {
    let config = Machine::with_file("store: s3://b\nsqlite: [{path: a.db}]\nhttp: off")
        .env("LIFEBOAT_ACCESS_KEY_ID", "id")
        .env("LIFEBOAT_SECRET_ACCESS_KEY_FILE", "key")
        .env("LIFEBOAT_HTTP_LISTEN", "1.1.1.1:1")
        .env("LIFEBOAT_DATABASES", "b.db")
        .file("key", "secret\n")
        .load();
    let store = &config.targets[0].options.stores[0];
    assert_eq!(
        store.secret_access_key.as_ref().map(Secret::reveal),
        Some("secret")
    );
    assert_eq!((names(&config), config.http), (vec!["a"], None));
    assert!(
        has_notice(&config, "LIFEBOAT_HTTP_LISTEN is not used")
            && has_notice(&config, "LIFEBOAT_DATABASES is not")
    );
    let config = Machine::with_file("store: s3://b")
        .env("LIFEBOAT_DATABASES", "b.db")
        .load();
    assert_eq!(names(&config), ["b"]);
}

#[test]
fn command_line() {
    let machine = Machine::new()
        .databases(&["x/app.sqlite3"])
        .env("LIFEBOAT_DATABASES", "b.db");
    let config = machine.load();
    let root = machine.root();
    assert_eq!(
        (config.source.clone(), names(&config)),
        (ConfigSource::CommandLine, vec!["app"])
    );
    assert_eq!(config.targets[0].path, root.join("x/app.sqlite3"));
    let url = format!("file://{}/lifeboat-store", root.display());
    assert_eq!(config.targets[0].options.stores[0].url.as_str(), url);
    assert!(
        !config.targets[0].options.stores[0].prefix_is_exact
            && config.targets[0].options.ensure_wal
    );

    let config = machine
        .env("LIFEBOAT_STORE_URL", "s3://b")
        .file("lifeboat.yml", "nonsense")
        .load();
    assert_eq!(config.targets[0].options.stores[0].url.as_str(), "s3://b");
    assert!(has_notice(&config, "lifeboat.yml is not read"));

    let config = Machine::new()
        .databases(&["a.db", "s3://b/a", "file:///copies/a"])
        .load();
    let stores = &config.targets[0].options.stores;
    assert_eq!(
        (
            stores.len(),
            stores[0].url.as_str(),
            stores[0].prefix_is_exact
        ),
        (2, "s3://b/a", true)
    );

    let config = Machine::with_file("store: s3://b\nsqlite: [{path: a.db}]")
        .config("lifeboat.yml")
        .databases(&["b.db"])
        .load();
    assert_eq!(names(&config), ["a", "b"]);
    assert_eq!(config.targets[1].options.stores[0].url.as_str(), "s3://b");

    let config = Machine::new()
        .file("dbs/one.db", "")
        .databases(&["dbs"])
        .load();
    assert_eq!((names(&config), config.dirs.len()), (vec!["one"], 1));
}

#[test]
fn a_path_beats_the_folder_it_lies_in() {
    let config = Machine::with_file(
        "store: s3://b\nsqlite:\n  - dir: s\n  - path: s/a_cache.db\n    name: cache\n  - path: link.db\n    name: linked",
    )
    .file("s/a_cache.db", "")
    .file("s/b.db", "")
    .file("s/c.db", "");
    std::os::unix::fs::symlink(config.root().join("s/c.db"), config.root().join("link.db"))
        .expect("link");
    let config = config.load();
    assert_eq!(names(&config), ["cache", "linked", "b"]);
    assert!(!config.dirs[0].watch);
}

/// Every key of an object of the schema, with the objects inside.
fn schema_objects<'a>(value: &'a Value, found: &mut Vec<Vec<&'a str>>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::Object(properties)) = map.get("properties") {
                found.push(properties.keys().map(String::as_str).collect());
            }
            map.values().for_each(|v| schema_objects(v, found));
        }
        Value::Array(list) => list.iter().for_each(|v| schema_objects(v, found)),
        _ => {}
    }
}

#[test]
fn the_schema_has_exactly_the_keys_that_are_read() {
    let schema = schema();
    let mut objects = Vec::new();
    schema_objects(&schema, &mut objects);
    for file in [
        "zzzz: 1",
        "store: {zzzz: 1}",
        "sqlite: [{zzzz: 1}]",
        "retention: {zzzz: 1}",
        "labels: {zzzz: 1}",
        "http: {zzzz: 1}",
        "drill: {zzzz: 1}",
        "insight: {zzzz: 1}",
        "notify: [{zzzz: 1}]",
        "probes: [{zzzz: 1}]",
        "files: [{zzzz: 1}]",
        "postgres: [{zzzz: 1}]",
        "postgres: [{databases: {zzzz: 1}}]",
        "redis: [{zzzz: 1}]",
    ] {
        let Err(ConfigError::UnknownKey { known, .. }) = Machine::with_file(file).result() else {
            panic!("{file}")
        };
        let mut known = known;
        known.sort_unstable();
        let found = objects.iter().any(|keys| {
            let mut keys = keys.clone();
            keys.sort_unstable();
            keys == known
        });
        assert!(found, "no object of the schema has exactly {known:?}");
    }
    assert_eq!(objects.len(), 14);
}

#[test]
fn the_documentation_has_every_key_and_variable() {
    let text = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/docs/configuration.md"
    ))
    .expect("docs");
    let schema = schema();
    let mut objects = Vec::new();
    schema_objects(&schema, &mut objects);
    for key in objects.into_iter().flatten() {
        assert!(
            text.contains(&format!("| `{key}` |")),
            "docs/configuration.md has no row for `{key}`"
        );
    }
    for variable in known_variables() {
        assert!(
            text.contains(&format!("| `{variable}` |")),
            "docs/configuration.md has no row for {variable}"
        );
    }
}

#[test]
fn the_examples_in_the_documentation_load() {
    let text = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/docs/configuration.md"
    ))
    .expect("docs");
    let examples: Vec<_> = text
        .split("```yaml\n")
        .skip(1)
        .filter_map(|t| t.split("```").next())
        .collect();
    assert!(examples.len() >= 3);
    for example in examples {
        let mut machine = Machine::with_file(
            &example
                .replace("/rails/storage", "storage")
                .replace("/run/secrets/", ""),
        )
        .file("storage/production.sqlite3", "")
        .file("azure-key", "k")
        .file("s3-key", "k");
        for name in [
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AZURE_ACCOUNT_KEY",
        ] {
            machine = machine.env(name, "x");
        }
        assert!(!machine.load().targets.is_empty(), "{example}");
    }
}

#[test]
fn postgres_targets() {
    let file = "store: s3://b\ntime-zone: Europe/Berlin\npostgres:
  - {name: app, url: \"${DATABASE_URL}\", schedule: '15 * * * *', retention: {daily: 7}, on-deploy: reuse, pg-dump-args: [--no-comments]}
  - {name: rest, host: /run/postgresql, user: boss, password: hidden, databases: {except: [postgres]}, bin-dir: /opt/pg, read-budget: 1GiB}
  - {name: listed, databases: ['a b', c]}";
    let url = "postgres://u:hidden@db.example/main?pool=5&sslmode=require";
    let machine = Machine::with_file(file)
        .env("DATABASE_URL", url)
        .env("PGHOST", "other.example");
    let config = machine.load();
    let [app, rest, listed] = &config.postgres[..] else {
        panic!("{:?}", config.postgres)
    };
    assert_eq!(app.origin.display(), "postgres://db.example/main");
    assert_eq!(app.retention.daily, 7);
    assert_eq!(app.retention.point_in_time, Duration::ZERO);
    assert_eq!(app.time_zone.iana_name(), Some("Europe/Berlin"));
    assert_eq!(app.on_deploy, OnDeploy::Reuse);
    assert_eq!(app.dump.extra, ["--no-comments"]);
    assert_eq!(rest.origin.server(), "/run/postgresql");
    assert_eq!(rest.databases, Databases::Except(vec!["postgres".into()]));
    assert_eq!((rest.read_budget, rest.retention.hourly), (1 << 30, 24));
    assert_eq!(listed.origin.server(), "other.example");
    let names = vec!["a b".to_owned(), "c".to_owned()];
    assert_eq!(listed.databases, Databases::Named(names));
    let shown = config.show().to_string() + &format!("{config:?}");
    assert!(!shown.contains("hidden"), "{shown}");
}

#[test]
fn database_url_alone_is_enough() {
    let with = |url| {
        Machine::new()
            .env("LIFEBOAT_STORE_URL", "s3://b")
            .env("DATABASE_URL", url)
    };
    let config = with("postgresql://u:p@db/my_app").load();
    assert_eq!(config.postgres[0].name, "my_app");
    assert!(config.targets.is_empty());
    let config = with("postgres://u:p@db/my%20app").load();
    assert_eq!(config.postgres[0].name, "postgres");
    let other = with("mysql2://u:p@db/x").result();
    assert!(matches!(other, Err(ConfigError::NoTargets { .. })));
}
