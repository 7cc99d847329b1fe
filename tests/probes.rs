//! Probes of an app that behaves and misbehaves, over HTTP and HTTPS, by the real binary.
#![allow(missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::daemon::{Daemon, Site, free_port, wait_for};
use common::receiver::{Manner, Receiver};
use common::tls::{TlsServer, certificates};
use serde_json::Value;

/// An app whose path says how it answers.
struct App {
    port: u16,
    /// Requests by path, and the most that were open at once of `/slow`.
    seen: Arc<Mutex<Vec<String>>>,
    open: Arc<(AtomicUsize, AtomicUsize)>,
}

impl App {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = Self {
            port,
            seen: Arc::default(),
            open: Arc::default(),
        };
        let (seen, open) = (Arc::clone(&app.seen), Arc::clone(&app.open));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, open) = (Arc::clone(&seen), Arc::clone(&open));
                // A client that goes away is its own business.
                std::thread::spawn(move || answer(stream.unwrap(), &seen, &open).ok());
            }
        });
        app
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn asked(&self, path: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|p| p.starts_with(path)).count()
    }
}

fn answer(
    mut stream: TcpStream,
    seen: &Mutex<Vec<String>>,
    open: &(AtomicUsize, AtomicUsize),
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    while reader.read_line(&mut request)? > 2 {}
    let path = request.split(' ').nth(1).unwrap_or("").to_owned();
    let authorized = request.to_lowercase().contains("authorization: basic ");
    seen.lock().unwrap().push(path.clone());
    let head =
        |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n");
    match path.split('?').next().unwrap_or("") {
        "/up" => write!(stream, "{}", head("200 OK", "Content-Length: 2\r\n") + "ok"),
        "/private" if authorized => write!(stream, "{}", head("204 No Content", "")),
        "/private" => write!(
            stream,
            "{}",
            head("401 Unauthorized", "Content-Length: 0\r\n")
        ),
        "/broken" => write!(
            stream,
            "{}",
            head("500 Internal Server Error", "Content-Length: 0\r\n")
        ),
        "/loop" => write!(
            stream,
            "{}",
            head(
                "302 Found",
                "Location: /loop?token=hidden\r\nContent-Length: 0\r\n"
            )
        ),
        "/slow" => {
            let now = open.0.fetch_add(1, Ordering::SeqCst) + 1;
            open.1.fetch_max(now, Ordering::SeqCst);
            // Until the client gives up.
            let ended = stream.read(&mut [0]);
            open.0.fetch_sub(1, Ordering::SeqCst);
            ended.map(drop)
        }
        "/stops" => {
            write!(
                stream,
                "{}",
                head("200 OK", "Content-Length: 1000\r\n") + "begun"
            )?;
            stream.read(&mut [0]).map(drop)
        }
        "/endless" => {
            write!(stream, "{}", head("200 OK", ""))?;
            loop {
                stream.write_all(&[b'x'; 65536])?;
            }
        }
        _ => Ok(()),
    }
}

fn site(probes: &[(&str, String)], more: &str) -> Site {
    let mut site = Site::new().with_http();
    let entries = probes.iter().map(|(name, url)| {
        format!("  - name: {name}\n    url: \"{url}\"\n    every: 1s\n    timeout: 500ms\n")
    });
    let entries: String = entries.collect();
    site.extra = format!("    max-lag: 1s\n{more}probes:\n{entries}");
    site
}

fn probed(site: &Site, daemon: &Daemon, count: usize) {
    wait_for(daemon, "every probe", || {
        let text = site.get("/metrics");
        let lines = text.lines().filter(|l| l.starts_with("probe_success{"));
        lines.count() == count
    });
}

fn value(site: &Site, metric: &str, probe: &str) -> f64 {
    site.metric(metric, &format!("probe=\"{probe}\""))
}

/// The services in the JSON of `lifeboat status`, which needs no token.
fn service(site: &Site, name: &str) -> Value {
    let out = site.run(&["status", "--json"]);
    let text = String::from_utf8_lossy(&out.stdout);
    let status: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let all = status["services"].as_array().unwrap();
    all.iter().find(|s| s["name"] == name).unwrap().clone()
}

#[test]
fn an_app_that_misbehaves_is_seen_as_its_users_see_it() {
    let app = App::new();
    let closed = free_port();
    let mut all: Vec<(&str, String)> = [
        "up", "private", "broken", "loop", "slow", "stops", "endless", "nothing",
    ]
    .map(|name| (name, app.url(&format!("/{name}?key=hidden"))))
    .into();
    all[1].1 = app
        .url("/private")
        .replace("http://", "http://user:hidden@");
    all.push(("closed", format!("http://127.0.0.1:{closed}/up")));
    let mut site = site(&all, "");
    // What stands in the environment for other programs is not for this.
    for variable in ["http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        site.env
            .push((variable.into(), "http://127.0.0.1:9".into()));
    }
    let daemon = site.start();
    probed(&site, &daemon, all.len());
    let expected = [
        ("up", 1.0, 200.0, ""),
        ("private", 1.0, 204.0, ""),
        ("broken", 0.0, 500.0, "it answered 500 instead of 200-299"),
        ("loop", 0.0, 302.0, "it answered 302"),
        ("slow", 0.0, 0.0, "no whole answer within 500ms"),
        ("stops", 0.0, 200.0, "no whole answer within 500ms"),
        ("endless", 1.0, 200.0, ""),
        ("nothing", 0.0, 0.0, "error"),
        ("closed", 0.0, 0.0, "refused"),
    ];
    for (name, success, status, reason) in expected {
        assert_eq!(value(&site, "probe_success", name), success, "{name}");
        assert_eq!(
            value(&site, "probe_http_status_code", name),
            status,
            "{name}"
        );
        assert!(value(&site, "lifeboat_probe_timestamp_seconds", name) > 1e9);
        let service = service(&site, name);
        let state = if success == 1.0 { "up" } else { "down" };
        assert_eq!(service["state"], state, "{service}");
        let said = service["reasons"].to_string();
        assert!(said.contains(reason), "{name}: {said}");
        assert_eq!(said == "[]", success == 1.0, "{said}");
    }
    assert!(value(&site, "probe_duration_seconds", "slow") >= 0.5);
    assert!(value(&site, "probe_duration_seconds", "up") > 0.0);
    let hint = service(&site, "loop")["hints"].to_string();
    assert!(hint.contains("/loop?***; probe that address"), "{hint}");
    // Redirects are not followed, and a look that hangs is not joined by the next.
    wait_for(&daemon, "several looks", || app.asked("/slow") >= 3);
    assert!(app.asked("/loop?token") == 0 && app.asked("/loop?key") >= 1);
    assert_eq!(app.open.1.load(Ordering::SeqCst), 1);
    // The copies are safe all the same, and nothing secret is shown anywhere.
    site.sync();
    assert!(site.get("/readyz").contains("\"status\":\"safe\""));
    let table = site.ok(&["status"]);
    assert!(table.contains("broken   down"), "{table}");
    let page = site.get("/");
    assert!(page.contains("Not up: broken, closed, loop"), "{page}");
    let shown = site.ok(&["config", "show"]);
    for text in [
        &page,
        &table,
        &shown,
        &daemon.log(),
        &site.get("/metrics"),
        &site.get("/readyz"),
    ] {
        assert!(!text.contains("hidden"), "{text}");
    }
}

#[test]
fn an_app_that_goes_and_comes_back_is_told() {
    let app = Receiver::new(Manner::Good);
    let hook = Receiver::new(Manner::Good);
    let notify = format!("notify:\n  - webhook: {}\n    after: 500ms\n", hook.url());
    let site = site(&[("app", app.url())], &notify);
    let daemon = site.start();
    probed(&site, &daemon, 1);
    assert_eq!(value(&site, "probe_success", "app"), 1.0);
    app.be(Manner::Broken);
    wait_for(&daemon, "the news", || {
        hook.phases("app-down") == ["started"]
    });
    app.be(Manner::Good);
    wait_for(&daemon, "its end", || {
        hook.phases("app-down") == ["started", "ended"]
    });
    assert!(hook.phases("unsafe").is_empty());
    let said = hook
        .events()
        .iter()
        .find(|e| e["kind"] == "app-down")
        .unwrap()
        .to_string();
    assert!(
        said.contains("it answered 500") && said.contains("app does not answer"),
        "{said}"
    );
}

#[test]
fn certificates_are_checked_and_their_end_is_told_in_time() {
    let mut site = site(&[], "");
    certificates(
        site.dir.path(),
        &[("good", "90"), ("soon", "7"), ("expired", "-1")],
    );
    let names = ["good", "soon", "expired", "alone"];
    let servers = names.map(|name| TlsServer::new(site.dir.path(), name));
    let hook = Receiver::new(Manner::Good);
    let mut all: Vec<(&str, String)> = names
        .iter()
        .zip(&servers)
        .map(|(name, server)| (*name, format!("https://localhost:{}/up", server.port)))
        .collect();
    // A name that is not in the certificate.
    all.push((
        "other-name",
        format!("https://127.0.0.1:{}/up", servers[0].port),
    ));
    let notify = format!("notify:\n  - webhook: {}\n    after: 500ms\n", hook.url());
    site.extra = self::site(&all, &notify).extra;
    site.env.push((
        "SSL_CERT_FILE".into(),
        site.path("ca.pem").display().to_string(),
    ));
    let daemon = site.start();
    probed(&site, &daemon, all.len());
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs_f64();
    let days = |name: &str| (value(&site, "probe_ssl_earliest_cert_expiry", name) - now) / 86_400.0;
    assert!((89.9..90.1).contains(&days("good")), "{}", days("good"));
    assert!((6.9..7.1).contains(&days("soon")), "{}", days("soon"));
    let expected = [
        ("good", 1.0, ""),
        ("soon", 1.0, ""),
        ("expired", 0.0, "Expired"),
        ("alone", 0.0, "certificate"),
        ("other-name", 0.0, "not valid for name"),
    ];
    for (name, success, reason) in expected {
        let service = service(&site, name);
        assert_eq!(value(&site, "probe_success", name), success, "{service}");
        assert!(service["reasons"].to_string().contains(reason), "{service}");
        let warned = !service["warnings"].as_array().unwrap().is_empty();
        assert_eq!(warned, name == "soon", "{service}");
    }
    wait_for(&daemon, "the warning", || {
        hook.phases("certificate") == ["started"] && hook.phases("app-down").len() == 3
    });
    assert!(site.ok(&["status"]).contains("its certificate ends at"));
}
