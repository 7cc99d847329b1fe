use std::collections::BTreeSet;

use super::{Refused, RetentionPlan};
use crate::types::{Span, Txid};

/// Looks for every kept point in what would remain, independently of how it was planned: forwards, state by state, over all files at
/// once. A state is a TXID at which the database would stand; a base gives its last TXID, a file that begins at or before the next TXID
/// of a state gives its own last.
pub fn prove(plan: &RetentionPlan) -> Result<(), Refused> {
    let mut left: Vec<Span> = plan
        .decisions
        .iter()
        .filter(|d| d.keep)
        .map(|d| d.entry.span)
        .collect();
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
    match plan.kept.iter().find(|txid| !states.contains(txid)) {
        Some(lost) => Err(Refused::WouldLose(*lost)),
        None => Ok(()),
    }
}
