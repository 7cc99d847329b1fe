//! What is wrong with a file, and what is said about it.

use super::tests::Machine;

/// File, part of the error, part of the hint. One row a line: it is read as a table.
#[rustfmt::skip]
const BAD_FILES: &[(&str, &str, &str)] = &[
    ("stroe: s3://b", "lifeboat.yml:1: unknown key `stroe`", "did you mean `store`?"),
    ("store: s3://b\nsqlite:\n  - path: a\n    retension: 1d", "lifeboat.yml:4: unknown key `retension`", "`retention`"),
    ("store:\n  url: s3://b\n  acces_key_id: x", "lifeboat.yml:3: unknown key `acces_key_id`", "`access-key-id`"),
    ("sqlite: [{path: a, retention: {weakly: 3}}]", "unknown key `weakly`", "did you mean `weekly`?"),
    ("zzz: 1", "unknown key `zzz`", "known keys here: store, stores, sqlite"),
    ("store: ${NOPE}", "lifeboat.yml:1: `url` needs the environment variable NOPE, which is not set", "${NOPE:-default}"),
    ("store: {url: s3://b, access-key-id: '${EMPTY}', secret-access-key: x}", "`access-key-id` is empty", ""),
    ("store: {url: s3://b, access-key-id: '', secret-access-key: x}", "`access-key-id` is empty", ""),
    ("store:\n  url: s3://b\n  access-key-id:\n", "lifeboat.yml:3: a key has no value", ""),
    ("store: {url: s3://b, secret-access-key: hidden}", "`secret-access-key`: needs an `access-key-id`", ""),
    ("store: {url: s3://b, secret-access-key: hidden, secret-access-key-file: f}", "is given here and in `secret-access-key-file`", ""),
    ("store: {region: eu}", "`url` is missing", "add `url:`"),
    ("store: s3://b\nstores: [s3://c]", "`store` and `stores` exclude each other", ""),
    ("store: sftp://u:hidden@h/p\nsqlite: [{path: a}]", "lifeboat.yml:1: `url`: must start with s3://", ""),
    ("sqlite: [{path: a.db}]", "no store is given for a.db", "LIFEBOAT_STORE_URL"),
    ("", "lifeboat.yml: there is no database to protect", "sqlite:"),
    ("# only words\n", "there is no database to protect", ""),
    ("store: s3://b", "there is no database to protect", "LIFEBOAT_DATABASES"),
    ("store: s3://b\nsqlite: []", "there is no database to protect", ""),
    ("store: s3://b\nsqlite: [{dir: .}]", "there is no database to protect", ""),
    ("store: s3://b\nsqlite: [{dir: missing}]", "cannot read the database folder missing", "mounted"),
    ("store: s3://b\nsqlite: [{path: a/x.db}, {path: b/x.db}]", "two targets are named `x`: a/x.db and b/x.db", "name"),
    ("store: s3://b\nsqlite: [{path: a.db, name: p}, {path: ./x/../a.db, name: q}]", "listed twice: a.db as `p` and as `q`", ""),
    ("store: s3://b\nsqlite: [{path: a.db, name: p q}]", "`name`: must be letters", ""),
    ("store: s3://b\nsqlite: [{path: a.db, name: ..}]", "`name`: must be letters", ""),
    ("store: s3://b\nsqlite: [{path: 'a b.db'}]", "is no name of a target", ""),
    ("store: s3://b\nsqlite: [{path: .}]", "no name of a target", ""),
    ("store: s3://b\nsqlite: [{}]", "`path` is missing", ""),
    ("store: s3://b\nsqlite: [{path: a, dir: b}]", "`path` and `dir` exclude each other", ""),
    ("store: s3://b\nsqlite: [{path: a, watch: true}]", "`path` and `watch` exclude each other", ""),
    ("store: s3://b\nsqlite: [{path: a, pattern: x}]", "`path` and `pattern` exclude each other", ""),
    ("store: s3://b\nsqlite: [{dir: a, name: x}]", "`dir` and `name` exclude each other", ""),
    ("store: s3://b\nsqlite: [{dir: a, ensure-wal: true}]", "is never done to databases found in a folder", ""),
    ("store: s3://b\nsqlite: [{dir: a, pattern: '[ab]'}]", "`pattern`: knows only", ""),
    ("stores: [s3://b/x, s3://b/x/]\nsqlite: [{path: a.db}]", "s3://b/x is there twice", ""),
    ("store: s3://b\nsqlite: [{path: a.db, sync-interval: 0}]", "`sync-interval`: must be longer than zero", ""),
    ("store: s3://b\nsqlite: [{path: a.db, sync-interval: 5}]", "`sync-interval`: `5` is not a duration", ""),
    ("store: s3://b\nsqlite: [{path: a.db, retention: {point-in-time: 0}}]", "`retention`: keeps nothing", ""),
    ("store: s3://b\nsqlite: [{path: a.db, retention: {daily: -1}}]", "`daily`: must be a whole number", ""),
    ("store: s3://b\nsqlite: [{path: a.db, ensure-wal: maybe}]", "`ensure-wal`: must be true or false", ""),
    ("min-free: 100%", "`min-free`: `100%` is not a size", ""),
    ("time-zone: Mars/Olympus", "`Mars/Olympus` is not a known zone", ""),
    ("http: everywhere", "`http`: must be address and port", ""),
    ("http: {listen: '1.2.3.4'}", "`listen`: must be address and port", ""),
    ("store: s3://b\npostgres:\n  - url: postgres://h/d", "lifeboat.yml:3: `name` is missing", ""),
    ("store: s3://b\npostgres: [{name: p, url: hidden}]", "`url`: the PostgreSQL URL cannot be read", ""),
    ("store: s3://b\npostgres: [{name: p, url: 'postgres://u:hidden@h'}]", "`url`: the PostgreSQL URL names no database", ""),
    ("store: s3://b\npostgres: [{name: p, url: 'postgres://h/d', host: h}]", "`url` and `host` exclude each other", ""),
    ("store: s3://b\npostgres: [{name: p}]", "`url` is missing", ""),
    ("store: s3://b\npostgres: [{name: p, database: d, databases: some}]", "must be `all`, a list of names", ""),
    ("store: s3://b\npostgres: [{name: p, database: d, databases: []}]", "`databases`: names none", ""),
    ("store: s3://b\npostgres: [{name: p, database: d, pg-dump-args: [--file=x]}]", "Lifeboat's own to set", ""),
    ("store: s3://b\npostgres: [{name: p, database: d, pg-dump-args: ['-t']}]", "must begin with `--`", ""),
    ("store: s3://b\npostgres: [{name: p, database: d, compression-level: 20}]", "must be 1 to 19", ""),
    ("store: s3://b\npostgres: [{name: p, database: d, on-deploy: never}]", "must be always, reuse or skip", ""),
    ("store: s3://b\npostgres: [{name: p, database: d, schedule: '0 0 30 2 *'}]", "never comes", ""),
    ("store: s3://b\npostgres: [{name: p, database: d, retention: {daily: 0}}]", "keeps nothing", ""),
    ("store: s3://b\npostgres: [{name: p, database: d}, {name: p, database: e}]", "two targets are named `p`", ""),
    ("postgres: [{name: p, database: d}]", "no store is given for postgres://local socket/d", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\ndrill: {schedule: x}", "`schedule`:", ""),
    ("store: s3://b\nsqlite: [{dir: /a, assert: [select 1]}]", "`dir` and `assert`", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{}]", "one of slack, webhook, healthchecks and email is needed", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{slack: 'https://h/hidden', webhook: 'https://h/hidden'}]", "slack and webhook exclude each other", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{slack: hidden}]", "`slack`: must be an address", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{slack: ''}]", "`slack` is empty", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{slak: hidden}]", "unknown key `slak`", "did you mean `slack`?"),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{slack: 'https://h/hidden', secret: hidden}]", "`secret`: does not belong to `slack`", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{slack: 'https://h/hidden', events: [everything]}]", "`everything` is none of unsafe,", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{slack: 'https://h/hidden'}, {slack: 'https://h/hidden'}]", "stands in another entry", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{email: nobody, from: a@b.c, smtp: 'smtp://h'}]", "must be an address, as ops@example.com", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{email: a@b.c, smtp: 'smtp://h'}]", "`from`: is missing", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{email: a@b.c, from: a@b.c}]", "`smtp`: is missing", ""),
    ("store: s3://b\nsqlite: [{path: /a}]\nnotify: [{email: a@b.c, from: a@b.c, smtp: 'smtp://u:hidden@h?tls=none'}]", "would send the password in clear text", ""),
    ("store: s3://b\nfiles: [{paths: [/a], password: hidden}]", "lifeboat.yml:2: `name` is missing", ""),
    ("store: s3://b\nfiles: [{name: f, password: hidden}]", "`paths` is missing", ""),
    ("store: s3://b\nfiles: [{name: f, paths: [/a]}]", "`password` is missing", "password"),
    ("store: s3://b\nfiles: [{name: f, paths: [/], password: hidden}]", "name folders below the root", ""),
    ("store: s3://b\nfiles: [{name: f, paths: [/a], password: hidden, exclude: ['!b']}]", "`exclude`: cannot begin with `!`", ""),
    ("store: s3://b\nfiles: [{name: f, paths: [/a], password: hidden, exclude: ['{a']}]", "`exclude`:", ""),
    ("store: s3://b\nfiles: [{name: f, paths: [/a], pasword: hidden}]", "unknown key `pasword`", "did you mean `password`?"),
    ("store: s3://b\nfiles: [{name: f, paths: [/a], password: ''}]", "`password` is empty", ""),
    ("store: s3://b\nsqlite: [{path: f.db}]\nfiles: [{name: f, paths: [/a], password: hidden}]", "two targets are named `f`", ""),
    ("store: s3://b\nfiles: [{name: f, paths: [/a], password: hidden, schedule: sometimes}]", "`schedule`:", ""),
    ("files: [{name: f, paths: [/a], password: hidden}]", "no store is given for /a", ""),
    ("store: s3://b\nredis: [{name: r}]", "`url` is missing", ""),
    ("store: s3://b\nredis: [{name: r, url: 'http://:hidden@h'}]", "`url`: the Redis URL must begin with redis://", ""),
    ("store: s3://b\nredis: [{name: r, url: 'redis://h', drill-url: x}]", "unknown key `drill-url`", ""),
    ("store: s3://b\nredis: [{name: r, url: 'redis://h', schedule: '0 0 30 2 *'}]", "never comes", ""),
    ("store: s3://b\npostgres: [{name: p, database: d}]\nredis: [{name: p, url: 'redis://h'}]", "two targets are named `p`", ""),
    ("probes: x", "`probes` is not supported in this version", ""),
    ("store: s3://b\nstore: s3://c", "lifeboat.yml:2: the key `store` stands here twice", ""),
    ("store: [hidden]", "lifeboat.yml:1: expected", ""),
    ("store: 'hidden", "not valid YAML", "config schema"),
    ("hidden", "lifeboat.yml:1: expected", ""),
    ("store: {url: ${EMPTY}, region: x}", "lifeboat.yml:1: not valid YAML", "put quotes around"),
    ("store: b: hidden", "not valid YAML", ""),
];

#[test]
fn bad_files_are_refused_with_place_reason_and_hint() {
    for (file, text, hint) in BAD_FILES {
        let (error, hinted) = Machine::with_file(file).env("EMPTY", "").error();
        assert!(
            error.contains(text),
            "{file}\n  gives: {error}\n  wants: {text}"
        );
        assert!(
            hinted.contains(hint),
            "{file}\n  hints: {hinted}\n  wants: {hint}"
        );
        assert!(
            !error.contains("hidden") && !hinted.contains("hidden"),
            "{error} {hinted}"
        );
    }
}
