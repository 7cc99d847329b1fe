use super::Error;
use crate::types::{DbChecksum, Lineage, Millis, PageSize, Txid};

const MAGIC: &[u8; 4] = b"LTX1";
const NO_CHECKSUM: u32 = 0x2;

/// The first 100 bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Page size of every page in the file.
    pub page_size: PageSize,
    /// Database size in pages after the file is applied.
    pub commit: u32,
    /// First TXID.
    pub min: Txid,
    /// Last TXID.
    pub max: Txid,
    /// When the newest change in the file was captured.
    pub timestamp: Millis,
    /// Where in the WAL the capture began, bytes; at least 32 in level 0.
    pub wal_offset: i64,
    /// Bytes of the WAL that it holds.
    pub wal_size: i64,
    /// Salts of that WAL.
    pub salt: (u32, u32),
    /// History; in LTX's NodeID.
    pub lineage: Option<Lineage>,
    /// Checksum of the database before.
    pub pre: Option<DbChecksum>,
    /// Checksum of the database after.
    pub post: Option<DbChecksum>,
    /// Owner's epoch; 0 is unknown.
    pub epoch: u32,
}

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = 100;

    /// As in a file.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut b = Vec::with_capacity(Self::LEN);
        b.extend_from_slice(MAGIC);
        for word in [NO_CHECKSUM, self.page_size.get(), self.commit] {
            b.extend_from_slice(&word.to_be_bytes());
        }
        for word in [self.min.get(), self.max.get()] {
            b.extend_from_slice(&word.to_be_bytes());
        }
        b.extend_from_slice(&self.timestamp.0.to_be_bytes());
        b.extend_from_slice(&0_u64.to_be_bytes());
        b.extend_from_slice(&self.wal_offset.to_be_bytes());
        b.extend_from_slice(&self.wal_size.to_be_bytes());
        b.extend_from_slice(&self.salt.0.to_be_bytes());
        b.extend_from_slice(&self.salt.1.to_be_bytes());
        b.extend_from_slice(&self.lineage.map_or(0, Lineage::get).to_be_bytes());
        b.extend_from_slice(&self.pre.map_or(0, DbChecksum::get).to_be_bytes());
        b.extend_from_slice(&self.post.map_or(0, DbChecksum::get).to_be_bytes());
        b.extend_from_slice(&self.epoch.to_be_bytes());
        let mut out = [0; Self::LEN];
        out.copy_from_slice(&b);
        out
    }

    /// Reads a header. LTX's own pre-apply checksum (present without NoChecksum) is skipped, not verified.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let bytes = bytes.get(..Self::LEN).ok_or(Error::Header("too short"))?;
        if &bytes[..4] != MAGIC {
            return Err(Error::Magic);
        }
        let mut four = [0; 4];
        let mut eight = [0; 8];
        let mut u32_at = |at: usize| {
            four.copy_from_slice(&bytes[at..at + 4]);
            u32::from_be_bytes(four)
        };
        let mut u64_at = |at: usize| {
            eight.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(eight)
        };
        if u32_at(4) & !NO_CHECKSUM != 0 {
            return Err(Error::Header("unknown flags"));
        }
        let header = Self {
            page_size: PageSize::new(u32_at(8)).ok_or(Error::Header("page size"))?,
            commit: u32_at(12),
            min: Txid::new(u64_at(16)).ok_or(Error::Header("min TXID is zero"))?,
            max: Txid::new(u64_at(24)).ok_or(Error::Header("max TXID is zero"))?,
            timestamp: Millis(u64_at(32).cast_signed()),
            wal_offset: u64_at(48).cast_signed(),
            wal_size: u64_at(56).cast_signed(),
            salt: (u32_at(64), u32_at(68)),
            lineage: Lineage::new(u64_at(72)),
            pre: DbChecksum::new(u64_at(80)),
            post: DbChecksum::new(u64_at(88)),
            epoch: u32_at(96),
        };
        if header.min > header.max {
            return Err(Error::Header("min TXID above max TXID"));
        }
        if header.commit == 0 {
            return Err(Error::Header("a database of no pages"));
        }
        Ok(header)
    }
}
