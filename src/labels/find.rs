use thiserror::Error;

use super::{Label, age, split};
use crate::types::Millis;

/// Why a label names no one point.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FindError {
    /// No such label.
    #[error("no label \"{wanted}\"; nothing was changed")]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// The nearest one there is.
        nearest: Option<String>,
    },
    /// Several.
    #[error("the label \"{wanted}\" is ambiguous: {candidates}; nothing was changed")]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// What it could mean, with ages.
        candidates: String,
        /// The newest of them.
        newest: String,
    },
    /// Several, of which one will do where a whole set is wanted.
    #[error(
        "the label \"{wanted}\" is ambiguous, and only the snapshot {whole} finished; nothing was changed"
    )]
    OneWhole {
        /// What was asked for.
        wanted: String,
        /// That one.
        whole: String,
    },
}

impl FindError {
    /// The next step for a person.
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown {
                nearest: Some(n), ..
            } => format!("did you mean --label {n}? `lifeboat list` shows all labels"),
            Self::Unknown { nearest: None, .. } => {
                "there are no labels yet; `lifeboat snapshot --label L` sets one".into()
            }
            Self::Ambiguous { newest, .. } | Self::OneWhole { whole: newest, .. } => {
                format!("name one of them, for example --label '{newest}'")
            }
        }
    }

    /// 3: nothing to restore; 2: say more.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unknown { .. } => 3,
            Self::Ambiguous { .. } | Self::OneWhole { .. } => 2,
        }
    }
}

/// What a label is found by.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// With what was appended.
    pub label: &'a str,
    /// When its point was taken, see [`Label::taken`].
    pub at: Millis,
    /// The app's version, if it belongs to a deploy.
    pub version: Option<&'a str>,
}

/// Finds a label by its name, by `name#number` (`#1` is the first), or by the version of its deploy. Pure.
pub fn find<'a>(labels: &'a [Label], wanted: &str, now: Millis) -> Result<&'a Label, FindError> {
    let named: Vec<Named<'_>> = labels
        .iter()
        .map(|l| Named {
            label: &l.label,
            at: l.taken(),
            version: l.version.as_deref(),
        })
        .collect();
    Ok(&labels[find_named(&named, wanted, now)?])
}

/// [`find`] where labels are no objects of their own: the position of the one that is meant. Pure.
pub fn find_named(labels: &[Named<'_>], wanted: &str, now: Millis) -> Result<usize, FindError> {
    let (base, number) = split(wanted);
    let numbered = wanted.contains('#');
    let mut found: Vec<usize> = Vec::new();
    for (at, label) in labels.iter().enumerate() {
        let (b, n) = split(label.label);
        if b == base && (!numbered || n == number) {
            found.push(at);
        }
    }
    if found.is_empty() {
        let of_version = |at: &usize| labels[*at].version == Some(wanted);
        found = (0..labels.len()).filter(of_version).collect();
    }
    found.sort_by_key(|at| (labels[*at].at, split(labels[*at].label).1));
    let shown = |at: usize| {
        let (b, n) = split(labels[at].label);
        format!("{b}#{n}")
    };
    match found.as_slice() {
        [one] => Ok(*one),
        [] => {
            let nearest = labels
                .iter()
                .min_by_key(|l| strsim::damerau_levenshtein(l.label, wanted));
            Err(FindError::Unknown {
                wanted: wanted.to_owned(),
                nearest: nearest.map(|l| l.label.to_owned()),
            })
        }
        [.., newest] => {
            let candidates: Vec<String> = found
                .iter()
                .map(|at| format!("{} ({} ago)", shown(*at), age(labels[*at].at, now)))
                .collect();
            Err(FindError::Ambiguous {
                wanted: wanted.to_owned(),
                candidates: candidates.join(", "),
                newest: shown(*newest),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Pin;
    use crate::types::Txid;

    fn label(name: &str, at: i64, version: Option<&str>) -> Label {
        Label {
            format: 1,
            label: name.into(),
            at: Millis(at).to_string(),
            pin: Pin::sqlite(Txid::FIRST),
            version: version.map(str::to_owned),
            instance: "web1".into(),
            set: None,
            written: None,
        }
    }

    #[test]
    fn by_name_number_and_version() {
        let labels = [
            label("before-v41", 1, Some("v41")),
            label("before-v42", 2, Some("v42")),
            label("before-v42#2", 3, Some("v42")),
        ];
        let now = Millis(60_003);
        let get = |wanted| find(&labels, wanted, now).map(|l| l.label.as_str());
        assert_eq!(get("before-v41"), Ok("before-v41"));
        assert_eq!(get("v41"), Ok("before-v41"));
        assert_eq!(get("before-v42#2"), Ok("before-v42#2"));
        assert_eq!(get("before-v42#1"), Ok("before-v42"));
        let ambiguous = get("before-v42").unwrap_err();
        assert!(
            ambiguous
                .to_string()
                .contains("before-v42#1 (60s ago), before-v42#2 (60s ago)"),
            "{ambiguous}"
        );
        assert_eq!(ambiguous.exit_code(), 2);
        // What a fast clock dated is not the newest.
        let mut fast = labels.clone();
        fast[1].at = Millis(86_400_000).to_string();
        fast[1].written = Some(Millis(2));
        fast[2].written = Some(Millis(3));
        assert!(
            matches!(find(&fast, "before-v42", now), Err(FindError::Ambiguous { newest, .. }) if newest == "before-v42#2")
        );
        let unknown = get("befor-v41").unwrap_err();
        assert!(unknown.hint().contains("--label before-v41"), "{unknown}");
        assert_eq!(get("before-v42#9").unwrap_err().exit_code(), 3);
        assert!(
            find(&[], "x", now)
                .unwrap_err()
                .hint()
                .contains("no labels")
        );
    }
}
