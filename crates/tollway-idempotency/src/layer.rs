//! The layer.

use std::fmt;
use std::sync::Arc;

use tower_layer::Layer;

use crate::keys::Keys;
use crate::memory::Memory;
use crate::{Dialect, IdempotencyKeyService, KeyGenerator, UuidV7};

/// Gives each call one idempotency key, the same for all its attempts.
///
/// See the [crate's documentation](crate) for what it does and where it goes.
/// All services that one layer makes, and their clones, share the memory of the
/// keys that were used.
pub struct IdempotencyKeyLayer<G = UuidV7> {
    dialect: Dialect,
    generator: Arc<G>,
    memory: Option<Arc<Memory>>,
    echo: bool,
}

impl IdempotencyKeyLayer {
    /// How many keys are remembered, unless said otherwise: at least 8192 and at
    /// most twice as many, in about 2 MB.
    pub const DEFAULT_REMEMBERED: usize = 8192;

    /// Keys in the [default dialect](Dialect::default), UUIDs of version 7.
    #[must_use]
    pub fn new() -> Self {
        Self {
            dialect: Dialect::default(),
            generator: Arc::new(UuidV7),
            memory: Some(Arc::new(Memory::new(Self::DEFAULT_REMEMBERED))),
            echo: false,
        }
    }
}

impl Default for IdempotencyKeyLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<G> IdempotencyKeyLayer<G> {
    /// The provider wants its keys in this dialect.
    #[must_use]
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Keys that callers don't give are made by `generator`.
    #[must_use]
    pub fn generator<H: KeyGenerator>(self, generator: H) -> IdempotencyKeyLayer<H> {
        IdempotencyKeyLayer {
            dialect: self.dialect,
            generator: Arc::new(generator),
            memory: self.memory,
            echo: self.echo,
        }
    }

    /// At least this many of the keys that callers give, or were told with an
    /// unknown outcome, are remembered, and at most twice as many, about 100 bytes
    /// each, so that one which comes back with another payload, or too late, is
    /// refused. Beyond it the keys that weren't used for the longest time are
    /// forgotten, and only the provider can refuse them. Zero remembers none.
    #[must_use]
    pub fn remember(mut self, keys: usize) -> Self {
        self.memory = (keys > 0).then(|| Arc::new(Memory::new(keys)));
        self
    }

    /// Whether every response carries its call's key in its extensions. By
    /// default only those do that aren't [`Done`](tollway_core::Verdict::Done),
    /// since the first extension of a response costs three allocations.
    #[must_use]
    pub fn echo(mut self, echo: bool) -> Self {
        self.echo = echo;
        self
    }
}

impl<S, G> Layer<S> for IdempotencyKeyLayer<G> {
    type Service = IdempotencyKeyService<S, G>;

    fn layer(&self, inner: S) -> Self::Service {
        let keys = Keys {
            dialect: self.dialect.clone(),
            generator: Arc::clone(&self.generator),
            memory: self.memory.clone(),
            echo: self.echo,
        };
        IdempotencyKeyService::new(inner, keys)
    }
}

impl<G> Clone for IdempotencyKeyLayer<G> {
    fn clone(&self) -> Self {
        Self {
            dialect: self.dialect.clone(),
            generator: Arc::clone(&self.generator),
            memory: self.memory.clone(),
            echo: self.echo,
        }
    }
}

impl<G> fmt::Debug for IdempotencyKeyLayer<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKeyLayer")
            .field("dialect", &self.dialect)
            .field("echo", &self.echo)
            .finish_non_exhaustive()
    }
}
