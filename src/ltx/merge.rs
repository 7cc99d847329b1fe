//! Rolling several LTX files into one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};

use super::{Decoder, Encoder, Error, Header, Written};
use crate::types::Pgno;

/// One file in the merge, with the page it offers next.
struct Input<R: Read> {
    decoder: Decoder<R>,
    page: Vec<u8>,
}

/// Merges files, oldest first, into one: the newest version of each page, without the pages above the last commit size.
///
/// The result leaves the same database as applying the files one after another, if every file that grows the database
/// stores all pages it grows by. Where one does not, such a page keeps the version from before an earlier cut, as in
/// Litestream's own compaction; SQLite gives no meaning to its content.
///
/// Memory: one page, one packed page and a read buffer for each input, so merge some dozens at a time.
///
/// Every input is read to its end and verified. On an error what was written so far must be thrown away.
///
/// # Errors
/// Those of [`merge_header`], of reading any input and of writing; [`Error::MissingPage`] if the result starts at TXID 1
/// and lacks pages; [`Error::InputStarted`] for an input that was read from before.
pub fn merge<R: Read, W: Write>(
    inputs: Vec<Decoder<R>>,
    out: W,
) -> Result<(W, Header, Written), Error> {
    if let Some(started) = inputs.iter().find(|input| !input.is_at_start()) {
        return Err(Error::InputStarted(started.header().min));
    }
    let headers: Vec<Header> = inputs.iter().map(|input| *input.header()).collect();
    let header = merge_header(&headers)?;
    let mut encoder = Encoder::new(out, &header)?;

    let mut inputs: Vec<Input<R>> = inputs
        .into_iter()
        .map(|decoder| Input {
            decoder,
            page: Vec::new(),
        })
        .collect();

    // Lowest page first; for one page the newest input first.
    let mut next = BinaryHeap::with_capacity(inputs.len());
    for (age, input) in inputs.iter_mut().enumerate() {
        next.extend(input.advance()?.map(|page| (Reverse(page), age)));
    }
    let mut last = None;
    while let Some((Reverse(page), age)) = next.pop() {
        let input = &mut inputs[age];
        if last != Some(page) && page.get() <= header.commit {
            encoder.page(page, &input.page)?;
            last = Some(page);
        }
        next.extend(input.advance()?.map(|page| (Reverse(page), age)));
    }
    let (out, written) = encoder.finish()?;
    Ok((out, header, written))
}

impl<R: Read> Input<R> {
    fn advance(&mut self) -> Result<Option<Pgno>, Error> {
        self.decoder.next_page(&mut self.page)
    }
}

/// The header of the merge of files with these headers, oldest first: what comes before is the first's, what comes after
/// is the last's, the lineage is the known one, and nothing is said about a WAL.
///
/// # Errors
/// No files, a gap or overlap in the TXIDs, differing page sizes or known lineages, or a file that was not made on what
/// the file before leaves (where both checksums are known).
pub fn merge_header(headers: &[Header]) -> Result<Header, Error> {
    let (Some(first), Some(last)) = (headers.first(), headers.last()) else {
        return Err(Error::NoInputs);
    };
    let mut lineage = first.lineage;
    for pair in headers.windows(2) {
        let [older, newer] = pair else { continue };
        // `next` saturates: nothing can follow the last TXID of all.
        if newer.min != older.max.next() || newer.min == older.max {
            return Err(Error::NotContiguous {
                before: older.max,
                next: newer.min,
            });
        }
        if newer.page_size != older.page_size {
            return Err(Error::PageSizesDiffer(older.page_size, newer.page_size));
        }
        if let (Some(known), Some(other)) = (lineage, newer.lineage)
            && known != other
        {
            return Err(Error::LineagesDiffer(known, other));
        }
        if let (Some(post), Some(pre)) = (older.post, newer.pre)
            && post != pre
        {
            return Err(Error::ChecksumChain {
                at: newer.min,
                pre,
                post,
            });
        }
        lineage = lineage.or(newer.lineage);
    }
    Ok(Header {
        min: first.min,
        pre: first.pre,
        lineage,
        wal_offset: 0,
        wal_size: 0,
        salt: (0, 0),
        ..*last
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::testing::{Pages, any_page, any_page_size, decode_all, encode, header};
    use super::*;
    use crate::types::{DbChecksum, Lineage, Millis};

    fn merge_all(files: &[Vec<u8>]) -> Result<(Header, Pages), Error> {
        let inputs = files
            .iter()
            .map(|file| Decoder::new(file.as_slice()))
            .collect::<Result<_, _>>()?;
        let (bytes, header, written) = merge(inputs, Vec::new())?;
        assert_eq!(written.bytes, bytes.len() as u64);
        let decoded = decode_all(&bytes)?;
        assert_eq!(decoded.0, header);
        Ok(decoded)
    }

    /// Files with TXIDs 2-2, 3-3, ... of one page size. `whole`: each stores every page it grows by.
    fn history(whole: bool) -> impl Strategy<Value = Vec<(Header, Pages)>> {
        let file = (1_u32..14, proptest::collection::btree_set(1_u32..14, 0..6));
        (any_page_size(), proptest::collection::vec(file, 1..7)).prop_flat_map(
            move |(page_size, files)| {
                let mut before = 0;
                let file = |(i, (commit, mut numbers)): (usize, (u32, BTreeSet<u32>))| {
                    let header = header(page_size, commit, i as u64 + 2, i as u64 + 2);
                    if whole {
                        numbers.extend(before + 1..=commit);
                    }
                    before = commit;
                    numbers.retain(|&page| page <= commit);
                    let pages = proptest::collection::vec(any_page(page_size), numbers.len());
                    pages.prop_map(move |pages| {
                        (header, numbers.iter().copied().zip(pages).collect())
                    })
                };
                files.into_iter().enumerate().map(file).collect::<Vec<_>>()
            },
        )
    }

    fn encode_each(files: &[(Header, Pages)]) -> Vec<Vec<u8>> {
        files
            .iter()
            .map(|(header, pages)| encode(header, pages))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn newest_pages_up_to_the_last_commit(files in history(false)) {
            let mut model = Pages::new();
            for (_, pages) in &files {
                model.extend(pages.clone());
            }
            let last = files[files.len() - 1].0;
            model.retain(|&page, _| page <= last.commit);
            let (header, pages) = merge_all(&encode_each(&files)).unwrap();
            prop_assert_eq!(pages, model);
            prop_assert_eq!(header, Header { min: files[0].0.min, ..last });
        }

        #[test]
        fn equals_applying_one_by_one_in_any_grouping(files in history(true), cut: prop::sample::Index) {
            let mut model = Pages::new();
            for (header, pages) in &files {
                model.extend(pages.clone());
                model.retain(|&page, _| page <= header.commit);
            }
            let encoded = encode_each(&files);
            prop_assert_eq!(&merge_all(&encoded).unwrap().1, &model);

            let (older, newer) = encoded.split_at(cut.index(encoded.len()));
            let halves = [older, newer].into_iter().filter(|half| !half.is_empty());
            let merged: Vec<_> = halves.map(|half| merge_all(half).unwrap()).collect();
            prop_assert_eq!(merge_all(&encode_each(&merged)).unwrap().1, model);
        }
    }

    #[test]
    fn header_takes_before_from_the_first_and_after_from_the_last() {
        let (a, b) = (DbChecksum::new(1), DbChecksum::new(2));
        let lineage = Lineage::new(7);
        let first = Header {
            pre: a,
            post: b,
            epoch: 3,
            wal_offset: 32,
            salt: (1, 2),
            ..header(512, 4, 2, 3)
        };
        let middle = Header {
            lineage,
            pre: b,
            ..header(512, 4, 4, 4)
        };
        let last = Header {
            post: a,
            epoch: 5,
            timestamp: Millis(9),
            wal_offset: 32,
            wal_size: 8,
            ..header(512, 6, 5, 9)
        };
        let expected = Header {
            pre: a,
            post: a,
            epoch: 5,
            lineage,
            timestamp: Millis(9),
            ..header(512, 6, 2, 9)
        };
        assert_eq!(merge_header(&[first, middle, last]).unwrap(), expected);
    }

    #[test]
    fn files_that_do_not_follow_each_other_are_refused() {
        let one = header(512, 4, 2, 3);
        let try_next = |next: Header| merge_header(&[one, next]).unwrap_err();
        assert!(matches!(merge_header(&[]), Err(Error::NoInputs)));
        assert!(matches!(
            try_next(header(512, 4, 5, 5)),
            Error::NotContiguous { .. }
        ));
        assert!(matches!(
            try_next(header(512, 4, 3, 5)),
            Error::NotContiguous { .. }
        ));
        assert!(matches!(
            try_next(header(512, 4, 2, 3)),
            Error::NotContiguous { .. }
        ));
        assert!(matches!(
            try_next(header(1024, 4, 4, 5)),
            Error::PageSizesDiffer(..)
        ));
        let end = header(512, 4, u64::MAX, u64::MAX);
        assert!(matches!(
            merge_header(&[end, end]),
            Err(Error::NotContiguous { .. })
        ));

        let lineage = |id, min| Header {
            lineage: Lineage::new(id),
            ..header(512, 4, min, min)
        };
        let mixed = [lineage(1, 2), lineage(0, 3), lineage(2, 4)];
        assert!(matches!(
            merge_header(&mixed),
            Err(Error::LineagesDiffer(..))
        ));

        let left = Header {
            post: DbChecksum::new(1),
            ..one
        };
        let right = Header {
            pre: DbChecksum::new(2),
            ..header(512, 4, 4, 4)
        };
        assert!(matches!(
            merge_header(&[left, right]),
            Err(Error::ChecksumChain { .. })
        ));
    }

    #[test]
    fn a_base_must_come_out_whole() {
        let base = encode(&header(512, 1, 1, 1), &[(1, vec![1; 512])].into());
        let grown = encode(
            &header(512, 3, 2, 2),
            &[(2, vec![2; 512]), (3, vec![3; 512])].into(),
        );
        let holed = encode(&header(512, 3, 2, 2), &[(3, vec![3; 512])].into());
        let (header, pages) = merge_all(&[base.clone(), grown]).unwrap();
        assert_eq!((header.min.get(), header.max.get(), pages.len()), (1, 2, 3));
        assert!(matches!(
            merge_all(&[base, holed]),
            Err(Error::MissingPage {
                missing: 2,
                commit: 3
            })
        ));
    }

    #[test]
    fn damage_in_a_page_that_is_not_taken_is_seen() {
        let older = encode(&header(512, 2, 2, 2), &[(1, vec![1; 512])].into());
        let newer = encode(&header(512, 2, 3, 3), &[(1, vec![2; 512])].into());
        let mut bad = older.clone();
        let last = bad.len() - 1;
        bad[last] ^= 1;
        assert!(matches!(
            merge_all(&[bad, newer.clone()]),
            Err(Error::FileChecksum { .. })
        ));

        let mut started = Decoder::new(older.as_slice()).unwrap();
        started.next_page(&mut Vec::new()).unwrap();
        let inputs = vec![started, Decoder::new(newer.as_slice()).unwrap()];
        assert!(matches!(
            merge(inputs, Vec::new()),
            Err(Error::InputStarted(_))
        ));
    }
}
