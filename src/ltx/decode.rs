use std::io::Read;

use lz4_flex::block::{decompress_into, get_maximum_output_size};

use super::{
    CHECKSUM_FLAG, Error, FRAME_HAS_SIZE, FRAME_HEADER_BYTES, Header, digest, put_uvarint,
};
use crate::types::Pgno;

/// Reads one file, page by page, in constant memory. Pages are **not** verified until [`Decoder::next_page`] has returned `None`: only
/// then are index and file checksum known to be right, so what was done with them must be undone on an error.
pub struct Decoder<R: Read> {
    input: R,
    crc: crc_fast::Digest,
    header: Header,
    last: u32,
    offset: u64,
    // Of the index as it should be: its length and a digest, so that memory does not grow with the file.
    index: crc_fast::Digest,
    index_bytes: u64,
    scratch: Vec<u8>,
    done: bool,
}

impl<R: Read> Decoder<R> {
    /// Reads the header.
    pub fn new(mut input: R) -> Result<Self, Error> {
        let mut bytes = [0; Header::LEN];
        input.read_exact(&mut bytes)?;
        let header = Header::decode(&bytes)?;
        let mut crc = digest();
        crc.update(&bytes);
        let scratch = vec![0; get_maximum_output_size(header.page_size.bytes())];
        Ok(Self {
            input,
            crc,
            header,
            last: 0,
            offset: Header::LEN as u64,
            index: digest(),
            index_bytes: 0,
            scratch,
            done: false,
        })
    }

    /// The header. Verified with the rest, at the end.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next page into `buf`, or `None` once the whole file was read and verified.
    pub fn next_page(&mut self, buf: &mut Vec<u8>) -> Result<Option<Pgno>, Error> {
        if self.done {
            return Ok(None);
        }
        let mut head = [0; FRAME_HEADER_BYTES];
        self.input.read_exact(&mut head)?;
        self.crc.update(&head);
        let number = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = u16::from_be_bytes([head[4], head[5]]);
        let Some(page) = Pgno::new(number) else {
            if flags != 0 {
                return Err(Error::Frame(0));
            }
            self.finish()?;
            return Ok(None);
        };
        if number <= self.last {
            return Err(Error::Order {
                page: number,
                after: self.last,
            });
        }
        if number > self.header.commit || page == self.header.page_size.lock_page() {
            return Err(Error::Page(number));
        }
        if flags != FRAME_HAS_SIZE {
            return Err(Error::Frame(number));
        }
        let mut size = [0; 4];
        self.input.read_exact(&mut size)?;
        self.crc.update(&size);
        let size = u32::from_be_bytes(size) as usize;
        let compressed = self.scratch.get_mut(..size).ok_or(Error::Frame(number))?;
        self.input.read_exact(compressed)?;
        buf.resize(self.header.page_size.bytes(), 0);
        match decompress_into(compressed, buf) {
            Ok(n) if n == buf.len() => {}
            _ => return Err(Error::Frame(number)),
        }
        self.crc.update(buf);
        let frame_bytes = (FRAME_HEADER_BYTES + 4 + size) as u64;
        self.index_entry(&[u64::from(number), self.offset, frame_bytes]);
        self.offset += frame_bytes;
        self.last = number;
        Ok(Some(page))
    }

    fn index_entry(&mut self, numbers: &[u64]) {
        let mut bytes = Vec::with_capacity(30);
        numbers.iter().for_each(|n| put_uvarint(&mut bytes, *n));
        self.index.update(&bytes);
        self.index_bytes += bytes.len() as u64;
    }

    /// Index, trailer, end of file.
    fn finish(&mut self) -> Result<(), Error> {
        self.index_entry(&[0]);
        let mut found = digest();
        let mut left = self.index_bytes;
        let mut buf = [0; 8192];
        while left > 0 {
            let part = &mut buf[..left.min(8192) as usize];
            self.input.read_exact(part)?;
            found.update(part);
            self.crc.update(part);
            left -= part.len() as u64;
        }
        let mut tail = [0; 24];
        self.input.read_exact(&mut tail)?;
        self.crc.update(&tail[..16]);
        let [length, _post, checksum] = tail.as_chunks::<8>().0 else {
            return Err(Error::Index);
        };
        if u64::from_be_bytes(*length) != self.index_bytes
            || found.finalize() != self.index.finalize()
        {
            return Err(Error::Index);
        }
        if u64::from_be_bytes(*checksum) != self.crc.finalize() | CHECKSUM_FLAG {
            return Err(Error::Checksum);
        }
        if self.input.read(&mut [0])? != 0 {
            return Err(Error::Trailing);
        }
        self.done = true;
        Ok(())
    }
}
