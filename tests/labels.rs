//! Labelled snapshots of a real app's databases, through the daemon and without one.
#![allow(missing_docs)]

mod common;

use std::path::PathBuf;

use common::daemon::{Site, assert_same_pages};
use common::{python, s3};
use serde_json::Value;

/// The four databases of a Rails app.
fn rails() -> (Site, Vec<(String, PathBuf)>) {
    let mut site = Site::new();
    let mut all = vec![("app".to_owned(), site.db.clone())];
    for name in ["production_cache", "production_queue", "production_cable"] {
        let path = site.path(&format!("{name}.sqlite3"));
        std::fs::copy(&site.db, &path).unwrap();
        python(&path, "conn().execute('pragma journal_mode=wal')");
        site.extra += &format!("  - path: {}\n", path.display());
        all.push((name.to_owned(), path));
    }
    (site, all)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.lines().next().unwrap()).unwrap()
}

fn objects(site: &Site, target: &str, folder: &str) -> Vec<String> {
    let dir = site.path(&format!("store/{target}/lifeboat/{folder}"));
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Everything a deploy does: label, change, label again, restore to each, with bad input on the way.
fn labels_restore_exactly(site: &Site, stop: impl FnOnce()) {
    site.write("update t set a='first' where id=1");
    let said = site.ok(&["snapshot", "--label", "before-v42"]);
    assert!(
        said.ends_with("lifeboat: ok snapshot label=before-v42 targets=1 durable\n"),
        "{said}"
    );
    let first = site.copy_now("first.db");
    site.write("update t set a='second' where id=2");
    let answer = json(&site.ok(&["snapshot", "app", "--label", "before-v42", "--json"]));
    assert_eq!(answer["label"], "before-v42#2", "{answer}");
    assert_eq!(answer["targets"][0]["pin"]["kind"], "sqlite", "{answer}");
    let second = site.copy_now("second.db");
    site.write("delete from t");
    let odd = "über/../v 1 #";
    let error = site.fails(2, &["snapshot", "--label", odd]);
    assert!(
        error.contains("holds #") && error.contains("hint:"),
        "{error}"
    );
    site.ok(&["snapshot", "--label", odd.trim_end_matches(" #")]);
    let empty = site.copy_now("empty.db");
    assert_eq!(
        objects(site, "app", "labels"),
        [
            "=C3=BCber=2F..=2Fv=201.json",
            "before-v42.json",
            "before-v42=232.json"
        ]
    );

    for (label, oracle) in [
        ("before-v42#1", &first),
        ("before-v42#2", &second),
        ("über/../v 1", &empty),
    ] {
        assert_same_pages(oracle, &site.restore("out.db", &["--label", label]), label);
    }
    let out = site.path("x.db");
    let restore = ["restore", "app", "-o", out.to_str().unwrap(), "--label"];
    let with = |label| [&restore[..], &[label]].concat();
    let error = site.fails(2, &with("v42"));
    assert!(
        error.contains("before-v42#1 (") && error.contains("before-v42#2 ("),
        "{error}"
    );
    let error = site.fails(3, &with("befroe-v42"));
    assert!(error.contains("did you mean --label before-v42"), "{error}");
    assert!(!out.exists());
    let list = site.ok(&["list", "app"]);
    assert!(
        list.contains("label before-v42#2") && list.contains("version v42"),
        "{list}"
    );
    stop();
}

#[test]
fn labels_through_the_daemon() {
    let site = Site::new();
    let daemon = site.start();
    labels_restore_exactly(&site, || assert_eq!(daemon.stop(), 0));
}

#[test]
fn labels_without_a_daemon() {
    labels_restore_exactly(&Site::new(), || {});
}

#[test]
fn a_set_is_one_and_queues_come_first() {
    let (site, all) = rails();
    let _daemon = site.start();
    let answer = json(&site.ok(&["snapshot", "--label", "night", "--json"]));
    let order: Vec<&str> = answer["targets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["target"].as_str().unwrap())
        .collect();
    assert_eq!(
        order,
        [
            "production_queue",
            "app",
            "production_cable",
            "production_cache"
        ]
    );
    let at = |i: usize| answer["targets"][i]["at"].as_str().unwrap().to_owned();
    assert!(at(0) <= at(1) && at(0) <= at(2), "{answer}");
    assert_eq!(objects(&site, "production_cache", "sets"), ["night.json"]);

    let oracles: Vec<_> = all
        .iter()
        .map(|(name, db)| {
            let copy = site.path(&format!("{name}.oracle"));
            python(
                db,
                &format!("b=sqlite3.connect({:?}); conn().backup(b); b.close(); conn().execute('delete from t')", copy.to_str().unwrap()),
            );
            copy
        })
        .collect();
    site.sync();
    let out = site.path("out");
    site.ok(&[
        "restore",
        "--all",
        "--label",
        "night",
        "-o",
        out.to_str().unwrap(),
    ]);
    for ((_, db), oracle) in all.iter().zip(&oracles) {
        let restored = out.join(db.file_name().unwrap());
        assert_same_pages(oracle, &restored, "of the set");
    }

    // The manifest of another snapshot of that name, of other targets.
    let manifest = site.path("store/production_cache/lifeboat/sets/night.json");
    let own = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, own.replace("\"app\"", "\"other\"")).unwrap();
    let again = site.path("again");
    let error = site.fails(
        3,
        &[
            "restore",
            "--all",
            "--label",
            "night",
            "-o",
            again.to_str().unwrap(),
        ],
    );
    assert!(
        error.contains("did not finish") && !again.exists(),
        "{error}"
    );
    // Without its manifest the snapshot did not finish.
    std::fs::remove_file(&manifest).unwrap();
    let error = site.fails(
        3,
        &[
            "restore",
            "--all",
            "--label",
            "night",
            "-o",
            again.to_str().unwrap(),
        ],
    );
    assert!(error.contains("did not finish"), "{error}");
}

#[test]
fn a_part_that_fails_is_named() {
    let mut site = Site::new();
    let broken = site.path("broken.sqlite3");
    std::fs::write(&broken, vec![7_u8; 8192]).unwrap();
    site.extra = format!("  - path: {}\n", broken.display());
    let _daemon = site.start();
    site.ok(&["sync", "app"]);
    let error = site.fails(1, &["snapshot", "--label", "v1", "--timeout", "5s"]);
    assert!(
        error.contains("not pinned: broken; durable and pinned as v1: app"),
        "{error}"
    );
    assert_eq!(objects(&site, "app", "sets"), [""; 0], "no set");
    let error = site.fails(1, &["snapshot", "nobody", "--label", "v1"]);
    assert!(error.contains("nothing is pinned: nobody"), "{error}");
    site.restore("out.db", &["--label", "v1"]);
}

/// A target that is named twice is one, also if the second name is its path, and whoever asks the daemon.
#[test]
fn a_target_that_is_named_twice_is_one() {
    use std::io::{BufRead, BufReader, Write};
    let site = Site::new();
    let path = site.db.to_str().unwrap().to_owned();
    let daemon = site.start();
    let answer = json(&site.ok(&["snapshot", "app", "app", &path, "--label", "zz", "--json"]));
    assert_eq!(
        (
            answer["label"].as_str(),
            answer["targets"].as_array().map(Vec::len)
        ),
        (Some("zz"), Some(1)),
        "{answer}"
    );
    let mut socket =
        std::os::unix::net::UnixStream::connect(site.path("state-web1/lifeboat.sock")).unwrap();
    for ask in [
        r#"{"command":"snapshot","targets":["app","app"],"label":"raw","timeout_ms":20000}"#,
        r#"{"command":"sync","targets":["app","app"],"timeout_ms":20000}"#,
    ] {
        writeln!(socket, "{ask}").unwrap();
        let mut line = String::new();
        BufReader::new(&socket).read_line(&mut line).unwrap();
        assert_eq!(
            json(&line)["targets"].as_array().unwrap().len(),
            1,
            "{line}"
        );
    }
    assert_eq!(objects(&site, "app", "labels"), ["raw.json", "zz.json"]);
    assert_eq!(daemon.stop(), 0);
    for command in ["sync", "verify", "drill", "prune"] {
        let said = site.ok(&[command, "app", &path, "app"]);
        assert!(said.contains(" targets=1"), "{said}");
    }
    for command in ["release", "claim"] {
        let said = site.ok(&[command, "app", &path]);
        assert!(
            said.ends_with(&format!("ok {command} target=app\n")),
            "{said}"
        );
    }
}

/// Why nothing became durable in time is what a person needs, not only that it did not.
#[test]
fn what_the_store_said_is_told_when_time_is_up() {
    let mut site = Site::new();
    let (link, _server) = s3::behind_a_link(&mut site);
    link.refuse(&["PUT ", "/0009/"]);
    let told = |site: &Site| {
        let out = site.run(&["snapshot", "--label", "v1", "--timeout", "5s", "--json"]);
        assert_eq!(out.status.code(), Some(1));
        let answer = json(&String::from_utf8_lossy(&out.stdout));
        let error = answer["targets"][0]["error"].as_str().unwrap().to_owned();
        assert!(
            error.starts_with("not durable within ") && error.contains("not now"),
            "{error}"
        );
    };
    told(&site);
    let _daemon = site.start();
    told(&site);
}

/// A daemon that stands still holds up a deploy for little longer than it was given.
#[test]
fn a_daemon_that_stands_still_is_given_up() {
    let site = Site::new();
    let daemon = site.start();
    let signal = |name: &str| {
        let kill = std::process::Command::new("kill")
            .args([name, &daemon.pid().to_string()])
            .status();
        assert!(kill.unwrap().success());
    };
    signal("-STOP");
    let begun = std::time::Instant::now();
    let error = site.fails(1, &["snapshot", "--label", "v1", "--timeout", "1s"]);
    let took = begun.elapsed().as_secs();
    signal("-CONT");
    assert!(error.contains("it is silent"), "{error}");
    assert!(took < 25, "{took} s");
}

/// A store that takes every file and then no label: the time that was given bounds that, too.
#[test]
fn labels_that_the_store_does_not_take_are_given_up_in_time() {
    let mut site = Site::new();
    let (link, _server) = s3::behind_a_link(&mut site);
    let other = site.path("other.sqlite3");
    std::fs::copy(&site.db, &other).unwrap();
    site.extra = format!("  - path: {}\n", other.display());
    let given_up = |site: &Site, words: &'static [&'static str], label: &str, said: &str| {
        link.hold(words);
        let begun = std::time::Instant::now();
        let out = site.run(&["snapshot", "--label", label, "--timeout", "5s"]);
        let took = begun.elapsed().as_secs();
        let text = [out.stdout, out.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(
            text.contains(said) && !text.contains("lifeboat: ok"),
            "{text}"
        );
        // With a daemon and without one, it is a step that can be taken.
        assert!(text.contains("hint: `lifeboat doctor`"), "{text}");
        // The requests themselves would go on for minutes.
        assert!(took < 30, "{took} s");
        link.let_go();
    };
    let label: &[&str] = &["PUT ", "/lifeboat/labels/"];
    let manifest: &[&str] = &["PUT ", "/lifeboat/sets/"];
    let no_label = "the label was not written: not durable within";
    let no_set = "the manifest of the set was not written: not durable within";
    given_up(&site, label, "alone", no_label);
    given_up(&site, manifest, "alone-set", no_set);
    let _daemon = site.start();
    given_up(&site, label, "by-daemon", no_label);
    given_up(&site, manifest, "by-daemon-set", no_set);
    site.ok(&["snapshot", "--label", "good"]);
    site.restore("out.db", &["--label", "good"]);
}

/// A label whose objects are gone is shown as such, by every command that sees it.
#[test]
fn a_lost_label_is_reported() {
    let site = Site::new();
    let daemon = site.start();
    site.write("update t set a='first' where id=1");
    let answer = json(&site.ok(&["snapshot", "--label", "gone", "--json"]));
    let txid = answer["targets"][0]["pin"]["txid"]
        .as_str()
        .unwrap()
        .to_owned();
    site.write("update t set a='second' where id=2");
    site.sync();
    assert_eq!(daemon.stop(), 0);
    site.forget_roll_ups();
    std::fs::remove_file(site.path(&format!("store/app/ltx/0/{txid}-{txid}.ltx"))).unwrap();
    let list = site.ok(&["list"]);
    assert!(list.contains("NOT RESTORABLE"), "{list}");
    let plan = site.ok(&["prune", "--dry-run"]);
    assert!(plan.contains("label gone is lost"), "{plan}");
    let out = site.path("x.db");
    site.fails(
        3,
        &[
            "restore",
            "app",
            "-o",
            out.to_str().unwrap(),
            "--label",
            "gone",
        ],
    );
}

/// A point under a label outlives roll-up: files end there.
#[test]
fn roll_up_is_cut_at_labels() {
    let mut site = Site::new();
    site.extra = "    retention: 1s\n".into();
    let daemon = site.start();
    site.write("update t set a='first' where id=1");
    site.ok(&["snapshot", "--label", "kept"]);
    let oracle = site.copy_now("oracle.db");
    let rolled_up = || {
        let level = site.path("store/app/ltx/1");
        std::fs::read_dir(level).map_or(0, Iterator::count)
    };
    let begun = std::time::Instant::now();
    let mut round = 0;
    while rolled_up() < 3 {
        round += 1;
        assert!(begun.elapsed().as_secs() < 150, "{}", daemon.log());
        site.write(&format!("update t set a='{round}' where id=2"));
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    site.sync();
    assert_eq!(daemon.stop(), 0);
    let said = site.ok(&["prune"]);
    assert!(!said.contains("deleted=0"), "{said}");
    assert_same_pages(
        &oracle,
        &site.restore("out.db", &["--label", "kept"]),
        "label",
    );
}

/// Labels of one target that Lifeboat set by itself, without their times.
fn auto_labels(site: &Site) -> Vec<(String, String)> {
    let list: Value = serde_json::from_str(&site.ok(&["list", "app", "--json"])).unwrap();
    let labels = list[0]["labels"].as_array().unwrap().iter();
    labels
        .map(|l| l["label"].as_str().unwrap().to_owned())
        .filter_map(|l| Some((l.strip_prefix("auto/")?.rsplit_once('-')?.0.to_owned(), l)))
        .collect()
}

fn auto_label(site: &Site, kind: &str) -> String {
    let begun = std::time::Instant::now();
    loop {
        let found = auto_labels(site);
        if let Some((_, label)) = found.iter().find(|(k, _)| k == kind) {
            return label.clone();
        }
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(30),
            "no label auto/{kind} in {found:?}"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn lifeboat_labels_what_a_person_would_want_back() {
    let site = Site::new();
    let daemon = site.start();
    site.write("update t set a='before the migration' where id=1");
    site.sync();
    let before = site.copy_now("before.db");
    for step in ["alter table t add column b", "create index i on t(b)"] {
        site.write(step);
        site.sync();
    }
    let label = auto_label(&site, "schema");
    assert_same_pages(
        &before,
        &site.restore("schema.db", &["--label", &label]),
        "auto/schema",
    );
    assert_eq!(auto_labels(&site).len(), 1, "one series, one label");

    // While the daemon is away: found by the comparison at the next start.
    site.write("update t set b='present'");
    site.sync();
    let present = site.copy_now("present.db");
    site.ok(&["restore", "app", "--in-place", "--label", &label]);
    let label = auto_label(&site, "before-restore");
    assert_same_pages(
        &present,
        &site.restore("r.db", &["--label", &label]),
        "auto/before-restore",
    );

    site.sync();
    let mine = site.copy_now("mine.db");
    assert_eq!(daemon.stop(), 0);
    // Another file under the same name.
    let other = site.path("other.db");
    python(
        &other,
        "c=conn(); c.execute('pragma journal_mode=wal'); c.execute('create table other(a)'); c.execute('insert into other values(1)')",
    );
    for companion in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(site.path(&format!("app.sqlite3{companion}")));
    }
    std::fs::rename(&other, &site.db).unwrap();
    let daemon = site.start();
    let label = auto_label(&site, "before-replace");
    assert_same_pages(
        &mine,
        &site.restore("r.db", &["--label", &label]),
        "auto/before-replace",
    );
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_claim_pins_the_history_that_it_ends() {
    let mut site = Site::new();
    site.sync();
    let old = site.copy_now("old.db");
    // Another host with a database of its own.
    site.instance = "web2".into();
    site.write("delete from t");
    site.fails(1, &["sync", "--timeout", "5s"]);
    let said = site.ok(&["claim", "app"]);
    let label = auto_label(&site, "before-claim");
    assert!(said.contains(&label), "{said}");
    site.sync();
    assert_same_pages(
        &old,
        &site.restore("r.db", &["--label", &label]),
        "auto/before-claim",
    );
    assert_same_pages(&site.copy_now("now.db"), &site.restore("r.db", &[]), "now");
}

/// A command that ends at once after the upload still writes the label of a change of the schema: local state may be gone at its next run.
#[test]
fn a_sync_without_a_daemon_leaves_no_label_behind() {
    for round in 0..5 {
        let site = Site::new();
        site.ok(&["sync"]);
        site.write("update t set a='before the migration' where id=1");
        site.ok(&["sync"]);
        site.write("alter table t add column b");
        let out = site.run(&["sync"]);
        let said = common::kamal::text(&out);
        assert!(
            out.status.success() && !said.contains("WARN"),
            "round {round}: {said}"
        );
        let found = auto_labels(&site);
        assert_eq!(found.len(), 1, "round {round}: {found:?}\n{said}");
        assert_eq!(found[0].0, "schema");
    }
}
