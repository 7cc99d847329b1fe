//! Facts, verdicts and metrics.

pub mod app;
pub mod clock;
pub mod facts;
pub mod happened;
pub mod health;
pub mod history;
pub mod insight;
pub mod metrics;
pub mod servers;
pub mod services;
pub mod view;
pub mod volume;
