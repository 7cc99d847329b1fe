//! Capture: the read lock and checkpoint protocol, the WAL, page checksums.
//!
//! Reading order: [`wal`] (format), [`files`] (descriptors), [`guard`] (protocol), [`pages`] (what was captured), [`view`] (the
//! whole database at one moment), [`live`] (the same, read slowly), [`capture`] (LTX files out of all that).

pub mod beat;
pub mod capture;
pub mod files;
pub mod guard;
pub mod live;
pub mod pages;
pub mod view;
pub mod wal;
pub mod watch;
