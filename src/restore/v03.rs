//! Replicas of Litestream 0.3: reading only.
//!
//! Source of the format: Litestream 0.3's documentation ("How it works") and its store layout.
//!
//! ```text
//! generations/<16 hex>/snapshots/<index 8 hex>.snapshot.lz4          the database file, LZ4 frame
//! generations/<16 hex>/wal/<index 8 hex>_<offset 8-16 hex>.wal.lz4   part of one WAL file from that offset on, LZ4 frame
//! ```
//!
//! A generation is one unbroken history. Each index is one life of the WAL; its segments, put together, are a WAL file as SQLite
//! writes it, with header, salts and running checksum. A snapshot of index N needs every WAL from index N on. Times are those of
//! the objects. There are no database checksums: SQLite's frame checksums and its own checks are all the proof there is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use lz4_flex::frame::FrameDecoder;

use crate::store::{Store, StoreError};
use crate::types::{Millis, PageSize, Pgno};

/// Bytes of a WAL header.
const WAL_HEADER_BYTES: usize = 32;
/// Bytes before the page in each frame.
const FRAME_HEADER_BYTES: usize = 24;
/// The low bit tells the byte order of the checksums (<https://sqlite.org/fileformat2.html#the_write_ahead_log>).
const WAL_MAGIC: u32 = 0x377f_0682;
/// Bytes copied at once.
const COPY_BYTES: usize = 256 << 10;

/// One object of a 0.3 replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its key under the replica's root.
    pub key: String,
    /// Bytes in the store.
    pub size: u64,
    /// When it was stored.
    pub created: Millis,
}

/// What a restore reads, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The generation, 16 hexadecimal digits.
    pub generation: String,
    /// The database file to start from.
    pub snapshot: Object,
    /// For each WAL, its segments in order of their offsets.
    pub wals: Vec<Vec<Object>>,
    /// Time of the newest object that is used.
    pub as_of: Millis,
}

/// Why a 0.3 replica cannot be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No generation has a snapshot, or none as old as asked for.
    #[error("no litestream 0.3 snapshot{}", .0.map_or_else(String::new, |at| format!(" at or before {at}")))]
    NoSnapshot(Option<Millis>),
    /// A segment is not there.
    #[error("generation {generation}: wal {index:08x} is missing from byte {offset} on")]
    MissingWal {
        /// The generation.
        generation: String,
        /// The WAL's index.
        index: u32,
        /// The first byte that is missing.
        offset: u64,
    },
    /// The store failed.
    #[error("read {key}: {source}")]
    Read {
        /// The object.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// Not a SQLite database.
    #[error("{0} does not hold a SQLite database")]
    NotADatabase(String),
    /// Frames of another page size than the snapshot's.
    #[error("{0}: the page size differs from the snapshot's")]
    PageSize(String),
    /// A WAL whose header is not valid.
    #[error("{0} does not start with a valid wal header")]
    WalHeader(String),
    /// A WAL that is not valid up to its end.
    #[error("{key}: frame {frame} fails its checksum")]
    Frame {
        /// The WAL's first segment.
        key: String,
        /// Counted from 1.
        frame: u64,
    },
    /// The output could not be written.
    #[error("write the restored file: {0}")]
    Write(#[source] io::Error),
    /// 0.3 knows no TXIDs.
    #[error("a litestream 0.3 replica has no TXIDs")]
    NoTxids,
}

impl Error {
    /// The next step for a person.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoSnapshot(Some(_)) => {
                "ask for a later time, or leave the time out for the newest".into()
            }
            Self::MissingWal { .. } | Self::Frame { .. } | Self::WalHeader(_) => {
                "restore with `--at` a time before that object was stored".into()
            }
            Self::NoTxids => "ask by time: --at TIME".into(),
            _ => return None,
        })
    }

    /// The bytes in the store are wrong or missing, as opposed to the store or the disk failing.
    pub fn is_corrupt(&self) -> bool {
        match self {
            Self::Read { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other
            ),
            Self::NoSnapshot(_) | Self::NoTxids | Self::Write(_) => false,
            _ => true,
        }
    }
}

impl Plan {
    /// Every object, in order.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        std::iter::once(&self.snapshot).chain(self.wals.iter().flatten())
    }
}

enum Part {
    Snapshot(u32),
    Wal(u32, u64),
}

fn parse(key: &str) -> Option<(&str, Part)> {
    let (generation, rest) = key
        .trim_start_matches('/')
        .strip_prefix("generations/")?
        .split_once('/')?;
    if let Some(name) = rest.strip_prefix("snapshots/") {
        return Some((
            generation,
            Part::Snapshot(hex8(name.strip_suffix(".snapshot.lz4")?)?),
        ));
    }
    let (index, offset) = rest
        .strip_prefix("wal/")?
        .strip_suffix(".wal.lz4")?
        .split_once('_')?;
    Some((generation, Part::Wal(hex8(index)?, hex_offset(offset)?)))
}

fn hex8(text: &str) -> Option<u32> {
    (text.len() == 8).then(|| u32::from_str_radix(text, 16).ok())?
}

/// Eight digits, more from 4 GiB on.
fn hex_offset(text: &str) -> Option<u64> {
    (8..=16)
        .contains(&text.len())
        .then(|| u64::from_str_radix(text, 16).ok())?
}

/// Everything of a 0.3 replica in a store; empty if there is none.
///
/// # Errors
/// The store's.
pub async fn list(store: &Store) -> Result<Vec<Object>, StoreError> {
    let objects = store.list("generations").await?;
    Ok(objects
        .into_iter()
        .map(|o| Object {
            key: o.key,
            size: o.size,
            created: o.created.unwrap_or(o.modified),
        })
        .filter(|o| parse(&o.key).is_some())
        .collect())
}

#[derive(Default)]
struct Generation {
    snapshots: BTreeMap<u32, Object>,
    wals: BTreeMap<(u32, u64), Object>,
}

/// Plans from a listing: of the generations that have a snapshot in time, the one with the newest object in time. Objects with
/// other names are passed over.
///
/// # Errors
/// [`Error::NoSnapshot`] or [`Error::MissingWal`]. Segments' sizes are known only once they are unpacked, so a gap inside one WAL
/// is found by [`apply`].
pub fn plan(objects: impl IntoIterator<Item = Object>, at: Option<Millis>) -> Result<Plan, Error> {
    let mut generations: BTreeMap<String, Generation> = BTreeMap::new();
    for object in objects
        .into_iter()
        .filter(|o| at.is_none_or(|at| o.created <= at))
    {
        let Some((generation, part)) = parse(&object.key) else {
            continue;
        };
        let generation = generations.entry(generation.to_owned()).or_default();
        match part {
            Part::Snapshot(index) => generation.snapshots.insert(index, object),
            Part::Wal(index, offset) => generation.wals.insert((index, offset), object),
        };
    }
    let newest = |g: &Generation| {
        g.snapshots
            .values()
            .chain(g.wals.values())
            .map(|o| o.created)
            .max()
    };
    let (generation, files) = generations
        .into_iter()
        .filter(|(_, g)| !g.snapshots.is_empty())
        .max_by_key(|(_, g)| newest(g))
        .ok_or(Error::NoSnapshot(at))?;
    let (start, snapshot) = files
        .snapshots
        .into_iter()
        .next_back()
        .ok_or(Error::NoSnapshot(at))?;
    let mut as_of = snapshot.created;
    let mut wals: Vec<Vec<Object>> = Vec::new();
    let mut last = None;
    for ((index, offset), object) in files.wals.range((start, 0)..) {
        let missing = |index, offset| Error::MissingWal {
            generation: generation.clone(),
            index,
            offset,
        };
        let expected = last.map_or(start, |last: u32| last.saturating_add(1));
        match last {
            Some(last) if last == *index => {}
            _ if *index != expected => return Err(missing(expected, 0)),
            _ if *offset != 0 => return Err(missing(*index, 0)),
            _ => wals.push(Vec::new()),
        }
        last = Some(*index);
        as_of = as_of.max(object.created);
        if let Some(wal) = wals.last_mut() {
            wal.push(object.clone());
        }
    }
    Ok(Plan {
        generation,
        snapshot,
        wals,
        as_of,
    })
}

/// Page size and pages of what was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Page size of the database.
    pub page_size: PageSize,
    /// Pages in it.
    pub commit: u32,
}

/// Writes the plan's database into `out`, an empty file. `scratch` makes an empty temporary file; it holds one unpacked WAL.
///
/// Only whole commits are applied. The last WAL may end in the middle of one: the rest had not arrived yet.
///
/// # Errors
/// See [`Error`]; the output is of no use then.
pub fn apply<R: Read>(
    plan: &Plan,
    mut open: impl FnMut(&Object) -> io::Result<R>,
    scratch: impl Fn() -> io::Result<File>,
    out: &File,
    progress: &dyn Fn(u64),
) -> Result<Applied, Error> {
    let mut end = out;
    unpack(&plan.snapshot, &mut open, &mut end, progress)?;
    let page_size =
        sqlite_page_size(out).ok_or_else(|| Error::NotADatabase(plan.snapshot.key.clone()))?;
    for (at, segments) in plan.wals.iter().enumerate() {
        let Some(first) = segments.first() else {
            continue;
        };
        let mut wal = scratch().map_err(Error::Write)?;
        let mut bytes = 0;
        for segment in segments {
            if let Some((_, Part::Wal(index, offset))) = parse(&segment.key)
                && offset != bytes
            {
                return Err(Error::MissingWal {
                    generation: plan.generation.clone(),
                    index,
                    offset: bytes,
                });
            }
            bytes += unpack(segment, &mut open, &mut wal, progress)?;
        }
        let last = at + 1 == plan.wals.len();
        apply_wal(&first.key, &wal, bytes, page_size, out, last)?;
    }
    let bytes = out.metadata().map_err(Error::Write)?.len();
    let commit = u32::try_from(bytes / u64::from(page_size.get())).unwrap_or(u32::MAX);
    Ok(Applied { page_size, commit })
}

/// Appends an object's content to `to`; bytes written.
fn unpack<R: Read>(
    object: &Object,
    open: &mut impl FnMut(&Object) -> io::Result<R>,
    to: &mut impl Write,
    progress: &dyn Fn(u64),
) -> Result<u64, Error> {
    let read = |source| Error::Read {
        key: object.key.clone(),
        source,
    };
    let mut from = FrameDecoder::new(BufReader::with_capacity(
        COPY_BYTES,
        open(object).map_err(read)?,
    ));
    let mut buf = vec![0; COPY_BYTES];
    let mut total = 0;
    loop {
        let count = match from.read(&mut buf) {
            Ok(0) => return Ok(total),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(read(e)),
        };
        to.write_all(&buf[..count]).map_err(Error::Write)?;
        progress(count as u64);
        total += count as u64;
    }
}

fn sqlite_page_size(file: &File) -> Option<PageSize> {
    let mut head = [0; 18];
    file.read_exact_at(&mut head, 0).ok()?;
    if &head[..16] != b"SQLite format 3\0" {
        return None;
    }
    match u16::from_be_bytes([head[16], head[17]]) {
        1 => PageSize::new(65536),
        size => PageSize::new(u32::from(size)),
    }
}

/// Two passes over the unpacked WAL: find the last whole commit, then write pages up to it. So memory stays at one frame.
fn apply_wal(
    key: &str,
    wal: &File,
    bytes: u64,
    page_size: PageSize,
    out: &File,
    last: bool,
) -> Result<(), Error> {
    let header = || Error::WalHeader(key.to_owned());
    let mut head = [0; WAL_HEADER_BYTES];
    wal.read_exact_at(&mut head, 0).map_err(|_| header())?;
    let magic = be32(&head, 0);
    let big_endian = magic & 1 == 1;
    let seed = checksum(big_endian, &head[..24], (0, 0));
    if magic & !1 != WAL_MAGIC || seed != (be32(&head, 24), be32(&head, 28)) {
        return Err(header());
    }
    if be32(&head, 8) != page_size.get() {
        return Err(Error::PageSize(key.to_owned()));
    }
    let salt = (be32(&head, 16), be32(&head, 20));
    let frame_bytes = FRAME_HEADER_BYTES + page_size.bytes();
    let frames = (bytes - WAL_HEADER_BYTES as u64) / frame_bytes as u64;
    let read = |source| Error::Read {
        key: key.to_owned(),
        source,
    };
    let mut frame = vec![0; frame_bytes];
    let from_start = || {
        let mut from = BufReader::with_capacity(COPY_BYTES, wal);
        from.seek(SeekFrom::Start(WAL_HEADER_BYTES as u64))
            .map_err(read)
            .map(|_| from)
    };
    let (mut sum, mut valid, mut committed, mut commit) = (seed, 0, 0, 0);
    let mut from = from_start()?;
    for number in 1..=frames {
        from.read_exact(&mut frame).map_err(read)?;
        sum = checksum(big_endian, &frame[..8], sum);
        sum = checksum(big_endian, &frame[FRAME_HEADER_BYTES..], sum);
        if (be32(&frame, 8), be32(&frame, 12)) != salt
            || (be32(&frame, 16), be32(&frame, 20)) != sum
        {
            break;
        }
        valid = number;
        if be32(&frame, 4) != 0 {
            (committed, commit) = (number, be32(&frame, 4));
        }
    }
    // A later WAL builds on all of this one.
    if !last && committed < frames {
        return Err(Error::Frame {
            key: key.to_owned(),
            frame: valid + 1,
        });
    }
    let mut from = from_start()?;
    for _ in 0..committed {
        from.read_exact(&mut frame).map_err(read)?;
        if let Some(page) = Pgno::new(be32(&frame, 0)) {
            out.write_all_at(&frame[FRAME_HEADER_BYTES..], page_size.offset(page))
                .map_err(Error::Write)?;
        }
    }
    if committed > 0 {
        out.set_len(u64::from(commit) * u64::from(page_size.get()))
            .map_err(Error::Write)?;
    }
    Ok(())
}

/// SQLite's WAL checksum over a multiple of 8 bytes.
fn checksum(big_endian: bool, data: &[u8], (mut s0, mut s1): (u32, u32)) -> (u32, u32) {
    for pair in data.as_chunks::<8>().0 {
        let words = [
            [pair[0], pair[1], pair[2], pair[3]],
            [pair[4], pair[5], pair[6], pair[7]],
        ];
        let [x, y] = words.map(|w| {
            if big_endian {
                u32::from_be_bytes(w)
            } else {
                u32::from_le_bytes(w)
            }
        });
        s0 = s0.wrapping_add(x).wrapping_add(s1);
        s1 = s1.wrapping_add(y).wrapping_add(s0);
    }
    (s0, s1)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
