//! Every request of a backup, a restore and a prune fails once, and for good from there on; and every answer is cut short.
//!
//! Whatever it was: the earlier snapshots are whole, the next run does its work, and stock restic finds nothing wrong.

use std::panic::{AssertUnwindSafe, catch_unwind};

use jiff::tz::TimeZone;
use lifeboat::files::{self, FilesError, Goal, Output};
use lifeboat::store::testing::Fault;

use crate::lab::Lab;
use crate::site::{noise, picture};

/// Of so many runs one is looked at by restic.
const REFEREE_EVERY: u64 = 9;

/// What happens to the request, and to how many after it.
const FAULTS: [(Fault, u64); 4] = [
    (Fault::Denied, 1),
    (Fault::Denied, u64::MAX),
    (Fault::LostAnswer, 1),
    (Fault::Truncate(20), 1),
];

fn fill(lab: &Lab, round: u64) {
    for n in 0..3 {
        lab.write(&format!("d{n}/f"), &noise(round * 10 + n, 200_000));
    }
    lab.write("same", &noise(1, 100_000));
}

/// Runs `work` with the first request hit, with the second, and so on, each time on a copy of `before`; then looks at what is left.
fn each_request(
    before: &Lab,
    work: impl Fn(&Lab) -> Result<(), FilesError>,
    after: impl Fn(&Lab, bool),
) -> u64 {
    let mut runs = 0;
    for (fault, times) in FAULTS {
        for nth in 0.. {
            let lab = before.fork();
            lab.faults.inject(None, nth, times, fault.clone());
            let done = catch_unwind(AssertUnwindSafe(|| work(&lab)));
            let calls = lab.faults.calls();
            lab.faults.clear();
            println!("{fault:?} {times} {nth}: {:?}", calls.get(nth as usize));
            let done = done.expect("no run may panic");
            if calls.len() as u64 <= nth {
                done.expect("nothing was hit");
                after(&lab, true);
                break;
            }
            if let Err(error) = &done {
                assert!(!error.to_string().is_empty());
            }
            after(&lab, done.is_ok());
            if runs % REFEREE_EVERY == 0 {
                lab.referee();
            }
            runs += 1;
        }
    }
    runs
}

/// All snapshots that there were, by id, are there and give what they gave.
fn whole(lab: &Lab, known: &[(String, Vec<String>)]) {
    for (id, wanted) in known {
        assert_eq!(&lab.restored(&Goal::Id(id.clone())).unwrap(), wanted);
    }
}

/// Two snapshots, and how each looks.
fn two(more: &str) -> (Lab, Vec<(String, Vec<String>)>) {
    let lab = Lab::quick(more);
    let mut known = Vec::new();
    for round in 1..3 {
        fill(&lab, round);
        known.push((lab.backup().unwrap().point.id, lab.picture()));
    }
    (lab, known)
}

#[test]
fn heavy_of_a_backup() {
    let (lab, known) = two("");
    fill(&lab, 3);
    let runs = each_request(
        &lab,
        |lab| lab.backup().map(drop),
        |lab, done| {
            let listed = files::list(&lab.target).unwrap();
            assert!(listed.len() == 2 + usize::from(done) || listed.len() == 3);
            whole(lab, &known[1..]);
            let next = lab.backup().unwrap();
            assert!(!next.point.partial);
            files::verify(&lab.target).unwrap();
            whole(lab, &known[..1]);
            assert_eq!(
                lab.restored(&Goal::Id(next.point.id)).unwrap(),
                lab.picture()
            );
        },
    );
    assert!(runs > 40, "{runs}");
}

#[test]
fn heavy_of_a_first_backup() {
    let lab = Lab::quick("");
    fill(&lab, 1);
    let runs = each_request(
        &lab,
        |lab| lab.backup().map(drop),
        |lab, _| {
            lab.backup().unwrap();
            files::verify(&lab.target).unwrap();
            assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
        },
    );
    assert!(runs > 40, "{runs}");
}

#[test]
fn heavy_of_a_prune() {
    let (lab, known) = two(", retention: { point-in-time: 0s, daily: 1 }");
    let prune = |lab: &Lab| files::prune(&lab.target, &TimeZone::UTC, false);
    let runs = each_request(
        &lab,
        |lab| prune(lab).map(drop),
        |lab, _| {
            whole(lab, &known[1..]);
            prune(lab).unwrap();
            let left = files::list(&lab.target).unwrap();
            assert_eq!(left.len(), 1, "the next run has forgotten the older one");
            files::verify(&lab.target).unwrap();
            lab.backup().unwrap();
            whole(lab, &known[1..]);
        },
    );
    assert!(runs > 40, "{runs}");
}

/// The run that really deletes: what was marked a day before.
#[test]
fn heavy_of_a_prune_a_day_later() {
    let (lab, known) = two(", retention: { point-in-time: 0s, daily: 1 }");
    let prune = |lab: &Lab| files::prune(&lab.target, &TimeZone::UTC, false);
    let marked = prune(&lab).unwrap();
    assert!(marked.marked_bytes > 0 && marked.deleted_bytes == 0);
    lab.marked_long_ago();
    let clean = lab.fork();
    assert!(prune(&clean).unwrap().deleted_bytes > 0);
    let left = clean.objects("data/");
    let gone: Vec<_> = lab
        .objects("data/")
        .into_iter()
        .filter(|p| !left.contains(p))
        .collect();
    let there = |lab: &Lab| lab.objects("data/").iter().any(|p| gone.contains(p));
    assert!(there(&lab) && !there(&clean));
    let runs = each_request(
        &lab,
        |lab| prune(lab).map(drop),
        |lab, _| {
            whole(lab, &known[1..]);
            prune(lab).unwrap();
            files::verify(&lab.target).unwrap();
            whole(lab, &known[1..]);
            if there(lab) {
                // The index let go of a pack that could not be deleted: the next run that changes the index marks it as any other.
                fill(lab, 4);
                lab.backup().unwrap();
                prune(lab).unwrap();
                lab.marked_long_ago();
                prune(lab).unwrap();
                files::verify(&lab.target).unwrap();
            }
            assert!(!there(lab));
        },
    );
    assert!(runs > 40, "{runs}");
}

#[test]
fn heavy_of_a_restore() {
    let (lab, known) = two("");
    let to = |lab: &Lab| lab.dir.path().join("back");
    let runs = each_request(
        &lab,
        |lab| {
            let output = Output::Folder(to(lab));
            files::restore(&lab.target, &Goal::Newest, None, &output, true).map(drop)
        },
        |lab, done| {
            // Only whole, or nothing.
            assert_eq!(to(lab).exists(), done);
            if done {
                assert_eq!(picture(&to(lab)), known[1].1);
                std::fs::remove_dir_all(to(lab)).unwrap();
            }
            whole(lab, &known[1..]);
        },
    );
    assert!(runs > 20, "{runs}");
}

#[test]
fn heavy_of_a_restore_in_place() {
    let (lab, known) = two("");
    fill(&lab, 3);
    let content = |lab: &Lab| {
        // The folder itself has another time by what came and went in it.
        let mut all = lab.picture().split_off(1);
        all.retain(|line| !line.contains(".lifeboat-"));
        all
    };
    let before = content(&lab);
    let runs = each_request(
        &lab,
        |lab| {
            let goal = Goal::Newest;
            files::restore(&lab.target, &goal, None, &Output::InPlace, false).map(drop)
        },
        |lab, done| {
            let config = &lab.target.config;
            if done {
                assert_eq!(content(lab), known[1].1[1..]);
                files::undo(config, &lab.target.left_out, None).unwrap();
            }
            assert_eq!(content(lab), before);
        },
    );
    assert!(runs > 20, "{runs}");
}
