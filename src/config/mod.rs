//! From files and environment to checked values.
