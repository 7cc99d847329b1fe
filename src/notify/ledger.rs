//! What one channel was told and still has to be told. Pure: a file and a clock are somebody else's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::conditions::Seen;
use super::event::{Batch, Event, Kind, Phase};
use crate::types::Millis;

/// Undelivered batches that are kept; the oldest goes first.
const OUTBOX: usize = 100;
/// Between the first tries of one batch.
const RETRY: [Duration; 5] = [
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(30 * 60),
];
/// And between all others: a receiver that is back hears everything within it.
const RETRY_LAST: Duration = Duration::from_secs(3600);
/// Tries of one batch: for a day.
const TRIES: usize = RETRY.len() + 23;
/// Tries of a batch that the receiver will not take: it may have meant something else by it, but the others do not wait for long.
const TRIES_REFUSED: usize = 3;
/// A target is missing for so many times `after` before that is told: a restart reads what there is from stores and servers.
const GONE: i64 = 5;

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
    /// Those of them that are no targets now, and since when.
    #[serde(default)]
    missing: BTreeMap<String, i64>,
    outbox: VecDeque<Batch>,
    /// Failed tries of the first in the outbox.
    tries: usize,
    /// Not before this.
    next_try: i64,
    /// But once more from then on: there is something new to tell.
    #[serde(skip)]
    nudged: Option<i64>,
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
        self.next_try = self.next_try.min(now.0 + millis(RETRY_LAST));
    }

    /// Takes in one moment. `true`: there is something new to keep.
    pub fn step(&mut self, seen: &Seen, rules: &Rules, id: impl FnOnce() -> String) -> bool {
        let sizes = |l: &Self| (l.open.len(), l.copied.len(), l.missing.len());
        let before = sizes(self);
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
        let lasts = |(key, open): &(&String, &Open)| {
            seen.conditions.contains_key(*key) || seen.now.0 - open.seen.min(seen.now.0) < after
        };
        let lasting = self.open.iter().filter(lasts);
        let lasting: BTreeSet<(Kind, String)> =
            lasting.map(|(_, o)| (o.kind, o.subject.clone())).collect();
        self.open.retain(|key, open| {
            // A clock that was set back must not keep it open.
            open.seen = open.seen.min(seen.now.0);
            if seen.conditions.contains_key(key) || seen.now.0 - open.seen < after {
                return true;
            }
            // What was told is over only if nothing of the kind lasts, and if that is known.
            let what = (open.kind, open.subject.clone());
            if open.told.is_some() && (lasting.contains(&what) || seen.unsure.contains(&what)) {
                return true;
            }
            let is_said = |e: &Event| {
                (e.kind, e.phase, &e.subject) == (open.kind, Phase::Ended, &open.subject)
            };
            if open.told.is_some() && wanted(open.kind) && !events.iter().any(is_said) {
                events.push(open.ended(seen));
            }
            false
        });
        self.gone(seen, after, |event| {
            if wanted(event.kind) {
                events.push(event);
            }
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
            return before != sizes(self);
        }
        if self.tries > 0 {
            self.nudged.get_or_insert(seen.now.0 + millis(RETRY[0]));
        }
        self.outbox.push_back(Batch {
            id: id(),
            at: seen.now,
            events,
        });
        true
    }

    /// Whoever had a copy and is no target any more: a database that was found in a folder or on a server, or one that the configuration
    /// named. Nothing else turns red by it.
    fn gone(&mut self, seen: &Seen, after: i64, mut tell: impl FnMut(Event)) {
        // Nothing was seen at all: not even who there is.
        if seen.present.is_empty() {
            return;
        }
        let absent = |name: &String| !seen.is_present(name);
        self.missing
            .retain(|name, _| absent(name) && self.copied.contains(name));
        for name in self.copied.iter().filter(|name| absent(name)) {
            let since = self.missing.entry(name.clone()).or_insert(seen.now.0);
            // A clock that was set back begins to count again.
            *since = (*since).min(seen.now.0);
        }
        let due = |since: i64| seen.now.0 - since >= after.saturating_mul(GONE);
        for (name, since) in self.missing.iter().filter(|(_, since)| due(**since)) {
            self.copied.remove(name);
            tell(Event::gone(name, Millis(*since)));
        }
        self.missing.retain(|name, _| self.copied.contains(name));
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
        let waits = now.0 < self.next_try && self.next_try - now.0 <= millis(RETRY_LAST);
        let is_nudged = self.nudged.is_some_and(|at| at <= now.0);
        self.outbox.front().filter(|_| !waits || is_nudged)
    }

    /// Batches that were not delivered yet.
    pub fn pending(&self) -> usize {
        self.outbox.len()
    }

    /// The first batch arrived.
    pub fn delivered(&mut self) {
        self.outbox.pop_front();
        (self.tries, self.next_try, self.nudged) = (0, 0, None);
    }

    /// The first batch did not arrive. `refused`: the receiver will not take this one.
    pub fn failed(&mut self, now: Millis, refused: bool) -> Tried {
        if self.nudged.take().is_some() && now.0 < self.next_try {
            // One try more than planned: nothing is given up any sooner for it.
            return Tried::Later;
        }
        let tries = if refused { TRIES_REFUSED } else { TRIES };
        if self.tries >= tries {
            self.delivered();
            return Tried::GaveUp;
        }
        let wait = RETRY.get(self.tries).unwrap_or(&RETRY_LAST);
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
        if seen.is_present(&self.subject) {
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
mod tests;
