//! One suite over every kind of store: memory, file, a client with faults, and servers.

#[allow(dead_code)] // of its servers, some are for other tests
mod support;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use lifeboat::store::testing::{Call, Fault, Faults, Faulty};
use lifeboat::store::{Class, Kind, Op, Piece, PutMode, Store, StoreError, StoreSpec};
use lifeboat::types::Millis;
use tokio::sync::mpsc;
use url::Url;

const MIB: usize = 1024 * 1024;

/// An outage must be reported within this.
const REPORT_LIMIT: Duration = Duration::from_secs(15);

/// 2026-11-20T21:28:34.030Z, the time in Litestream's documentation of the format.
const CREATED: Millis = Millis(1_795_210_114_030);

fn spec(url: &str) -> StoreSpec {
    StoreSpec::new(Url::parse(url).unwrap())
}

fn s3_spec(address: impl std::fmt::Display) -> StoreSpec {
    let mut spec = spec("s3://bucket/apps/one");
    spec.endpoint = Some(format!("http://{address}"));
    spec.access_key_id = Some(support::S3_ACCESS_KEY.into());
    spec.secret_access_key = Some(support::S3_SECRET_KEY.into());
    spec
}

fn azure_spec(address: impl std::fmt::Display, url: &str) -> StoreSpec {
    let mut spec = spec(url);
    spec.endpoint = Some(format!("http://{address}/{}", support::AZURITE_ACCOUNT));
    spec.account_name = Some(support::AZURITE_ACCOUNT.into());
    spec.account_key = Some(support::AZURITE_KEY.into());
    spec
}

/// Content in which every part differs from every other.
fn noise(bytes: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out.into()
}

fn put_new(store: &Store, key: &str, body: &str) -> impl Future<Output = Result<(), StoreError>> {
    let (store, key, body) = (store.clone(), key.to_owned(), Bytes::from(body.to_owned()));
    async move { store.put(&key, body, PutMode::Create, None).await }
}

/// What every store must do. `conditional`: whether it honours a conditional create.
async fn conforms(store: &Store, conditional: bool) {
    small_objects(store, conditional).await;
    times(store).await;
    listings(store).await;
    large_objects(store, conditional).await;
    store.check().await.unwrap();
    assert!(store.stats().requests(Op::Put) > 0 && store.stats().bytes_out() > 0);
}

async fn small_objects(store: &Store, conditional: bool) {
    assert_eq!(
        store.probe_conditional_create("probe").await.unwrap(),
        conditional
    );
    let gone = store.get("probe").await.unwrap_err();
    assert!(gone.is_not_found(), "{gone:?}");
    put_new(store, "a/k", "first").await.unwrap();
    assert_eq!(store.get("a/k").await.unwrap(), "first");
    if conditional {
        let taken = put_new(store, "a/k", "second").await.unwrap_err();
        assert_eq!(taken.class(), Class::Exists, "{taken}");
        assert_eq!(store.get("a/k").await.unwrap(), "first");
    }
    let body = Bytes::from_static(b"0123456789");
    store
        .put("a/k", body, PutMode::Overwrite, None)
        .await
        .unwrap();
    assert_eq!(store.get_range("a/k", 2..5).await.unwrap(), "234");
    assert_eq!(store.get_range("a/k", 9..10).await.unwrap(), "9");
    assert!(store.get_range("a/k", 8..12).await.is_err());
    assert_eq!(store.head("a/k").await.unwrap().size, 10);
    let (info, _) = store.get_stream("a/k").await.unwrap();
    assert_eq!((info.key.as_str(), info.size), ("a/k", 10));
    store
        .put("empty", Bytes::new(), PutMode::Overwrite, None)
        .await
        .unwrap();
    assert_eq!(store.get("empty").await.unwrap(), "");
    for missing in [
        store.head("none").await.err(),
        store.get_range("none", 0..1).await.err(),
    ] {
        assert_eq!(missing.unwrap().class(), Class::NotFound);
    }
    store.delete("a/k").await.unwrap();
    store.delete("a/k").await.unwrap();
    assert!(store.head("a/k").await.unwrap_err().is_not_found());
    store.delete("empty").await.unwrap();
}

async fn times(store: &Store) {
    for (created, mode) in [
        (CREATED, PutMode::Create),
        (Millis(CREATED.0 - 999), PutMode::Overwrite),
    ] {
        store
            .put("t", "x".into(), mode, Some(created))
            .await
            .unwrap();
        assert_eq!(store.head("t").await.unwrap().created, Some(created));
        assert_eq!(
            store.get_stream("t").await.unwrap().0.created,
            Some(created)
        );
    }
    store.delete("t").await.unwrap();
}

async fn listings(store: &Store) {
    assert_eq!(store.list("").await.unwrap(), []);
    assert_eq!(store.list("nothing/here").await.unwrap(), []);
    // Names that differ only after the prefix's end, and characters that labels and targets bring.
    let keys = [
        "0000/a.ltx",
        "0000/b.ltx",
        "00001/c",
        "app=2Fx y/ä+1",
        "lifeboat/labels/v=231.json",
    ];
    for key in keys {
        put_new(store, key, key).await.unwrap();
    }
    let listed = store.list("").await.unwrap();
    assert_eq!(
        listed.iter().map(|o| o.key.as_str()).collect::<Vec<_>>(),
        keys
    );
    for object in &listed {
        assert_eq!(object.size, object.key.len() as u64);
        assert_eq!(store.get(&object.key).await.unwrap(), object.key);
    }
    let level = store.list("0000").await.unwrap();
    assert_eq!(
        level.iter().map(|o| o.key.as_str()).collect::<Vec<_>>(),
        ["0000/a.ltx", "0000/b.ltx"]
    );
    let child = store.child("app=2Fx y");
    assert_eq!(child.list("").await.unwrap()[0].key, "ä+1");
    assert_eq!(child.get("ä+1").await.unwrap(), "app=2Fx y/ä+1");
    for key in keys {
        store.delete(key).await.unwrap();
    }
    assert_eq!(store.list("").await.unwrap(), []);
}

async fn large_objects(store: &Store, conditional: bool) {
    let content = noise(20 * MIB + 7);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &content).unwrap();
    let put = || store.put_file("big", file.path(), PutMode::Create, Some(CREATED));
    assert_eq!(put().await.unwrap(), content.len() as u64);
    let (info, chunks) = store.get_stream("big").await.unwrap();
    assert_eq!(
        (info.size, info.created),
        (content.len() as u64, Some(CREATED))
    );
    let chunks: Vec<Bytes> = chunks.try_collect().await.unwrap();
    assert!(chunks.concat() == content, "content differs");
    assert_eq!(
        store.get_range("big", 8_388_600..8_388_620).await.unwrap(),
        content[8_388_600..8_388_620]
    );
    if conditional {
        assert_eq!(put().await.unwrap_err().class(), Class::Exists);
    }
    let small = &content[..1000];
    std::fs::write(file.path(), small).unwrap();
    store
        .put_file("big", file.path(), PutMode::Overwrite, None)
        .await
        .unwrap();
    assert_eq!(store.get("big").await.unwrap(), small);
    store.delete("big").await.unwrap();

    assert_eq!(
        stream(store, "s", &content, vec![Piece::End])
            .await
            .unwrap(),
        content.len() as u64
    );
    assert!(store.get("s").await.unwrap() == content, "content differs");
    assert_eq!(store.head("s").await.unwrap().created, Some(CREATED));
    store.delete("s").await.unwrap();
    assert_eq!(
        stream(store, "s", small, vec![Piece::End]).await.unwrap(),
        1000
    );
    assert_eq!(
        stream(store, "none", &[], vec![Piece::End]).await.unwrap(),
        0
    );
    store.delete("s").await.unwrap();
    store.delete("none").await.unwrap();
    for end in [
        vec![],
        vec![Piece::Failed(io::Error::other("disk on fire"))],
    ] {
        for content in [&content[..], small] {
            let told = !end.is_empty();
            let end = if told {
                vec![Piece::Failed(io::Error::other("disk on fire"))]
            } else {
                vec![]
            };
            let error = stream(store, "s", content, end).await.unwrap_err();
            assert_eq!(error.to_string().contains("disk on fire"), told, "{error}");
            assert_eq!(store.list("").await.unwrap(), [], "nothing visible");
        }
    }
}

/// Sends content in odd pieces, then `end`, then goes away.
async fn stream(
    store: &Store,
    key: &str,
    content: &[u8],
    end: Vec<Piece>,
) -> Result<u64, StoreError> {
    let (tx, rx) = mpsc::channel(2);
    let content = Bytes::copy_from_slice(content);
    let sender = tokio::spawn(async move {
        let pieces = content
            .chunks(777_777)
            .map(|chunk| Piece::Data(content.slice_ref(chunk)));
        for piece in pieces.chain(end) {
            if tx.send(piece).await.is_err() {
                return;
            }
        }
    });
    let result = store.put_stream(key, rx, Some(CREATED)).await;
    sender.await.unwrap();
    result
}

/// Fails within the limit with the right class, a hint, and no secret.
async fn fails(spec: &StoreSpec, class: Class) {
    fails_at(spec, class, &["check", "put", "list"]).await;
}

async fn fails_at(spec: &StoreSpec, class: Class, ops: &[&str]) {
    let store = &Store::open(spec).await.unwrap();
    let start = Instant::now();
    let each = ops.iter().map(|&op| async move {
        let error = match op {
            "check" => store.check().await.unwrap_err(),
            "put" => put_new(store, "k", "x").await.unwrap_err(),
            _ => store.list("").await.unwrap_err(),
        };
        assert_eq!(error.class(), class, "{op}: {error}");
        assert!(error.hint().is_some(), "{op}: {error}");
        let text = error.to_string();
        assert!(!text.contains("secret-key"), "{text}");
        assert!(text.len() < 450 && !text.contains('\n'), "{text}");
    });
    futures::future::join_all(each).await;
    assert!(start.elapsed() < REPORT_LIMIT, "took {:?}", start.elapsed());
    assert_eq!(store.stats().errors(class), ops.len() as u64);
}

fn faulty(url: &str) -> impl Future<Output = (Store, Faults)> {
    let spec = spec(url);
    async move {
        let mut faults = None;
        let store = Store::open(&spec).await.unwrap().map_object_store(|inner| {
            let (client, steering) = Faulty::wrap(inner);
            faults = Some(steering);
            client
        });
        (store, faults.unwrap())
    }
}

fn file_url(path: &std::path::Path) -> String {
    Url::from_directory_path(path).unwrap().to_string()
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&Store::open(&spec("memory://")).await.unwrap(), true).await;
    conforms(
        &Store::open(&spec("memory:///apps/one"))
            .await
            .unwrap()
            .child("two"),
        true,
    )
    .await;
}

#[tokio::test]
async fn file_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&spec(&file_url(&dir.path().join("50% #1 [*]"))))
        .await
        .unwrap();
    conforms(&store, true).await;
    conforms(&store.child("apps/one"), true).await;
    // Another program's file in the same tree.
    std::fs::create_dir_all(dir.path().join("50% #1 [*]/db/ltx/0")).unwrap();
    std::fs::write(dir.path().join("50% #1 [*]/db/ltx/0/theirs.ltx"), "x").unwrap();
    assert_eq!(
        store.child("db").list("ltx/0").await.unwrap()[0].key,
        "ltx/0/theirs.ltx"
    );
    let path = store.local_path("db/ltx/0/theirs.ltx").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"x");
}

#[tokio::test]
async fn file_failures_have_their_class() {
    let dir = tempfile::tempdir().unwrap();
    let gone = Store::open(&spec(&file_url(&dir.path().join("gone/store"))))
        .await
        .unwrap();
    let listed = gone.list("").await.map(|_| ());
    for error in [gone.check().await, put_new(&gone, "k", "x").await, listed] {
        let error = error.unwrap_err();
        assert_eq!(error.class(), Class::NoBucket, "{error}");
        assert!(error.hint().unwrap().contains("mount"), "{error}");
    }
    assert!(gone.local_path("k").is_some());
    std::fs::write(dir.path().join("plain"), "").unwrap();
    let blocked = Store::open(&spec(&file_url(&dir.path().join("plain/store"))))
        .await
        .unwrap();
    assert!(put_new(&blocked, "k", "x").await.is_err());
}

#[tokio::test]
async fn a_client_without_faults_conforms() {
    let (store, faults) = faulty("memory://").await;
    conforms(&store, true).await;
    assert!(faults.calls().len() > 20);
}

#[tokio::test]
async fn an_ignored_condition_is_found_out() {
    let (store, faults) = faulty("memory://").await;
    faults.inject(Some(Call::Put), 0, u64::MAX, Fault::IgnoreCondition);
    conforms(&store, false).await;
}

#[tokio::test]
async fn refusals_have_their_class_and_count() {
    let (store, faults) = faulty("memory://").await;
    for (fault, class) in [
        (Fault::Denied, Class::Denied),
        (Fault::NoSpace, Class::NoSpace),
        (Fault::Throttled, Class::Throttled),
        (Fault::Unreachable, Class::Unreachable),
    ] {
        faults.inject(None, 1, 1, fault);
        put_new(&store, "k", "x").await.unwrap();
        assert_eq!(store.get("k").await.unwrap_err().class(), class);
        assert_eq!(store.get("k").await.unwrap(), "x");
        store.delete("k").await.unwrap();
        assert_eq!(store.stats().errors(class), 1);
    }
}

#[tokio::test]
async fn a_lost_answer_leaves_the_object() {
    let (store, faults) = faulty("memory://").await;
    faults.inject(Some(Call::Put), 0, 1, Fault::LostAnswer);
    assert!(put_new(&store, "k", "x").await.unwrap_err().is_retryable());
    assert!(put_new(&store, "k", "x").await.unwrap_err().is_exists());
}

#[tokio::test]
async fn a_truncated_download_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for url in ["memory://".to_owned(), file_url(dir.path())] {
        let (store, faults) = faulty(&url).await;
        store
            .put("k", noise(3 * MIB), PutMode::Create, None)
            .await
            .unwrap();
        for bytes in [0, 1, 2 * MIB as u64] {
            faults.inject(Some(Call::Get), 0, 1, Fault::Truncate(bytes));
            let error = store.get("k").await.unwrap_err();
            assert_eq!(error.class(), Class::Unreachable, "{error}");
            assert!(
                error.is_retryable() && error.reason().contains("3145728"),
                "{error}"
            );
        }
        assert_eq!(store.get("k").await.unwrap().len(), 3 * MIB);
    }
}

#[tokio::test]
async fn a_silent_server_is_a_timeout() {
    let (store, faults) = faulty("memory://").await;
    faults.inject(None, 0, u64::MAX, Fault::Delay(Duration::from_secs(3600)));
    let start = Instant::now();
    let (put, get, list, delete, check) = tokio::join!(
        put_new(&store, "k", "x"),
        store.get("k"),
        store.list(""),
        store.delete("k"),
        store.check(),
    );
    for error in [put.err(), get.err(), list.err(), delete.err(), check.err()] {
        let error = error.unwrap();
        assert_eq!(error.class(), Class::Timeout, "{error}");
        assert!(error.hint().is_some());
    }
    assert!(start.elapsed() < REPORT_LIMIT);
}

#[tokio::test]
async fn a_failed_upload_is_aborted_whatever_step_fails() {
    let dir = tempfile::tempdir().unwrap();
    for url in ["memory://".to_owned(), file_url(dir.path())] {
        let (store, faults) = faulty(&url).await;
        let content = noise(30 * MIB);
        for (call, skip) in [
            (Call::Begin, 0),
            (Call::Part, 0),
            (Call::Part, 2),
            (Call::Complete, 0),
        ] {
            faults.inject(Some(call), skip, 1, Fault::NoSpace);
            let error = stream(&store, "s", &content, vec![Piece::End])
                .await
                .unwrap_err();
            assert_eq!(error.class(), Class::NoSpace, "{call:?}: {error}");
            faults.clear();
            let aborts = faults
                .calls()
                .iter()
                .filter(|(c, _)| *c == Call::Abort)
                .count();
            let begun = faults
                .calls()
                .iter()
                .filter(|(c, _)| *c == Call::Begin)
                .count()
                - 1;
            assert_eq!(aborts, begun, "{call:?}");
            assert_eq!(store.list("").await.unwrap(), []);
        }
    }
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "no staged file stays"
    );
}

#[tokio::test]
async fn a_dropped_upload_is_aborted() {
    let (store, faults) = faulty("memory://").await;
    let (tx, rx) = mpsc::channel(1);
    let task = tokio::spawn({
        let store = store.clone();
        async move { store.put_stream("s", rx, None).await }
    });
    for _ in 0..3 {
        tx.send(Piece::Data(noise(8 * MIB))).await.unwrap();
    }
    while !faults.calls().iter().any(|(call, _)| *call == Call::Part) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    task.abort();
    let _ = task.await;
    let deadline = Instant::now() + REPORT_LIMIT;
    while !faults.calls().iter().any(|(call, _)| *call == Call::Abort) {
        assert!(Instant::now() < deadline, "never aborted");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(store.list("").await.unwrap(), []);
}

#[tokio::test]
async fn s3_conforms() {
    let server = support::s3();
    let store = Store::open(&s3_spec(server.address)).await.unwrap();
    let conditional = store.probe_conditional_create("probe").await.unwrap();
    conforms(&store, conditional).await;
}

#[tokio::test]
async fn s3_takes_a_stream_of_forty_mebibytes_in_bounded_memory() {
    let server = support::s3();
    let store = Store::open(&s3_spec(server.address)).await.unwrap();
    let content = noise(40 * MIB);
    let (tx, rx) = mpsc::channel(1);
    let sender = {
        let (store, content) = (store.clone(), content.clone());
        tokio::spawn(async move {
            let mut ahead = 0;
            for (at, chunk) in content.chunks(100_000).enumerate() {
                tx.send(Piece::Data(content.slice_ref(chunk)))
                    .await
                    .unwrap();
                ahead = ahead.max(at as u64 * 100_000 - store.stats().bytes_out());
            }
            tx.send(Piece::End).await.unwrap();
            ahead
        })
    };
    store.put_stream("s", rx, None).await.unwrap();
    let ahead = sender.await.unwrap();
    assert!(
        ahead <= 32 * MIB as u64,
        "{ahead} bytes were in memory at once"
    );
    assert!(store.get("s").await.unwrap() == content, "content differs");
    assert_eq!(store.stats().requests(Op::Part), 5, "parts of 8 MiB");
    stream(&store, "gone", &content, vec![]).await.unwrap_err();
    let keys = store.list("").await.unwrap().into_iter().map(|o| o.key);
    assert_eq!(keys.collect::<Vec<_>>(), ["s"]);
    let left = std::fs::read_dir(server.directory.path()).unwrap();
    let mut left: Vec<_> = left
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.retain(|name| name.contains("upload"));
    assert_eq!(left, [""; 0], "the aborted upload left parts on the server");
}

#[tokio::test]
async fn s3_failures_have_their_class() {
    let server = support::s3();
    let mut wrong = s3_spec(server.address);
    wrong.secret_access_key = Some("wrong-secret-key".into());
    fails(&wrong, Class::Denied).await;
    let mut missing = s3_spec(server.address);
    missing.url = Url::parse("s3://nobucket/x").unwrap();
    // This server makes a bucket on a write.
    fails_at(&missing, Class::NoBucket, &["check", "list"]).await;
}

#[tokio::test]
async fn a_server_that_is_down_is_reported_in_time() {
    fails(&s3_spec(support::free_address()), Class::Unreachable).await;
}

/// Set for the child of [`s3_credentials_come_from_the_chain`]: the server to talk to.
const CHAIN_SERVER: &str = "LIFEBOAT_TEST_CHAIN_SERVER";

/// Runs only as that child, because the environment belongs to a whole process.
#[tokio::test]
async fn chain_child() {
    let Ok(address) = std::env::var(CHAIN_SERVER) else {
        return;
    };
    let mut spec = s3_spec(address);
    spec.access_key_id = None;
    spec.secret_access_key = None;
    let start = Instant::now();
    let store = Store::open(&spec).await.unwrap();
    for key in ["a", "b"] {
        match store.put(key, "x".into(), PutMode::Overwrite, None).await {
            Ok(()) => println!("wrote {key}"),
            Err(e) => println!("{}: {e}", e.class().as_str()),
        }
    }
    assert!(start.elapsed() < 2 * REPORT_LIMIT);
}

fn run_chain(server: &support::Server, env: &[(&str, String)]) -> String {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "chain_child", "--nocapture"])
        .env_clear()
        .env("HOME", server.directory.path())
        .env(CHAIN_SERVER, server.address.to_string())
        // Discard: nothing listens there, and nothing leaves this machine.
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
        .envs(env.iter().map(|(k, v)| (*k, v.as_str())))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_credentials_come_from_the_chain() {
    let server = support::s3();
    let (key, secret) = (support::S3_ACCESS_KEY, support::S3_SECRET_KEY);
    let none = run_chain(&server, &[]);
    assert!(
        none.contains("denied: cannot write s3://bucket/apps/one/a: no credentials"),
        "{none}"
    );

    let env = [
        ("AWS_ACCESS_KEY_ID", key.into()),
        ("AWS_SECRET_ACCESS_KEY", secret.into()),
    ];
    assert!(run_chain(&server, &env).contains("wrote b"));

    let file = server.directory.path().join("credentials");
    let profile = format!("[other]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    std::fs::write(&file, profile).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let env = [
        ("AWS_SHARED_CREDENTIALS_FILE", file),
        ("AWS_PROFILE", "other".into()),
    ];
    assert!(run_chain(&server, &env).contains("wrote b"));

    let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let answer = format!(
        r#"{{"AccessKeyId":"{key}","SecretAccessKey":"{secret}","Token":"t","Expiration":"2999-01-01T00:00:00Z"}}"#
    );
    let count = Arc::clone(&asked);
    let app = axum::Router::new().fallback(move || async move {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        answer
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/creds", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let container = tokio::task::spawn_blocking(move || {
        run_chain(&server, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)])
    });
    let container = container.await.unwrap();
    assert!(container.contains("wrote b"), "{container}");
    assert_eq!(
        asked.load(std::sync::atomic::Ordering::Relaxed),
        1,
        "asked once, then kept"
    );
}

/// Answers as the metadata service of an instance does, or as the token service; counts what it was asked for.
async fn answers(
    of: impl Fn(&str, &str) -> Option<String> + Clone + Send + Sync + 'static,
) -> String {
    let app = axum::Router::new().fallback(
        move |method: axum::http::Method, uri: axum::http::Uri| async move {
            let found = of(method.as_str(), uri.path());
            // A TTL for the token of the metadata service; ignored elsewhere.
            let ttl = [("x-aws-ec2-metadata-token-ttl-seconds", "21600")];
            let status = match &found {
                Some(_) => axum::http::StatusCode::OK,
                None => axum::http::StatusCode::NOT_FOUND,
            };
            (status, ttl, found.unwrap_or_default())
        },
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_credentials_of_an_instance_role() {
    let server = support::s3();
    let (key, secret) = (support::S3_ACCESS_KEY, support::S3_SECRET_KEY);
    let endpoint = answers(move |method, path| match (method, path) {
        ("PUT", "/latest/api/token") => Some("a-token".into()),
        ("GET", "/latest/meta-data/iam/security-credentials/") => Some("a-role".into()),
        ("GET", "/latest/meta-data/iam/security-credentials/a-role") => Some(format!(
            r#"{{"Code":"Success","LastUpdated":"2026-01-01T00:00:00Z","Type":"AWS-HMAC","AccessKeyId":"{key}","SecretAccessKey":"{secret}","Token":"t","Expiration":"2999-01-01T00:00:00Z"}}"#
        )),
        _ => None,
    })
    .await;
    let said = tokio::task::spawn_blocking(move || {
        run_chain(&server, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint)])
    });
    let said = said.await.unwrap();
    assert!(said.contains("wrote b"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_credentials_of_a_web_identity() {
    let server = support::s3();
    let (key, secret) = (support::S3_ACCESS_KEY, support::S3_SECRET_KEY);
    let endpoint = answers(move |_, _| {
        Some(format!(
            r#"<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"#
        ))
    })
    .await;
    let token = server.directory.path().join("token");
    std::fs::write(&token, "a.signed.token").unwrap();
    let said = tokio::task::spawn_blocking(move || {
        let env = [
            (
                "AWS_WEB_IDENTITY_TOKEN_FILE",
                token.to_str().unwrap().to_owned(),
            ),
            (
                "AWS_ROLE_ARN",
                "arn:aws:iam::123456789012:role/backup".into(),
            ),
            ("AWS_ENDPOINT_URL_STS", endpoint),
            ("AWS_REGION", "us-east-1".into()),
        ];
        run_chain(&server, &env)
    });
    let said = said.await.unwrap();
    assert!(said.contains("wrote b"), "{said}");
}

#[tokio::test]
async fn azure_conforms_and_its_failures_have_their_class() {
    let server = support::azurite();
    support::azurite_container(&server, "box");
    let store = Store::open(&azure_spec(server.address, "abs://box/apps/one"))
        .await
        .unwrap();
    conforms(&store, true).await;
    let mut theirs = azure_spec(server.address, "abs://devstoreaccount1@box/apps/two");
    theirs.account_name = None;
    let theirs = Store::open(&theirs).await.unwrap();
    put_new(&theirs, "k", "x").await.unwrap();
    let mut wrong = azure_spec(server.address, "abs://box/x");
    wrong.account_key = Some("d3Jvbmctc2VjcmV0LWtleQ==".into());
    fails(&wrong, Class::Denied).await;
    fails(
        &azure_spec(server.address, "abs://nobox/x"),
        Class::NoBucket,
    )
    .await;
}

fn google_spec(address: impl std::fmt::Display, url: &str) -> StoreSpec {
    let mut spec = spec(url);
    spec.endpoint = Some(format!("http://{address}"));
    spec
}

#[tokio::test]
async fn a_large_upload_survives_a_short_outage() {
    /// Longer than one request is repeated.
    const OUTAGE: Duration = Duration::from_secs(10);
    let (address, bucket) = support::google::serve().await;
    let store = Store::open(&google_spec(address, "gs://bucket/x"))
        .await
        .unwrap();
    bucket
        .lock()
        .unwrap()
        .refuse_parts_until(Instant::now() + OUTAGE);
    let content = noise(20 * MIB);
    stream(&store, "s", &content, vec![Piece::End])
        .await
        .unwrap();
    assert!(store.get("s").await.unwrap() == content, "content differs");
}

#[tokio::test]
async fn google_conforms_and_its_failures_have_their_class() {
    let (address, bucket) = support::google::serve().await;
    let google = |url: &str| google_spec(address, url);
    let store = Store::open(&google("gs://bucket/apps/one")).await.unwrap();
    conforms(&store, true).await;
    assert_eq!(bucket.lock().unwrap().unfinished(), 0);
    fails(&google("gs://nobucket/x"), Class::NoBucket).await;
    let mut wrong = google("gs://bucket/x");
    // An emulator's form of a credentials file: it makes the client send no token.
    wrong.google_credentials = Some(
        r#"{"disable_oauth":true,"client_email":"","private_key":"","private_key_id":""}"#.into(),
    );
    fails(&wrong, Class::Denied).await;
}

#[tokio::test]
async fn an_unknown_store_is_a_config_error() {
    let error = Store::open(&spec("ftp://host/x")).await.unwrap_err();
    assert_eq!((error.class(), error.op()), (Class::Config, Op::Open));
    let over = Store::from_object_store(
        Kind::Memory,
        Arc::new(object_store::memory::InMemory::new()),
        "root".into(),
    );
    conforms(&over, true).await;
}
