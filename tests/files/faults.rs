//! A store that fails, and a repository that somebody damaged by hand.

use lifeboat::files::{self, FilesError, Goal};
use lifeboat::store::testing::{Call, Fault};

use crate::lab::Lab;
use crate::site::noise;

fn fill(lab: &Lab, round: u64) {
    for n in 0..4 {
        lab.write(&format!("d{n}/f"), &noise(round * 10 + n, 300_000));
    }
    lab.write("same", &noise(round, 10_000));
}

#[test]
fn a_store_that_refuses_in_the_middle_costs_this_run_alone() {
    let lab = Lab::new("");
    fill(&lab, 1);
    lab.backup().unwrap();
    let first = lab.picture();
    fill(&lab, 2);
    // The lock goes through.
    lab.faults
        .inject(Some(Call::Put), 1, u64::MAX, Fault::Denied);
    let error = lab.backup().unwrap_err();
    assert!(matches!(error, FilesError::Store(_)), "{error}");
    lab.faults.clear();
    assert_eq!(files::list(&lab.target).unwrap().len(), 1);
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), first);
    lab.backup().unwrap();
    files::verify(&lab.target).unwrap();
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
}

#[test]
fn a_repository_without_its_config_is_not_made_anew() {
    let lab = Lab::new("");
    fill(&lab, 1);
    lab.backup().unwrap();
    let config = lab.get("config");
    lab.put("config", None);
    let error = lab.backup().unwrap_err();
    assert!(matches!(error, FilesError::Damaged { .. }), "{error}");
    assert_eq!(lab.objects("keys/").len(), 1);
    lab.put("config", Some(&config));
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), lab.picture());
    // Killed between key and config: the key is used.
    let fresh = Lab::new("");
    fill(&fresh, 1);
    fresh.put(
        &lab.objects("keys/")[0],
        Some(&lab.get(&lab.objects("keys/")[0])),
    );
    fresh.backup().unwrap();
    assert_eq!(fresh.objects("keys/").len(), 1);
    assert_eq!(fresh.restored(&Goal::Newest).unwrap(), fresh.picture());
}

#[test]
fn one_damaged_snapshot_hides_no_other() {
    let lab = Lab::new("");
    fill(&lab, 1);
    lab.backup().unwrap();
    let (first, wanted) = (lab.objects("snapshots/"), lab.picture());
    fill(&lab, 2);
    lab.backup().unwrap();
    let second = lab
        .objects("snapshots/")
        .into_iter()
        .find(|s| !first.contains(s))
        .unwrap();
    let good = lab.get(&second);
    lab.put(&second, Some(b"junk"));
    assert_eq!(files::list(&lab.target).unwrap().len(), 1);
    assert_eq!(lab.restored(&Goal::Newest).unwrap(), wanted);
    for error in [
        files::verify(&lab.target).map(drop).unwrap_err(),
        files::prune(&lab.target, &jiff::tz::TimeZone::UTC, false)
            .map(drop)
            .unwrap_err(),
    ] {
        assert_eq!(error.exit_code(), 5, "{error}");
        assert!(
            error.to_string().contains("1 snapshots cannot be read"),
            "{error}"
        );
    }
    let scratch = tempfile::tempdir().unwrap();
    let drill = || files::drill(&lab.target, scratch.path());
    assert_eq!(drill().map(drop).unwrap_err().exit_code(), 5, "a drill");
    // What cannot be read may be what is wanted: that there is nothing to restore is not known.
    let goal = Goal::Label("before-v1".into());
    assert_eq!(lab.restored(&goal).unwrap_err().exit_code(), 5);
    let whole = lab.get(&first[0]);
    lab.put(&first[0], Some(b"junk"));
    for error in [
        lab.restored(&Goal::Newest).map(drop).unwrap_err(),
        files::locate(&lab.target, &Goal::Newest)
            .map(drop)
            .unwrap_err(),
        drill().map(drop).unwrap_err(),
    ] {
        assert_eq!(error.exit_code(), 5, "{error}");
        assert!(
            error.to_string().contains("2 snapshots cannot be read"),
            "{error}"
        );
    }
    lab.put(&first[0], Some(&whole));
    lab.put(&second, Some(&good));
    files::verify(&lab.target).unwrap();
    drill().unwrap();
    assert_eq!(lab.restored(&goal).unwrap_err().exit_code(), 3);
}
