use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::Label;
use crate::types::Millis;

/// Of each kind of automatic label so many are kept.
const AUTO_KEEP: usize = 5;
/// Deploys whose labels never end: the current one and the one before.
const DEPLOYS_KEPT: usize = 2;
/// What the hook after a deploy records: the version serves. A label before a deploy tells only that one was tried.
const DEPLOYED_PREFIX: &str = "deployed-";

/// When labels end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// So many of a target's labels, the newest.
    pub keep: usize,
    /// And none older than this.
    pub max_age: Duration,
}

impl Rules {
    /// Weeks of daily deploys; a release of a quarter ago is nobody's way back.
    pub const DEFAULT: Self = Self {
        keep: 20,
        max_age: Duration::from_secs(90 * 86_400),
    };
}

impl Default for Rules {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Why a label ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Older than allowed.
    Age,
    /// Enough newer ones.
    Count,
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Age => "older than labels.max-age",
            Self::Count => "more than labels.keep newer ones",
        })
    }
}

/// The labels that end now. The labels of the current and the previous deploy never do. Pure.
pub fn expired<'a>(labels: &'a [Label], rules: &Rules, now: Millis) -> Vec<(&'a Label, Expiry)> {
    let mut newest_first: Vec<&Label> = labels.iter().collect();
    // The store's times may all be one, as in a copy that lost them.
    newest_first.sort_by_key(|l| std::cmp::Reverse((l.taken(), l.at(), l.base().1)));
    let tried = newest_first.iter().filter_map(|l| l.version.as_deref());
    let done = newest_first.iter().filter_map(|l| deployed(l));
    let kept: BTreeSet<&str> = newest(tried).into_iter().chain(newest(done)).collect();
    let max_age = i64::try_from(rules.max_age.as_millis()).unwrap_or(i64::MAX);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ended = Vec::new();
    for label in newest_first {
        let kind = auto_kind(label);
        let count = seen.entry(kind).or_default();
        *count += 1;
        let version = label.version.as_deref().or_else(|| deployed(label));
        if version.is_some_and(|v| kept.contains(v)) {
            continue;
        }
        let keep = if kind.is_empty() {
            rules.keep
        } else {
            AUTO_KEEP
        };
        if now.since(label.since()) > max_age {
            ended.push((label, Expiry::Age));
        } else if *count > keep {
            ended.push((label, Expiry::Count));
        }
    }
    ended
}

/// The version of a deploy that was done.
fn deployed(label: &Label) -> Option<&str> {
    label.base().0.strip_prefix(DEPLOYED_PREFIX)
}

/// The first different ones.
fn newest<'a>(versions: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    for version in versions {
        if found.len() < DEPLOYS_KEPT && !found.contains(&version) {
            found.push(version);
        }
    }
    found
}

/// `auto/schema-2023…` is `auto/schema`; a person's label is of no kind.
fn auto_kind(label: &Label) -> &str {
    if !label.is_auto() {
        return "";
    }
    label
        .label
        .rsplit_once('-')
        .map_or(&label.label, |(k, _)| k)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Pin;
    use crate::types::Txid;

    const DAY: i64 = 86_400_000;

    fn label(name: &str, days: i64, version: Option<&str>) -> Label {
        Label {
            format: 1,
            label: name.into(),
            at: Millis(days * DAY).to_string(),
            pin: Pin::sqlite(Txid::FIRST),
            version: version.map(str::to_owned),
            instance: "web1".into(),
            set: None,
            written: None,
        }
    }

    fn names(labels: &[Label], now_days: i64) -> Vec<String> {
        let mut ended: Vec<String> = expired(labels, &Rules::default(), Millis(now_days * DAY))
            .into_iter()
            .map(|(l, why)| format!("{}:{why:?}", l.label))
            .collect();
        ended.sort();
        ended
    }

    #[test]
    fn count_and_age_end_a_label() {
        let many: Vec<Label> = (0..22)
            .map(|i| label(&format!("l{i:02}"), i, None))
            .collect();
        assert_eq!(names(&many, 30), ["l00:Count", "l01:Count"]);
        assert_eq!(
            names(&[label("old", 1, None), label("new", 10, None)], 100),
            ["old:Age"]
        );
    }

    #[test]
    fn a_label_of_a_slow_clock_is_as_old_as_its_object() {
        let mut slow = label("before-migration", 1, None);
        slow.written = Some(Millis(400 * DAY));
        assert_eq!(names(std::slice::from_ref(&slow), 480), [""; 0]);
        assert_eq!(names(&[slow], 491), ["before-migration:Age"]);
        // One of a fast clock, or of a replica that was copied from elsewhere with its times.
        let mut fast = label("l", 400, None);
        fast.written = Some(Millis(DAY));
        assert_eq!(names(&[fast], 480), [""; 0]);
    }

    #[test]
    fn the_last_two_deploys_stay_however_old() {
        let labels = [
            label("before-v1", 1, Some("v1")),
            label("before-v2", 2, Some("v2")),
            label("before-v2#2", 3, Some("v2")),
            label("before-v3", 4, Some("v3")),
        ];
        assert_eq!(names(&labels, 1000), ["before-v1:Age"]);
        // Rolled back: the first version is the current one again.
        let mut back = labels.to_vec();
        back.push(label("before-v1#2", 5, Some("v1")));
        assert_eq!(names(&back, 1000), ["before-v2#2:Age", "before-v2:Age"]);
    }

    /// A label that a fast clock dated into the future is not the current deploy for ever.
    #[test]
    fn a_deploy_of_a_fast_clock_takes_no_place_of_those_that_came_after_it() {
        let mut labels = [
            label("before-v1", 900, Some("v1")),
            label("before-v2", 2, Some("v2")),
            label("before-v3", 3, Some("v3")),
        ];
        for (day, label) in (1..).zip(&mut labels) {
            label.written = Some(Millis(day * DAY));
        }
        assert_eq!(names(&labels, 1000), ["before-v1:Age"]);
    }

    /// Deploys that were tried and failed do not push out the one that serves.
    #[test]
    fn the_deploy_that_serves_stays_behind_any_number_that_failed() {
        let labels = [
            label("before-v1", 1, Some("v1")),
            label("deployed-v1", 1, None),
            label("before-v2", 2, Some("v2")),
            label("deployed-v2", 2, None),
            label("before-v3", 3, Some("v3")),
            label("deployed-v3", 3, None),
            label("before-v4", 4, Some("v4")),
            label("before-v5", 5, Some("v5")),
            label("before-v6", 6, Some("v6")),
        ];
        assert_eq!(
            names(&labels, 1000),
            ["before-v1:Age", "before-v4:Age", "deployed-v1:Age"]
        );
    }

    #[test]
    fn automatic_labels_are_bounded_by_themselves() {
        let mut labels: Vec<Label> = (0..8)
            .map(|i| label(&format!("auto/schema-2023010{i}T000000Z"), i, None))
            .collect();
        labels.push(label("mine", 0, None));
        let ended = names(&labels, 10);
        assert_eq!(ended.len(), 3, "{ended:?}");
        assert!(
            ended.iter().all(|e| e.starts_with("auto/schema")),
            "{ended:?}"
        );
    }
}
