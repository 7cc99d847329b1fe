//! From a URL to an object store.
