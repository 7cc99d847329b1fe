//! Several that make one repository at the same time.

use std::time::Duration;

use lifeboat::files::{self, Goal};
use lifeboat::store::testing::{Call, Fault};
use lifeboat::store::{Kind, Store};

use crate::lab::Lab;
use crate::site::cheap_key;

/// The first backup of a daemon beside that of a deploy's hook: each writes a key before it sees the other's.
#[test]
fn two_that_make_a_repository_at_once_make_one() {
    let lab = Lab::new("");
    lab.write("f", b"content");
    let (client, faults) = lifeboat::store::testing::Faulty::wrap(lab.memory.clone());
    let mut other = lab.target.clone();
    other.store = Store::from_object_store(Kind::Memory, client, "".into());
    let pause = Fault::Delay(Duration::from_millis(1500));
    for faults in [&lab.faults, &faults] {
        faults.inject(Some(Call::Put), 0, 1, pause.clone());
    }
    std::thread::scope(|scope| {
        let one = scope.spawn(|| lab.backup().unwrap());
        let two = scope.spawn(|| files::backup(&other, None, drop).unwrap());
        let made = [one, two].map(|run| run.join().unwrap().created);
        assert_eq!(made.iter().filter(|made| **made).count(), 1);
    });
    assert_eq!(files::list(&lab.target).unwrap().len(), 2);
    lab.backup().unwrap();
    assert_eq!(lab.objects("keys/").len(), 1, "the other one is of no use");
    files::verify(&lab.target).unwrap();
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
    lab.referee();
}

/// Both wrote a key and both gave way; the one that then makes it takes the first of the two, and that may be the other's.
#[test]
fn a_repository_made_with_the_others_key_keeps_no_second_one() {
    let lab = Lab::new("");
    lab.write("f", b"content");
    let pause = Fault::Delay(Duration::from_millis(500));
    lab.faults.inject(Some(Call::Put), 0, 1, pause);
    let (other, key, _) = std::iter::repeat_with(|| cheap_key("secret"))
        .find(|(name, ..)| name.starts_with("keys/00"))
        .unwrap();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| lab.backup().unwrap());
        while !lab
            .faults
            .calls()
            .iter()
            .any(|(call, _)| *call == Call::Put)
        {
            assert!(!run.is_finished());
            std::thread::sleep(Duration::from_millis(1));
        }
        lab.put(&other, Some(&key));
        assert!(run.join().unwrap().created);
    });
    assert_eq!(lab.objects("keys/"), [other]);
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
    files::verify(&lab.target).unwrap();
    lab.referee();
}

/// As such a pair once left it: a key of the same password, with which nothing was ever encrypted.
#[test]
fn a_key_of_no_use_keeps_nobody_out() {
    let lab = Lab::quick("");
    lab.write("f", b"content");
    lab.backup().unwrap();
    let good = lab.objects("keys/");
    // One before the good one, by name, and one after it.
    for before in [true, false] {
        let mut others = std::iter::repeat_with(|| cheap_key("secret"));
        let (name, key, _) = others
            .find(|(name, ..)| (*name < good[0]) == before)
            .unwrap();
        lab.put(&name, Some(&key));
    }
    assert_eq!(lab.objects("keys/")[1], good[0]);
    assert_eq!(files::list(&lab.target).unwrap().len(), 1);
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
    lab.backup().unwrap();
    assert_eq!(
        lab.objects("keys/")[0],
        good[0],
        "the one before it is gone"
    );
    files::verify(&lab.target).unwrap();
}
