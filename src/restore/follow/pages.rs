//! Pages of the copy, through SQLite's own table of pages.

use rusqlite::{Connection, OptionalExtension, Statement};

use super::Follower;
use crate::types::{PageSize, Pgno, RollingChecksum, page_hash};

/// The schema cookie in page 1.
const COOKIE: std::ops::Range<usize> = 40..44;
const FIRST: Pgno = Pgno::FIRST;

/// Hash of page 1 without what SQLite changes in it by itself.
pub(super) fn masked(page: &[u8]) -> u64 {
    let mut page = page.to_vec();
    page[24..28].fill(0);
    page[92..100].fill(0);
    page_hash(FIRST, &page)
}

/// Sum over all pages but the first, and the masked hash of that.
pub(super) fn whole(conn: &Connection, size: PageSize) -> rusqlite::Result<(RollingChecksum, u64)> {
    let mut select = conn.prepare("SELECT pgno, data FROM sqlite_dbpage")?;
    let mut rows = select.query([])?;
    let (mut sum, mut first) = (RollingChecksum::default(), 0);
    while let Some(row) = rows.next()? {
        let (number, data) = (row.get::<_, u32>(0)?, row.get_ref(1)?.as_blob()?);
        match Pgno::new(number) {
            Some(FIRST) => first = masked(data),
            Some(page) if page != size.lock_page() => sum.add(page_hash(page, data)),
            _ => {}
        }
    }
    Ok((sum, first))
}

/// Pages of the copy within one transaction. Page 1 goes last: with it SQLite would read the schema again, of a file that is not whole yet.
pub(super) struct Pages<'a> {
    select: Statement<'a>,
    insert: Statement<'a>,
    lock_page: Pgno,
    pub(super) sum: RollingChecksum,
    pub(super) page1: u64,
    pub(super) page1_masked: u64,
    first: Option<Vec<u8>>,
    /// Bytes of page 1 that change with every change of the schema.
    cookie: Vec<u8>,
    pub(super) schema_changed: bool,
    /// Pages that count now: those after it are gone, or not there yet.
    count: u32,
    /// Pages of the file that is applied.
    pub(super) commit: u32,
    /// Pages that SQLite holds for it, those that are gone among them.
    held: u32,
}

impl<'a> Pages<'a> {
    pub(super) fn begin(of: &'a Follower) -> rusqlite::Result<Self> {
        let count = of
            .conn
            .pragma_query_value(None, "page_count", |r| r.get::<_, u32>(0))?;
        let cookie = "SELECT substr(data, 41, 4) FROM sqlite_dbpage WHERE pgno = 1";
        let cookie: Vec<u8> = of.conn.query_row(cookie, [], |r| r.get(0))?;
        Ok(Self {
            cookie,
            schema_changed: false,
            select: of
                .conn
                .prepare("SELECT data FROM sqlite_dbpage WHERE pgno = ?1")?,
            insert: of
                .conn
                .prepare("INSERT INTO sqlite_dbpage(pgno, data) VALUES (?1, ?2)")?,
            lock_page: of.page_size.lock_page(),
            sum: of.sum,
            page1: of.state.at.page1,
            page1_masked: of.state.at.page1_masked,
            first: None,
            count,
            commit: count,
            held: count,
        })
    }

    pub(super) fn put(&mut self, page: Pgno, data: &[u8]) -> rusqlite::Result<()> {
        if page == FIRST {
            self.sum.remove(self.page1);
            self.page1 = page_hash(page, data);
            self.page1_masked = masked(data);
            self.sum.add(self.page1);
            self.first = Some(data.to_vec());
            return Ok(());
        }
        self.forget(page)?;
        self.write(page.get(), Some(data))?;
        self.sum.add(page_hash(page, data));
        self.count = self.count.max(page.get());
        self.held = self.held.max(page.get());
        Ok(())
    }

    /// Takes what a page holds now out of the sum.
    fn forget(&mut self, page: Pgno) -> rusqlite::Result<()> {
        if page.get() > self.count || page == self.lock_page {
            return Ok(());
        }
        let hash = self
            .select
            .query_row([page.get()], |r| {
                Ok(page_hash(page, r.get_ref(0)?.as_blob()?))
            })
            .optional()?;
        self.sum.remove(hash.unwrap_or(0));
        Ok(())
    }

    fn write(&mut self, page: u32, data: Option<&[u8]>) -> rusqlite::Result<()> {
        self.insert.execute((page, data)).map(|_| ())
    }

    /// At the end of a file: pages after its last commit are gone.
    pub(super) fn cut(&mut self) -> rusqlite::Result<()> {
        for page in self.commit.saturating_add(1)..=self.count {
            if let Some(page) = Pgno::new(page) {
                self.forget(page)?;
            }
        }
        self.count = self.count.min(self.commit);
        Ok(())
    }

    fn truncate(&mut self) -> rusqlite::Result<()> {
        if self.held > self.commit {
            self.write(self.commit + 1, None)?;
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> rusqlite::Result<()> {
        self.cut()?;
        let Some(first) = self.first.take() else {
            return self.truncate();
        };
        self.write(1, Some(&first))?;
        self.schema_changed = first[COOKIE] != self.cookie;
        // Last: a page that is written after the cut would undo it.
        match self.truncate() {
            // SQLite may read the new schema for this statement while it still knows the old one, and refuse. Then nothing is cut: the file
            // keeps its length, and what is behind the last page that the header counts is of no meaning.
            Err(error) if self.schema_changed => {
                tracing::debug!(%error, "the copy keeps its length for now");
                Ok(())
            }
            done => done,
        }
    }
}
