//! What is to be done with each pack and each file of the index, from one look at the store. Nothing is changed here.
//!
//! rustic_core plans with every entry of the index and every id in memory, 100 bytes for a file and more while it does. Here the index is read
//! several times, a file at a time, and what stays is a table of what is needed and a line for each pack.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Mutex;

use jiff::{SignedDuration, Timestamp};
use rustic_core::repofile::{BlobType, IndexFile, IndexPack};
use rustic_core::{DataId, FileType, Id, ReadBackend, TreeId};
use serde::Deserialize;

use super::needed::Needed;
use crate::files::backend::{Asked, Backend};
use crate::files::contents::opened;
use crate::files::error::FilesError;
use crate::files::folders::{Budget, walk};
use crate::files::index::Index;
use crate::files::record::hold;
use crate::files::repository::{DATA_PACK_BYTES, TREE_PACK_BYTES};

/// How long a pack that nobody needs is left, marked: a mistake can be mended and a reader that was at work comes to its end. Shorter than a day
/// by what a daily run may come too early.
const MARKED_FOR: SignedDuration = SignedDuration::from_hours(23);
/// Of what is kept, the part that may be of no use before packs of files are written anew: one in so many.
const UNUSED_PART: u64 = 20;
/// A pack below this part of the usual size is small.
const SMALL_PART: u64 = 3;
/// A file of the index with fewer pieces is put together with others.
const FEW_PIECES: usize = 10_000;

/// What is copied in one run, at least, and a part of everything that is used, in bytes: backups wait for it.
const COPIED_BYTES: u64 = 1 << 30;
const COPIED_PART: u64 = 10;
/// A mark this far in the future was made by a wrong clock: it counts from now on.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);
/// The list at the end of a pack: its nonce, its tag, and its length.
const LIST_BYTES: u64 = 16 + 16 + 4;
/// A line of it: type, length, id. Four more bytes where the piece is compressed.
const ENTRY_BYTES: u64 = 1 + 4 + 32;
/// Of folders that are read at the same time.
const FOLDERS_BYTES: u64 = 24 << 20;

/// What is to be done with a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToDo {
    /// Listed as it is.
    Keep,
    /// Marked, but needed: listed again.
    Recover,
    /// What is needed of it is copied, then it is marked.
    Repack,
    /// Not needed any more: marked.
    Mark,
    /// Marked, and not for long.
    Wait,
    /// Marked long ago: deleted.
    Delete,
    /// Not in the store, and not needed: left out of the index.
    Drop,
}

/// A pack that the index knows.
#[derive(Clone, Debug)]
pub(super) struct Pack {
    pub(super) to_do: ToDo,
    /// It stands in a file of the index as one that is used.
    pub(super) listed: bool,
    /// It stands in one as marked for deletion.
    marked: bool,
    /// Since when; without one as from now on.
    since: Option<Timestamp>,
    /// As the store lists it.
    size: Option<u32>,
    /// Its content was looked at: it may stand in several files.
    looked: bool,
    tree: bool,
    needed: u32,
    needed_bytes: u64,
    other_bytes: u64,
}

impl Pack {
    /// When it was marked: `now`, unless it was before.
    pub(super) fn marked_at(&self, now: Timestamp) -> Timestamp {
        // Before the marks of a prune that did not come to its end, it was in use.
        self.since.filter(|_| !self.listed).unwrap_or(now)
    }

    /// In the store, with the size that comes of what the index lists: pieces without gaps, and behind them the list of them.
    pub(super) fn is_whole(&self, listed: &IndexPack) -> bool {
        let mut pieces: Vec<_> = listed.blobs.iter().map(|b| b.location).collect();
        pieces.sort_unstable_by_key(|place| place.offset);
        let (mut end, mut list) = (0_u64, LIST_BYTES);
        for place in pieces {
            if u64::from(place.offset) != end {
                return false;
            }
            end += u64::from(place.length);
            list += match place.uncompressed_length {
                None => ENTRY_BYTES,
                Some(_) => ENTRY_BYTES + 4,
            };
        }
        self.size.map(u64::from) == Some(end + list)
    }
}

/// A file of the index.
pub(super) struct File {
    pub(super) id: Id,
    /// Whether it is written anew.
    pub(super) stale: bool,
    pieces: usize,
    supersedes: bool,
    /// Packs that are used.
    packs: Vec<Id>,
    /// Packs that are marked.
    marked: Vec<Id>,
}

/// What is to be done.
pub(super) struct Plan {
    pub(super) files: Vec<File>,
    pub(super) packs: HashMap<Id, Pack>,
    /// In no file of the index, with their size: left by runs that were killed.
    pub(super) unlisted: Vec<(Id, u32)>,
    pub(super) needed: Needed,
    pub(super) now: Timestamp,
}

/// A folder's text, of which only this matters here.
#[derive(Deserialize)]
struct Folder {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    content: Option<Vec<DataId>>,
    #[serde(default)]
    subtree: Option<TreeId>,
}

/// Where a folder is.
struct Place {
    pack: u32,
    offset: u32,
    length: u32,
    plain: Option<NonZeroU32>,
}

impl Plan {
    /// Looks at the whole repository for what these folders need.
    ///
    /// # Errors
    /// [`FilesError::Damaged`] if something that is needed is nowhere, and the store's.
    pub(super) fn of(
        backend: &Backend,
        index: &Index<'_>,
        roots: &[TreeId],
        now: Timestamp,
    ) -> Result<Self, FilesError> {
        let mut plan = Self {
            files: Vec::new(),
            packs: HashMap::new(),
            unlisted: Vec::new(),
            needed: Needed::new(),
            now,
        };
        let folders = plan.read_index(index)?;
        plan.read_folders(backend, index, roots, folders)?;
        plan.list_packs(backend)?;
        // Packs that are in use first: then those of a prune that did not come to its end, then marked ones, and only for what is nowhere else.
        plan.look(index, |p| p.listed && !p.marked)?;
        plan.look(index, |p| p.listed && p.marked)?;
        plan.look(index, |p| !p.listed)?;
        plan.nothing_is_missing(backend)?;
        plan.decide();
        plan.choose_files();
        Ok(plan)
    }

    /// Which files and packs there are; where folders are.
    fn read_index(&mut self, index: &Index<'_>) -> Result<Folders, FilesError> {
        let mut folders = Folders::default();
        for id in index.files()? {
            let read = index.read(&id)?;
            let pieces = |packs: &[IndexPack]| packs.iter().map(|p| p.blobs.len()).sum::<usize>();
            let ids = |packs: &[IndexPack]| packs.iter().map(|p| p.id.into_inner()).collect();
            self.files.push(File {
                id,
                stale: false,
                pieces: pieces(&read.packs) + pieces(&read.packs_to_delete),
                supersedes: read.supersedes.is_some(),
                packs: ids(&read.packs),
                marked: ids(&read.packs_to_delete),
            });
            for (pack, marked) in all_packs(&read) {
                let known = self.packs.entry(pack.id.into_inner()).or_insert(Pack {
                    to_do: ToDo::Keep,
                    listed: false,
                    marked: false,
                    since: None,
                    size: None,
                    looked: false,
                    tree: false,
                    needed: 0,
                    needed_bytes: 0,
                    other_bytes: 0,
                });
                if marked {
                    known.marked = true;
                    known.since = known.since.max(pack.time);
                } else {
                    known.listed = true;
                }
                folders.add(pack, marked);
            }
        }
        Ok(folders)
    }

    /// Every folder and piece that is needed.
    fn read_folders(
        &mut self,
        backend: &Backend,
        index: &Index<'_>,
        roots: &[TreeId],
        folders: Folders,
    ) -> Result<(), FilesError> {
        let (needed, budget) = (Mutex::new(&mut self.needed), Budget::new(FOLDERS_BYTES));
        walk(roots.iter().copied(), |id| {
            let _share = budget.take(folders.bytes(id));
            let folder = folders.read(backend, index.key(), id)?;
            let mut needed = hold(&needed);
            needed.insert(id, BlobType::Tree);
            let nodes = || folder.nodes.iter();
            for piece in nodes().flat_map(|n| n.content.iter().flatten()) {
                needed.insert(piece, BlobType::Data);
            }
            Ok(nodes().filter_map(|n| n.subtree).collect())
        })
    }

    fn list_packs(&mut self, backend: &Backend) -> Result<(), FilesError> {
        let listed = backend
            .list_with_size(FileType::Pack)
            .map_err(|e| FilesError::of("listing the packs of", backend, &e))?;
        for (id, size) in listed {
            match self.packs.get_mut(&id) {
                Some(pack) => pack.size = Some(size),
                None => self.unlisted.push((id, size)),
            }
        }
        Ok(())
    }

    /// Counts what is needed of packs, each piece in the first one that has it.
    fn look(&mut self, index: &Index<'_>, which: impl Fn(&Pack) -> bool) -> Result<(), FilesError> {
        let of_these = |packs: &HashMap<Id, Pack>, id: &Id| packs.get(id).is_some_and(&which);
        for file in &self.files {
            let mut all = file.packs.iter().chain(&file.marked);
            if !all.any(|id| of_these(&self.packs, id)) {
                continue;
            }
            let read = index.read(&file.id)?;
            for (pack, marked) in all_packs(&read) {
                let Some(known) = self.packs.get_mut(&pack.id.into_inner()) else {
                    continue;
                };
                // Of one that is in use, the entry that says so.
                if !which(known) || known.looked || known.listed == marked {
                    continue;
                }
                known.looked = true;
                known.tree = pack.blobs.first().is_some_and(|b| b.tpe == BlobType::Tree);
                // What is cut or away holds nothing.
                let whole = known.is_whole(pack);
                for piece in &pack.blobs {
                    let bytes = u64::from(piece.location.length);
                    if whole && self.needed.claim(&piece.id, piece.tpe) {
                        known.needed += 1;
                        known.needed_bytes += bytes;
                    } else {
                        known.other_bytes += bytes;
                    }
                }
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`FilesError::Damaged`].
    pub(super) fn nothing_is_missing(&self, backend: &Backend) -> Result<(), FilesError> {
        match self.needed.missing() {
            0 => Ok(()),
            some => Err(FilesError::Damaged {
                store: backend.store().display(),
                what: format!("{some} pieces that kept snapshots need are in no pack"),
            }),
        }
    }

    /// What to do with each pack.
    fn decide(&mut self) {
        let (mut used, mut partly, mut small) = (0_u64, Vec::new(), Vec::new());
        let latest = self.now.saturating_add(AHEAD).unwrap_or(self.now);
        for (id, pack) in &mut self.packs {
            used += pack.needed_bytes;
            pack.since = pack.since.filter(|since| *since <= latest);
            pack.to_do = match (pack.listed, pack.needed) {
                (true, 0) if pack.size.is_none() => ToDo::Drop,
                (true, 0) => ToDo::Mark,
                (true, _) if pack.other_bytes > 0 => {
                    partly.push((*id, pack.clone()));
                    ToDo::Keep
                }
                (true, _) => {
                    let usual = if pack.tree {
                        TREE_PACK_BYTES
                    } else {
                        DATA_PACK_BYTES
                    };
                    if pack.needed_bytes < usual / SMALL_PART {
                        small.push((*id, pack.tree, pack.needed_bytes));
                    }
                    ToDo::Keep
                }
                (false, 1..) => ToDo::Recover,
                (false, 0) if pack.size.is_none() => ToDo::Drop,
                (false, 0) => {
                    let long_ago = self.now.checked_sub(MARKED_FOR).ok();
                    match (pack.since, long_ago) {
                        (Some(since), Some(long_ago)) if since <= long_ago => ToDo::Delete,
                        _ => ToDo::Wait,
                    }
                }
            };
        }
        // Those of folders always, they are read at every restore; of the others those with the most waste, until little is left.
        let mut waste: u64 = partly.iter().map(|(_, pack)| pack.other_bytes).sum();
        let order = |pack: &Pack| {
            // Of a million, so that no two sizes overflow.
            let part = pack.other_bytes * 1_000_000 / (pack.other_bytes + pack.needed_bytes).max(1);
            (!pack.tree, std::cmp::Reverse(part))
        };
        partly.sort_by_key(|(id, pack)| (order(pack), *id));
        let (mut repacks, mut moved) = ([false; 2], [0_u64; 2]);
        let most = COPIED_BYTES.max(used / COPIED_PART);
        for (id, pack) in partly {
            let is_over = moved.iter().sum::<u64>() + pack.needed_bytes > most;
            if is_over || !pack.tree && waste <= used / UNUSED_PART {
                continue;
            }
            waste -= pack.other_bytes;
            repacks[usize::from(pack.tree)] = true;
            moved[usize::from(pack.tree)] += pack.needed_bytes;
            self.set(&id, ToDo::Repack);
        }
        // Small ones where packs of their kind are written anyway, or where they fill one.
        small.sort_unstable();
        let mut left = most.saturating_sub(moved.iter().sum());
        small.retain(|(_, _, bytes)| {
            let fits = left.checked_sub(*bytes);
            left = fits.unwrap_or(left);
            fits.is_some()
        });
        for (_, tree, bytes) in &small {
            moved[usize::from(*tree)] += bytes;
        }
        for (id, tree, _) in small {
            let usual = if tree {
                TREE_PACK_BYTES
            } else {
                DATA_PACK_BYTES
            };
            if repacks[usize::from(tree)] || moved[usize::from(tree)] >= usual {
                self.set(&id, ToDo::Repack);
            }
        }
    }

    fn set(&mut self, id: &Id, to_do: ToDo) {
        if let Some(pack) = self.packs.get_mut(id) {
            pack.to_do = to_do;
        }
    }

    /// Which files of the index are written anew.
    fn choose_files(&mut self) {
        let mut seen = std::collections::HashSet::new();
        for file in &mut self.files {
            let mut stale = file.supersedes;
            for id in &file.packs {
                let kept = self.packs.get(id);
                let kept = kept.is_some_and(|p| p.to_do == ToDo::Keep && !p.marked);
                stale |= !kept || !seen.insert((*id, false));
            }
            for id in &file.marked {
                let waits = self.packs.get(id);
                let waits = waits.is_some_and(|p| p.to_do == ToDo::Wait && p.since.is_some());
                stale |= !waits || !seen.insert((*id, true));
            }
            file.stale = stale;
        }
        // Each run adds a small one: they are put together.
        let joins = |f: &File| f.stale || f.pieces < FEW_PIECES;
        if self.files.iter().filter(|f| joins(f)).count() > 1 {
            for file in &mut self.files {
                file.stale |= file.pieces < FEW_PIECES;
            }
        }
    }

    /// Packs that stand in files of the index that stay as they are.
    pub(super) fn settled(&self) -> impl Iterator<Item = Id> {
        let stay = self.files.iter().filter(|f| !f.stale);
        stay.flat_map(|f| f.packs.iter().chain(&f.marked)).copied()
    }

    /// Whether a file of the index has one of which this is to be done.
    pub(super) fn has(&self, file: &File, what: &[ToDo]) -> bool {
        let mut all = file.packs.iter().chain(&file.marked);
        all.any(|id| self.packs.get(id).is_some_and(|p| what.contains(&p.to_do)))
    }

    /// Bytes that are given up now, and bytes that are deleted.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let (mut marked, mut deleted) = (0, 0);
        for pack in self.packs.values() {
            match pack.to_do {
                ToDo::Mark | ToDo::Repack => marked += pack.other_bytes,
                ToDo::Delete => deleted += u64::from(pack.size.unwrap_or(0)),
                ToDo::Keep | ToDo::Recover | ToDo::Wait | ToDo::Drop => {}
            }
        }
        (marked, deleted)
    }
}

/// Every pack of a file of the index, and whether it is marked.
pub(super) fn all_packs(file: &IndexFile) -> impl Iterator<Item = (&IndexPack, bool)> {
    let used = file.packs.iter().map(|p| (p, false));
    used.chain(file.packs_to_delete.iter().map(|p| (p, true)))
}

/// Where folders are.
#[derive(Default)]
struct Folders {
    packs: Vec<Id>,
    places: HashMap<TreeId, (Place, bool)>,
}

impl Folders {
    fn add(&mut self, pack: &IndexPack, marked: bool) {
        let number = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
        self.packs.push(pack.id.into_inner());
        for piece in pack.blobs.iter().filter(|b| b.tpe == BlobType::Tree) {
            let place = Place {
                pack: number,
                offset: piece.location.offset,
                length: piece.location.length,
                plain: piece.location.uncompressed_length,
            };
            let id = TreeId::from(piece.id);
            // In a pack that is in use rather than in a marked one.
            match self.places.get_mut(&id) {
                Some(known) if known.1 && !marked => *known = (place, false),
                Some(_) => {}
                None => {
                    self.places.insert(id, (place, marked));
                }
            }
        }
    }

    /// What one takes in memory while it is read: sealed, as text, and decoded.
    fn bytes(&self, id: &TreeId) -> u64 {
        self.places.get(id).map_or(0, |(place, _)| {
            let text = place.plain.map_or(place.length, NonZeroU32::get);
            u64::from(place.length) + 2 * u64::from(text)
        })
    }

    fn read(&self, backend: &Backend, key: &[u8; 64], id: &TreeId) -> Result<Folder, FilesError> {
        let damaged = |what: &str| FilesError::Damaged {
            store: backend.store().display(),
            what: format!("folder {} {what}", id.to_hex().as_str()),
        };
        let found = self.places.get(id).map(|(place, _)| place);
        let place = found.ok_or_else(|| damaged("of a kept snapshot is in no pack"))?;
        let pack = self.packs.get(place.pack as usize);
        let pack = pack.ok_or_else(|| damaged("of a kept snapshot is in no pack"))?;
        let sealed = match backend.pack_range(pack, place.offset, place.length) {
            Ok(sealed) => sealed,
            Err(Asked::Store(e)) if e.is_not_found() => {
                return Err(damaged("is in a pack that is missing"));
            }
            Err(Asked::Store(_)) if backend.is_shorter(pack, place.offset + place.length) => {
                return Err(damaged("is in a pack that is cut short"));
            }
            Err(error) => return Err(error.into()),
        };
        let text = opened(key, &sealed, place.plain, id);
        let folder = text.and_then(|text| serde_json::from_slice(&text).ok());
        folder.ok_or_else(|| damaged("is not what was put there"))
    }
}
