//! A panic in the task of a target or of an uploader: red at once, and over when the work goes on.
#![allow(missing_docs)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::daemon::{Site, assert_same_pages, before_a_roll_up};
use lifeboat::config::{RetentionConfig, SqliteOptions};
use lifeboat::daemon::cuts::Cuts;
use lifeboat::daemon::state::StateDir;
use lifeboat::daemon::target::{Command, Past, Target};
use lifeboat::daemon::watchdog::Watchdog;
use lifeboat::observe::facts::{Board, State, StoreFacts, TargetBoard, TargetFacts};
use lifeboat::observe::health::{Verdict, verdict};
use lifeboat::store::testing::{Call, Fault, Faults, Faulty};
use lifeboat::store::{Store, StoreSpec};
use lifeboat::types::Millis;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{Id, JoinHandle};

/// The next look at the clock by this task panics.
static BREAKS: Mutex<Option<Id>> = Mutex::new(None);

const HOUR: Duration = Duration::from_secs(3600);

fn plain_now() -> Millis {
    Millis(jiff::Timestamp::now().as_millisecond())
}

fn now() -> Millis {
    let mine = tokio::task::try_id();
    let due = BREAKS.lock().unwrap().take_if(|id| Some(*id) == mine);
    assert!(due.is_none(), "a clock that breaks");
    plain_now()
}

struct Scene {
    site: Site,
    faults: Faults,
    facts: Arc<TargetBoard>,
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

impl Scene {
    async fn start(now: fn() -> Millis, snapshot_interval: Duration) -> Self {
        let site = Site::new();
        std::fs::create_dir(site.path("store")).unwrap();
        let spec = StoreSpec::from_text(&format!("{}/app", site.store)).unwrap();
        let mut faults = Faults::default();
        let store = Store::open(&spec).await.unwrap().map_object_store(|files| {
            let (client, steering) = Faulty::wrap(files);
            faults = steering;
            client
        });
        let facts = Board::default().add(TargetFacts {
            name: "app".into(),
            objective: Duration::from_secs(3600),
            stores: vec![StoreFacts {
                store: "the store".into(),
                ..StoreFacts::default()
            }],
            ..TargetFacts::default()
        });
        let state = StateDir::open(&site.path("state")).unwrap();
        let target = Target {
            name: "app".into(),
            path: site.db.clone(),
            options: SqliteOptions {
                stores: Vec::new(),
                sync_interval: Duration::from_millis(50),
                snapshot_interval,
                max_lag: None,
                retention: RetentionConfig::default(),
                ensure_wal: true,
                asserts: Vec::new(),
            },
            stores: vec![store],
            cuts: Arc::new(Cuts::open(state.path())),
            state,
            board: Arc::clone(&facts),
            instance: "web1".into(),
            watcher: None,
            min_free: lifeboat::config::MinFree::Bytes(0),
            store_check: Duration::from_secs(60),
            durable: vec![watch::Sender::new(None)],
            now,
            deferred: None,
            watchdog: Watchdog::start(),
            heavy: Arc::new(Semaphore::new(1)),
            past: Past::default(),
        };
        let (commands, received) = mpsc::channel(8);
        let task = tokio::spawn(target.run(received));
        let scene = Self {
            site,
            faults,
            facts,
            commands,
            task,
        };
        scene.until("safe", |v| v.safe).await;
        scene
    }

    fn verdict(&self) -> Verdict {
        verdict(&self.facts.facts(), None, plain_now())
    }

    async fn until(&self, what: &str, mut done: impl FnMut(&Verdict) -> bool) -> Verdict {
        let begun = Instant::now();
        loop {
            let verdict = self.verdict();
            if done(&verdict) {
                return verdict;
            }
            assert!(begun.elapsed().as_secs() < 60, "{what}: {verdict:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// It goes on by itself, and lost nothing.
    async fn goes_on(self) {
        self.site.write("insert into t(a) values('and after')");
        self.until("all of it durable", |v| {
            let f = self.facts.facts();
            v.safe
                && f.state == State::Steady
                && f.uncaptured_since.is_none()
                && v.lag_seconds == 0.0
                && f.captured == f.stores[0].durable
                && f.last_look.is_some_and(|at| plain_now().since(at) <= 1000)
        })
        .await;
        self.commands.send(Command::Stop).await.unwrap();
        self.task.await.unwrap();
        let now = self.site.copy_now("now.db");
        assert_same_pages(
            &now,
            &self.site.restore("restored.db", &[]),
            "after a panic",
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uploader_that_panics_is_red_at_once_and_begins_anew() {
    let scene = Scene::start(plain_now, HOUR).await;
    let errors = || scene.facts.facts().stores[0].errors;
    // One of the file, then one of the session after it.
    scene.faults.inject(Some(Call::Put), 0, 2, Fault::Panic);
    scene.site.write("insert into t(a) values('before')");
    let red = scene.until("red", |v| !v.safe).await;
    let said = format!("{:?} {:?}", red.reasons, red.hints);
    assert!(
        said.contains("panic") && said.contains("injected") && said.contains("report it"),
        "{said}"
    );
    assert_eq!(scene.facts.facts().state, State::Steady, "capture goes on");
    scene.until("the second one", |_| errors() >= 2).await;
    scene.until("green again", |v| v.safe).await;
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_panics_is_red_at_once_and_begins_anew() {
    let scene = Scene::start(now, HOUR).await;
    *BREAKS.lock().unwrap() = Some(scene.task.id());
    let red = scene.until("red", |v| !v.safe).await;
    let said = format!("{:?} {:?}", red.reasons, red.hints);
    assert!(
        said.contains("a clock that breaks") && said.contains("report it"),
        "{said}"
    );
    assert_eq!(scene.facts.facts().state, State::Failed);
    scene.until("green again", |v| v.safe).await;
    scene.goes_on().await;
}

/// It may panic again at its next try, and each sends the whole database.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_copy_that_panics_is_one_that_failed() {
    before_a_roll_up(15);
    let scene = Scene::start(plain_now, Duration::from_secs(1)).await;
    let write = |word: &str| {
        scene
            .site
            .write(&format!("insert into t(a) values('{word}')"))
    };
    let all_durable = |_: &Verdict| {
        let f = scene.facts.facts();
        f.uncaptured_since.is_none() && f.captured == f.stores[0].durable
    };
    let first = scene.facts.facts().stores[0].base;
    scene.faults.inject_at(Call::Put, "/ltx/9/", Fault::Panic);
    let captured = || scene.facts.facts().captured;
    for word in ["one", "two"] {
        let before = captured();
        write(word);
        scene
            .until(word, |v| captured() > before && all_durable(v))
            .await;
    }
    let renewal = || scene.facts.facts().stores[0].renewal.clone();
    scene.until("the panic", |_| renewal().is_some()).await;
    let (_, why) = renewal().unwrap();
    assert!(why.contains("injected"), "{why}");
    scene.until("green again", |v| v.safe).await;
    assert_eq!(scene.facts.facts().stores[0].base, first, "not at once");
    // A commit is what it needs, too.
    let next_try = |_: &Verdict| {
        write("more");
        renewal().is_none()
    };
    scene.until("the next try", next_try).await;
    assert!(scene.facts.facts().stores[0].base > first);
    scene.goes_on().await;
}
