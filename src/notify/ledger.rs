//! What one channel was told and still has to be told. Pure: a file and a clock are somebody else's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::conditions::Seen;
use super::event::{Batch, Event, Kind, Phase};
use crate::types::Millis;

/// Undelivered batches that are kept; the oldest goes first.
const OUTBOX: usize = 100;
/// Between two tries of one batch. After the last it is given up.
const RETRY: [Duration; 9] = [
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(3600),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(4 * 3600),
    Duration::from_secs(8 * 3600),
];

/// When and what a channel wants to be told.
#[derive(Clone, Debug)]
pub struct Rules {
    /// These; everything if `None`.
    pub kinds: Option<BTreeSet<Kind>>,
    /// A condition must last, and be over, for this long.
    pub after: Duration,
    /// Between reminders.
    pub remind: Duration,
}

/// A condition that lasts, or was over a moment ago.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Open {
    kind: Kind,
    subject: String,
    reasons: Vec<String>,
    hints: Vec<String>,
    since: i64,
    seen: i64,
    told: Option<i64>,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    open: BTreeMap<String, Open>,
    /// Targets whose first copy was told.
    copied: BTreeSet<String>,
    outbox: VecDeque<Batch>,
    /// Failed tries of the first in the outbox.
    tries: usize,
    /// Not before this.
    next_try: i64,
    /// The last number of what happened once; counts in one process only.
    #[serde(skip)]
    happened: u64,
}

/// What became of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// It is tried again later.
    Later,
    /// It was tried for long enough.
    GaveUp,
}

impl Ledger {
    /// After a restart nothing is known yet: what lasted before is taken to last until it was seen to be over.
    pub fn resumed(&mut self, now: Millis) {
        self.open.values_mut().for_each(|o| o.seen = now.0);
        self.next_try = self.next_try.min(now.0 + millis(RETRY[RETRY.len() - 1]));
    }

    /// Takes in one moment. `true`: there is something new to keep.
    pub fn step(&mut self, seen: &Seen, rules: &Rules, id: impl FnOnce() -> String) -> bool {
        let before = (self.open.len(), self.copied.len());
        let wanted = |kind: Kind| rules.kinds.as_ref().is_none_or(|k| k.contains(&kind));
        let mut events = Vec::new();
        for (key, condition) in &seen.conditions {
            let open = self.open.entry(key.clone()).or_insert_with(|| Open {
                kind: condition.kind,
                subject: condition.subject.clone(),
                reasons: Vec::new(),
                hints: Vec::new(),
                since: seen.now.0,
                seen: seen.now.0,
                told: None,
            });
            open.reasons.clone_from(&condition.reasons);
            open.hints.clone_from(&condition.hints);
            open.seen = seen.now.0;
            if wanted(open.kind) {
                events.extend(open.due(
                    seen.now,
                    rules.after.max(condition.patience),
                    rules.remind,
                ));
            }
        }
        let after = millis(rules.after);
        self.open.retain(|key, open| {
            // A clock that was set back must not keep it open.
            open.seen = open.seen.min(seen.now.0);
            if seen.conditions.contains_key(key) || seen.now.0 - open.seen < after {
                return true;
            }
            if open.told.is_some() && seen.is_unknown_again(key) {
                return true;
            }
            if open.told.is_some() && wanted(open.kind) {
                events.push(open.ended(seen));
            }
            false
        });
        for target in &seen.copied {
            if self.copied.insert(target.clone()) && wanted(Kind::FirstSuccess) {
                events.push(Event::new(
                    Kind::FirstSuccess,
                    Phase::Once,
                    target,
                    seen.now,
                ));
            }
        }
        for (number, event) in &seen.happened {
            if *number > self.happened && wanted(event.kind) {
                events.push(event.clone());
            }
            self.happened = self.happened.max(*number);
        }
        if events.is_empty() {
            return before != (self.open.len(), self.copied.len());
        }
        self.outbox.push_back(Batch {
            id: id(),
            at: seen.now,
            events,
        });
        true
    }

    /// Batches beyond what is kept, oldest first. They are not told any more.
    pub fn overflow(&mut self) -> usize {
        let over = self.outbox.len().saturating_sub(OUTBOX);
        self.outbox.drain(..over);
        if over > 0 {
            self.tries = 0;
        }
        over
    }

    /// The batch that is to be sent now.
    pub fn due(&self, now: Millis) -> Option<&Batch> {
        // A clock that was set back must not hold it for long.
        let longest = millis(RETRY[RETRY.len() - 1]);
        let waits = now.0 < self.next_try && self.next_try - now.0 <= longest;
        self.outbox.front().filter(|_| !waits)
    }

    /// Batches that were not delivered yet.
    pub fn pending(&self) -> usize {
        self.outbox.len()
    }

    /// The first batch arrived.
    pub fn delivered(&mut self) {
        self.outbox.pop_front();
        (self.tries, self.next_try) = (0, 0);
    }

    /// The first batch did not arrive.
    pub fn failed(&mut self, now: Millis) -> Tried {
        let Some(wait) = RETRY.get(self.tries) else {
            self.delivered();
            return Tried::GaveUp;
        };
        self.tries += 1;
        self.next_try = now.0 + millis(*wait);
        Tried::Later
    }

    /// What was told and is not over, in words.
    pub fn told(&self) -> impl Iterator<Item = &str> {
        let told = self.open.values().filter(|o| o.told.is_some());
        told.flat_map(|o| o.reasons.iter().map(String::as_str))
    }

    /// Something was told and is not over.
    pub fn is_open(&self) -> bool {
        self.open.values().any(|o| o.told.is_some())
    }
}

impl Open {
    fn due(&mut self, now: Millis, after: Duration, remind: Duration) -> Option<Event> {
        // A clock that was set back begins to count again.
        self.since = self.since.min(now.0);
        self.told = self.told.map(|t| t.min(now.0));
        let phase = match self.told {
            None if now.0 - self.since >= millis(after) => Phase::Started,
            Some(told) if now.0 - told >= millis(remind) => Phase::Reminder,
            _ => return None,
        };
        self.told = Some(now.0);
        Some(Event {
            reasons: self.reasons.clone(),
            hints: self.hints.clone(),
            ..Event::new(self.kind, phase, &self.subject, Millis(self.since))
        })
    }

    fn ended(&self, seen: &Seen) -> Event {
        let since = Millis(self.since);
        let mut event = Event::new(self.kind, Phase::Ended, &self.subject, since);
        if seen.present.contains(&self.subject) {
            event.reasons = vec![format!("it lasted from {since} to {}", Millis(self.seen))];
        } else {
            event.title = format!("{} is not a target any more", self.subject);
        }
        event
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::conditions::Condition;

    const MINUTE: i64 = 60_000;

    fn rules() -> Rules {
        Rules {
            kinds: None,
            after: Duration::from_secs(120),
            remind: Duration::from_secs(3600),
        }
    }

    fn seen(minute: i64, red: bool) -> Seen {
        let mut seen = Seen {
            now: Millis(minute * MINUTE),
            present: BTreeSet::from(["app".to_owned()]),
            ..Seen::default()
        };
        if red {
            let condition = Condition {
                kind: Kind::Unsafe,
                subject: "app".into(),
                reasons: vec!["lag".into()],
                hints: vec![],
                patience: Duration::ZERO,
            };
            seen.conditions.insert("unsafe app".into(), condition);
        }
        seen
    }

    /// Steps through moments; the phases that were told, with their minute.
    fn told(
        ledger: &mut Ledger,
        moments: impl IntoIterator<Item = (i64, bool)>,
    ) -> Vec<(i64, Phase)> {
        let mut told = Vec::new();
        for (minute, red) in moments {
            ledger.step(&seen(minute, red), &rules(), || format!("{minute}"));
            while let Some(batch) = ledger.due(Millis(i64::MAX / 2)).cloned() {
                told.extend(batch.events.iter().map(|e| (minute, e.phase)));
                ledger.delivered();
            }
        }
        told
    }

    #[test]
    fn once_when_it_starts_reminders_and_once_when_it_ends() {
        let red = (1..=130).map(|m| (m, true));
        let green = (131..=140).map(|m| (m, false));
        let told = told(&mut Ledger::default(), red.chain(green));
        let expected = [
            (3, Phase::Started),
            (63, Phase::Reminder),
            (123, Phase::Reminder),
            (132, Phase::Ended),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn short_troubles_and_flapping_are_not_told() {
        // On and off each minute is one trouble.
        let flapping = (0..60).map(|m| (m, m % 2 == 0));
        assert_eq!(
            told(&mut Ledger::default(), flapping),
            [(2, Phase::Started)]
        );
        let short = (0..100).map(|m| (m, m % 10 == 0));
        assert_eq!(told(&mut Ledger::default(), short), []);
    }

    #[test]
    fn a_restart_neither_repeats_nor_ends_what_lasts() {
        let mut ledger = Ledger::default();
        assert_eq!(told(&mut ledger, (0..10).map(|m| (m, true))).len(), 1);
        let kept = serde_json::to_string(&ledger).unwrap();
        let mut ledger: Ledger = serde_json::from_str(&kept).unwrap();
        ledger.resumed(Millis(30 * MINUTE));
        // Nothing is known in the first minute.
        assert_eq!(told(&mut ledger, [(30, false), (31, true), (32, true)]), []);
        assert_eq!(
            told(&mut ledger, [(33, false), (35, false)]),
            [(35, Phase::Ended)]
        );
    }

    /// A process that was started again attaches and lists for longer than `after`: that is not safe, only not known yet.
    #[test]
    fn a_start_that_takes_its_time_ends_nothing() {
        let mut ledger = Ledger::default();
        assert_eq!(told(&mut ledger, (0..10).map(|m| (m, true))).len(), 1);
        ledger.resumed(Millis(30 * MINUTE));
        let beginning = |minute| {
            let mut seen = seen(minute, true);
            let mut first = seen.conditions.remove("unsafe app").unwrap();
            first.patience = Duration::from_secs(3600);
            seen.conditions.insert("unsafe first app".into(), first);
            seen
        };
        for minute in 30..60 {
            ledger.step(&beginning(minute), &rules(), String::new);
            assert_eq!(ledger.pending(), 0, "minute {minute}");
        }
        assert!(ledger.is_open());
        // Known again: it lasts, and then it is over.
        assert_eq!(told(&mut ledger, (60..63).map(|m| (m, true))), []);
        assert_eq!(
            told(&mut ledger, (63..66).map(|m| (m, false))),
            [(64, Phase::Ended)]
        );
    }

    #[test]
    fn a_clock_that_is_set_back_tells_within_the_usual_time() {
        let mut ledger = Ledger::default();
        assert_eq!(told(&mut ledger, (1000..1010).map(|m| (m, true))).len(), 1);
        assert_eq!(
            told(&mut ledger, (10..14).map(|m| (m, false))),
            [(12, Phase::Ended)]
        );
        let mut ledger = Ledger::default();
        ledger.step(&seen(1000, true), &rules(), String::new);
        assert_eq!(
            told(&mut ledger, (10..14).map(|m| (m, true))),
            [(12, Phase::Started)]
        );
        ledger.step(&seen(2000, false), &rules(), String::new);
        ledger.failed(Millis(2000 * MINUTE));
        ledger.step(&seen(10, true), &rules(), String::new);
    }

    #[test]
    fn tries_are_bounded_and_so_is_the_outbox() {
        let mut ledger = Ledger::default();
        for minute in 0..500 {
            ledger.step(&seen(minute * 100, minute % 2 == 0), &rules(), String::new);
            ledger.step(
                &seen(minute * 100 + 50, minute % 2 == 0),
                &rules(),
                String::new,
            );
            ledger.overflow();
        }
        assert_eq!(ledger.pending(), OUTBOX);
        let mut now = 0;
        for _ in 0..RETRY.len() {
            assert!(ledger.due(Millis(now)).is_some());
            assert_eq!(ledger.failed(Millis(now)), Tried::Later);
            assert!(ledger.due(Millis(now)).is_none());
            now = ledger.next_try;
        }
        assert_eq!(ledger.failed(Millis(now)), Tried::GaveUp);
        assert_eq!(ledger.pending(), OUTBOX - 1);
    }

    #[test]
    fn a_first_copy_is_told_once_and_only_what_is_wanted() {
        let mut moment = seen(1, true);
        moment.copied.insert("app".into());
        let mut ledger = Ledger::default();
        assert!(ledger.step(&moment, &rules(), String::new));
        assert!(!ledger.step(&moment, &rules(), String::new));
        assert_eq!(
            ledger.due(moment.now).unwrap().events[0].kind,
            Kind::FirstSuccess
        );
        let only = Rules {
            kinds: Some(BTreeSet::from([Kind::DiskLow])),
            ..rules()
        };
        let mut ledger = Ledger::default();
        for minute in 0..10 {
            ledger.step(
                &Seen {
                    now: Millis(minute * MINUTE),
                    ..moment.clone()
                },
                &only,
                String::new,
            );
        }
        assert_eq!(ledger.pending(), 0);
    }
}
