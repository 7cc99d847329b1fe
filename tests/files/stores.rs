//! Stores of other kinds, and several at once.

use serde_json::Value;

use crate::site::{Site, noise, picture};
use crate::support::{
    AZURITE_ACCOUNT, AZURITE_KEY, S3_ACCESS_KEY, S3_SECRET_KEY, Server, azurite, azurite_container,
    s3,
};

fn of_s3(server: &Server) -> String {
    format!(
        "{{ url: s3://bucket/backups, endpoint: \"http://{}\", region: us-east-1, access-key-id: {S3_ACCESS_KEY}, secret-access-key: {S3_SECRET_KEY} }}",
        server.address
    )
}

fn fill(site: &Site) {
    for n in 0..20 {
        site.write(&format!("d{n}/file"), &noise(n, 500_000));
    }
}

/// Everything that is done with a repository.
fn all_of_it(site: &Site) {
    let before = picture(&site.path("data"));
    site.ok(&["snapshot", "uploads", "--label", "v1"]);
    site.write("d0/file", b"changed");
    site.ok(&["snapshot", "uploads"]);
    site.ok(&["verify"]);
    site.ok(&["drill"]);
    site.ok(&["prune"]);
    site.ok(&["restore", "uploads", "--label", "v1", "-o", "v1"]);
    assert_eq!(picture(&site.path("v1")), before);
    site.ok(&["restore", "uploads", "-o", "newest"]);
    assert_eq!(picture(&site.path("newest")), picture(&site.path("data")));
}

#[test]
fn s3_with_restic_beside_it() {
    let (server, mut site) = (s3(), Site::new());
    site.stores = Some(format!("store: {}\n", of_s3(&server)));
    fill(&site);
    all_of_it(&site);
    let restic = |args: &[&str]| {
        let out = site
            .restic_command()
            .arg("-r")
            .arg(format!(
                "s3:http://{}/bucket/backups/uploads",
                server.address
            ))
            .args(args)
            .env("AWS_ACCESS_KEY_ID", S3_ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", S3_SECRET_KEY)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .output()
            .expect("restic is missing: apt-get install restic");
        assert!(
            out.status.success(),
            "{args:?}: {}",
            crate::site::words(&out)
        );
        crate::site::words(&out)
    };
    // Through the server restic lists no pack, not even of its own repositories; the folder behind it is the same repository.
    let out = site
        .restic_command()
        .arg("-r")
        .arg(server.directory.path().join("bucket/backups/uploads"))
        .args(["check", "--read-data"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", crate::site::words(&out));
    assert!(restic(&["snapshots"]).contains("label=v1"));
    let theirs = site.path("theirs");
    restic(&["restore", "latest", "--target", theirs.to_str().unwrap()]);
    let theirs = theirs.join(site.path("data").strip_prefix("/").unwrap());
    assert_eq!(picture(&theirs), picture(&site.path("data")));
    restic(&["backup", site.path("data").to_str().unwrap()]);
    site.ok(&["restore", "uploads", "-o", "from-restic"]);
    assert_eq!(
        picture(&site.path("from-restic")),
        picture(&site.path("data"))
    );
}

#[test]
fn azure() {
    let (server, mut site) = (azurite(), Site::new());
    azurite_container(&server, "box");
    site.stores = Some(format!(
        "store: {{ url: \"abs://box/backups\", endpoint: \"http://{}/{AZURITE_ACCOUNT}\", account-name: {AZURITE_ACCOUNT}, account-key: \"{AZURITE_KEY}\" }}\n",
        server.address
    ));
    fill(&site);
    all_of_it(&site);
}

fn two(site: &mut Site) {
    let at = |name: &str| site.path(name).display().to_string();
    let text = format!(
        "stores: [\"file://{}\", \"file://{}\"]\n",
        at("one"),
        at("two")
    );
    site.stores = Some(text);
}

/// Points of each store that answers.
fn points(text: &str) -> Vec<usize> {
    let values = text
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok());
    values
        .filter_map(|v| Some(v["points"].as_array()?.len()))
        .collect()
}

#[test]
fn each_store_has_it_and_one_is_enough() {
    let mut site = Site::new();
    two(&mut site);
    fill(&site);
    site.ok(&["snapshot", "uploads"]);
    let before = picture(&site.path("data"));
    assert_eq!(points(&site.ok(&["list", "uploads", "--json"])), [1, 1]);
    // The first one is down.
    let (config, away) = (site.path("one/uploads/config"), site.path("away"));
    std::fs::rename(&config, &away).unwrap();
    std::fs::write(&config, b"junk").unwrap();
    let out = site.run(&["list", "uploads", "--json"]);
    assert!(!out.status.success());
    assert_eq!(points(&String::from_utf8_lossy(&out.stdout)), [1]);
    let out = site.run(&["restore", "uploads", "-o", "back"]);
    let text = crate::site::words(&out);
    assert!(out.status.success(), "{text}");
    assert!(text.contains(site.path("one").to_str().unwrap()), "{text}");
    assert_eq!(picture(&site.path("back")), before);
    // It keeps nobody from the second.
    site.write("more", b"more");
    let out = site.run(&["snapshot", "uploads"]);
    assert_eq!(
        out.status.code(),
        Some(5),
        "what is in the first one is damage"
    );
    std::fs::rename(&away, &config).unwrap();
    assert_eq!(points(&site.ok(&["list", "uploads", "--json"])), [1, 2]);
    // The newest point is in the second alone.
    site.ok(&["restore", "uploads", "-o", "newest"]);
    assert_eq!(std::fs::read(site.path("newest/more")).unwrap(), b"more");
    for command in ["snapshot", "verify", "drill", "prune"] {
        site.ok(&[command]);
    }
    assert_eq!(points(&site.ok(&["list", "uploads", "--json"])), [2, 3]);
}

/// Damage that shows in the middle of a restore: the rest comes from the other store, and nothing of the first remains.
#[test]
fn a_restore_that_fails_in_the_middle_goes_on_with_the_next_store() {
    let mut site = Site::new();
    two(&mut site);
    fill(&site);
    site.ok(&["snapshot", "uploads"]);
    let before = picture(&site.path("data"));
    // The second one has it a moment later, so it is asked first.
    let data = site.path("two/uploads/data");
    let mut hit = 0;
    for folder in std::fs::read_dir(data).unwrap() {
        for pack in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let pack = pack.unwrap().path();
            if pack.metadata().unwrap().len() > 1_000_000 {
                std::fs::write(&pack, b"cut").unwrap();
                hit += 1;
            }
        }
    }
    assert!(hit > 0);
    for (to, args) in [("back", vec!["-o", "back"]), ("data", vec!["--in-place"])] {
        let mut words = vec!["restore", "uploads"];
        words.extend(args);
        let out = site.run(&words);
        let text = crate::site::words(&out);
        assert!(out.status.success(), "{text}");
        assert!(text.contains("is damaged"), "{text}");
        let mut now = picture(&site.path(to));
        now.retain(|line| !line.contains(".lifeboat-"));
        assert_eq!(now, before);
    }
    // Where no store has all of it, that is said.
    std::fs::remove_dir_all(site.path("one/uploads/data")).unwrap();
    let text = site.refused(&["restore", "uploads", "-o", "none"], 5);
    assert!(text.contains("is damaged"), "{text}");
}
