//! The lock, the atomics, what a thread has to itself and where it is, and loom's
//! in their place.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(loom)]
use loom::thread_local;
use std::sync::PoisonError;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, OnceLock};

/// Locks. The state is sound between any two operations, so one that was
/// interrupted by a panic elsewhere poisons nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number that this thread has to itself, counted from 0.
#[inline]
pub(crate) fn own_index() -> usize {
    #[cfg(not(loom))]
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    #[cfg(loom)]
    loom::lazy_static! {
        static ref NEXT: AtomicUsize = AtomicUsize::new(0);
    }
    thread_local! {
        static INDEX: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    INDEX.with(|index| *index)
}

/// A runtime in which tasks are polled.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    #[cfg(feature = "tokio")]
    pub(crate) handle: tokio::runtime::Handle,
    #[cfg(not(feature = "tokio"))]
    none: std::convert::Infallible,
}

impl PartialEq for Runtime {
    fn eq(&self, other: &Self) -> bool {
        #[cfg(feature = "tokio")]
        {
            self.handle.id() == other.handle.id()
        }
        #[cfg(not(feature = "tokio"))]
        match (self.none, other.none) {}
    }
}

/// The runtime in which this task is polled, if any.
pub(crate) fn runtime() -> Option<Runtime> {
    #[cfg(feature = "tokio")]
    {
        let handle = tokio::runtime::Handle::try_current();
        handle.ok().map(|handle| Runtime { handle })
    }
    #[cfg(not(feature = "tokio"))]
    None
}

/// loom has none: std's, and that who gets what another has put in sees all that
/// came before.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct OnceLock<T> {
    slot: std::sync::OnceLock<T>,
    order: AtomicUsize,
}

#[cfg(loom)]
impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        Self {
            slot: std::sync::OnceLock::new(),
            order: AtomicUsize::new(0),
        }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        let value = self.slot.get()?;
        self.order.fetch_add(1, Ordering::AcqRel);
        Some(value)
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        self.order.fetch_add(1, Ordering::AcqRel);
        self.slot.set(value)
    }
}
