//! The real binary beside a real PostgreSQL server.

mod pg;

use std::process::{Command, Stdio};

use pg::site::{Site, words};
use pg::{DATABASE, PASSWORD, Server, URL_PASSWORD, wait_for};
use serde_json::Value;

#[test]
fn the_daemon_dumps_at_once_and_turns_red_without_its_server() {
    let mut site = Site::new("    schedule: '0 3 1 1 *'\n");
    let daemon = site.start();
    wait_for(|| site.metric("lifeboat_postgres_ready") == 1.0);
    let status: Value = serde_json::from_str(&site.get("/readyz")).unwrap();
    assert_eq!(status["status"], "safe", "{status}");
    assert_eq!(site.dumps("app").len(), 1);
    assert!(site.metric("lifeboat_postgres_dump_bytes") > 100_000.0);
    drop(daemon);

    // Nothing was missed: no dump at the next start.
    let daemon = site.start();
    wait_for(|| site.metric("lifeboat_postgres_ready") == 1.0);
    assert_eq!(site.metric("lifeboat_postgres_runs_total"), 0.0);
    drop(daemon);

    // A run was missed, but the server is gone.
    let store = site.dir.path().join("store");
    std::fs::remove_dir_all(&store).unwrap();
    site.server.stop();
    let daemon = site.start();
    wait_for(|| site.metric("lifeboat_postgres_runs_total") >= 1.0);
    let status: Value = serde_json::from_str(&site.get("/readyz")).unwrap();
    assert_eq!(status["status"], "unsafe", "{status}");
    let log = || std::fs::read_to_string(&daemon.log).unwrap();
    wait_for(|| log().contains("not dumped"));
    for text in [
        log(),
        site.get("/"),
        site.get("/metrics"),
        status.to_string(),
    ] {
        assert!(
            !text.contains(PASSWORD) && !text.contains(URL_PASSWORD),
            "{text}"
        );
    }
    assert_eq!(site.dumps("app").len(), 0);
}

#[test]
fn snapshots_dump_pin_and_reuse() {
    let mut site = Site::new("    schedule: '0 3 1 1 *'\n    on-deploy: reuse\n");
    let text = site.ok(&["snapshot"]);
    assert!(text.contains("app: dump "), "{text}");
    // The dump is young: it is pinned, not made again.
    site.ok(&["snapshot", "--label", "before-v1"]);
    let dumps = site.dumps("app");
    assert_eq!(dumps.len(), 1);
    assert_eq!(dumps[0]["labels"][0], "before-v1");
    assert_eq!(dumps[0]["dump"]["counts"]["public.orders"], 2000);
    assert!(dumps[0]["dump"]["globals"]["size"].as_u64().unwrap() > 100);
    // One that a fast clock dated into the future is of unknown age.
    let id = dumps[0]["dump"]["id"].as_str().unwrap();
    let manifest = site
        .dir
        .path()
        .join(format!("store/app/dumps/{id}/manifest.json"));
    let dated = std::fs::read(&manifest).unwrap();
    let mut text: Value = serde_json::from_slice(&dated).unwrap();
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(20);
    text["began"] = soon.to_string().into();
    std::fs::write(&manifest, text.to_string()).unwrap();
    site.ok(&["snapshot", "--label", "ahead"]);
    let newer = site.dumps("app");
    let newer = newer.iter().find(|d| d["labels"][0] == "ahead").unwrap();
    assert_ne!(newer["dump"]["id"], id);
    let newer = newer["dump"]["id"].as_str().unwrap();
    std::fs::remove_dir_all(site.dir.path().join(format!("store/app/dumps/{newer}"))).unwrap();
    std::fs::write(&manifest, dated).unwrap();

    site.extra = "    schedule: '0 3 1 1 *'\n".into();
    site.ok(&["snapshot", "app", "--label", "before-v1"]);
    let dumps = site.dumps("app");
    assert_eq!(dumps.len(), 2);
    assert_eq!(dumps[1]["labels"][0], "before-v1#2");

    // Through a daemon.
    let daemon = site.start();
    wait_for(|| site.metric("lifeboat_postgres_ready") == 1.0);
    site.ok(&["snapshot", "--label", "v2"]);
    assert_eq!(site.dumps("app").len(), 3);
    assert_eq!(site.metric("lifeboat_postgres_runs_total"), 1.0);
    drop(daemon);

    site.extra += "    on-deploy: skip\n";
    site.refused(&["snapshot", "--label", "v3"], 1);
    site.ok(&["snapshot", "app", "--label", "v3"]);
    assert_eq!(site.dumps("app").len(), 4);
}

#[test]
fn several_databases_of_a_server() {
    let site = Site::new("    databases: { except: [postgres] }\n");
    site.server.sql("postgres", "CREATE DATABASE second;");
    site.ok(&["snapshot", "app"]);
    let odd = format!("app/{DATABASE}");
    assert_eq!(site.dumps(&odd).len(), 1);
    assert_eq!(site.dumps("app/second").len(), 1);
    site.ok(&["snapshot", "app/second", "--label", "L"]);
    assert_eq!(site.dumps("app/second").len(), 2);
    assert_eq!(site.dumps(&odd).len(), 1);
    let text = site.refused(&["list", "app/third"], 2);
    assert!(text.contains("app/second"), "{text}");
    let text = site.ok(&["list"]);
    assert!(text.contains(&odd), "{text}");
}

const SETTINGS: &str = "CREATE ROLE app LOGIN; CREATE ROLE \"odd role\";
 ALTER DATABASE \"an \"\"odd\"\" 'name'\" OWNER TO app;
 ALTER DATABASE \"an \"\"odd\"\" 'name'\" SET search_path TO \"$user\", public, \"odd one\";
 ALTER DATABASE \"an \"\"odd\"\" 'name'\" SET work_mem TO '7MB';
 ALTER ROLE app IN DATABASE \"an \"\"odd\"\" 'name'\" SET application_name TO 'it''s';
 REVOKE CONNECT ON DATABASE \"an \"\"odd\"\" 'name'\" FROM PUBLIC;
 GRANT CONNECT, CREATE ON DATABASE \"an \"\"odd\"\" 'name'\" TO \"odd role\" WITH GRANT OPTION;
 COMMENT ON DATABASE \"an \"\"odd\"\" 'name'\" IS 'ours';";

#[test]
fn in_place_and_back() {
    let site = Site::new("");
    site.server.sql("postgres", SETTINGS);
    site.ok(&["snapshot", "app", "--label", "good"]);
    let (before, catalogue) = (site.fingerprint(DATABASE), site.catalogue());
    site.server.sql(
        DATABASE,
        "DELETE FROM events; DROP TABLE orders CASCADE; UPDATE customers SET name = 'x';",
    );
    let broken = site.fingerprint(DATABASE);
    assert_ne!(before, broken);

    // An app that is connected does not hold it up.
    let app = site.server.connection().with_database(DATABASE);
    let clients = site.server.clients();
    let thread = std::thread::spawn(move || clients.sql(&app, "SELECT pg_sleep(600);", &[]));
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600);';";
    wait_for(|| site.server.sql("postgres", sleeping).trim() == "1");

    let text = site.ok(&["restore", "app", "--in-place", "--label", "good"]);
    assert!(
        text.contains("2000 rows") || text.contains("rows counted and right"),
        "{text}"
    );
    assert!(thread.join().unwrap().is_err());
    assert_eq!(site.fingerprint(DATABASE), before);
    let now: Vec<String> = site.catalogue().lines().map(str::to_owned).collect();
    for line in catalogue.lines() {
        assert!(now.iter().any(|l| l == line), "{line} is not in {now:?}");
    }
    let kept = |what: &str| {
        let sql = format!("SELECT datname FROM pg_database WHERE datname LIKE '%\\_{what}\\_%';");
        site.server.sql("postgres", &sql).trim().to_owned()
    };
    assert_eq!(site.fingerprint(&kept("before")), broken);

    // Back, and back again.
    site.ok(&["restore", "app", "--undo"]);
    assert_eq!(site.fingerprint(DATABASE), broken);
    assert_eq!(site.fingerprint(&kept("undone")), before);
    site.ok(&["restore", "app", "--undo"]);
    assert_eq!(site.fingerprint(DATABASE), before);
    for line in catalogue.lines() {
        assert!(site.catalogue().lines().any(|l| l == line), "{line}");
    }

    // The database is gone altogether.
    let odd = DATABASE.replace('"', "\"\"");
    site.server
        .sql("postgres", &format!("DROP DATABASE \"{odd}\";"));
    let text = site.ok(&["restore", "app", "--in-place", "--jobs", "2"]);
    assert!(!text.contains("kept as"), "{text}");
    assert_eq!(site.fingerprint(DATABASE), before);
    let now = site.catalogue();
    for line in catalogue.lines().filter(|l| !l.starts_with("an ")) {
        assert!(now.lines().any(|l| l == line), "{line} is not in {now}");
    }
}

#[test]
fn every_other_way_to_restore() {
    let site = Site::new("");
    site.server.sql("postgres", SETTINGS);
    site.ok(&["snapshot", "app"]);
    let before = site.fingerprint(DATABASE);
    let first = site.dumps("app")[0]["dump"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    site.server.sql(DATABASE, "DELETE FROM events;");
    site.ok(&["snapshot", "app"]);
    let after = site.fingerprint(DATABASE);
    let text = site.refused(&["restore", "app"], 2);
    assert!(text.contains("--in-place"), "{text}");
    site.refused(&["restore", "app", "--into-new", DATABASE], 2);

    site.ok(&["restore", "app", "--into-new", "newest"]);
    assert_eq!(site.fingerprint("newest"), after);
    site.ok(&[
        "restore",
        "app",
        "--into-new",
        "a \"b",
        "--dump",
        &first,
        "--jobs",
        "3",
    ]);
    assert_eq!(site.fingerprint("a \"b"), before);
    site.refused(&["restore", "app", "--into-new", "newest"], 1);
    site.refused(
        &[
            "restore",
            "app",
            "--into-new",
            "x",
            "--at",
            "2020-01-01T00:00:00Z",
        ],
        3,
    );
    site.refused(&["restore", "app", "--into-new", "x", "--dump", "2020"], 3);
    site.refused(&["restore", "app", "--into-new", "x", "--label", "none"], 3);
    let time = &first;
    let at = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &time[..4],
        &time[4..6],
        &time[6..8],
        &time[9..11],
        &time[11..13],
        &time[13..19]
    );
    let text = site.ok(&["restore", "app", "--into-new", "at", "--at", &at]);
    assert!(text.contains(&first) && text.contains("old"), "{text}");
    assert_eq!(site.fingerprint("at"), before);

    // Into a URL: a database that is not there, one that is empty, one that is not.
    let url = |name: &str| {
        site.server
            .url(URL_PASSWORD)
            .replace("/postgres?", &format!("/{name}?"))
    };
    site.ok(&["restore", "app", "--into", &url("there")]);
    assert_eq!(site.fingerprint("there"), after);
    site.server.sql("postgres", "CREATE DATABASE empty;");
    site.ok(&["restore", "app", "--into", &url("empty")]);
    assert_eq!(site.fingerprint("empty"), after);
    let text = site.refused(&["restore", "app", "--into", &url("empty")], 4);
    assert!(text.contains("not empty"), "{text}");

    // Chosen tables beside the live ones.
    let text = site.ok(&[
        "restore",
        "app",
        "--table",
        "customers,events_2025",
        "--dump",
        &first,
        "--into-new",
        "beside",
    ]);
    assert!(
        text.contains("psql -d 'beside'") && !text.contains("lower_name"),
        "{text}"
    );
    assert_eq!(
        site.server
            .sql("beside", "SELECT count(*) FROM customers, orders;")
            .trim(),
        "0"
    );
    assert_eq!(
        site.server
            .sql("beside", "SELECT count(*) FROM customers;")
            .trim(),
        "200"
    );
    let line = text
        .lines()
        .find(|l| l.trim().starts_with("psql") && l.contains("events_2025"))
        .unwrap();
    let socket = site.server.folder.path();
    let piped = Command::new("bash")
        .args(["-ec", &format!("set -o pipefail; {line}")])
        .env("PGHOST", socket)
        .env("PGUSER", "boss")
        .env("PGPASSWORD", PASSWORD)
        .output()
        .unwrap();
    assert!(piped.status.success(), "{line}: {}", words(&piped));
    let events = site.server.sql(DATABASE, "SELECT count(*) FROM events;");
    assert_eq!(
        events.trim(),
        site.server
            .sql("beside", "SELECT count(*) FROM events_2025;")
            .trim()
    );
    site.refused(&["restore", "app", "--table", "nothing"], 4);

    // A file.
    let file = site.dir.path().join("out.pgc");
    site.ok(&["restore", "app", "-o", file.to_str().unwrap()]);
    let listed = Command::new(pg::programs().join("pg_restore"))
        .arg("-l")
        .arg(&file)
        .output()
        .unwrap();
    assert!(listed.status.success() && words(&listed).contains("TABLE DATA public orders"));
    site.refused(&["restore", "app", "-o", file.to_str().unwrap()], 1);

    // On a server without the roles.
    let other = Server::start();
    let url = other.url(URL_PASSWORD).replace("/postgres?", "/moved?");
    site.server
        .sql(DATABASE, "ALTER TABLE orders OWNER TO app;");
    site.ok(&["snapshot", "app"]);
    let text = site.refused(&["restore", "app", "--into", &url], 1);
    assert!(
        text.contains("role \"app\" does not exist") && text.contains("--globals"),
        "{text}"
    );
    assert!(!other.databases().contains("moved"));
    site.ok(&[
        "restore",
        "app",
        "--into",
        &url,
        "--no-owner",
        "--no-privileges",
    ]);
    other.sql("postgres", "DROP DATABASE moved;");
    site.ok(&["restore", "app", "--into", &url, "--globals"]);
    assert_eq!(other.fingerprint("moved"), site.fingerprint(DATABASE));
}

#[test]
fn heavy_kills_during_a_restore_in_place() {
    const KILLS: u32 = 12;
    let site = Site::new("");
    site.ok(&["snapshot", "app"]);
    let good = site.fingerprint(DATABASE);
    let begun = std::time::Instant::now();
    site.ok(&["restore", "app", "--in-place"]);
    let whole = begun.elapsed();
    let names = |pattern: &str| {
        let sql =
            format!("SELECT datname FROM pg_database WHERE datname LIKE '%\\_{pattern}\\_%';");
        let names = site.server.sql("postgres", &sql);
        names.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (mut killed, mut swapped) = (0, 0);
    for i in 0..KILLS {
        site.server.sql(
            DATABASE,
            &format!("UPDATE customers SET name = 'broken {i}';"),
        );
        let broken = site.fingerprint(DATABASE);
        let kept = names("before").len();
        let mut child = site
            .command(&["restore", "app", "--in-place"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * i / KILLS);
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
        // Its clients end by themselves.
        let clients = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lifeboat' AND pid <> pg_backend_pid();";
        wait_for(|| site.server.sql("postgres", clients).trim() == "0");
        let now = site.fingerprint(DATABASE);
        let is_swapped = names("before").len() > kept;
        assert_eq!(now == good, is_swapped, "kill {i}");
        assert!(
            now == good || now == broken,
            "kill {i} changed the live database"
        );
        swapped += u32::from(is_swapped);
    }
    assert!(killed > 0, "nothing was killed in {whole:?}");
    eprintln!("{killed} of {KILLS} killed, {swapped} had swapped");
    site.ok(&["restore", "app", "--in-place"]);
    assert_eq!(site.fingerprint(DATABASE), good);
    assert_eq!(
        names("restoring"),
        Vec::<String>::new(),
        "swept by the next"
    );
}
