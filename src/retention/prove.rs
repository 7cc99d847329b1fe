use std::collections::BTreeSet;

use super::{Decision, Refused, RetentionPlan};
use crate::types::{Level, Span, Txid};

/// Looks for every kept point in what would remain, independently of how it was planned: forwards, state by state, over all files at
/// once. Whatever was chosen, the newest point of all that is there and the newest level-0 file must remain.
pub fn prove(plan: &RetentionPlan) -> Result<(), Refused> {
    let states = states(plan.decisions.iter().filter(|d| d.keep));
    let newest = states_of_all(plan);
    let mut needed = plan.kept.iter().chain(&newest);
    if let Some(lost) = needed.find(|txid| !states.contains(txid)) {
        return Err(Refused::WouldLose(*lost));
    }
    let newest_capture = |kept: bool| {
        let captures = plan
            .decisions
            .iter()
            .filter(|d| d.entry.span.level() == Level::CAPTURE && (d.keep || !kept));
        captures.map(|d| d.entry.span.max()).max()
    };
    match newest_capture(false) {
        Some(lost) if newest_capture(true) != Some(lost) => Err(Refused::WouldLose(lost)),
        _ => Ok(()),
    }
}

/// The newest point of everything, kept or not.
fn states_of_all(plan: &RetentionPlan) -> Option<Txid> {
    states(plan.decisions.iter()).last().copied()
}

/// A state is a TXID at which the database would stand; a base gives its last TXID, a file that begins at or before the next TXID of a
/// state gives its own last.
fn states<'a>(decisions: impl Iterator<Item = &'a Decision>) -> BTreeSet<Txid> {
    let mut left: Vec<Span> = decisions.map(|d| d.entry.span).collect();
    let mut states: BTreeSet<Txid> = BTreeSet::new();
    loop {
        let before = left.len();
        left.retain(|file| {
            let file = *file;
            let gives = file.is_base()
                || states
                    .range(..file.max())
                    .next_back()
                    .is_some_and(|state| state.next() >= file.min());
            if gives {
                states.insert(file.max());
            }
            !gives
        });
        if left.len() == before {
            break;
        }
    }
    states
}
