//! The first 100 bytes of an LTX file.

use super::Error;
use crate::types::{DbChecksum, Lineage, Millis, PageSize, Txid};

/// First four bytes: LTX, format version 3 (the 1 is not the version).
const MAGIC: &[u8; 4] = b"LTX1";

/// LTX's own database checksums are not kept.
const FLAG_NO_CHECKSUM: u32 = 1 << 1;

/// Header of an LTX file.
///
/// | bytes | content |
/// |---|---|
/// | 0-4, 4-8 | `LTX1`, flags |
/// | 8-12, 12-16 | page size, commit |
/// | 16-24, 24-32, 32-40 | first and last TXID, timestamp |
/// | 40-48 | LTX's own pre-apply checksum: zero |
/// | 48-56, 56-64, 64-72 | WAL offset, WAL size, salts |
/// | 72-80 | node id: the lineage |
/// | 80-88, 88-96, 96-100 | reserved by LTX: pre, post, epoch |
///
/// In every number from 72 on, zero means unknown: Litestream's compaction drops them.
///
/// Files with LTX's own database checksums (flag NoChecksum not set) are read; those checksums are neither verified nor
/// kept. A header does not prove that the file behind it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Page size of the database.
    pub page_size: PageSize,
    /// Pages in the database after this file is applied. Never zero.
    pub commit: u32,
    /// First TXID in the file; TXID 1 makes it a base.
    pub min: Txid,
    /// Last TXID in the file.
    pub max: Txid,
    /// When the newest change in the file was captured.
    pub timestamp: Millis,
    /// Byte offset in the WAL the pages come from; zero if none. Litestream continues a replica only from 32 on.
    pub wal_offset: i64,
    /// Bytes of WAL from that offset; zero if none.
    pub wal_size: i64,
    /// Salts of that WAL; zero if none.
    pub salt: (u32, u32),
    /// History this file belongs to (LTX: node id).
    pub lineage: Option<Lineage>,
    /// Checksum of the database this file applies to.
    pub pre: Option<DbChecksum>,
    /// Checksum of the database after this file is applied.
    pub post: Option<DbChecksum>,
    /// Epoch of the owner that wrote the file; zero means unknown.
    pub epoch: u32,
}

impl Header {
    /// Bytes of an encoded header.
    pub const LEN: usize = 100;

    /// The header as stored, with NoChecksum set. Does not check the fields: [`super::Encoder::new`] does.
    pub fn encode(&self) -> [u8; 100] {
        let mut out = [0; Self::LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(4, &FLAG_NO_CHECKSUM.to_be_bytes());
        put(8, &self.page_size.get().to_be_bytes());
        put(12, &self.commit.to_be_bytes());
        put(16, &self.min.get().to_be_bytes());
        put(24, &self.max.get().to_be_bytes());
        put(32, &self.timestamp.0.to_be_bytes());
        put(48, &self.wal_offset.to_be_bytes());
        put(56, &self.wal_size.to_be_bytes());
        put(64, &self.salt.0.to_be_bytes());
        put(68, &self.salt.1.to_be_bytes());
        put(72, &self.lineage.map_or(0, Lineage::get).to_be_bytes());
        put(80, &self.pre.map_or(0, DbChecksum::get).to_be_bytes());
        put(88, &self.post.map_or(0, DbChecksum::get).to_be_bytes());
        put(96, &self.epoch.to_be_bytes());
        out
    }

    /// Reads a header from the first 100 bytes of a file; more bytes are ignored.
    ///
    /// # Errors
    /// Fewer bytes, or one of the format's rules broken.
    pub fn decode(bytes: &[u8]) -> Result<Header, Error> {
        let bytes: &[u8; Self::LEN] = bytes
            .first_chunk()
            .ok_or(Error::Truncated { part: "header" })?;
        Self::decode_flagged(bytes).map(|(header, _)| header)
    }

    /// The header, and whether the file carries LTX's own database checksums.
    pub(super) fn decode_flagged(bytes: &[u8; Self::LEN]) -> Result<(Header, bool), Error> {
        if bytes[..4] != *MAGIC {
            return Err(Error::Magic);
        }
        let flags = u32_at(bytes, 4);
        if flags & !FLAG_NO_CHECKSUM != 0 {
            return Err(Error::Flags(flags));
        }
        let own_checksums = flags & FLAG_NO_CHECKSUM == 0;
        if !own_checksums && u64_at(bytes, 40) != 0 {
            return Err(Error::UnexpectedChecksum { which: "pre-apply" });
        }
        let (min, max) = (u64_at(bytes, 16), u64_at(bytes, 24));
        let range = Error::TxidRange { min, max };
        let (Some(min), Some(max)) = (Txid::new(min), Txid::new(max)) else {
            return Err(range);
        };
        let header = Header {
            page_size: PageSize::new(u32_at(bytes, 8)).ok_or(Error::PageSize(u32_at(bytes, 8)))?,
            commit: u32_at(bytes, 12),
            min,
            max,
            timestamp: Millis(i64_at(bytes, 32)),
            wal_offset: i64_at(bytes, 48),
            wal_size: i64_at(bytes, 56),
            salt: (u32_at(bytes, 64), u32_at(bytes, 68)),
            lineage: Lineage::new(u64_at(bytes, 72)),
            pre: DbChecksum::new(u64_at(bytes, 80)),
            post: DbChecksum::new(u64_at(bytes, 88)),
            epoch: u32_at(bytes, 96),
        };
        header.check()?;
        Ok((header, own_checksums))
    }

    /// The rules between fields that the types do not carry. Litestream refuses files that break one.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.commit == 0 {
            return Err(Error::EmptyCommit);
        }
        if self.min > self.max {
            return Err(Error::TxidRange {
                min: self.min.get(),
                max: self.max.get(),
            });
        }
        let (offset, size) = (self.wal_offset, self.wal_size);
        let needs_offset = size != 0 || self.salt != (0, 0);
        if offset < 0 || size < 0 || (needs_offset && offset == 0) {
            return Err(Error::WalRange { offset, size });
        }
        Ok(())
    }
}

fn u32_at(bytes: &[u8; Header::LEN], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(out)
}

fn u64_at(bytes: &[u8; Header::LEN], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(out)
}

fn i64_at(bytes: &[u8; Header::LEN], at: usize) -> i64 {
    u64_at(bytes, at).cast_signed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::any_header;
    use super::*;

    fn broken(change: impl FnOnce(&mut [u8; 100])) -> Error {
        let mut bytes = super::super::testing::header(4096, 3, 2, 2).encode();
        change(&mut bytes);
        Header::decode(&bytes).unwrap_err()
    }

    #[test]
    fn each_rule_has_its_error() {
        assert!(matches!(broken(|b| b[3] = b'2'), Error::Magic));
        assert!(matches!(broken(|b| b[7] = 3), Error::Flags(3)));
        assert!(matches!(broken(|b| b[11] = 1), Error::PageSize(4097)));
        assert!(matches!(broken(|b| b[15] = 0), Error::EmptyCommit));
        assert!(matches!(
            broken(|b| b[23] = 0),
            Error::TxidRange { min: 0, max: 2 }
        ));
        assert!(matches!(
            broken(|b| b[23] = 3),
            Error::TxidRange { min: 3, max: 2 }
        ));
        assert!(matches!(
            broken(|b| b[47] = 1),
            Error::UnexpectedChecksum { which: "pre-apply" }
        ));
        assert!(matches!(broken(|b| b[48] = 0x80), Error::WalRange { .. }));
        assert!(matches!(
            broken(|b| b[63] = 1),
            Error::WalRange { offset: 0, size: 1 }
        ));
        assert!(matches!(broken(|b| b[64] = 1), Error::WalRange { .. }));
        assert!(matches!(
            Header::decode(&[0; 99]),
            Err(Error::Truncated { part: "header" })
        ));
    }

    #[test]
    fn own_checksums_are_accepted_and_dropped() {
        let header = super::super::testing::header(4096, 3, 2, 2);
        let mut bytes = header.encode();
        bytes[7] = 0;
        bytes[40] = 0x80;
        assert_eq!(Header::decode(&bytes).unwrap(), header);
    }

    proptest! {
        #[test]
        fn round_trip(header in any_header()) {
            prop_assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Header::decode(&bytes);
        }
    }
}
