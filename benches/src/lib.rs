//! Tollway's benches.
