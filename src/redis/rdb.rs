//! The outside of an RDB: its beginning, its end, and the checksum there. Pure.

use crc_fast::{CrcAlgorithm, Digest};
use thiserror::Error;

/// Ends the content of an RDB; the checksum follows.
const END: u8 = 0xff;
/// CRC-64 of everything before it, little-endian; 0 if the server makes none.
const CRC_BYTES: usize = 8;
/// Follows an RDB whose length was not known when its transfer began; `redis-cli` passes it on to stdout.
const MARK_BYTES: usize = 40;
const HELD_BYTES: usize = MARK_BYTES + CRC_BYTES;
/// Magic and version: `REDIS0011`, `VALKEY080`.
const HEAD_BYTES: usize = 9;

/// Why a stream is no RDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RdbError {
    /// It is something else.
    #[error("what the server sent does not begin as an RDB")]
    Head,
    /// It is cut off or damaged.
    #[error("the RDB does not end as one, or its checksum is wrong")]
    Checksum,
    /// `rdbchecksum no`.
    #[error("the server makes no checksum (rdbchecksum no)")]
    NoChecksum,
}

/// A stream that is looked at as it passes. What may be the mark is held back until the end.
#[derive(Debug)]
pub struct Rdb {
    head: Vec<u8>,
    held: Vec<u8>,
    crc: Digest,
    last: u8,
}

impl Default for Rdb {
    fn default() -> Self {
        Self {
            head: Vec::with_capacity(HEAD_BYTES),
            held: Vec::new(),
            crc: Digest::new(CrcAlgorithm::Crc64Redis),
            last: 0,
        }
    }
}

impl Rdb {
    /// Takes bytes; returns those that belong to the RDB for certain.
    ///
    /// # Errors
    /// [`RdbError::Head`].
    pub fn push(&mut self, data: &[u8]) -> Result<Vec<u8>, RdbError> {
        let missing = HEAD_BYTES - self.head.len();
        self.head.extend(data.iter().take(missing));
        if self.head.len() == HEAD_BYTES
            && !self.head.starts_with(b"REDIS")
            && !self.head.starts_with(b"VALKEY")
        {
            return Err(RdbError::Head);
        }
        self.held.extend_from_slice(data);
        let certain = self.held.len().saturating_sub(HELD_BYTES);
        let rest = self.held.split_off(certain);
        let certain = std::mem::replace(&mut self.held, rest);
        self.crc.update(&certain);
        self.last = certain.last().copied().unwrap_or(self.last);
        Ok(certain)
    }

    /// The end of the stream; returns the last bytes of the RDB.
    ///
    /// # Errors
    /// It is not one.
    pub fn finish(mut self) -> Result<Vec<u8>, RdbError> {
        if self.head.len() < HEAD_BYTES {
            return Err(RdbError::Head);
        }
        let whole = self.held.len();
        let ends = [Some(whole), whole.checked_sub(MARK_BYTES)];
        let mut unchecked = false;
        for end in ends.into_iter().flatten() {
            match self.checksum_ending_at(end) {
                Some((stored, found)) if stored == found => {
                    self.held.truncate(end);
                    return Ok(self.held);
                }
                Some((0, _)) => unchecked = true,
                _ => {}
            }
        }
        Err(match unchecked {
            true => RdbError::NoChecksum,
            false => RdbError::Checksum,
        })
    }

    /// The checksum that is stored before `end`, and the one of everything before that, if the content ends there.
    fn checksum_ending_at(&self, end: usize) -> Option<(u64, u64)> {
        let content = end.checked_sub(CRC_BYTES)?;
        let last = match content {
            0 => self.last,
            _ => self.held[content - 1],
        };
        let stored = u64::from_le_bytes(self.held[content..end].try_into().ok()?);
        let mut crc = self.crc;
        crc.update(&self.held[..content]);
        (last == END).then(|| (stored, crc.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rdb(content: &[u8]) -> Vec<u8> {
        let mut bytes = b"REDIS0010".to_vec();
        bytes.extend(content);
        bytes.push(END);
        let mut crc = Digest::new(CrcAlgorithm::Crc64Redis);
        crc.update(&bytes);
        bytes.extend(crc.finalize().to_le_bytes());
        bytes
    }

    fn read(stream: &[u8], piece: usize) -> Result<Vec<u8>, RdbError> {
        let (mut rdb, mut out) = (Rdb::default(), Vec::new());
        for piece in stream.chunks(piece) {
            out.extend(rdb.push(piece)?);
        }
        out.extend(rdb.finish()?);
        Ok(out)
    }

    #[test]
    fn the_checksum_is_redis_own() {
        // From Redis' sources: the CRC-64 of this text.
        let mut crc = Digest::new(CrcAlgorithm::Crc64Redis);
        crc.update(b"123456789");
        assert_eq!(crc.finalize(), 0xe9c6_d914_c4b8_d9ca);
        assert_eq!(read(b"HTTP/1.1 200 OK", 4), Err(RdbError::Head));
        assert_eq!(read(b"REDIS", 1), Err(RdbError::Head));
        let mut none = rdb(b"abc");
        let end = none.len() - CRC_BYTES;
        none[end..].fill(0);
        assert_eq!(read(&none, 5), Err(RdbError::NoChecksum));
        none.extend([b'f'; MARK_BYTES]);
        assert_eq!(read(&none, 5), Err(RdbError::NoChecksum));
    }

    proptest! {
        #[test]
        fn whole_ones_pass_and_others_do_not(
            content in prop::collection::vec(any::<u8>(), 0..300),
            piece in 1_usize..100,
            mark in prop::option::of(prop::collection::vec(b'0'..=b'f', MARK_BYTES)),
            cut in any::<prop::sample::Index>(),
            flip in any::<prop::sample::Index>(),
        ) {
            let whole = rdb(&content);
            let mut sent = whole.clone();
            sent.extend(mark.iter().flatten());
            prop_assert_eq!(read(&sent, piece), Ok(whole.clone()));
            let mut flipped = sent.clone();
            flipped[flip.index(whole.len())] ^= 1;
            prop_assert!(read(&flipped, piece).is_err());
            // Cut inside the mark it is no mark any more.
            let cut = cut.index(sent.len());
            prop_assert!(cut == whole.len() || read(&sent[..cut], piece).is_err());
        }
    }
}
