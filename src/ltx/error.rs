//! Everything that can be wrong with an LTX file.

use std::io;

use crate::types::{DbChecksum, Lineage, PageSize, Pgno, Txid};

/// Why an LTX file could not be read, written or merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source failed.
    #[error("read ltx: {0}")]
    Read(#[source] io::Error),
    /// The destination failed.
    #[error("write ltx: {0}")]
    Write(#[source] io::Error),
    /// Used again after an error: the stream's position is unknown.
    #[error("ltx: used again after an earlier error")]
    Broken,
    /// The file ends too early.
    #[error("read ltx: the file ends inside its {part}")]
    Truncated {
        /// Part of the file that is cut.
        part: &'static str,
    },
    /// Bytes follow the trailer.
    #[error("read ltx: data follows the trailer")]
    TrailingData,

    /// First four bytes.
    #[error("ltx header: not an ltx version 3 file")]
    Magic,
    /// Flags other than NoChecksum.
    #[error("ltx header: unknown flags {0:#010x}")]
    Flags(u32),
    /// Not a SQLite page size.
    #[error("ltx header: page size {0} is not a power of two from 512 to 65536")]
    PageSize(u32),
    /// A database of zero pages.
    #[error("ltx header: the database has no pages")]
    EmptyCommit,
    /// Zero, or the first above the last.
    #[error("ltx header: txid range {min:016x}-{max:016x} is not valid")]
    TxidRange {
        /// First TXID in the header.
        min: u64,
        /// Last TXID in the header.
        max: u64,
    },
    /// Negative, or a size or salt without an offset. Litestream refuses these.
    #[error(
        "ltx header: wal offset {offset} and size {size} do not fit together or with the salts"
    )]
    WalRange {
        /// WAL offset in bytes.
        offset: i64,
        /// WAL size in bytes.
        size: i64,
    },
    /// One of LTX's own database checksums is set although the header says there are none.
    #[error("ltx: {which} checksum is set in a file without checksums")]
    UnexpectedChecksum {
        /// `pre-apply` or `post-apply`.
        which: &'static str,
    },

    /// A page of another length than the page size.
    #[error("ltx page {}: {actual} bytes, the page size is {}", page.get(), expected.get())]
    PageLength {
        /// The page.
        page: Pgno,
        /// Its bytes.
        actual: usize,
        /// The page size.
        expected: PageSize,
    },
    /// A page at or below the one before it.
    #[error("ltx page {}: comes after page {after}", page.get())]
    PageOrder {
        /// The page.
        page: Pgno,
        /// The page before it.
        after: u32,
    },
    /// The lock page is never stored.
    #[error("ltx page {}: this is the lock page, which is never stored", page.get())]
    LockPage {
        /// The page.
        page: Pgno,
    },
    /// A page outside the database.
    #[error("ltx page {}: the database has only {commit} pages", page.get())]
    BeyondCommit {
        /// The page.
        page: Pgno,
        /// Pages in the database.
        commit: u32,
    },
    /// A base (starts at TXID 1) must hold every page.
    #[error(
        "ltx: page {missing} is missing; a file that starts at txid 1 must hold all {commit} pages"
    )]
    MissingPage {
        /// The first page that is not there.
        missing: u32,
        /// Pages in the database.
        commit: u32,
    },
    /// A frame with flags but without page number.
    #[error("ltx frame at byte {offset}: no page number")]
    FramePage {
        /// Byte offset in the file.
        offset: u64,
    },
    /// Flags that this version does not define.
    #[error("ltx page {}: unknown frame flags {flags:#06x}", page.get())]
    FrameFlags {
        /// The page.
        page: Pgno,
        /// The flags.
        flags: u16,
    },
    /// The frame form without a size prefix.
    #[error("ltx page {}: stored in the old frame form without a size", page.get())]
    OldFrame {
        /// The page.
        page: Pgno,
    },
    /// No LZ4 block of one page has this size.
    #[error("ltx page {}: compressed size {size} cannot be right for one page", page.get())]
    PackedSize {
        /// The page.
        page: Pgno,
        /// Compressed bytes.
        size: u32,
    },
    /// LZ4 failed, or the block does not unpack to one page.
    #[error("ltx page {}: lz4 block is damaged", page.get())]
    Unpack {
        /// The page.
        page: Pgno,
    },
    /// LZ4 could not pack a page.
    #[error("ltx page {}: lz4 could not pack it", page.get())]
    Pack {
        /// The page.
        page: Pgno,
    },

    /// The index does not say what the frames say, or not in the only form writers use.
    #[error("ltx index: does not match the page frames")]
    Index,
    /// The given end of the file does not reach back to the start of the index.
    #[error("ltx index: the last {needed} bytes of the file are needed")]
    IndexTail {
        /// Bytes from the start of the index to the end of the file.
        needed: u64,
    },
    /// The file was damaged.
    #[error("ltx checksum: stored {stored:016x}, computed {computed:016x}")]
    FileChecksum {
        /// In the trailer.
        stored: u64,
        /// Of the bytes that were read.
        computed: u64,
    },

    /// Nothing to merge.
    #[error("merge ltx: no files")]
    NoInputs,
    /// A decoder that has already given pages away.
    #[error("merge ltx: file {0} has been read from already")]
    InputStarted(Txid),
    /// TXIDs missing or repeated between two files.
    #[error("merge ltx: a file ends at txid {before}, the next starts at {next}")]
    NotContiguous {
        /// Last TXID of the older file.
        before: Txid,
        /// First TXID of the newer file.
        next: Txid,
    },
    /// The page size changed between two files.
    #[error("merge ltx: page sizes {} and {} differ", .0.get(), .1.get())]
    PageSizesDiffer(PageSize, PageSize),
    /// Files of two histories.
    #[error("merge ltx: lineages {0} and {1} differ")]
    LineagesDiffer(Lineage, Lineage),
    /// The newer file was not made on top of the older one.
    #[error("merge ltx: {at} starts from database checksum {:016x}, the file before leaves {:016x}", pre.get(), post.get())]
    ChecksumChain {
        /// First TXID of the newer file.
        at: Txid,
        /// What it was made on.
        pre: DbChecksum,
        /// What the older file leaves.
        post: DbChecksum,
    },
}

impl Error {
    /// What to do about it, for people.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::OldFrame { .. } => {
                "let a current litestream write a new snapshot of this database"
            }
            Self::LineagesDiffer(..) | Self::ChecksumChain { .. } => {
                "two databases may have written to this replica; restore to a time before they mixed"
            }
            Self::Truncated { .. }
            | Self::TrailingData
            | Self::FileChecksum { .. }
            | Self::Unpack { .. } => {
                "the file is damaged; a restore to a txid before it, or from another store, does not need it"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}
