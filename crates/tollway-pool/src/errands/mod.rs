//! Small futures that a task runs beside its own work.

mod queue;
#[cfg(test)]
mod tests;

pub(crate) use queue::{Errands, Inbox};

/// What threads share here, for which the models in `tests/interleavings.rs` have
/// loom's.
mod sync {
    pub(crate) use std::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use std::sync::{Mutex, MutexGuard};
}
