//! The first start of a server: what is there already, and what is still to come.

use crate::site::Site;

fn database(site: &Site, name: &str) {
    let made = std::process::Command::new("sqlite3")
        .arg(site.data(name))
        .arg("pragma journal_mode=wal; create table t(a); insert into t values(1);")
        .output()
        .expect("sqlite3 is missing: run bin/install-dev");
    assert!(made.status.success());
}

/// A restore of everything that was cut short between databases and files: the next start must not take the databases for the files.
#[test]
fn databases_beside_them_are_not_the_files() {
    let mut site = Site::quick();
    database(&site, "app.sqlite3");
    site.top = format!(
        "sqlite:\n  - path: {}\n",
        site.data("app.sqlite3").display()
    );
    site.write("ab/cd/photo", b"photo");
    site.ok(&["snapshot"]);
    let boot = ["restore", "--all", "--if-not-exists", "--if-replica-exists"];
    let text = site.ok(&boot);
    assert!(text.contains("restored=0 existing=2"), "{text}");
    // The database came, its files did not. An image brings placeholders, and a volume a folder of its own.
    std::fs::remove_dir_all(site.data("ab")).unwrap();
    site.write(".keep", b"");
    std::fs::create_dir(site.data("lost+found")).unwrap();
    let text = site.ok(&boot);
    assert!(text.contains("restored=1 existing=1"), "{text}");
    assert_eq!(std::fs::read(site.data("ab/cd/photo")).unwrap(), b"photo");
    let text = site.ok(&boot);
    assert!(text.contains("restored=0 existing=2"), "{text}");
    // One upload is enough to be left alone, wherever it is.
    std::fs::remove_dir_all(site.data("ab")).unwrap();
    site.write("x/y/new", b"new");
    let text = site.ok(&boot);
    assert!(text.contains("restored=0 existing=2"), "{text}");
    assert!(!site.data("ab").exists());
}

/// An app without uploads is started again and again: nothing is exchanged each time.
#[test]
fn a_snapshot_without_files_is_nothing_to_restore() {
    let mut site = Site::quick();
    database(&site, "app.sqlite3");
    site.top = format!(
        "sqlite:\n  - path: {}\n",
        site.data("app.sqlite3").display()
    );
    site.ok(&["snapshot"]);
    assert_eq!(site.points()[0]["files"], 0);
    let boot = ["restore", "--all", "--if-not-exists", "--if-replica-exists"];
    let text = site.ok(&boot);
    assert!(text.contains("restored=0 existing=2"), "{text}");
    let names = std::fs::read_dir(site.path("data")).unwrap();
    let mut names = names.map(|e| e.unwrap().file_name());
    assert!(!names.any(|n| n.to_string_lossy().contains("lifeboat-old")));
}

/// One of two paths was not there yet when the first snapshot was made, which is partial for that: it gives back what it has.
#[test]
fn a_path_that_was_away_does_not_keep_back_the_others() {
    let mut site = Site::quick();
    site.write("photo", b"photo");
    let other = site.path("not-yet");
    site.extra += &format!(
        "  - name: both\n    paths: [{}, {}]\n    password: {}\n    create: true\n",
        site.path("data").display(),
        other.display(),
        site.password
    );
    let said = site.refused(&["snapshot", "both"], 1);
    assert!(said.contains("is not there"), "{said}");
    let out = site.run(&["restore", "both", "-o", "back"]);
    let text = crate::site::words(&out);
    assert!(out.status.success(), "{text}");
    assert!(text.contains("was not there when"), "{text}");
    let back = site.path("back");
    let data = site.path("data");
    let photo = back.join(data.strip_prefix("/").unwrap()).join("photo");
    assert_eq!(std::fs::read(photo).unwrap(), b"photo");
    std::fs::write(site.data("photo"), "changed").unwrap();
    site.ok(&["restore", "both", "--in-place"]);
    assert_eq!(std::fs::read(site.data("photo")).unwrap(), b"photo");
    let said = site.refused(
        &[
            "restore",
            "both",
            "--path",
            other.to_str().unwrap(),
            "-o",
            "x",
        ],
        3,
    );
    assert!(said.contains("holds no"), "{said}");
}

/// The databases lie among the files, as Rails has them: what a restore of one kept aside is not for the restore of the other to move or to back up.
#[test]
fn an_undo_of_all_finds_databases_beside_files() {
    let mut site = Site::quick();
    let database = site.data("app.sqlite3");
    self::database(&site, "app.sqlite3");
    site.top = format!("sqlite:\n  - path: {}\n", database.display());
    site.write("photo", b"photo");
    site.ok(&["snapshot", "--label", "v1", "--timeout", "10m"]);
    let sql = |text: &str| {
        let out = std::process::Command::new("sqlite3")
            .arg(&database)
            .arg(text)
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    sql("insert into t values(2)");
    site.write("photo", b"newer");
    site.ok(&["restore", "--all", "--label", "v1", "--in-place"]);
    assert_eq!(sql("select count(*) from t"), "1");
    assert_eq!(std::fs::read(site.data("photo")).unwrap(), b"photo");
    let kept = || {
        let names = std::fs::read_dir(site.path("data")).unwrap();
        let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut kept: Vec<_> = names.filter(|n| n.contains(".before-")).collect();
        kept.sort();
        kept
    };
    assert!(!kept().is_empty(), "it stays beside its database");
    let done = site.backup();
    assert_eq!(done["point"]["files"], 1, "{done}");
    // Neither does a restore of the files alone take it away.
    let before = kept();
    site.ok(&["restore", "uploads", "--in-place"]);
    site.ok(&["restore", "uploads", "--undo"]);
    assert_eq!(kept(), before);
    site.ok(&["restore", "app", "--undo"]);
    assert_eq!(sql("select count(*) from t"), "2");
}

#[test]
fn all_of_one_restore_is_undone_where_databases_lie_among_files() {
    let mut site = Site::quick();
    let database = site.data("app.sqlite3");
    self::database(&site, "app.sqlite3");
    site.top = format!("sqlite:\n  - path: {}\n", database.display());
    site.write("photo", b"photo");
    site.ok(&["snapshot", "--label", "v1", "--timeout", "10m"]);
    let size = || database.metadata().unwrap().len();
    let saved = size();
    let grown = std::process::Command::new("sqlite3")
        .arg(&database)
        .arg("insert into t values(hex(zeroblob(100000)))")
        .status()
        .unwrap();
    assert!(grown.success());
    let newer = size();
    assert!(newer > saved);
    site.write("photo", b"newer");
    site.ok(&["restore", "--all", "--label", "v1", "--in-place"]);
    assert_eq!(size(), saved);
    site.ok(&["restore", "--all", "--undo"]);
    assert_eq!(size(), newer);
    assert_eq!(std::fs::read(site.data("photo")).unwrap(), b"newer");
}
