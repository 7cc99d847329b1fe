//! Faults of restores, databases that are odd, and clocks: whatever happens, no backup is listed that does not restore, and the live database
//! is as it was unless the restore says that it is done.
#![allow(missing_docs)]

#[path = "common/mount.rs"]
mod mount;
mod pg;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mount::{Mount, root};
use pg::site::{Site, words};
use pg::{DATABASE, PASSWORD, Server, URL_PASSWORD, wait_for};

const YEARLY: &str = "    schedule: '0 3 1 1 *'\n";
const MIB: u64 = 1024 * 1024;
/// Twelve megabytes that do not compress.
const NOISE: &str = "CREATE TABLE noise AS SELECT n AS id, (SELECT string_agg(gen_random_bytes(1000), '') FROM generate_series(1, 30) WHERE n > 0) AS noise
    FROM generate_series(1, 400) n;";

#[test]
fn a_full_disk_of_the_server_changes_nothing() {
    let mut mount = None;
    let server = Server::start_with(|folder| {
        let data = folder.join("data");
        mount = Some(Mount::tmpfs(&data, 128));
        let owner = format!("--reference={}", folder.display());
        root(&["chown", &owner, data.to_str().unwrap()]);
    });
    let mount = mount.unwrap();
    let site = Site::on(server, YEARLY);
    site.server.sql(DATABASE, NOISE);
    site.server.sql("postgres", "CREATE DATABASE empty;");
    site.ok(&["snapshot", "app"]);
    site.every_listed_dump_restores(1);
    let before = (site.fingerprint(DATABASE), site.server.databases());

    // Enough for a new database, not for what belongs into it.
    site.server.sql("postgres", "CHECKPOINT;");
    let filler = site.server.folder.path().join("data/filler");
    let size = usize::try_from(mount.free() - 14 * MIB).unwrap();
    std::fs::write(&filler, vec![1; size]).unwrap();
    let url = site.server.url(URL_PASSWORD);
    let into = url.replace("/postgres?", "/empty?");
    for place in [
        &["--in-place"][..],
        &["--in-place", "--jobs", "2"],
        &["--into-new", "never"],
        &["--into", &into],
        &["--table", "noise"],
    ] {
        let text = site.refused(&[&["restore", "app"], place].concat(), 1);
        assert!(
            text.contains("No space left on device")
                && text.contains("hint: the disk of the server is full"),
            "{place:?}: {text}"
        );
        assert_eq!(
            (site.fingerprint(DATABASE), site.server.databases()),
            before
        );
    }
    let tables = site.server.sql(
        "empty",
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'public';",
    );
    assert_eq!(tables.trim(), "0");
    // A checkpoint on a full disk would have crashed the app's server.
    assert!(
        !site.server.log().contains("PANIC"),
        "{}",
        site.server.log()
    );
    assert_eq!(site.dumps("app").len(), 1);
    std::fs::remove_file(filler).unwrap();
    site.ok(&["restore", "app", "--in-place"]);
    site.every_listed_dump_restores(1);
    drop(site);
    drop(mount);
}

/// Nobody ever sees what production holds: the SQL is done before the database has its name, or there is none.
#[test]
fn sql_of_the_user_runs_before_the_database_appears() {
    let site = Site::new(YEARLY);
    site.ok(&["snapshot", "app"]);
    let script = site.dir.path().join("staging.sql");
    let sql = |text: &str| std::fs::write(&script, text).unwrap();
    let file = script.to_str().unwrap();
    let before = (site.fingerprint(DATABASE), site.server.databases());
    let url = site.server.url(URL_PASSWORD);
    let into = url.replace("/postgres?", "/staging?");
    let places = [
        &["--in-place"][..],
        &["--into-new", "fresh"],
        &["--into", &into],
    ];
    sql(
        "CREATE TABLE made(a int);\nSELECT repeat('x', 1000) FROM generate_series(1, 1000);\nUPDATE nobody SET a = 1;\n",
    );
    for place in places {
        let args = [&["restore", "app", "--after-sql", file], place].concat();
        let text = site.refused(&args, 1);
        assert!(
            text.contains(&format!("{file}:3: ERROR:"))
                && text.contains("STATEMENT:  UPDATE nobody SET a = 1;")
                && text.contains("nothing was changed")
                && text.contains("hint: mend the statement")
                && text.contains("changed=no"),
            "{place:?}: {text}"
        );
        assert_eq!(
            (site.fingerprint(DATABASE), site.server.databases()),
            before
        );
    }
    for place in [&["-o", "x.pgc"][..], &["--table", "orders"]] {
        let args = [&["restore", "app", "--after-sql", file], place].concat();
        let text = site.refused(&args, 2);
        assert!(text.contains("hint: restore with --in-place"), "{text}");
    }
    let text = site.refused(
        &["restore", "app", "--after-sql", "none.sql", "--in-place"],
        2,
    );
    assert!(text.contains("none.sql"), "{text}");
    site.server.sql("postgres", "CREATE DATABASE staging;");
    let text = site.refused(&["restore", "app", "--after-sql", file, "--into", &into], 4);
    assert!(text.contains("that can be dropped if it fails"), "{text}");
    site.server.sql("postgres", "DROP DATABASE staging;");

    sql("CREATE TABLE made AS SELECT 7 AS a;\n");
    let args = ["restore", "app", "--after-sql", file, "--in-place"];
    let dry = site.ok(&[&args[..], &["--dry-run"]].concat());
    assert!(dry.contains("staging.sql would be run on it"), "{dry}");
    for (place, database) in places.into_iter().zip([DATABASE, "fresh", "staging"]) {
        let text = site.ok(&[&["restore", "app", "--after-sql", file], place].concat());
        assert!(text.contains("staging.sql was run on it"), "{text}");
        let made = site.server.sql(database, "SELECT a FROM made;");
        assert_eq!(made.trim(), "7", "{place:?}");
    }

    // From production, whose store staging only reads.
    let staging = Site::new(YEARLY);
    staging
        .server
        .sql(DATABASE, "DROP TABLE IF EXISTS made; CREATE TABLE own();");
    let store = site.dir.path().join("store");
    let listing = || {
        let mut find = Command::new("find");
        let out = find.arg(&store).args(["-printf", "%p %s %T@\\n"]).output();
        out.unwrap().stdout
    };
    let there = listing();
    let from = format!("file://{}/app", store.display());
    let args = ["restore", "app", "--from", &from, "--after-sql", file];
    staging.ok(&[&args[..], &["--in-place", "--no-owner"]].concat());
    assert_eq!(
        staging.server.sql(DATABASE, "SELECT a FROM made;").trim(),
        "7"
    );
    assert_eq!(listing(), there);
    assert!(staging.dumps("app").is_empty());
    let nowhere = format!("file://{}/nobody", store.display());
    let text = staging.refused(&["restore", "app", "--from", &nowhere, "--in-place"], 3);
    assert!(text.contains("there is no dump in"), "{text}");
}

#[test]
fn a_full_disk_here_leaves_no_file() {
    let site = Site::new(YEARLY);
    site.server.sql(DATABASE, NOISE);
    site.ok(&["snapshot", "app"]);
    let before = (site.fingerprint(DATABASE), site.server.databases());
    let small = site.dir.path().join("small");
    let mount = Mount::tmpfs(&small, 4);
    let file = small.join("out.pgc");
    let text = site.refused(&["restore", "app", "-o", file.to_str().unwrap()], 1);
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.contains("hint:"), "{text}");
    let out = site
        .command(&["restore", "app", "--in-place", "--jobs", "2"])
        .env("TMPDIR", &small)
        .output()
        .unwrap();
    let text = words(&out);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(
        text.contains("No space left on device") && text.contains("TMPDIR"),
        "{text}"
    );
    assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0);
    assert_eq!(
        (site.fingerprint(DATABASE), site.server.databases()),
        before
    );
    drop(mount);
    site.every_listed_dump_restores(1);
}

#[test]
fn a_database_in_use_at_the_swap() {
    let mut site = Site::new(YEARLY);
    let quoted = DATABASE.replace('"', "\"\"");
    site.server.sql(
        "postgres",
        &format!("CREATE ROLE keeper LOGIN CREATEDB PASSWORD '{PASSWORD}'; ALTER DATABASE \"{quoted}\" OWNER TO keeper;"),
    );
    site.ok(&["snapshot", "app"]);
    let good = site.fingerprint(DATABASE);
    site.server.sql(DATABASE, "DELETE FROM events;");
    let broken = (site.fingerprint(DATABASE), site.server.databases());

    // A transaction that was prepared and forgotten.
    site.server.sql(
        DATABASE,
        "BEGIN; INSERT INTO events VALUES ('2026-01-01', 'x'); PREPARE TRANSACTION 'forgotten';",
    );
    let text = site.refused(&["restore", "app", "--in-place"], 4);
    assert!(
        text.contains("prepared transactions") && text.contains("hint:"),
        "{text}"
    );
    site.server.sql(DATABASE, "ROLLBACK PREPARED 'forgotten';");

    // A superuser's session, which the owner of the database may not end.
    let (boss, clients) = (
        site.server.connection().with_database(DATABASE),
        site.server.clients(),
    );
    let holder = std::thread::spawn(move || clients.sql(&boss, "SELECT pg_sleep(601);", &[]));
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(601);';";
    wait_for(|| site.server.sql("postgres", sleeping).trim() == "1");
    let url = site.server.url(URL_PASSWORD).replace("boss:", "keeper:");
    site.extra += &format!("    restore-url: \"{url}\"\n");
    let args = [
        "restore",
        "app",
        "--in-place",
        "--no-owner",
        "--no-privileges",
    ];
    let text = site.refused(&args, 4);
    assert!(
        text.contains("sessions that this role cannot end") && text.contains("pg_signal_backend"),
        "{text}"
    );
    assert_eq!(
        (site.fingerprint(DATABASE), site.server.databases()),
        broken
    );
    assert_eq!(site.server.sql("postgres", sleeping).trim(), "1");
    site.extra = YEARLY.into();
    site.server.sql(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(601);';",
    );
    assert!(holder.join().unwrap().is_err());

    // Another restore of it at work: held up before its database is marked.
    let clients = site.server.clients();
    let postgres = site.server.connection().with_database("postgres");
    let lock = "BEGIN; LOCK TABLE pg_shdescription IN EXCLUSIVE MODE; SELECT pg_sleep(602);";
    let holder = std::thread::spawn(move || clients.sql(&postgres, lock, &[]));
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'pg_shdescription'::regclass AND mode = 'ExclusiveLock' AND granted;";
    wait_for(|| site.server.sql("postgres", locked).trim() == "1");
    let first = site
        .command(&["restore", "app", "--in-place", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let at_work = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted;";
    wait_for(|| site.server.sql("postgres", at_work).trim() == "1");
    for args in [
        ["restore", "app", "--in-place"],
        ["restore", "app", "--undo"],
    ] {
        let text = site.refused(&args, 4);
        assert!(
            text.contains("another restore of") && text.contains("hint: wait for it"),
            "{text}"
        );
    }
    // Whoever has it open is told of.
    let (app, clients) = (
        site.server.connection().with_database(DATABASE),
        site.server.clients(),
    );
    let session = std::thread::spawn(move || clients.sql(&app, "SELECT pg_sleep(601);", &[]));
    wait_for(|| site.server.sql("postgres", sleeping).trim() == "1");
    site.server.sql(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(602)%' AND pid <> pg_backend_pid();",
    );
    let out = first.wait_with_output().unwrap();
    let text = words(&out);
    assert!(out.status.success(), "{text}");
    assert!(
        text.contains("ending the sessions of the live database"),
        "{text}"
    );
    let done: serde_json::Value =
        serde_json::from_slice(out.stdout.split(|b| *b == b'\n').next().unwrap()).unwrap();
    assert!(done["restored"]["sessions"].as_u64() >= Some(1), "{done}");
    assert!(holder.join().unwrap().is_err() && session.join().unwrap().is_err());
    site.server.sql(DATABASE, "DELETE FROM events;");

    // An app that comes back the moment it was thrown out.
    let done = Arc::new(AtomicBool::new(false));
    let apps: Vec<_> = (0..3)
        .map(|_| {
            let (clients, app) = (
                site.server.clients(),
                site.server.connection().with_database(DATABASE),
            );
            let done = Arc::clone(&done);
            std::thread::spawn(move || {
                let mut served = 0;
                while !done.load(Ordering::Relaxed) {
                    let answer =
                        clients.sql(&app, "SELECT count(*) FROM orders, pg_sleep(0.3);", &[]);
                    served += u32::from(answer.is_ok_and(|a| a.trim() == "2000"));
                }
                served
            })
        })
        .collect();
    site.ok(&["restore", "app", "--in-place"]);
    assert_eq!(site.fingerprint(DATABASE), good);
    done.store(true, Ordering::Relaxed);
    for app in apps {
        assert!(app.join().unwrap() > 0);
    }
    site.every_listed_dump_restores(1);
}

#[test]
fn odd_names_and_an_empty_database() {
    let long = "x".repeat(63);
    let names = [
        "a=b",
        "postgres://x/y",
        "dbname=postgres host=nowhere",
        "..",
        "$(touch pwned)",
        "ünï 🚣",
        &long,
        "-n",
        "x;DROP TABLE t",
        "%41%00",
        "back\\slash'",
        "tab\there",
        "A",
        "a",
        ":name",
        "/",
        "empty",
    ];
    let site = Site::new("    databases: { except: [postgres] }\n");
    for name in names {
        let quoted = name.replace('"', "\"\"");
        site.server
            .sql("postgres", &format!("CREATE DATABASE \"{quoted}\";"));
        if name != "empty" {
            let literal = name.replace('\'', "''");
            site.server.sql(
                name,
                &format!("CREATE TABLE t AS SELECT '{literal}' AS own;"),
            );
        }
    }
    site.ok(&["snapshot", "app"]);
    site.ok(&["verify", "app"]);
    for name in names {
        let target = format!("app/{name}");
        let dumps = site.dumps(&target);
        assert_eq!(dumps.len(), 1, "{name}");
        let original = site.fingerprint(name);
        site.ok(&["restore", &target, "--into-new", "proof"]);
        assert_eq!(site.fingerprint("proof"), original, "{name}");
        site.server.sql("postgres", "DROP DATABASE proof;");
        if name == "empty" {
            assert_eq!(dumps[0]["dump"]["counts"], serde_json::json!({}));
        } else {
            site.server.sql(name, "DELETE FROM t;");
        }
        site.ok(&["restore", &target, "--in-place"]);
        assert_eq!(site.fingerprint(name), original, "{name}");
    }
    let kept = site.server.sql(
        "postgres",
        "SELECT count(*) FROM pg_database WHERE datname LIKE '%\\_before\\_%';",
    );
    assert_eq!(kept.trim(), names.len().to_string());
    assert!(!site.dir.path().join("pwned").exists());
    // What an empty database held cannot be chosen from.
    site.refused(&["restore", "app/empty", "--table", "t"], 4);
    site.ok(&["restore", "app/empty", "-o", "empty.pgc"]);
}

/// The clock that a process sees.
fn at(command: &mut Command, time: &str) {
    let library = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    ];
    let library = library.iter().find(|l| Path::new(l).exists());
    command
        .env(
            "LD_PRELOAD",
            library.expect("libfaketime is missing: run bin/install-dev"),
        )
        .env("FAKETIME", format!("@{time}"))
        .env("TZ", "UTC")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

fn began(site: &Site) -> Vec<String> {
    let began = |d: &serde_json::Value| d["dump"]["began"].as_str().unwrap().to_owned();
    site.dumps("app").iter().map(began).collect()
}

/// 02:30 does not exist on the last Sunday of March, and comes twice on the last Sunday of October.
#[test]
fn a_schedule_over_a_clock_that_changes() {
    let site = Site::new("    schedule: '30 2 * * *'\n    time-zone: Europe/Berlin\n");
    let mut once = site.command(&["snapshot", "app"]);
    at(&mut once, "2026-03-28 01:30:01");
    let out = once.output().unwrap();
    assert!(out.status.success(), "{}", words(&out));
    assert!(began(&site)[0].starts_with("2026-03-28T01:30:0"));
    let daemon = |time: &str| {
        let mut command = site.command(&["run"]);
        at(&mut command, time);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut spring = daemon("2026-03-29 00:59:50");
    wait_for(|| began(&site).len() == 2);
    spring.kill().unwrap();
    spring.wait().unwrap();
    // The clock went from 02:00 to 03:00.
    let second = began(&site).remove(1);
    assert!(second.starts_with("2026-03-29T01:00:"), "{second}");

    let mut once = site.command(&["snapshot", "app"]);
    at(&mut once, "2026-10-25 00:30:00");
    let out = once.output().unwrap();
    assert!(out.status.success(), "{}", words(&out));
    // The second 02:30 of that night is not another run: the next is a day later.
    let mut autumn = daemon("2026-10-25 01:29:55");
    let next = || {
        let text = site.get("/metrics");
        let line = text
            .lines()
            .find(|l| l.starts_with("lifeboat_postgres_next_timestamp_seconds{"))?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    };
    wait_for(|| next().is_some());
    let due = next().unwrap();
    autumn.kill().unwrap();
    autumn.wait().unwrap();
    assert_eq!(due, 1_792_978_200.0, "2026-10-26T01:30:00Z");
    assert_eq!(began(&site).len(), 3);

    // Three days later one run makes up for those that were missed.
    let mut late = daemon("2026-10-29 12:00:00");
    wait_for(|| began(&site).len() == 4);
    wait_for(|| next() == Some(1_793_323_800.0));
    late.kill().unwrap();
    late.wait().unwrap();
    assert!(began(&site).remove(3).starts_with("2026-10-29T12:00:0"));

    let mut never = site;
    never.extra = "    schedule: '0 0 30 2 *'\n".into();
    let text = never.refused(&["snapshot"], 2);
    assert!(text.contains("never comes"), "{text}");
}
