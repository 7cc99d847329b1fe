//! Two servers of different majors at once.
#![allow(missing_docs)]

mod pg;

use pg::site::Site;
use pg::{DATABASE, Server};

fn bin_dir(server: &Server) -> String {
    format!("    bin-dir: {}\n", server.programs.display())
}

#[test]
fn another_major_is_dumped_and_restored_by_its_own_clients() {
    let mut site = Site::on(Server::start_16(), "");
    site.server.sql(DATABASE, "CREATE EXTENSION vector; CREATE TABLE embeddings (id int PRIMARY KEY, at vector(3));
        INSERT INTO embeddings SELECT n, format('[%s,2,3]', n)::vector FROM generate_series(1, 50) n;");
    let text = site.refused(&["snapshot", "app"], 2);
    assert!(
        text.contains("PostgreSQL 16") && text.contains("bin-dir"),
        "{text}"
    );
    assert_eq!(site.dumps("app").len(), 0);

    site.extra = bin_dir(&site.server);
    let original = site.fingerprint(DATABASE);
    site.ok(&["snapshot", "app"]);
    let manifest = &site.dumps("app")[0]["dump"];
    let versions = manifest.to_string();
    assert!(
        versions.contains("16.") && versions.contains("vector"),
        "{versions}"
    );
    site.every_listed_dump_restores(1);

    site.server
        .sql(DATABASE, "DELETE FROM embeddings; DELETE FROM orders;");
    let damaged = site.fingerprint(DATABASE);
    assert_ne!(damaged, original);
    site.ok(&["restore", "app", "--in-place"]);
    assert_eq!(site.fingerprint(DATABASE), original);
    site.ok(&["restore", "app", "--undo"]);
    assert_eq!(site.fingerprint(DATABASE), damaged);
}

/// Upwards a dump goes through the newer clients; downwards nothing happens.
#[test]
fn a_dump_moves_up_a_major_and_never_down() {
    let (older, newer) = (Server::start(), Server::start_16());
    older.sql("postgres", "CREATE DATABASE moving;");
    older.sql("moving", include_str!("app/postgres_plain.sql"));
    let original = older.fingerprint("moving");
    let mut site = Site::on(newer, "");
    let url = |server: &Server, database: &str| {
        let folder = server.folder.path().display();
        format!(
            "postgres://boss:{}@/{database}?host={folder}&port={}",
            pg::URL_PASSWORD,
            server.port
        )
    };
    let config = |server: &Server, bins: &str| {
        let root = site.dir.path().display();
        let text = format!(
            "store: file://{root}/moving\nstate-dir: {root}/state-moving\npostgres:\n  - name: app\n    url: \"{}\"\n{bins}",
            url(server, "moving")
        );
        std::fs::write(site.dir.path().join("moving.yml"), text).unwrap();
    };
    let lifeboat = |args: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_lifeboat"))
            .args(args)
            .arg("--config")
            .arg(site.dir.path().join("moving.yml"))
            .env("TARGET", "unused")
            .output()
            .unwrap()
    };
    config(&older, "");
    let out = lifeboat(&["snapshot", "app"]);
    assert!(out.status.success(), "{}", pg::site::words(&out));

    config(&older, &bin_dir(&site.server));
    let out = lifeboat(&["restore", "app", "--into", &url(&site.server, "moved")]);
    assert!(out.status.success(), "{}", pg::site::words(&out));
    assert_eq!(site.fingerprint("moved"), original);

    // What the newer one dumps, the older one's clients cannot read: refused before anything is made.
    site.extra = bin_dir(&site.server);
    site.ok(&["snapshot", "app"]);
    site.extra = String::new();
    let before = older.databases();
    let out = site.run(&["restore", "app", "--into", &url(&older, "back")]);
    let text = pg::site::words(&out);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("unsupported version"), "{text}");
    assert_eq!(older.databases(), before, "{text}");
}

/// Tables, views, sequences, indexes and types that came with an extension are nobody's data.
#[test]
fn a_database_with_nothing_but_extensions_is_empty() {
    let server = Server::start_16();
    let share = server.programs.parent().unwrap().join("share/postgresql");
    let control = "default_version = '1'\nrelocatable = true\n";
    let made = "CREATE TABLE places (id serial PRIMARY KEY, name text UNIQUE);
        CREATE INDEX ON places (lower(name));
        CREATE VIEW named AS SELECT name FROM places;
        CREATE TYPE pair AS (a int, b int);
        CREATE SEQUENCE numbers;
        CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS all FROM places;
        CREATE UNIQUE INDEX ON counted (\"all\");";
    for (name, text) in [("places.control", control), ("places--1.sql", made)] {
        std::fs::write(share.join("extension").join(name), text).unwrap();
    }
    server.sql("postgres", "CREATE DATABASE app;");
    let app = server.connection().with_database("app");
    let is_full = || lifeboat::postgres::has_data(&server.clients(), &app).unwrap();
    server.sql("app", "CREATE EXTENSION vector; CREATE EXTENSION places;");
    assert!(!is_full());
    for (make, drop) in [
        ("TABLE mine (a text)", "TABLE mine"),
        ("VIEW mine AS SELECT 1 AS a", "VIEW mine"),
        ("SEQUENCE mine", "SEQUENCE mine"),
        (
            "MATERIALIZED VIEW mine AS SELECT 1 AS a",
            "MATERIALIZED VIEW mine",
        ),
        ("TABLE mine (a int) PARTITION BY RANGE (a)", "TABLE mine"),
    ] {
        server.sql("app", &format!("CREATE {make};"));
        assert!(is_full(), "{make}");
        server.sql("app", &format!("DROP {drop};"));
        assert!(!is_full(), "{drop}");
    }
    server.sql("app", "SELECT lo_create(0);");
    assert!(is_full());
}
