//! Rules by which facts change, whoever changes them.

use std::sync::PoisonError;

use super::{Board, DrillFacts, DrillProblem, TargetFacts};
use crate::types::{Entry, Millis};

/// Takes in what a drill found, unless a later one is known; a problem before it is over.
pub fn note_drill(
    known: &mut Option<DrillFacts>,
    problem: &mut Option<DrillProblem>,
    new: DrillFacts,
) {
    if problem.as_ref().is_some_and(|p| p.at <= new.at) {
        *problem = None;
    }
    if known.as_ref().is_none_or(|d| d.at <= new.at) {
        *known = Some(new);
    }
}

/// A time of the future becomes `now`: what began then has lasted since now at the latest.
fn set_back(at: &mut Option<Millis>, now: Millis) {
    *at = at.map(|at| at.min(now));
}

impl TargetFacts {
    /// The clock was set back: what lasts would have no age until the old time comes again.
    fn set_back(&mut self, now: Millis) {
        for at in [
            &mut self.last_look,
            &mut self.uncaptured_since,
            &mut self.busy_since,
        ] {
            set_back(at, now);
        }
        for store in &mut self.stores {
            set_back(&mut store.oldest_pending, now);
            set_back(&mut store.failing_since, now);
            if let Some((since, _)) = &mut store.renewal {
                *since = (*since).min(now);
            }
        }
    }

    /// A capture waits for its upload. An uploader may have found it before this is told.
    pub fn pending(&mut self, captured: Entry) {
        for store in &mut self.stores {
            if store.durable.is_none_or(|d| d < captured.span.max()) {
                store.oldest_pending.get_or_insert(captured.created);
            }
        }
    }
}

impl Board {
    /// The clock was set back to `now`: nothing that is known began later.
    pub fn set_back(&self, now: Millis) {
        let all = self.targets.read().unwrap_or_else(PoisonError::into_inner);
        all.values()
            .for_each(|target| target.update(|f| f.set_back(now)));
        drop(all);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for f in files.values_mut() {
            set_back(&mut f.succeeded_at, now);
        }
        drop(files);
        let mut dumps = self.postgres.lock().unwrap_or_else(PoisonError::into_inner);
        for f in dumps.values_mut() {
            set_back(&mut f.succeeded_at, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{State, StoreFacts};
    use super::*;
    use crate::types::{Level, Span, Txid};
    use std::time::Duration;

    /// An outage began while the clock was a day ahead; then it is set back.
    #[test]
    fn an_outage_lasts_also_if_the_clock_is_set_back() {
        let (ahead, now) = (Millis(100_000_000), Millis(10_000_000));
        let board = Board::default();
        let store = StoreFacts {
            durable: Txid::new(1),
            oldest_pending: Some(ahead),
            failing_since: Some(ahead),
            ..StoreFacts::default()
        };
        let target = board.add(TargetFacts {
            name: "app".into(),
            state: State::Steady,
            captured: Txid::new(2),
            last_look: Some(ahead),
            objective: Duration::from_secs(30),
            stores: vec![store],
            ..TargetFacts::default()
        });
        board.update_files("f", "s", |f| f.succeeded_at = Some(ahead));
        board.set_back(now);
        let later = Millis(now.0 + 31_000);
        target.update(|f| f.last_look = Some(later));
        let verdict = crate::observe::health::verdict(&target.facts(), None, later);
        assert!(!verdict.safe && verdict.lag_seconds == 31.0, "{verdict:?}");
        assert!(verdict.reasons[1].contains("unreachable"), "{verdict:?}");
        assert_eq!(board.files()[0].succeeded_at, Some(now));
    }

    #[test]
    fn what_an_uploader_was_faster_with_is_not_pending() {
        let (at, txid) = (Millis(7), Txid::new(6).unwrap());
        let entry = Entry {
            span: Span::new(Level::CAPTURE, txid, txid).unwrap(),
            size: 1,
            created: at,
        };
        let pending = |durable: Option<u64>| {
            let store = StoreFacts {
                durable: durable.and_then(Txid::new),
                ..StoreFacts::default()
            };
            let mut facts = TargetFacts {
                stores: vec![store],
                ..TargetFacts::default()
            };
            facts.pending(entry);
            facts.stores[0].oldest_pending
        };
        assert_eq!(pending(Some(5)), Some(at));
        assert_eq!(pending(None), Some(at));
        assert_eq!(pending(Some(6)), None, "or it would lag for ever");
    }

    fn drill(at: i64) -> DrillFacts {
        DrillFacts {
            at: Millis(at),
            ok: true,
            failure: None,
            restore_seconds: 1.0,
            data_age_seconds: 1.0,
        }
    }

    #[test]
    fn only_a_later_drill_ends_what_kept_one_from_being_made() {
        let problem = DrillProblem {
            at: Millis(5),
            why: "no room".into(),
        };
        let (mut known, mut blocked) = (None, Some(problem));
        note_drill(&mut known, &mut blocked, drill(4));
        assert_eq!((known.clone(), blocked.is_some()), (Some(drill(4)), true));
        note_drill(&mut known, &mut blocked, drill(6));
        assert_eq!((known.clone(), blocked.is_some()), (Some(drill(6)), false));
        note_drill(&mut known, &mut blocked, drill(4));
        assert_eq!(known, Some(drill(6)), "an older record is no news");
    }
}
