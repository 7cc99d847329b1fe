//! Where objects of one target lie, relative to the target's root in the store. Pure.
//!
//! LTX objects lie where Litestream 0.5 puts them for the same kind of store, so that either program
//! restores and continues the other's replicas: level directories of four hexadecimal digits on S3,
//! `ltx/<level>` everywhere else. Lifeboat's own objects lie under `lifeboat/`, where Litestream does
//! not look.

use crate::store::Kind;
use crate::types::{Level, Millis, Span};

/// Longest label in bytes. Each byte takes up to three in the object's name, and file systems end a
/// name at 255.
pub const MAX_LABEL_BYTES: usize = 80;

/// Who owns the replica.
pub const OWNER_KEY: &str = "lifeboat/owner.json";

/// Every label lies under this prefix.
pub const LABELS_PREFIX: &str = "lifeboat/labels";

/// Every manifest of a labelled set lies under this prefix.
pub const SETS_PREFIX: &str = "lifeboat/sets";

/// Every drill's record lies under this prefix.
pub const DRILLS_PREFIX: &str = "lifeboat/drills";

/// What a drill that is under way pins lies under this prefix.
pub const DRILLING_PREFIX: &str = "lifeboat/drilling";

/// How LTX objects are named in one kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `0000/<min>-<max>.ltx`: S3 and what speaks its protocol.
    S3Hex,
    /// `ltx/0/<min>-<max>.ltx`: everything else.
    Ltx,
}

impl Layout {
    /// The layout Litestream uses for this kind of store.
    pub fn for_kind(kind: Kind) -> Self {
        match kind {
            Kind::S3 => Layout::S3Hex,
            Kind::Azure | Kind::Google | Kind::File | Kind::Memory => Layout::Ltx,
        }
    }

    /// The directory of a level, without a slash at the end.
    pub fn level_prefix(self, level: Level) -> String {
        match self {
            Layout::S3Hex => format!("{:04x}", level.get()),
            Layout::Ltx => format!("ltx/{}", level.get()),
        }
    }

    /// Every directory that files of a level may lie in. On S3 a replica that was copied there from
    /// another kind of store keeps that store's names.
    pub fn listing_prefixes(self, level: Level) -> Vec<String> {
        match self {
            Layout::S3Hex => vec![self.level_prefix(level), Layout::Ltx.level_prefix(level)],
            Layout::Ltx => vec![self.level_prefix(level)],
        }
    }

    /// The key of an LTX object.
    pub fn key(self, span: Span) -> String {
        format!("{}/{}", self.level_prefix(span.level()), span.file_name())
    }

    /// Reads [`Layout::key`] back. [`Layout::S3Hex`] also accepts the names of [`Layout::Ltx`].
    /// `None` for everything that is not an LTX object of a known level.
    pub fn parse(self, key: &str) -> Option<Span> {
        let (directory, name) = key.rsplit_once('/')?;
        let level = match (self, directory.strip_prefix("ltx/")) {
            (_, Some(level)) => decimal_level(level)?,
            (Layout::S3Hex, None) => hex_level(directory)?,
            (Layout::Ltx, None) => return None,
        };
        Span::parse_file_name(level, name)
    }
}

fn decimal_level(text: &str) -> Option<Level> {
    match text.as_bytes() {
        [digit @ b'0'..=b'9'] => Level::new(digit - b'0'),
        _ => None,
    }
}

fn hex_level(text: &str) -> Option<Level> {
    decimal_level(text.strip_prefix("000")?)
}

/// The key of a label. Bytes other than letters, digits, `-`, `_` and `.` (not first) become `=` and
/// two hexadecimal digits, so that no label leaves the directory, hides from a listing or looks like
/// an unfinished upload.
pub fn label_key(label: &str) -> String {
    let mut key = format!("{LABELS_PREFIX}/");
    for (at, byte) in label.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => key.push(char::from(byte)),
            b'.' if at > 0 => key.push('.'),
            _ => key.push_str(&format!("={byte:02X}")),
        }
    }
    key.push_str(".json");
    key
}

/// The key of a set's manifest, escaped as [`label_key`] does.
pub fn set_key(label: &str) -> String {
    label_key(label).replacen(LABELS_PREFIX, SETS_PREFIX, 1)
}

/// Reads [`label_key`] back; `None` for a key that it never makes.
pub fn parse_label_key(key: &str) -> Option<String> {
    let name = key
        .strip_prefix(LABELS_PREFIX)?
        .strip_prefix('/')?
        .strip_suffix(".json")?;
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'=' => hex_digit(rest.next()?)? * 16 + hex_digit(rest.next()?)?,
            other => other,
        });
    }
    let label = String::from_utf8(bytes).ok()?;
    (label_key(&label) == key).then_some(label)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

/// The key of a drill's record: its UTC time without colons, which some file systems refuse. Names
/// sort by time. Two drills in one millisecond share a key.
pub fn drill_key(at: Millis) -> String {
    let time: String = at
        .to_string()
        .chars()
        .filter(|c| *c != ':' && *c != '-')
        .collect();
    format!("{DRILLS_PREFIX}/{time}.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Txid;
    use proptest::prelude::*;

    fn span(level: u8, min: u64, max: u64) -> Span {
        let txid = |n| Txid::new(n).unwrap();
        Span::new(Level::new(level).unwrap(), txid(min), txid(max)).unwrap()
    }

    #[test]
    fn names_are_litestreams() {
        let file = "0000000000000001-00000000000000ff.ltx";
        assert_eq!(Layout::S3Hex.key(span(9, 1, 255)), format!("0009/{file}"));
        assert_eq!(Layout::Ltx.key(span(9, 1, 255)), format!("ltx/9/{file}"));
    }

    #[test]
    fn s3_also_reads_the_other_layout() {
        let span = span(2, 3, 4);
        assert_eq!(Layout::S3Hex.parse(&Layout::Ltx.key(span)), Some(span));
        assert_eq!(Layout::Ltx.parse(&Layout::S3Hex.key(span)), None);
        assert_eq!(
            Layout::S3Hex.listing_prefixes(Level::CAPTURE),
            ["0000", "ltx/0"]
        );
        assert_eq!(Layout::Ltx.listing_prefixes(Level::CAPTURE), ["ltx/0"]);
    }

    #[test]
    fn strangers_are_not_ltx_objects() {
        let file = "0000000000000001-0000000000000001.ltx";
        for directory in [
            "", "0", "00", "000a", "000:", "0010", "ltx", "ltx/", "ltx/10", "ltx/00", "ltx/0/0",
            "x/0000", "/0000",
        ] {
            let key = format!("{directory}/{file}");
            assert_eq!(Layout::S3Hex.parse(&key), None, "{key}");
            assert_eq!(Layout::Ltx.parse(&key), None, "{key}");
        }
        for key in [
            file,
            "0000/x.ltx",
            "0000/",
            "",
            "0000/0000000000000001-0000000000000001.ltx.tmp",
            OWNER_KEY,
        ] {
            assert_eq!(Layout::S3Hex.parse(key), None, "{key}");
        }
    }

    #[test]
    fn odd_labels_stay_inside_the_directory() {
        assert_eq!(
            label_key("before-v42#2"),
            "lifeboat/labels/before-v42=232.json"
        );
        assert_eq!(label_key("../x"), "lifeboat/labels/=2E.=2Fx.json");
        assert_eq!(
            parse_label_key("lifeboat/labels/a=2fb.json"),
            None,
            "lower case is not ours"
        );
        assert_eq!(parse_label_key("lifeboat/labels/a=.json"), None);
        assert_eq!(parse_label_key("lifeboat/labels/a/b.json"), None);
    }

    #[test]
    fn drills_sort_by_time() {
        assert_eq!(
            drill_key(Millis(0)),
            "lifeboat/drills/19700101T000000.000Z.json"
        );
        assert!(drill_key(Millis(1_000)) < drill_key(Millis(1_001)));
    }

    proptest! {
        #[test]
        fn every_key_reads_back(level in 0u8..10, min in 1u64.., more in 0u64..1000) {
            let span = span(level, min, min.saturating_add(more));
            for layout in [Layout::S3Hex, Layout::Ltx] {
                prop_assert_eq!(layout.parse(&layout.key(span)), Some(span));
            }
        }

        #[test]
        fn every_label_reads_back(label in "\\PC{0,40}") {
            let key = label_key(&label);
            prop_assert!(key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./=".contains(&b)));
            prop_assert_eq!(key.matches('/').count(), 2);
            prop_assert_eq!(parse_label_key(&key), Some(label));
        }

        #[test]
        fn parsing_never_panics(key in ".{0,60}") {
            let _ = (Layout::S3Hex.parse(&key), parse_label_key(&key));
        }
    }
}
