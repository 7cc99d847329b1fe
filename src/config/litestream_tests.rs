//! litestream.yml as users have it.

use std::time::Duration;

use super::load::{Host, load_on};
use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn load_with(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let root = dir.path().canonicalize().expect("temporary folder");
    let config = root.join("litestream.yml");
    std::fs::write(&config, text).expect("file");
    std::fs::create_dir(root.join("dbs")).expect("folder");
    std::fs::write(root.join("dbs/tenant.db"), "").expect("file");
    let args = LoadArgs {
        config: Some(config),
        ..LoadArgs::default()
    };
    load_on(
        &args,
        &env.iter().copied().collect(),
        &Host::for_tests(&root),
    )
}

#[track_caller]
fn load(text: &str) -> Config {
    load_with(text, &[]).unwrap_or_else(|e| panic!("{e}"))
}

fn has_notice(config: &Config, part: &str) -> bool {
    config.notices.iter().any(|n| n.contains(part))
}

const FOUR: &str = "
dbs:
  - path: /rails/storage/production.sqlite3
    replicas:
      - type: abs
        account-name: ${AZURE_ACCOUNT}
        account-key: ${AZURE_KEY}
        endpoint: http://127.0.0.1:10000/devstoreaccount1
        bucket: backups
        path: app/production
        sync-interval: 1s
        retention: 720h
  - path: /rails/storage/production_queue.sqlite3
    replicas:
      - { type: abs, account-name: $AZURE_ACCOUNT, account-key: $AZURE_KEY, endpoint: 'http://127.0.0.1:10000/devstoreaccount1', bucket: backups, path: app/queue, sync-interval: 1s, retention: 168h }
  - path: /rails/storage/production_cache.sqlite3
    replicas:
      - { type: abs, account-name: $AZURE_ACCOUNT, account-key: $AZURE_KEY, endpoint: 'http://127.0.0.1:10000/devstoreaccount1', bucket: backups, path: app/cache, sync-interval: 60s, retention: 24h }
  - path: /rails/storage/production_cable.sqlite3
    replicas:
      - { type: abs, account-name: $AZURE_ACCOUNT, account-key: $AZURE_KEY, endpoint: 'http://127.0.0.1:10000/devstoreaccount1', bucket: backups, path: app/cable, sync-interval: 60s, retention: 24h }
";

#[test]
fn four_databases_on_azure() {
    let config = load_with(FOUR, &[("AZURE_ACCOUNT", "acc"), ("AZURE_KEY", "a+b/c==")])
        .unwrap_or_else(|e| panic!("{e}"));
    let expected = [
        ("production", "production", 1, 720),
        ("production_queue", "queue", 1, 168),
        ("production_cache", "cache", 60, 24),
        ("production_cable", "cable", 60, 24),
    ];
    assert_eq!(config.targets.len(), 4);
    for (target, (name, place, sync, retention)) in config.targets.iter().zip(expected) {
        assert_eq!(target.name, name);
        assert!(target.explicit && target.options.ensure_wal);
        assert_eq!(target.options.sync_interval, Duration::from_secs(sync));
        assert_eq!(
            target.options.retention,
            RetentionConfig::plain(HOUR * retention)
        );
        let [store] = target.options.stores.as_slice() else {
            panic!("one store")
        };
        assert_eq!(store.url.as_str(), format!("abs://backups/app/{place}"));
        assert!(store.prefix_is_exact && store.allow_http);
        assert_eq!(
            store.endpoint.as_deref(),
            Some("http://127.0.0.1:10000/devstoreaccount1")
        );
        assert_eq!(store.account_name.as_deref(), Some("acc"));
        assert_eq!(
            store.account_key.as_ref().map(Secret::reveal),
            Some("a+b/c==")
        );
    }
    assert!(config.notices.is_empty(), "{:?}", config.notices);
}

#[test]
fn keys_of_0_3() {
    let config = load(
        "access-key-id: id
secret-access-key: key
addr: ':9090'
dbs:
  - path: /a/app.db
    monitor-interval: 1s
    replicas:
      - name: main
        url: s3://bucket/app
        region: eu
        retention: 48h
        retention-check-interval: 1h
        snapshot-interval: 12h
        validation-interval: 6h
        sync-interval: 10s
      - path: /mnt/copies/app
        retention: 72h
        sync-interval: 5s
        snapshot-interval: 24h
      - { type: gs, bucket: g, path: app }
",
    );
    let target = &config.targets[0];
    let urls: Vec<_> = target
        .options
        .stores
        .iter()
        .map(|s| s.url.as_str())
        .collect();
    assert_eq!(
        urls,
        ["s3://bucket/app", "file:///mnt/copies/app", "gs://g/app"]
    );
    let s3 = &target.options.stores[0];
    assert_eq!(
        s3.secret_access_key.as_ref().map(Secret::reveal),
        Some("key")
    );
    assert_eq!(
        (s3.region.as_deref(), s3.force_path_style),
        (Some("eu"), None)
    );
    assert_eq!(target.options.retention, RetentionConfig::plain(72 * HOUR));
    assert_eq!(target.options.snapshot_interval, 12 * HOUR);
    assert_eq!(
        target.options.sync_interval,
        Duration::from_secs(1),
        "the third replica has the default"
    );
    assert_eq!(config.http.map(|a| a.port()), Some(9090));
    for part in [
        "`validation-interval`",
        "`retention-check-interval`",
        "`monitor-interval`",
        "`name`",
        "several `retention` (2d, 3d): the longest",
    ] {
        assert!(has_notice(&config, part), "{part}: {:?}", config.notices);
    }
}

#[test]
fn keys_of_0_5() {
    let config = load(
        "snapshot: { interval: 24h, retention: 168h }
levels: [ { interval: 30s }, { interval: 5m } ]
logging: { level: info, type: text, stderr: true }
l0-retention: 5m
socket: { enabled: true, path: /x }
shutdown-sync-timeout: 20s
region: us-east-1
bucket: shared
part-size: 5MB
dbs:
  - path: /a/app.db
    meta-path: /meta
    replica: { type: s3, path: app, endpoint: minio:9000, force-path-style: false, skip-verify: true }
  - dir: dbs
    pattern: '*.db'
    watch: true
    replica: { url: 's3://shared/tenants' }
",
    );
    let app = &config.targets[0];
    let store = &app.options.stores[0];
    assert_eq!(store.url.as_str(), "s3://shared/app");
    assert_eq!(store.endpoint.as_deref(), Some("https://minio:9000"));
    assert!(store.force_path_style == Some(false) && store.skip_verify);
    assert_eq!(app.options.snapshot_interval, 24 * HOUR);
    assert_eq!(app.options.retention, RetentionConfig::plain(168 * HOUR));
    assert_eq!(config.shutdown_timeout, Duration::from_secs(20));
    let tenant = &config.targets[1];
    assert_eq!(tenant.name, "tenant");
    assert_eq!(
        tenant.options.stores[0].url.as_str(),
        "s3://shared/tenants/tenant.db"
    );
    assert!(tenant.options.stores[0].prefix_is_exact);
    assert_eq!(
        config.dirs[0].options.stores[0].url.as_str(),
        "s3://shared/tenants"
    );
    for part in [
        "`levels`",
        "`logging`",
        "`l0-retention`",
        "`socket`",
        "`meta-path`",
        "`part-size`",
    ] {
        assert!(has_notice(&config, part), "{part}: {:?}", config.notices);
    }
}

#[test]
fn what_litestream_takes_from_urls_and_variables() {
    let one = |url: &str, env: &[(&str, &str)]| {
        let text = format!("dbs: [{{path: /a.db, replica: {{url: '{url}'}}}}]");
        load_with(&text, env)
            .unwrap_or_else(|e| panic!("{e}"))
            .targets
            .remove(0)
            .options
            .stores
            .remove(0)
    };
    let store = one("s3://b.nyc3.digitaloceanspaces.com/x", &[]);
    assert_eq!(store.url.as_str(), "s3://b/x");
    assert_eq!(
        store.endpoint.as_deref(),
        Some("https://nyc3.digitaloceanspaces.com")
    );
    let env = [
        ("LITESTREAM_ACCESS_KEY_ID", "i"),
        ("LITESTREAM_SECRET_ACCESS_KEY", "s"),
    ];
    assert_eq!(
        one("s3://b/x", &env)
            .secret_access_key
            .as_ref()
            .map(Secret::reveal),
        Some("s")
    );
    let store = one("abs://acc@box/x", &[("LITESTREAM_AZURE_ACCOUNT_KEY", "k")]);
    assert_eq!(
        (store.url.as_str(), store.account_name.as_deref()),
        ("abs://box/x", Some("acc"))
    );
    assert_eq!(store.account_key.as_ref().map(Secret::reveal), Some("k"));
}

#[test]
fn names_are_made_unique_and_the_default_retention_is_said() {
    let config = load(
        "dbs: [{path: /one/app.db, replica: {path: /c/1}}, {path: /two/app.db, replica: {path: /c/2}}]",
    );
    let names: Vec<_> = config.targets.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["app", "two-app"]);
    assert_eq!(
        config.targets[0].options.retention,
        RetentionConfig::default()
    );
    assert!(has_notice(&config, "no `retention` in litestream.yml"));
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    for (text, expected) in [
        (
            "exec: app\ndbs: []",
            "`exec` is not supported in this version",
        ),
        (
            "dbs: [{path: /a, replica: {url: 'sftp://u:hidden@h/p'}}]",
            "a replica of type `sftp` is not supported",
        ),
        (
            "dbs: [{path: /a, replica: {type: sftp, host: h, user: u, password: hidden}}]",
            "type `sftp` is not supported",
        ),
        (
            "dbs: [{path: /a, replica: {type: nats, url: 'nats://h'}}]",
            "type `nats` is not supported",
        ),
        (
            "dbs: [{path: /a, replica: {type: webdav}}]",
            "type `webdav` is not supported",
        ),
        (
            "dbs: [{path: /a, replica: {path: /b, age: {recipients: [hidden]}}}]",
            "`age` is not supported",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://b', sse-kms-key-id: hidden}}]",
            "`sse-kms-key-id` is not supported",
        ),
        (
            "dbs: [{dir: dbs, pattern: '*', recursive: true, replica: {path: /b}}]",
            "`recursive` is not supported",
        ),
        (
            "dbs: [{path: /a, restore-if-db-not-exists: true, replica: {path: /b}}]",
            "`restore-if-db-not-exists` is not",
        ),
        (
            "dbs: [{path: /a, replica: {type: ftp}}]",
            "`type`: must be s3, gs, abs or file",
        ),
        (
            "dbs: [{path: /a, replica: {type: s3, path: x}}]",
            "`bucket` is missing",
        ),
        (
            "dbs: [{path: /a, replica: {type: file}}]",
            "`path` is missing",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://b', path: x}}]",
            "`url` and `path` exclude each other",
        ),
        (
            "dbs: [{path: /a, replica: {path: /b}, replicas: []}]",
            "`replica` and `replicas` exclude each other",
        ),
        ("dbs: [{path: /a}]", "no store is given for /a"),
        (
            "dbs: [{dir: dbs, replica: {path: /b}}]",
            "`pattern` is missing",
        ),
        (
            "dbs: [{path: /a, replica: {path: /c}}, {path: /b, replica: {path: /c}}]",
            "two databases would write to file:///c",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://b', access-key-id: '', secret-access-key: s}}]",
            "`access-key-id` is empty",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://$NOPE'}}]",
            "needs the environment variable NOPE",
        ),
        (
            "dbs:\n- path: /a\n  replica:\n    path: /b\n    retenton: 1h",
            "litestream.yml:5: unknown key `retenton`",
        ),
        ("dbs: []", "there is no database to protect"),
        ("", "there is no database to protect"),
    ] {
        let error = load_with(text, &[]).expect_err(text);
        assert!(
            error.to_string().contains(expected),
            "{text}\n  gives: {error}\n  wants: {expected}"
        );
        assert!(
            !error.to_string().contains("hidden")
                && !error.hint().unwrap_or_default().contains("hidden")
        );
        assert_eq!(error.exit_code(), 2);
    }
}
