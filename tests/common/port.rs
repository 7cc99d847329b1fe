//! Ports for servers that are told where to listen.

use std::fs::File;
use std::net::TcpListener;
use std::sync::Mutex;

use rustix::fs::{FlockOperation, flock};

/// Below those that Linux gives to connections and to whoever asks for any: nobody gets one of these by chance between two starts of a server.
const PORTS: std::ops::Range<u32> = 20_000..30_000;

/// Each a port of this process: other tests leave it alone until the process ends.
static MINE: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A port on which nobody listens, and which no other test is given while this one runs.
pub fn free_port() -> u16 {
    let user = rustix::process::getuid().as_raw();
    let folder = std::env::temp_dir().join(format!("lifeboat-test-ports-{user}"));
    std::fs::create_dir_all(&folder).unwrap();
    let first = std::process::id().wrapping_mul(7);
    for n in 0..PORTS.end - PORTS.start {
        let port = PORTS.start + first.wrapping_add(n) % (PORTS.end - PORTS.start);
        let port = u16::try_from(port).unwrap();
        let lease = File::options()
            .create(true)
            .append(true)
            .open(folder.join(port.to_string()))
            .unwrap();
        let is_mine = flock(&lease, FlockOperation::NonBlockingLockExclusive).is_ok();
        if is_mine && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            MINE.lock().unwrap().push(lease);
            return port;
        }
    }
    panic!("every port is taken");
}
