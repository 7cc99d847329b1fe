//! What to keep and why. The only deleter.
