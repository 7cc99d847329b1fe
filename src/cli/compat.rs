//! Litestream's habits: long flags with one dash, and their names.

use std::ffi::OsString;

/// Litestream's flag, ours.
const FLAGS: [(&str, &str); 8] = [
    ("-config", "--config"),
    ("-o", "--output"),
    ("-timestamp", "--at"),
    ("-txid", "--txid"),
    ("-if-db-not-exists", "--if-not-exists"),
    ("-if-replica-exists", "--if-replica-exists"),
    ("-json", "--json"),
    ("-no-expand-env", ""),
];

/// Rewrites single-dash flags of Litestream.
pub(super) fn translate(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    args.filter_map(|arg| {
        let Some(text) = arg.to_str() else {
            return Some(arg);
        };
        let (flag, value) = text
            .split_once('=')
            .map_or((text, None), |(f, v)| (f, Some(v)));
        match FLAGS.iter().find(|(theirs, _)| *theirs == flag) {
            Some((_, "")) => None,
            Some((_, ours)) => Some(value.map_or((*ours).into(), |v| format!("{ours}={v}").into())),
            None => Some(arg),
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_dashes() {
        let args = [
            "lifeboat",
            "restore",
            "-o",
            "x",
            "-timestamp=2026-11-20T10:30:00Z",
            "-if-db-not-exists",
            "a-b",
            "-q",
        ];
        let ours = translate(args.iter().map(OsString::from));
        let expected = [
            "lifeboat",
            "restore",
            "--output",
            "x",
            "--at=2026-11-20T10:30:00Z",
            "--if-not-exists",
            "a-b",
            "-q",
        ];
        assert_eq!(ours, expected.map(OsString::from));
    }
}
