//! The vocabulary shared by every module: checked once, in the constructor.

use std::fmt;
use std::num::NonZeroU64;

/// Position in a replica: rises by one with every capture. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(NonZeroU64);

impl Txid {
    /// The first position of every replica: its first snapshot.
    pub const FIRST: Txid = Txid(NonZeroU64::MIN);

    /// `None` for zero.
    pub fn new(value: u64) -> Option<Self> {
        NonZeroU64::new(value).map(Self)
    }

    /// The plain number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The next position. Saturates: 2^64 captures cannot happen.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The position before this one; `None` for the first.
    pub fn prev(self) -> Option<Self> {
        Self::new(self.get() - 1)
    }

    /// Parses 16 hexadecimal digits, the form in object names.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        u64::from_str_radix(text, 16).ok().and_then(Self::new)
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.get())
    }
}

impl fmt::Debug for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Txid({:x})", self.get())
    }
}

/// Page number, 1-based as in SQLite. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pgno(u32);

impl Pgno {
    /// The page with the database header.
    pub const FIRST: Pgno = Pgno(1);

    /// `None` for zero.
    pub fn new(value: u32) -> Option<Self> {
        (value != 0).then_some(Self(value))
    }

    /// The plain number.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// Page size in bytes: a power of two from 512 to 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// `None` unless a power of two from 512 to 65536.
    pub fn new(bytes: u32) -> Option<Self> {
        (bytes.is_power_of_two() && (512..=65536).contains(&bytes)).then_some(Self(bytes))
    }

    /// Bytes.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Bytes, for slices.
    pub fn bytes(self) -> usize {
        self.0 as usize
    }

    /// Byte offset of a page in the database file.
    pub fn offset(self, page: Pgno) -> u64 {
        u64::from(page.0 - 1) * u64::from(self.0)
    }

    /// The page that holds byte 1 GiB, which SQLite uses for locks and LTX never stores
    /// (<https://sqlite.org/fileformat2.html#the_lock_byte_page>).
    pub fn lock_page(self) -> Pgno {
        Pgno(0x4000_0000 / self.0 + 1)
    }
}

/// 64-bit id of one unbroken history of one database. Never zero: zero in an LTX header means unknown.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lineage(NonZeroU64);

impl Lineage {
    /// The smallest, for the one draw in 2^64 that gives none.
    pub const ONE: Lineage = Lineage(NonZeroU64::MIN);

    /// `None` for zero.
    pub const fn new(value: u64) -> Option<Self> {
        match NonZeroU64::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// The plain number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// Parses 16 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        u64::from_str_radix(text, 16).ok().and_then(Self::new)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.get())
    }
}

impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lineage({self})")
    }
}

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub i64);

impl Millis {
    /// Milliseconds from `earlier` to `self`; negative if `earlier` is later.
    pub fn since(self, earlier: Millis) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// `self`, or `last` if that is a little later: times of one history rise through small steps of the clock. If it is much later the
    /// clock was wrong then, and is believed now.
    #[must_use]
    pub fn not_before(self, last: Millis) -> Millis {
        /// What clocks are stepped by when all is well.
        const STEP_MS: i64 = 5 * 60 * 1000;
        if last.since(self) > STEP_MS {
            self
        } else {
            self.max(last)
        }
    }
}

impl fmt::Display for Millis {
    /// RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

/// Level of a file in a replica: 0 one capture, 1 to 8 compactions, 9 snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// One capture.
    pub const CAPTURE: Level = Level(0);
    /// A full copy.
    pub const SNAPSHOT: Level = Level(9);

    /// `None` above 9.
    pub fn new(value: u8) -> Option<Self> {
        (value <= 9).then_some(Self(value))
    }

    /// The plain number.
    pub fn get(self) -> u8 {
        self.0
    }
}

/// Which captures a file holds: level, first and last TXID. `min <= max` always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    level: Level,
    min: Txid,
    max: Txid,
}

impl Span {
    /// `None` if `min > max`.
    pub fn new(level: Level, min: Txid, max: Txid) -> Option<Self> {
        (min <= max).then_some(Self { level, min, max })
    }

    /// The file's level.
    pub fn level(self) -> Level {
        self.level
    }

    /// First TXID in the file.
    pub fn min(self) -> Txid {
        self.min
    }

    /// Last TXID in the file: applying it gives the database at this TXID.
    pub fn max(self) -> Txid {
        self.max
    }

    /// A full copy: starts at TXID 1, needs nothing before it.
    pub fn is_base(self) -> bool {
        self.min == Txid::FIRST
    }

    /// `<min>-<max>.ltx`, each 16 hexadecimal digits, as Litestream names it.
    pub fn file_name(self) -> String {
        format!("{}-{}.ltx", self.min, self.max)
    }

    /// Reads `<min>-<max>.ltx` back.
    pub fn parse_file_name(level: Level, name: &str) -> Option<Self> {
        let (min, max) = name.strip_suffix(".ltx")?.split_once('-')?;
        Self::new(level, Txid::from_hex(min)?, Txid::from_hex(max)?)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.level.0, self.min, self.max)
    }
}

/// One LTX object in a store, as a listing tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which captures it holds.
    pub span: Span,
    /// Bytes in the store.
    pub size: u64,
    /// When the newest change in it was captured (LTX header; the listing's own time where that is unknown).
    pub created: Millis,
}

/// Non-linear checksum of one page: XXH3-64 seeded with the page number, so that swapped pages and
/// equal changes in two pages are seen (CRC-64 is affine and would miss both).
pub fn page_hash(page: Pgno, data: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(data, u64::from(page.get()))
}

/// Rolling checksum of a whole database: wrapping sum of [`page_hash`] over pages 1 to the commit size
/// without the lock page. Order does not matter, so one page can be replaced in constant time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RollingChecksum(u64);

impl RollingChecksum {
    /// Adds a page.
    pub fn add(&mut self, hash: u64) {
        self.0 = self.0.wrapping_add(hash);
    }

    /// Takes a page away.
    pub fn remove(&mut self, hash: u64) {
        self.0 = self.0.wrapping_sub(hash);
    }

    /// The finished checksum. Zero means unknown in an LTX header, so a sum of zero is written as 1.
    pub fn finish(self) -> DbChecksum {
        DbChecksum(NonZeroU64::new(self.0).unwrap_or(NonZeroU64::MIN))
    }
}

/// Checksum of a whole database (see [`RollingChecksum`]). Never zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DbChecksum(NonZeroU64);

impl DbChecksum {
    /// `None` for zero, which means unknown.
    pub fn new(value: u64) -> Option<Self> {
        NonZeroU64::new(value).map(Self)
    }

    /// The plain number.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Debug for DbChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DbChecksum({:016x})", self.get())
    }
}
