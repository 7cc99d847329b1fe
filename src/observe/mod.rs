//! Facts, verdicts and metrics.

pub mod facts;
pub mod health;
pub mod metrics;
pub mod view;
pub mod volume;
