//! One replica in one store: layout, catalog, upload, ownership, compaction.
