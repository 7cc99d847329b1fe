//! Asks the app's addresses, each in its own task: a slow one delays no other, and none is asked twice at once.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::fleet::system_now;
use crate::config::{Config, ProbeConfig};
use crate::observe::facts::Board;
use crate::observe::services::ProbeFacts;
use crate::probe::{Answer, Prober};

/// Runs until it is aborted. Returns at once if nothing is to be asked.
pub async fn run(config: Arc<Config>, board: Arc<Board>) {
    let mut tasks = JoinSet::new();
    for probe in &config.probes {
        board.put_probe(ProbeFacts::new(probe));
        match Prober::new(probe) {
            Ok(prober) => {
                tasks.spawn(ask(probe.clone(), prober, Arc::clone(&board)));
            }
            Err(error) => {
                tracing::error!(probe = probe.name, error, "this probe asks nothing");
                let mut facts = ProbeFacts::new(probe);
                let answer = Answer {
                    failure: Some(format!("it cannot be asked: {error}")),
                    hint: Some("restart lifeboat, and report it with its log".into()),
                    ..Answer::default()
                };
                facts.note(answer, true, system_now());
                board.put_probe(facts);
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn ask(probe: ProbeConfig, prober: Prober, board: Arc<Board>) {
    let mut facts = ProbeFacts::new(&probe);
    let mut due = tokio::time::interval(probe.every);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let answer = prober.probe().await;
        let before = facts.answer.as_ref().map(|a| a.failure.is_none());
        let now = answer.failure.is_none();
        match &answer.failure {
            Some(why) if before != Some(false) => {
                tracing::warn!(
                    probe = probe.name,
                    why,
                    "the app does not answer as it should"
                );
            }
            None if before == Some(false) => {
                tracing::info!(probe = probe.name, "the app answers again");
            }
            _ => {}
        }
        facts.note(answer, now != before.unwrap_or(!now), system_now());
        board.put_probe(facts.clone());
    }
}
