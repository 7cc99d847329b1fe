//! Names for restore points, for every kind of target.
//!
//! Invariants
//! 1. A label is an object `lifeboat/labels/<label>.json` under its target's root, created conditionally and never changed: a name that is
//!    taken gets `#2`, `#3`, … appended. Only retention deletes labels.
//! 2. It is written after its point is durable and has been planned from a listing of that very store.
//! 3. A snapshot of several targets writes its set manifest last, after its files, under the root of the database that was captured last. Without
//!    a manifest the snapshot did not finish, and not every target is pinned. Files of a set alone have no manifest: their labels are tags.
//! 4. A label whose point is gone stays, and is reported as lost: it is never dropped silently.
//!
//! What a label does **not** guarantee: that two targets of a set stand at one instant. Queues come first, so that a restored queue never
//! knows more than the data.

mod expire;
mod find;
mod objects;

pub use expire::{Expiry, Rules, expired};
pub use find::{FindError, Named, find, find_named};
pub use objects::{Cache, LabelError, create, create_set, delete, delete_named, list, read_set};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::replica::layout::MAX_LABEL_BYTES;
use crate::types::{Millis, Txid};

/// Bytes left for an appended `#` and its number.
const SUFFIX_BYTES: usize = 5;
/// Unicode's format characters (`Cf`), line and paragraph separators, and letters without ink.
const UNSEEN: [(char, char); 24] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff9}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0001}', '\u{e007f}'),
];
/// Labels that Lifeboat sets by itself begin so.
pub const AUTO_PREFIX: &str = "auto/";

/// What a label pins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Pin {
    /// A position of a SQLite replica.
    Sqlite {
        /// 16 hexadecimal digits.
        txid: String,
    },
    /// A dump, of PostgreSQL or Redis.
    Postgres {
        /// Its id.
        dump: String,
    },
    /// A snapshot of files.
    Files {
        /// Its id.
        snapshot: String,
    },
}

impl Pin {
    /// A position of a SQLite replica.
    pub fn sqlite(txid: Txid) -> Self {
        Self::Sqlite {
            txid: txid.to_string(),
        }
    }

    /// The position, for SQLite.
    pub fn txid(&self) -> Option<Txid> {
        match self {
            Self::Sqlite { txid } => Txid::from_hex(txid),
            Self::Postgres { .. } | Self::Files { .. } => None,
        }
    }

    /// What is pinned, in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Sqlite { txid } => format!("TXID {txid}"),
            Self::Postgres { dump } => format!("dump {dump}"),
            Self::Files { snapshot } => format!("snapshot {snapshot}"),
        }
    }
}

/// The set that a label belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRef {
    /// The target whose root holds the manifest.
    pub home: String,
    /// Names of all targets, in the order of their capture.
    pub targets: Vec<String>,
}

/// One label of one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Format of this object.
    pub format: u32,
    /// With what was appended.
    pub label: String,
    /// When the point was taken, RFC 3339 in UTC.
    pub at: String,
    /// The point.
    pub pin: Pin,
    /// The app's version, if the label belongs to a deploy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Who set it.
    pub instance: String,
    /// Set when several targets were labelled at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetRef>,
    /// When the store says the object was written; not part of it.
    #[serde(skip)]
    pub written: Option<Millis>,
}

impl Label {
    /// The label without what was appended, and its number.
    pub fn base(&self) -> (&str, u32) {
        split(&self.label)
    }

    /// Set by Lifeboat itself.
    pub fn is_auto(&self) -> bool {
        self.label.starts_with(AUTO_PREFIX)
    }

    /// When the point was taken; the epoch if the object is damaged, so that it never counts as new.
    pub fn at(&self) -> Millis {
        let parsed: Result<jiff::Timestamp, _> = self.at.parse();
        Millis(parsed.map_or(0, jiff::Timestamp::as_millisecond))
    }

    /// When the point was taken, as far as order goes: a label of a fast clock is no newer than the store's own time for it.
    pub fn taken(&self) -> Millis {
        self.written.map_or(self.at(), |w| w.min(self.at()))
    }

    /// Since when it counts as old: whoever set it may have had a slow clock, and the store knows when it came.
    pub fn since(&self) -> Millis {
        self.written.map_or(self.at(), |w| w.max(self.at()))
    }
}

/// `before-v42#2` is `before-v42`, number 2; without a number it is the first.
pub(crate) fn split(label: &str) -> (&str, u32) {
    match label.rsplit_once('#').map(|(b, n)| (b, n.parse::<u32>())) {
        Some((base, Ok(number))) if number > 0 => (base, number),
        _ => (label, 1),
    }
}

/// The name with a number appended, from the second on.
pub fn numbered(base: &str, number: u32) -> String {
    match number {
        0 | 1 => base.to_owned(),
        n => format!("{base}#{n}"),
    }
}

/// The version in a deploy hook's label.
pub fn version_of(label: &str) -> Option<String> {
    let version = label.strip_prefix("before-")?;
    (!version.is_empty()).then(|| version.to_owned())
}

/// A label as people read it: with the version that it belongs to, where its name does not say it.
pub fn with_version(label: &str, version: Option<&str>) -> String {
    match version.filter(|v| version_of(split(label).0).as_deref() != Some(v)) {
        Some(version) => format!("{label} (version {version})"),
        None => label.to_owned(),
    }
}

/// Why a label cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadLabel {
    /// Nothing.
    #[error("the label is empty")]
    Empty,
    /// Too long for an object's name.
    #[error("the label has {0} bytes; it may have {max}", max = MAX_LABEL_BYTES - SUFFIX_BYTES)]
    Long(usize),
    /// A character that would not be seen.
    #[error("the label {0:?} holds a character that is not seen, or space at an end")]
    Invisible(String),
    /// Appended by Lifeboat.
    #[error("the label \"{0}\" holds #, which Lifeboat appends to a label that is taken")]
    Hash(String),
    /// Lifeboat's own.
    #[error("labels that begin with {AUTO_PREFIX} are Lifeboat's own")]
    Auto,
}

impl BadLabel {
    /// The next step for a person.
    pub fn hint(&self) -> String {
        "for example --label before-v42; any letters, digits, dots, dashes and slashes do".into()
    }
}

/// Checks a label that a person gives. Any visible character is right: the object's name escapes it.
pub fn check(label: &str) -> Result<(), BadLabel> {
    if label.is_empty() {
        return Err(BadLabel::Empty);
    }
    if label.len() > MAX_LABEL_BYTES - SUFFIX_BYTES {
        return Err(BadLabel::Long(label.len()));
    }
    if label.chars().any(is_unseen) || label.trim() != label {
        return Err(BadLabel::Invisible(label.to_owned()));
    }
    if label.contains('#') {
        return Err(BadLabel::Hash(label.to_owned()));
    }
    if label.starts_with(AUTO_PREFIX) {
        return Err(BadLabel::Auto);
    }
    Ok(())
}

/// Control characters, and those that are not seen or turn the text around them: two names that look the same must be the same.
fn is_unseen(c: char) -> bool {
    let of_format = UNSEEN
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&c));
    c.is_control() || of_format
}

/// A label of Lifeboat's own: what it is before, and when, without colons.
pub fn auto(what: &str, at: Millis) -> String {
    let time = at.to_string();
    let seconds = time.split('.').next().unwrap_or(&time);
    let time: String = seconds
        .trim_end_matches('Z')
        .chars()
        .filter(|c| !matches!(c, '-' | ':'))
        .collect();
    format!("{AUTO_PREFIX}{what}-{time}Z")
}

/// How long ago, in the largest unit that fits.
pub fn age(at: Millis, now: Millis) -> String {
    let seconds = now.since(at).max(0) / 1000;
    match seconds {
        s if s < 120 => format!("{s}s"),
        s if s < 2 * 3600 => format!("{}m", s / 60),
        s if s < 2 * 86_400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_labels_are_right_or_refused_with_a_reason() {
        for good in ["before-v42", "a b", "Ünïcode ✓", "../x", "a/b", "v1.0"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        assert_eq!(check(""), Err(BadLabel::Empty));
        assert_eq!(check(&"x".repeat(76)), Err(BadLabel::Long(76)));
        let odd = [
            "a\u{200b}b",
            "\u{202e}24v",
            "a\u{ad}",
            "\u{feff}a",
            "\u{e0041}",
        ];
        for bad in ["a\nb", " a", "a\t", "\u{7f}"].into_iter().chain(odd) {
            assert!(matches!(check(bad), Err(BadLabel::Invisible(_))), "{bad:?}");
        }
        assert!(matches!(check("a#2"), Err(BadLabel::Hash(_))));
        assert_eq!(check("auto/x"), Err(BadLabel::Auto));
    }

    #[test]
    fn numbers_append() {
        assert_eq!(numbered("a", 1), "a");
        assert_eq!(numbered("a", 2), "a#2");
        assert_eq!(split("a#2"), ("a", 2));
        assert_eq!(split("a#x"), ("a#x", 1));
        assert_eq!(version_of("before-v42"), Some("v42".into()));
        assert_eq!(version_of("nightly"), None);
    }

    #[test]
    fn auto_labels_name_the_time() {
        assert_eq!(
            auto("before-restore", Millis(1_700_000_000_123)),
            "auto/before-restore-20231114T221320Z"
        );
        assert_eq!(age(Millis(0), Millis(90_000)), "90s");
        assert_eq!(age(Millis(0), Millis(3 * 86_400_000)), "3d");
    }
}
