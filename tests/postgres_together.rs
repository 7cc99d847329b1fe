//! PostgreSQL beside SQLite and files: one label, one restore; and drills by the daemon.
#![allow(missing_docs)]

mod pg;

use std::path::PathBuf;
use std::process::Command;

use pg::site::Site;
use pg::{DATABASE, Server, URL_PASSWORD, wait_for};
use serde_json::{Value, json};

fn python(code: &str) -> String {
    let out = Command::new("python3")
        .args(["-c", code])
        .output()
        .expect("python3 is missing: run bin/install-dev");
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{words}");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// An app with a database of each kind and uploads.
struct App {
    site: Site,
}

impl App {
    fn new(of_postgres: &str) -> Self {
        let mut site = Site::new("");
        let dir = site.dir.path().display();
        site.extra = format!(
            "    schedule: '0 3 1 1 *'\n{of_postgres}sqlite:\n  - path: {dir}/main.sqlite3\nfiles:\n  - name: uploads\n    paths: [{dir}/data]\n    password: of-the-repository\n    create: true\n"
        );
        std::fs::create_dir(site.dir.path().join("data")).unwrap();
        let app = Self { site };
        app.sqlite("pragma journal_mode=wal; create table t(a)");
        app.write("first");
        app
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.dir.path().join(name)
    }

    fn sqlite(&self, sql: &str) {
        let path = self.path("main.sqlite3");
        python(&format!(
            "import sqlite3; c = sqlite3.connect({path:?}); c.executescript({sql:?}); c.commit()"
        ));
    }

    /// Changes everything.
    fn write(&self, word: &str) {
        self.sqlite(&format!("delete from t; insert into t values ('{word}')"));
        std::fs::write(self.path("data/upload.txt"), word).unwrap();
        let sql = format!("UPDATE customers SET name = '{word}';");
        self.site.server.sql(DATABASE, &sql);
    }

    fn in_sqlite(path: &std::path::Path) -> String {
        python(&format!(
            "import sqlite3; print(sqlite3.connect({path:?}).execute('select group_concat(a) from t').fetchone()[0])"
        ))
    }

    /// What each holds: SQLite, PostgreSQL, files.
    fn holds(&self) -> [String; 3] {
        let sql = "SELECT string_agg(DISTINCT name, ',') FROM customers;";
        [
            Self::in_sqlite(&self.path("main.sqlite3")),
            self.site.server.sql(DATABASE, sql).trim().to_owned(),
            std::fs::read_to_string(self.path("data/upload.txt")).unwrap(),
        ]
    }
}

#[test]
fn all_kinds_to_one_label_and_back() {
    let app = App::new("");
    let site = &app.site;
    // As before the first deploy: nothing is stored anywhere.
    let boot = ["restore", "--all", "--if-not-exists", "--if-replica-exists"];
    std::fs::remove_file(app.path("data/upload.txt")).unwrap();
    let text = site.ok(&boot);
    assert!(
        text.contains("targets=3 restored=0 existing=1 absent=2"),
        "{text}"
    );
    app.write("first");
    let text = site.ok(&["snapshot", "--label", "v1"]);
    assert!(text.contains("label=v1 targets=3"), "{text}");
    app.write("second");
    site.ok(&["snapshot"]);
    app.write("third");

    // Into a folder.
    let out = app.path("out");
    let folder = out.to_str().unwrap();
    let text = site.ok(&["restore", "--all", "--label", "v1", "-o", folder]);
    assert!(
        text.contains("targets=3 restored=3 existing=0 absent=0"),
        "{text}"
    );
    assert_eq!(App::in_sqlite(&out.join("main.sqlite3")), "first");
    assert_eq!(
        std::fs::read_to_string(out.join("uploads/upload.txt")).unwrap(),
        "first"
    );
    let listed = Command::new(pg::programs().join("pg_restore"))
        .args(["--data-only", "--table=customers", "-f", "-"])
        .arg(out.join("app.pgc"))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("\tfirst\t"));
    assert_eq!(app.holds(), ["third"; 3]);
    site.refused(&["restore", "--all", "-o", folder], 4);

    // Without a place nothing that is there is replaced.
    site.refused(&["restore", "--all"], 4);
    let text = site.ok(&["restore", "--all", "--if-not-exists"]);
    assert!(text.contains("restored=0 existing=3"), "{text}");
    site.refused(&["restore", "--all", "--label", "no-such", "--in-place"], 3);
    let text = site.ok(&[
        "restore",
        "--all",
        "--label",
        "v1",
        "--in-place",
        "--dry-run",
    ]);
    assert!(text.contains("pending=3"), "{text}");
    assert_eq!(app.holds(), ["third"; 3]);

    // In place, and back.
    site.ok(&["restore", "--all", "--label", "v1", "--in-place"]);
    assert_eq!(app.holds(), ["first"; 3]);
    let text = site.ok(&["restore", "--all", "--undo"]);
    assert!(
        text.contains("restored=3") && text.contains("absent=0"),
        "{text}"
    );
    assert_eq!(app.holds(), ["third"; 3]);

    // Only the last restore: what was restored before it stays.
    site.ok(&["restore", "uploads", "--label", "v1", "--in-place"]);
    site.ok(&["restore", "main", "--label", "v1", "--in-place"]);
    assert_eq!(app.holds(), ["first", "third", "first"]);
    let text = site.ok(&["restore", "--all", "--undo"]);
    assert!(
        text.contains("of an earlier restore") && text.contains("undone already"),
        "{text}"
    );
    assert_eq!(app.holds(), ["third", "third", "first"]);
    site.ok(&["restore", "uploads", "--undo"]);
    assert_eq!(app.holds(), ["third"; 3]);

    // A lost host.
    std::fs::remove_file(app.path("main.sqlite3")).unwrap();
    for ending in ["-wal", "-shm"] {
        // Only there while somebody has it open.
        let _ = std::fs::remove_file(app.path(&format!("main.sqlite3{ending}")));
    }
    std::fs::remove_dir_all(app.path("data")).unwrap();
    let quoted = DATABASE.replace('"', "\"\"");
    site.server
        .sql("postgres", &format!("DROP DATABASE \"{quoted}\";"));
    let text = site.ok(&[
        "restore",
        "--all",
        "--label",
        "v1",
        "--if-not-exists",
        "--if-replica-exists",
    ]);
    assert!(text.contains("restored=3"), "{text}");
    assert_eq!(app.holds(), ["first"; 3]);

    // A new server whose image made an empty database: the app would fill it.
    site.server
        .sql("postgres", &format!("DROP DATABASE \"{quoted}\";"));
    site.server
        .sql("postgres", &format!("CREATE DATABASE \"{quoted}\";"));
    let text = site.ok(&[
        "restore",
        "--all",
        "--label",
        "v1",
        "--if-not-exists",
        "--if-replica-exists",
    ]);
    assert!(text.contains("restored=1 existing=2"), "{text}");
    assert_eq!(app.holds(), ["first"; 3]);
}

/// The longest part of a restore of everything is the one that fails: nothing else was changed before it.
#[test]
fn a_dump_that_cannot_be_restored_leaves_the_databases_beside_it() {
    let app = App::new("");
    let site = &app.site;
    site.ok(&["snapshot", "--label", "v1"]);
    app.write("second");
    let flip = |path: &std::path::Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let dump = std::fs::read_dir(app.path("store/app/dumps")).unwrap();
    let dump = dump.last().unwrap().unwrap().path().join("dump.pgc.zst");
    flip(&dump);
    let all = ["restore", "--all", "--label", "v1", "--in-place"];
    let text = site.refused(&all, 5);
    assert!(text.contains("changed=no"), "{text}");
    assert_eq!(app.holds(), ["second"; 3]);
    // Files come last: what was replaced before them is named, with the way back.
    flip(&dump);
    for folder in std::fs::read_dir(app.path("store/uploads/data")).unwrap() {
        for pack in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            flip(&pack.unwrap().path());
        }
    }
    let out = site.run(&all);
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && !text.contains("lifeboat: ok"));
    assert!(text.contains("changed=maybe"), "{text}");
    assert!(
        text.contains("before that, restored: app, main") && text.contains("--all --undo"),
        "{text}"
    );
    assert_eq!(app.holds(), ["first", "first", "second"]);
    site.ok(&["restore", "--all", "--undo"]);
    assert_eq!(app.holds(), ["second"; 3]);
}

/// One database that is dumped twice, hourly to one store and daily to another, say.
#[test]
fn two_targets_of_one_database_are_restored_once() {
    let mut site = Site::new("");
    let folder = site.server.folder.path().display().to_string();
    site.extra = format!(
        "  - name: again\n    url: \"postgres://boss:${{SECRET}}@/an%20%22odd%22%20'name'?host={folder}&port={}\"\n",
        site.server.port
    );
    site.ok(&["snapshot", "app"]);
    site.ok(&["snapshot", "again"]);
    let original = site.fingerprint(DATABASE);
    let change = "UPDATE customers SET name = 'changed';";
    let drop = format!("DROP DATABASE \"{}\";", DATABASE.replace('"', "\"\""));
    site.server.sql("postgres", &drop);
    let boot = ["restore", "--all", "--if-not-exists", "--if-replica-exists"];
    let text = site.ok(&boot);
    assert!(text.contains("restored=1 existing=0 absent=1"), "{text}");
    assert!(text.contains("its database is that of"), "{text}");
    assert_eq!(site.fingerprint(DATABASE), original);
    site.server.sql(DATABASE, change);
    let changed = site.fingerprint(DATABASE);
    site.ok(&["restore", "--all", "--in-place"]);
    assert_eq!(site.fingerprint(DATABASE), original);
    // Once, not back and forth.
    site.ok(&["restore", "--all", "--undo"]);
    assert_eq!(site.fingerprint(DATABASE), changed);
}

/// A new server's start-up script takes "nothing to restore" for a reason to begin empty.
#[test]
fn a_backup_that_cannot_be_read_is_not_taken_for_none() {
    let app = App::new("");
    let site = &app.site;
    site.ok(&["snapshot", "--label", "v1"]);
    let only = |folder: &str| {
        let mut entries = std::fs::read_dir(app.path(folder)).unwrap();
        let first = entries.next().unwrap().unwrap().path();
        assert!(entries.next().is_none(), "{folder}");
        first
    };
    let upload = app.path("data/upload.txt");
    std::fs::remove_file(&upload).unwrap();
    let boot = ["restore", "--all", "--if-not-exists", "--if-replica-exists"];
    let (dumps, away) = (app.path("store/app/dumps"), app.path("away"));
    let rename = |from: &str, to: &str| {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let sql = format!("ALTER DATABASE {} RENAME TO {};", quoted(from), quoted(to));
        site.server.sql("postgres", &sql);
    };
    // What is there is left alone, whatever became of its dumps.
    std::fs::rename(&dumps, &away).unwrap();
    let text = site.ok(&boot);
    assert!(text.contains("restored=1 existing=2 absent=0"), "{text}");
    std::fs::rename(&away, &dumps).unwrap();
    std::fs::remove_file(&upload).unwrap();
    rename(DATABASE, "aside");
    for path in [
        only("store/app/dumps").join("manifest.json"),
        only("store/uploads/snapshots"),
    ] {
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, "junk").unwrap();
        let text = site.refused(&boot, 5);
        assert!(text.contains("cannot be read"), "{text}");
        assert!(text.contains("hint:"), "{text}");
        std::fs::write(&path, whole).unwrap();
    }
    // Nor is one of which labels are all that is left.
    std::fs::rename(&dumps, &away).unwrap();
    let text = site.refused(&boot, 5);
    assert!(text.contains("labels/v1.json tells of one"), "{text}");
    assert!(text.contains("lifecycle rule"), "{text}");
    let text = site.refused(&["verify", "app"], 5);
    assert!(text.contains("holds no dumps any more"), "{text}");
    rename("aside", DATABASE);
    site.ok(&["snapshot", "app"]);
    let lost = [
        "restore",
        "app",
        "--label",
        "v1",
        "--in-place",
        "--if-replica-exists",
    ];
    let text = site.refused(&lost, 5);
    assert!(text.contains("label v1 is lost"), "{text}");
    std::fs::remove_dir_all(&dumps).unwrap();
    std::fs::rename(&away, &dumps).unwrap();
    site.ok(&boot);
    assert_eq!(app.holds(), ["first"; 3]);
}

/// Of files the label may end before that of the dump; without SQLite, too, the set is no set then.
#[test]
fn a_set_of_dumps_and_files_that_lost_a_label_is_refused() {
    let mut site = Site::new("");
    let dir = site.dir.path().to_owned();
    site.extra = format!(
        "    schedule: '0 3 1 1 *'\nfiles:\n  - name: uploads\n    paths: [{}/data]\n    password: of-the-repository\n    create: true\n",
        dir.display()
    );
    std::fs::create_dir(dir.join("data")).unwrap();
    std::fs::write(dir.join("data/upload.txt"), "first").unwrap();
    site.ok(&["snapshot", "--label", "v1"]);
    let all = [
        "restore",
        "--all",
        "--label",
        "v1",
        "--in-place",
        "--if-replica-exists",
    ];
    site.ok(&all);
    std::fs::remove_dir_all(dir.join("store/uploads/snapshots")).unwrap();
    let before = site.catalogue();
    let text = site.refused(&all, 3);
    assert!(
        text.contains("is no longer whole: uploads without the label"),
        "{text}"
    );
    assert_eq!(site.catalogue(), before);
}

/// Of several dumps each is restored before the first live database is replaced, so that one that fails leaves all as they were.
#[test]
fn one_dump_of_several_that_cannot_be_restored_changes_no_database() {
    let site = Site::new("    databases: { except: [postgres] }\n");
    site.server.sql("postgres", "CREATE DATABASE zebra;");
    let change = |word: &str| {
        let sql = format!("DROP TABLE IF EXISTS t; CREATE TABLE t AS SELECT '{word}' AS a;");
        for database in [DATABASE, "zebra"] {
            site.server.sql(database, &sql);
        }
    };
    let hold = || [DATABASE, "zebra"].map(|d| site.server.sql(d, "TABLE t;").trim().to_owned());
    change("first");
    site.ok(&["snapshot", "app"]);
    change("second");
    let catalogue = site.catalogue();
    let mut dumps = Vec::new();
    let mut folders = vec![site.dir.path().join("store")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false if entry.file_name() == "dump.pgc.zst" => dumps.push(entry.path()),
                false => {}
            }
        }
    }
    assert_eq!(dumps.len(), 2, "{dumps:?}");
    for dump in &dumps {
        let whole = std::fs::read(dump).unwrap();
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        std::fs::write(dump, damaged).unwrap();
        let text = site.refused(&["restore", "--all", "--in-place"], 5);
        assert!(text.contains("changed=no"), "{text}");
        assert!(!text.contains("before that"), "{text}");
        assert_eq!(hold(), ["second"; 2]);
        assert_eq!(site.catalogue(), catalogue, "nothing that was made is left");
        std::fs::write(dump, whole).unwrap();
    }
    site.ok(&["restore", "--all", "--in-place"]);
    assert_eq!(hold(), ["first"; 2]);
    site.ok(&["restore", "--all", "--undo"]);
    assert_eq!(hold(), ["second"; 2]);
}

#[test]
fn a_reused_dump_knows_what_the_queue_knows() {
    let mut app = App::new("    on-deploy: reuse\n");
    app.site.ok(&["snapshot", "app"]);
    app.site.ok(&["snapshot", "--label", "v1"]);
    assert_eq!(
        app.site.dumps("app").len(),
        1,
        "no queue: it is good enough"
    );
    let queue = app.path("queue.sqlite3");
    std::fs::copy(app.path("main.sqlite3"), &queue).unwrap();
    let entry = format!("sqlite:\n  - path: {}\n", queue.display());
    app.site.extra = app.site.extra.replace("sqlite:\n", &entry);
    // A job of an order that the dump does not know.
    app.write("second");
    app.site.ok(&["snapshot", "--label", "v2"]);
    let dumps = app.site.dumps("app");
    assert_eq!(dumps.len(), 2);
    assert_eq!(dumps[0]["labels"], json!(["v1"]));
    assert_eq!(dumps[1]["labels"], json!(["v2"]));
    let label = std::fs::read(app.path("store/queue/lifeboat/labels/v2.json")).unwrap();
    let label: Value = serde_json::from_slice(&label).unwrap();
    let time = |v: &Value| -> jiff::Timestamp { v.as_str().unwrap().parse().unwrap() };
    let (dump, queue) = (time(&dumps[1]["dump"]["began"]), time(&label["at"]));
    assert!(dump >= queue, "{dump} {queue}");
}

#[test]
fn a_set_that_did_not_finish_is_refused_and_a_target_that_was_skipped_is_left() {
    let mut app = App::new("    on-deploy: skip\n");
    app.site.ok(&["snapshot", "app"]);
    app.site.ok(&["snapshot", "--label", "v1"]);
    app.write("second");
    let text = app
        .site
        .ok(&["restore", "--all", "--label", "v1", "--in-place"]);
    assert!(
        text.contains("app: left as it is") && text.contains("on-deploy: skip"),
        "{text}"
    );
    assert!(text.contains("restored=2"), "{text}");
    assert_eq!(app.holds(), ["first", "second", "first"]);

    app.site.extra = app.site.extra.replace("    on-deploy: skip\n", "");
    app.write("third");
    app.site.ok(&["snapshot", "--label", "v3"]);
    // As if the process had been killed between the labels and the manifest of the set.
    let mut gone = 0;
    for target in ["app", "main"] {
        let manifest = app.path(&format!("store/{target}/lifeboat/sets/v3.json"));
        gone += i32::from(std::fs::remove_file(manifest).is_ok());
    }
    assert_eq!(gone, 1);
    app.write("fourth");
    let text = app
        .site
        .refused(&["restore", "--all", "--label", "v3", "--in-place"], 3);
    assert!(text.contains("did not finish"), "{text}");
    assert_eq!(app.holds(), ["fourth"; 3]);
}

#[test]
fn a_damaged_dump_takes_no_good_ones_place() {
    let site = Site::new(
        "    schedule: '0 3 1 1 *'\n    retention: { daily: 1 }\n    read-budget: 1GiB\n",
    );
    site.ok(&["snapshot", "app"]);
    site.ok(&["snapshot", "app"]);
    let ids: Vec<String> = site
        .dumps("app")
        .iter()
        .map(|d| d["dump"]["id"].as_str().unwrap().to_owned())
        .collect();
    let path = |id: &str| {
        site.dir
            .path()
            .join(format!("store/app/dumps/{id}/dump.pgc.zst"))
    };
    let mut bytes = std::fs::read(path(&ids[1])).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path(&ids[1]), bytes).unwrap();
    let daemon = site.start();
    wait_for(|| site.metric("lifeboat_postgres_damaged") == 1.0);
    let there = site.dumps("app");
    assert_eq!(there.len(), 2, "{there:?}");
    assert!(
        there[0]["damage"].is_null() && there[1]["damage"].is_string(),
        "{there:?}"
    );
    drop(daemon);
    let original = site.fingerprint(DATABASE);
    site.refused(&["restore", "app", "--into-new", "proof"], 5);
    site.ok(&["restore", "app", "--into-new", "proof", "--dump", &ids[0]]);
    assert_eq!(site.fingerprint("proof"), original);
}

#[test]
fn pages_and_api_know_the_dumps_of_each_database() {
    let mut site = Site::new("    schedule: '0 3 1 1 *'\n    databases: { except: [postgres] }\n");
    site.token = "of-sixteen-letters-at-least";
    site.server.sql("postgres", "CREATE DATABASE second;");
    site.ok(&["snapshot", "app/second", "--label", "v1"]);
    site.ok(&["snapshot", "app"]);
    let dumps = site.dumps("app/second");
    let id = |n: usize| dumps[n]["dump"]["id"].as_str().unwrap();
    // One that is not whole is no restore point.
    let escaped = "store/app/databases/second/dumps";
    let path = site
        .dir
        .path()
        .join(format!("{escaped}/{}/dump.pgc.zst", id(1)));
    std::fs::write(path, b"short").unwrap();
    let _daemon = site.start();
    wait_for(|| site.get("/").contains("/targets/app%2Fsecond"));
    let text = site.get("/api/v1/targets/app%2Fsecond/points");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let store = &answer["stores"][0];
    assert_eq!(store["points"][0]["id"], id(0), "{text}");
    assert_eq!(store["count"], 1, "{text}");
    assert_eq!(store["labels"][0]["label"], "v1", "{text}");
    let page = site.get("/targets/app%2Fsecond?at=1s");
    let command = format!(
        "lifeboat restore app/second --dump {} --into-new second_restored",
        id(0)
    );
    assert!(page.contains(&command), "{page}");
    // A name that a shell would take apart.
    let odd = "/targets/app%2Fan%20%22odd%22%20%27name%27";
    wait_for(|| site.get("/").contains(odd));
}

/// Makes every drill look a day older, so that one is missed.
fn age_drills(site: &Site) {
    let folder = site.dir.path().join("store/app/lifeboat/drills");
    for object in std::fs::read_dir(&folder).unwrap() {
        let path = object.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut drill: Value = serde_json::from_str(&text).unwrap();
        drill["time"] = json!("2026-01-02T03:04:05Z");
        std::fs::remove_file(path).unwrap();
        std::fs::write(folder.join("20260102T030405.000Z.json"), drill.to_string()).unwrap();
    }
}

#[test]
fn the_daemon_drills_on_the_drill_server() {
    let drills = Server::start();
    let mut site = Site::new("");
    site.extra = format!(
        "    schedule: '0 3 1 1 *'\n    drill-url: \"{}\"\ndrill: {{ schedule: '0 4 * * *' }}\n",
        drills.url(URL_PASSWORD)
    );
    site.ok(&["snapshot", "app"]);
    site.ok(&["drill", "app"]);
    age_drills(&site);
    // What a killed drill left behind, and what only looks like it.
    let left = "lifeboat_drill_20260102t030405z";
    drills.sql(
        "postgres",
        &format!("CREATE DATABASE {left}; CREATE DATABASE lifeboat_drill_mine;"),
    );
    let mark = json!({ "lifeboat": "unfinished", "of": left });
    drills.sql(
        "postgres",
        &format!("COMMENT ON DATABASE {left} IS '{mark}';"),
    );

    let daemon = site.start();
    let age = || site.metric("lifeboat_drill_timestamp_seconds");
    let old = 1_767_323_045.0;
    wait_for(|| age() > old);
    assert_eq!(site.metric("lifeboat_drill_success"), 1.0);
    assert!(site.metric("lifeboat_drill_restore_seconds") > 0.0);
    assert!(site.metric("lifeboat_drill_data_age_seconds") > 0.0);
    wait_for(|| site.metric("lifeboat_postgres_ready") == 1.0);
    let there = drills.databases();
    assert!(
        !there.contains(left) && there.contains("lifeboat_drill_mine"),
        "{there}"
    );
    assert_eq!(there.matches("lifeboat_drill").count(), 1, "{there}");
    drop(daemon);

    // A dump that does not restore.
    let id = site.dumps("app")[0]["dump"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = site
        .dir
        .path()
        .join(format!("store/app/dumps/{id}/dump.pgc.zst"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    age_drills(&site);
    let daemon = site.start();
    wait_for(|| age() > old);
    assert_eq!(site.metric("lifeboat_drill_success"), 0.0);
    assert_eq!(site.metric("lifeboat_postgres_ready"), 0.0);
    let ready = site.get("/readyz");
    assert!(
        ready.contains("the drill of") && ready.contains("damaged"),
        "{ready}"
    );
    assert_eq!(drills.databases(), there);
    drop(daemon);

    // A server that is away says nothing about the dump: the last verdict stays.
    drop(drills);
    let text = site.refused(&["drill", "app"], 1);
    assert!(text.contains("is the server running"), "{text}");
    let daemon = site.start();
    wait_for(|| age() > old);
    assert_eq!(site.metric("lifeboat_drill_success"), 0.0);
    drop(daemon);
}
