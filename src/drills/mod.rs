//! Drills: a restore for real, into scratch space, and checks of what came out.
//!
//! Invariants
//! 1. A drill goes the way of a restore: the same plan, the same reads, the same checks. It changes nothing but its scratch space, which it
//!    removes, and its record. The scratch space of a drill is locked while it runs; what a killed one left goes with the next drill or start.
//! 2. Each drill leaves a record `lifeboat/drills/<time>.json` under its target's root, whatever it found, as long as the store takes it.
//! 3. The newest point that a drill proved and that still exists is never deleted by retention ([`Proven`]); its record is never swept.
//! 4. A point is pinned while its drill is under way ([`under_way`]): its record, written last, must not prove what is gone by then.
//!
//! What a drill does **not** prove: that the app's own data made sense. User-given assertions are there for that.

mod proven;
mod record;
mod sqlite;
mod under_way;

pub use proven::{Proven, Proves, newest};
pub(crate) use proven::{keys, sweep};
pub use record::{Check, Drill, history};
pub use sqlite::{DrillError, Options, clear_left, sqlite};
pub use under_way::under_way;
