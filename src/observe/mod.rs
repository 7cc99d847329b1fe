//! Metrics and health.

pub mod facts;
pub mod health;
pub mod metrics;
