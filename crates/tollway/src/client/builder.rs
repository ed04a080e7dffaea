//! A client, to be adjusted and built.

use std::sync::Mutex;
use std::time::Duration;

use tollway_core::{Attempt, ClassifyLayer, Rules};
use tollway_idempotency::{Dialect, IdempotencyKeyLayer};
use tollway_limit::{Limits, LimitsBuilder, RateLimitLayer};
use tollway_pool::{InvalidPool, Pool, PoolBuilder};
use tollway_retry::{RetryLayer, RetryPolicyBuilder};
use tollway_timeout::{AttemptTimeout, AttemptTimeoutLayer, DeadlineLayer};

use super::stack::{Layers, WireBody};
use super::{BuildError, Client};
use crate::Profile;

/// Builds a [`Client`]: a profile, with what is to be otherwise.
#[derive(Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct ClientBuilder {
    profile: Profile,
    /// In place of the profile's.
    shared_limits: Option<Limits>,
    pool: PoolBuilder<WireBody>,
}

impl ClientBuilder {
    pub(super) fn new(profile: Profile) -> Self {
        let pool = Pool::builder()
            .max_connections_per_host(profile.max_connections)
            .idle_timeout(profile.idle_timeout)
            .protocol(profile.protocol);
        Self {
            profile,
            shared_limits: None,
            pool,
        }
    }

    /// How long a call may take, everything included: the waits for a permit
    /// and for a connection, all attempts, the back-off between them, the body.
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.profile.deadline = limit;
        self
    }

    /// How long one attempt may take.
    pub fn attempt_timeout(mut self, timeout: impl Into<AttemptTimeout>) -> Self {
        self.profile.attempt_timeout = timeout.into();
        self
    }

    /// The quotas, in place of all of the profile's. To add to those, change
    /// the profile before: `profile.limits = profile.limits.endpoint(…)`.
    ///
    /// Only this client and its clones count there;
    /// [`share_limits`](Self::share_limits) is for several clients.
    pub fn limits(mut self, limits: LimitsBuilder) -> Self {
        self.profile.limits = limits;
        self.shared_limits = None;
        self
    }

    /// The quotas of another client, in place of the profile's: what both send
    /// counts together, as it does at the provider. For clients of one account
    /// that differ in something else.
    ///
    /// A retry budget is shared by building both policies with clones of one
    /// [`Budget`](tollway_retry::Budget).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn clients() -> Result<(), tollway::BuildError> {
    /// use tollway::retry::{Budget, RetryPolicy};
    /// use tollway::{Client, profiles};
    ///
    /// let budget = Budget::default();
    /// let checkout = Client::builder(profiles::stripe())
    ///     .retry(RetryPolicy::builder().budget(budget.clone()))
    ///     .build()?;
    /// let reports = Client::builder(profiles::stripe())
    ///     .deadline(Duration::from_secs(600))
    ///     .share_limits(checkout.limits().clone())
    ///     .retry(RetryPolicy::builder().budget(budget))
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn share_limits(mut self, limits: Limits) -> Self {
        self.shared_limits = Some(limits);
        self
    }

    /// What answers mean, in place of the profile's rules. A provider that they
    /// can't describe needs a [`Classify`](tollway_core::Classify) of its own, and
    /// with it a stack by hand.
    pub fn rules(mut self, rules: Rules) -> Self {
        self.profile.rules = rules;
        self
    }

    /// Where the provider looks for an idempotency key; `None` where it honours
    /// none.
    pub fn keys(mut self, dialect: impl Into<Option<Dialect>>) -> Self {
        self.profile.keys = dialect.into();
        self
    }

    /// How failures are retried, in place of the profile's policy. Its
    /// [`key_headers`](RetryPolicyBuilder::key_headers) are those of
    /// [`keys`](Self::keys), whatever is said here.
    pub fn retry(mut self, policy: RetryPolicyBuilder) -> Self {
        self.profile.retry = policy;
        self
    }

    /// The TLS settings, in place of TLS 1.3 and 1.2 with the platform's roots: a
    /// configuration of the `rustls` crate, version 0.23. Its `alpn_protocols`
    /// stay empty; the profile's protocol sets them.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tollway::core::BoxError;
    /// # use tollway::{Client, profiles};
    /// // Trusts nobody but one authority, of a company or of a simulated gateway.
    /// fn client(authority: &[u8]) -> Result<Client, BoxError> {
    ///     let mut roots = rustls::RootCertStore::empty();
    ///     roots.add(authority.to_vec().into())?;
    ///     // Named, since with two of them in a program rustls can't choose.
    ///     let ring = Arc::new(rustls::crypto::ring::default_provider());
    ///     let tls = rustls::ClientConfig::builder_with_provider(ring)
    ///         .with_safe_default_protocol_versions()?
    ///         .with_root_certificates(roots)
    ///         .with_no_client_auth();
    ///     Ok(Client::builder(profiles::stripe()).tls(tls).build()?)
    /// }
    /// ```
    pub fn tls(mut self, config: rustls::ClientConfig) -> Self {
        self.pool = self.pool.tls(config);
        self
    }

    /// Whether `http:` URLs may be called. They are refused by default, since
    /// what is sent to a payment gateway is secret.
    pub fn plain_http(mut self, allowed: bool) -> Self {
        self.pool = self.pool.plain_http(allowed);
        self
    }

    /// Adjusts the pool's settings: its queue, how long a connection lives, and
    /// the like.
    pub fn pool(
        mut self,
        adjust: impl FnOnce(PoolBuilder<WireBody>) -> PoolBuilder<WireBody>,
    ) -> Self {
        self.pool = adjust(self.pool);
        self
    }

    /// The client.
    ///
    /// # Errors
    ///
    /// Where a setting makes no sense; the error names it, its value, and what
    /// was expected.
    pub fn build(self) -> Result<Client, BuildError> {
        self.build_over(PoolBuilder::build)
    }

    /// The client over a transport of one's own, a proxy above all: `build` makes
    /// the pool, usually with [`PoolBuilder::build_over`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tollway::{BuildError, Client, profiles};
    /// use tollway::pool::connect::Tcp;
    ///
    /// fn client() -> Result<Client, BuildError> {
    ///     // With the feature `proxy`: connect::Proxy::from_env(tcp), in its place.
    ///     let tcp = Tcp::new(Duration::from_secs(10));
    ///     Client::builder(profiles::stripe()).build_over(|pool| pool.build_over(tcp))
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`build`](Self::build), and those of `build`.
    pub fn build_over(
        self,
        build: impl FnOnce(PoolBuilder<WireBody>) -> Result<Pool<WireBody>, InvalidPool>,
    ) -> Result<Client, BuildError> {
        let Self {
            profile,
            shared_limits,
            pool,
        } = self;
        check_times(&profile)?;
        let rules = profile.rules;
        rules
            .check()
            .map_err(|error| BuildError::new("rules", error))?;
        let limits = match shared_limits {
            Some(limits) => limits,
            None => profile
                .limits
                .build()
                .map_err(|error| BuildError::new("limits", error))?,
        };
        // A key in a header that the provider doesn't look at makes no repeat
        // safe.
        let key_header = profile.keys.as_ref().and_then(Dialect::header_name);
        let retry = profile
            .retry
            .key_headers(key_header.cloned())
            .build()
            .map_err(|error| BuildError::new("retry", error))?;
        let pool = build(pool).map_err(|error| BuildError::new("pool", error))?;
        let key = IdempotencyKeyLayer::new().echo(true);
        let layers = Layers {
            // Nothing stands between the two but layers of ours.
            deadline: DeadlineLayer::new(profile.deadline).sharing_timers(),
            key: match profile.keys {
                Some(dialect) => key.dialect(dialect),
                // No call has a key, and none is looked for.
                None => key.dialect(Dialect::body_field("").methods([])),
            },
            retry: RetryLayer::new(retry),
            limit: RateLimitLayer::new(limits.clone()),
            attempt_timeout: AttemptTimeoutLayer::new(profile.attempt_timeout),
            classify: ClassifyLayer::new(rules),
        };
        let stack = layers.over(pool.clone());
        Ok(Client {
            provider: profile.name.as_ref().into(),
            spare: Mutex::new(stack.clone()),
            stack,
            limits,
            pool,
        })
    }
}

/// Zero would refuse every call, or give attempts up as they are made, which
/// nobody means.
fn check_times(profile: &Profile) -> Result<(), BuildError> {
    // More limits than anybody writes down, one by one.
    const ATTEMPTS: usize = 64;

    let timeout = &profile.attempt_timeout;
    let attempts = std::iter::successors(Some(Attempt::FIRST), |last| Some(last.next()));
    let of_attempts = attempts
        .take(ATTEMPTS)
        .map(|attempt| timeout.head_of(attempt).min(timeout.body_pause_of(attempt)))
        .min()
        .unwrap_or_default();
    for (setting, time) in [
        ("deadline", profile.deadline),
        ("attempt_timeout", of_attempts),
    ] {
        if time.is_zero() {
            return Err(BuildError::new(
                setting,
                "zero, expected a positive duration",
            ));
        }
    }
    Ok(())
}
