//! When captures are rolled up into larger files. Deciding is pure; merging reads and writes local files only.
//!
//! Invariants
//! - A merged file holds a contiguous run of TXIDs of one page size, and never spans a cut: at a labelled TXID, a page-size change or
//!   a change of owner a file ends.
//! - Windows are aligned to the epoch and merged once they are over, so that every store holds the same files.
//! - A database that is not written to is not rolled up for ever: the newest file moves up only in company.
//! - Inputs are deleted only after their merge is durable locally. The newest capture stays at level 0 too.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::time::Duration;

use super::spool::{Spool, SpoolError};
use crate::ltx;
use crate::types::{Entry, Level, Millis, Span, Txid};

/// Levels 1 to 4 and the window that each file of them covers, as Litestream 0.5 rolls up by default plus a day.
pub const WINDOWS: [(u8, Duration); 4] = [
    (1, Duration::from_secs(30)),
    (2, Duration::from_secs(5 * 60)),
    (3, Duration::from_secs(60 * 60)),
    (4, Duration::from_secs(24 * 60 * 60)),
];

/// Read and write buffers: one of each for every file that takes part, so small.
const BUFFER_BYTES: usize = 64 << 10;
/// A capture this far ahead of the clock was made while that was wrong: more than the longest window.
const FUTURE_MS: i64 = 24 * 60 * 60 * 1000;
/// Files merged at once: bounds open files and buffers. More are merged in turns.
const FANIN_MAX: usize = 256;

/// Files to merge into one file of a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Where the result goes.
    pub into: Span,
    /// Oldest first, contiguous.
    pub inputs: Vec<Span>,
}

/// The merges that are due: for each level, each window that is over.
pub fn due(entries: &[Entry], cuts: &BTreeSet<Txid>, now: Millis) -> Vec<Merge> {
    let mut merges = Vec::new();
    let newest = entries.iter().map(|e| e.span.max()).max();
    for (number, window) in WINDOWS {
        let (Some(from), Some(into)) = (Level::new(number - 1), Level::new(number)) else {
            continue;
        };
        let width = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
        // The newest capture stays at level 0 beside the file that it was merged into.
        let merged = |e: &Entry| {
            entries.iter().any(|m| {
                m.span.level() > from
                    && !m.span.is_base()
                    && m.span.min() <= e.span.min()
                    && m.span.max() >= e.span.max()
            })
        };
        let mut files: Vec<&Entry> = entries
            .iter()
            .filter(|e| e.span.level() == from && !merged(e))
            .collect();
        files.sort_unstable_by_key(|e| e.span.min());
        let slot = |e: &Entry| e.created.0.div_euclid(width);
        // A file from the future: the clock was wrong. Its window would stay open for as long as that.
        let wrong = |e: &Entry| e.created.since(now) > FUTURE_MS;
        let over = |e: &Entry| slot(e) < now.0.div_euclid(width) || wrong(e);
        let joins = |a: &&Entry, b: &&Entry| {
            a.span.max().next() == b.span.min()
                && slot(a) == slot(b)
                && !cuts.contains(&a.span.max())
        };
        for run in files.chunk_by(joins) {
            // Only the last file of a window tells that the window is over.
            if !run.last().is_some_and(|e| over(e)) {
                continue;
            }
            // A file alone gains nothing by moving up, and a quiet database must cost nothing. It moves when the next one comes.
            if run.len() == 1 && run.last().map(|e| e.span.max()) == newest {
                continue;
            }
            for part in run.chunks(FANIN_MAX) {
                merges.extend(merge_of(part, into));
            }
        }
    }
    merges
}

/// One merge of everything that is contiguous at the end of the spool, whatever its level: what an outage needs so that the spool stays
/// bounded by the size of the database. `None` if there is nothing to gain.
pub fn squeeze(entries: &[Entry], cuts: &BTreeSet<Txid>) -> Option<Merge> {
    let into = Level::new(WINDOWS[WINDOWS.len() - 1].0)?;
    let mut files: Vec<&Entry> = entries.iter().collect();
    // By start, and of those with one start the longest first.
    files.sort_unstable_by_key(|e| (e.span.min(), std::cmp::Reverse(e.span.max())));
    let mut best: Vec<&Entry> = Vec::new();
    let mut run: Vec<&Entry> = Vec::new();
    for file in files {
        match run.last() {
            Some(last) if file.span.max() <= last.span.max() => continue,
            Some(last)
                if last.span.max().next() == file.span.min()
                    && !cuts.contains(&last.span.max()) => {}
            _ => run.clear(),
        }
        run.push(file);
        if run.len() >= best.len() {
            best.clone_from(&run);
        }
    }
    best.truncate(FANIN_MAX);
    if best.len() < 2 {
        None
    } else {
        merge_of(&best, into)
    }
}

fn merge_of(files: &[&Entry], into: Level) -> Option<Merge> {
    let (first, last) = (files.first()?, files.last()?);
    let into = Span::new(into, first.span.min(), last.span.max())?;
    Some(Merge {
        into,
        inputs: files.iter().map(|e| e.span).collect(),
    })
}

/// The first part of a merge between cuts that is not done already; the rest is due again.
fn up_to_a_cut(merge: &Merge, cuts: &BTreeSet<Txid>) -> Merge {
    let mut parts = merge
        .inputs
        .split_inclusive(|s| cuts.contains(&(*s).max()))
        .filter_map(|inputs| {
            let (first, last) = (inputs.first()?, inputs.last()?);
            let into = Span::new(merge.into.level(), (*first).min(), (*last).max())?;
            (inputs != [into]).then(|| Merge {
                into,
                inputs: inputs.to_vec(),
            })
        });
    parts.next().unwrap_or_else(|| merge.clone())
}

/// Runs a merge on local files and then deletes its inputs, except the newest capture. `sync_table` makes the checksum table durable
/// first: it might need the inputs for its replay. Whoever planned it, it does not reach across where a store stands ([`Spool::cuts`]).
pub fn run(
    spool: &Spool,
    merge: &Merge,
    newest: Txid,
    sync_table: impl FnOnce() -> std::io::Result<()>,
) -> Result<Entry, SpoolError> {
    let merge = &up_to_a_cut(merge, &spool.cuts());
    let mut inputs = Vec::with_capacity(merge.inputs.len());
    for span in &merge.inputs {
        let file = BufReader::with_capacity(BUFFER_BYTES, File::open(spool.path(*span))?);
        inputs.push(ltx::Decoder::new(file)?);
    }
    let mut draft = spool.draft(merge.into)?;
    let header = {
        let out = BufWriter::with_capacity(BUFFER_BYTES, draft.file());
        let (mut out, header, _) = ltx::merge(inputs, out)?;
        out.flush()?;
        header
    };
    let entry = spool.keep(draft, header.timestamp)?;
    sync_table()?;
    for span in merge.inputs.iter().filter(|s| **s != merge.into) {
        if span.level() != Level::CAPTURE || (*span).max() != newest {
            spool.remove(*span)?;
        }
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(level: u8, min: u64, max: u64, at_ms: i64) -> Entry {
        let t = |n| Txid::new(n).unwrap();
        let span = Span::new(Level::new(level).unwrap(), t(min), t(max)).unwrap();
        Entry {
            span,
            size: 10,
            created: Millis(at_ms),
        }
    }

    fn cuts(list: &[u64]) -> BTreeSet<Txid> {
        list.iter().map(|n| Txid::new(*n).unwrap()).collect()
    }

    #[test]
    fn merges_only_windows_that_are_over() {
        let files = [
            entry(0, 2, 2, 1_000),
            entry(0, 3, 3, 29_000),
            entry(0, 4, 4, 31_000),
        ];
        assert_eq!(due(&files, &cuts(&[]), Millis(29_999)), []);
        let merges = due(&files, &cuts(&[]), Millis(30_000));
        assert_eq!(merges.len(), 1);
        assert_eq!(merges[0].into, entry(1, 2, 3, 0).span);
        let merges = due(&files, &cuts(&[]), Millis(60_000));
        assert_eq!(merges.len(), 1, "the newest file waits for company");
        let mut more = files.to_vec();
        more.push(entry(0, 5, 5, 61_000));
        let merges = due(&more, &cuts(&[]), Millis(62_000));
        assert_eq!(
            merges.iter().map(|m| m.into).collect::<Vec<_>>(),
            [entry(1, 2, 3, 0).span, entry(1, 4, 4, 0).span]
        );
    }

    #[test]
    fn a_quiet_database_is_rolled_up_once() {
        let year = Millis(365 * 86_400_000);
        let lone = [entry(0, 2, 2, 1_000)];
        assert_eq!(due(&lone, &cuts(&[]), year), []);
        // The newest capture stays beside its merge: it is not merged again.
        let merged = [entry(1, 2, 3, 1_000), entry(0, 3, 3, 2_000)];
        assert_eq!(due(&merged, &cuts(&[]), year), []);
    }

    #[test]
    fn files_from_the_future_are_rolled_up() {
        let ten_years = 10 * 365 * 86_400_000;
        let files = [
            entry(0, 2, 2, ten_years),
            entry(0, 3, 3, ten_years + 1),
            entry(0, 4, 4, 1_000),
        ];
        let merges = due(&files, &cuts(&[]), Millis(2_000));
        assert_eq!(
            merges.iter().map(|m| m.into).collect::<Vec<_>>(),
            [entry(1, 2, 3, 0).span]
        );
    }

    /// While a store is away its position stays the end of a file, through roll-ups and a restart: what it lacks then follows exactly.
    #[test]
    fn the_position_of_a_store_is_a_cut() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<Entry> = (8..=12).map(|n| entry(0, n, n, n as i64)).collect();
        Spool::open(dir.path())
            .unwrap()
            .set_position(1, Txid::new(9))
            .unwrap();
        let cuts = Spool::open(dir.path()).unwrap().cuts();
        let merges = due(&files, &cuts, Millis(100_000));
        assert_eq!(
            merges.iter().map(|m| m.into).collect::<Vec<_>>(),
            [entry(1, 8, 9, 0).span, entry(1, 10, 12, 0).span]
        );
        let merge = squeeze(&files, &cuts).unwrap();
        assert_eq!(merge.into, entry(4, 10, 12, 0).span);
        let whole = Merge {
            into: entry(1, 8, 12, 0).span,
            inputs: files.iter().map(|e| e.span).collect(),
        };
        let part = up_to_a_cut(&whole, &cuts);
        assert_eq!(part.into, entry(1, 8, 9, 0).span);
        assert_eq!(part.inputs.len(), 2);
        assert_eq!(up_to_a_cut(&whole, &BTreeSet::new()), whole);
        let mut half_done = whole.clone();
        half_done.inputs.splice(0..2, [entry(1, 8, 9, 0).span]);
        assert_eq!(
            up_to_a_cut(&half_done, &cuts).into,
            entry(1, 10, 12, 0).span,
            "what lies before the cut is merged already"
        );
    }

    #[test]
    fn never_spans_a_cut_or_a_hole() {
        let files = [
            entry(0, 2, 2, 1),
            entry(0, 3, 3, 2),
            entry(0, 4, 4, 3),
            entry(0, 6, 6, 4),
        ];
        let spans: Vec<_> = due(&files, &cuts(&[3]), Millis(40_000))
            .iter()
            .map(|m| m.into)
            .collect();
        assert_eq!(spans, [entry(1, 2, 3, 0).span, entry(1, 4, 4, 0).span,]);
    }

    #[test]
    fn an_outage_is_squeezed_into_one_file() {
        let files = [
            entry(2, 2, 9, 1),
            entry(1, 10, 12, 2),
            entry(0, 12, 12, 2),
            entry(0, 13, 13, 3),
        ];
        let merge = squeeze(&files, &cuts(&[])).unwrap();
        assert_eq!(merge.into, entry(4, 2, 13, 0).span);
        assert_eq!(merge.inputs, [files[0].span, files[1].span, files[3].span]);
        assert_eq!(squeeze(&files[..1], &cuts(&[])), None);
    }
}
