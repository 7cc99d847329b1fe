//! Is the data safe? A pure function of facts and now.

use serde::Serialize;

use super::facts::{
    DrillFacts, DrillProblem, FilesFacts, PostgresFacts, State, StoreFacts, TargetFacts,
};
use crate::types::Millis;

/// Capture looks at the WAL-index at least every few seconds; after this long it hangs.
const LOOK_LIMIT_MS: i64 = 30_000;
/// Capture that works has seen a write after this long at the latest: it polls every five seconds.
const SEEN_LIMIT_MS: i64 = 6_000;
/// Less is no clock that was set.
const STEP_MS: i64 = 10_000;
/// One capture step may take this long: a gap capture of a large database reads all of it.
const BUSY_LIMIT_MS: i64 = 10 * 60_000;

/// The WAL file as it is now, by `stat` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalStat {
    /// When it was written last.
    pub modified: Millis,
}

/// What is known about one store of a target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StoreVerdict {
    /// URL without secrets.
    pub store: String,
    /// Age of the oldest committed change that is not durable there, seconds; 0 if all is.
    pub lag_seconds: f64,
    /// Last TXID that can be restored from there.
    pub durable_txid: Option<String>,
    /// When it was acknowledged, RFC 3339.
    pub durable_at: Option<String>,
    /// The oldest point that can be restored from there, RFC 3339.
    pub oldest_at: Option<String>,
    /// When the last drill of it began, RFC 3339.
    pub drill_at: Option<String>,
    /// Whether every check of that passed.
    pub drill_ok: Option<bool>,
}

/// The verdict on one target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Target.
    pub name: String,
    /// The database.
    pub path: String,
    /// Everything within the objective is durable in every store.
    pub safe: bool,
    /// State in one word.
    pub state: &'static str,
    /// The largest lag of its stores, seconds.
    pub lag_seconds: f64,
    /// Allowed lag, seconds.
    pub objective_seconds: f64,
    /// Last captured TXID.
    pub captured_txid: Option<String>,
    /// Why it is not safe.
    pub reasons: Vec<String>,
    /// What to do.
    pub hints: Vec<String>,
    /// Each store.
    pub stores: Vec<StoreVerdict>,
}

/// When capture looked last, if the WAL was written since and that was not seen. Whatever holds capture up, and whether it knows that or not.
fn unseen(f: &TargetFacts, wal: Option<WalStat>, now: Millis) -> Option<Millis> {
    let (looked, modified) = (f.last_look?, wal?.modified);
    // A time of the future is of a clock that was set back since: it tells nothing. A busy app has written since `now`.
    let is_later = looked < modified && modified.since(now) < STEP_MS;
    let waits = modified.since(looked).max(now.since(modified));
    (is_later && waits > SEEN_LIMIT_MS).then_some(looked)
}

/// Since when the oldest change waits for its capture or its upload to one store.
fn waiting(f: &TargetFacts, store: &StoreFacts, unseen: Option<Millis>) -> Option<Millis> {
    // Whatever an uploader takes for done: what is captured is not there.
    let is_behind = store.durable.is_some() && store.durable < f.captured;
    let behind = f.captured_at.filter(|_| is_behind);
    let all = [store.oldest_pending, f.uncaptured_since, unseen, behind];
    all.into_iter().flatten().min()
}

/// Judges one target.
pub fn verdict(f: &TargetFacts, wal: Option<WalStat>, now: Millis) -> Verdict {
    let objective = i64::try_from(f.objective.as_millis()).unwrap_or(i64::MAX);
    let mut reasons = Vec::new();
    let mut hints: Vec<String> = f.hint.iter().cloned().collect();
    let detail = || f.detail.clone().unwrap_or_else(|| f.state.word().into());
    match f.state {
        State::Steady => {}
        // A gap capture is at work; the lag says whether it takes too long.
        State::Gap if f.captured.is_some() => {}
        _ => reasons.push(detail()),
    }
    if let Some(since) = f.busy_since.filter(|t| now.since(*t) > BUSY_LIMIT_MS) {
        reasons.push(format!("a capture step has been running since {since}"));
    }
    if f.state == State::Steady {
        let looked = f.last_look.unwrap_or(Millis(0));
        if now.since(looked) > LOOK_LIMIT_MS && f.busy_since.is_none() {
            reasons.push(format!("capture has not looked at the WAL since {looked}"));
            hints.push("restart lifeboat; nothing that was reported durable is affected".into());
        }
    }
    let unseen = unseen(f, wal, now);
    if let (Some(looked), Some(wal)) = (unseen, wal)
        && now.since(looked) > objective.max(SEEN_LIMIT_MS)
    {
        reasons.push(format!(
            "the WAL was written at {}, but capture looked at {looked}",
            wal.modified
        ));
    }
    let mut worst = 0;
    let mut stores = Vec::new();
    for s in &f.stores {
        let since = waiting(f, s, unseen);
        // A clock that jumped back never makes it negative.
        let lag = since.map_or(0, |t| now.since(t).max(0));
        worst = worst.max(lag);
        if let Some(refused) = &s.refused {
            reasons.push(format!("{}: {refused}", s.store));
        } else if s.durable.is_none() && f.captured.is_some() {
            reasons.push(format!("{}: the first copy is not complete", s.store));
        } else if lag > objective {
            let since = since.unwrap_or(now);
            reasons.push(format!("{}: changes of {since} are not durable", s.store));
        }
        if let Some(broken) = &s.broken {
            reasons.push(format!("{}: {broken}", s.store));
            hints.extend(s.hint.clone());
        }
        if let Some((reason, hint)) = drill_failure(&s.store, s.drill.as_ref()) {
            reasons.push(reason);
            hints.push(hint);
        }
        hints.extend(no_drill(&s.store, s.drill_problem.as_ref()));
        // What is there can be restored as before, from an older full copy.
        hints.extend(s.renewal_problem());
        if let Some(since) = s.failing_since.filter(|t| now.since(*t) > objective) {
            reasons.push(format!(
                "{}: unreachable since {since}: {}",
                s.store,
                s.last_error.clone().unwrap_or_default()
            ));
            hints.extend(s.hint.clone().filter(|_| s.broken.is_none()));
        }
        // Nothing is unsafe by it, but the bill grows.
        hints.extend(s.retention_problem.clone());
        stores.push(StoreVerdict {
            store: s.store.clone(),
            lag_seconds: lag as f64 / 1000.0,
            durable_txid: s.durable.map(|t| t.to_string()),
            durable_at: s.durable_at.map(|t| t.to_string()),
            oldest_at: s.oldest.map(|t| t.to_string()),
            drill_at: s.drill.as_ref().map(|d| d.at.to_string()),
            drill_ok: s.drill.as_ref().map(|d| d.ok),
        });
    }
    if f.stores.is_empty() && reasons.is_empty() {
        reasons.push("no store was reached yet".into());
    }
    Verdict {
        name: f.name.clone(),
        path: f.path.display().to_string(),
        safe: reasons.is_empty(),
        state: f.state.word(),
        lag_seconds: worst as f64 / 1000.0,
        objective_seconds: f.objective.as_secs_f64(),
        captured_txid: f.captured.map(|t| t.to_string()),
        reasons,
        hints,
        stores,
    }
}

/// Judges files in one store: the newest complete snapshot must not be older than it may, and the last run must have been
/// complete.
pub fn files_verdict(f: &FilesFacts, now: Millis) -> Verdict {
    let objective = i64::try_from(f.objective.as_millis()).unwrap_or(i64::MAX);
    let age = f.succeeded_at.map(|at| now.since(at).max(0));
    let mut reasons = Vec::new();
    match (age, f.succeeded_at) {
        (Some(age), Some(at)) if age > objective => {
            reasons.push(format!(
                "{}: the newest complete snapshot is of {at}",
                f.store
            ));
        }
        (None, _) => reasons.push(format!("{}: there is no complete snapshot yet", f.store)),
        _ => {}
    }
    reasons.extend(f.last_error.clone());
    let mut hints: Vec<String> = f.hint.iter().chain(&f.retention_problem).cloned().collect();
    if let Some((reason, hint)) = drill_failure(&f.store, f.drill.as_ref()) {
        reasons.push(reason);
        hints.push(hint);
    }
    hints.extend(no_drill(&f.store, f.drill_problem.as_ref()));
    let state = match (f.running_since, &f.last_error, age) {
        (Some(_), _, _) => "running",
        (None, Some(_), _) => "failed",
        (None, None, Some(_)) => "steady",
        (None, None, None) => "waiting",
    };
    Verdict {
        name: f.name.clone(),
        path: f.path.display().to_string(),
        safe: reasons.is_empty(),
        state,
        lag_seconds: age.unwrap_or(0) as f64 / 1000.0,
        objective_seconds: f.objective.as_secs_f64(),
        captured_txid: None,
        reasons,
        hints,
        stores: vec![StoreVerdict {
            store: f.store.clone(),
            lag_seconds: age.unwrap_or(0) as f64 / 1000.0,
            durable_txid: f.snapshot.clone(),
            durable_at: f.succeeded_at.map(|t| t.to_string()),
            oldest_at: f.oldest.map(|t| t.to_string()),
            drill_at: f.drill.as_ref().map(|d| d.at.to_string()),
            drill_ok: f.drill.as_ref().map(|d| d.ok),
        }],
    }
}

/// What to say of a drill that failed.
fn drill_failure(store: &str, drill: Option<&DrillFacts>) -> Option<(String, String)> {
    let drill = drill.filter(|d| !d.ok)?;
    let why = drill.failure.as_deref().unwrap_or("no reason recorded");
    Some((
        format!("{store}: the drill of {} failed: {why}", drill.at),
        "`lifeboat verify` names damaged objects; where the data itself is wrong, `lifeboat restore --last-good` finds the newest sound point; `lifeboat drill` tries again".into(),
    ))
}

/// What to say where no drill could be made: nothing is known to be wrong.
fn no_drill(store: &str, problem: Option<&DrillProblem>) -> Option<String> {
    let problem = problem?;
    Some(format!(
        "{store}: the drill of {} could not be made: {}",
        problem.at, problem.why
    ))
}

/// Judges dumps in one store: the newest must not be older than it may, the last run must have made one, no dump may be damaged,
/// and the last drill must not have failed. A dump that looks odd is a hint, not a fault: it is complete.
pub fn postgres_verdict(f: &PostgresFacts, now: Millis) -> Verdict {
    let objective = i64::try_from(f.objective.as_millis()).unwrap_or(i64::MAX);
    let age = f.succeeded_at.map(|at| now.since(at).max(0));
    let mut reasons = Vec::new();
    match (age, f.succeeded_at) {
        (Some(age), Some(at)) if age > objective => {
            reasons.push(format!("{}: the newest dump is of {at}", f.store));
        }
        (None, _) => reasons.push(format!("{}: there is no dump yet", f.store)),
        _ => {}
    }
    reasons.extend(f.last_error.clone());
    let damaged = f.damaged.iter();
    reasons.extend(damaged.map(|id| format!("{}: dump {id} is damaged", f.store)));
    let mut hints: Vec<String> = f.hint.iter().chain(&f.retention_problem).cloned().collect();
    if let Some((reason, hint)) = drill_failure(&f.store, f.drill.as_ref()) {
        reasons.push(reason);
        hints.push(hint);
    }
    hints.extend(no_drill(&f.store, f.drill_problem.as_ref()));
    hints.extend(
        f.anomalies
            .iter()
            .map(|a| format!("look at the newest dump: {a}")),
    );
    let state = match (f.running_since, &f.last_error, age) {
        (Some(_), _, _) => "running",
        (None, Some(_), _) => "failed",
        (None, None, Some(_)) => "steady",
        (None, None, None) => "waiting",
    };
    Verdict {
        name: f.name.clone(),
        path: f.database.clone(),
        safe: reasons.is_empty(),
        state,
        lag_seconds: age.unwrap_or(0) as f64 / 1000.0,
        objective_seconds: f.objective.as_secs_f64(),
        captured_txid: None,
        reasons,
        hints,
        stores: vec![StoreVerdict {
            store: f.store.clone(),
            lag_seconds: age.unwrap_or(0) as f64 / 1000.0,
            durable_txid: f.dump.clone(),
            durable_at: f.succeeded_at.map(|t| t.to_string()),
            oldest_at: f.oldest.map(|t| t.to_string()),
            drill_at: f.drill.as_ref().map(|d| d.at.to_string()),
            drill_ok: f.drill.as_ref().map(|d| d.ok),
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Txid;
    use std::time::Duration;

    const NOW: Millis = Millis(10_000_000);

    fn healthy() -> TargetFacts {
        let store = StoreFacts {
            store: "s3://b".into(),
            durable: Txid::new(5),
            ..StoreFacts::default()
        };
        TargetFacts {
            name: "app".into(),
            state: State::Steady,
            objective: Duration::from_secs(30),
            captured: Txid::new(5),
            last_look: Some(Millis(NOW.0 - 1000)),
            stores: vec![store],
            ..TargetFacts::default()
        }
    }

    fn judge(change: impl FnOnce(&mut TargetFacts)) -> Verdict {
        let mut facts = healthy();
        change(&mut facts);
        verdict(&facts, None, NOW)
    }

    #[test]
    fn each_fault_turns_it_red_with_a_reason() {
        assert!(judge(|_| ()).safe);
        let red = |what: &str, change: fn(&mut TargetFacts)| {
            let v = judge(change);
            assert!(!v.safe && !v.reasons.is_empty(), "{what}: {v:?}");
        };
        red("lag", |f| {
            f.stores[0].oldest_pending = Some(Millis(NOW.0 - 31_000))
        });
        red("an uploader that has forgotten something", |f| {
            f.captured = Txid::new(6);
            f.captured_at = Some(Millis(NOW.0 - 31_000));
        });
        red("no base", |f| f.stores[0].durable = None);
        red("uploads that panicked a moment ago", |f| {
            f.stores[0].broken = Some("uploads broke off".into())
        });
        red("refused", |f| {
            f.stores[0].refused = Some("belongs to web2".into())
        });
        red("store away", |f| {
            f.stores[0].failing_since = Some(Millis(NOW.0 - 31_000))
        });
        red("capture stalled", |f| {
            f.last_look = Some(Millis(NOW.0 - 31_000))
        });
        red("a capture that does not end", |f| {
            f.uncaptured_since = Some(Millis(NOW.0 - 31_000))
        });
        red("capture hangs", |f| {
            f.busy_since = Some(Millis(NOW.0 - 700_000))
        });
        red("not owner", |f| f.state = State::NotOwner);
        red("vanished", |f| f.state = State::Vanished);
        red("no stores", |f| f.stores.clear());
        let old_look = TargetFacts {
            last_look: Some(Millis(NOW.0 - 29_000)),
            objective: Duration::from_secs(5),
            ..healthy()
        };
        assert!(
            !verdict(&old_look, Some(WalStat { modified: NOW }), NOW).safe,
            "the WAL moved on without capture"
        );
        // The last write was long ago, and nobody knows of it: capture hung right after its last look.
        let silent = TargetFacts {
            last_look: Some(Millis(NOW.0 - 60_000)),
            busy_since: Some(Millis(NOW.0 - 60_000)),
            ..healthy()
        };
        let written = WalStat {
            modified: Millis(NOW.0 - 59_000),
        };
        let hangs = verdict(&silent, Some(written), NOW);
        assert!(!hangs.safe && hangs.lag_seconds == 60.0, "{hangs:?}");
        let before = WalStat {
            modified: Millis(NOW.0 - 61_000),
        };
        assert!(
            verdict(&silent, Some(before), NOW).safe,
            "a long comparison"
        );
        // In whatever state: its changes are durable nowhere.
        let gap = TargetFacts {
            state: State::Gap,
            ..silent
        };
        assert!(!verdict(&gap, Some(written), NOW).safe);
        let idle = TargetFacts {
            last_look: Some(Millis(NOW.0 - 5_000)),
            objective: Duration::from_secs(1),
            ..healthy()
        };
        assert!(
            verdict(&idle, Some(WalStat { modified: NOW }), NOW).safe,
            "a write of this very moment, after quiet"
        );
    }

    #[test]
    fn files_are_red_without_a_recent_complete_snapshot() {
        let good = FilesFacts {
            name: "uploads".into(),
            objective: Duration::from_secs(3_600),
            succeeded_at: Some(Millis(NOW.0 - 1_000)),
            ..FilesFacts::default()
        };
        assert!(files_verdict(&good, NOW).safe);
        let red = |change: fn(&mut FilesFacts)| {
            let mut facts = good.clone();
            change(&mut facts);
            let v = files_verdict(&facts, NOW);
            assert!(!v.safe && !v.reasons.is_empty(), "{v:?}");
        };
        red(|f| f.succeeded_at = None);
        red(|f| f.succeeded_at = Some(Millis(NOW.0 - 3_600_001)));
        red(|f| f.last_error = Some("3 files could not be read".into()));
        red(|f| {
            f.drill = Some(DrillFacts {
                at: NOW,
                ok: false,
                failure: Some("a piece has another hash".into()),
                restore_seconds: 1.0,
                data_age_seconds: 1.0,
            })
        });
    }

    #[test]
    fn dumps_are_red_without_a_recent_one() {
        let good = PostgresFacts {
            name: "app".into(),
            objective: Duration::from_secs(3_600),
            succeeded_at: Some(Millis(NOW.0 - 1_000)),
            ..PostgresFacts::default()
        };
        assert!(postgres_verdict(&good, NOW).safe);
        let judged = |change: fn(&mut PostgresFacts)| {
            let mut facts = good.clone();
            change(&mut facts);
            postgres_verdict(&facts, NOW)
        };
        for red in [
            judged(|f| f.succeeded_at = None),
            judged(|f| f.succeeded_at = Some(Millis(NOW.0 - 3_600_001))),
            judged(|f| f.last_error = Some("the server is down".into())),
            judged(|f| f.damaged.push("20261121T065216.123Z".into())),
        ] {
            assert!(!red.safe && !red.reasons.is_empty(), "{red:?}");
        }
        let odd = judged(|f| f.anomalies.push("tables are gone: users".into()));
        assert!(odd.safe && odd.hints[0].contains("tables are gone"));
    }

    #[test]
    fn small_lag_and_a_clock_that_jumped_back_are_fine() {
        let v = judge(|f| f.stores[0].oldest_pending = Some(Millis(NOW.0 - 900)));
        assert!(v.safe && v.lag_seconds == 0.9);
        let v = judge(|f| f.stores[0].oldest_pending = Some(Millis(NOW.0 + 90_000)));
        assert!(v.safe && v.lag_seconds == 0.0);
        // A WAL that was written while the clock was an hour ahead.
        let ahead = WalStat {
            modified: Millis(NOW.0 + 3_600_000),
        };
        let v = verdict(&healthy(), Some(ahead), NOW);
        assert!(v.safe && v.lag_seconds == 0.0, "{v:?}");
    }
}
