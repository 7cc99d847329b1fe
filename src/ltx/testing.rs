//! What the tests of this module share.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::crc::FileCrc;
use super::{Decoder, Encoder, Error, Header};
use crate::types::{DbChecksum, Lineage, Millis, PageSize, Pgno, Txid};

/// Page number to page.
pub(super) type Pages = BTreeMap<u32, Vec<u8>>;

pub(super) fn pgno(number: u32) -> Pgno {
    Pgno::new(number).unwrap()
}

/// A header with nothing optional in it.
pub(super) fn header(page_size: u32, commit: u32, min: u64, max: u64) -> Header {
    Header {
        page_size: PageSize::new(page_size).unwrap(),
        commit,
        min: Txid::new(min).unwrap(),
        max: Txid::new(max).unwrap(),
        timestamp: Millis(1_700_000_000_000),
        wal_offset: 0,
        wal_size: 0,
        salt: (0, 0),
        lineage: None,
        pre: None,
        post: None,
        epoch: 0,
    }
}

pub(super) fn encode(header: &Header, pages: &Pages) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (&page, data) in pages {
        encoder.page(pgno(page), data).unwrap();
    }
    let (bytes, written) = encoder.finish().unwrap();
    assert_eq!(
        (written.bytes, written.pages),
        (bytes.len() as u64, pages.len() as u32)
    );
    bytes
}

pub(super) fn decode_all(bytes: &[u8]) -> Result<(Header, Pages), Error> {
    let mut decoder = Decoder::new(bytes)?;
    let (mut pages, mut buf) = (Pages::new(), Vec::new());
    while let Some(page) = decoder.next_page(&mut buf)? {
        pages.insert(page.get(), buf.clone());
    }
    Ok((*decoder.header(), pages))
}

/// Gives a changed file a right checksum again. The file's frames must be readable up to their end.
pub(super) fn reseal(bytes: &mut [u8]) {
    let mut crc = FileCrc::new();
    crc.update(&bytes[..Header::LEN]);
    let page_bytes = u32::from_be_bytes(*bytes[8..].first_chunk().unwrap()) as usize;
    let mut at = Header::LEN;
    while bytes[at..at + 6] != [0; 6] {
        let size = u32::from_be_bytes(*bytes[at + 6..].first_chunk().unwrap()) as usize;
        crc.update(&bytes[at..at + 10]);
        crc.update(
            &lz4_flex::block::decompress(&bytes[at + 10..at + 10 + size], page_bytes).unwrap(),
        );
        at += 10 + size;
    }
    let end = bytes.len() - 8;
    crc.update(&bytes[at..end]);
    bytes[end..].copy_from_slice(&crc.stored().to_be_bytes());
}

pub(super) fn any_page_size() -> impl Strategy<Value = u32> {
    (9_u32..=16).prop_map(|shift| 1 << shift)
}

/// Any header the format allows.
pub(super) fn any_header() -> impl Strategy<Value = Header> {
    let numbers = (1_u32.., 1_u64.., any::<u64>(), any::<i64>(), any::<u32>());
    let wal = (1_i64.., 0_i64.., any::<(u32, u32)>(), any::<bool>());
    (any_page_size(), numbers, wal, any::<[u64; 3]>()).prop_map(|(page_size, numbers, wal, ids)| {
        let (commit, min, more, timestamp, epoch) = numbers;
        let (wal_offset, wal_size, salt, has_wal) = wal;
        let plain = header(page_size, commit, min, min.saturating_add(more));
        let wal = Header {
            wal_offset,
            wal_size,
            salt,
            ..plain
        };
        Header {
            timestamp: Millis(timestamp),
            lineage: Lineage::new(ids[0]),
            pre: DbChecksum::new(ids[1]),
            post: DbChecksum::new(ids[2]),
            epoch,
            ..if has_wal { wal } else { plain }
        }
    })
}

/// A page that packs well, badly, or in between.
pub(super) fn any_page(page_size: u32) -> impl Strategy<Value = Vec<u8>> {
    (any::<u64>(), 0_u8..4).prop_map(move |(seed, kind)| {
        let mut state = seed | 1;
        let noise = std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let size = page_size as usize;
        match kind {
            0 => vec![seed as u8; size],
            1 => noise.take(size).collect(),
            2 => noise.map(|byte| byte & 3).take(size).collect(),
            _ => noise
                .take(size / 4)
                .chain(std::iter::repeat(0))
                .take(size)
                .collect(),
        }
    })
}

/// A header and pages that fit it: a base or not, of any page size.
pub(super) fn file() -> impl Strategy<Value = (Header, Pages)> {
    (
        any_header(),
        any::<bool>(),
        proptest::collection::btree_set(1_u32..12, 0..8),
    )
        .prop_flat_map(|(header, base, numbers)| {
            let commit = numbers.last().copied().unwrap_or(1);
            let header = Header {
                commit,
                min: if base { Txid::FIRST } else { header.min.next() },
                max: header.max.next(),
                ..header
            };
            let numbers: Vec<u32> = if base || header.min == Txid::FIRST {
                (1..=commit).collect()
            } else {
                numbers.into_iter().collect()
            };
            let pages = proptest::collection::vec(any_page(header.page_size.get()), numbers.len());
            pages.prop_map(move |pages| (header, numbers.iter().copied().zip(pages).collect()))
        })
}
