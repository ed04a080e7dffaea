//! How many retries a set of clients may make between them.

use std::fmt;
#[cfg(not(all(test, loom)))]
use std::sync::Mutex;
#[cfg(not(all(test, loom)))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

#[cfg(all(test, loom))]
use loom::sync::Mutex;
#[cfg(all(test, loom))]
use loom::sync::atomic::AtomicU64;
use tokio::time::Instant;
use tollway_core::{Scope, Verdict};

use crate::error::InvalidPolicy;

/// Thousandths of a retry, in which a budget counts: exact, unlike a float.
const RETRY: u64 = 1000;

/// How many retries a set of clients may make between them.
///
/// A bound on the attempts of each call isn't enough: when a provider fails
/// altogether, four attempts a call are four times the load, just when it can
/// least bear it. A budget bounds the retries of all calls together, so that an
/// outage hardly adds to the load.
///
/// It is a token bucket that starts full:
///
/// - a retry takes one token, or half of one where the provider throttled the
///   attempt: a throttled attempt costs the provider little, and waits long;
/// - one after an attempt that got no permit, or lost it, takes nothing more: the
///   provider has seen nothing of that attempt;
/// - a retry that brings a final answer pays back what it took;
/// - a call whose first attempt brings a final answer adds
///   [`per_success`](BudgetBuilder::per_success) tokens;
/// - [`per_second`](BudgetBuilder::per_second) tokens come in with time, so
///   that a client that does little can still retry;
/// - a retry that was never sent, because its call was dropped before, gives
///   its token back.
///
/// A clone shares the tokens. Hand clones to all the policies that call the
/// same provider.
///
/// By default it holds 100 tokens, adds a tenth per success and one per second.
/// Once they are gone, a provider that answers 503 to everything sees the fresh
/// load and one request a second on top; one that answers 429 to everything,
/// two on top, since each costs half: at ten calls a second a fifth more, at
/// fifty a twenty-fifth.
#[derive(Clone)]
pub struct Budget(Option<Arc<Bucket>>);

struct Bucket {
    capacity: u64,
    per_success: u64,
    per_second: u64,
    tokens: AtomicU64,
    income: Mutex<Income>,
}

/// What comes in with time, counted up when somebody asks for a token.
struct Income {
    since: Option<Instant>,
    // The part of a thousandth that is due already, in billionths of it.
    carry: u64,
}

impl Budget {
    /// A budget to configure.
    pub const fn builder() -> BudgetBuilder {
        BudgetBuilder {
            capacity: 100,
            per_success: 0.1,
            per_second: 1.0,
        }
    }

    /// No bound at all. An outage then sees `max_attempts` times the load.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self(None)
    }

    /// The tokens at hand, each worth one retry. `None` where unlimited.
    #[must_use]
    pub fn available(&self) -> Option<f64> {
        let bucket = self.0.as_ref()?;
        bucket.collect(Instant::now());
        #[expect(
            clippy::cast_precision_loss,
            reason = "a capacity is at most 2^32 retries, exact in a float"
        )]
        let tokens = bucket.tokens.load(Ordering::Relaxed) as f64;
        Some(tokens / 1000.0)
    }

    /// Takes what `cost` takes, or `None` if there isn't enough.
    pub(crate) fn withdraw(&self, now: Instant, cost: Cost) -> Option<Withdrawal> {
        if let Some(bucket) = &self.0 {
            bucket.collect(now);
            // Nothing else hangs on the count, so relaxed is enough, here and
            // wherever it is touched.
            bucket
                .tokens
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tokens| {
                    tokens.checked_sub(cost.tokens())
                })
                .ok()?;
        }
        Some(Withdrawal {
            budget: self.clone(),
            tokens: cost.tokens(),
            sent: false,
        })
    }

    /// A first attempt brought a final answer.
    #[inline]
    pub(crate) fn deposit_success(&self) {
        if let Some(bucket) = &self.0 {
            bucket.deposit(bucket.per_success);
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self(Some(Arc::new(Bucket::new(100 * RETRY, 100, RETRY))))
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("available", &self.available())
            .finish_non_exhaustive()
    }
}

impl Bucket {
    fn new(capacity: u64, per_success: u64, per_second: u64) -> Self {
        Self {
            capacity,
            per_success,
            per_second,
            tokens: AtomicU64::new(capacity),
            income: Mutex::new(Income {
                since: None,
                carry: 0,
            }),
        }
    }

    /// Adds what came in since the last time, to the billionth of a thousandth.
    fn collect(&self, now: Instant) {
        const NANOS: u128 = 1_000_000_000;
        let mut income = self.income.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *income.since.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since);
        if elapsed.is_zero() {
            return;
        }
        income.since = Some(now);
        let due = elapsed
            .as_nanos()
            .saturating_mul(u128::from(self.per_second))
            .saturating_add(u128::from(income.carry));
        income.carry = u64::try_from(due % NANOS).unwrap_or(0);
        // Deposited under the lock: nobody can see the time gone and the tokens
        // not yet there.
        self.deposit(u64::try_from(due / NANOS).unwrap_or(u64::MAX));
    }

    #[inline]
    fn deposit(&self, tokens: u64) {
        // A full bucket is the usual case. Then clones on other cores only read.
        let _ = self
            .tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                let full = held == self.capacity || tokens == 0;
                (!full).then(|| held.saturating_add(tokens).min(self.capacity))
            });
    }
}

/// What a retry costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// After a failure.
    Transient,
    /// After a refusal because of a limit.
    Throttled,
}

impl Cost {
    pub(crate) fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::NotExecuted {
                retry_after: None,
                scope: Scope::Call,
            } => Self::Transient,
            Verdict::NotExecuted { .. } => Self::Throttled,
            _ => Self::Transient,
        }
    }

    const fn tokens(self) -> u64 {
        match self {
            Self::Transient => RETRY,
            Self::Throttled => RETRY / 2,
        }
    }
}

/// The tokens that one retry took. They go back when it is dropped unsent.
#[derive(Debug)]
pub(crate) struct Withdrawal {
    budget: Budget,
    tokens: u64,
    sent: bool,
}

impl Withdrawal {
    /// The retry is on its way.
    pub(crate) fn sent(&mut self) {
        self.sent = true;
    }

    /// The retry was never sent. What it took is for the next one.
    pub(crate) fn unsent(&mut self) {
        self.sent = false;
    }

    /// The retry brought a final answer.
    pub(crate) fn pay_back(mut self) {
        self.sent = false;
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if !self.sent
            && let Some(bucket) = &self.budget.0
        {
            bucket.deposit(self.tokens);
        }
    }
}

/// Builds a [`Budget`].
#[derive(Clone, Debug)]
#[must_use]
pub struct BudgetBuilder {
    capacity: u32,
    per_success: f64,
    per_second: f64,
}

impl BudgetBuilder {
    /// The most tokens that it holds, which it starts with. Default: 100, a
    /// burst of failures on a busy client, gone after a few seconds of outage.
    pub const fn capacity(mut self, tokens: u32) -> Self {
        self.capacity = tokens;
        self
    }

    /// The tokens that a call adds whose first attempt brings a final answer,
    /// in thousandths at the finest. Default: 0.1, so that one call in ten can
    /// fail for ever and be retried.
    pub const fn per_success(mut self, tokens: f64) -> Self {
        self.per_success = tokens;
        self
    }

    /// The tokens that come in each second, in thousandths at the finest.
    /// Default: 1.
    pub const fn per_second(mut self, tokens: f64) -> Self {
        self.per_second = tokens;
        self
    }

    /// The budget.
    ///
    /// # Errors
    ///
    /// Where the capacity is zero, or a number of tokens is negative, not
    /// finite, above a million, or finer than a thousandth.
    pub fn build(self) -> Result<Budget, InvalidPolicy> {
        if self.capacity == 0 {
            return Err(InvalidPolicy::new(
                "budget.capacity",
                self.capacity,
                "at least 1 (max_attempts of 1 turns retries off)",
            ));
        }
        let per_success = thousandths("budget.per_success", self.per_success)?;
        let per_second = thousandths("budget.per_second", self.per_second)?;
        let capacity = u64::from(self.capacity) * RETRY;
        Ok(Budget(Some(Arc::new(Bucket::new(
            capacity,
            per_success,
            per_second,
        )))))
    }
}

fn thousandths(field: &'static str, value: f64) -> Result<u64, InvalidPolicy> {
    const MAX: f64 = 1_000_000.0;
    let scaled = value * 1000.0;
    let exact = (scaled - scaled.round()).abs() < 1e-6;
    if !((0.0..=MAX).contains(&value) && exact) {
        return Err(InvalidPolicy::new(
            field,
            value,
            "0 to 1000000 in steps of 0.001",
        ));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be a whole number between 0 and 10^9"
    )]
    Ok(scaled.round() as u64)
}

#[cfg(test)]
#[cfg(loom)]
mod models;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
