//! Instants as plain numbers, and the one place that reads a clock.

use std::time::{Duration, Instant};

/// Nanoseconds since the limiter was built. A number this small packs into a
/// ring of timestamps, and a test can make one up. 584 years fit.
pub(crate) type Nanos = u64;

pub(crate) const NANOS_PER_MILLI: Nanos = 1_000_000;
pub(crate) const NANOS_PER_SEC: Nanos = 1_000_000_000;

pub(crate) const fn nanos(duration: Duration) -> Nanos {
    // A duration beyond 584 years waits 584 years.
    duration
        .as_secs()
        .saturating_mul(NANOS_PER_SEC)
        .saturating_add(duration.subsec_nanos() as u64)
}

/// The clock that is read: tokio's, which a test can pause.
pub(crate) fn now() -> Instant {
    #[cfg(feature = "tokio")]
    {
        tokio::time::Instant::now().into_std()
    }
    #[cfg(all(loom, not(feature = "tokio")))]
    {
        // The same every time a model runs.
        static NOW: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *NOW
    }
    #[cfg(not(any(loom, feature = "tokio")))]
    {
        #[expect(clippy::disallowed_methods, reason = "there is no tokio here")]
        Instant::now()
    }
}

/// What those who ask have said of the time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// The latest that was seen.
    pub(crate) latest: Nanos,
    /// The same, before whoever has the lock now.
    pub(crate) before: Nanos,
}

impl Clock {
    /// The later of `now` and the latest time seen.
    pub(crate) fn tick(&mut self, now: Nanos) -> Nanos {
        self.before = self.latest;
        self.latest = self.latest.max(now);
        self.latest
    }
}

/// Where a limiter's nanoseconds start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin(Instant);

impl Origin {
    pub(crate) fn now() -> Self {
        Self(now())
    }

    /// Instants before the origin are the origin.
    pub(crate) fn nanos(self, instant: Instant) -> Nanos {
        nanos(instant.saturating_duration_since(self.0))
    }

    /// `None` where the clock can't say that instant.
    pub(crate) fn instant(self, at: Nanos) -> Option<Instant> {
        self.0.checked_add(Duration::from_nanos(at))
    }
}
