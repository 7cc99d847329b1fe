//! JSON Schema of lifeboat.yml, for editors.

use serde_json::{Map, Value, json};

/// Every value may be text, because `${VAR}` expands everywhere.
fn value(description: &str) -> Value {
    json!({ "type": ["string", "number", "boolean"], "description": description })
}

fn object(description: &str, properties: &[(&str, Value)]) -> Value {
    let properties: Map<String, Value> = properties
        .iter()
        .map(|(k, v)| ((*k).to_owned(), v.clone()))
        .collect();
    json!({ "type": "object", "description": description, "additionalProperties": false, "properties": properties })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

fn text_or(object: Value) -> Value {
    json!({ "anyOf": [{ "type": ["string", "number", "boolean"] }, object] })
}

/// The JSON Schema of lifeboat.yml (draft 2020-12).
pub fn schema() -> Value {
    let mut root = object(
        "Configuration of Lifeboat.",
        &[
            ("store", reference("store")),
            (
                "stores",
                json!({ "type": "array", "description": "Several stores for every target.", "items": reference("store") }),
            ),
            (
                "sqlite",
                json!({ "type": "array", "description": "SQLite databases.", "items": sqlite() }),
            ),
            (
                "files",
                json!({ "type": "array", "description": "Folders of files, kept as restic repositories.", "items": files() }),
            ),
            (
                "postgres",
                json!({ "type": "array", "description": "PostgreSQL databases, dumped on a schedule.", "items": postgres() }),
            ),
            (
                "redis",
                json!({ "type": "array", "description": "Redis servers, dumped on a schedule.", "items": redis() }),
            ),
            (
                "sync-interval",
                value(
                    "Default for every target: at most one upload per interval under load. Default 1s.",
                ),
            ),
            (
                "snapshot-interval",
                value("Default for every target: time between full copies. Default 7d."),
            ),
            (
                "max-lag",
                value(
                    "Default for every target: allowed age of a change that is not durable. Default: ten sync intervals, 30s at least.",
                ),
            ),
            ("retention", reference("retention")),
            (
                "labels",
                object(
                    "When labels end.",
                    &[
                        (
                            "keep",
                            value("So many of a target's labels, the newest. Default 20."),
                        ),
                        ("max-age", value("And none older. Default 90d.")),
                    ],
                ),
            ),
            (
                "state-dir",
                value("Folder for local state. Default: beside each database."),
            ),
            (
                "http",
                text_or(object(
                    "HTTP server, or off.",
                    &[
                        (
                            "listen",
                            value("Address and port, or off. Default 0.0.0.0:9464."),
                        ),
                        ("token", value("What pages and API ask for.")),
                        ("token-file", value("File that holds it.")),
                    ],
                )),
            ),
            (
                "notify",
                json!({ "type": "array", "description": "Who is told of trouble.", "items": notify() }),
            ),
            (
                "probes",
                json!({ "type": "array", "description": "HTTP checks of the app itself.", "items": probe() }),
            ),
            (
                "drill",
                text_or(object(
                    "Restores that prove the copies.",
                    &[
                        (
                            "schedule",
                            value(
                                "Cron, five fields, or @daily, @weekly and so on. Default: by hand only.",
                            ),
                        ),
                        (
                            "scratch-dir",
                            value("Folder for restored copies. Default: in the state directory."),
                        ),
                    ],
                )),
            ),
            (
                "insight",
                text_or(object(
                    "What is read of the app beside its backup, or off.",
                    &[
                        (
                            "sqlite",
                            value("Pages and schema version of SQLite databases. Default true."),
                        ),
                        (
                            "rails",
                            value("Solid Queue, Solid Cache and Solid Cable. Default true."),
                        ),
                        (
                            "postgres",
                            value("Statistics of PostgreSQL servers. Default true."),
                        ),
                        ("redis", value("Statistics of Redis servers. Default true.")),
                        (
                            "volumes",
                            value(
                                "Space of the volumes of databases and local state. Default true.",
                            ),
                        ),
                        (
                            "host",
                            value("Memory and processors of the host. Default true."),
                        ),
                        ("every", value("Time between two looks. Default 30s.")),
                        (
                            "max-queue-wait",
                            value(
                                "Allowed age of the oldest job that is ready or due. Default 10m.",
                            ),
                        ),
                        (
                            "max-heartbeat-age",
                            value(
                                "A process of Solid Queue with an older heartbeat is dead. Default 5m.",
                            ),
                        ),
                    ],
                )),
            ),
            (
                "shutdown-timeout",
                value("Time for the last capture and upload. Default 30s."),
            ),
            (
                "store-check",
                value("How often an idle database looks at its store. Default 1h."),
            ),
            (
                "min-free",
                value("Free space always left to the app, in percent or bytes. Default 10%."),
            ),
            (
                "time-zone",
                value("Zone of times without an offset. Default UTC."),
            ),
            (
                "instance",
                value("Who this is in owner.json. Default: KAMAL_HOST or the host name."),
            ),
        ],
    );
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("lifeboat.yml");
    root["$defs"] = json!({ "store": text_or(store()), "retention": text_or(retention()) });
    root
}

fn sqlite() -> Value {
    object(
        "A database (path) or a folder of databases (dir).",
        &[
            (
                "name",
                value("Unique name. Default: the file name without its extension."),
            ),
            ("path", value("A database.")),
            ("dir", value("A folder of databases, not recursive.")),
            (
                "pattern",
                value("File names in dir. Default *.{sqlite3,db}."),
            ),
            (
                "watch",
                value("Take databases that appear in dir later. Default false."),
            ),
            ("store", reference("store")),
            (
                "stores",
                json!({ "type": "array", "description": "Several stores.", "items": reference("store") }),
            ),
            (
                "sync-interval",
                value("At most one upload per interval under load. Default 1s."),
            ),
            (
                "snapshot-interval",
                value("Time between full copies. Default 7d."),
            ),
            (
                "max-lag",
                value(
                    "Allowed age of a change that is not durable. Default: ten sync intervals, 30s at least.",
                ),
            ),
            ("retention", reference("retention")),
            (
                "ensure-wal",
                value("Turn WAL mode on. Default true for path; never done for dir."),
            ),
            (
                "assert",
                json!({ "type": "array", "description": "SQL that must be true of a restored copy in a drill. With path only.", "items": { "type": "string" } }),
            ),
        ],
    )
}

fn files() -> Value {
    let list = |description: &str| json!({ "type": "array", "description": description, "items": { "type": "string" } });
    object(
        "Folders of files, kept together as one restic repository.",
        &[
            ("name", value("Unique name.")),
            ("paths", list("Folders or files.")),
            (
                "exclude",
                list("What is left out, in .gitignore's patterns."),
            ),
            (
                "schedule",
                value("Cron, five fields, or @hourly, @daily and so on. Default @daily."),
            ),
            ("retention", reference("retention")),
            ("password", value("Password of the repository.")),
            ("password-file", value("File that holds the password.")),
            (
                "create",
                value("Make the repository at the first backup. Default false."),
            ),
            (
                "allow-empty",
                value("Record an empty folder after a full one. Default false."),
            ),
            ("store", reference("store")),
            (
                "stores",
                json!({ "type": "array", "description": "Several stores.", "items": reference("store") }),
            ),
        ],
    )
}

fn postgres() -> Value {
    let list = |description: &str| json!({ "type": "array", "description": description, "items": { "type": "string" } });
    let databases = json!({
        "description": "all, a list of names, or all but some. Default: the one of the URL.",
        "anyOf": [
            { "type": "string" },
            list("Names."),
            object("All but some.", &[("except", list("Names that are left out."))]),
        ],
    });
    let mut keys = vec![
        (
            "name",
            value("Unique among all targets; dumps lie under <store>/<name>/dumps/."),
        ),
        (
            "url",
            value(
                "Postgres://user:password@host:5432/database?sslmode=verify-full; sockets as postgres:///database?host=/run/postgresql. Rails' own parameters (pool and the like) are dropped.",
            ),
        ),
        ("url-file", value("File that holds the URL.")),
        (
            "host",
            value("Instead of url: host name, address, or folder of a socket."),
        ),
        ("port", value("Port.")),
        ("user", value("Role.")),
        ("password", value("Its password.")),
        ("password-file", value("File that holds the password.")),
        ("database", value("Database.")),
        ("sslmode", value("As libpq's.")),
        ("sslrootcert", value("As libpq's.")),
        (
            "bin-dir",
            value("Folder of pg_dump, pg_restore, pg_dumpall and psql, of the server's major."),
        ),
        (
            "lock-wait-timeout",
            value(
                "A dump that waits longer for a table gives up, so that the app does not queue behind it.",
            ),
        ),
        (
            "restore-url",
            value("A role with more rights, for restores."),
        ),
        ("restore-url-file", value("File that holds it.")),
        (
            "drill-url",
            value("A server that drills may create databases on."),
        ),
        ("drill-url-file", value("File that holds it.")),
        (
            "assert",
            list("SQL that must be true of the database that a drill restored."),
        ),
        (
            "statistics",
            value(
                "true: planner statistics are dumped, too, where pg_dump can (PostgreSQL 18 and later). Default false.",
            ),
        ),
        ("databases", databases),
        ("pg-dump-args", list("Further arguments of pg_dump.")),
    ];
    keys.extend(dumped());
    object("Databases of a PostgreSQL server.", &keys)
}

/// Keys of everything that is dumped on a schedule.
fn dumped() -> Vec<(&'static str, Value)> {
    vec![
        ("compression-level", value("Of zstd, 1 to 19.")),
        (
            "compression-threads",
            value("Of zstd, beside the thread that reads; 0 compresses in that thread."),
        ),
        (
            "jitter",
            value("A run begins up to this much later, at random."),
        ),
        (
            "on-deploy",
            value(
                "What snapshot --label does: always dumps, reuse pins a dump younger than max-age if there is one, skip leaves the target out unless it is named.",
            ),
        ),
        ("max-age", value("See on-deploy.")),
        (
            "read-budget",
            value("Bytes a day that are read back from each store and checked, as 10GiB."),
        ),
        (
            "schedule",
            value("Cron, five fields, or @hourly, @daily and so on. Default @hourly."),
        ),
        ("time-zone", value("Zone of the schedule.")),
        ("retention", reference("retention")),
        ("store", reference("store")),
        (
            "stores",
            json!({ "type": "array", "description": "Several stores.", "items": reference("store") }),
        ),
    ]
}

fn redis() -> Value {
    let mut keys = vec![
        (
            "name",
            value("Unique among all targets; dumps lie under <store>/<name>/dumps/."),
        ),
        (
            "url",
            value(
                "Redis://user:password@host:6379; rediss:// for TLS, with ?cacert=FILE for an authority of your own; unix:///path/to/socket.",
            ),
        ),
        ("url-file", value("File that holds the URL.")),
        ("password", value("Password of the server.")),
        ("password-file", value("File that holds the password.")),
        ("bin-dir", value("Folder of redis-cli.")),
    ];
    keys.extend(dumped());
    object("A Redis server.", &keys)
}

fn probe() -> Value {
    object(
        "An address of the app that is asked again and again.",
        &[
            ("name", value("Unique name: the label `probe`.")),
            ("url", value("For example http://app:3000/up.")),
            ("url-file", value("File that holds it.")),
            ("every", value("Between two requests. Default 30s.")),
            (
                "timeout",
                value("For the whole answer. Default 5s; not longer than every."),
            ),
            (
                "expect",
                value("Good status codes, as 200, 200-299 or 200,401. Default 200-299."),
            ),
        ],
    )
}

fn store() -> Value {
    object(
        "Where copies go.",
        &[
            (
                "url",
                value("s3://bucket/path, gs://bucket/path, abs://container/path or file:///path."),
            ),
            ("endpoint", value("Base URL of the service.")),
            ("region", value("S3 region.")),
            ("access-key-id", value("S3 key id.")),
            (
                "access-key-id-file",
                value("File that holds the S3 key id."),
            ),
            ("secret-access-key", value("S3 key.")),
            (
                "secret-access-key-file",
                value("File that holds the S3 key."),
            ),
            ("session-token", value("S3 session token.")),
            (
                "session-token-file",
                value("File that holds the S3 session token."),
            ),
            ("profile", value("Profile of the AWS configuration files.")),
            (
                "force-path-style",
                value("Bucket in the path. Default true with an endpoint that is not Amazon's."),
            ),
            (
                "skip-verify",
                value("Do not verify certificates. Default false."),
            ),
            ("account-name", value("Azure account.")),
            ("account-key", value("Azure account key.")),
            (
                "account-key-file",
                value("File that holds the Azure account key."),
            ),
            ("sas-token", value("Azure shared access signature.")),
            (
                "sas-token-file",
                value("File that holds the Azure shared access signature."),
            ),
            (
                "google-credentials",
                value("Google service account, as JSON."),
            ),
            (
                "google-credentials-file",
                value("File that holds the Google service account."),
            ),
        ],
    )
}

fn retention() -> Value {
    object(
        "What is kept for how long; a plain duration means point-in-time for that long and nothing older.",
        &[
            (
                "point-in-time",
                value("Any moment of this long. Default 7d."),
            ),
            ("hourly", value("Number of hourly points. Default 0.")),
            (
                "daily",
                value("Number of daily points. Default 0; 30 without any retention key."),
            ),
            (
                "weekly",
                value("Number of weekly points. Default 0; 8 without any retention key."),
            ),
            (
                "monthly",
                value("Number of monthly points. Default 0; 12 without any retention key."),
            ),
            ("yearly", value("Number of yearly points. Default 0.")),
        ],
    )
}

fn notify() -> Value {
    object(
        "One receiver: exactly one of slack, webhook, healthchecks and email.",
        &[
            (
                "name",
                value("For logs, metrics and `lifeboat notify test`."),
            ),
            (
                "slack",
                value("Address of an incoming webhook of Slack, or of what understands it."),
            ),
            ("slack-file", value("File that holds it.")),
            ("webhook", value("Address that takes JSON.")),
            ("webhook-file", value("File that holds it.")),
            (
                "secret",
                value("Key of the webhook's signature, HMAC-SHA256."),
            ),
            ("secret-file", value("File that holds it.")),
            (
                "healthchecks",
                value("Ping address of healthchecks.io or the like."),
            ),
            ("healthchecks-file", value("File that holds it.")),
            ("email", value("Addresses, with commas between them.")),
            ("from", value("Sender of mails.")),
            (
                "smtp",
                value("smtp://USER:PASSWORD@HOST:PORT (STARTTLS) or smtps://."),
            ),
            ("smtp-file", value("File that holds it.")),
            (
                "events",
                json!({ "type": "array", "description": "Only these. Default: all.", "items": value("A kind of event.") }),
            ),
            (
                "after",
                value("What does not last so long is not told. Default 2m."),
            ),
            (
                "remind",
                value("Between reminders of what lasts. Default 12h."),
            ),
            (
                "every",
                value("Healthchecks: between pings while all is safe. Default 5m."),
            ),
        ],
    )
}
