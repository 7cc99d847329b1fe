//! Metrics and health.
