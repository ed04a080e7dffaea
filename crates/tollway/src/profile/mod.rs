//! One provider's facts, as data.

use std::borrow::Cow;
use std::time::Duration;

use tollway_core::Rules;
use tollway_idempotency::Dialect;
use tollway_limit::{Limits, LimitsBuilder, Quota};
use tollway_pool::Protocol;
use tollway_retry::RetryPolicyBuilder;
use tollway_timeout::AttemptTimeout;

pub mod profiles;

/// One provider's facts, as data.
///
/// [`profiles`] has five. Each field can be changed, here or by a method of
/// [`ClientBuilder`](crate::ClientBuilder), whose
/// [`pool`](crate::ClientBuilder::pool) has what concerns connections. A profile
/// for another provider starts from [`Profile::new`].
///
/// Clients that are built from clones of one profile have quotas of their own,
/// and share the retry budget that `retry` holds;
/// [`share_limits`](crate::ClientBuilder::share_limits) has them share the quotas too.
///
/// ```
/// use std::time::Duration;
/// use tollway::core::Endpoint;
/// use tollway::limit::Quota;
/// use tollway::profiles;
///
/// let mut profile = profiles::stripe();
/// profile.deadline = Duration::from_secs(20);
/// // Beside the quotas that it has already.
/// profile.limits = profile
///     .limits
///     .endpoint(Endpoint::post("/v1/refunds"), Quota::per_second(5));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Profile {
    /// The provider's name, for telemetry.
    pub name: Cow<'static, str>,
    /// Its quotas. A method of the builder adds one.
    pub limits: LimitsBuilder,
    /// What its answers mean.
    pub rules: Rules,
    /// Where it looks for an idempotency key; `None` where it honours none.
    pub keys: Option<Dialect>,
    /// How failures are retried.
    pub retry: RetryPolicyBuilder,
    /// How long a call may take, everything included.
    pub deadline: Duration,
    /// How long one attempt may take.
    pub attempt_timeout: AttemptTimeout,
    /// Which HTTP it speaks.
    pub protocol: Protocol,
    /// The most connections to one host. Further calls wait for one of them, with
    /// the permits that they have. Over HTTP/1.1 they wait for the permit instead
    /// where a quota has as many [in flight](tollway_limit::Quota::in_flight).
    pub max_connections: usize,
    /// How long a connection may be idle before it is closed.
    pub idle_timeout: Duration,
}

impl Profile {
    /// A provider of which nothing is known: no quota but what its answers ask
    /// for, which holds for all calls (`Retry-After`, and what its rate-limit
    /// headers say is left: one with a limit of its own for some endpoints needs a
    /// quota for them); the verdict of its statuses; no idempotency key, so that
    /// nothing of unknown outcome is repeated but idempotent methods.
    ///
    /// The defaults: 60 s for a call and 30 s for an attempt, as most payment
    /// SDKs have between 30 and 80 s; 20 connections a host, enough for some
    /// hundred calls a second at 100 ms each; 15 s idle, inside the 2 to 30 s
    /// that Modern Treasury asks for.
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::{HeaderName, StatusCode};
    /// use tollway::core::{BodyRule, Endpoint, Rules, Test, Verdict};
    /// use tollway::idempotency::Dialect;
    /// use tollway::limit::{Limits, Quota};
    /// use tollway::{BuildError, Client, Profile};
    ///
    /// fn acme() -> Profile {
    ///     let mut profile = Profile::new("acme");
    ///     profile.limits = Limits::builder()
    ///         .every_call(Quota::per_minute(600))
    ///         .endpoint(Endpoint::post("/payouts"), Quota::per_second(5).in_flight(10));
    ///     // 200 with `"status":"failed"` is a refusal; a 409 says that the key is in
    ///     // use right now.
    ///     let failed = BodyRule::new(200..=200, "status", Test::Is("failed".into()));
    ///     profile.rules = Rules::new()
    ///         .status(StatusCode::CONFLICT, Verdict::Unknown)
    ///         .body(failed.means(Verdict::Rejected));
    ///     let header = HeaderName::from_static("x-request-key");
    ///     profile.keys = Some(Dialect::header(header).life(Duration::from_secs(3600)));
    ///     profile.deadline = Duration::from_secs(30);
    ///     profile
    /// }
    ///
    /// fn client() -> Result<Client, BuildError> {
    ///     Client::builder(acme()).build()
    /// }
    /// # client().unwrap();
    /// ```
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            limits: Limits::builder().every_call(Quota::unlimited()),
            rules: Rules::new(),
            keys: None,
            retry: tollway_retry::RetryPolicy::builder(),
            deadline: Duration::from_secs(60),
            attempt_timeout: AttemptTimeout::new(Duration::from_secs(30)),
            protocol: Protocol::Auto,
            max_connections: 20,
            idle_timeout: Duration::from_secs(15),
        }
    }
}
