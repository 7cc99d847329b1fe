//! `lifeboat demo`: an app, its sidecar, a disaster and the way back, all real, in a folder of its own.
//!
//! This process is the app: it writes to four databases as Rails 8 makes them. The sidecar and every command are this program again, as
//! processes of their own. What is printed was measured.

mod app;
mod stage;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use self::app::{App, digest};
use self::stage::Stage;
use super::{Failure, ok};

/// How long the app writes before and after the labelled snapshot.
const ACT: Duration = Duration::from_millis(2500);
/// Between the last good commit and the disaster: what "the second before" means.
const SECOND: Duration = Duration::from_secs(1);

pub(super) async fn run(keep: bool, as_json: bool) -> Result<(), Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let (interrupted, told_to_stop) = (told_to_stop()?, Arc::clone(&stop));
    let interrupted = tokio::spawn(async move {
        interrupted.await;
        told_to_stop.store(true, Ordering::Relaxed);
    });
    let played = tokio::task::spawn_blocking(move || play(as_json, keep, stop)).await;
    let (stage, app, told) = played.map_err(|e| failed(format!("the demo broke off: {e}")))??;
    if as_json {
        println!("{told}");
    }
    ok(&format!(
        "demo restored=production checksum={} commits={}",
        told["restored"]["checksum"].as_str().unwrap_or_default(),
        told["commits"]
    ));
    if keep {
        eprintln!(
            "\nStill running: the app writes, Lifeboat replicates. Status page: {}\nFolder: {}\nTry: lifeboat status --config {}\nCtrl-C ends it and removes the folder.",
            stage.page(),
            stage.dir().display(),
            stage.config().display()
        );
        interrupted.await.map_err(failed)?;
    }
    tokio::task::spawn_blocking(move || {
        drop(app);
        stage.close();
    })
    .await
    .map_err(failed)
}

/// Ready at Ctrl-C or SIGTERM, from now on.
fn told_to_stop() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
        }
    })
}

pub(super) fn failed(what: impl ToString) -> Failure {
    Failure::new(
        1,
        format!("the demo could not go on: {}", what.to_string()),
        Some("only its own temporary folder was touched; please report this".into()),
    )
}

fn play(
    quiet: bool,
    keep: bool,
    stop: Arc<AtomicBool>,
) -> Result<(Stage, App, serde_json::Value), Failure> {
    let begun = Instant::now();
    let stage = Stage::open(quiet, stop)?;
    stage.title("An app with four databases, as Rails 8 makes them");
    let storage = stage.dir().join("storage");
    app::create(&storage).map_err(failed)?;
    for (name, rows) in app::rows(&storage).map_err(failed)? {
        stage.say(&format!("{name:<28} {rows:>6} rows"));
    }
    let production = storage.join(app::PRODUCTION);

    stage.title("Lifeboat beside it. The app does not know");
    let mut app = App::start(&storage);
    let stage = stage.start_sidecar()?;
    let while_it_runs = if keep { "" } else { " (while this runs)" };
    stage.say(&format!("status page{while_it_runs}: {}", stage.page()));
    stage.pause(ACT)?;
    let commits = app.commits();
    stage.command(&["sync"])?;
    stage.say(&format!(
        "{commits} commits so far, all of them in the store"
    ));

    stage.title("A deploy: pin this moment under a name");
    stage.command(&["snapshot", "--label", "before-v2"])?;
    stage.pause(ACT)?;

    stage.title("The last good moment");
    // The app holds still while it is written down what is there: that is the proof later.
    let held = app.hold();
    let before = digest(&production).map_err(failed)?;
    stage.command(&["sync"])?;
    let moment = jiff::Timestamp::now();
    let orders = app::orders(&production).map_err(failed)?;
    stage.say(&format!("at {moment:.3}: {orders} orders"));
    stage.say(&format!("checksum of every row of production: {before}"));
    stage.pause(SECOND)?;

    stage.title("Something terrible");
    for sql in app::TERRIBLE {
        stage.say(&format!("sqlite> {sql};"));
    }
    app::disaster(&production).map_err(failed)?;
    let disaster = jiff::Timestamp::now();
    drop(held);
    stage.pause(SECOND)?;
    let (errors, last) = app.errors();
    stage.say(&format!(
        "the app fails: {errors} errors in a second, such as \"{last}\""
    ));
    let after = digest(&production).map_err(failed)?;
    stage.say(&format!(
        "checksum now: {after}, and the damage is replicated, too"
    ));

    stage.title("Stop the app, restore to the second before, start it again");
    let mut commits = app.commits();
    drop(app);
    let at = moment.to_string();
    let restoring = Instant::now();
    stage.command(&["restore", "production", "--in-place", "--at", &at])?;
    let took = restoring.elapsed();

    stage.title("Proof");
    let restored = digest(&production).map_err(failed)?;
    stage.say(&format!("before the disaster  {before}"));
    stage.say(&format!("restored             {restored}"));
    if restored != before {
        return Err(Failure::new(
            5,
            format!("the restored database is not what it was: {restored}, not {before}"),
            Some("please report this".into()),
        ));
    }
    stage.say(&format!(
        "equal, row for row: {} orders are back",
        app::orders(&production).map_err(failed)?
    ));
    app = App::start(&storage);
    stage.pause(SECOND)?;
    let more = app.commits();
    stage.command(&["sync"])?;
    commits += more;
    let (errors_again, _) = app.errors();
    stage.say(&format!(
        "the app works again: {more} more commits, {errors_again} errors, all durable"
    ));
    let seconds = begun.elapsed().as_secs_f64();
    stage.title(&format!(
        "That was it: {seconds:.0} s in all, {:.1} s of them for the restore.{}",
        took.as_secs_f64(),
        match keep {
            true => format!(" Status page: {}", stage.page()),
            // It ends with this program.
            false =>
                " `lifeboat demo --keep` leaves all of it running, with its status page".into(),
        }
    ));
    let told = json!({
        "seconds": seconds,
        "commits": commits,
        "label": "before-v2",
        "moment": at,
        "disaster": { "at": disaster.to_string(), "statements": app::TERRIBLE, "checksum": after, "errors_in_the_app": errors },
        "restored": { "checksum": restored, "expected": before, "equal": true, "seconds": took.as_secs_f64(), "orders": orders },
        "status_page": keep.then(|| stage.page()),
        "folder": stage.dir(),
    });
    Ok((stage, app, told))
}

/// A path as text, for a file of configuration.
pub(super) fn text(path: &std::path::Path) -> String {
    PathBuf::from(path).display().to_string()
}
