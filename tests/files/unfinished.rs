//! What an unfinished run uploaded is used by the next one, and nothing of anybody else's is touched by that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::tz::TimeZone;
use lifeboat::files::{self, Backend, FilesError, Goal};
use lifeboat::store::testing::{Call, Fault};

use crate::lab::Lab;
use crate::site::{noise, wait_for};

fn fill(lab: &Lab, from: u64) {
    for n in from..from + 4 {
        lab.write(&format!("d{n}/f"), &noise(n, 300_000));
    }
}

/// Objects that one store has and another has not.
fn more(lab: &Lab, than: &Lab, below: &str) -> Vec<String> {
    let known = than.objects(below);
    let mut all = lab.objects(below);
    all.retain(|name| !known.contains(name));
    all
}

fn copy(names: &[String], from: &Lab, to: &Lab) {
    for name in names {
        to.put(name, Some(&from.get(name)));
    }
}

/// An empty repository with packs that nobody listed, as a killed first run leaves it; and how many bytes they hold.
fn left_behind() -> (Lab, usize) {
    let lab = Lab::quick("");
    files::create(&lab.target).unwrap();
    fill(&lab, 0);
    let killed = lab.fork();
    killed.backup().unwrap();
    let packs = more(&killed, &lab, "data/");
    copy(&packs, &killed, &lab);
    let bytes = packs.iter().map(|name| lab.get(name).len()).sum();
    (lab, bytes)
}

#[test]
fn what_a_killed_run_uploaded_is_used() {
    let (lab, bytes) = left_behind();
    let done = lab.backup().unwrap();
    assert!(done.resumed);
    let uploaded = usize::try_from(done.uploaded).unwrap();
    assert!(uploaded < bytes / 10, "{uploaded} of {bytes} again");
    files::verify(&lab.target).unwrap();
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
    lab.referee();
}

/// Another run writes packs and their index between the moment when the packs are listed and the one when the index is read.
#[test]
fn an_index_that_another_run_writes_meanwhile_stays_as_it_is() {
    let (lab, _) = left_behind();
    let other = lab.fork();
    fill(&other, 10);
    other.backup().unwrap();
    let wanted = other.picture();
    std::fs::remove_dir_all(lab.dir.path().join("data/d10")).unwrap();
    let [packs, index, snapshot] =
        ["data/", "index/", "snapshots/"].map(|below| more(&other, &lab, below));
    let lists = |of: &str| {
        let calls = lab.faults.calls();
        calls
            .iter()
            .filter(|c| c.0 == Call::List && c.1.starts_with(of))
            .count()
    };
    // The second look at the index is held up for as long as it takes to write them.
    let before = {
        let dry = lab.fork();
        dry.backup().unwrap();
        let calls = dry.faults.calls().into_iter();
        let mut lists = calls.filter(|c| c.0 == Call::List).enumerate();
        lists
            .by_ref()
            .filter(|(_, c)| c.1 == "index")
            .nth(1)
            .unwrap()
            .0
    };
    let pause = Fault::Delay(Duration::from_secs(2));
    lab.faults.inject(Some(Call::List), before as u64, 1, pause);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| lab.backup().unwrap());
        wait_for("second look at the index", || lists("index") > 1);
        copy(&packs, &other, &lab);
        copy(&index, &other, &lab);
        copy(&snapshot, &other, &lab);
        run.join().unwrap();
    });
    for name in &index {
        assert!(lab.objects("index/").contains(name), "{name} was removed");
    }
    let id = snapshot[0].rsplit('/').next().unwrap().to_owned();
    assert_eq!(lab.restored(&Goal::Id(id)).unwrap(), wanted);
    files::verify(&lab.target).unwrap();
    lab.referee();
}

/// A run that is told to end takes its lock away; the next one finds what it uploaded all the same.
#[test]
fn a_run_that_ended_in_order_is_gone_on_with() {
    let lab = Lab::quick("");
    lab.write("first", b"first");
    lab.backup().unwrap();
    for n in 0..12 {
        lab.write(&format!("big{n}"), &noise(n, 2_000_000));
    }
    let known = lab.objects("data/").len();
    let (send, receive) = std::sync::mpsc::channel::<Backend>();
    let stopped = std::thread::scope(|scope| {
        let lab = &lab;
        scope.spawn(move || {
            let backend = receive.recv().unwrap();
            wait_for("packs", || lab.objects("data/").len() > known + 2);
            backend.stop();
        });
        let begun = |backend| send.send(backend).unwrap();
        files::backup(&lab.target, None, begun)
    });
    // It may have been faster.
    let error = stopped.map(|done| done.uploaded).unwrap_err();
    assert!(matches!(error, FilesError::Stopped), "{error}");
    let next = lab.backup().unwrap();
    assert!(next.resumed);
    assert!(
        next.uploaded < 24_000_000 - 8_000_000,
        "{} bytes again",
        next.uploaded
    );
    assert!(!lab.backup().unwrap().resumed, "it is known by then");
    files::verify(&lab.target).unwrap();
    lab.referee();
}

#[test]
fn a_pack_that_was_cut_is_not_used() {
    let (lab, _) = left_behind();
    let packs = lab.objects("data/");
    for (pack, bytes) in packs.iter().zip([0, 2]) {
        let cut = lab.get(pack)[..bytes].to_vec();
        lab.put(pack, Some(&cut));
    }
    lab.backup().unwrap();
    files::verify(&lab.target).unwrap();
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
}

fn locks(lab: &Lab) -> usize {
    let listed = lab.target.store.list("locks");
    lab.runtime.block_on(listed).unwrap().len()
}

/// Told to end at any moment: no lock that would keep everybody out, and nothing is lost.
#[test]
fn a_prune_that_is_told_to_end_leaves_no_lock() {
    let lab = Lab::quick(", retention: { point-in-time: 0s, daily: 1 }");
    for round in 0..2 {
        lab.write("changes", &noise(round, 300_000));
        fill(&lab, round);
        lab.backup().unwrap();
    }
    let wanted = lab.picture();
    let calls = {
        let dry = lab.fork();
        files::prune(&dry.target, &TimeZone::UTC, false).unwrap();
        dry.faults.calls().len()
    };
    let mut stopped = 0;
    for after in (1..calls).step_by(5) {
        let lab = lab.fork();
        let slow = Fault::Delay(Duration::from_millis(10));
        lab.faults.inject(None, 0, u64::MAX, slow);
        let ended = AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            let (lab, ended) = (&lab, &ended);
            let done = files::prune_until(&lab.target, &TimeZone::UTC, false, |backend| {
                scope.spawn(move || {
                    while lab.faults.calls().len() < after && !ended.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    backend.stop();
                });
            });
            ended.store(true, Ordering::Relaxed);
            done.map(drop)
        });
        stopped += u32::from(matches!(done, Err(FilesError::Stopped)));
        lab.faults.clear();
        assert_eq!(locks(&lab), 0, "after {after}: {done:?}");
        assert_eq!(lab.restored(&Goal::Newest).unwrap(), wanted);
        files::prune(&lab.target, &TimeZone::UTC, false).unwrap();
        files::verify(&lab.target).unwrap();
    }
    assert!(stopped > 5, "{stopped} of {calls}");
}
