//! Counting what code costs, beside its time.

/// How many allocations one run of `work` makes on this thread, on average
/// over `runs`.
pub fn allocations(runs: u32, mut work: impl FnMut()) -> f64 {
    let info = allocation_counter::measure(|| {
        for _ in 0..runs {
            work();
        }
    });
    // Exact below 2⁵³.
    #[expect(clippy::cast_precision_loss)]
    let total = info.count_total as f64;
    total / f64::from(runs)
}

/// Runs `work` with next to none of the cost of counting its allocations.
pub fn uncounted<R>(work: impl FnOnce() -> R) -> Option<R> {
    let mut result = None;
    allocation_counter::opt_out(|| result = Some(work()));
    result
}

/// A counter of the instructions that this thread executes in user space,
/// where the machine has one and lets us read it.
#[derive(Debug)]
pub struct Instructions {
    #[cfg(target_os = "linux")]
    counter: perf_event::Counter,
}

impl Instructions {
    /// `None` where instructions can't be counted.
    #[must_use]
    pub fn new() -> Option<Self> {
        #[cfg(target_os = "linux")]
        {
            use perf_event::events::Hardware;
            let counter = perf_event::Builder::new(Hardware::INSTRUCTIONS)
                .build()
                .ok()?;
            Some(Self { counter })
        }
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// How many instructions one run of `work` takes, on average over `runs`.
    /// `None` where the counter fails.
    pub fn count(&mut self, runs: u32, mut work: impl FnMut()) -> Option<f64> {
        #[cfg(target_os = "linux")]
        {
            self.counter.reset().ok()?;
            self.counter.enable().ok()?;
            for _ in 0..runs {
                work();
            }
            self.counter.disable().ok()?;
            #[expect(clippy::cast_precision_loss)]
            let total = self.counter.read().ok()? as f64;
            Some(total / f64::from(runs))
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = (runs, &mut work);
            None
        }
    }
}
