use super::*;
use crate::types::{DbChecksum, Lineage, Millis, PageSize};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn header(page_size: u32, commit: u32, min: u64, max: u64) -> Header {
    Header {
        page_size: PageSize::new(page_size).unwrap(),
        commit,
        min: Txid::new(min).unwrap(),
        max: Txid::new(max).unwrap(),
        timestamp: Millis(1_700_000_000_000 + max as i64),
        wal_offset: 32,
        wal_size: 0,
        salt: (1, 2),
        lineage: Lineage::new(9),
        pre: None,
        post: DbChecksum::new(max),
        epoch: 1,
    }
}

fn encode(header: &Header, pages: &BTreeMap<u32, Vec<u8>>) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (page, data) in pages {
        encoder.page(Pgno::new(*page).unwrap(), data).unwrap();
    }
    let (bytes, written) = encoder.finish().unwrap();
    assert_eq!(written.bytes, bytes.len() as u64);
    bytes
}

fn decode(bytes: &[u8]) -> Result<(Header, BTreeMap<u32, Vec<u8>>), Error> {
    let mut decoder = Decoder::new(bytes)?;
    let (mut pages, mut buf) = (BTreeMap::new(), Vec::new());
    while let Some(page) = decoder.next_page(&mut buf)? {
        pages.insert(page.get(), buf.clone());
    }
    Ok((decoder.header().clone(), pages))
}

/// Half random, half repetitive, so that some pages compress and some grow.
fn page(size: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..size)
        .map(|i| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            if i * (seed as usize % 3) < size {
                x as u8
            } else {
                7
            }
        })
        .collect()
}

fn sizes() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![512, 1024, 4096, 65536])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn round_trip(size in sizes(), numbers in prop::collection::btree_set(1u32..500, 0..12)) {
        let header = header(size, 500, 5, 7);
        let pages: BTreeMap<_, _> = numbers.iter().map(|n| (*n, page(size as usize, u64::from(*n)))).collect();
        let (found, decoded) = decode(&encode(&header, &pages)).unwrap();
        prop_assert_eq!(found, header);
        prop_assert_eq!(decoded, pages);
    }

    /// No damage passes as another content, and none panics.
    #[test]
    fn damage_is_found(numbers in prop::collection::btree_set(1u32..500, 1..6), at in any::<prop::sample::Index>(), bit in 0u8..8, cut: bool) {
        let header = header(512, 500, 5, 7);
        let pages: BTreeMap<_, _> = numbers.iter().map(|n| (*n, page(512, u64::from(*n)))).collect();
        let mut bytes = encode(&header, &pages);
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        if let Ok((found, decoded)) = decode(&bytes) {
            // Only a different compression of the same pages may pass.
            prop_assert!(!cut);
            prop_assert_eq!((found, decoded), (header, pages));
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400), start in 0usize..2) {
        let mut input = if start == 1 { header(512, 9, 1, 1).encode().to_vec() } else { Vec::new() };
        input.extend_from_slice(&bytes);
        prop_assert!(decode(&input).is_err());
    }

    /// A merge is what applying the files in order gives.
    #[test]
    fn merge_is_applying_in_order(
        files in prop::collection::vec((prop::collection::btree_map(1u32..40, any::<u64>(), 0..20), 1u32..40), 1..6)
    ) {
        let mut model: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let mut encoded = Vec::new();
        for (n, (changes, commit)) in files.iter().enumerate() {
            let header = header(512, *commit, 10 + n as u64, 10 + n as u64);
            let pages: BTreeMap<_, _> =
                changes.iter().filter(|(p, _)| *p <= commit).map(|(p, s)| (*p, page(512, *s))).collect();
            encoded.push(encode(&header, &pages));
            model.extend(pages);
            let last_commit = files.last().unwrap().1;
            model.retain(|p, _| p <= commit && *p <= last_commit.max(*commit));
        }
        model.retain(|p, _| *p <= files.last().unwrap().1);
        let inputs = encoded.iter().map(|b| Decoder::new(&b[..]).unwrap()).collect();
        let (bytes, merged, _) = merge(inputs, Vec::new()).unwrap();
        let (found, pages) = decode(&bytes).unwrap();
        prop_assert_eq!(&found, &merged);
        prop_assert_eq!(found.max.get(), 9 + files.len() as u64);
        // Pages that an earlier commit cut off and a later one brought back must come with the later file (capture writes
        // them); the model drops them, the merge may keep the old content.
        for (p, data) in &model {
            prop_assert_eq!(pages.get(p), Some(data));
        }
    }
}

#[test]
fn a_base_must_be_whole() {
    let header = header(512, 3, 1, 4);
    let one = |n: u32| Pgno::new(n).unwrap();
    let mut encoder = Encoder::new(Vec::new(), &header).unwrap();
    encoder.page(one(1), &[0; 512]).unwrap();
    assert!(matches!(
        encoder.page(one(3), &[0; 512]),
        Err(Error::Missing(2))
    ));
    encoder.page(one(2), &[0; 512]).unwrap();
    assert!(matches!(encoder.finish(), Err(Error::Missing(3))));
}

#[test]
fn encoder_refuses_what_readers_refuse() {
    let mut encoder = Encoder::new(Vec::new(), &header(65536, 20_000, 5, 5)).unwrap();
    let one = |n: u32| Pgno::new(n).unwrap();
    let data = vec![1; 65536];
    assert!(
        matches!(encoder.page(one(16385), &data), Err(Error::Page(16385))),
        "lock page"
    );
    assert!(matches!(
        encoder.page(one(20_001), &data),
        Err(Error::Page(20_001))
    ));
    assert!(matches!(
        encoder.page(one(7), &data[1..]),
        Err(Error::PageSize { .. })
    ));
    encoder.page(one(7), &data).unwrap();
    assert!(matches!(
        encoder.page(one(7), &data),
        Err(Error::Order { .. })
    ));
}

#[test]
fn files_that_do_not_belong_together_are_not_merged() {
    let a = header(512, 9, 2, 3);
    let refused = |b: Header| merge_header(&[&a, &b]).is_err();
    assert!(!refused(header(512, 9, 4, 4)));
    assert!(refused(header(512, 9, 5, 5)), "hole");
    assert!(refused(header(512, 9, 3, 4)), "overlap");
    assert!(refused(header(1024, 9, 4, 4)));
    assert!(refused(Header {
        lineage: Lineage::new(8),
        ..header(512, 9, 4, 4)
    }));
    assert!(refused(Header {
        pre: DbChecksum::new(77),
        ..header(512, 9, 4, 4)
    }));
    assert!(merge_header(&[]).is_err());
}
