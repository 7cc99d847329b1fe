//! Wires targets, stores and schedules together.
