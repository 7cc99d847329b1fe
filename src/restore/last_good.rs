//! The newest point whose database is sound, found by trying.
//!
//! A damaged database is copied faithfully, so damage sits in every point since it happened, until it is mended. Which points are damaged
//! is known only by restoring them. Halving alone would do only if damage never went away again; so the newest points are tried one by
//! one, then ever longer steps go back to a sound one, and only then is the space between the two closed in, the last part one by one
//! again. The answer was tried and is sound, and the point after it was tried and is not. Between longer steps sound points may
//! have been passed over; what was tried is told.

use std::collections::BTreeMap;
use std::path::Path;

use super::plan::{Goal, PlanError, Point};
use super::{Output, RestoreError, Verify, catalog, restore};
use crate::store::Store;
use crate::types::Millis;

/// Points that are tried one by one, at the newest end and at the end of the search. Damage is mostly noticed soon.
const ONE_BY_ONE: usize = 8;

/// A point that was restored and looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The point.
    pub point: Point,
    /// What is wrong with it.
    pub wrong: Option<String>,
}

/// The search: which point to try next. Knows nothing of stores.
#[derive(Debug)]
struct Walk {
    /// How many points there are; 0 is the oldest.
    points: usize,
    sound: BTreeMap<usize, bool>,
    /// How far the next step back goes.
    stride: usize,
}

enum Step {
    Try(usize),
    Found(usize),
    NoneIsSound,
}

impl Walk {
    fn new(points: usize) -> Self {
        Self {
            points,
            sound: BTreeMap::new(),
            stride: 1,
        }
    }

    fn next(&mut self) -> Step {
        let Some((&oldest_tried, _)) = self.sound.first_key_value() else {
            return match self.points {
                0 => Step::NoneIsSound,
                n => Step::Try(n - 1),
            };
        };
        let newest_sound = self.sound.iter().rev().find(|(_, sound)| **sound);
        let Some((&good, _)) = newest_sound else {
            if oldest_tried == 0 {
                return Step::NoneIsSound;
            }
            if self.sound.len() >= ONE_BY_ONE {
                self.stride *= 2;
            }
            return Step::Try(oldest_tried.saturating_sub(self.stride));
        };
        // Everything tried after it is damaged.
        let Some((&bad, _)) = self.sound.range(good + 1..).next() else {
            return Step::Found(good);
        };
        match bad - good {
            1 => Step::Found(good),
            gap if gap <= ONE_BY_ONE => Step::Try(bad - 1),
            gap => Step::Try(good + gap / 2),
        }
    }

    fn learn(&mut self, point: usize, sound: bool) {
        self.sound.insert(point, sound);
    }
}

/// Finds the newest sound point of a replica. Copies for trying are made beside `path`, one at a time. `told` hears of each point that was tried.
///
/// # Errors
/// [`PlanError::Empty`] without points of LTX files; [`RestoreError::NoneSound`]; what keeps it from trying.
pub async fn last_good(
    store: &Store,
    path: &Path,
    verify: Verify,
    now: Millis,
    mut told: impl FnMut(&Tried),
) -> Result<Point, RestoreError> {
    let points = catalog(store, Goal::Newest).await?.points();
    if points.is_empty() {
        return Err(PlanError::Empty.into());
    }
    let mut walk = Walk::new(points.len());
    loop {
        let at = match walk.next() {
            Step::Try(at) => at,
            Step::Found(at) => return Ok(points[at]),
            Step::NoneIsSound => {
                return Err(RestoreError::NoneSound {
                    tried: walk.sound.len(),
                    points: points.len(),
                });
            }
        };
        let (goal, nowhere) = (
            Goal::Txid(points[at].txid),
            Output::Nowhere(path.to_owned()),
        );
        let wrong = match restore(store, goal, nowhere, verify, now, |_| {}).await {
            Ok(_) => None,
            // Rolled up meanwhile: it is a point no more.
            Err(error) if error.exit_code() == 5 || matches!(error, RestoreError::Plan(_)) => {
                Some(error.to_string())
            }
            Err(error) => return Err(error),
        };
        walk.learn(at, wrong.is_none());
        told(&Tried {
            point: points[at],
            wrong,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer, and how many points were tried.
    fn search(points: usize, sound: impl Fn(usize) -> bool) -> (Option<usize>, Walk) {
        let mut walk = Walk::new(points);
        loop {
            match walk.next() {
                Step::Try(at) => {
                    assert!(!walk.sound.contains_key(&at), "{at} is tried twice");
                    walk.learn(at, sound(at));
                }
                Step::Found(at) => return (Some(at), walk),
                Step::NoneIsSound => return (None, walk),
            }
        }
    }

    #[test]
    fn damage_that_stays_is_found_exactly() {
        for points in [0, 1, 2, 7, 8, 9, 50, 1000] {
            for first_damaged in 0..=points {
                let (found, _) = search(points, |at| at < first_damaged);
                assert_eq!(
                    found,
                    first_damaged.checked_sub(1),
                    "{first_damaged} of {points}"
                );
            }
        }
    }

    #[test]
    fn few_points_are_tried() {
        for damaged in [1, 10, 100_000, 999_999] {
            let (found, walk) = search(1_000_000, |at| at < 1_000_000 - damaged);
            assert_eq!(found, Some(999_999 - damaged));
            assert!(walk.sound.len() <= 60, "{} for {damaged}", walk.sound.len());
        }
        let (found, walk) = search(1_000_000, |_| false);
        assert_eq!(found, None);
        assert!(walk.sound.contains_key(&0) && walk.sound.len() < 40);
    }

    proptest::proptest! {
        /// Whatever is damaged: the answer is sound, the point after it was tried and is not; the newest eight are never passed over; no answer
        /// only if everything that was tried, the oldest among it, is damaged.
        #[test]
        fn the_answer_is_sound_and_what_follows_is_not(sound in proptest::collection::vec(proptest::bool::ANY, 0..300), keep in 0usize..300) {
            let sound: Vec<bool> = sound.iter().enumerate().map(|(at, s)| *s && at < keep).collect();
            let (found, walk) = search(sound.len(), |at| sound[at]);
            match found {
                Some(at) => {
                    assert!(sound[at]);
                    assert!(!walk.sound.get(&(at + 1)).copied().unwrap_or(false));
                    assert!(at + 1 == sound.len() || walk.sound.contains_key(&(at + 1)));
                }
                None => {
                    assert!(walk.sound.values().all(|s| !s));
                    assert!(sound.is_empty() || walk.sound.contains_key(&0));
                }
            }
            let tail = sound.len().saturating_sub(ONE_BY_ONE);
            if let Some(newest) = (tail..sound.len()).rev().find(|at| sound[*at]) {
                assert_eq!(found, Some(newest));
            }
        }
    }
}
