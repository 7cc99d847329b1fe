//! Receivers of notifications that behave and misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// How a receiver answers.
#[derive(Clone, Copy, PartialEq)]
pub enum Manner {
    Good,
    Slow,
    Broken,
    Closed,
}

/// One request that was read in full.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub path: String,
    pub headers: String,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        let mut lines = self.headers.lines();
        lines
            .find_map(|l| {
                let (key, value) = l.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then_some(value)
            })
            .unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A receiver on loopback. Its thread ends with the test's process.
pub struct Receiver {
    pub port: u16,
    state: Arc<Mutex<(Manner, Vec<Request>)>>,
}

impl Receiver {
    pub fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new((manner, Vec::new())));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                // A client that goes away is its own business.
                std::thread::spawn(move || answer(stream.unwrap(), &shared).ok());
            }
        });
        Self { port, state }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hidden-token", self.port)
    }

    pub fn be(&self, manner: Manner) {
        self.state.lock().unwrap().0 = manner;
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().1.clone()
    }

    /// Nothing that came before counts from here on.
    pub fn forget(&self) {
        self.state.lock().unwrap().1.clear();
    }

    /// Events of a generic webhook, over all batches.
    pub fn events(&self) -> Vec<Value> {
        // After a crash one may come twice: the same id says so.
        let mut batches = self.requests();
        let mut ids = std::collections::BTreeSet::new();
        batches.retain(|b| ids.insert(b.json()["id"].to_string()));
        let events = batches
            .iter()
            .flat_map(|b| b.json()["events"].as_array().cloned().unwrap_or_default());
        events.collect()
    }

    pub fn phases(&self, kind: &str) -> Vec<String> {
        let events = self.events();
        let mine = events.iter().filter(|e| e["kind"] == kind);
        mine.map(|e| e["phase"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn answer(stream: TcpStream, state: &Mutex<(Manner, Vec<Request>)>) -> std::io::Result<()> {
    let manner = state.lock().unwrap().0;
    if manner == Manner::Closed {
        return Ok(());
    }
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = Request::default();
    reader.read_line(&mut request.path)?;
    request.path = request.path.split(' ').nth(1).unwrap_or("").to_owned();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        request.headers.push_str(&line);
    }
    let length: usize = request.header("content-length").parse().unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    if manner == Manner::Slow {
        std::thread::sleep(Duration::from_secs(60));
    }
    let status = if manner == Manner::Good {
        state.lock().unwrap().1.push(request);
        "200 OK"
    } else {
        "500 Internal Server Error"
    };
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}
