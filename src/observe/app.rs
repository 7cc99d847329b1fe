//! Does the app work, as far as its databases show? Pure functions of facts and now. Nothing here says that data is safe or not:
//! that is [`health`](super::health)'s.

use serde::Serialize;

use super::facts::{State, TargetFacts};
use super::insight::{AppFacts, QueueFacts};
use crate::config::InsightConfig;
use crate::types::Millis;

/// Capture looks every few seconds; a look that is older proves nothing.
const LOOK_LIMIT_MS: i64 = 30_000;
/// Workers start within this long of a job in milliseconds: a deploy restarts them.
const START_MS: i64 = 60_000;

/// One part of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// There is no such part.
    None,
    /// Nobody has looked lately.
    Unknown,
    /// It works.
    Ok,
    /// Jobs wait that nobody takes.
    Stuck,
    /// It cannot be read.
    Failed,
}

/// The verdict on the app behind one target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AppVerdict {
    /// Target.
    pub name: String,
    /// The database can be read.
    pub database: Part,
    /// Solid Queue moves.
    pub queue: Part,
    /// The cache can be read.
    pub cache: Part,
    /// What is wrong.
    pub reasons: Vec<String>,
    /// What to do.
    pub hints: Vec<String>,
}

impl AppVerdict {
    /// A server that is a cache, and no database.
    pub fn as_cache(self) -> Self {
        Self {
            cache: self.database,
            database: Part::None,
            ..self
        }
    }
}

/// Judges a database that capture does not know, such as one of PostgreSQL, by the looks at it alone.
pub fn judge(
    name: &str,
    app: Option<&AppFacts>,
    config: &InsightConfig,
    now: Millis,
) -> AppVerdict {
    let current = app.filter(|f| f.is_current(config.every, now));
    let mut verdict = AppVerdict {
        name: name.to_owned(),
        database: match app {
            Some(f) if f.failed.is_some() => Part::Failed,
            _ if current.is_some() => Part::Ok,
            _ => Part::Unknown,
        },
        queue: Part::None,
        cache: Part::None,
        reasons: Vec::new(),
        hints: Vec::new(),
    };
    let failed = app.and_then(|f| f.failed.as_ref());
    if let Some(why) = failed {
        verdict
            .reasons
            .push(format!("the database cannot be read: {why}"));
        verdict.hints.push(format!(
            "`lifeboat verify {name}` says whether its copy is whole"
        ));
    }
    let part = |there: bool| match (there, failed, current) {
        (false, ..) => Part::None,
        (true, Some(_), _) => Part::Failed,
        (true, None, Some(_)) => Part::Ok,
        (true, None, None) => Part::Unknown,
    };
    verdict.cache = part(app.is_some_and(|f| f.cache.is_some()));
    verdict.queue = part(app.is_some_and(|f| f.queue.is_some()));
    if let Some(queue) = current.and_then(|f| f.queue.as_ref()) {
        let trouble = queue_trouble(queue, config, now);
        if !trouble.is_empty() {
            verdict.queue = verdict.queue.max(Part::Stuck);
            verdict.hints.push(
                "do workers and dispatcher run? `bin/jobs` or Puma's solid_queue plugin starts them; look at their log".into(),
            );
        }
        verdict.reasons.extend(trouble);
    }
    verdict
}

/// Judges the app behind an SQLite database: capture knows whether it is there and can be read.
pub fn judge_sqlite(
    target: &TargetFacts,
    app: Option<&AppFacts>,
    config: &InsightConfig,
    now: Millis,
) -> AppVerdict {
    let mut verdict = judge(&target.name, app, config, now);
    let looked = target
        .last_look
        .is_some_and(|at| now.since(at) <= LOOK_LIMIT_MS);
    let gone = match target.state {
        State::Vanished => Some("the database file is gone"),
        State::Failed => Some("the database cannot be followed"),
        _ => None,
    };
    if let Some(gone) = gone {
        let detail = target.detail.as_deref().unwrap_or(target.state.word());
        verdict.reasons.push(format!("{gone}: {detail}"));
        verdict.database = Part::Failed;
        for part in [&mut verdict.queue, &mut verdict.cache] {
            if *part != Part::None {
                *part = Part::Failed;
            }
        }
    } else if target.state == State::Waiting {
        verdict.database = Part::None;
    } else if verdict.database == Part::Unknown && looked {
        verdict.database = Part::Ok;
    }
    verdict
}

/// Why a queue does not move; nothing if it does.
pub fn queue_trouble(queue: &QueueFacts, config: &InsightConfig, now: Millis) -> Vec<String> {
    let limit = i64::try_from(config.max_queue_wait.as_millis()).unwrap_or(i64::MAX);
    let mut reasons = Vec::new();
    let ready = queue.oldest_ready.flatten();
    if let Some(since) = ready.filter(|at| now.since(*at) > limit) {
        reasons.push(format!(
            "queue stuck: the oldest ready job has waited since {since}"
        ));
    }
    let due = queue.next_scheduled.flatten();
    if let Some(since) = due.filter(|at| now.since(*at) > limit) {
        reasons.push(format!(
            "queue stuck: a scheduled job has been due since {since}, and no dispatcher moves it"
        ));
    }
    let waits = ready.is_some_and(|at| now.since(at) > START_MS);
    if waits && queue.workers(config.max_heartbeat_age, now) == Some(0) {
        let beats = queue.processes.iter().flat_map(|p| p.values()).flatten();
        let last = beats
            .max()
            .map_or("ever".to_owned(), |at| format!("since {at}"));
        reasons.push(format!(
            "queue stuck: jobs are ready, and no worker has had a heartbeat {last}"
        ));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: Millis = Millis(1_795_262_400_000);

    fn ago(seconds: i64) -> Millis {
        Millis(NOW.0 - seconds * 1_000)
    }

    fn moving() -> QueueFacts {
        QueueFacts {
            oldest_ready: Some(Some(ago(30))),
            next_scheduled: Some(Some(ago(-60))),
            processes: Some([("Worker".to_owned(), vec![ago(20)])].into()),
            ..QueueFacts::default()
        }
    }

    fn trouble(change: impl FnOnce(&mut QueueFacts)) -> Vec<String> {
        let mut queue = moving();
        change(&mut queue);
        queue_trouble(&queue, &InsightConfig::default(), NOW)
    }

    #[test]
    fn a_queue_is_stuck_for_one_of_three_reasons() {
        assert_eq!(trouble(|_| ()), Vec::<String>::new());
        let stuck = |what: &str, change: fn(&mut QueueFacts)| {
            let said = trouble(change);
            assert!(
                said.len() == 1 && said[0].contains(what),
                "{what}: {said:?}"
            );
        };
        stuck("oldest ready job", |q| {
            q.oldest_ready = Some(Some(ago(601)))
        });
        stuck("no dispatcher", |q| q.next_scheduled = Some(Some(ago(601))));
        stuck("no worker", |q| {
            q.oldest_ready = Some(Some(ago(61)));
            q.processes = Some([("Worker".to_owned(), vec![ago(301)])].into());
        });
        stuck("ever", |q| {
            q.oldest_ready = Some(Some(ago(61)));
            q.processes = Some(Default::default());
        });
    }

    /// A deploy restarts workers; a queue without jobs needs none; what took too long to ask proves nothing.
    #[test]
    fn a_queue_that_nobody_needs_is_not_stuck() {
        let none: Vec<String> = Vec::new();
        assert_eq!(trouble(|q| q.processes = Some(Default::default())), none);
        assert_eq!(
            trouble(|q| {
                q.oldest_ready = Some(None);
                q.processes = Some(Default::default());
            }),
            none
        );
        assert_eq!(
            trouble(|q| {
                (q.oldest_ready, q.next_scheduled, q.processes) = (Some(Some(ago(61))), None, None);
            }),
            none
        );
        // A clock that is behind the app's.
        assert_eq!(trouble(|q| q.oldest_ready = Some(Some(ago(-900)))), none);
    }

    #[test]
    fn parts_follow_what_was_seen() {
        let config = InsightConfig::default();
        let target = TargetFacts {
            name: "app".into(),
            state: State::Steady,
            last_look: Some(ago(1)),
            ..TargetFacts::default()
        };
        let app = AppFacts {
            at: Some(ago(10)),
            queue: Some(moving()),
            ..AppFacts::default()
        };
        let parts = |target: &TargetFacts, app: Option<&AppFacts>| {
            let v = judge_sqlite(target, app, &config, NOW);
            (v.database, v.queue, v.cache)
        };
        assert_eq!(parts(&target, Some(&app)), (Part::Ok, Part::Ok, Part::None));
        // Insight is off.
        assert_eq!(parts(&target, None), (Part::Ok, Part::None, Part::None));
        let stuck = AppFacts {
            queue: Some(QueueFacts {
                oldest_ready: Some(Some(ago(700))),
                ..moving()
            }),
            ..app.clone()
        };
        assert_eq!(
            parts(&target, Some(&stuck)),
            (Part::Ok, Part::Stuck, Part::None)
        );
        // What was true long ago is no verdict.
        let old = AppFacts {
            at: Some(ago(3_600)),
            ..stuck.clone()
        };
        assert_eq!(
            parts(&target, Some(&old)),
            (Part::Ok, Part::Unknown, Part::None)
        );
        let broken = AppFacts {
            failed: Some("disk I/O error".into()),
            ..app.clone()
        };
        assert_eq!(
            parts(&target, Some(&broken)),
            (Part::Failed, Part::Failed, Part::None)
        );
        let gone = TargetFacts {
            state: State::Vanished,
            ..target.clone()
        };
        assert_eq!(
            parts(&gone, Some(&app)),
            (Part::Failed, Part::Failed, Part::None)
        );
        let none_yet = TargetFacts {
            state: State::Waiting,
            last_look: None,
            ..target
        };
        assert_eq!(parts(&none_yet, None), (Part::None, Part::None, Part::None));
        let server = judge("pg", Some(&app), &config, NOW);
        assert_eq!(server.database, Part::Ok);
        assert_eq!(judge("pg", None, &config, NOW).database, Part::Unknown);
        let every = Duration::from_secs(3_600);
        assert!(old.is_current(every, NOW), "looks are rare by choice");
    }
}
