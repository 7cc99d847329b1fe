//! Dumps of a real PostgreSQL server, and what becomes of them when something fails.

mod pg;

use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::Timestamp;
use lifeboat::postgres::{
    Clients, Connection, DumpOptions, Manifest, PostgresError, RestoreOptions, Source, dump,
    into_new, list, prepare, to_file,
};
use lifeboat::store::{Store, StoreSpec};
use pg::{DATABASE, Server, programs, wait_for};

struct Bench {
    server: Server,
    store: Store,
    folder: tempfile::TempDir,
    source: Connection,
}

impl Bench {
    async fn new() -> Self {
        let server = Server::start();
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().join("store").display());
        let store = Store::open(&StoreSpec::from_text(&url).unwrap())
            .await
            .unwrap();
        let source = server.populated();
        Self {
            server,
            store,
            folder,
            source,
        }
    }

    async fn dump(&self, options: &DumpOptions) -> Result<Manifest, PostgresError> {
        dump(
            std::slice::from_ref(&self.store),
            &self.source,
            &self.server.clients(),
            options,
            None,
            Timestamp::now(),
        )
        .await
        .map(|dumped| dumped.manifest)
    }

    fn source(&self, manifest: &Manifest) -> Source {
        Source {
            store: self.store.clone(),
            manifest: manifest.clone(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    fn restore(&self, manifest: &Manifest, name: &str) -> Result<(), PostgresError> {
        let (server, clients) = (self.server.connection(), self.server.clients());
        let (source, options) = (self.source(manifest), RestoreOptions::default());
        tokio::task::block_in_place(|| into_new(&source, &server, &clients, name, &options))?;
        Ok(())
    }

    fn object(&self, manifest: &Manifest) -> PathBuf {
        self.store.local_path(&manifest.dump_key()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_restores_into_a_new_database_and_a_file() {
    let bench = Bench::new().await;
    let options = DumpOptions {
        label: Some("v1".into()),
        ..DumpOptions::default()
    };
    let manifest = bench.dump(&options).await.unwrap();
    assert_eq!(
        list(&bench.store).await.unwrap(),
        std::slice::from_ref(&manifest)
    );
    assert_eq!(manifest.label.as_deref(), Some("v1"));
    assert_eq!(manifest.database, DATABASE);
    assert!(manifest.extensions.contains_key("pgcrypto"), "{manifest:?}");
    assert_eq!(manifest.rows["public.orders"], 2000);
    assert!(manifest.dump.size < manifest.dump.raw_size);

    bench.restore(&manifest, "back again").unwrap();
    let original = bench.server.fingerprint(DATABASE);
    assert!(original.lines().count() > 20, "{original}");
    assert_eq!(bench.server.fingerprint("back again"), original);
    let taken = bench.restore(&manifest, "back again").unwrap_err();
    assert!(taken.to_string().contains("already exists"), "{taken}");
    assert_eq!(bench.server.fingerprint("back again"), original);

    let file = bench.folder.path().join("out.pgc");
    let source = bench.source(&manifest);
    tokio::task::block_in_place(|| to_file(&source, &file)).unwrap();
    assert_eq!(
        std::fs::metadata(&file).unwrap().len(),
        manifest.dump.raw_size
    );
    let decoded = Command::new(programs().join("pg_restore"))
        .args(["-f", "/dev/null"])
        .arg(&file)
        .status();
    assert!(decoded.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_dump_leaves_no_database_and_no_file() {
    let bench = Bench::new().await;
    let manifest = bench.dump(&DumpOptions::default()).await.unwrap();
    let object = bench.object(&manifest);
    let good = std::fs::read(&object).unwrap();
    let before = (bench.server.databases(), bench.server.fingerprint(DATABASE));
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let mut last = good.clone();
    *last.last_mut().unwrap() ^= 1;
    for bad in [&flipped, &last, &good[..good.len() / 2].to_vec()] {
        std::fs::write(&object, bad).unwrap();
        let error = bench.restore(&manifest, "never").unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        let file = bench.folder.path().join("out.pgc");
        let source = bench.source(&manifest);
        let error = tokio::task::block_in_place(|| to_file(&source, &file)).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        assert!(!file.exists());
    }
    assert_eq!(
        (bench.server.databases(), bench.server.fingerprint(DATABASE)),
        before
    );
    std::fs::write(&object, &good).unwrap();
    bench.restore(&manifest, "now").unwrap();
}

/// Between the look and the lock somebody else restored, and the app writes already.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_filled_in_the_meantime_is_left_alone() {
    let bench = Bench::new().await;
    let manifest = bench.dump(&DumpOptions::default()).await.unwrap();
    let before = (bench.server.databases(), bench.server.fingerprint(DATABASE));
    let (source, clients) = (bench.source(&manifest), bench.server.clients());
    let ready = |replace| {
        let options = RestoreOptions {
            replace,
            ..RestoreOptions::default()
        };
        let (live, now) = (&bench.source, Timestamp::now());
        tokio::task::block_in_place(|| prepare(&source, live, &clients, &options, now))
    };
    let error = ready(false).map(drop).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(
        error.to_string().contains("filled in the meantime"),
        "{error}"
    );
    assert_eq!(
        (bench.server.databases(), bench.server.fingerprint(DATABASE)),
        before
    );
    // In place means to replace it. Nothing is left of one that is not used.
    tokio::task::block_in_place(|| drop(ready(true).unwrap()));
    assert_eq!(bench.server.databases(), before.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_fails_is_not_listed() {
    let bench = Bench::new().await;
    // An app that holds a table's lock, as a migration does.
    let holder = bench.source.clone();
    let clients = bench.server.clients();
    let thread = std::thread::spawn(move || {
        // Ended from outside below.
        clients.sql(
            &holder,
            "BEGIN; LOCK TABLE orders; SELECT pg_sleep(600);",
            &[],
        )
    });
    let held = "SELECT count(*) FROM pg_locks WHERE relation = 'orders'::regclass AND mode = 'AccessExclusiveLock' AND granted;";
    let waiting = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'orders'::regclass AND NOT granted;";
    wait_for(|| bench.server.sql(DATABASE, held).trim() == "1");

    let options = DumpOptions {
        lock_wait_ms: 200,
        ..DumpOptions::default()
    };
    let error = bench.dump(&options).await.unwrap_err();
    assert!(error.to_string().contains("statement timeout"), "{error}");

    let patient = DumpOptions {
        lock_wait_ms: 600_000,
        ..DumpOptions::default()
    };
    let (killed, ()) = tokio::join!(bench.dump(&patient), async {
        tokio::task::block_in_place(|| {
            wait_for(|| bench.server.sql(DATABASE, waiting).contains('t'))
        });
    });
    let error = killed.unwrap_err();
    assert!(error.to_string().contains("pg_dump failed"), "{error}");
    assert_eq!(list(&bench.store).await.unwrap(), []);

    bench.server.sql(
        DATABASE,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid();",
    );
    assert!(thread.join().unwrap().is_err());
    bench.dump(&options).await.unwrap();
    assert_eq!(list(&bench.store).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_before_a_dump() {
    let bench = Bench::new().await;
    let wrong = Connection::from_url(&bench.server.url("hidden")).unwrap();
    let error = Clients::for_server(&wrong, None).unwrap_err();
    assert!(
        error.to_string().contains("password authentication failed"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("password"));
    assert!(!format!("{error} {error:?} {wrong:?}").contains("hidden"));

    let none = Clients::for_server(&bench.server.connection(), Some(Path::new("/nonexistent")));
    assert_eq!(none.unwrap_err().exit_code(), 2);

    let gone = bench.server.connection().with_database("gone");
    let error = dump(
        std::slice::from_ref(&bench.store),
        &gone,
        &bench.server.clients(),
        &DumpOptions::default(),
        None,
        Timestamp::now(),
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
    assert_eq!(list(&bench.store).await.unwrap(), []);
    for url in [
        "mysql://a/b",
        "postgres://host",
        "postgres://host/%zz",
        "hidden",
    ] {
        let error = Connection::from_url(url).unwrap_err();
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
}
