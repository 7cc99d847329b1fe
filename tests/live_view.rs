//! A base that is read slowly while the app writes on: it equals the database at its TXID, and the WAL does not wait for it.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Image, Sidecar, commits, python, traffic};
use lifeboat::ltx;
use lifeboat::sqlite::capture::{CaptureError, write_base};
use lifeboat::sqlite::guard::Barrier;
use lifeboat::sqlite::live::LiveView;

/// Hands on what is written to it, slowly.
struct Slow {
    bytes: Vec<u8>,
    pause: Duration,
    paused_at: usize,
}

impl std::io::Write for Slow {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(data);
        if self.bytes.len() - self.paused_at > 100_000 {
            self.paused_at = self.bytes.len();
            std::thread::sleep(self.pause);
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn base_of(view: &LiveView, header: &ltx::Header, pause: Duration) -> Vec<u8> {
    let out = Slow {
        bytes: Vec::new(),
        pause,
        paused_at: 0,
    };
    write_base(view, header, out).unwrap().bytes
}

/// Random traffic of three writers, with rollbacks, VACUUM and checkpoints of their own, while base after base is read at different speeds.
#[test]
fn slow_bases_equal_the_database_at_their_txid() {
    let mut s = Sidecar::new();
    python(
        &s.db,
        "c=conn(); c.execute('begin'); c.executemany('insert into t(a) values(?)',((os.urandom(900),) for _ in range(12000))); c.execute('commit')",
    );
    s.begin();
    let apps: Vec<_> = (0..3).map(|i| traffic(&s.db, 40 + i, 14.0)).collect();
    let (mut bases, mut kept, mut sealed) = (0, 0, 0);
    for pause_ms in [1, 40, 5, 90, 20, 60, 2, 30] {
        // Where the WAL changed under the look, the caller asks again: so does the daemon.
        let mut tries = 0;
        let (view, now) = loop {
            s.capture();
            let now = s.now();
            let capture = s.capture.as_mut().unwrap();
            match capture.view(&s.spool, now) {
                Ok((view, _)) => break (view, now),
                Err(CaptureError::NoView(_)) if tries < 20 => tries += 1,
                Err(error) => panic!("{error}"),
            }
        };
        let capture = s.capture.as_mut().unwrap();
        let header = capture.base_header(now);
        let done = Arc::new(AtomicBool::new(false));
        let (reader_view, reader_done) = (Arc::clone(&view), Arc::clone(&done));
        let reader = std::thread::spawn(move || {
            let bytes = base_of(&reader_view, &header, Duration::from_millis(pause_ms));
            reader_done.store(true, Ordering::Relaxed);
            bytes
        });
        let mut round = 0;
        while !done.load(Ordering::Relaxed) {
            s.capture();
            s.leave_lock_zero();
            round += 1;
            if s.checkpoint(round % 5 == 0) == Some(Barrier::Sealed) {
                sealed += 1;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut image = Image::default();
        // Checks every page against the database checksum of that TXID.
        let header = image.apply(&reader.join().unwrap());
        assert!(header.post.is_some());
        kept += view.kept();
        bases += 1;
    }
    let total: u64 = apps.into_iter().map(commits).sum();
    println!("commits {total} bases {bases} pages kept aside {kept} sealed {sealed}");
    assert!(
        kept > 500 && sealed > 5 && total > 200,
        "the test exercised nothing: kept {kept} sealed {sealed} commits {total}"
    );
    s.assert_equal();
}

/// A store that takes for ever must not cost the app a growing WAL.
#[test]
fn the_wal_is_bounded_while_a_base_is_read() {
    let mut s = Sidecar::new();
    s.begin();
    let now = s.now();
    let capture = s.capture.as_mut().unwrap();
    let (view, _) = capture.view(&s.spool, now).unwrap();
    let header = capture.base_header(now);
    let mut largest = 0;
    for _ in 0..20 {
        // Each round rewrites 1,000 rows: about 600 pages, so twenty rounds are 50 MB of frames.
        python(
            &s.db,
            "c=conn(); c.execute('pragma wal_autocheckpoint=0')
for i in range(10): c.execute('update t set a=? where id%3=?',(os.urandom(500),i%3))
os._exit(0)",
        );
        s.capture();
        s.leave_lock_zero();
        s.checkpoint(false);
        largest = largest.max(s.capture.as_ref().unwrap().guard().wal_bytes());
    }
    assert!(largest < 16 << 20, "the WAL grew to {largest} bytes");
    let mut image = Image::default();
    image.apply(&base_of(&view, &header, Duration::ZERO));
    assert!(view.kept() > 300, "kept {}", view.kept());
    s.assert_equal();
}

/// A view that nothing protects any more gives an error, never other pages.
#[test]
fn a_view_ends_with_its_capture() {
    let mut s = Sidecar::new();
    s.begin();
    let now = s.now();
    let capture = s.capture.as_mut().unwrap();
    let (view, _) = capture.view(&s.spool, now).unwrap();
    let header = capture.base_header(now);
    s.stop();
    let lost = write_base(&view, &header, Vec::new());
    assert!(matches!(lost, Err(CaptureError::ViewLost(_))), "{lost:?}");
    drop(view);

    s.start();
    let now = s.now();
    let capture = s.capture.as_mut().unwrap();
    let (view, _) = capture.view(&s.spool, now).unwrap();
    let header = capture.base_header(now);
    s.gap();
    let lost = write_base(&view, &header, Vec::new());
    assert!(matches!(lost, Err(CaptureError::ViewLost(_))), "{lost:?}");
    s.assert_equal();
}
