//! Capture: the read lock and checkpoint protocol, the WAL, page checksums.
