//! The names of the five.

use std::fmt;
use std::str::FromStr;

/// A payment provider whose gateway can be simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Provider {
    /// `payrix`: a penalty block, no idempotency.
    Payrix,
    /// `stripe`: a global and a per-endpoint rate, idempotency by header.
    Stripe,
    /// `modern-treasury`: idempotency by header.
    ModernTreasury,
    /// `savvy`: idempotency by a body field, business errors in a 200.
    Savvy,
    /// `payalo`: references are unique, few requests in flight.
    Payalo,
}

impl Provider {
    /// The five providers.
    pub const ALL: [Self; 5] = [
        Self::Payrix,
        Self::Stripe,
        Self::ModernTreasury,
        Self::Savvy,
        Self::Payalo,
    ];

    /// The name used on the command line and by [`FromStr`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Payrix => "payrix",
            Self::Stripe => "stripe",
            Self::ModernTreasury => "modern-treasury",
            Self::Savvy => "savvy",
            Self::Payalo => "payalo",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Provider {
    type Err = UnknownProvider;

    fn from_str(name: &str) -> Result<Self, UnknownProvider> {
        Self::ALL
            .into_iter()
            .find(|provider| provider.name() == name)
            .ok_or(UnknownProvider(()))
    }
}

/// A name that belongs to none of the five providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownProvider(());

impl fmt::Display for UnknownProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown provider: expected payrix, stripe, modern-treasury, savvy or payalo")
    }
}

impl std::error::Error for UnknownProvider {}
