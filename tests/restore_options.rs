//! Restores that look for a sound point, hold jobs back, run SQL, and read a foreign replica.
#![allow(missing_docs)]

mod common;

use std::path::{Path, PathBuf};

use common::daemon::{Site, assert_same_pages};
use common::python;
use serde_json::Value;

const QUEUE: &str = include_str!("app/solid_queue.sql");

/// A database of a Rails app: a table of its own and the whole of Solid Queue.
fn with_queue() -> Site {
    let site = Site::new();
    let sql = site.path("queue.sql");
    std::fs::write(&sql, QUEUE).unwrap();
    let load = format!("c=conn(); c.executescript(open({sql:?}).read()); c.close()");
    python(&site.db, &load);
    site.sync();
    site
}

fn ask(db: &Path, sql: &str) -> String {
    python(
        db,
        &format!("print(*[','.join(map(str, r)) for r in conn().execute({sql:?})])"),
    )
}

fn tables(db: &Path) -> String {
    let kinds = [
        "ready",
        "scheduled",
        "blocked",
        "claimed",
        "failed",
        "recurring",
    ];
    let count = |kind| {
        ask(
            db,
            &format!("select count(*) from solid_queue_{kind}_executions"),
        )
    };
    kinds.map(count).join(" ")
}

const PAUSES: &str = "select queue_name from solid_queue_pauses order by 1";

/// Nothing but the copy is there, and it is as it was captured: in WAL mode, sound, no row out of place.
fn is_clean(copy: &Path) {
    let folder = copy.parent().unwrap();
    let name = copy.file_name().unwrap().to_string_lossy().into_owned();
    for file in std::fs::read_dir(folder).unwrap() {
        let other = file.unwrap().file_name().to_string_lossy().into_owned();
        let is_rest = other.contains(&name) && other != name && !other.contains("before-restore");
        assert!(!is_rest, "{other} is left over");
    }
    assert_eq!(std::fs::read(copy).unwrap()[18..20], [2, 2], "WAL mode");
    assert_eq!(ask(copy, "pragma integrity_check"), "ok");
    assert_eq!(ask(copy, "pragma foreign_key_check"), "");
}

fn json(said: &str) -> Value {
    serde_json::from_str(said.lines().next().unwrap()).unwrap()
}

#[test]
fn jobs_run_wait_or_go() {
    let site = with_queue();
    let copy = site.restore("kept.sqlite3", &[]);
    is_clean(&copy);
    assert_eq!(ask(&copy, PAUSES), "held", "one target: as it was");
    let out = site.path("asked.sqlite3");
    let args = ["restore", "app", "--queue", "keep", "-o"];
    let said = site.ok(&[&args[..], &[out.to_str().unwrap()]].concat());
    assert!(!said.contains("no Solid Queue"), "{said}");

    let out = site.path("paused.sqlite3");
    let args = [
        "restore",
        "app",
        "-o",
        out.to_str().unwrap(),
        "--queue",
        "paused",
    ];
    let said = site.ok(&args);
    assert!(
        said.contains("QUEUES PAUSED: default, imports, mailers, reports, solo; waiting: 5 jobs"),
        "{said}"
    );
    is_clean(&out);
    assert_eq!(
        ask(&out, PAUSES),
        "default held imports mailers reports solo"
    );
    assert_eq!(tables(&out), "2 1 1 1 1 2", "nothing is lost");
    let times = ask(
        &out,
        "select distinct length(created_at) from solid_queue_pauses",
    );
    assert_eq!(times, "26", "as Rails writes times");
    assert_eq!(
        ask(
            &out,
            "select created_at from solid_queue_pauses where queue_name='held'"
        ),
        "2026-11-19 00:00:00.000000"
    );

    let out = site.path("emptied.sqlite3");
    let args = [
        "restore",
        "app",
        "-o",
        out.to_str().unwrap(),
        "--queue",
        "empty",
        "--json",
    ];
    let said = json(&site.ok(&args));
    assert_eq!(said["edited"]["queue"]["removed"], 5, "{said}");
    is_clean(&out);
    assert_eq!(tables(&out), "0 0 0 0 1 1", "what failed or is done stays");
    assert_eq!(
        ask(&out, "select id from solid_queue_jobs order by 1"),
        "1 6"
    );
    assert_eq!(
        ask(&out, "select count(*) from solid_queue_semaphores"),
        "0"
    );
    assert_eq!(ask(&out, PAUSES), "held");
    assert_eq!(ask(&out, "select count(*) from t"), "3000");
}

#[test]
fn everything_and_foreign_copies_come_back_paused() {
    let site = with_queue();
    let folder = site.path("all");
    site.ok(&["restore", "--all", "-o", folder.to_str().unwrap()]);
    let all = folder.join("app.sqlite3");
    assert!(ask(&all, PAUSES).contains("mailers"));
    let chosen = site.path("chosen");
    site.ok(&[
        "restore",
        "--all",
        "-o",
        chosen.to_str().unwrap(),
        "--queue",
        "keep",
    ]);
    assert_eq!(ask(&chosen.join("app.sqlite3"), PAUSES), "held");

    let url = format!("{}/app", site.store);
    for (name, args) in [
        ("u.sqlite3", vec!["restore", &url, "-o"]),
        ("f.sqlite3", vec!["restore", "--from", &url, "-o"]),
    ] {
        let out = site.path(name);
        let mut args = args;
        args.push(out.to_str().unwrap());
        site.ok(&args);
        assert!(ask(&out, PAUSES).contains("mailers"), "{args:?}");
    }

    // Without Solid Queue there is nothing to hold back.
    let plain = Site::new();
    plain.sync();
    let copy = plain.restore("plain.sqlite3", &["--queue", "paused"]);
    assert_same_pages(&copy, &plain.copy_now("oracle.sqlite3"), "untouched");
}

#[test]
fn a_queue_that_cannot_be_paused_is_refused() {
    let site = with_queue();
    site.write("drop table solid_queue_pauses");
    site.sync();
    let out = site.path("copy.sqlite3");
    let args = [
        "restore",
        "app",
        "-o",
        out.to_str().unwrap(),
        "--queue",
        "paused",
    ];
    let error = site.fails(1, &args);
    assert!(
        error.contains("solid_queue_pauses; nothing was changed")
            && error.contains("--queue empty"),
        "{error}"
    );
    assert!(!out.exists());
}

/// Staging restores production's replica into its own database, and its own replica goes on.
#[test]
fn staging_from_production() {
    let production = with_queue();
    production.write("create table users(id integer primary key, email text not null)");
    production.write("insert into users values(1, 'real@example.com'), (2, 'person@example.com')");
    production.sync();
    let replica = production.path("store");
    let before = listing(&replica);

    let mut staging = Site::new();
    staging.instance = "staging".into();
    let daemon = staging.start();
    staging.sync();
    let script = staging.path("anonymous.sql");
    std::fs::write(
        &script,
        "-- nobody gets mail from staging\nBEGIN;\nUPDATE users SET email = 'user' || id || '@staging.test';\nCOMMIT;\nSELECT count(*) FROM users;\nVACUUM;\n",
    )
    .unwrap();
    let url = format!("{}/app", production.store);
    let args = [
        "restore",
        "app",
        "--from",
        &url,
        "--in-place",
        "--after-sql",
        script.to_str().unwrap(),
    ];
    let said = staging.ok(&args);
    assert!(said.contains("5 statements of SQL ran"), "{said}");
    assert!(said.contains("QUEUES PAUSED"), "{said}");
    let emails = "select email from users order by 1";
    assert_eq!(
        ask(&staging.db, emails),
        "user1@staging.test user2@staging.test"
    );
    let bytes = std::fs::read(&staging.db).unwrap();
    let real = b"person@example.com";
    assert!(
        !bytes.windows(real.len()).any(|w| w == real),
        "VACUUM left nothing"
    );

    // Staging's own replica takes it up, and production's was only read.
    staging.write("insert into users values(3, 'new@staging.test')");
    staging.sync();
    let copy = staging.restore("copy.sqlite3", &[]);
    assert_same_pages(
        &copy,
        &staging.copy_now("oracle.sqlite3"),
        "staging's replica",
    );
    assert!(ask(&copy, emails).contains("new@staging.test"));
    assert_eq!(listing(&replica), before, "production's replica");
    assert_eq!(
        ask(&production.db, emails),
        "person@example.com real@example.com"
    );
    daemon.stop();
}

/// Paths, sizes and contents of everything in a folder.
fn listing(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(listing(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn sql_that_fails_changes_nothing() {
    let site = with_queue();
    let was = site.copy_now("was.sqlite3");
    let folder: Vec<PathBuf> = listing(site.dir.path()).into_iter().map(|f| f.0).collect();
    for (sql, expected) in [
        (
            "update t set a = 1; selec 1;",
            "syntax error (in: selec 1;)",
        ),
        (
            "delete from t; insert into solid_queue_pauses(queue_name) values ('x');",
            "NOT NULL",
        ),
        ("begin; delete from t;", "ends within a transaction"),
        (
            "update t set a = 1; select * from nowhere;",
            "no such table: nowhere (in: statement 2)",
        ),
        (
            "insert into solid_queue_ready_executions(job_id, queue_name, created_at) values (99, 'x', 'y')",
            "FOREIGN KEY",
        ),
        // What SQLite would find wrong with the result.
        (
            "pragma writable_schema=on; update sqlite_schema set rootpage = 3 where name = 'solid_queue_pauses';",
            "SQLite's quick_check",
        ),
    ] {
        let script = site.path("queue.sql");
        std::fs::write(&script, sql).unwrap();
        let out = site.path("out.sqlite3");
        for place in [vec!["-o", out.to_str().unwrap()], vec!["--in-place"]] {
            let mut args = vec!["restore", "app", "--after-sql", script.to_str().unwrap()];
            args.extend(place);
            let ran = site.run(&args);
            let error = String::from_utf8_lossy(&ran.stderr).into_owned();
            assert!(
                !ran.status.success() && error.contains(expected),
                "{sql}: {error}"
            );
            assert!(error.contains("nothing was changed"), "{error}");
            assert!(!out.exists());
        }
        assert_same_pages(&site.copy_now("now.sqlite3"), &was, sql);
        std::fs::remove_file(site.path("now.sqlite3")).unwrap();
    }
    let beside = |p: &PathBuf| p.parent() == Some(site.dir.path());
    let now: Vec<PathBuf> = listing(site.dir.path()).into_iter().map(|f| f.0).collect();
    let (was, now): (Vec<_>, Vec<_>) = (
        folder.iter().filter(|p| beside(p)).collect(),
        now.iter().filter(|p| beside(p)).collect(),
    );
    assert_eq!(was, now, "no file is left over");
    let missing = site.fails(
        2,
        &["restore", "app", "--after-sql", "nowhere.sql", "-o", "x"],
    );
    assert!(missing.contains("nowhere.sql"), "{missing}");
    let latin1 = site.path("latin1.sql");
    std::fs::write(&latin1, b"update t set a = '\xe4'").unwrap();
    let args = ["restore", "app", "-o", "x", "--after-sql"];
    let error = site.fails(2, &[&args[..], &[latin1.to_str().unwrap()]].concat());
    assert!(
        error.contains("hint: name a file of SQL in UTF-8"),
        "{error}"
    );
}

/// Commits a row that breaks the table's CHECK, as a disk or a bug would.
fn damage(site: &Site) {
    python(
        &site.db,
        "c=conn(); c.execute('pragma ignore_check_constraints=on'); c.execute('insert into orders values(-1, 0)'); c.close()",
    );
}

fn orders(site: &Site, id: i64) -> u64 {
    site.write(&format!("insert into orders values({id}, 1)"));
    site.sync()
}

#[test]
fn the_newest_sound_point_is_found() {
    let site = Site::new();
    site.write("create table orders(id integer primary key, n integer not null check (n > 0))");
    let daemon = site.start();
    for id in 1..=20 {
        orders(&site, id);
    }
    let out = site.path("copy.sqlite3");
    let good = [
        "restore",
        "app",
        "--last-good",
        "-o",
        out.to_str().unwrap(),
        "--json",
    ];
    let said = json(&site.ok(&good));
    assert_eq!(said["tried"].as_array().unwrap().len(), 1, "{said}");
    assert_eq!(ask(&out, "select count(*) from orders"), "20");
    std::fs::remove_file(&out).unwrap();

    // Damaged, mended, damaged again: not every point after the first damage is damaged.
    damage(&site);
    site.sync();
    orders(&site, 21);
    site.write("delete from orders where id = -1");
    site.sync();
    orders(&site, 22);
    let mended = orders(&site, 23);
    damage(&site);
    site.sync();
    for id in 24..=27 {
        orders(&site, id);
    }
    let newest = [
        "restore",
        "app",
        "-o",
        out.to_str().unwrap(),
        "--verify",
        "full",
    ];
    let error = site.fails(5, &newest);
    assert!(error.contains("CHECK constraint failed"), "{error}");
    let said = json(&site.ok(&good));
    assert_eq!(said["txid"], format!("{mended:016x}"), "{said}");
    let tried = said["tried"].as_array().unwrap();
    let wrong = tried.iter().filter(|t| !t["wrong"].is_null()).count();
    assert_eq!(wrong, tried.len() - 1, "{said}");
    assert_eq!(ask(&out, "select max(id) from orders"), "23");
    is_clean(&out);

    // In place, with words for a person, and undone.
    for id in 28..=45 {
        orders(&site, id);
    }
    let said = site.ok(&["restore", "app", "--last-good", "--in-place"]);
    assert!(said.contains("the newest sound point of"), "{said}");
    assert_eq!(ask(&site.db, "select max(id) from orders"), "23");
    site.ok(&["restore", "app", "--undo"]);
    assert_eq!(ask(&site.db, "select max(id) from orders"), "45");
    daemon.stop();
}

#[test]
fn no_sound_point_is_said_and_nothing_is_changed() {
    let site = Site::new();
    site.write("create table orders(id integer primary key, n integer not null check (n > 0))");
    damage(&site);
    for id in 1..=3 {
        orders(&site, id);
    }
    let out = site.path("copy.sqlite3");
    let error = site.fails(
        5,
        &["restore", "app", "--last-good", "-o", out.to_str().unwrap()],
    );
    assert!(
        error.contains("restore points was found sound") && error.contains("hint:"),
        "{error}"
    );
    assert!(!out.exists());
    let error = site.fails(4, &["restore", "app", "--last-good"]);
    assert!(error.contains("exists already"), "{error}");
    assert!(
        !error.contains("TXID"),
        "it is said before anything is tried: {error}"
    );
    let empty = Site::new();
    empty.fails(3, &["restore", "app", "--last-good", "-o", "x"]);
    empty.fails(2, &["restore", "--all", "--last-good"]);
    empty.fails(2, &["restore", "app", "--last-good", "--at", "1m"]);
}
