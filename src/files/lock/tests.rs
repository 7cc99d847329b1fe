use object_store::memory::InMemory;

use super::*;
use crate::files::backend::Asked;
use crate::store::testing::{Call, Fault, Faults, Faulty};
use crate::store::{Kind, Store};

const KEY: [u8; 64] = [7; 64];
const HOUR: Duration = Duration::from_secs(3600);

fn backend(runtime: &tokio::runtime::Runtime) -> (Backend, Faults) {
    let (client, faults) = Faulty::wrap(Arc::new(InMemory::new()));
    let store = Store::from_object_store(Kind::Memory, client, "".into());
    let runtime = runtime.handle().clone();
    (Backend::new(store, runtime, Duration::ZERO), faults)
}

fn lock(host: &str, hours: i64, exclusive: bool) -> LockFile {
    LockFile {
        time: Timestamp::now() + SignedDuration::from_hours(hours),
        exclusive,
        hostname: host.into(),
        username: "lifeboat".into(),
        pid: i64::from(std::process::id()),
        uid: 0,
        gid: 0,
    }
}

/// Hosts may share a name and the number of a namespace, as copies of one machine do; what was booted apart is apart.
#[test]
fn a_process_is_missed_only_on_the_very_host_where_it_was() {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let here = process_space();
    assert!(here.contains(boot.trim()), "{here}");
    let ended = LockFile {
        // Larger than any that the system gives.
        pid: 1 << 30,
        username: here.clone(),
        ..lock("same name", 0, true)
    };
    let me = lock("same name", 0, false);
    let me = |space: &str| LockFile {
        username: space.into(),
        ..me.clone()
    };
    assert!(ended.is_gone(&me(&here), "locks/a"));
    let there = here.replace(boot.trim(), "b05a4c4a-8d8b-4d5a-8e83-0e2a4f6c1c1d");
    assert!(!ended.is_gone(&me(&there), "locks/a"));
    // Of a system that does not tell.
    let unknown = LockFile {
        username: space_of(None, "pid:[1]"),
        ..ended
    };
    assert!(!unknown.is_gone(&me(&unknown.username), "locks/a"));
}

/// A clock that is set wrong, here or there, neither removes a lock that is held nor keeps one that is not.
#[test]
fn only_the_stores_clock_makes_a_lock_stale() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (backend, faults) = backend(&runtime);
    let theirs = write(&backend, &KEY, &lock("there", -2, true)).unwrap();
    for ours in [-2, 0, 2] {
        let me = lock("here", ours, false);
        let mine = write(&backend, &KEY, &me).unwrap();
        let refused = meet(&backend, &KEY, &me, Some(&mine)).map(drop);
        assert!(matches!(refused, Err(FilesError::Locked { .. })), "{ours}");
        runtime.block_on(backend.store().delete(&mine)).unwrap();
    }
    assert!(runtime.block_on(backend.store().get(&theirs)).is_ok());
    // An hour later, as the store counts; its holder renews none.
    let me = lock("here", -2, true);
    let mine = write(&backend, &KEY, &me).unwrap();
    faults.inject(Some(Call::List), 0, 1, Fault::Older(HOUR, theirs.clone()));
    meet(&backend, &KEY, &me, Some(&mine)).unwrap();
    assert!(runtime.block_on(backend.store().get(&theirs)).is_err());
    assert!(runtime.block_on(backend.store().get(&mine)).is_ok());
}
fn names(runtime: &tokio::runtime::Runtime, backend: &Backend) -> Vec<String> {
    let listed = runtime.block_on(backend.store().list("locks")).unwrap();
    listed.into_iter().map(|o| o.key).collect()
}

/// A process that was stopped, or whose host slept, wakes up and goes on where it was: others may have removed its lock meanwhile.
#[test]
fn nothing_is_done_under_a_lock_that_was_slept_through() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (backend, _faults) = backend(&runtime);
    let pace = Pace {
        renew: Duration::from_millis(50),
        good: Duration::from_millis(1000),
    };
    let lock = Lock::at_pace(&backend, runtime.handle(), KEY, Mode::Alone, pace).unwrap();
    let first = lock.name();
    let ask = || backend.ask(|| backend.store().list("data"));
    // Renewed in time, for as long as it takes.
    std::thread::sleep(Duration::from_millis(2000));
    ask().unwrap();
    assert_ne!(lock.name(), first);
    // Everything stands still, the renewal, too.
    let asleep = runtime.spawn(async { std::thread::sleep(Duration::from_millis(1500)) });
    runtime.block_on(asleep).unwrap();
    let slept = lock.name();
    std::thread::sleep(Duration::from_millis(300));
    let refused = ask().unwrap_err();
    assert!(matches!(refused, Asked::LockLost(_)), "{refused}");
    assert!(backend.is_over());
    assert_eq!(lock.name(), slept, "it is not brought back to life");
    drop(lock);
    assert!(names(&runtime, &backend).is_empty());
    assert!(ask().is_err(), "not afterwards either");
}

/// The renewal that is under way when the lock is let go of leaves none behind.
#[test]
fn a_renewal_under_way_leaves_nothing_behind() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (backend, faults) = backend(&runtime);
    let pace = Pace {
        renew: Duration::from_millis(50),
        ..PACE
    };
    faults.inject(
        Some(Call::Put),
        1,
        1,
        Fault::Delay(Duration::from_millis(700)),
    );
    let lock = Lock::at_pace(&backend, runtime.handle(), KEY, Mode::Alone, pace).unwrap();
    let begun = std::time::Instant::now();
    let puts = || faults.calls().iter().filter(|c| c.0 == Call::Put).count();
    while puts() < 2 {
        assert!(begun.elapsed() < HOUR / 60, "no renewal");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(lock);
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(names(&runtime, &backend), Vec::<String>::new());
}

#[test]
fn what_restic_has_not_finished_writing_is_no_lock() {
    let id = "a".repeat(64);
    assert!(is_lock(&format!("locks/{id}")));
    for name in [
        format!("locks/{id}-tmp-116241621"),
        format!("locks/{id}#1"),
        "locks/note".into(),
        id,
    ] {
        assert!(!is_lock(&name), "{name}");
    }
}
