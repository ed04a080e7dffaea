//! Tollway's tests.
