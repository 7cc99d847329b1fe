use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};

use super::{Decoder, Encoder, Error, Header, Written};
use crate::types::Pgno;

/// The header of a merge. Refuses files that do not belong together.
pub fn merge_header(headers: &[&Header]) -> Result<Header, Error> {
    let (Some(first), Some(last)) = (headers.first(), headers.last()) else {
        return Err(Error::NothingToMerge);
    };
    for (a, b) in headers.iter().zip(headers.iter().skip(1)) {
        if a.max.next() != b.min {
            return Err(Error::NotContiguous {
                after: a.max,
                found: b.min,
            });
        }
        if a.page_size != b.page_size {
            return Err(Error::Differ("page sizes"));
        }
        if let (Some(before), Some(after)) = (a.post, b.pre)
            && before != after
        {
            return Err(Error::Differ("database checksums"));
        }
    }
    let mut lineage = None;
    for known in headers.iter().filter_map(|h| h.lineage) {
        if lineage.is_some_and(|l| l != known) {
            return Err(Error::Differ("lineages"));
        }
        lineage = Some(known);
    }
    Ok(Header {
        min: first.min,
        pre: first.pre,
        lineage,
        wal_offset: 0,
        wal_size: 0,
        salt: (0, 0),
        ..(*last).clone()
    })
}

/// Merges contiguous files, oldest first, into one: of each page the newest version, without pages that the last commit cut off.
/// Holds one page of each input.
pub fn merge<R: Read, W: Write>(
    mut inputs: Vec<Decoder<R>>,
    out: W,
) -> Result<(W, Header, Written), Error> {
    let headers: Vec<&Header> = inputs.iter().map(Decoder::header).collect();
    let header = merge_header(&headers)?;
    let mut encoder = Encoder::new(out, &header)?;
    let mut pages: Vec<Vec<u8>> = vec![Vec::new(); inputs.len()];
    // Smallest page first; of one page the newest input first.
    let mut heap: BinaryHeap<Reverse<(Pgno, Reverse<usize>)>> = BinaryHeap::new();
    for (i, input) in inputs.iter_mut().enumerate() {
        if let Some(page) = input.next_page(&mut pages[i])? {
            heap.push(Reverse((page, Reverse(i))));
        }
    }
    let mut last = None;
    while let Some(Reverse((page, Reverse(i)))) = heap.pop() {
        if last != Some(page) && page.get() <= header.commit {
            encoder.page(page, &pages[i])?;
        }
        last = Some(page);
        if let Some(next) = inputs[i].next_page(&mut pages[i])? {
            heap.push(Reverse((next, Reverse(i))));
        }
    }
    let (out, written) = encoder.finish()?;
    Ok((out, header, written))
}
