//! One replica in one store: layout, catalog, upload, ownership, compaction.
//!
//! Reading order: [`layout`] (object names), [`spool`] (local files), [`owner`] (who may write), [`join`] (whether local history continues a
//! store's), [`upload`] (what is durable, what goes next), [`compact`] (rolling up).

pub mod audit;
pub mod compact;
pub mod join;
pub mod layout;
pub mod owner;
pub mod past;
mod same;
pub mod spool;
pub mod upload;
