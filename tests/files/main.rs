//! Files, with stock restic as referee.
#![allow(missing_docs)]

mod care;
mod daemon;
mod in_place;
mod kills;
mod refusals;
mod round_trip;
mod site;
