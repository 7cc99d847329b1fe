//! What is found before a dump, and what becomes of dumps afterwards.

mod pg;

use std::path::PathBuf;
use std::process::{Child, Stdio};

use pg::site::Site;
use pg::{DATABASE, PASSWORD, URL_PASSWORD, as_nobody_special, wait_for};
use serde_json::Value;

/// PgBouncer, ended with the test.
struct Bouncer {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bouncer {
    fn start(site: &Site, mode: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let text = format!(
            "[databases]\n* = host={} user=boss password='{PASSWORD}'\n[pgbouncer]\nlisten_addr =\nlisten_port = 5432\nunix_socket_dir = {path}\nauth_type = any\npool_mode = {mode}\nlogfile = {path}/log\nignore_startup_parameters = extra_float_digits\n",
            site.server.folder.path().display()
        );
        let config = folder.path().join("pgbouncer.ini");
        std::fs::write(&config, text).unwrap();
        if rustix::process::getuid().is_root() {
            let chown = std::process::Command::new("chown")
                .args(["-R", "postgres:postgres"])
                .arg(folder.path())
                .status();
            assert!(chown.unwrap().success());
        }
        let child = as_nobody_special("/usr/sbin/pgbouncer".as_ref())
            .arg("-q")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pgbouncer is missing: run bin/install-dev");
        let socket = folder.path().join(".s.PGSQL.5432");
        wait_for(|| std::os::unix::net::UnixStream::connect(&socket).is_ok());
        Self { child, folder }
    }
}

#[test]
fn what_would_fail_is_found_before_a_dump() {
    let mut site = Site::new("    schedule: '0 3 1 1 *'\n");
    site.server.sql(
        "postgres",
        &format!("CREATE ROLE dumper LOGIN PASSWORD '{PASSWORD}';"),
    );
    site.user = "dumper".into();
    let text = site.refused(&["snapshot"], 1);
    assert!(
        text.contains("may not read public.") && text.contains("pg_read_all_data"),
        "{text}"
    );
    site.server
        .sql("postgres", "GRANT pg_read_all_data TO dumper;");
    let text = site.refused(&["snapshot"], 1);
    assert!(
        text.contains("may not read 1 large objects") && text.contains("hint:"),
        "{text}"
    );
    site.server
        .sql(DATABASE, "GRANT SELECT ON LARGE OBJECT 4711 TO dumper;");
    // With these rights alone it is a whole dump.
    site.ok(&["snapshot"]);
    site.ok(&[
        "restore",
        "app",
        "--into",
        &site
            .server
            .url(URL_PASSWORD)
            .replace("/postgres?", "/copy?"),
    ]);
    assert_eq!(
        site.server
            .fingerprint("copy")
            .replace(",dumper=r/boss", ""),
        site.server
            .fingerprint(DATABASE)
            .replace(",dumper=r/boss", "")
    );
    site.server
        .sql(DATABASE, "ALTER TABLE orders ENABLE ROW LEVEL SECURITY;");
    let text = site.refused(&["snapshot"], 1);
    assert!(
        text.contains("row-level security hides rows of public.orders"),
        "{text}"
    );
    site.extra += "    pg-dump-args: [--exclude-table=orders]\n";
    site.ok(&["snapshot"]);
    assert_eq!(site.dumps("app").len(), 2);

    // Statistics are for clients that know them.
    site.extra += "    statistics: true\n";
    let out = site.run(&["snapshot"]);
    assert!(out.status.success());
    let said = pg::site::words(&out).contains("dumped without them");
    assert_eq!(said, site.server.clients().major < 18);
    assert_eq!(site.dumps("app").len(), 3);

    // A client of another major.
    let other = site.dir.path().join("bin");
    std::fs::create_dir(&other).unwrap();
    for program in ["psql", "pg_dump"] {
        let real = pg::programs().join(program);
        let script = match program {
            "psql" => format!("#!/bin/sh\nexec {} \"$@\"\n", real.display()),
            _ => "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.1'\n".to_owned(),
        };
        let path = other.join(program);
        std::fs::write(&path, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
    }
    site.extra += &format!("    bin-dir: {}\n", other.display());
    let text = site.refused(&["snapshot"], 2);
    assert!(
        text.contains("9.6.1") && text.contains("postgresql-client"),
        "{text}"
    );
}

#[test]
fn poolers_are_found_by_what_they_do() {
    let mut site = Site::new("");
    let bouncer = Bouncer::start(&site, "transaction");
    site.socket = Some(bouncer.folder.path().to_owned());
    let text = site.refused(&["snapshot"], 1);
    assert!(
        text.contains("pooler") && text.contains("own address"),
        "{text}"
    );
    assert_eq!(site.dumps("app").len(), 0);
    drop(bouncer);
    let bouncer = Bouncer::start(&site, "session");
    site.socket = Some(bouncer.folder.path().to_owned());
    site.ok(&["snapshot"]);
    assert_eq!(site.dumps("app").len(), 1);
    drop(bouncer);
    let text = site.refused(&["snapshot"], 1);
    assert!(text.contains("is the server running"), "{text}");
}

fn object(site: &Site, id: &str) -> PathBuf {
    let dumps = site.dir.path().join("store/app/dumps");
    dumps.join(id).join("dump.pgc.zst")
}

fn ids(site: &Site) -> Vec<String> {
    let id = |v: &Value| v["dump"]["id"].as_str().unwrap().to_owned();
    site.dumps("app").iter().map(id).collect()
}

#[test]
fn odd_dumps_replace_no_good_one_until_they_are_accepted() {
    let site = Site::new("    schedule: '0 3 1 1 *'\n    retention: { daily: 1 }\n");
    site.ok(&["snapshot", "app"]);
    site.ok(&["snapshot", "app", "--label", "pinned"]);
    site.ok(&["snapshot", "app"]);
    let before = ids(&site);
    let text = site.ok(&["prune", "app", "--dry-run"]);
    assert!(text.contains(&format!("delete {}", before[0])), "{text}");
    assert!(text.contains("label pinned"), "{text}");
    assert_eq!(ids(&site), before);
    site.ok(&["prune"]);
    assert_eq!(ids(&site), before[1..]);

    site.server.sql(
        DATABASE,
        "DELETE FROM orders WHERE id > 100; DROP TABLE events;",
    );
    let text = site.ok(&["snapshot", "app"]);
    assert!(
        text.contains("WARNING: tables are gone: public.events_2025, public.events_2026"),
        "{text}"
    );
    assert!(text.contains("public.orders (100 of 2000 rows)"), "{text}");
    site.ok(&["snapshot", "app"]);
    let text = site.ok(&["list", "app"]);
    assert_eq!(text.matches("ODD").count(), 2, "{text}");
    site.ok(&["prune", "app"]);
    let left = ids(&site);
    assert!(left.contains(&before[2]), "the good one stays: {left:?}");
    assert_eq!(left.len(), 3);
    site.ok(&["prune", "app", "--accept"]);
    let left = ids(&site);
    assert!(
        !left.contains(&before[2]) && left.contains(&before[1]),
        "{left:?}"
    );
    let text = site.ok(&["snapshot", "app"]);
    assert!(!text.contains("WARNING"), "{text}");
}

#[test]
fn damage_is_found_and_unfinished_dumps_are_swept() {
    let mut site = Site::new("    schedule: '0 3 1 1 *'\n    retention: { daily: 1 }\n");
    site.ok(&["snapshot", "app"]);
    site.ok(&["verify", "app"]);
    let first = ids(&site).remove(0);
    let path = object(&site, &first);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let text = site.refused(&["verify", "app"], 5);
    assert!(text.contains("damaged") && text.contains("hint:"), "{text}");
    let text = site.refused(&["restore", "app", "--in-place"], 5);
    assert!(text.contains("damaged"), "{text}");

    // The daemon finds it within its budget, and turns red.
    site.extra += "    read-budget: 1GiB\n";
    let daemon = site.start();
    wait_for(|| site.metric("lifeboat_postgres_damaged") == 1.0);
    assert_eq!(site.metric("lifeboat_postgres_ready"), 0.0);
    assert!(
        site.get("/readyz")
            .contains(&format!("dump {first} is damaged"))
    );
    drop(daemon);
    // It is listed as what it is, and takes the place of no other.
    assert!(site.dumps("app")[0]["damage"].is_string());
    let text = site.ok(&["list", "app"]);
    assert!(text.contains("NOT RESTORABLE: it was read back"), "{text}");
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    let text = site.ok(&["list", "app"]);
    assert!(text.contains("NOT RESTORABLE: the store holds"), "{text}");
    let text = site.ok(&["prune", "app", "--dry-run"]);
    assert!(text.contains("not whole"), "{text}");
    std::fs::write(&path, &good).unwrap();

    // Without a manifest: invisible, and swept after a day.
    let folder = site.dir.path().join("store/app/dumps/20200101T000000.000Z");
    std::fs::create_dir(&folder).unwrap();
    let orphan = folder.join("dump.pgc.zst");
    std::fs::write(&orphan, b"half").unwrap();
    assert_eq!(ids(&site).len(), 1);
    site.ok(&["prune", "app"]);
    assert!(orphan.exists(), "it may be a dump under way");
    let file = std::fs::File::options().write(true).open(&orphan).unwrap();
    file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(90_000))
        .unwrap();
    site.ok(&["prune", "app"]);
    assert!(!orphan.exists());

    // A manifest that cannot be read protects its dump, and hides no other.
    let manifest = path.with_file_name("manifest.json");
    let text = std::fs::read(&manifest).unwrap();
    site.ok(&["snapshot", "app"]);
    std::fs::write(&manifest, &text[..text.len() / 2]).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(90_000);
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(old)
        .unwrap();
    std::fs::File::options()
        .write(true)
        .open(&manifest)
        .unwrap()
        .set_modified(old)
        .unwrap();
    site.ok(&["prune", "app"]);
    assert!(path.exists());
    assert_eq!(ids(&site).len(), 1);
    site.refused(&["verify", "app"], 5);
    site.ok(&["restore", "app", "--into-new", "newer"]);
}

#[test]
fn drills_restore_on_their_own_server() {
    let mut site = Site::new("    schedule: '0 3 1 1 *'\n    retention: { daily: 1 }\n");
    site.ok(&["snapshot", "app"]);
    let text = site.refused(&["drill", "app"], 2);
    assert!(text.contains("drill-url"), "{text}");
    let text = site.refused(&["drill"], 3);
    assert!(
        text.contains("app: not drilled: it has no `drill-url`"),
        "{text}"
    );
    let other = pg::Server::start();
    site.extra += &format!("    drill-url: \"{}\"\n", other.url(URL_PASSWORD));
    let text = site.ok(&["drill"]);
    assert!(text.contains("rows counted and right"), "{text}");
    assert!(text.ends_with("lifeboat: ok drill targets=1\n"), "{text}");
    assert!(
        !other.databases().contains("drill"),
        "{}",
        other.databases()
    );
    // The proven dump outlives its tier.
    let proven = ids(&site).remove(0);
    site.ok(&["snapshot", "app"]);
    site.ok(&["prune", "app"]);
    assert!(ids(&site).contains(&proven));
    // A damaged one is found, and leaves nothing behind.
    let newest = ids(&site).pop().unwrap();
    let path = object(&site, &newest);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    site.refused(&["drill", "app"], 5);
    assert!(!other.databases().contains("drill"));
}

/// The last line of a drill without a word on what it left out would say that everything is proven.
#[test]
fn what_is_not_drilled_is_said() {
    let mut site = Site::new("");
    // The target's own server will do, if somebody says so.
    site.extra = format!(
        "    drill-url: \"{own}\"\n  - name: second\n    url: \"{own}\"\n    schedule: '0 3 1 1 *'\ndrill: {{ schedule: '0 3 1 1 *' }}\n",
        own = site.server.url(URL_PASSWORD)
    );
    site.ok(&["snapshot"]);
    let text = site.ok(&["drill"]);
    assert!(
        text.contains("second: not drilled: it has no `drill-url`\n")
            && text.contains("rows counted and right")
            && text.ends_with("lifeboat: ok drill targets=1 skipped=1\n"),
        "{text}"
    );
    assert!(!site.server.databases().contains("lifeboat_drill"));
    let text = site.ok(&["drill", "--json"]);
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(line["target"], "second");
    assert_eq!(line["not_drilled"], "it has no `drill-url`");
    let text = site.refused(&["drill", "second"], 2);
    assert!(text.contains("hint: add `drill-url:`"), "{text}");
    let said = pg::site::words(&site.run(&["doctor"]));
    assert!(said.contains("(dumps: "), "{said}");
    assert!(
        said.contains("WARNING drills        second: it has no `drill-url`"),
        "{said}"
    );
    assert!(!said.contains("app: it has no `drill-url`"), "{said}");
    let daemon = site.start();
    wait_for(|| {
        let log = std::fs::read_to_string(&daemon.log).unwrap();
        log.contains("it is not drilled") && log.contains("second")
    });
}

#[test]
fn assertions_are_asked_in_the_drilled_database() {
    let mut site = Site::new("    schedule: '0 3 1 1 *'\n");
    site.ok(&["snapshot", "app"]);
    let own = site.server.url(URL_PASSWORD);
    let before = site.extra.clone();
    let mut with = |asserts: &[&str]| {
        let list = serde_json::to_string(asserts).unwrap();
        site.extra = format!("{before}    drill-url: \"{own}\"\n    assert: {list}\n");
        site.run(&["drill", "app", "--json"])
    };
    let right = [
        "select count(*) > 0 from orders",
        "select 7, 'and more'",
        "select 0.5 -- and a remark",
        "select 1 from generate_series(1, 200000)",
    ];
    let out = with(&right);
    let text = pg::site::words(&out);
    assert!(out.status.success(), "{text}");
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let drill = &line["drill"];
    let names = |drill: &Value| -> Vec<String> {
        let checks = drill["checks"].as_array().unwrap().iter();
        checks
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        names(drill),
        ["restore", "assert", "assert", "assert", "assert"]
    );
    assert!(drill["restore_seconds"].as_f64().unwrap() > 0.0, "{drill}");
    assert!(drill["data_age_seconds"].as_f64().unwrap() > 0.0, "{drill}");

    let wrong = [
        ("select count(*) < 0 from orders", "gives f"),
        ("select count(*) - count(*) from orders", "gives 0"),
        ("select null", "gives NULL"),
        ("select 1 where false", "gives no row"),
        ("select 'NaN'::float8", "gives NaN"),
        ("select 'text'", "gives text"),
        ("select nothing from nowhere", "does not exist"),
        ("create table t(a int)", "read-only transaction"),
    ];
    let asked: Vec<&str> = wrong.iter().map(|(sql, _)| *sql).collect();
    let out = with(&[&["select true"], &asked[..]].concat());
    let text = pg::site::words(&out);
    assert_eq!(out.status.code(), Some(5), "{text}");
    assert!(text.contains("the drill failed: app in"), "{text}");
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let checks = line["drill"]["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 2 + wrong.len());
    assert_eq!(checks[1]["ok"], true, "{line}");
    for (check, (sql, why)) in checks[2..].iter().zip(wrong) {
        let detail = check["detail"].as_str().unwrap();
        assert_eq!(check["ok"], false, "{check}");
        assert!(detail.contains(sql) && detail.contains(why), "{detail}");
    }
    assert!(!site.server.databases().contains("lifeboat_drill"));
    // People see each of them, and the failed drill is on record.
    let text = site.refused(&["drill", "app"], 5);
    assert!(
        text.contains("  ok assert: select true\n")
            && text.contains("  FAILED assert: create table t(a int)"),
        "{text}"
    );
    let said = pg::site::words(&site.run(&["evidence"]));
    assert!(said.contains(" FAILED (restored in "), "{said}");
}
