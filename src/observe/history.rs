//! The last hours of each target: its lag, and since when it is safe or not. In memory only: it begins with the process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use super::health::Verdict;
use crate::types::Millis;

/// One value for so long: the worst of it.
pub const BUCKET_MS: i64 = 120_000;
/// Six hours.
pub const BUCKETS: usize = 180;

/// Target and store of a verdict.
type Key = (String, String);

#[derive(Debug, Default)]
struct Track {
    safe: bool,
    since: Millis,
    /// It has been so since it was seen first.
    always: bool,
    /// Number of the last bucket.
    bucket: i64,
    /// Seconds; the last is the newest. A negative value: nothing is known.
    lags: VecDeque<f32>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct History(Mutex<BTreeMap<Key, Track>>);

/// What is known of one target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// Since when it is as it is now, as far as this process has seen.
    pub since: Millis,
    /// It was never otherwise: perhaps it has been so for longer.
    pub always: bool,
    /// The worst lag of each [`BUCKET_MS`], seconds, oldest first; `None` while nothing was seen.
    pub lags: Vec<Option<f32>>,
}

fn key(verdict: &Verdict) -> Key {
    // A database is judged over all its stores; files and dumps for each.
    let store = verdict.stores.first().filter(|_| verdict.stores.len() == 1);
    (
        verdict.name.clone(),
        store.map_or_else(String::new, |s| s.store.clone()),
    )
}

impl History {
    /// Takes in the verdicts of one moment; targets that are not among them are forgotten.
    pub fn note(&self, verdicts: &[Verdict], now: Millis) {
        let mut tracks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let present: BTreeSet<Key> = verdicts.iter().map(key).collect();
        tracks.retain(|key, _| present.contains(key));
        for verdict in verdicts {
            let track = tracks.entry(key(verdict)).or_insert_with(|| Track {
                safe: verdict.safe,
                since: now,
                always: true,
                bucket: now.0.div_euclid(BUCKET_MS),
                lags: VecDeque::new(),
            });
            track.note(verdict, now);
        }
    }

    /// The past of a target.
    pub fn of(&self, verdict: &Verdict) -> Option<Past> {
        let tracks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let track = tracks.get(&key(verdict))?;
        let known = track.lags.iter().map(|l| (*l >= 0.0).then_some(*l));
        Some(Past {
            since: track.since,
            always: track.always,
            lags: known.collect(),
        })
    }
}

impl Track {
    fn note(&mut self, verdict: &Verdict, now: Millis) {
        if self.safe != verdict.safe {
            (self.safe, self.since, self.always) = (verdict.safe, now, false);
        }
        let bucket = now.0.div_euclid(BUCKET_MS);
        let lag = verdict.lag_seconds as f32;
        let passed = bucket - self.bucket;
        // A clock that was set by hours makes no chart.
        if !(0..=BUCKETS as i64).contains(&passed) {
            self.lags.clear();
        } else {
            for _ in 1..passed {
                self.lags.push_back(-1.0);
            }
        }
        match self.lags.back_mut() {
            Some(last) if passed == 0 => *last = last.max(lag),
            _ => self.lags.push_back(lag),
        }
        self.bucket = bucket;
        while self.lags.len() > BUCKETS {
            self.lags.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::facts::{State, TargetFacts};
    use crate::observe::health::verdict;

    fn red(lag: f64) -> Verdict {
        let facts = TargetFacts {
            name: "app".into(),
            state: State::Failed,
            ..TargetFacts::default()
        };
        Verdict {
            lag_seconds: lag,
            ..verdict(&facts, None, Millis(0))
        }
    }

    #[test]
    fn the_worst_of_each_time_with_holes_and_a_bound() {
        let history = History::default();
        let minute = 60_000;
        for (at, lag) in [
            (0, 1.0),
            (minute, 3.0),
            (2 * minute, 2.0),
            (6 * minute, 4.0),
        ] {
            history.note(&[red(lag)], Millis(at));
        }
        let past = history.of(&red(0.0)).unwrap();
        assert_eq!(past.lags, [Some(3.0), Some(2.0), None, Some(4.0)]);
        assert_eq!((past.since, past.always), (Millis(0), true));
        let green = Verdict {
            safe: true,
            ..red(0.0)
        };
        for at in 7..1000 {
            history.note(std::slice::from_ref(&green), Millis(at * minute));
        }
        let past = history.of(&green).unwrap();
        assert_eq!((past.lags.len(), past.since), (BUCKETS, Millis(7 * minute)));
        assert!(!past.always);
        // Set back by a day.
        history.note(std::slice::from_ref(&green), Millis(-1440 * minute));
        assert_eq!(history.of(&green).unwrap().lags, [Some(0.0)]);
        history.note(&[], Millis(0));
        assert_eq!(history.of(&green), None);
    }
}
