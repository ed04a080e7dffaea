//! What the tests of the whole road share: each provider's requests, and the
//! matrix of faults with what must come of each, and nginx.

pub mod matrix;
pub mod nginx;
pub mod words;

/// Compiles the README's code.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
