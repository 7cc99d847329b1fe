//! Files of a plan onto an empty file, in order, in bounded memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use thiserror::Error;

use crate::ltx;
use crate::store::StoreError;
use crate::types::{DbChecksum, Entry, PageSize, Pgno, RollingChecksum, page_hash};

/// Bytes read at once when the result is read back.
const READ_BYTES: usize = 1 << 20;

/// A file of the plan that could not be applied.
#[derive(Debug, Error)]
#[error("LTX file {}: {source}", entry.span)]
pub struct ApplyError {
    /// Which file.
    pub entry: Entry,
    /// Why.
    pub source: Fault,
}

/// Why a file could not be applied.
#[derive(Debug, Error)]
pub enum Fault {
    /// Its bytes.
    #[error(transparent)]
    Ltx(#[from] ltx::Error),
    /// It does not belong where it is.
    #[error("its {0} do not match the files before it or its name")]
    Mismatch(&'static str),
    /// Opening it, or writing what is in it.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Fault {
    /// The bytes in the store are wrong or missing, as opposed to the store or the disk failing.
    pub fn is_corrupt(&self) -> bool {
        !matches!(
            self,
            Self::Io(_) | Self::Ltx(ltx::Error::Read(_) | ltx::Error::Write(_))
        )
    }
}

impl Fault {
    /// The store's own error, if that is what ended the reading.
    pub fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Io(e) | Self::Ltx(ltx::Error::Read(e)) => e.get_ref()?.downcast_ref(),
            _ => None,
        }
    }
}

/// What the files gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Header of the last file.
    pub last: ltx::Header,
    /// Checksum that the files claim; `None` where Litestream wrote the last one.
    pub expected: Option<DbChecksum>,
}

/// Reads every file, verifies it, and hands each header and page on.
pub fn each<R: Read>(
    files: &[Entry],
    mut open: impl FnMut(&Entry) -> io::Result<R>,
    mut header: impl FnMut(&ltx::Header) -> io::Result<()>,
    mut page: impl FnMut(Pgno, &[u8]) -> io::Result<()>,
) -> Result<Applied, ApplyError> {
    let mut buf = Vec::new();
    let mut last: Option<ltx::Header> = None;
    for entry in files {
        let mut one = || -> Result<ltx::Header, Fault> {
            let mut decoder = ltx::Decoder::new(open(entry)?)?;
            let found = *decoder.header();
            if (found.min, found.max) != (entry.span.min(), entry.span.max()) {
                return Err(Fault::Mismatch("TXIDs"));
            }
            if let Some(before) = &last {
                fits(before, &found)?;
            }
            header(&found)?;
            while let Some(number) = decoder.next_page(&mut buf)? {
                page(number, &buf)?;
            }
            Ok(found)
        };
        last = Some(one().map_err(|source| ApplyError {
            entry: *entry,
            source,
        })?);
    }
    match (last, files.last()) {
        (Some(last), _) => Ok(Applied {
            expected: last.post,
            last,
        }),
        (None, Some(entry)) => Err(ApplyError {
            entry: *entry,
            source: ltx::Error::NoInputs.into(),
        }),
        (None, None) => unreachable!("a plan holds a base"),
    }
}

/// Whether a file may follow another in a chain.
///
/// # Errors
/// [`Fault::Mismatch`].
pub fn fits(before: &ltx::Header, after: &ltx::Header) -> Result<(), Fault> {
    if before.page_size != after.page_size {
        return Err(Fault::Mismatch("page sizes"));
    }
    let follows = before.max.next() == after.min;
    if let (true, Some(post), Some(pre)) = (follows, before.post, after.pre)
        && post != pre
    {
        return Err(Fault::Mismatch("database checksums"));
    }
    Ok(())
}

/// Writes a plan's pages to `out` and cuts it to the last commit's size. The lock page stays a hole.
pub fn to_file<R: Read>(
    files: &[Entry],
    open: impl FnMut(&Entry) -> io::Result<R>,
    out: &File,
    progress: &dyn Fn(u64),
) -> Result<Applied, ApplyError> {
    let page_size = std::cell::Cell::new(PageSize::new(4096));
    let applied = each(
        files,
        open,
        |header| {
            page_size.set(Some(header.page_size));
            Ok(())
        },
        |page, data| {
            progress(data.len() as u64);
            let at = page_size.get().map_or(0, |size| size.offset(page));
            out.write_all_at(data, at)
        },
    )?;
    let bytes = u64::from(applied.last.commit) * u64::from(applied.last.page_size.get());
    let entry = files[files.len() - 1];
    out.set_len(bytes).map_err(|e| ApplyError {
        entry,
        source: e.into(),
    })?;
    Ok(applied)
}

/// Reads a database file back and computes its checksum.
pub fn checksum(file: &File, page_size: PageSize, commit: u32) -> io::Result<DbChecksum> {
    let size = page_size.bytes();
    let mut buf = vec![0; (READ_BYTES / size).max(1) * size];
    let mut sum = RollingChecksum::default();
    let mut page = 1_u32;
    let end = u64::from(commit) * size as u64;
    let mut at = 0;
    while at < end {
        let bytes = ((end - at) as usize).min(buf.len());
        file.read_exact_at(&mut buf[..bytes], at)?;
        for data in buf[..bytes].chunks_exact(size) {
            if let Some(number) = Pgno::new(page).filter(|n| *n != page_size.lock_page()) {
                sum.add(page_hash(number, data));
            }
            page = page.saturating_add(1);
        }
        at += bytes as u64;
    }
    Ok(sum.finish())
}
