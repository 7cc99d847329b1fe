//! Object names below a replica's root, as Litestream 0.5 has them. Pure.

use crate::store::Kind;
use crate::types::{Level, Span};

/// Who may write.
pub const OWNER_KEY: &str = "lifeboat/owner.json";
/// Folder of labels.
pub const LABELS_PREFIX: &str = "lifeboat/labels";

/// How LTX files are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// S3: `<level, four hexadecimal digits>/<min>-<max>.ltx`.
    Hex,
    /// Elsewhere: `ltx/<level>/<min>-<max>.ltx`.
    Folder,
}

impl Layout {
    /// Litestream's layout for a kind of store.
    pub fn for_kind(kind: Kind) -> Self {
        match kind {
            Kind::S3 => Self::Hex,
            Kind::Azure | Kind::Google | Kind::File | Kind::Memory => Self::Folder,
        }
    }

    /// Folder of a level.
    pub fn level_prefix(self, level: Level) -> String {
        match self {
            Self::Hex => format!("{:04x}", level.get()),
            Self::Folder => format!("ltx/{}", level.get()),
        }
    }

    /// Key of a file.
    pub fn key(self, span: Span) -> String {
        format!("{}/{}", self.level_prefix(span.level()), span.file_name())
    }

    /// Reads a key back; `None` for anything that is no LTX file.
    pub fn parse(self, key: &str) -> Option<Span> {
        let (folder, name) = key.rsplit_once('/')?;
        let level = (0..=9)
            .filter_map(Level::new)
            .find(|l| self.level_prefix(*l) == folder)?;
        Span::parse_file_name(level, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Txid;

    #[test]
    fn names_as_litestream_has_them() {
        let t = |n| Txid::new(n).unwrap();
        let span = Span::new(Level::SNAPSHOT, t(1), t(0x1f)).unwrap();
        assert_eq!(
            Layout::Hex.key(span),
            "0009/0000000000000001-000000000000001f.ltx"
        );
        assert_eq!(
            Layout::Folder.key(span),
            "ltx/9/0000000000000001-000000000000001f.ltx"
        );
        for layout in [Layout::Hex, Layout::Folder] {
            assert_eq!(layout.parse(&layout.key(span)), Some(span));
            assert_eq!(layout.parse("lifeboat/owner.json"), None);
            assert_eq!(
                layout.parse("ltx/9/0000000000000002-0000000000000001.ltx"),
                None
            );
        }
    }
}
