//! The Kamal hooks and `bin/lifeboat-restore`, run by a stand-in for Kamal that behaves as Kamal does where it matters; "in the accessory"
//! runs the real binary on real databases.
#![allow(missing_docs)]

mod common;

use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::kamal::{Project, repo, text};
use common::python;

#[test]
fn a_deploy_is_labelled_before_and_after() {
    let project = Project::new();
    let _sidecar = project.sidecar("web1");
    project.insert("web1", "committed right before the deploy");
    let said = project.deploys(&["deploy", "--version", "v42"]);
    assert!(
        said.contains("lifeboat: ok snapshot label=before-v42 targets=1 durable"),
        "{said}"
    );
    assert!(
        said.contains("lifeboat: ok snapshot label=deployed-v42 targets=1 durable"),
        "{said}"
    );
    assert_eq!(project.labels("web1"), ["before-v42", "deployed-v42"]);
    assert_eq!(project.read("running"), "v42");
    project.insert("web1", "what v42 did");
    let copy = project.path("copy.sqlite3");
    let out = project
        .lifeboat(
            "web1",
            &[
                "restore",
                "production",
                "--label",
                "v42",
                "-o",
                copy.to_str().unwrap(),
            ],
        )
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let rows = python(
        &copy,
        "print(','.join(r[0] for r in conn().execute('select a from t')))",
    );
    assert_eq!(rows, "first,committed right before the deploy");
}

#[test]
fn redeploys_and_rollbacks_append_labels() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    project.deploys(&["redeploy", "--version", "v42"]);
    project.deploys(&["rollback", "--version", "v41"]);
    assert_eq!(
        project.labels("web1"),
        [
            "before-v42",
            "deployed-v42",
            "before-v42#2",
            "deployed-v42#2",
            "before-v41",
            "deployed-v41"
        ]
    );
}

#[test]
fn a_version_with_odd_characters_is_a_label() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "3f2a_uncommitted_$(touch x) ;'\""]);
    let labels = project.labels("web1");
    assert!(
        labels[0].starts_with("before-3f2a_uncommitted_--touch-x-"),
        "{labels:?}"
    );
    assert!(
        !project.host("web1", "x").exists(),
        "the shell read the version"
    );
}

#[test]
fn the_first_setup_has_no_sidecar_yet() {
    let project = Project::empty(&["web1"]);
    std::fs::write(project.host("web1", "down"), "").unwrap();
    project.write(
        "boot-accessories",
        &format!("#!/bin/sh\nrm {}\n", project.host("web1", "down").display()),
    );
    let boot = project.path("stub/boot-accessories");
    std::fs::set_permissions(&boot, std::fs::Permissions::from_mode(0o755)).unwrap();
    let boot = format!(
        "python3 -c \"import sqlite3; c=sqlite3.connect('{}'); c.execute('pragma journal_mode=wal'); c.execute('create table t(a)')\"",
        project.db("web1").display()
    );
    std::fs::write(project.host("web1", "boot"), boot).unwrap();
    let said = project.deploys(&["setup", "--version", "v1"]);
    assert!(
        said.contains("warning: the sidecar's configuration cannot be checked"),
        "{said}"
    );
    assert_eq!(project.labels("web1"), ["deployed-v1"]);
}

#[test]
fn without_the_sidecar_a_deploy_stops_and_a_rollback_goes_on() {
    let project = Project::new();
    project.write("running", "v41");
    std::fs::write(project.host("web1", "down"), "").unwrap();
    let said = project.is_stopped(&["deploy", "--version", "v42"]);
    assert!(
        said.contains("No such container") && said.contains("kamal accessory boot lifeboat"),
        "{said}"
    );
    let said = project.deploys(&["rollback", "--version", "v40"]);
    assert!(
        said.contains("a rollback goes on without a label"),
        "{said}"
    );
    assert!(
        said.contains("a rollback goes on with the volume as it is"),
        "{said}"
    );
    assert!(
        said.contains("could not be recorded as deployed-v40"),
        "{said}"
    );
}

#[test]
fn an_accessory_that_is_not_there_is_no_success() {
    let project = Project::new();
    project.write("accessory", "other");
    let said = project.is_stopped(&["deploy", "--version", "v42"]);
    assert!(said.contains("has no accessory \"lifeboat\""), "{said}");
    let project = project.with("LIFEBOAT_ACCESSORY", "other");
    project.deploys(&["deploy", "--version", "v42"]);
    // No host carries it: Kamal succeeds with nothing done.
    let project = Project::empty(&[]);
    std::fs::create_dir_all(project.path("stub/hosts")).unwrap();
    let said = project.is_stopped(&["deploy", "--version", "v42"]);
    assert!(said.contains("no server answered"), "{said}");
}

#[test]
fn the_destination_is_passed_on() {
    let project = Project::new();
    project.write("destination", "staging");
    project.deploys(&["deploy", "--version", "v42", "-d", "staging"]);
    assert_eq!(project.labels("web1"), ["before-v42", "deployed-v42"]);
    let said = project.is_stopped(&["deploy", "--version", "v42", "-d", "production"]);
    assert!(
        said.contains("no accessory \"lifeboat\" for production"),
        "{said}"
    );
}

#[test]
fn every_server_must_succeed() {
    let project = Project::empty(&["web1", "two2"]);
    project.app("web1");
    project.app("two2");
    let said = project.deploys(&["deploy", "--version", "v42"]);
    assert_eq!(
        said.matches("lifeboat: ok snapshot label=before-v42")
            .count(),
        2,
        "{said}"
    );
    // Two answer, three are wanted.
    let project = project.with("LIFEBOAT_HOSTS", "3");
    project.is_stopped(&["deploy", "--version", "v43"]);
    let project = project.with("LIFEBOAT_HOSTS", "2");
    project.deploys(&["deploy", "--version", "v43"]);
    // The store of one is gone.
    let env = std::fs::read_to_string(project.host("two2", "env")).unwrap();
    let broken = env.replace("file://", "s3://no-such-bucket?x=");
    std::fs::write(project.host("two2", "env"), broken).unwrap();
    let said = project.is_stopped(&["deploy", "--version", "v44"]);
    assert!(said.contains("on host two2"), "{said}");
}

/// What a server that failed would have said is not under a line of its own: only the exit code tells that it is missing.
#[test]
fn a_server_whose_configuration_cannot_be_checked_stops_the_deploy() {
    let project = Project::empty(&["web1", "two2"]);
    project.app("web1");
    project.app("two2");
    std::fs::write(project.host("two2", "fails"), "lifeboat config check'").unwrap();
    let said = project.is_stopped(&["deploy", "--version", "v42"]);
    assert!(
        said.contains("configuration cannot be checked") && said.contains("on host two2"),
        "{said}"
    );
    assert!(project.labels("web1").is_empty());
}

/// `kamal accessory boot` leaves a container alone that is there.
#[test]
fn a_sidecar_that_was_stopped_needs_more_than_a_boot() {
    let project = Project::new();
    std::fs::write(project.host("web1", "down"), "stopped").unwrap();
    let said = project.is_stopped(&["deploy", "--version", "v42"]);
    assert!(
        said.contains("kamal accessory reboot lifeboat") && !said.contains("accessory boot"),
        "{said}"
    );
}

/// A hint that is copied must not deploy somewhere else.
#[test]
fn hints_name_the_destination() {
    let project = Project::new();
    project.write("destination", "staging");
    std::fs::write(project.host("web1", "down"), "").unwrap();
    let said = project.is_stopped(&["deploy", "--version", "v42", "-d", "staging"]);
    for command in [
        "kamal accessory boot lifeboat -d staging",
        "LIFEBOAT_SKIP='why' kamal deploy -d staging",
    ] {
        assert!(said.contains(command), "{command} in {said}");
    }
}

/// A deploy of a finished image, for example in CI: Kamal asks git for a version that nobody needs.
#[test]
fn a_project_without_git_is_deployed() {
    let project = Project::new();
    project.write("no-git", "");
    project.deploys(&["deploy", "--version", "v42"]);
    assert_eq!(project.labels("web1"), ["before-v42", "deployed-v42"]);
    let out = project.restore(&["--yes", "production", "--label", "before-v42"]);
    assert!(out.status.success(), "{}", text(&out));
}

#[test]
fn a_deploy_waits_only_so_long() {
    let project = Project::new().with("LIFEBOAT_WAIT", "1");
    std::fs::write(project.host("web1", "slow"), "100").unwrap();
    let hook = project.path("project/.kamal/hooks/pre-deploy");
    let patched = std::fs::read_to_string(&hook)
        .unwrap()
        .replace("in_sidecar 60 ", "in_sidecar 1 ");
    std::fs::write(&hook, patched).unwrap();
    let said = project.is_stopped(&["deploy", "--version", "v42"]);
    assert!(said.contains("no answer within 1 seconds"), "{said}");
}

/// A Kamal that does not listen to a polite end.
#[test]
fn a_kamal_that_hangs_is_ended() {
    let project = Project::new().with("LIFEBOAT_WAIT", "1");
    let deaf = project.path("deaf-kamal");
    std::fs::write(
        &deaf,
        "#!/bin/sh\ntrap '' TERM INT\nwhile :; do sleep 1; done\n",
    )
    .unwrap();
    std::fs::set_permissions(&deaf, std::fs::Permissions::from_mode(0o755)).unwrap();
    let hook = project.path("project/.kamal/hooks/pre-deploy");
    let patched = std::fs::read_to_string(&hook).unwrap();
    std::fs::write(&hook, patched.replace("in_sidecar 60 ", "in_sidecar 1 ")).unwrap();
    let project = project.with("KAMAL", deaf.to_str().unwrap());
    let out = project
        .command(&hook)
        .env("KAMAL_VERSION", "v42")
        .output()
        .unwrap();
    let said = text(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("no answer within 1 seconds"), "{said}");
}

/// What would stop a deploy is a warning there, and the label is tried all the same.
#[test]
fn nothing_holds_up_a_rollback() {
    let project = Project::new().with("LIFEBOAT_MIN_FREE_MB", "999999999");
    let said = project.deploys(&["rollback", "v41"]);
    assert!(
        said.contains("not enough room under volume") && said.contains("a rollback goes on"),
        "{said}"
    );
    assert_eq!(project.labels("web1")[0], "before-v41");
    let project = project
        .with("LIFEBOAT_WAIT", "010")
        .with("LIFEBOAT_SECRETS", "NOT_THERE");
    let said = project.deploys(&["rollback", "v40"]);
    assert!(
        said.contains("no whole number: LIFEBOAT_WAIT=010")
            && said.contains("the secret NOT_THERE has no value"),
        "{said}"
    );
    assert!(project.labels("web1").contains(&"before-v40".to_owned()));
    let project = project.with("TMPDIR", "/no/such/folder");
    let said = project.deploys(&["rollback", "v39"]);
    assert!(said.contains("no temporary file can be made"), "{said}");
    assert!(!project.labels("web1").contains(&"before-v39".to_owned()));
}

#[test]
fn a_setting_that_is_no_number_is_said() {
    let project = Project::new().with("LIFEBOAT_WAIT", "10m");
    let said = project.is_stopped(&["deploy", "--version", "v42"]);
    assert!(
        said.contains("no whole number: LIFEBOAT_WAIT=10m") && said.contains("in seconds"),
        "{said}"
    );
    assert!(project.labels("web1").is_empty());
}

#[test]
fn the_override_says_so() {
    let project = Project::new().with("LIFEBOAT_SKIP", "the store is down and this is the fix");
    project.write("accessory", "other");
    let said = project.deploys(&["deploy", "--version", "v42"]);
    assert_eq!(
        said.matches("SKIPPED because LIFEBOAT_SKIP is set: the store is down")
            .count(),
        3,
        "{said}"
    );
}

#[test]
fn a_full_disk_stops_the_deploy() {
    let project = Project::new().with("LIFEBOAT_MIN_FREE_MB", "999999999");
    let said = project.is_stopped(&["deploy", "--version", "v42"]);
    assert!(
        said.contains("not enough room under volume: web1 has "),
        "{said}"
    );
    assert!(project.labels("web1").is_empty());
}

#[test]
fn missing_secrets_stop_the_deploy_and_are_not_shown() {
    let project = Project::new().with(
        "LIFEBOAT_SECRETS",
        "LIFEBOAT_ACCESS_KEY_ID LIFEBOAT_SECRET_ACCESS_KEY",
    );
    project.write(
        "secrets",
        "LIFEBOAT_ACCESS_KEY_ID=hush\nLIFEBOAT_SECRET_ACCESS_KEY=\n",
    );
    let said = project.is_stopped(&["deploy", "--version", "v42"]);
    assert!(
        said.contains("LIFEBOAT_SECRET_ACCESS_KEY has no value") && !said.contains("hush"),
        "{said}"
    );
    project.write(
        "secrets",
        "LIFEBOAT_ACCESS_KEY_ID=hush\nLIFEBOAT_SECRET_ACCESS_KEY=hush\n",
    );
    project.deploys(&["deploy", "--version", "v42"]);
    // An empty credential in the sidecar.
    let env = std::fs::read_to_string(project.host("web1", "env")).unwrap();
    let env = env.replace("file://", "s3://bucket") + "LIFEBOAT_ACCESS_KEY_ID=\n";
    std::fs::write(project.host("web1", "env"), env).unwrap();
    let said = project.is_stopped(&["deploy", "--version", "v43"]);
    assert!(said.contains("configuration cannot be checked"), "{said}");
}

#[test]
fn a_new_server_gets_its_data_before_the_app_starts() {
    let project = Project::new();
    {
        let _sidecar = project.sidecar("web1");
        project.deploys(&["deploy", "--version", "v42"]);
        project.insert("web1", "last");
        project.deploys(&["deploy", "--version", "v43"]);
    }
    // The server is lost; another one, with an empty volume, takes its place.
    std::fs::rename(project.host("web1", ""), project.path("lost")).unwrap();
    project.server_called("web1", "web2");
    let _sidecar = project.sidecar("web1");
    let boot = format!(
        "python3 -c \"import sqlite3; c=sqlite3.connect('{}'); c.execute('pragma journal_mode=wal'); c.execute('create table if not exists t(a)')\"",
        project.db("web1").display()
    );
    std::fs::write(project.host("web1", "boot"), boot).unwrap();
    let said = project.deploys(&["setup", "--version", "v43"]);
    assert!(
        said.contains("production.sqlite3 is the database at"),
        "{said}"
    );
    assert_eq!(project.rows("web1"), "first,last");
    assert!(said.contains("lifeboat claim"), "{said}");
    // The replica is still the lost server's until a person says so.
    let out = project
        .lifeboat("web1", &["claim", "production"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out));
    project.insert("web1", "from the new server");
    let begun = Instant::now();
    while !project
        .kamal(&["deploy", "--version", "v44"])
        .status
        .success()
    {
        let said = project.read("hook-output");
        assert!(begun.elapsed() < Duration::from_secs(60), "{said}");
    }
    let labels = project.labels("web1");
    assert_eq!(
        labels.last().map(String::as_str),
        Some("deployed-v44"),
        "{labels:?}"
    );
}

/// A rollback on a server that lost its disk waits for its data as a deploy does.
#[test]
fn a_rollback_never_starts_the_app_without_its_data() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    std::fs::rename(project.host("web1", ""), project.path("lost")).unwrap();
    project.server_called("web1", "web2");
    let said = project.deploys(&["rollback", "v41"]);
    assert!(
        said.contains("a rollback goes on without a label"),
        "{said}"
    );
    assert_eq!(project.rows("web1"), "first");
    // What cannot be restored stops it, too.
    std::fs::rename(project.host("web1", ""), project.path("again")).unwrap();
    project.server_called("web1", "web2");
    std::fs::write(project.host("web1", "fails"), "--if-replica-exists").unwrap();
    let said = project.is_stopped(&["rollback", "v41"]);
    assert!(
        said.contains("it is not certain that every database is on its volume"),
        "{said}"
    );
}

#[test]
fn data_in_the_store_but_not_on_the_volume_stops_the_app() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    std::fs::rename(project.host("web1", ""), project.path("lost")).unwrap();
    project.server_called("web1", "web2");
    // A restore that says it is done, on a volume that keeps nothing.
    let real = env!("CARGO_BIN_EXE_lifeboat");
    let volume = project.host("web1", "volume");
    let wrapper = format!(
        "#!/bin/sh\n{real} \"$@\"; code=$?\ncase \"$*\" in *dry-run*) ;; *restore*) rm -rf {0}/* ;; esac\nexit $code\n",
        volume.display()
    );
    let bin = project.path("bin/lifeboat");
    std::fs::remove_file(&bin).unwrap();
    std::fs::write(&bin, wrapper).unwrap();
    std::fs::set_permissions(&bin, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = project.is_stopped(&["setup", "--version", "v43"]);
    assert!(
        said.contains("the store has databases that the volume has not"),
        "{said}"
    );
    // A store that cannot be read is no empty store.
    std::fs::remove_file(&bin).unwrap();
    symlink(real, &bin).unwrap();
    let owner = project.path("store-web/production/lifeboat/owner.json");
    std::fs::write(owner, "{").unwrap();
    let said = project.is_stopped(&["setup", "--version", "v43"]);
    assert!(said.contains("the app does not start"), "{said}");
}

#[test]
fn the_webhook_hears_of_it_and_its_failure_is_no_failure() {
    let project = Project::new().with("LIFEBOAT_WEBHOOK", "http://127.0.0.1:9/hush");
    let said = project.deploys(&["deploy", "--version", "v42"]);
    assert!(
        said.contains("warning: the webhook was not told") && !said.contains("hush"),
        "{said}"
    );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hush", listener.local_addr().unwrap());
    let heard = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        let mut buf = [0; 4096];
        while !text.contains("\"}") {
            let n = stream.read(&mut buf).unwrap();
            assert!(n > 0, "{text}");
            text += &String::from_utf8_lossy(&buf[..n]);
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        text
    });
    let project = project.with("LIFEBOAT_WEBHOOK", &url);
    project.deploys(&["deploy", "--version", "v43"]);
    let heard = heard.join().unwrap();
    let body = heard.split("\r\n\r\n").nth(1).unwrap();
    let json: serde_json::Value = serde_json::from_str(body).unwrap();
    let message = json["text"].as_str().unwrap();
    assert_eq!(
        message,
        "me: deploy of app v43 is done; backed up as deployed-v43"
    );
}

#[test]
fn restore_from_the_laptop() {
    let project = Project::new();
    let _sidecar = project.sidecar("web1");
    project.deploys(&["deploy", "--version", "v42"]);
    project.insert("web1", "a mistake");
    let out = project.restore(&["--yes", "production", "--label", "before-v42"]);
    let said = text(&out);
    assert!(out.status.success(), "{said}");
    assert_eq!(project.rows("web1"), "first");
    assert_eq!(project.read("running"), "v42");
    let calls: Vec<String> = project
        .read("calls")
        .lines()
        .rev()
        .take(8)
        .map(str::to_owned)
        .collect();
    assert_eq!(
        calls,
        [
            "lock release",
            // Kamal's word that it started is not enough.
            "app version",
            "app start --version v42",
            "accessory exec lifeboat --reuse lifeboat restore 'production' '--label' 'before-v42' --in-place",
            "app stop",
            "lock acquire -m lifeboat-restore",
            "accessory exec lifeboat --reuse lifeboat restore 'production' '--label' 'before-v42' --in-place --dry-run",
            "app version",
        ]
    );
    let out = project.restore(&["--yes", "production", "--undo"]);
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(project.rows("web1"), "first,a mistake");
}

#[test]
fn a_restore_that_cannot_work_does_not_stop_the_app() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    for args in [
        &["--yes", "production", "--label", "no-such"][..],
        &["--yes", "other"],
        &[],
    ] {
        let out = project.restore(args);
        assert!(!out.status.success(), "{}", text(&out));
    }
    project.write("accessory", "other");
    let out = project.restore(&["--yes", "production"]);
    assert!(
        text(&out).contains("no sidecar answered; nothing was changed"),
        "{}",
        text(&out)
    );
    // Not confirmed.
    project.write("accessory", "lifeboat");
    let out = project.restore(&["production"]);
    assert!(text(&out).contains("not confirmed"), "{}", text(&out));
    assert_eq!(project.read("running"), "v42");
    assert!(!project.read("calls").contains("app stop"));
}

#[test]
fn a_restore_that_fails_starts_the_app_with_the_data_that_it_had() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    project.insert("web1", "later");
    // Something still has the database open.
    let open = format!(
        "import sqlite3,sys; c=sqlite3.connect('{}'); c.execute('select count(*) from t').fetchone(); print('open', flush=True); sys.stdin.read()",
        project.db("web1").display()
    );
    let mut app = Command::new("python3")
        .args(["-c", &open])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = [0; 4];
    app.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
    let out = project.restore(&["--yes", "production", "--label", "before-v42"]);
    app.kill().unwrap();
    app.wait().unwrap();
    let said = text(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("changed nothing: starting the app")
            && said.contains("version v42 runs again"),
        "{said}"
    );
    assert_eq!(project.read("running"), "v42");
    assert_eq!(project.rows("web1"), "first,later");
}

/// The restore went on in the sidecar, and nobody heard how it ended.
#[test]
fn a_connection_that_breaks_leaves_the_app_stopped_and_the_lock_held() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    project.insert("web1", "later");
    // Not the rehearsal, which ends with --dry-run.
    std::fs::write(project.host("web1", "cut"), "--in-place").unwrap();
    let out = project.restore(&["--yes", "production", "--label", "before-v42"]);
    let said = text(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("not certain what was restored") && said.contains("kamal lock release"),
        "{said}"
    );
    assert!(!project.path("stub/running").exists(), "{said}");
    // Nobody deploys onto it.
    let out = project.kamal(&["deploy", "--version", "v43"]);
    assert!(
        !out.status.success() && text(&out).contains("Deploy lock found"),
        "{}",
        text(&out)
    );
    assert_eq!(project.rows("web1"), "first");
}

/// One server says that nothing was changed there; of the other one nothing is known.
#[test]
fn what_one_server_says_counts_for_no_other() {
    let project = Project::empty(&["web1", "job1"]);
    for host in ["web1", "job1"] {
        project.app(host);
    }
    project.deploys(&["deploy", "--version", "v42"]);
    for host in ["web1", "job1"] {
        project.insert(host, "later");
    }
    std::fs::write(project.host("job1", "cut"), "--in-place").unwrap();
    // It fails on the first: its store is away once the rehearsal is over.
    std::fs::write(project.host("web1", "fails"), "--in-place").unwrap();
    let out = project.restore(&["--yes", "production", "--label", "before-v42"]);
    let said = text(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("changed=no"), "{said}");
    assert!(said.contains("not certain what was restored"), "{said}");
    assert!(!project.path("stub/running").exists(), "{said}");
}

#[test]
fn no_restore_while_a_deploy_runs() {
    let project = Project::new();
    project.deploys(&["deploy", "--version", "v42"]);
    std::fs::create_dir(project.path("stub/lock")).unwrap();
    let out = project.restore(&["--yes", "production", "--label", "before-v42"]);
    let said = text(&out);
    assert!(
        !out.status.success() && said.contains("nothing was changed"),
        "{said}"
    );
    assert_eq!(project.read("running"), "v42");
    assert!(project.path("stub/lock").exists());
}

#[test]
fn an_older_kamal_restores_without_the_lock() {
    let project = Project::new();
    project.write("old-kamal", "");
    project.deploys(&["deploy", "--version", "v42"]);
    project.insert("web1", "later");
    let out = project.restore(&["--yes", "production", "--label", "before-v42"]);
    let said = text(&out);
    assert!(
        out.status.success() && said.contains("do not deploy"),
        "{said}"
    );
    assert_eq!(project.rows("web1"), "first");
    assert_eq!(project.read("running"), "v42");
}

/// Keys that Kamal takes in an accessory; others are errors there.
const ACCESSORY_KEYS: [&str; 18] = [
    "image",
    "host",
    "hosts",
    "role",
    "roles",
    "tag",
    "tags",
    "cmd",
    "port",
    "env",
    "files",
    "directories",
    "volumes",
    "options",
    "labels",
    "network",
    "proxy",
    "registry",
];

#[test]
fn the_snippets_are_what_kamal_and_lifeboat_take() {
    for name in ["sqlite", "postgresql", "both"] {
        let text =
            std::fs::read_to_string(repo(&format!("config/kamal/accessories/{name}.yml"))).unwrap();
        let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let accessory = value["accessories"]["lifeboat"].as_object().unwrap();
        for key in accessory.keys() {
            assert!(ACCESSORY_KEYS.contains(&key.as_str()), "{name}: {key}");
        }
        assert_eq!(accessory["port"], "127.0.0.1:9464:9464", "{name}");
        assert_eq!(accessory["options"]["stop-timeout"], 60, "{name}");
        let volumes = accessory["volumes"].as_array().unwrap();
        assert!(
            volumes
                .iter()
                .any(|v| v == "myapp_lifeboat:/var/lib/lifeboat"),
            "{name}"
        );
        assert!(
            !text.contains(":ro"),
            "{name}: a database cannot be opened read-only by its sidecar"
        );
        // And its environment is a configuration.
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command
            .args(["config", "check"])
            .current_dir(dir.path())
            .env_clear();
        let clear = accessory["env"]["clear"].as_object().into_iter().flatten();
        command.envs(clear.map(|(key, value)| (key, value.as_str().unwrap())));
        for secret in accessory["env"]["secret"].as_array().unwrap() {
            let value = match secret.as_str().unwrap() {
                "DATABASE_URL" => "postgres://app:secret@db/app",
                _ => "secret",
            };
            command.env(secret.as_str().unwrap(), value);
        }
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        if accessory.contains_key("files") {
            let config = std::fs::read_to_string(repo("config/kamal/lifeboat.yml")).unwrap();
            let config = config.replace("/rails/storage", volume.to_str().unwrap());
            std::fs::write(dir.path().join("lifeboat.yml"), config).unwrap();
        } else if name == "sqlite" {
            command.env("LIFEBOAT_DATABASES", &volume);
        }
        let out = command.output().unwrap();
        assert!(
            out.status.success(),
            "{name}: {}",
            common::kamal::text(&out)
        );
    }
    let text = std::fs::read_to_string(repo("config/kamal/aliases.yml")).unwrap();
    let aliases: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(aliases["aliases"].as_object().unwrap().len(), 6);
}

#[test]
fn what_is_published_is_published_on_loopback() {
    let compose = std::fs::read_to_string(repo("docker-compose.yml")).unwrap();
    let compose: serde_json::Value = serde_saphyr::from_str(&compose).unwrap();
    let mut ports = 0;
    for (name, service) in compose["services"].as_object().unwrap() {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(
                port.as_str().unwrap().starts_with("127.0.0.1:"),
                "{name}: {port}"
            );
            ports += 1;
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let here = volume.as_str().unwrap().split(':').next().unwrap();
            // What the dashboards and Prometheus read is not part of the kit.
            let elsewhere = ["./dashboards", "./config/prometheus"].contains(&here);
            assert!(
                !here.starts_with("./") || elsewhere || repo(here).exists(),
                "{name}: {here}"
            );
        }
    }
    assert_eq!(ports, 3);
}

#[test]
fn the_dockerfile_keeps_its_promises() {
    let text = std::fs::read_to_string(repo("Dockerfile")).unwrap();
    let instructions: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    let has = |line: &str| instructions.contains(&line);
    assert!(has("USER 1000:1000") && has("CMD [\"run\"]"));
    assert!(has("ENTRYPOINT [\"/usr/local/bin/lifeboat\"]"));
    assert!(!instructions.iter().any(|l| l.starts_with("VOLUME")));
    assert!(
        !instructions
            .iter()
            .any(|l| l.contains("LABEL service") || l.trim().starts_with("service="))
    );
    assert!(
        instructions
            .iter()
            .any(|l| l.contains("\"/usr/local/bin/lifeboat\", \"health\""))
    );
}

/// Cargo reads nothing of the project before it has found every file that Cargo.toml names.
#[test]
fn the_dockerfile_copies_what_cargo_needs() {
    let text = std::fs::read_to_string(repo("Dockerfile")).unwrap();
    let allowed = std::fs::read_to_string(repo(".dockerignore")).unwrap();
    let stage = text.split(" AS binary-build\n").nth(1).unwrap();
    let stage = stage.split("\nFROM ").next().unwrap();
    let context = tempfile::tempdir().unwrap();
    let mut copied = 0;
    for line in stage.lines().filter_map(|l| l.strip_prefix("COPY ")) {
        let mut words: Vec<&str> = line.split(' ').collect();
        let place = context.path().join(words.pop().unwrap());
        for source in words {
            assert!(
                allowed.contains(&format!("\n!{source}\n")),
                "{source} is kept from the builder"
            );
            let place = match repo(source).is_dir() {
                true => place.clone(),
                false => place.join(std::path::Path::new(source).file_name().unwrap()),
            };
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            let done = Command::new("cp")
                .arg("-rT")
                .args([repo(source), place])
                .status()
                .unwrap();
            assert!(done.success(), "{source}");
            copied += 1;
        }
    }
    assert!(copied > 3);
    let out = Command::new("cargo")
        .args(["fetch", "--locked", "--quiet", "--target"])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(context.path())
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// `bin/kamal` of the project where there is one, else `kamal`; or whatever `KAMAL` says, in several words if need be.
#[test]
fn kamal_is_called_as_the_project_or_the_environment_says() {
    let project = Project::new();
    let _sidecar = project.sidecar("web1");
    let wrapper = |name: &str| {
        let path = project.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mark = project.path("called").display().to_string();
        let kamal = project.path("bin/kamal").display().to_string();
        std::fs::write(
            &path,
            format!("#!/bin/sh\necho \"$0 $*\" >> {mark}\n[ \"$1\" != exec ] || shift 2\nexec {kamal} \"$@\"\n"),
        )
        .unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        path
    };
    let called = || std::fs::read_to_string(project.path("called")).unwrap_or_default();
    wrapper("project/bin/kamal");
    project.deploys(&["deploy", "--version", "v1"]);
    assert!(
        called().contains("bin/kamal accessory exec lifeboat"),
        "{}",
        called()
    );
    std::fs::remove_file(project.path("project/bin/kamal")).unwrap();
    std::fs::remove_file(project.path("called")).unwrap();

    let bundle = wrapper("elsewhere/bundle");
    let project = project.with("KAMAL", &format!("{} exec kamal", bundle.display()));
    project.deploys(&["deploy", "--version", "v2"]);
    let called = std::fs::read_to_string(project.path("called")).unwrap();
    assert!(
        called.contains("bundle exec kamal accessory exec lifeboat"),
        "{called}"
    );
    assert!(project.labels("web1").contains(&"before-v2".to_owned()));
}
