//! Which pages may follow which: the same rules for writing and reading.

use super::{Error, Header};
use crate::types::{Pgno, Txid};

/// Checks invariants 1 and 2 of the module as pages go by.
pub(super) struct Sequence {
    commit: u32,
    lock_page: u32,
    base: bool,
    last: u32,
    pages: u32,
}

impl Sequence {
    pub(super) fn new(header: &Header) -> Self {
        Self {
            commit: header.commit,
            lock_page: header.page_size.lock_page().get(),
            base: header.min == Txid::FIRST,
            last: 0,
            pages: 0,
        }
    }

    /// Pages accepted so far.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// Takes the next page, or says which rule it breaks; then nothing has changed.
    pub(super) fn accept(&mut self, page: Pgno) -> Result<(), Error> {
        let number = page.get();
        if number == self.lock_page {
            return Err(Error::LockPage { page });
        }
        if number > self.commit {
            return Err(Error::BeyondCommit {
                page,
                commit: self.commit,
            });
        }
        if number <= self.last {
            return Err(Error::PageOrder {
                page,
                after: self.last,
            });
        }
        if self.base && number != self.following() {
            return Err(Error::MissingPage {
                missing: self.following(),
                commit: self.commit,
            });
        }
        self.last = number;
        self.pages += 1;
        Ok(())
    }

    /// After the last page: a base must have reached its commit size.
    pub(super) fn finish(&self) -> Result<(), Error> {
        let missing = self.following();
        if self.base && self.last < self.commit && missing <= self.commit {
            return Err(Error::MissingPage {
                missing,
                commit: self.commit,
            });
        }
        Ok(())
    }

    /// The page a base must have next, if it has not reached its commit size yet.
    fn following(&self) -> u32 {
        let next = self.last.saturating_add(1);
        if next == self.lock_page {
            next.saturating_add(1)
        } else {
            next
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{header, pgno};
    use super::*;

    /// 65536-byte pages put the lock page at 16385.
    fn at(min: u64, commit: u32, last: u32) -> Sequence {
        let mut sequence = Sequence::new(&header(65536, commit, min, 9));
        sequence.last = last;
        sequence
    }

    #[test]
    fn a_base_steps_over_the_lock_page() {
        let mut sequence = at(1, 16386, 16384);
        assert!(matches!(
            sequence.accept(pgno(16385)),
            Err(Error::LockPage { .. })
        ));
        assert!(matches!(
            sequence.finish(),
            Err(Error::MissingPage { missing: 16386, .. })
        ));
        sequence.accept(pgno(16386)).unwrap();
        sequence.finish().unwrap();
        at(1, 16385, 16384).finish().unwrap();
        at(1, 16384, 16384).finish().unwrap();
    }

    #[test]
    fn a_base_has_no_holes() {
        assert!(matches!(
            at(1, 5, 0).accept(pgno(2)),
            Err(Error::MissingPage {
                missing: 1,
                commit: 5
            })
        ));
        assert!(matches!(
            at(1, 5, 2).accept(pgno(4)),
            Err(Error::MissingPage {
                missing: 3,
                commit: 5
            })
        ));
        assert!(matches!(
            at(1, 5, 4).finish(),
            Err(Error::MissingPage {
                missing: 5,
                commit: 5
            })
        ));
    }

    #[test]
    fn other_files_only_rise() {
        let mut sequence = at(2, 20000, 3);
        sequence.accept(pgno(5)).unwrap();
        assert!(matches!(
            sequence.accept(pgno(5)),
            Err(Error::PageOrder { after: 5, .. })
        ));
        assert!(matches!(
            sequence.accept(pgno(4)),
            Err(Error::PageOrder { after: 5, .. })
        ));
        assert!(matches!(
            sequence.accept(pgno(16385)),
            Err(Error::LockPage { .. })
        ));
        assert!(matches!(
            sequence.accept(pgno(20001)),
            Err(Error::BeyondCommit { commit: 20000, .. })
        ));
        sequence.accept(pgno(20000)).unwrap();
        sequence.finish().unwrap();
        assert_eq!(sequence.pages(), 2);
    }
}
