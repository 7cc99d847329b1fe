//! LTX version 3: header, encode, decode, merge, page index. Pure: bytes in, bytes out, no clock.
//!
//! Source of the format: the README and the reader of superfly/ltx, and files that Litestream 0.5.17 wrote and
//! restored (`tests/ltx_litestream.rs` repeats both directions). All integers are big-endian.
//!
//! ```text
//! header   100 bytes    see `Header`
//! frames   one a page   page number u32, flags u16 = 1, size u32, LZ4 block of that size
//! end      6 bytes      zero
//! index    varints      (page number, offset in the file, frame length) a page, then 0; then their length in bytes u64
//! trailer  16 bytes     LTX's own post-apply checksum u64 (zero here), file checksum u64
//! ```
//!
//! # Invariants
//!
//! 1. Pages rise strictly, none is the lock page, none lies above the header's commit size.
//! 2. A file that starts at TXID 1 (a base) holds every page from 1 to commit but the lock page.
//! 3. Frames lie back to back from byte 100 on; the index says exactly what the frames say, in their order.
//! 4. The file checksum is CRC-64/GO-ISO with bit 63 set, over everything before it, with each page in its
//!    **uncompressed** form in place of the LZ4 block.
//! 5. A file is good only once [`Decoder::next_page`] has returned `Ok(None)`. Pages handed out earlier are unproven.
//!
//! [`Encoder`] cannot write a file that breaks 1 to 4, [`Decoder`] refuses one that does.
//!
//! # What the file checksum does not cover
//!
//! - The bytes of the LZ4 blocks. A changed block that still unpacks to the same page goes unseen (such blocks exist: a
//!   match may point at another copy of the same bytes). The pages are as written then; only the object's bytes differ.
//! - Bit 63 of the checksum: it is always set, so 63 bits guard the file. A cleared bit 63 is refused all the same.
//! - LTX's own pre-apply and post-apply checksums, where a file has them, are covered as bytes but never compared with
//!   a database: Lifeboat's checksums (see [`Header`]) take their place.
//!
//! # Limits
//!
//! Only frames with a size prefix (flag 1) are read. Older LTX writers stored LZ4 *frames* without one; those are
//! refused with [`Error::OldFrame`]. A database of zero pages (LTX's deletion marker, which needs LTX's own checksums)
//! is neither read nor written.

mod crc;
mod decode;
mod encode;
mod error;
mod header;
mod index;
mod merge;
mod sequence;
#[cfg(test)]
mod testing;

pub use decode::Decoder;
pub use encode::{Encoder, Written};
pub use error::Error;
pub use header::Header;
pub use index::read_index;
pub use merge::{merge, merge_header};

/// Bytes before the LZ4 block of a page: page number, flags, size.
const FRAME_HEADER_BYTES: usize = 10;

/// Bytes that end the frames: a page header of zeros.
const END_BYTES: usize = 6;

/// Bytes after the index: its own length is not part of it.
const TRAILER_BYTES: usize = 16;

/// The only frame flag: a size and an LZ4 block follow.
const FRAME_SIZED: u16 = 1;

/// Most bytes an LZ4 block of `page_bytes` may take: LZ4's own bound for data that does not compress
/// (one length byte per 255 literals, and slack for the last token).
const fn max_packed_bytes(page_bytes: usize) -> usize {
    page_bytes + page_bytes / 255 + 16
}
