//! What Tollway's benches share: a report that is printed as a table and kept
//! as JSON, counters for allocations and instructions, and a process of its own
//! for a server.

mod callgrind;
mod count;
mod executed;
mod median;
mod report;
mod server;

pub use callgrind::{counted, told_to_count};
pub use count::{Instructions, allocations, uncounted};
pub use executed::Executed;
pub use median::median;
pub use report::Report;
pub use server::ServerProcess;
