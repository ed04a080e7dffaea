//! What Tollway's benches share: a report that is printed as a table and kept
//! as JSON, and counters for allocations and instructions.

mod callgrind;
mod count;
mod report;

pub use callgrind::{COUNT, callgrind, counted};
pub use count::{Instructions, allocations, uncounted};
pub use report::Report;
