//! Drills: a restore for real, into scratch space, and checks of what came out.
//!
//! Invariants
//! 1. A drill goes the way of a restore: the same plan, the same reads, the same checks. It changes nothing but its scratch space, which it
//!    removes, and its record.
//! 2. Each drill leaves a record `lifeboat/drills/<time>.json` under its target's root, whatever it found, as long as the store takes it.
//! 3. The newest point that a drill proved is never deleted by retention ([`Proven`]).
//!
//! What a drill does **not** prove: that the app's own data made sense. User-given assertions are there for that.

mod record;
mod sqlite;

pub use record::{Check, Drill, Proven, history};
pub use sqlite::{DrillError, Options, sqlite};
