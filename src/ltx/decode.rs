//! Reading LTX files.

use std::io::{self, BufReader, Read};

use super::crc::FileCrc;
use super::index::{IndexDigest, LENGTH_BYTES};
use super::sequence::Sequence;
use super::{
    END_BYTES, Error, FRAME_HEADER_BYTES, FRAME_SIZED, Header, TRAILER_BYTES, max_packed_bytes,
};
use crate::types::Pgno;

/// Bytes asked of the source at once: some frames of the usual 4096-byte pages, little beside many open inputs of a merge.
const READ_BYTES: usize = 32 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Pages,
    Done,
    Broken,
}

/// Reads one LTX file, page by page, and verifies it.
///
/// Memory is one packed page and a read buffer, whatever the file says: the index is compared by checksum. A page it
/// hands out is proven only when the end has been reached (module, invariant 5). Not verified: LTX's own database
/// checksums, and that the pages make a sound database.
///
/// It reads the source to its end: a source that may hold more than one file must be limited first.
pub struct Decoder<R: Read> {
    input: BufReader<R>,
    header: Header,
    own_checksums: bool,
    crc: FileCrc,
    sequence: Sequence,
    index: IndexDigest,
    /// Room for the longest block of one page.
    packed: Vec<u8>,
    state: State,
}

impl<R: Read> Decoder<R> {
    /// Starts reading: takes the header.
    ///
    /// # Errors
    /// The source's error, or a header that breaks a rule.
    pub fn new(source: R) -> Result<Self, Error> {
        let mut input = BufReader::with_capacity(READ_BYTES, source);
        let mut bytes = [0; Header::LEN];
        fill(&mut input, &mut bytes, "header")?;
        let (header, own_checksums) = Header::decode_flagged(&bytes)?;
        let mut crc = FileCrc::new();
        crc.update(&bytes);
        Ok(Self {
            input,
            own_checksums,
            crc,
            sequence: Sequence::new(&header),
            index: IndexDigest::new(),
            packed: vec![0; max_packed_bytes(header.page_size.bytes())],
            state: State::Pages,
            header,
        })
    }

    /// The header. Unproven until the end, as the pages are.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whether no page has been asked for yet.
    pub(super) fn is_at_start(&self) -> bool {
        self.state == State::Pages && self.sequence.pages() == 0
    }

    /// The next page, into `buf`, which takes the page's length; reuse it. `Ok(None)` is the end, and means that the
    /// whole file was read and is good; from then on every call gives `Ok(None)`.
    ///
    /// # Errors
    /// The source's error, or any rule of the format broken. The content of `buf` is then of no use, and later calls give
    /// [`Error::Broken`].
    pub fn next_page(&mut self, buf: &mut Vec<u8>) -> Result<Option<Pgno>, Error> {
        match self.state {
            State::Done => return Ok(None),
            State::Broken => return Err(Error::Broken),
            State::Pages => {}
        }
        self.state = State::Broken;
        let page = self.read_frame(buf)?;
        if page.is_none() {
            self.sequence.finish()?;
            self.read_index()?;
            self.read_trailer()?;
        }
        self.state = if page.is_some() {
            State::Pages
        } else {
            State::Done
        };
        Ok(page)
    }

    /// `None` at the end of the frames.
    fn read_frame(&mut self, buf: &mut Vec<u8>) -> Result<Option<Pgno>, Error> {
        let mut head = [0; FRAME_HEADER_BYTES];
        fill(&mut self.input, &mut head[..END_BYTES], "page frames")?;
        let [p0, p1, p2, p3, f0, f1, ..] = head;
        let (number, flags) = (
            u32::from_be_bytes([p0, p1, p2, p3]),
            u16::from_be_bytes([f0, f1]),
        );
        let Some(page) = Pgno::new(number) else {
            if flags != 0 {
                return Err(Error::FramePage {
                    offset: self.index.offset(),
                });
            }
            self.crc.update(&head[..END_BYTES]);
            return Ok(None);
        };
        match flags {
            FRAME_SIZED => {}
            0 => return Err(Error::OldFrame { page }),
            flags => return Err(Error::FrameFlags { page, flags }),
        }
        self.sequence.accept(page)?;

        fill(&mut self.input, &mut head[END_BYTES..], "page frames")?;
        let [.., s0, s1, s2, s3] = head;
        let size = u32::from_be_bytes([s0, s1, s2, s3]);
        let packed = self
            .packed
            .get_mut(..size as usize)
            .filter(|packed| !packed.is_empty());
        let packed = packed.ok_or(Error::PackedSize { page, size })?;
        fill(&mut self.input, packed, "page frames")?;

        buf.resize(self.header.page_size.bytes(), 0);
        let unpacked =
            lz4_flex::block::decompress_into(packed, buf).map_err(|_| Error::Unpack { page })?;
        if unpacked != buf.len() {
            return Err(Error::Unpack { page });
        }
        self.crc.update(&head);
        self.crc.update(buf);
        self.index
            .push(page, FRAME_HEADER_BYTES as u64 + u64::from(size));
        Ok(Some(page))
    }

    /// The index has one right form for the frames that were read: compares without parsing.
    fn read_index(&mut self) -> Result<(), Error> {
        let (bytes, checksum) = self.index.finish();
        let mut seen = IndexDigest::reader();
        let mut left = bytes;
        while left > 0 {
            let take =
                usize::try_from(left).map_or(self.packed.len(), |left| left.min(self.packed.len()));
            let chunk = &mut self.packed[..take];
            fill(&mut self.input, chunk, "page index")?;
            seen.update(chunk);
            self.crc.update(chunk);
            left -= take as u64;
        }
        let mut length = [0; LENGTH_BYTES];
        fill(&mut self.input, &mut length, "page index")?;
        self.crc.update(&length);
        if u64::from_be_bytes(length) != bytes || seen.finalize() != checksum {
            return Err(Error::Index);
        }
        Ok(())
    }

    fn read_trailer(&mut self) -> Result<(), Error> {
        let mut trailer = [0; TRAILER_BYTES];
        fill(&mut self.input, &mut trailer, "trailer")?;
        let (post, stored) = trailer.split_at(TRAILER_BYTES / 2);
        if !self.own_checksums && post.iter().any(|&byte| byte != 0) {
            return Err(Error::UnexpectedChecksum {
                which: "post-apply",
            });
        }
        self.crc.update(post);
        let computed = self.crc.stored();
        let stored = stored
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte));
        if stored != computed {
            return Err(Error::FileChecksum { stored, computed });
        }
        match fill(&mut self.input, &mut [0], "") {
            Err(Error::Truncated { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(Error::TrailingData),
        }
    }
}

/// Fills `buf`, or says in which `part` the file ends.
fn fill(input: &mut impl Read, buf: &mut [u8], part: &'static str) -> Result<(), Error> {
    input.read_exact(buf).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated { part },
        _ => Error::Read(error),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{decode_all, encode, file, header, reseal};
    use super::*;

    /// Three pages: one all zero, one that does not pack, one in between.
    fn small() -> Vec<u8> {
        let noise: Vec<u8> = (0..512_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let text = b"the quick brown fox "
            .iter()
            .copied()
            .cycle()
            .take(512)
            .collect();
        encode(
            &header(512, 9, 2, 3),
            &[(1, vec![0; 512]), (4, noise), (9, text)].into(),
        )
    }

    fn in_a_block(bytes: &[u8], at: usize) -> bool {
        let index = super::super::read_index(bytes, bytes.len() as u64).unwrap();
        index
            .iter()
            .any(|&(_, start, len)| (start + 10..start + len).contains(&(at as u64)))
    }

    /// Every bit of a file matters, but for bits in a block that unpacks to the same page all the same.
    #[test]
    fn every_flipped_bit_is_seen() {
        let good = small();
        let (header, pages) = decode_all(&good).unwrap();
        let mut unseen = 0;
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(decoded) = decode_all(&bad) {
                assert!(
                    in_a_block(&good, bit / 8),
                    "bit {bit} is outside the blocks"
                );
                assert_eq!(decoded, (header, pages.clone()), "bit {bit}");
                unseen += 1;
            }
        }
        assert!(
            unseen > 0,
            "the page of zeros can be packed in several ways"
        );
    }

    #[test]
    fn every_truncation_is_seen_and_so_is_more() {
        let good = small();
        for len in 0..good.len() {
            assert!(
                matches!(decode_all(&good[..len]), Err(Error::Truncated { .. })),
                "length {len}"
            );
        }
        let more = [good.as_slice(), &[0]].concat();
        assert!(matches!(decode_all(&more), Err(Error::TrailingData)));
    }

    #[test]
    fn the_end_and_errors_last() {
        let mut buf = Vec::new();
        let good = small();
        let mut decoder = Decoder::new(good.as_slice()).unwrap();
        while decoder.next_page(&mut buf).unwrap().is_some() {}
        assert_eq!(decoder.next_page(&mut buf).unwrap(), None);

        let mut decoder = Decoder::new(&good[..150]).unwrap();
        while decoder.next_page(&mut buf).is_ok() {}
        assert!(matches!(decoder.next_page(&mut buf), Err(Error::Broken)));
    }

    /// Damage with a right file checksum: what a faulty writer could make.
    #[test]
    fn each_rule_of_the_frames_has_its_error() {
        let first = Header::LEN;
        let broken = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = small();
            change(&mut bytes);
            decode_all(&bytes).unwrap_err()
        };
        assert!(matches!(
            broken(&|b| b[first + 5] = 0),
            Error::OldFrame { .. }
        ));
        assert!(matches!(
            broken(&|b| b[first + 5] = 3),
            Error::FrameFlags { flags: 3, .. }
        ));
        assert!(matches!(
            broken(&|b| b[first + 3] = 0),
            Error::FramePage { offset: 100 }
        ));
        assert!(matches!(
            broken(&|b| b[first + 3] = 10),
            Error::BeyondCommit { commit: 9, .. }
        ));
        assert!(matches!(
            broken(&|b| b[first + 3] = 4),
            Error::PageOrder { after: 4, .. }
        ));
        assert!(matches!(
            broken(&|b| b[first + 6] = 1),
            Error::PackedSize { .. }
        ));
        assert!(matches!(
            broken(&|b| b[first + 6..first + 10].fill(0)),
            Error::PackedSize { size: 0, .. }
        ));
        assert!(matches!(
            broken(&|b| b[first + 10] = 0xff),
            Error::Unpack { .. }
        ));
        let at = |b: &Vec<u8>, from_end: usize| b.len() - from_end;
        let resealed = |from_end: usize, value: u8| {
            broken(&|b| {
                let at = at(b, from_end);
                b[at] = value;
                reseal(b);
            })
        };
        assert!(matches!(
            resealed(16, 1),
            Error::UnexpectedChecksum {
                which: "post-apply"
            }
        ));
        assert!(
            matches!(resealed(17, 99), Error::Index),
            "length of the index"
        );
        assert!(
            matches!(resealed(26, 1), Error::Index),
            "last frame's length in the index"
        );
    }

    #[test]
    fn files_with_own_checksums_are_read() {
        let mut bytes = small();
        let post = bytes.len() - 16;
        bytes[7] = 0;
        bytes[40] = 0x80;
        bytes[post] = 0x80;
        reseal(&mut bytes);
        assert_eq!(decode_all(&bytes).unwrap(), decode_all(&small()).unwrap());
    }

    /// A base that ends early or has a hole is refused in reading too.
    #[test]
    fn an_incomplete_base_is_refused() {
        let mut bytes = encode(&header(512, 1, 1, 1), &[(1, vec![0; 512])].into());
        bytes[15] = 2;
        reseal(&mut bytes);
        assert!(matches!(
            decode_all(&bytes),
            Err(Error::MissingPage {
                missing: 2,
                commit: 2
            })
        ));
        let mut bytes = small();
        bytes[23] = 1;
        reseal(&mut bytes);
        assert!(matches!(
            decode_all(&bytes),
            Err(Error::MissingPage {
                missing: 2,
                commit: 9
            })
        ));
    }

    proptest! {
        #[test]
        fn round_trip((header, pages) in file()) {
            let bytes = encode(&header, &pages);
            prop_assert_eq!(decode_all(&bytes).unwrap(), (header, pages));
        }

        #[test]
        fn no_damage_gives_other_pages((header, pages) in file(), at: prop::sample::Index, value: u8, len in 1_usize..40) {
            let mut bytes = encode(&header, &pages);
            let start = at.index(bytes.len());
            let end = bytes.len().min(start + len);
            bytes[start..end].fill(value);
            if let Ok(decoded) = decode_all(&bytes) {
                prop_assert_eq!(decoded, (header, pages));
            }
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600), (header, pages) in file(), cut: prop::sample::Index) {
            let _ = decode_all(&bytes);
            let good = encode(&header, &pages);
            let kept = &good[..cut.index(good.len())];
            prop_assert!(decode_all(&[kept, &bytes].concat()).is_ok_and(|d| d == (header, pages)) || kept.len() < good.len());
            let _ = decode_all(&[&header.encode()[..], &bytes].concat());
        }
    }
}
