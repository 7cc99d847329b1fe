//! A full copy that takes the place of an older one, over a link so slow that it does not come to its end: what is committed meanwhile is
//! durable all the same.
#![allow(missing_docs)]

mod common;

use std::path::PathBuf;

use common::daemon::{Daemon, Site, assert_same_pages, wait_for};
use common::link::Link;
use common::{python, s3};

struct Scene {
    site: Site,
    link: Link,
    _server: s3::Server,
}

/// Parts of a full copy, and its end.
const FULL_COPY: &[&str] = &["/0009/", "uploadId="];
/// A captured file.
const FILE: &[&str] = &["PUT ", "/0000/"];

impl Scene {
    /// A full copy of the database is sent in two parts. The next one is due a second after it.
    fn new() -> Self {
        let mut site = Site::new().with_http();
        let (link, server) = s3::behind_a_link(&mut site);
        site.extra = "    snapshot-interval: 1s\n    max-lag: 1s\n".into();
        site.write("create table big as with recursive n(i) as (select 1 union all select i+1 from n where i<10) select i, randomblob(1000000) as b from n");
        Self {
            site,
            link,
            _server: server,
        }
    }

    /// A daemon in the middle of its second full copy.
    fn in_the_middle(&self) -> Daemon {
        let daemon = self.site.start();
        self.site.sync();
        assert_eq!(self.full_copies().len(), 1);
        self.begins(&daemon);
        daemon
    }

    fn begins(&self, daemon: &Daemon) {
        self.link.hold(FULL_COPY);
        let mut n = 0;
        wait_for(daemon, "the next full copy", || {
            n += 1;
            self.write(&format!("before {n}"));
            self.link.held() > 0
        });
    }

    fn write(&self, word: &str) {
        self.site
            .write(&format!("insert into t(a) values('{word}')"));
    }

    fn full_copies(&self) -> Vec<PathBuf> {
        let folder = self.site.path("s3/bucket/backups/app/0009");
        let files = std::fs::read_dir(folder).into_iter().flatten();
        files
            .map(|f| f.unwrap().path())
            .filter(|f| f.extension().is_some_and(|e| e == "ltx"))
            .collect()
    }

    /// The full copy is still on its way.
    fn is_on_its_way(&self, copies: usize) {
        assert!(self.link.held() > 0, "the full copy has ended");
        assert_eq!(self.full_copies().len(), copies);
    }

    /// What a restore gives now is the database, page for page.
    fn restores(&self, what: &str) {
        let now = self.site.copy_now(&format!("{what}.now"));
        let restored = self
            .site
            .restore(&format!("{what}.restored"), &["--verify", "full"]);
        assert_same_pages(&now, &restored, what);
    }

    fn is_safe(&self) -> bool {
        self.site.get("/readyz").contains("\"status\":\"safe\"")
    }

    fn durable_soon(&self) {
        self.site.ok(&["sync", "--timeout", "20s"]);
    }
}

#[test]
fn commits_during_a_full_copy_are_durable_before_it_ends() {
    let scene = Scene::new();
    let (site, link) = (&scene.site, &scene.link);
    let daemon = scene.in_the_middle();
    for n in 0..3 {
        scene.write(&format!("meanwhile {n}"));
        scene.durable_soon();
    }
    scene.is_on_its_way(1);
    scene.restores("meanwhile");
    assert!(scene.is_safe(), "{}", site.get("/readyz"));
    assert_eq!(site.metric("lifeboat_lag_seconds", "app"), 0.0);

    // Pages that the copy has not read yet: deleted, moved, overwritten.
    site.write("update big set b=randomblob(1000000) where i % 2");
    site.write("delete from big where i = 4");
    site.write("vacuum");
    scene.durable_soon();
    scene.is_on_its_way(1);
    scene.restores("rewritten");

    // Killed there: the copy leaves nothing, and nothing waits for it.
    daemon.kill();
    assert_eq!(scene.full_copies().len(), 1);
    scene.restores("killed");
    let daemon = site.start();
    scene.write("after the kill");
    scene.durable_soon();
    scene.begins(&daemon);
    scene.write("beside the next");
    scene.durable_soon();
    scene.restores("again");

    // It comes to its end, and everything after it follows it.
    link.let_go();
    wait_for(&daemon, "the second full copy", || {
        scene.full_copies().len() > 1
    });
    scene.write("after the copy");
    scene.durable_soon();
    scene.restores("ended");
    // From the newest copy alone.
    let mut copies = scene.full_copies();
    copies.sort();
    copies.pop();
    assert_eq!(daemon.stop(), 0);
    for copy in copies {
        std::fs::remove_file(copy).unwrap();
    }
    scene.restores("newest");
}

#[test]
fn labels_during_a_full_copy_are_there_before_it_ends() {
    let scene = Scene::new();
    let site = &scene.site;
    let daemon = scene.in_the_middle();
    scene.write("labelled");
    let said = site.ok(&["snapshot", "--label", "mid", "--timeout", "20s"]);
    assert!(said.contains("label=mid"), "{said}");
    let labelled = site.copy_now("labelled.now");
    // One that Lifeboat sets by itself: before a change of the schema.
    site.write("create table more(a)");
    scene.write("later");
    scene.durable_soon();
    wait_for(&daemon, "the label of the schema", || {
        site.ok(&["list", "app"]).contains("label auto/schema")
    });
    scene.is_on_its_way(1);
    let restored = site.restore("labelled.db", &["--label", "mid"]);
    assert_same_pages(&labelled, &restored, "mid");
    // A stop waits for no full copy.
    let begun = std::time::Instant::now();
    scene.write("last");
    assert_eq!(daemon.stop(), 0, "{:?}", begun.elapsed());
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    scene.restores("stopped");
}

#[test]
fn an_upload_that_fails_beside_a_full_copy_is_told_at_once_and_mended() {
    let scene = Scene::new();
    let (site, link) = (&scene.site, &scene.link);
    let daemon = scene.in_the_middle();
    scene.durable_soon();
    let failed = || site.metric("lifeboat_upload_errors_total", "app");
    let before = failed();
    link.refuse(FILE);
    scene.write("refused");
    wait_for(&daemon, "the failure", || failed() > before);
    wait_for(&daemon, "the verdict", || {
        let verdict = site.get("/readyz");
        verdict.contains("unreachable since") && verdict.contains("are not durable")
    });
    assert!(site.metric("lifeboat_lag_seconds", "app") > 1.0);
    scene.is_on_its_way(1);
    // The copy did not end over it, and what failed goes up beside it.
    link.refuse_nothing();
    scene.durable_soon();
    wait_for(&daemon, "safe again", || scene.is_safe());
    scene.is_on_its_way(1);
    scene.restores("mended");

    // It still fails when the copy ends: that hides nothing.
    link.refuse(FILE);
    scene.write("refused again");
    wait_for(&daemon, "the verdict", || !scene.is_safe());
    link.let_go();
    wait_for(&daemon, "the end of the copy", || {
        scene.full_copies().len() > 1
    });
    let begun = std::time::Instant::now();
    while begun.elapsed().as_secs() < 3 {
        assert!(!scene.is_safe(), "{}", site.get("/readyz"));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    link.refuse_nothing();
    scene.durable_soon();
    wait_for(&daemon, "safe again", || scene.is_safe());
    scene.restores("ended");
}

/// Four full copies go at once; the databases whose turn has not come are kept all the same.
#[test]
fn a_full_copy_that_waits_for_its_turn_holds_up_nothing() {
    let mut scene = Scene::new();
    let mut all = vec![scene.site.db.clone()];
    python(
        &scene.site.db,
        "conn().execute('pragma wal_checkpoint(truncate)')",
    );
    for n in 1..6 {
        let path = scene.site.path(&format!("tenant{n}.sqlite3"));
        std::fs::copy(&scene.site.db, &path).unwrap();
        let more = format!("  - path: {}\n    snapshot-interval: 1s\n", path.display());
        scene.site.extra.push_str(&more);
        all.push(path);
    }
    let write = || {
        for db in &all {
            python(
                db,
                "c=conn(); c.execute(\"insert into t(a) values('x')\"); os._exit(0)",
            );
        }
    };
    let daemon = scene.site.start();
    scene.site.sync();
    scene.link.hold(FULL_COPY);
    wait_for(&daemon, "four full copies", || {
        write();
        scene.link.held() == 4
    });
    for _ in 0..3 {
        write();
        scene.durable_soon();
    }
    assert_eq!(scene.link.held(), 4);
}
