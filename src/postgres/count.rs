//! Rows of a dump, counted in what `pg_restore --data-only` writes. Pure.

use std::collections::BTreeMap;
use std::io::{self, Read};

/// Bytes read at once.
const READ_BYTES: usize = 256 * 1024;
/// A line that begins a block of rows is shorter: it holds the names of a table and of its columns.
const HEAD_MAX_BYTES: usize = 512 * 1024;

/// Reads to the end and counts the rows of each `COPY`. The text format writes a row as one line, whatever is in it.
pub(super) fn rows(mut input: impl Read) -> io::Result<BTreeMap<String, u64>> {
    let mut counter = Counter::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(counter.counts),
            Ok(n) => counter.feed(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[derive(Default)]
struct Counter {
    counts: BTreeMap<String, u64>,
    table: Option<String>,
    rows: u64,
    /// The beginning of the line at hand.
    line: Vec<u8>,
    long: bool,
}

impl Counter {
    fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            // Inside a block only the line `\.` matters.
            if self.table.is_some() && self.line.is_empty() && !bytes.starts_with(b"\\") {
                self.rows += 1;
            } else {
                self.keep(&bytes[..end]);
                self.end();
            }
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        let limit = if self.table.is_some() {
            3
        } else {
            HEAD_MAX_BYTES
        };
        let room = limit.saturating_sub(self.line.len());
        self.long |= bytes.len() > room;
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end(&mut self) {
        match &self.table {
            Some(table) if self.line == b"\\." && !self.long => {
                *self.counts.entry(table.clone()).or_default() += self.rows;
                (self.table, self.rows) = (None, 0);
            }
            Some(_) => self.rows += 1,
            None if !self.long => self.table = table_of(&self.line),
            None => {}
        }
        self.line.clear();
        self.long = false;
    }
}

/// The table of `COPY schema.table (columns) FROM stdin;`, as it stands there.
fn table_of(line: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(line).ok()?;
    let rest = text.strip_prefix("COPY ")?;
    rest.strip_suffix(" FROM stdin;")?;
    let mut quoted = false;
    let end = rest.char_indices().find_map(|(i, c)| {
        quoted ^= c == '"';
        (c == ' ' && !quoted).then_some(i)
    })?;
    Some(rest[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "SET x;\nCOPY public.a (id, \"b c\") FROM stdin;\n1\tx\\ny\n\n\\\\.\n\\N\t\\.\n\\.\n\n\nCOPY public.\"odd \"\"(t) FROM stdin;\" (id) FROM stdin;\n\\.\nCOPY public.a (id) FROM stdin;\n7\n\\.\nnot COPY x (y) FROM stdin;\n9\n";

    #[test]
    fn counts_whatever_the_pieces() {
        for size in [1, 2, 3, 7, 64, 4096] {
            let mut counter = Counter::default();
            TEXT.as_bytes().chunks(size).for_each(|c| counter.feed(c));
            let expected = [
                ("public.\"odd \"\"(t) FROM stdin;\"".to_owned(), 0),
                ("public.a".to_owned(), 5),
            ];
            assert_eq!(counter.counts, BTreeMap::from(expected), "{size}");
        }
    }
}
