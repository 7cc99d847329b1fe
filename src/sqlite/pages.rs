//! The table of page checksums: what the last capture said each page is.
//!
//! One file in the state directory, 8 bytes a page, read and written with pread and pwrite (never mmap: a full
//! disk would end the process with SIGBUS).
//!
//! Invariants
//! - Written only after the LTX file that it describes is durable locally; the header is written after the entries.
//! - Trusted at start only if its entries combine to the checksum of the TXID that it claims ([`PageTable::open`]),
//!   or do so after the local LTX files that follow were replayed onto it: entries are set, not changed, so replay is idempotent.
//! - A crash anywhere leaves either a table that passes this check or one that is rebuilt. It is never fsynced for a capture.
//! - One writer: the capture of its target.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::wal::{Checksum, Salt};
use crate::types::{DbChecksum, Lineage, PageSize, Pgno, RollingChecksum, Txid};

const MAGIC: &[u8; 8] = b"LBPAGES2";
/// Entries start on the second 4 KiB block, so that the header never shares a disk block with them.
const ENTRIES_OFFSET_BYTES: u64 = 4096;
const HEADER_BYTES: usize = 96;
/// Entries read at once: 64 KiB, small beside every memory bound and large beside a system call.
const BATCH_ENTRIES: usize = 8192;

/// Where in one life of the WAL a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPosition {
    /// Salts of the life.
    pub salt: Salt,
    /// Last captured frame; 0 before the first.
    pub frame: u32,
    /// Running checksum up to that frame; the header's for frame 0.
    pub cksum: Checksum,
}

/// What the table describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// Whose history.
    pub lineage: Lineage,
    /// The capture.
    pub txid: Txid,
    /// Page size.
    pub page_size: PageSize,
    /// Database size in pages.
    pub commit: u32,
    /// Where the WAL was captured to, if it is known.
    pub position: Option<WalPosition>,
    /// Device and inode of the database file.
    pub file_id: (u64, u64),
    /// What `stat` said of the file when everything was captured and backfilled; 0 where that is not so. See `Guard::overwritten`.
    pub stamp: u64,
}

/// Table of page checksums with its rolling sum.
#[derive(Debug)]
pub struct PageTable {
    file: File,
    about: Described,
    sum: RollingChecksum,
    /// A write failed half-way: entries and sum do not belong together.
    torn: bool,
}

impl PageTable {
    /// An empty table in place of whatever was at `path`.
    pub fn create(path: &Path, about: Described) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        let about = Described { commit: 0, ..about };
        Ok(Self {
            file,
            about,
            sum: RollingChecksum::default(),
            torn: false,
        })
    }

    /// Opens a table and combines its entries. `Ok(None)` if there is none, or if its header is damaged.
    /// The second value says whether the entries combine to the checksum in the header; if they do not, only a replay
    /// of the LTX files after `about().txid` that ends in a known checksum makes the table trustworthy.
    pub fn open(path: &Path) -> io::Result<Option<(Self, bool)>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = [0; HEADER_BYTES];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        let Some((about, claimed)) = decode(&bytes) else {
            return Ok(None);
        };
        let mut table = Self {
            file,
            about,
            sum: RollingChecksum::default(),
            torn: false,
        };
        let mut sum = RollingChecksum::default();
        table.scan(1, about.commit, |_, hash| sum.add(hash))?;
        table.sum = sum;
        Ok(Some((table, sum.finish() == claimed)))
    }

    /// What the table describes.
    pub fn about(&self) -> &Described {
        &self.about
    }

    /// Checksum of the whole database as described.
    pub fn checksum(&self) -> DbChecksum {
        self.sum.finish()
    }

    /// The entry of a page; 0 beyond the commit size or for a page never set.
    pub fn get(&self, page: Pgno) -> io::Result<u64> {
        if page.get() > self.about.commit {
            return Ok(0);
        }
        let mut bytes = [0; 8];
        match self.file.read_exact_at(&mut bytes, offset(page.get())) {
            Ok(()) => Ok(u64::from_le_bytes(bytes)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Calls `each` with every entry from page `first` to page `last`, in order.
    pub fn scan(&self, first: u32, last: u32, mut each: impl FnMut(u32, u64)) -> io::Result<()> {
        let mut buf = vec![0; BATCH_ENTRIES * 8];
        let mut page = first;
        while page <= last {
            let count = ((last - page) as usize + 1).min(BATCH_ENTRIES);
            let bytes = &mut buf[..count * 8];
            bytes.fill(0);
            read_up_to(&self.file, bytes, offset(page))?;
            for (i, entry) in bytes.as_chunks::<8>().0.iter().enumerate() {
                each(page + i as u32, u64::from_le_bytes(*entry));
            }
            page = match page.checked_add(count as u32) {
                Some(next) => next,
                None => break,
            };
        }
        Ok(())
    }

    /// The checksum that the database has after `updates` (ascending by page) and a commit size, without changing anything.
    pub fn checksum_after(&self, updates: &[(Pgno, u64)], commit: u32) -> io::Result<DbChecksum> {
        Ok(self.sum_after(updates, commit)?.finish())
    }

    fn sum_after(&self, updates: &[(Pgno, u64)], commit: u32) -> io::Result<RollingChecksum> {
        if self.torn {
            return Err(io::Error::other(
                "an earlier write to the checksum table failed; it is read back at the next attempt",
            ));
        }
        let mut sum = self.sum;
        if commit < self.about.commit {
            self.scan(commit + 1, self.about.commit, |_, hash| sum.remove(hash))?;
        }
        for &(page, hash) in updates {
            if page.get() <= commit {
                sum.remove(self.get(page)?);
                sum.add(hash);
            }
        }
        Ok(sum)
    }

    /// Sets the entries of a capture and then what the table describes. Pages beyond `about.commit` leave the table.
    pub fn apply(&mut self, updates: &[(Pgno, u64)], about: Described) -> io::Result<()> {
        let sum = self.sum_after(updates, about.commit)?;
        self.torn = true;
        for run in updates.chunk_by(|a, b| a.0.get() + 1 == b.0.get()) {
            let bytes: Vec<u8> = run
                .iter()
                .filter(|(p, _)| p.get() <= about.commit)
                .flat_map(|(_, h)| h.to_le_bytes())
                .collect();
            self.file.write_all_at(&bytes, offset(run[0].0.get()))?;
        }
        if about.commit < self.about.commit {
            // Stale entries must read as zero if the database grows again.
            self.file.set_len(offset(about.commit + 1))?;
        }
        self.sum = sum;
        self.torn = false;
        self.describe(about)
    }

    /// Records a new position or lineage for the same pages.
    pub fn describe(&mut self, about: Described) -> io::Result<()> {
        self.about = about;
        self.file.write_all_at(&encode(&about, self.checksum()), 0)
    }

    /// Makes the table durable: before a local LTX file that a replay might need is deleted.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn offset(page: u32) -> u64 {
    ENTRIES_OFFSET_BYTES + u64::from(page - 1) * 8
}

/// Reads as much as there is; the rest of `buf` stays as it was.
fn read_up_to(file: &File, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buf.is_empty() {
        let n = match file.read_at(buf, at) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        buf = &mut buf[n..];
        at += n as u64;
    }
    Ok(())
}

fn encode(about: &Described, checksum: DbChecksum) -> [u8; HEADER_BYTES] {
    let position = about.position.unwrap_or(WalPosition {
        salt: (0, 0),
        frame: 0,
        cksum: (0, 0),
    });
    let mut b = Vec::with_capacity(HEADER_BYTES);
    b.extend_from_slice(MAGIC);
    for word in [
        about.lineage.get(),
        about.txid.get(),
        checksum.get(),
        about.file_id.0,
        about.file_id.1,
        about.stamp,
    ] {
        b.extend_from_slice(&word.to_le_bytes());
    }
    let known = u32::from(about.position.is_some());
    let (salt, cksum) = (position.salt, position.cksum);
    for word in [
        about.page_size.get(),
        about.commit,
        known,
        salt.0,
        salt.1,
        position.frame,
        cksum.0,
        cksum.1,
    ] {
        b.extend_from_slice(&word.to_le_bytes());
    }
    let crc = xxhash_rust::xxh3::xxh3_64(&b);
    b.extend_from_slice(&crc.to_le_bytes());
    let mut out = [0; HEADER_BYTES];
    out[..b.len()].copy_from_slice(&b);
    out
}

fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<(Described, DbChecksum)> {
    let body = &bytes[..88];
    let word64 = |i: usize| {
        let at = 8 + i * 8;
        bytes[at..at + 8]
            .try_into()
            .map(u64::from_le_bytes)
            .unwrap_or_default()
    };
    let word32 = |i: usize| {
        let at = 56 + i * 4;
        bytes[at..at + 4]
            .try_into()
            .map(u32::from_le_bytes)
            .unwrap_or_default()
    };
    if &bytes[..8] != MAGIC || word64(10) != xxhash_rust::xxh3::xxh3_64(body) {
        return None;
    }
    let position = (word32(2) == 1).then(|| WalPosition {
        salt: (word32(3), word32(4)),
        frame: word32(5),
        cksum: (word32(6), word32(7)),
    });
    let about = Described {
        lineage: Lineage::new(word64(0))?,
        txid: Txid::new(word64(1))?,
        page_size: PageSize::new(word32(0))?,
        commit: word32(1),
        position,
        file_id: (word64(3), word64(4)),
        stamp: word64(5),
    };
    Some((about, DbChecksum::new(word64(2))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn about(txid: u64, commit: u32) -> Described {
        Described {
            lineage: Lineage::new(7).unwrap(),
            txid: Txid::new(txid).unwrap(),
            page_size: PageSize::new(4096).unwrap(),
            commit,
            position: Some(WalPosition {
                salt: (1, 2),
                frame: 3,
                cksum: (4, 5),
            }),
            file_id: (8, 9),
            stamp: 10,
        }
    }

    fn pages(list: &BTreeMap<u32, u64>) -> Vec<(Pgno, u64)> {
        list.iter()
            .map(|(p, h)| (Pgno::new(*p).unwrap(), *h))
            .collect()
    }

    proptest! {
        /// Whatever the order of growth, shrinking and change, the rolling sum is the sum of the entries in force,
        /// and a reopened table says the same and is trusted.
        #[test]
        fn rolling_sum_is_the_sum_of_entries(
            steps in prop::collection::vec((prop::collection::btree_map(1u32..300, 1u64.., 0..40), 1u32..300), 1..20)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("t");
            let mut table = PageTable::create(&path, about(1, 0)).unwrap();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for (n, (changes, commit)) in steps.iter().enumerate() {
                let expected = table.checksum_after(&pages(changes), *commit).unwrap();
                table.apply(&pages(changes), about(n as u64 + 1, *commit)).unwrap();
                model.extend(changes.iter());
                model.retain(|p, _| p <= commit);
                let mut sum = RollingChecksum::default();
                model.values().for_each(|h| sum.add(*h));
                prop_assert_eq!(table.checksum(), sum.finish());
                prop_assert_eq!(expected, sum.finish());
            }
            let (again, trusted) = PageTable::open(&path).unwrap().unwrap();
            prop_assert!(trusted);
            prop_assert_eq!(again.about(), table.about());
            for p in 1..300 {
                let page = Pgno::new(p).unwrap();
                prop_assert_eq!(again.get(page).unwrap(), model.get(&p).copied().unwrap_or(0));
            }
        }
    }

    #[test]
    fn a_half_written_update_is_not_trusted_until_replayed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let first: BTreeMap<_, _> = [(1, 11), (2, 22), (3, 33)].into();
        let mut table = PageTable::create(&path, about(1, 0)).unwrap();
        table.apply(&pages(&first), about(1, 3)).unwrap();
        let before = table.checksum();
        // The crash: one entry of TXID 2 reached the file, the header did not.
        table
            .file
            .write_all_at(&222_u64.to_le_bytes(), offset(2))
            .unwrap();
        let (mut table, trusted) = PageTable::open(&path).unwrap().unwrap();
        assert!(!trusted);
        table
            .apply(&pages(&[(1, 111), (2, 222)].into()), about(2, 3))
            .unwrap();
        let mut sum = RollingChecksum::default();
        [111, 222, 33].into_iter().for_each(|h| sum.add(h));
        assert_eq!(table.checksum(), sum.finish());
        assert_ne!(table.checksum(), before);
        assert!(PageTable::open(&path).unwrap().unwrap().1);
    }

    #[test]
    fn a_damaged_header_is_no_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        assert!(PageTable::open(&path).unwrap().is_none());
        let mut table = PageTable::create(&path, about(1, 0)).unwrap();
        table.describe(about(1, 0)).unwrap();
        for at in 0..88 {
            let mut byte = [0];
            table.file.read_exact_at(&mut byte, at).unwrap();
            table.file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert!(PageTable::open(&path).unwrap().is_none(), "byte {at}");
            table.file.write_all_at(&byte, at).unwrap();
        }
    }
}
