//! What Tollway's benches share: a report that is printed as a table and kept
//! as JSON, and counters for allocations and instructions.

mod count;
mod report;

pub use count::{Instructions, allocations};
pub use report::Report;
