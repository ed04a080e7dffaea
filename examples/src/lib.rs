//! Tollway's examples.
