//! Whether local history continues what a store has. Pure.
//!
//! A TXID alone proves nothing: a host that was set back to an older snapshot, a copy of its disk, or a rebuild from another store counts
//! the same TXIDs with other content. So before the first upload of a session the database checksum that the store's last file leaves is
//! compared with what the local files know about the same TXID.

use crate::types::{DbChecksum, Entry, Txid};

/// The last point of a chain in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// What is durable there.
    pub durable: Txid,
    /// The highest TXID of any object there, restorable or not: from here on TXIDs are free.
    pub top: Txid,
    /// Checksum of the database at `durable`; `None` where Litestream wrote it.
    pub checksum: Option<DbChecksum>,
}

/// What comparing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// The same database at the same TXID: local files may follow.
    Proven,
    /// No local file tells, and none may follow; a base above [`Edge::top`] may.
    Unknown,
    /// The store holds another history, or went further than this one.
    Diverged,
}

/// Compares. `at_edge` is what local files say the database was at [`Edge::durable`]: the checksum after the file that ends there, or before
/// the file that begins behind it.
pub fn join(edge: Edge, captured: Txid, at_edge: Option<DbChecksum>) -> Join {
    match (edge.checksum, at_edge) {
        (Some(theirs), Some(ours)) if theirs != ours => Join::Diverged,
        _ if edge.top > captured => Join::Diverged,
        (Some(_), Some(_)) => Join::Proven,
        // Litestream's files tell no checksum: the boundary is all there is.
        (None, Some(_)) => Join::Proven,
        (_, None) => Join::Unknown,
    }
}

/// The local file whose header tells the checksum at a TXID, and whether it is the one after it (`true`) or before.
pub fn witness(local: &[Entry], at: Txid) -> Option<(Entry, bool)> {
    let ends = local.iter().find(|e| e.span.max() == at);
    let begins = local.iter().find(|e| e.span.min() == at.next());
    ends.map(|e| (*e, true)).or(begins.map(|e| (*e, false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(durable: u64, top: u64, checksum: u64) -> Edge {
        Edge {
            durable: Txid::new(durable).unwrap(),
            top: Txid::new(top).unwrap(),
            checksum: DbChecksum::new(checksum),
        }
    }

    #[test]
    fn only_the_same_database_at_the_same_txid_is_continued() {
        let at = |n| Txid::new(n).unwrap();
        let sum = DbChecksum::new;
        assert_eq!(join(edge(5, 5, 9), at(7), sum(9)), Join::Proven);
        assert_eq!(join(edge(5, 5, 9), at(7), sum(8)), Join::Diverged);
        assert_eq!(join(edge(5, 5, 9), at(5), sum(9)), Join::Proven);
        assert_eq!(join(edge(5, 5, 9), at(4), None), Join::Diverged, "set back");
        assert_eq!(
            join(edge(5, 9, 9), at(7), sum(9)),
            Join::Diverged,
            "TXIDs beyond a hole are taken"
        );
        assert_eq!(join(edge(5, 5, 9), at(7), None), Join::Unknown);
        assert_eq!(
            join(edge(5, 5, 0), at(7), sum(1)),
            Join::Proven,
            "Litestream's"
        );
    }
}
