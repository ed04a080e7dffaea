//! Sends a file of payouts.
mod file;
fn main() {}
