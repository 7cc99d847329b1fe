//! What kept snapshots need.

use std::collections::HashMap;

use rustic_core::Id;
use rustic_core::repofile::BlobType;

/// Parts of the table: each grows by itself, so that what grows is small.
const SHARDS: usize = 256;

/// The pieces that kept snapshots need, and which of them were found in a pack. 20 to 40 bytes for each.
///
/// A piece is known by half of its hash and its type: two files are never taken for one (2^-127), and a folder's text that lies
/// in a file is not the folder.
pub(super) struct Needed {
    shards: Vec<HashMap<Name, bool>>,
}

type Name = [u8; 16];

fn name(id: &Id, kind: BlobType) -> Name {
    let hex = id.to_hex();
    let mut name = Name::default();
    // An id has 64 digits, so this cannot fail.
    let _ = hex::decode_to_slice(&hex.as_bytes()[..2 * name.len()], &mut name);
    name[15] = name[15] & !1 | u8::from(kind == BlobType::Tree);
    name
}

impl Needed {
    pub(super) fn new() -> Self {
        Self {
            shards: vec![HashMap::new(); SHARDS],
        }
    }

    /// A piece is needed.
    pub(super) fn insert(&mut self, id: &Id, kind: BlobType) {
        let name = name(id, kind);
        self.shards[usize::from(name[0])].insert(name, false);
    }

    /// Found in a pack; `true` if it is needed and was not found before.
    pub(super) fn claim(&mut self, id: &Id, kind: BlobType) -> bool {
        let name = name(id, kind);
        match self.shards[usize::from(name[0])].get_mut(&name) {
            Some(found) => !std::mem::replace(found, true),
            None => false,
        }
    }

    /// As if nothing had been found.
    pub(super) fn forget_claims(&mut self) {
        for found in self.shards.iter_mut().flat_map(HashMap::values_mut) {
            *found = false;
        }
    }

    /// How many were not found.
    pub(super) fn missing(&self) -> usize {
        let all = self.shards.iter().flat_map(HashMap::values);
        all.filter(|found| !**found).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_once_and_a_folder_is_no_file() {
        let ids: Vec<Id> = (0..1000_u32)
            .map(|n| {
                let mut bytes = [0; 32];
                bytes[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_be_bytes());
                Id::new(bytes)
            })
            .collect();
        let mut needed = Needed::new();
        for id in &ids[..500] {
            needed.insert(id, BlobType::Data);
        }
        needed.insert(&ids[7], BlobType::Tree);
        assert_eq!(needed.missing(), 501);
        assert!(needed.claim(&ids[7], BlobType::Data));
        assert!(!needed.claim(&ids[7], BlobType::Data));
        assert!(needed.claim(&ids[7], BlobType::Tree));
        assert!(!needed.claim(&ids[8], BlobType::Tree), "not needed as one");
        assert!(!needed.claim(&ids[500], BlobType::Data), "not needed");
        assert_eq!(needed.missing(), 499);
        needed.forget_claims();
        assert_eq!(needed.missing(), 501);
        assert!(ids[..500].iter().all(|id| needed.claim(id, BlobType::Data)));
        assert_eq!(needed.missing(), 1);
    }
}
