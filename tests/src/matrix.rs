//! Every fault × every way of asking × every provider × both versions of HTTP,
//! and what must come of each call.
//!
//! The prediction is written from the verdict table, not from the code: it
//! knows nothing of the layers, only what each fault does on the wire.

use std::time::Duration;

use tollway::Client;
use tollway::core::BoxError;
use tollway::limit::Limits;
use tollway::pool::Protocol;
use tollway::retry::{BackOff, Budget};
use tollway_sim::{Fault, Provider};

use crate::words;

/// A call's attempts are at most so many, as by the retry's default.
pub const MAX_ATTEMPTS: u32 = 4;

/// The calls of one cell, one after the other.
pub const CALLS: usize = 50;

/// The shortest back-off's ceiling, and the longest one's.
pub const WAITS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(4)];

/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(600);

/// Every fault that the simulator knows.
pub const FAULTS: [Fault; 16] = [
    Fault::ErrorBefore(500),
    Fault::ErrorBefore(503),
    Fault::ErrorAfter(502),
    Fault::ErrorAfter(504),
    Fault::Refuse(402),
    Fault::ResetBeforeRead,
    Fault::ResetAfterRead,
    Fault::ResetAfterEffect,
    Fault::AbortConnection,
    Fault::HalfResponse,
    Fault::SlowBody(Duration::from_millis(20)),
    Fault::Hang(FOR_EVER),
    Fault::HangAfterEffect(FOR_EVER),
    Fault::GoAway,
    Fault::RefusedStream,
    Fault::LockTimeout,
];

/// What is asked, and whether it may be asked twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A look-up.
    Get,
    /// A payout with a key, wherever the provider looks for one: in a header,
    /// or in a field of the body. Payrix looks nowhere.
    PostWithKey,
    /// A payout whose client knows of no key.
    PostWithoutKey,
}

impl Ask {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Get, Self::PostWithKey, Self::PostWithoutKey];

    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::PostWithKey => "POST with key",
            Self::PostWithoutKey => "POST without key",
        }
    }
}

/// One cell of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// What goes wrong.
    pub fault: Fault,
    /// What is asked.
    pub ask: Ask,
    /// Of whom.
    pub provider: Provider,
    /// Whether HTTP/2 is spoken, or else HTTP/1.1.
    pub http2: bool,
}

/// What one attempt, or a whole call, comes to: the verdict table's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The provider's final answer: it is done.
    Done,
    /// The provider's final answer: it won't be done.
    Rejected,
    /// Certainly no effect.
    NotExecuted,
    /// An effect or none.
    Unknown,
}

/// What must come of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// How it ends.
    pub end: End,
    /// How many attempts it takes.
    pub attempts: u32,
    /// How often it takes effect.
    pub effects: u32,
    /// Whether the body of its answer breaks off.
    pub broken: bool,
}

impl Cell {
    /// The whole matrix.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for fault in FAULTS {
            for ask in Ask::ALL {
                for provider in Provider::ALL {
                    for http2 in [false, true] {
                        cells.push(Self {
                            fault,
                            ask,
                            provider,
                            http2,
                        });
                    }
                }
            }
        }
        cells
    }

    /// Whether an attempt that meets the fault ends with a time-out.
    #[must_use]
    pub const fn hangs(&self) -> bool {
        matches!(self.fault, Fault::Hang(_) | Fault::HangAfterEffect(_))
    }

    /// The client of the cell: the provider's profile with short waits, and
    /// nothing else in the way: no quota, and a budget that never says no.
    ///
    /// # Errors
    ///
    /// None, with an attempt of more than no time.
    pub fn client(&self, attempt: Duration) -> Result<Client, BoxError> {
        let profile = words::profile(self.provider);
        let [base, cap] = WAITS;
        let retry = profile
            .retry
            .clone()
            .back_off(BackOff::exponential(base, cap)?);
        let version = if self.http2 {
            Protocol::Http2Only
        } else {
            Protocol::Http1Only
        };
        let mut builder = Client::builder(profile)
            .plain_http(true)
            .limits(Limits::builder())
            .retry(retry.budget(Budget::unlimited()))
            .attempt_timeout(attempt)
            .deadline(Duration::from_secs(120))
            .pool(|pool| pool.protocol(version));
        if self.ask == Ask::PostWithoutKey {
            builder = builder.keys(None);
        }
        Ok(builder.build()?)
    }

    /// Which attempts meet the fault: about every other one, the same ones on
    /// every run, and others in every cell.
    #[must_use]
    pub fn script(&self) -> Vec<Option<Fault>> {
        let mut state = format!("{self:?}")
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let attempts = CALLS * MAX_ATTEMPTS as usize;
        (0..attempts)
            .map(|_| {
                // xorshift64, from the cell's name.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 63 == 1).then_some(self.fault)
            })
            .collect()
    }

    /// What an attempt that meets the fault means.
    ///
    /// *Unknown*: a time-out after sending, a reset, a broken body, a 5xx, for
    /// from outside nobody can tell whether it struck before the effect or
    /// after. *Not executed*: `REFUSED_STREAM`, and Stripe's lock, which is a
    /// 429. *Rejected*: a 402, or at Savvy a 200 that says so. *Done*: a 2xx,
    /// however slowly its body comes and whatever becomes of its connection.
    const fn of_fault(&self) -> End {
        match self.fault {
            Fault::GoAway | Fault::SlowBody(_) => End::Done,
            Fault::Refuse(_) => End::Rejected,
            // The head says 2xx, which is final; but at Savvy it is the body
            // that says whether the payment was made, and that one is broken.
            Fault::HalfResponse => match self.provider {
                Provider::Savvy => End::Unknown,
                _ => End::Done,
            },
            // HTTP/1.1 has no such thing: the connection is reset.
            Fault::RefusedStream if self.http2 => End::NotExecuted,
            // The others answer 503.
            Fault::LockTimeout => match self.provider {
                Provider::Stripe => End::NotExecuted,
                _ => End::Unknown,
            },
            _ => End::Unknown,
        }
    }

    /// Whether a repeat is safe where the outcome of an attempt is unknown.
    const fn is_repeatable(&self) -> bool {
        match self.ask {
            Ask::Get => true,
            Ask::PostWithKey => !matches!(self.provider, Provider::Payrix),
            Ask::PostWithoutKey => false,
        }
    }

    /// What must come of a call whose attempts meet these faults, one after the
    /// other.
    pub fn predict(&self, mut faults: impl Iterator<Item = Option<Fault>>) -> Expected {
        let mut expected = Expected {
            end: End::Done,
            attempts: 0,
            effects: 0,
            broken: false,
        };
        loop {
            let fault = faults.next().flatten();
            expected.attempts += 1;
            expected.end = fault.map_or(End::Done, |_| self.of_fault());
            expected.broken = fault == Some(Fault::HalfResponse);
            if self.ask != Ask::Get && !fault.is_some_and(|fault| fault.prevents_effect()) {
                // A repeat is recognised by its key; without one there is none.
                expected.effects = 1;
            }
            let again = match expected.end {
                End::Done | End::Rejected => false,
                End::NotExecuted => true,
                End::Unknown => self.is_repeatable(),
            };
            if !again || expected.attempts == MAX_ATTEMPTS {
                return expected;
            }
        }
    }
}
