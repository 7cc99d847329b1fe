//! A randomised model: random steps of app, sidecar and store, after which every recorded moment restores page for page.
//!
//! Seeded and replayable: `MODEL_SEED=7 MODEL_STEPS=400 cargo nextest run --test model`.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::daemon::{Daemon, Site, assert_same_pages, bring_back, take_away};
use common::python;

/// SplitMix64: enough randomness for choosing steps, and the same on every machine.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |v| v.parse().unwrap())
}

struct World {
    site: Site,
    rng: Rng,
    daemon: Option<Daemon>,
    store_away: bool,
    oracles: BTreeMap<u64, PathBuf>,
    /// What the rows were after each step of the app, in order.
    states: Vec<String>,
    log: Vec<String>,
}

/// Prints what the rows are.
const PRINT: &str = "import hashlib; print(hashlib.sha256(repr(c.execute('select id,a from t order by id').fetchall()).encode()).hexdigest(), flush=True)";

/// What the rows are. Leaves without closing: that would checkpoint, and the WAL that an app left behind would be gone.
fn rows(db: &Path) -> String {
    python(db, &format!("c=conn(20); {PRINT}; os._exit(0)"))
}

impl World {
    /// One step of the app. What it prints before a commit that is not its last is what the rows are from then on.
    fn app(&mut self, code: &str) {
        let between = python(&self.site.db, code);
        let after = rows(&self.site.db);
        for state in between.lines().chain([after.as_str()]) {
            if self.states.last().is_none_or(|last| last != state) {
                self.states.push(state.to_owned());
            }
        }
    }

    /// What an app chose when it made its database, and how often there is a base.
    fn choose_database(&mut self) {
        let (page, vacuum) = (512 << self.rng.below(8), self.rng.below(3));
        self.app(&format!(
            "c=conn(); c.execute('pragma journal_mode=delete'); c.execute('pragma page_size={page}'); c.execute('pragma auto_vacuum={vacuum}')
c.execute('vacuum'); c.execute('pragma journal_mode=wal'); c.close()"
        ));
        let bases = ["1s", "7d"][self.rng.below(2) as usize];
        self.site.extra = format!("    snapshot-interval: {bases}\n");
        self.log.push(format!(
            "page_size={page} auto_vacuum={vacuum} snapshot-interval={bases}"
        ));
    }

    fn transaction(&mut self) {
        let (n, id, size) = (
            1 + self.rng.below(30),
            1 + self.rng.below(3000),
            10 + self.rng.below(900),
        );
        let end = if self.rng.below(5) == 0 {
            "rollback"
        } else {
            "commit"
        };
        let cache = if self.rng.below(3) == 0 { 5 } else { 2000 };
        let auto = [0, 20, 1000][self.rng.below(3) as usize];
        let close = if self.rng.below(2) == 0 {
            "c.close()"
        } else {
            "os._exit(0)"
        };
        self.app(&format!(
            "c=conn(20); c.execute('pragma cache_size={cache}'); c.execute('pragma wal_autocheckpoint={auto}'); c.execute('begin immediate')
for i in range({n}): c.execute('insert or replace into t(id,a) values(?,?)',({id}+i,os.urandom({size})))
c.execute('{end}'); {close}"
        ));
    }

    fn step(&mut self) {
        let kind = self.rng.below(100);
        let name = match kind {
            0..45 => {
                self.transaction();
                "transaction"
            }
            45..50 => {
                // Two commits, and a capture may fall between them.
                self.app(&format!(
                    "c=conn(20); c.execute('begin immediate'); c.execute('delete from t where id % 7 = 0 and id > 1000')
{PRINT}
c.execute('commit'); c.execute('insert into t(a) values(zeroblob(200000))'); os._exit(0)"
                ));
                "bulk"
            }
            50..53 => {
                self.app("c=conn(20)\ntry: c.execute('vacuum')\nexcept sqlite3.OperationalError: pass\nos._exit(0)");
                "vacuum"
            }
            53..60 => {
                let mode = ["passive", "full", "restart", "truncate"][self.rng.below(4) as usize];
                self.app(&format!("c=conn(0.05); c.execute('pragma wal_checkpoint({mode})').fetchall(); os._exit(0)"));
                "app checkpoint"
            }
            60..68 => {
                match self.daemon.take() {
                    Some(daemon) => daemon.kill(),
                    None => self.daemon = Some(self.site.start()),
                }
                "kill or start"
            }
            68..71 => {
                if let Some(daemon) = self.daemon.take()
                    && !self.store_away
                {
                    assert_eq!(daemon.stop(), 0, "{}", self.history());
                }
                "clean stop"
            }
            71..75 => {
                self.toggle_store();
                "store away or back"
            }
            75..77 => {
                if self.daemon.is_none() && !self.store_away {
                    // Gone already is fine.
                    let _ = std::fs::remove_dir_all(self.site.path("state-web1"));
                }
                "state lost"
            }
            77..79 => {
                if self.daemon.is_none() {
                    self.app("c=conn(20); c.execute('pragma wal_checkpoint(truncate)').fetchall(); c.close()
for s in ('-wal','-shm'):
    if os.path.exists(p+s): os.remove(p+s)");
                }
                "WAL deleted"
            }
            79..81 => {
                // Only moves anything with auto_vacuum=incremental.
                self.app("c=conn(20); c.execute('delete from t where id % 5 = 0 and id > 2000'); c.execute('pragma incremental_vacuum(50)').fetchall(); os._exit(0)");
                "incremental vacuum"
            }
            81..84 => {
                std::thread::sleep(Duration::from_millis(self.rng.below(120)));
                "pause"
            }
            _ => {
                self.record();
                "record"
            }
        };
        self.log.push(name.to_owned());
    }

    fn toggle_store(&mut self) {
        let store = self.site.path("store");
        if self.store_away {
            bring_back(&store);
        } else if store.exists() {
            take_away(&store);
        } else {
            return;
        }
        self.store_away = !self.store_away;
    }

    /// Reported durable: from now on this moment must restore for ever.
    fn record(&mut self) {
        if self.store_away {
            return;
        }
        self.claim_if_refused();
        let txid = self.site.sync();
        let copy = self.site.copy_now(&format!("oracle-{txid}.db"));
        self.oracles.insert(txid, copy);
    }

    /// With its state lost and its pages moved by VACUUM a database has no proof left: a person must say so.
    fn claim_if_refused(&mut self) {
        let out = self.site.run(&["sync", "--json", "--timeout", "20s"]);
        if String::from_utf8_lossy(&out.stdout).contains("pages match") {
            self.site.ok(&["claim", "app"]);
            self.log.push("claim".into());
        }
    }

    fn check(&self) {
        for (txid, oracle) in &self.oracles {
            let restored = self.site.restore(
                "restored.db",
                &["--txid", &format!("{txid:x}"), "--verify", "none"],
            );
            assert_same_pages(
                oracle,
                &restored,
                &format!("TXID {txid}; {}", self.history()),
            );
        }
        // Every other point restores to a sound database too, with the rows of one moment, and no later point to those of an earlier one.
        let mut from = 0;
        for txid in self.site.points() {
            let restored = self.site.restore(
                "restored.db",
                &["--txid", &format!("{txid:x}"), "--verify", "quick"],
            );
            let rows = rows(&restored);
            let moment = self.states[from..].iter().position(|s| *s == rows);
            from += moment.unwrap_or_else(|| {
                panic!("TXID {txid:x} is no moment of the app; {}", self.history())
            });
        }
    }

    fn history(&self) -> String {
        let log = std::fs::read_to_string(self.site.path("run-web1.log")).unwrap_or_default();
        format!("steps: {:?}\n{log}", self.log)
    }
}

#[test]
fn heavy_every_recorded_moment_restores() {
    let (seed, steps) = (env("MODEL_SEED", 1), env("MODEL_STEPS", 250));
    for seed in seed..seed + env("MODEL_RUNS", 2) {
        println!("MODEL_SEED={seed} MODEL_STEPS={steps}");
        let mut world = World {
            site: Site::new(),
            rng: Rng(seed),
            daemon: None,
            store_away: false,
            oracles: BTreeMap::new(),
            states: Vec::new(),
            log: Vec::new(),
        };
        world.choose_database();
        for _ in 0..steps {
            world.step();
        }
        if world.store_away {
            world.toggle_store();
        }
        world.record();
        assert!(world.oracles.len() > 5, "the run recorded nothing");
        println!(
            "{} recorded moments, {} points",
            world.oracles.len(),
            world.site.points().len()
        );
        world.check();
        let schema = python(
            &world.site.db,
            "print(conn().execute('select group_concat(name) from sqlite_schema').fetchone()[0])",
        );
        assert_eq!(schema, "t", "zero footprint");
    }
}
