//! LTX version 3: header, encode, decode, merge. Pure: bytes in, bytes out.
//!
//! Source of the format: the README of `superfly/ltx`, and files read and written by Litestream 0.5.17. All integers are big-endian.
//!
//! - Header, 100 bytes. Litestream sets flag NoChecksum (0x2) and then both of LTX's own database checksums must be zero. Lifeboat keeps
//!   its own in the 20 reserved bytes: checksum before (8), after (8), owner's epoch (4); zero means unknown, as in files that
//!   Litestream wrote.
//! - Page frames, ascending by page: number u32, flags u16 (0x1: a size follows), compressed size u32, LZ4 block. Six zero bytes end them.
//! - Page index: uvarint triples (page, offset, length of the frame), a 0, and the length of all that as u64.
//! - Trailer: post-apply checksum (zero), file checksum: CRC-64/GO-ISO over header, each frame's header and **uncompressed** page, the end
//!   mark, the index with its length, the post-apply checksum; bit 63 set.
//!
//! What the file checksum does **not** cover: the compressed bytes themselves. Two LZ4 blocks of the same page are equally valid.

mod decode;
mod encode;
mod header;
mod merge;

pub use decode::Decoder;
pub use encode::{Encoder, Written};
pub use header::Header;
pub use merge::{merge, merge_header};

use crc_fast::{CrcAlgorithm, Digest};
use thiserror::Error;

use crate::types::{Pgno, Txid};

/// Flag of a page frame: the compressed size follows. Every frame of version 3 has it.
const FRAME_HAS_SIZE: u16 = 0x1;
/// Bytes of a page frame's number and flags; as zeros they end the page block.
const FRAME_HEADER_BYTES: usize = 6;
/// Bit 63 of every LTX checksum that is set.
const CHECKSUM_FLAG: u64 = 1 << 63;

/// A broken rule of the format.
#[derive(Debug, Error)]
pub enum Error {
    /// The first four bytes.
    #[error("not an LTX file")]
    Magic,
    /// A header field.
    #[error("LTX header: {0}")]
    Header(&'static str),
    /// Pages must ascend.
    #[error("page {page} follows page {after}")]
    Order {
        /// The page.
        page: u32,
        /// The page before it.
        after: u32,
    },
    /// A page number of zero, of the lock page, or above the commit size.
    #[error("page {0} cannot be in this file")]
    Page(u32),
    /// A base holds every page.
    #[error("a file from TXID 1 must hold every page, but page {0} is missing")]
    Missing(u32),
    /// A page has the wrong size.
    #[error("page {} has {bytes} bytes", .page.get())]
    PageSize {
        /// The page.
        page: Pgno,
        /// Its bytes.
        bytes: usize,
    },
    /// A frame's flags or size.
    #[error("frame of page {0} is damaged")]
    Frame(u32),
    /// The index does not describe the frames.
    #[error("the page index does not match the pages")]
    Index,
    /// The file checksum does not match.
    #[error("the file checksum does not match")]
    Checksum,
    /// Bytes after the trailer.
    #[error("bytes follow the end of the file")]
    Trailing,
    /// Nothing to merge.
    #[error("no file to merge")]
    NothingToMerge,
    /// Merged files must follow each other.
    #[error("a file that begins at TXID {found} cannot follow TXID {after}")]
    NotContiguous {
        /// Last TXID of the earlier file.
        after: Txid,
        /// First TXID of the later one.
        found: Txid,
    },
    /// Merged files must belong together.
    #[error("files of different {0} cannot be merged")]
    Differ(&'static str),
    /// Reading or writing.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Error {
    /// The bytes are wrong or missing, as opposed to the medium failing.
    pub fn is_corrupt(&self) -> bool {
        match self {
            Self::Io(e) => e.kind() == std::io::ErrorKind::UnexpectedEof,
            _ => true,
        }
    }
}

fn digest() -> Digest {
    Digest::new(CrcAlgorithm::Crc64GoIso)
}

/// Appends an unsigned LEB128 number, as Go's `binary.PutUvarint`.
fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests;
