//! The way between the sidecar and an S3 server: requests are held or refused there by their first line.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request is meant if its first line holds every word.
type Words = &'static [&'static str];

#[derive(Default)]
struct Rules {
    hold: Option<Words>,
    refuse: Option<Words>,
    held: usize,
}

/// Lives as long as the process.
#[derive(Clone)]
pub struct Link {
    pub port: u16,
    rules: Arc<Mutex<Rules>>,
}

impl Link {
    /// To a server on this host.
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let rules = Arc::<Mutex<Rules>>::default();
        let shared = Arc::clone(&rules);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, rules) = (client.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || {
                    // Whoever gave up the request does not wait for its answer.
                    let _ = pass(client, server, &rules);
                });
            }
        });
        Self { port, rules }
    }

    /// Such requests wait from now on.
    pub fn hold(&self, words: Words) {
        self.rules.lock().unwrap().hold = Some(words);
    }

    pub fn let_go(&self) {
        self.rules.lock().unwrap().hold = None;
    }

    /// How many wait now.
    pub fn held(&self) -> usize {
        self.rules.lock().unwrap().held
    }

    /// Such requests are answered by 403 from now on.
    pub fn refuse(&self, words: Words) {
        self.rules.lock().unwrap().refuse = Some(words);
    }

    pub fn refuse_nothing(&self) {
        self.rules.lock().unwrap().refuse = None;
    }
}

fn meant(words: Option<Words>, line: &str) -> bool {
    words.is_some_and(|words| words.iter().all(|w| line.contains(w)))
}

/// One request for each connection.
fn pass(mut client: TcpStream, server: u16, rules: &Mutex<Rules>) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let line = head.lines().next().unwrap_or_default().to_owned();
    let length = head.lines().find_map(|l| {
        let (name, value) = l.split_once(':')?;
        let is_it = name.eq_ignore_ascii_case("content-length");
        is_it.then(|| value.trim().parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body)?;
    if meant(rules.lock().unwrap().hold, &line) {
        rules.lock().unwrap().held += 1;
        while meant(rules.lock().unwrap().hold, &line) && !is_gone(&client) {
            std::thread::sleep(Duration::from_millis(10));
        }
        rules.lock().unwrap().held -= 1;
    }
    if meant(rules.lock().unwrap().refuse, &line) {
        let why = "<Error><Code>AccessDenied</Code><Message>not now</Message></Error>";
        let length = why.len();
        write!(
            client,
            "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{why}"
        )?;
        return Ok(());
    }
    let mut server = TcpStream::connect(("127.0.0.1", server))?;
    let head = head.trim_end_matches("\r\n");
    write!(server, "{head}\r\nConnection: close\r\n\r\n")?;
    server.write_all(&body)?;
    std::io::copy(&mut server, &mut client)?;
    Ok(())
}

/// The other end has closed the connection: nobody waits for an answer.
fn is_gone(client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let read = client.peek(&mut [0]);
    client.set_nonblocking(false).unwrap();
    matches!(read, Ok(0)) || read.is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock)
}
