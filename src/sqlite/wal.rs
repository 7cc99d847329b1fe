//! The WAL file's format, as bytes (<https://sqlite.org/fileformat2.html#the_write_ahead_log>). Pure.
//!
//! What this module does **not** know: whether a valid frame was ever committed. An app that dies or fails in its
//! commit's fsync leaves valid frames with a commit size behind that the next writer overwrites. Only the WAL-index's
//! `mxFrame` says how far commits go; see [`super::guard`].

use crate::types::PageSize;

/// Bytes of the WAL header.
pub const HEADER_BYTES: usize = 32;
/// Bytes of a frame's header; the page follows.
pub const FRAME_HEADER_BYTES: usize = 24;

/// The two salts that name one life of a WAL: every restart changes them.
pub type Salt = (u32, u32);
/// SQLite's two-word running checksum.
pub type Checksum = (u32, u32);

/// A WAL header whose own checksum was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// Page size of every frame.
    pub page_size: PageSize,
    /// Salts of this life.
    pub salt: Salt,
    /// The header's checksum: the seed of the first frame's.
    pub cksum: Checksum,
    /// Checksum words are big-endian.
    pub big_endian: bool,
}

impl WalHeader {
    /// `None` if the bytes are no complete, valid header: an empty WAL, or one in the making.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let magic = be32(bytes, 0);
        if magic & !1 != 0x377f_0682 {
            return None;
        }
        let big_endian = magic & 1 == 1;
        let cksum = (be32(bytes, 24), be32(bytes, 28));
        if checksum(big_endian, &bytes[..24], (0, 0)) != cksum {
            return None;
        }
        Some(Self {
            page_size: PageSize::new(be32(bytes, 8))?,
            salt: (be32(bytes, 16), be32(bytes, 20)),
            cksum,
            big_endian,
        })
    }

    /// Bytes of one frame: header and page.
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.page_size.bytes()
    }

    /// Byte offset of a frame, counted from 1 as SQLite does.
    pub fn frame_offset(&self, frame: u32) -> u64 {
        debug_assert!(frame > 0);
        HEADER_BYTES as u64 + u64::from(frame - 1) * self.frame_bytes() as u64
    }

    /// Byte offset just behind a frame; behind the header for frame 0.
    pub fn end_offset(&self, frame: u32) -> u64 {
        HEADER_BYTES as u64 + u64::from(frame) * self.frame_bytes() as u64
    }
}

/// One frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Page number; zero is never valid.
    pub pgno: u32,
    /// Database size in pages after the commit that this frame ends; 0 for every other frame.
    pub commit: u32,
    /// Salts of the life that the frame belongs to.
    pub salt: Salt,
    /// Running checksum up to and including this frame.
    pub cksum: Checksum,
}

impl FrameHeader {
    /// Reads the 24 bytes of a frame header; `None` if there are fewer.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let b = bytes.get(..FRAME_HEADER_BYTES)?;
        Some(Self {
            pgno: be32(b, 0),
            commit: be32(b, 4),
            salt: (be32(b, 8), be32(b, 12)),
            cksum: (be32(b, 16), be32(b, 20)),
        })
    }
}

/// The running checksum after a frame: over the first 8 bytes of its header and its page.
pub fn frame_checksum(big_endian: bool, frame: &[u8], seed: Checksum) -> Checksum {
    let seed = checksum(big_endian, &frame[..8], seed);
    checksum(big_endian, &frame[FRAME_HEADER_BYTES..], seed)
}

/// SQLite's WAL checksum. `data` must be a multiple of 8 bytes long; a rest is ignored.
pub fn checksum(big_endian: bool, data: &[u8], seed: Checksum) -> Checksum {
    let (mut s0, mut s1) = seed;
    let (pairs, _) = data.as_chunks::<8>();
    for pair in pairs {
        let (a, b) = pair.split_at(4);
        let (a, b) = ([a[0], a[1], a[2], a[3]], [b[0], b[1], b[2], b[3]]);
        let (x, y) = if big_endian {
            (u32::from_be_bytes(a), u32::from_be_bytes(b))
        } else {
            (u32::from_le_bytes(a), u32::from_le_bytes(b))
        };
        s0 = s0.wrapping_add(x).wrapping_add(s1);
        s1 = s1.wrapping_add(y).wrapping_add(s0);
    }
    (s0, s1)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_sqlite_writes() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a.db");
        let conn = rusqlite::Connection::open(&db).unwrap();
        conn.execute_batch(
            "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES(1)",
        )
        .unwrap();
        let wal = std::fs::read(dir.path().join("a.db-wal")).unwrap();
        let header = WalHeader::parse(&wal).unwrap();
        assert_eq!(header.page_size.get(), 1024);
        let mut seed = header.cksum;
        let mut commits = 0;
        for frame in wal[HEADER_BYTES..].chunks_exact(header.frame_bytes()) {
            let head = FrameHeader::parse(frame).unwrap();
            seed = frame_checksum(header.big_endian, frame, seed);
            assert_eq!((head.salt, head.cksum), (header.salt, seed));
            commits += u32::from(head.commit > 0);
        }
        assert_eq!(commits, 2);
    }

    #[test]
    fn refuses_what_is_no_header() {
        assert_eq!(WalHeader::parse(&[]), None);
        assert_eq!(WalHeader::parse(&[0; 32]), None);
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&0x377f_0682_u32.to_be_bytes());
        bytes[8..12].copy_from_slice(&4096_u32.to_be_bytes());
        assert_eq!(WalHeader::parse(&bytes), None, "checksum is wrong");
    }
}
