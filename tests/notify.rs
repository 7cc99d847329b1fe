//! Notifications of the real binary to real receivers that behave and misbehave.
#![allow(missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::daemon::{Daemon, Site, bring_back, take_away, wait_for};
use common::receiver::{Manner, Receiver, Request};
use serde_json::Value;

fn site(notify: &str) -> Site {
    let mut site = Site::new().with_http();
    // A disk that other tests keep busy for a second or two is no outage.
    site.extra = format!("    max-lag: 5s\nnotify:\n{notify}");
    site
}

/// Every request to the store fails, until it is mended.
fn break_store(site: &Site) {
    take_away(&site.path("store"));
    site.write("update t set a='during the outage' where id=1");
}

fn mend_store(site: &Site) {
    bring_back(&site.path("store"));
}

fn waits_for_phases(daemon: &Daemon, receiver: &Receiver, phases: &[&str]) {
    wait_for(daemon, &format!("{phases:?} of unsafe"), || {
        receiver.phases("unsafe") == phases
    });
}

/// The key is known: the signature can be checked as a receiver does it.
fn check_signature(request: &Request) {
    let script = "import hmac,sys; print(hmac.new(b'signing key', (sys.argv[1]+'.'+sys.argv[2]).encode(), 'sha256').hexdigest())";
    let out = std::process::Command::new("python3")
        .args(["-c", script, request.header("x-lifeboat-timestamp")])
        .arg(&request.body)
        .output()
        .expect("python3 is missing: run bin/install-dev");
    let expected = String::from_utf8(out.stdout).unwrap();
    assert_eq!(
        request.header("x-lifeboat-signature"),
        format!("sha256={}", expected.trim())
    );
}

#[test]
fn an_outage_is_told_once_and_its_end_once() {
    let (hook, chat, pings) = (
        Receiver::new(Manner::Good),
        Receiver::new(Manner::Good),
        Receiver::new(Manner::Good),
    );
    let site = site(&format!(
        "  - webhook: {}\n    secret: signing key\n    after: 500ms\n  - slack: {}\n    after: 500ms\n    events: [unsafe]\n  - healthchecks: {}\n    after: 500ms\n    every: 1s\n",
        hook.url(),
        chat.url(),
        pings.url()
    ));
    let daemon = site.start();
    wait_for(&daemon, "the first copy", || {
        hook.phases("first-success") == ["once"]
    });
    let pinged = |end: &str| {
        let paths = pings.requests();
        paths.iter().filter(|r| r.path.ends_with(end)).count()
    };
    wait_for(&daemon, "start and success", || {
        pinged("/start") == 1 && pinged("/hidden-token") >= 2
    });
    break_store(&site);
    waits_for_phases(&daemon, &hook, &["started"]);
    wait_for(&daemon, "the cause", || {
        hook.phases("store-unreachable") == ["started"]
    });
    wait_for(&daemon, "a failing ping", || pinged("/fail") >= 1);
    let before = pinged("/hidden-token");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(hook.phases("unsafe"), ["started"], "told once");
    assert_eq!(pinged("/hidden-token"), before, "no heartbeat while red");
    mend_store(&site);
    waits_for_phases(&daemon, &hook, &["started", "ended"]);
    wait_for(&daemon, "the heartbeat", || {
        pinged("/hidden-token") > before
    });
    site.ok(&["snapshot", "--label", "v42"]);
    wait_for(&daemon, "the snapshot", || {
        hook.phases("snapshot") == ["once"]
    });
    wait_for(&daemon, "two texts", || chat.requests().len() == 2);
    let texts: Vec<String> = chat
        .requests()
        .iter()
        .map(|r| r.json()["text"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        texts[0].starts_with("Lifeboat on web1\nPROBLEM: app is not safe (since "),
        "{texts:?}"
    );
    assert!(texts[0].contains("are not durable"), "{texts:?}");
    assert!(texts[1].contains("OK: app is safe again"), "{texts:?}");
    for request in hook.requests() {
        check_signature(&request);
        assert_eq!(request.json()["instance"], "web1");
    }
    assert!(
        site.metric(
            "lifeboat_notifications_total",
            "channel=\"webhook\",result=\"sent\""
        ) >= 3.0
    );
    assert_eq!(site.metric("lifeboat_notifications_total", "dropped"), 0.0);
    assert!(!daemon.log().contains("hidden-token"), "{}", daemon.log());
    assert!(!site.get("/metrics").contains("hidden-token"));
}

#[test]
fn a_restart_neither_repeats_nor_forgets() {
    let hook = Receiver::new(Manner::Good);
    let site = site(&format!("  - webhook: {}\n    after: 3s\n", hook.url()));
    let daemon = site.start();
    wait_for(&daemon, "the first copy", || {
        hook.phases("first-success") == ["once"]
    });
    break_store(&site);
    waits_for_phases(&daemon, &hook, &["started"]);
    daemon.kill();
    let daemon = site.start();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(hook.phases("unsafe"), ["started"], "{}", daemon.log());
    assert_eq!(hook.phases("first-success").len(), 1);
    // The end of it happens while nobody can be told, and while nobody runs.
    hook.be(Manner::Closed);
    mend_store(&site);
    wait_for(&daemon, "a try that failed", || {
        site.metric("lifeboat_notifications_total", "result=\"failed\"") >= 1.0
    });
    daemon.kill();
    hook.be(Manner::Good);
    let daemon = site.start();
    waits_for_phases(&daemon, &hook, &["started", "ended"]);
}

/// Slow, broken and closed receivers neither delay captures nor each other, and are told when they are back.
#[test]
fn receivers_that_misbehave_delay_nobody() {
    let bad = [Manner::Slow, Manner::Broken, Manner::Closed].map(Receiver::new);
    let good = Receiver::new(Manner::Good);
    let entries = bad.iter().chain([&good]);
    let notify: String = entries
        .map(|r| format!("  - webhook: {}\n    after: 500ms\n", r.url()))
        .collect();
    let site = site(&notify);
    let daemon = site.start();
    wait_for(&daemon, "the first copy", || {
        good.phases("first-success") == ["once"]
    });
    // The slow one has this process wait now.
    for n in 0..5 {
        site.write(&format!("update t set a='{n}' where id=1"));
        site.sync();
    }
    break_store(&site);
    waits_for_phases(&daemon, &good, &["started"]);
    mend_store(&site);
    waits_for_phases(&daemon, &good, &["started", "ended"]);
    let failed = |channel: &str| {
        let labels = format!("channel=\"{channel}\",result=\"failed\"");
        site.metric("lifeboat_notifications_total", &labels)
    };
    wait_for(&daemon, "counted failures", || {
        ["webhook", "webhook-2", "webhook-3"]
            .iter()
            .all(|c| failed(c) >= 1.0)
    });
    assert_eq!(failed("webhook-4"), 0.0);
    for receiver in &bad {
        receiver.be(Manner::Good);
    }
    // Each has the same story in the same order.
    for receiver in &bad[1..] {
        // The next try may be half a minute away.
        let begun = Instant::now();
        while receiver.phases("unsafe") != ["started", "ended"] {
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "{}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(receiver.phases("first-success"), ["once"]);
    }
    assert!(!daemon.log().contains("hidden-token"), "{}", daemon.log());
}

/// A mail server that takes one mail after the other; the mails.
fn mail_server() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mails = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&mails);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || take_mails(stream.unwrap(), &shared).ok());
        }
    });
    (port, mails)
}

fn take_mails(mut stream: TcpStream, mails: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    stream.write_all(b"220 sink\r\n")?;
    let mut envelope = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let verb = line
            .split([' ', '\r'])
            .next()
            .unwrap_or_default()
            .to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" => stream.write_all(b"250-sink\r\n250 AUTH PLAIN\r\n")?,
            "AUTH" if line.contains("AGEAYgBw") => stream.write_all(b"235 ok\r\n")?,
            "RCPT" if line.contains("nobody") => stream.write_all(b"550 no such person\r\n")?,
            "DATA" => {
                stream.write_all(b"354 go on\r\n")?;
                let mut mail = envelope.clone();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line)?;
                    if line == ".\r\n" {
                        break;
                    }
                    mail.push_str(&line);
                }
                mails.lock().unwrap().push(mail);
                stream.write_all(b"250 ok\r\n")?;
            }
            "QUIT" => return stream.write_all(b"221 bye\r\n"),
            _ => {
                envelope.push_str(&line);
                stream.write_all(b"250 ok\r\n")?;
            }
        }
    }
}

#[test]
fn notify_test_says_what_arrives() {
    let chat = Receiver::new(Manner::Good);
    let (port, mails) = mail_server();
    let mail = |to: &str| {
        format!(
            "  - email: {to}\n    from: Lifeboat <lifeboat@example.com>\n    smtp: smtp://127.0.0.1:{port}\n"
        )
    };
    let mut site = site(&format!(
        "  - slack: {}\n{}",
        chat.url(),
        mail("ops@example.com, dev@example.com")
    ));
    let said = site.ok(&["notify", "test"]);
    assert!(
        said.ends_with("lifeboat: ok notify test channels=2\n"),
        "{said}"
    );
    assert!(chat.requests()[0].body.contains("a test from web1"));
    let received = mails.lock().unwrap().clone();
    assert_eq!(received.len(), 1);
    for part in [
        "RCPT TO:<ops@example.com>",
        "RCPT TO:<dev@example.com>",
        "Subject: INFO: a test from web1: notifications arrive - Lifeboat on web1",
        "From: Lifeboat <lifeboat@example.com>",
    ] {
        assert!(received[0].contains(part), "{part}\n{}", received[0]);
    }
    site.ok(&["notify", "test", "slack"]);
    assert_eq!(mails.lock().unwrap().len(), 1);
    let unknown = site.fails(2, &["notify", "test", "pager"]);
    assert!(
        unknown.contains("hint: there are slack, email"),
        "{unknown}"
    );

    chat.be(Manner::Broken);
    site.extra.push_str(&mail("nobody@example.com"));
    let out = site.run(&["notify", "test", "--json"]);
    assert_eq!(out.status.code(), Some(1));
    let shown: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(shown["channels"][0]["error"], "the receiver answered 500");
    assert_eq!(shown["channels"][1]["ok"], true);
    assert!(
        shown["channels"][2]["error"]
            .as_str()
            .unwrap()
            .contains("no such person"),
        "{shown}"
    );
    chat.be(Manner::Closed);
    let said = site.fails(1, &["notify", "test", "slack"]);
    assert!(!said.contains("hidden-token"), "{said}");

    let shown = site.ok(&["config", "show"]);
    assert!(
        shown.contains("127.0.0.1/***") && !shown.contains("hidden-token"),
        "{shown}"
    );
    site.extra.clear();
    let nobody = site.fails(2, &["notify", "test"]);
    assert!(nobody.contains("there is no `notify`"), "{nobody}");
}

/// Without a file, variables are enough.
#[test]
fn environment_alone_names_a_receiver() {
    let chat = Receiver::new(Manner::Good);
    let mut site = Site::new();
    site.env = vec![("LIFEBOAT_NOTIFY_SLACK".into(), chat.url())];
    site.ok(&["notify", "test"]);
    assert_eq!(chat.requests().len(), 1);
}

/// Ends with the test.
struct TlsReceiver {
    child: std::process::Child,
    port: u16,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Drop for TlsReceiver {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl TlsReceiver {
    fn new(site: &Site, manner: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/tls_receiver.py");
        let mut child = Command::new("python3")
            .arg(script)
            .arg(manner)
            .args([site.path("leaf.pem"), site.path("leaf.key")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is missing: run bin/install-dev");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next().unwrap().unwrap().parse().unwrap();
        Self { child, port, lines }
    }
}

/// An authority of its own, and a certificate for `localhost`.
fn certificates(site: &Site) {
    let openssl = |args: &str| {
        let out = Command::new("openssl")
            .args(args.split(' '))
            .current_dir(site.dir.path())
            .output()
            .expect("openssl is missing: run bin/install-dev");
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
    };
    let common = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(&format!(
        "{common} -keyout ca.key -out ca.pem -subj /CN=authority"
    ));
    openssl(&format!(
        "{common} -keyout leaf.key -out leaf.pem -subj /CN=leaf -CA ca.pem -CAkey ca.key -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE"
    ));
}

/// Certificates are checked on every way that has them, and nothing is sent to who has no good one.
#[test]
fn certificates_are_checked() {
    let mut site = site("");
    certificates(&site);
    let mut receivers =
        ["https", "smtps", "starttls"].map(|manner| TlsReceiver::new(&site, manner));
    let ports = receivers.each_ref().map(|r| r.port);
    let mail = "from: lifeboat@example.com\n    smtp:";
    site.extra = format!(
        "notify:\n  - webhook: https://localhost:{}/hook\n  - email: a@example.com\n    {mail} smtps://localhost:{}\n  - email: b@example.com\n    {mail} smtp://localhost:{}?tls=required\n",
        ports[0], ports[1], ports[2]
    );
    // The authority is not known to this machine.
    let out = site.run(&["notify", "test", "--json"]);
    assert_eq!(out.status.code(), Some(1));
    let shown: Value = serde_json::from_slice(&out.stdout).unwrap();
    for channel in shown["channels"].as_array().unwrap() {
        let error = channel["error"].as_str().unwrap_or_default();
        assert!(
            error.contains("certificate") || error.contains("UnknownIssuer"),
            "{channel}"
        );
    }
    let authority = site.path("ca.pem").display().to_string();
    site.env.push(("SSL_CERT_FILE".into(), authority));
    let said = site.ok(&["notify", "test"]);
    assert!(
        said.contains("lifeboat: ok notify test channels=3"),
        "{said}"
    );
    for receiver in &mut receivers {
        assert_eq!(receiver.lines.next().unwrap().unwrap(), "message");
    }
    // A name that is not in the certificate.
    site.extra = site.extra.replace("localhost", "127.0.0.1");
    let out = site.run(&["notify", "test", "webhook"]);
    assert_eq!(
        out.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
}
