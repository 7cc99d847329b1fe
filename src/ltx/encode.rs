use std::io::Write;

use lz4_flex::block::{compress_into, get_maximum_output_size};

use super::{
    CHECKSUM_FLAG, Error, FRAME_HAS_SIZE, FRAME_HEADER_BYTES, Header, digest, put_uvarint,
};
use crate::types::{PageSize, Pgno, Txid};

/// What an encoder wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Pages in it.
    pub pages: u32,
}

/// Writes one file, page by page. Holds the index (about 9 bytes a page) and one page, nothing else.
/// Does **not** flush or sync `W`.
pub struct Encoder<W: Write> {
    out: W,
    crc: crc_fast::Digest,
    page_size: PageSize,
    commit: u32,
    is_base: bool,
    last: u32,
    offset: u64,
    pages: u32,
    index: Vec<u8>,
    frame: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    /// Writes the header.
    pub fn new(mut out: W, header: &Header) -> Result<Self, Error> {
        if header.commit == 0 {
            return Err(Error::Header("a database of no pages"));
        }
        if header.min > header.max {
            return Err(Error::Header("min TXID above max TXID"));
        }
        let bytes = header.encode();
        let mut crc = digest();
        crc.update(&bytes);
        out.write_all(&bytes)?;
        let page_size = header.page_size;
        Ok(Self {
            out,
            crc,
            page_size,
            commit: header.commit,
            is_base: header.min == Txid::FIRST,
            last: 0,
            offset: Header::LEN as u64,
            pages: 0,
            index: Vec::new(),
            frame: vec![0; FRAME_HEADER_BYTES + 4 + get_maximum_output_size(page_size.bytes())],
        })
    }

    /// Adds a page: ascending, whole, not the lock page, not above the commit size; in a base, without a hole.
    pub fn page(&mut self, page: Pgno, data: &[u8]) -> Result<(), Error> {
        let number = page.get();
        if number <= self.last {
            return Err(Error::Order {
                page: number,
                after: self.last,
            });
        }
        if number > self.commit || page == self.page_size.lock_page() {
            return Err(Error::Page(number));
        }
        if data.len() != self.page_size.bytes() {
            return Err(Error::PageSize {
                page,
                bytes: data.len(),
            });
        }
        if self.is_base && number != self.expected() {
            return Err(Error::Missing(self.expected()));
        }
        let head = FRAME_HEADER_BYTES + 4;
        let size =
            compress_into(data, &mut self.frame[head..]).map_err(|_| Error::Frame(number))?;
        self.frame[..4].copy_from_slice(&number.to_be_bytes());
        self.frame[4..6].copy_from_slice(&FRAME_HAS_SIZE.to_be_bytes());
        self.frame[6..10].copy_from_slice(&(size as u32).to_be_bytes());
        self.crc.update(&self.frame[..head]);
        self.crc.update(data);
        self.out.write_all(&self.frame[..head + size])?;
        put_uvarint(&mut self.index, u64::from(number));
        put_uvarint(&mut self.index, self.offset);
        put_uvarint(&mut self.index, (head + size) as u64);
        self.offset += (head + size) as u64;
        self.last = number;
        self.pages += 1;
        Ok(())
    }

    /// Writes index and trailer.
    pub fn finish(mut self) -> Result<(W, Written), Error> {
        if self.is_base && self.expected() <= self.commit {
            return Err(Error::Missing(self.expected()));
        }
        put_uvarint(&mut self.index, 0);
        let mut tail = vec![0; FRAME_HEADER_BYTES];
        tail.extend_from_slice(&self.index);
        tail.extend_from_slice(&(self.index.len() as u64).to_be_bytes());
        tail.extend_from_slice(&0_u64.to_be_bytes());
        self.crc.update(&tail);
        tail.extend_from_slice(&(self.crc.finalize() | CHECKSUM_FLAG).to_be_bytes());
        self.out.write_all(&tail)?;
        Ok((
            self.out,
            Written {
                bytes: self.offset + tail.len() as u64,
                pages: self.pages,
            },
        ))
    }

    /// The page that a base must hold next.
    fn expected(&self) -> u32 {
        let next = self.last.saturating_add(1);
        if next == self.page_size.lock_page().get() {
            next.saturating_add(1)
        } else {
            next
        }
    }
}
