//! `bin/lifeboat-restore` where the app does not do what it should: before, and after.
#![allow(missing_docs)]

mod common;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::kamal::{Project, repo, text};

fn restored(project: &Project, args: &[&str]) -> String {
    let out = project.restore(args);
    let said = text(&out);
    assert!(out.status.success(), "{said}");
    said
}

/// Code 1, and not one word of success.
fn fails(project: &Project, args: &[&str]) -> String {
    let out = project.restore(args);
    let said = text(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(!said.contains("lifeboat-restore: ok"), "{said}");
    said
}

fn is_running(project: &Project) -> bool {
    project.path("stub/running").exists()
}

/// Kamal prunes old containers, and calls it a success when there is none to start.
#[test]
fn a_version_that_cannot_be_started_is_known_before_anything_is_stopped() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    project.insert("web1", "later");
    let said = fails(
        &project,
        &[
            "--yes",
            "production",
            "--label",
            "before-v42",
            "--start",
            "v4",
        ],
    );
    assert!(
        said.contains("no container of version v4") && said.contains("nothing was changed"),
        "{said}"
    );
    assert_eq!(project.read("running"), "v42");
    assert_eq!(project.rows("web1"), "first,later");
    assert!(!project.read("calls").contains("app stop"));
}

#[test]
fn an_app_that_did_not_start_is_not_called_running() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    project.insert("web1", "later");
    // Its container goes while the databases are restored.
    let restore = std::fs::read_to_string(repo("bin/lifeboat-restore")).unwrap();
    let begins = "say \"starting version";
    assert_eq!(restore.matches(begins).count(), 1);
    let gone = restore.replace(begins, &format!(": >\"$STUB/containers\"\n{begins}"));
    let script = project.path("lifeboat-restore");
    std::fs::write(&script, gone).unwrap();
    let out = project
        .command(Path::new("/bin/sh"))
        .arg(&script)
        .args(["--yes", "production", "--label", "before-v42"])
        .output()
        .unwrap();
    let said = text(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("the databases are restored, but version v42 does not run")
            && !said.contains("lifeboat-restore: ok"),
        "{said}"
    );
    assert_eq!(project.rows("web1"), "first");
    assert!(!project.path("stub/lock").exists());
}

/// Whoever presses Ctrl-C at 3 a.m. is told what state the app and the data are in.
#[test]
fn a_signal_says_what_is_stopped_and_what_is_restored() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    project.insert("web1", "later");
    let interrupted = |at: &str, signal: &str| {
        let log = project.path("said");
        std::fs::write(project.path("stub/pause"), at).unwrap();
        let mut restore = project
            .command(&repo("bin/lifeboat-restore"))
            .args(["--yes", "production", "--label", "before-v42"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while !project.path("stub/paused").exists() {
            assert!(Instant::now() < until, "it never came to: {at}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let sent = Command::new("kill")
            .args([signal, &restore.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        std::fs::remove_file(project.path("stub/pause")).unwrap();
        std::fs::remove_file(project.path("stub/paused")).unwrap();
        let code = restore.wait().unwrap().code();
        let said = std::fs::read_to_string(&log).unwrap();
        assert_eq!(code, Some(130), "{at}: {said}");
        said
    };
    let said = interrupted("app version", "-TERM");
    assert!(
        said.contains("nothing was changed, the app was not stopped"),
        "{said}"
    );
    assert!(is_running(&project));
    let said = interrupted("--in-place --dry-run", "-INT");
    assert!(said.contains("the app was not stopped"), "{said}");

    let said = interrupted("app stop", "-HUP");
    let start = "app start --version v42";
    assert!(
        said.contains("the app is stopped, nothing was restored") && said.contains(start),
        "{said}"
    );
    assert!(!is_running(&project) && !project.path("stub/lock").exists());
    assert_eq!(project.rows("web1"), "first,later");

    project.kamal(&["app", "start", "--version", "v42"]);
    let said = interrupted("--in-place", "-TERM");
    assert!(
        said.contains("The restore may go on in the sidecar") && said.contains(start),
        "{said}"
    );
    assert!(said.contains("the deploy lock is kept"), "{said}");
    assert!(!is_running(&project) && project.path("stub/lock").exists());
    assert_eq!(project.rows("web1"), "first");

    project.kamal(&["lock", "release"]);
    project.kamal(&["app", "start", "--version", "v42"]);
    let said = interrupted(start, "-TERM");
    assert!(said.contains("the databases are restored"), "{said}");
    assert!(is_running(&project) && !project.path("stub/lock").exists());
}

/// An empty time is a variable that was not set: the newest point still has the mistake in it.
#[test]
fn what_would_mean_something_else_is_refused() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    for args in [
        &["--yes", "production", "--at", ""][..],
        &["--yes", "production", "--at="],
        &["--yes", "production", "--at"],
    ] {
        let out = project.restore(args);
        let said = text(&out);
        assert_eq!(out.status.code(), Some(2), "{said}");
        assert!(said.contains("--at needs a time"), "{said}");
    }
    // Words that make Lifeboat do something else than restore.
    let said = fails(&project, &["--yes", "production", "-V"]);
    assert!(said.contains("the app was not stopped"), "{said}");
    let said = text(&project.restore(&["-h"]));
    assert!(said.contains("notes the version that runs"), "{said}");
    assert!(is_running(&project));
    assert!(!project.read("calls").contains("app stop"));
}

/// Two servers whose app is stopped: lines of Kamal's log are no version.
#[test]
fn kamals_log_is_no_version_of_the_app() {
    let project = Project::empty(&["web1", "two2"]);
    project.app("web1");
    project.app("two2");
    project.deploys(&["deploy", "--version", "v42"]);
    project.kamal(&["app", "stop"]);
    let said = fails(&project, &["--yes", "production", "--label", "before-v42"]);
    assert!(said.contains("no version of the app runs"), "{said}");
}

/// Somebody stopped the app in fear, or it was left stopped by a restore that failed.
#[test]
fn an_app_that_is_stopped_already() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    project.insert("web1", "a mistake");
    project.kamal(&["app", "stop"]);
    let said = fails(&project, &["--yes", "production", "--label", "before-v42"]);
    assert!(
        said.contains("no version of the app runs; nothing was changed")
            && said.contains("--start"),
        "{said}"
    );
    // What cannot be restored leaves it as it was.
    std::fs::write(project.host("web1", "fails"), "--in-place").unwrap();
    let args = [
        "--yes",
        "production",
        "--label",
        "before-v42",
        "--start",
        "v42",
    ];
    let said = fails(&project, &args);
    assert!(said.contains("the app stays stopped, as it was"), "{said}");
    assert!(!is_running(&project));
    assert_eq!(project.rows("web1"), "first,a mistake");
    std::fs::remove_file(project.host("web1", "fails")).unwrap();
    restored(&project, &args);
    assert_eq!(project.read("running"), "v42");
    assert_eq!(project.rows("web1"), "first");
}

/// Looking at the plan, stopping the app: all of it takes time, and "so long ago" moves on to after the mistake.
#[test]
fn a_moment_stays_the_moment_that_was_looked_at() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    let sync = || {
        let out = project.lifeboat("web1", &["sync"]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
    };
    sync();
    std::thread::sleep(Duration::from_millis(300));
    // After the rehearsal comes what is to be undone.
    let wrapper = format!(
        "#!/bin/sh\n{0} \"$@\"; code=$?\ncase \"$*\" in *--dry-run) python3 -c \"import sqlite3; sqlite3.connect('{1}', isolation_level=None).execute('insert into t values(1)')\"; {0} sync >/dev/null; sleep 0.3 ;; esac\nexit $code\n",
        env!("CARGO_BIN_EXE_lifeboat"),
        project.db("web1").display()
    );
    let bin = project.path("bin/lifeboat");
    std::fs::remove_file(&bin).unwrap();
    std::fs::write(&bin, wrapper).unwrap();
    std::fs::set_permissions(&bin, Permissions::from_mode(0o755)).unwrap();
    let said = restored(&project, &["--yes", "production", "--at", "100ms"]);
    assert!(said.contains("(100ms)"), "{said}");
    assert_eq!(project.rows("web1"), "first");
    let calls = project.read("calls");
    let restores = calls.lines().filter(|l| l.contains("restore 'production'"));
    let restores: Vec<&str> = restores.collect();
    assert!(
        restores[0].contains("--at '100ms'") && !restores[1].contains("100ms"),
        "{restores:?}"
    );
}

/// The words after a restore that broke off lead to its end.
#[test]
fn what_to_do_after_an_uncertain_end_works_as_it_is_printed() {
    let project = Project::new();
    project.write("destination", "staging");
    project.deploys(&["deploy", "--version", "v42", "-d", "staging"]);
    project.insert("web1", "later");
    let cut = project.host("web1", "cut");
    std::fs::write(&cut, "--in-place").unwrap();
    let said = fails(
        &project,
        &[
            "-d",
            "staging",
            "--yes",
            "production",
            "--label",
            "before-v42",
        ],
    );
    std::fs::remove_file(&cut).unwrap();
    assert!(!is_running(&project) && project.path("stub/lock").exists());
    std::fs::write(project.host("web1", "log"), "").unwrap();
    let mut ran = 0;
    for hint in said.lines().filter(|l| l.contains("hint: ")) {
        for command in hint.split('`').skip(1).step_by(2) {
            let mut shell = project.command(Path::new("/bin/sh"));
            let out = shell.args(["-c", command]).output().unwrap();
            assert!(out.status.success(), "{command}: {}", text(&out));
            assert!(!text(&out).contains("No accessory"), "{command}");
            ran += 1;
        }
    }
    assert_eq!(ran, 3, "{said}");
    assert_eq!(project.read("running"), "v42");
    assert_eq!(project.rows("web1"), "first");
    assert!(!project.path("stub/lock").exists());
}
