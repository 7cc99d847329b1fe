//! The page index at the end of an LTX file: where each page's frame lies.

use crc_fast::{CrcAlgorithm, Digest};

use super::{END_BYTES, Error, FRAME_HEADER_BYTES, Header, TRAILER_BYTES};
use crate::types::Pgno;

/// Bytes of the index's own length, which follows the index.
pub(super) const LENGTH_BYTES: usize = 8;

/// Ends the index: no page has this number.
pub(super) const END_MARK: u8 = 0;

/// Most bytes of a varint: 7 of 64 bits each.
const MAX_UVARINT_BYTES: usize = 10;

/// Most bytes of one page in the index.
pub(super) const MAX_ENTRY_BYTES: usize = 3 * MAX_UVARINT_BYTES;

fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a varint off the front. `None` if cut, longer than 64 bits, or padded: no writer pads, so one value has one form.
fn take_uvarint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for (i, &byte) in bytes.iter().enumerate().take(MAX_UVARINT_BYTES) {
        let bits = u64::from(byte & 0x7f);
        if (i == MAX_UVARINT_BYTES - 1 && bits > 1) || (i > 0 && byte == 0) {
            return None;
        }
        value |= bits << (7 * i);
        if byte & 0x80 == 0 {
            *bytes = &bytes[i + 1..];
            return Some(value);
        }
    }
    None
}

/// One page in the form the file has it.
pub(super) fn put_entry(out: &mut Vec<u8>, (page, offset, len): (u32, u64, u64)) {
    put_uvarint(out, u64::from(page));
    put_uvarint(out, offset);
    put_uvarint(out, len);
}

/// The frames written so far, in about two bytes a page: frames lie back to back, so offsets follow from lengths, and
/// most pages follow the page before.
#[derive(Default)]
pub(super) struct CompactIndex {
    /// Varints: frame length doubled, plus 1 if the step from the page before is not 1; then that step.
    packed: Vec<u8>,
    last: u32,
}

impl CompactIndex {
    /// `page` must lie above the page before.
    pub(super) fn push(&mut self, page: Pgno, frame_bytes: u64) {
        let step = page.get() - self.last;
        put_uvarint(&mut self.packed, frame_bytes << 1 | u64::from(step != 1));
        if step != 1 {
            put_uvarint(&mut self.packed, u64::from(step));
        }
        self.last = page.get();
    }

    /// (page, offset in the file, frame length), in file order.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, u64, u64)> {
        let mut rest = self.packed.as_slice();
        let (mut page, mut offset) = (0_u32, Header::LEN as u64);
        std::iter::from_fn(move || {
            let head = take_uvarint(&mut rest)?;
            let step = if head & 1 == 0 {
                1
            } else {
                take_uvarint(&mut rest)?
            };
            let entry = (page + step as u32, offset, head >> 1);
            page = entry.0;
            offset += entry.2;
            Some(entry)
        })
    }
}

/// What the index of the frames seen so far must be, in constant memory: its length and a checksum of it.
///
/// The checksum is of another polynomial than the file's, so that one accident does not pass both.
pub(super) struct IndexDigest {
    crc: Digest,
    bytes: u64,
    offset: u64,
    scratch: Vec<u8>,
}

impl IndexDigest {
    pub(super) fn new() -> Self {
        Self {
            crc: Digest::new(CrcAlgorithm::Crc64Nvme),
            bytes: 0,
            offset: Header::LEN as u64,
            scratch: Vec::with_capacity(MAX_ENTRY_BYTES),
        }
    }

    /// Offset in the file where the next frame starts.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn push(&mut self, page: Pgno, frame_bytes: u64) {
        self.scratch.clear();
        put_entry(&mut self.scratch, (page.get(), self.offset, frame_bytes));
        self.crc.update(&self.scratch);
        self.bytes += self.scratch.len() as u64;
        self.offset += frame_bytes;
    }

    /// After the last frame: bytes the index must have and their checksum.
    pub(super) fn finish(&mut self) -> (u64, u64) {
        self.crc.update(&[END_MARK]);
        self.bytes += 1;
        (self.bytes, self.crc.finalize())
    }

    /// An empty checksum to compare the index that was read with.
    pub(super) fn reader() -> Digest {
        Digest::new(CrcAlgorithm::Crc64Nvme)
    }
}

/// Reads the page index from the last bytes of a file of `file_bytes`: (page, offset of its frame, bytes of its frame),
/// ascending. For fetching single pages without the rest of the file.
///
/// A first guess for the length of `tail` may be too short; the error then says how much is needed. Checks that the
/// frames fill the file from header to index without holes. Proves nothing about the frames: the file checksum covers
/// the whole file and cannot be checked from here.
///
/// # Errors
/// [`Error::IndexTail`] if `tail` does not hold the whole index, [`Error::Index`] if it is not a valid one.
pub fn read_index(tail: &[u8], file_bytes: u64) -> Result<Vec<(Pgno, u64, u64)>, Error> {
    const AFTER_INDEX_BYTES: usize = LENGTH_BYTES + TRAILER_BYTES;
    let end = tail
        .len()
        .checked_sub(AFTER_INDEX_BYTES)
        .ok_or(Error::IndexTail {
            needed: AFTER_INDEX_BYTES as u64,
        })?;
    let length: [u8; LENGTH_BYTES] = *tail[end..].first_chunk().ok_or(Error::Index)?;
    let length = u64::from_be_bytes(length);
    let needed = length
        .checked_add(AFTER_INDEX_BYTES as u64)
        .filter(|&n| n <= file_bytes)
        .ok_or(Error::Index)?;
    let start = usize::try_from(length)
        .ok()
        .and_then(|length| end.checked_sub(length));
    let mut rest = &tail[start.ok_or(Error::IndexTail { needed })?..end];

    let mut entries = Vec::new();
    let (mut last, mut offset) = (0, Header::LEN as u64);
    loop {
        let number = take_uvarint(&mut rest)
            .and_then(|n| u32::try_from(n).ok())
            .ok_or(Error::Index)?;
        let Some(page) = Pgno::new(number) else { break };
        let at = take_uvarint(&mut rest).ok_or(Error::Index)?;
        let len = take_uvarint(&mut rest).ok_or(Error::Index)?;
        if number <= last || at != offset || len <= FRAME_HEADER_BYTES as u64 {
            return Err(Error::Index);
        }
        last = number;
        offset = offset.checked_add(len).ok_or(Error::Index)?;
        entries.push((page, at, len));
    }
    let whole = offset
        .checked_add(END_BYTES as u64)
        .and_then(|n| n.checked_add(needed));
    if !rest.is_empty() || whole != Some(file_bytes) {
        return Err(Error::Index);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{decode_all, encode, file};
    use super::*;

    proptest! {
        #[test]
        fn uvarint_round_trip(value: u64) {
            let mut bytes = Vec::new();
            put_uvarint(&mut bytes, value);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(take_uvarint(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
            prop_assert_eq!(take_uvarint(&mut &bytes[..bytes.len() - 1]), None);
        }

        #[test]
        fn compact_index_keeps_every_entry(frames in proptest::collection::vec((1_u32..5000, 11_u64..70_000), 0..50)) {
            let (mut index, mut page, mut offset) = (CompactIndex::default(), 0, 100);
            let mut expected = Vec::new();
            for (step, len) in frames {
                page += step;
                index.push(Pgno::new(page).unwrap(), len);
                expected.push((page, offset, len));
                offset += len;
            }
            prop_assert_eq!(index.entries().collect::<Vec<_>>(), expected);
        }

        #[test]
        fn index_points_at_every_frame((header, pages) in file()) {
            let bytes = encode(&header, &pages);
            let index = read_index(&bytes, bytes.len() as u64).unwrap();
            prop_assert_eq!(index.len(), decode_all(&bytes).unwrap().1.len());
            for (page, offset, len) in index {
                let frame = &bytes[offset as usize..(offset + len) as usize];
                prop_assert_eq!(&frame[..4], &page.get().to_be_bytes());
                let block = u32::from_be_bytes(*frame[6..].first_chunk().unwrap());
                prop_assert_eq!(u64::from(block) + 10, len);
            }
        }

        #[test]
        fn a_short_tail_says_what_it_needs((header, pages) in file(), cut in 0_usize..200) {
            let bytes = encode(&header, &pages);
            let size = bytes.len() as u64;
            let tail = &bytes[bytes.len().saturating_sub(cut)..];
            match read_index(tail, size) {
                Ok(index) => prop_assert_eq!(index.len(), pages.len()),
                Err(Error::IndexTail { needed }) => {
                    prop_assert!(needed > tail.len() as u64);
                    read_index(&bytes[bytes.len() - needed as usize..], size).map(|_| ()).or_else(|e| match e {
                        Error::IndexTail { needed: more } if more > needed => Ok(()),
                        e => Err(e),
                    }).unwrap();
                }
                Err(e) => return Err(TestCaseError::fail(e.to_string())),
            }
        }

        #[test]
        fn read_index_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80), low: u8, size: u64) {
            let _ = read_index(&bytes, size);
            let mut bytes = bytes;
            if let Some(at) = bytes.len().checked_sub(24) {
                bytes[at..at + 8].copy_from_slice(&u64::from(low).to_be_bytes());
                let _ = read_index(&bytes, bytes.len() as u64);
            }
        }
    }

    #[test]
    fn padded_and_overlong_varints_are_refused() {
        assert_eq!(take_uvarint(&mut [0x81, 0x00].as_slice()), None);
        assert_eq!(take_uvarint(&mut [0xff; 10].as_slice()), None);
        assert_eq!(take_uvarint(&mut [0x80; 11].as_slice()), None);
    }
}
