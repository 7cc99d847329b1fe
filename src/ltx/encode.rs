//! Writing LTX files.

use std::io::Write;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::crc::FileCrc;
use super::index::{CompactIndex, END_MARK, MAX_ENTRY_BYTES, put_entry};
use super::sequence::Sequence;
use super::{END_BYTES, Error, FRAME_HEADER_BYTES, FRAME_SIZED, Header};
use crate::types::{PageSize, Pgno};

/// Bytes of index handed to the destination at once: big enough to make calls rare, small beside a page buffer.
const INDEX_CHUNK_BYTES: usize = 4096;

/// What an encoder has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the whole file.
    pub bytes: u64,
    /// Pages in it.
    pub pages: u32,
}

/// Writes one LTX file, page by page.
///
/// Holds one packed page and about two bytes a page for the index. Each frame goes out in one `write_all`: put a
/// `BufWriter` below if single writes are dear. What was written is an LTX file only after [`Encoder::finish`]; it says
/// nothing about the destination's durability.
///
/// LZ4 goes through `compress_into_with_table`: the only block function of `lz4_flex` that neither allocates nor frees per
/// page (the others build a hash table each time, `compress` an output too). A page that LZ4 makes longer is stored as
/// that longer block: readers know no other form.
pub struct Encoder<W: Write> {
    out: W,
    page_size: PageSize,
    crc: FileCrc,
    sequence: Sequence,
    index: CompactIndex,
    table: CompressTable,
    /// Frame header and room for the longest block.
    frame: Vec<u8>,
    bytes: u64,
    broken: bool,
}

impl<W: Write> Encoder<W> {
    /// Starts a file: writes the header.
    ///
    /// # Errors
    /// A header that Litestream would refuse, or the destination's error.
    pub fn new(out: W, header: &Header) -> Result<Self, Error> {
        header.check()?;
        let longest_block = get_maximum_output_size(header.page_size.bytes());
        let mut encoder = Self {
            out,
            page_size: header.page_size,
            crc: FileCrc::new(),
            sequence: Sequence::new(header),
            index: CompactIndex::default(),
            table: CompressTable::default(),
            frame: vec![0; FRAME_HEADER_BYTES + longest_block],
            bytes: 0,
            broken: false,
        };
        encoder.put(&header.encode())?;
        Ok(encoder)
    }

    /// Adds a page: above the page before, not the lock page, not above commit, and in a base the very next one.
    ///
    /// # Errors
    /// One of these rules broken: nothing was written and the encoder can go on. The destination's error: every later
    /// call fails.
    pub fn page(&mut self, page: Pgno, data: &[u8]) -> Result<(), Error> {
        if self.broken {
            return Err(Error::Broken);
        }
        if data.len() != self.page_size.bytes() {
            return Err(Error::PageLength {
                page,
                actual: data.len(),
                expected: self.page_size,
            });
        }
        self.sequence.accept(page)?;
        let result = self.write_frame(page, data);
        self.broken = result.is_err();
        result
    }

    /// Ends the file: index and checksum. Flushes the destination and gives it back.
    ///
    /// # Errors
    /// A base that lacks pages, or the destination's error. What was written is then not an LTX file.
    pub fn finish(mut self) -> Result<(W, Written), Error> {
        if self.broken {
            return Err(Error::Broken);
        }
        self.sequence.finish()?;
        self.put(&[0; END_BYTES])?;
        self.write_index()?;
        self.put(&[0; 8])?; // LTX's own post-apply checksum: none
        let stored = self.crc.stored();
        self.put(&stored.to_be_bytes())?;
        self.out.flush().map_err(Error::Write)?;
        Ok((
            self.out,
            Written {
                bytes: self.bytes,
                pages: self.sequence.pages(),
            },
        ))
    }

    fn write_frame(&mut self, page: Pgno, data: &[u8]) -> Result<(), Error> {
        let block = &mut self.frame[FRAME_HEADER_BYTES..];
        let packed = compress_into_with_table(data, block, &mut self.table)
            .map_err(|_| Error::Pack { page })?;
        let size = u32::try_from(packed).map_err(|_| Error::Pack { page })?;
        self.frame[..4].copy_from_slice(&page.get().to_be_bytes());
        self.frame[4..6].copy_from_slice(&FRAME_SIZED.to_be_bytes());
        self.frame[6..FRAME_HEADER_BYTES].copy_from_slice(&size.to_be_bytes());
        self.crc.update(&self.frame[..FRAME_HEADER_BYTES]);
        self.crc.update(data);

        let frame = &self.frame[..FRAME_HEADER_BYTES + packed];
        self.out.write_all(frame).map_err(Error::Write)?;
        self.bytes += frame.len() as u64;
        self.index.push(page, frame.len() as u64);
        Ok(())
    }

    fn write_index(&mut self) -> Result<(), Error> {
        let start = self.bytes;
        let index = std::mem::take(&mut self.index);
        let mut chunk = Vec::with_capacity(INDEX_CHUNK_BYTES);
        for entry in index.entries() {
            put_entry(&mut chunk, entry);
            if chunk.len() > INDEX_CHUNK_BYTES - MAX_ENTRY_BYTES {
                self.put(&chunk)?;
                chunk.clear();
            }
        }
        chunk.push(END_MARK);
        self.put(&chunk)?;
        let length = self.bytes - start;
        self.put(&length.to_be_bytes())
    }

    /// Writes bytes that the file checksum covers as they are. (It takes in its own value too, after its last use.)
    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.crc.update(bytes);
        self.out.write_all(bytes).map_err(Error::Write)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::testing::{header, pgno};
    use super::*;

    #[test]
    fn a_refused_page_changes_nothing() {
        let header = header(512, 9, 2, 2);
        let mut good = Encoder::new(Vec::new(), &header).unwrap();
        let mut tried = Encoder::new(Vec::new(), &header).unwrap();
        for page in [3, 7] {
            good.page(pgno(page), &[page as u8; 512]).unwrap();
            tried.page(pgno(page), &[page as u8; 512]).unwrap();
            assert!(matches!(
                tried.page(pgno(page), &[0; 512]),
                Err(Error::PageOrder { .. })
            ));
            assert!(matches!(
                tried.page(pgno(10), &[0; 512]),
                Err(Error::BeyondCommit { .. })
            ));
            assert!(matches!(
                tried.page(pgno(8), &[0; 511]),
                Err(Error::PageLength { actual: 511, .. })
            ));
        }
        assert_eq!(good.finish().unwrap(), tried.finish().unwrap());
    }

    #[test]
    fn bad_headers_are_refused_before_anything_is_written() {
        let mut out = Vec::new();
        let bad = Header {
            wal_size: 1,
            ..header(512, 9, 2, 2)
        };
        assert!(matches!(
            Encoder::new(&mut out, &bad),
            Err(Error::WalRange { .. })
        ));
        let bad = header(512, 0, 2, 2);
        assert!(matches!(
            Encoder::new(&mut out, &bad),
            Err(Error::EmptyCommit)
        ));
        let bad = header(512, 1, 3, 2);
        assert!(matches!(
            Encoder::new(&mut out, &bad),
            Err(Error::TxidRange { min: 3, max: 2 })
        ));
        assert!(out.is_empty());
    }

    #[test]
    fn an_incomplete_base_cannot_be_finished() {
        let mut encoder = Encoder::new(Vec::new(), &header(512, 2, 1, 1)).unwrap();
        encoder.page(pgno(1), &[0; 512]).unwrap();
        assert!(matches!(
            encoder.finish(),
            Err(Error::MissingPage {
                missing: 2,
                commit: 2
            })
        ));
    }

    /// Takes so many bytes, then has no room.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            if taken == 0 {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(taken)
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_torn_file_is_never_finished() {
        assert!(matches!(
            Encoder::new(Full(99), &header(512, 9, 2, 2)),
            Err(Error::Write(_))
        ));
        let mut encoder = Encoder::new(Full(105), &header(512, 9, 2, 2)).unwrap();
        assert!(matches!(
            encoder.page(pgno(1), &[7; 512]),
            Err(Error::Write(_))
        ));
        assert!(matches!(
            encoder.page(pgno(2), &[7; 512]),
            Err(Error::Broken)
        ));
        assert!(matches!(encoder.finish(), Err(Error::Broken)));
    }
}
