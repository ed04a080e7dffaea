//! The facts of five providers.
//!
//! Numbers marked *(docs)* come from the provider's public documentation, the
//! others, marked *(ours)*, are our choice where the provider is silent. Every
//! field of a [`Profile`] can be overridden.

use std::time::Duration;

use http::{HeaderName, StatusCode};
use tollway_core::{BodyRule, Endpoint, Rules, Scope, Test, Verdict};
use tollway_idempotency::Dialect;
use tollway_limit::{Key, Limits, LimitsBuilder, Quota, Shape};
use tollway_timeout::AttemptTimeout;

use super::Profile;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Payrix.
///
/// - Quota: 1000 requests in any 10 s on each path *(docs)*, whatever the
///   method, and a block of 10 s for whoever exceeds it *(docs)*. All paths
///   below one resource (`/txns`, `/txns/1`) count together *(ours: stricter
///   than the documentation, never looser)*. In burst shape, since the
///   documented rule is an exact one.
/// - A 429 says nothing of the block's length, so the profile does *(docs)*.
/// - No idempotency key *(docs: none)*: a request of unknown outcome is returned
///   as such, for the caller to look up by its own reference.
#[must_use]
pub fn payrix() -> Profile {
    let block = Verdict::NotExecuted {
        retry_after: Some(seconds(10)),
        // The one with the penalty, which here counts by path and not by
        // endpoint.
        scope: Scope::Unspecified,
    };
    let resource = Key::computed("resource", |call| {
        let first = call.path().trim_start_matches('/').split('/').next();
        Some(first.unwrap_or_default().into())
    });
    let quota = Quota::new(1000, seconds(10))
        .penalty(seconds(10))
        .shape(Shape::Burst);
    let mut profile = Profile::new("payrix");
    profile.limits = Limits::builder().keyed(resource, quota);
    profile.rules = Rules::new().body(
        BodyRule::new(
            429..=429,
            "errors.0.errorCode",
            Test::Is("C_RATE_LIMIT_EXCEEDED_TEMP_BLOCK".into()),
        )
        .means(block),
    );
    profile
}

/// Stripe, live mode.
///
/// - Quotas *(docs)*: 100 a second for the account; 25 a second for each
///   endpoint; 20 for reads and for writes of files; 20 for searches; 15 payouts
///   a second, 30 at a time; 1000 updates an hour of each payment intent; for
///   each subscription 10 new invoices a minute and 20 a day, and 200 updates an
///   hour (the documented limit is on changes of quantity; *ours* counts every
///   update). Those of one object may be used up at once, the others are spread
///   evenly.
/// - Endpoints that most integrations call are known by their paths. Calls of
///   all others share one quota of 25 a second *(ours: stricter than the
///   documentation, never looser)*, until they are added with
///   [`known_endpoints`](LimitsBuilder::known_endpoints) or a request carries
///   its `Endpoint`.
/// - An invoice names its subscription in the body, which a limiter doesn't
///   read: put a [`Subscription`] into the request's extensions, or new invoices
///   are limited by their endpoint alone.
/// - `Stripe-Rate-Limited-Reason` says which limit was hit *(docs)*;
///   `lock_timeout` without it is a lock on the object, which slows nothing else
///   *(docs)*. `Stripe-Should-Retry` overrides *(official SDKs)*. A 409 is
///   retried *(official SDKs)*.
/// - `Idempotency-Key` on every POST, and on DELETE in version 2 *(docs)*, alive
///   for 24 h *(docs)*.
/// - 80 s for a call *(the official SDKs' timeout)*, 30 s for an attempt
///   *(ours)*.
#[must_use]
pub fn stripe() -> Profile {
    stripe_account(Quota::per_second(100))
}

/// Stripe, sandbox: as [`stripe`], with 25 a second for the account *(docs)*.
#[must_use]
pub fn stripe_sandbox() -> Profile {
    stripe_account(Quota::per_second(25))
}

fn stripe_account(account: Quota) -> Profile {
    let reason = HeaderName::from_static("stripe-rate-limited-reason");
    let mut profile = Profile::new("stripe");
    profile.limits = stripe_limits(account);
    profile.rules = Rules::new()
        .status(StatusCode::CONFLICT, Verdict::Unknown)
        .reason_header(reason.clone())
        .should_retry_header(HeaderName::from_static("stripe-should-retry"))
        .body(
            BodyRule::new(429..=429, "error.code", Test::Is("lock_timeout".into()))
                .unless_header(reason)
                .means(Verdict::NO_EFFECT),
        );
    profile.keys = Some(stripe_keys());
    profile.deadline = seconds(80);
    profile
}

fn stripe_keys() -> Dialect {
    let endpoints = [Endpoint::post("/{*path}"), Endpoint::delete("/v2/{*path}")];
    // Two methods, one template each: there is nothing to overlap.
    Dialect::default().endpoints(endpoints).unwrap_or_default()
}

fn stripe_limits(account: Quota) -> LimitsBuilder {
    let files = "/v1/files";
    let file = "/v1/files/{id}";
    let search = |resource: &str| Endpoint::get(format!("/v1/{resource}/search"));
    let searches = [
        "charges",
        "customers",
        "invoices",
        "payment_intents",
        "prices",
        "products",
        "subscriptions",
    ];
    let subscription_invoices = Key::computed("subscription", |call| {
        // The invoice names its subscription in the body, which a limiter
        // doesn't read; whoever creates invoices says it.
        call.extension::<Subscription>()
            .map(|subscription| subscription.0.as_str().into())
    });
    Limits::builder()
        .every_call(account)
        .each_endpoint(Quota::per_second(25))
        .known_endpoints(known_to_stripe())
        .endpoints(
            [Endpoint::get(files), Endpoint::get(file)],
            Quota::per_second(20),
        )
        .endpoint(Endpoint::post(files), Quota::per_second(20))
        .endpoints(searches.map(search), Quota::per_second(20))
        .endpoint(
            Endpoint::post("/v1/payouts"),
            Quota::per_second(15).in_flight(30),
        )
        .keyed(
            Key::param("id").on(Endpoint::post("/v1/payment_intents/{id}")),
            // Evenly over an hour, the second update would wait 3.6 s.
            Quota::per_hour(1000).shape(Shape::Burst),
        )
        .keyed(
            Key::param("id").on(Endpoint::post("/v1/subscriptions/{id}")),
            Quota::per_hour(200).shape(Shape::Burst),
        )
        .keyed(
            subscription_invoices
                .clone()
                .on(Endpoint::post("/v1/invoices")),
            Quota::per_minute(10).shape(Shape::Burst),
        )
        .keyed(
            subscription_invoices.on(Endpoint::post("/v1/invoices")),
            Quota::per_day(20).shape(Shape::Burst),
        )
}

/// The subscription that an invoice is made for, in the extensions of a
/// `POST /v1/invoices`: Stripe limits new invoices for each subscription, and
/// names it only in the body.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subscription(pub String);

/// The endpoints that most integrations call. Those that aren't here share one
/// quota of 25 a second, until they are added with
/// [`LimitsBuilder::known_endpoints`].
fn known_to_stripe() -> Vec<Endpoint> {
    let resources = [
        "balance_transactions",
        "charges",
        "customers",
        "disputes",
        "invoices",
        "payment_intents",
        "payment_methods",
        "payouts",
        "refunds",
        "setup_intents",
        "subscriptions",
        "transfers",
    ];
    let of = |resource: &str| {
        let all = format!("/v1/{resource}");
        let one = format!("/v1/{resource}/{{id}}");
        [
            Endpoint::get(all.clone()),
            Endpoint::post(all),
            Endpoint::get(one.clone()),
            Endpoint::post(one),
        ]
    };
    let actions = ["confirm", "capture", "cancel"]
        .map(|action| Endpoint::post(format!("/v1/payment_intents/{{id}}/{action}")));
    resources.into_iter().flat_map(of).chain(actions).collect()
}

/// Modern Treasury.
///
/// - Retried: 429, 500, 502, 503 and 504, and no other status *(docs)*.
/// - 60 s for an attempt, which is when its own servers give up *(docs)*; 180 s
///   for a call *(ours: an attempt and one retry that both take their time, and
///   the back-off)*.
/// - `Idempotency-Key` *(docs)*, taken to be remembered for 24 h *(ours)*.
/// - HTTP/2 and TLS 1.3 wherever possible *(docs)*; idle connections are closed
///   after 15 s, inside its 2 to 30 s *(docs)*.
/// - No documented rate: 100 a second, as one stays polite *(ours)*.
/// - A 409 says that the same key is in use: the outcome is unknown *(ours)*.
#[must_use]
pub fn modern_treasury() -> Profile {
    let mut profile = Profile::new("modern-treasury");
    profile.limits = Limits::builder().every_call(Quota::per_second(100));
    profile.rules = Rules::new()
        .status(StatusCode::CONFLICT, Verdict::Unknown)
        .retry_only([429, 500, 502, 503, 504]);
    profile.keys = Some(Dialect::default());
    profile.deadline = seconds(180);
    profile.attempt_timeout = AttemptTimeout::new(seconds(60));
    profile
}

/// Savvy Connect Direct.
///
/// - 200 with a `responseCode` other than 0 is a final refusal *(docs)*. A 200
///   without a readable one is of unknown outcome *(ours)*, and so is any other
///   2xx, which is no success here *(docs)*.
/// - A 429 never reached the core; its delay stands in a text *(docs)*.
/// - The key is the body's field `RequestId` *(docs)*, taken to be remembered
///   for 24 h *(ours)*; the caller puts it there, and calls without it are
///   refused.
/// - 90 s for an attempt, and more for later ones *(docs)*: 120 s *(ours)*;
///   300 s for a call *(ours)*.
/// - No documented rate: 100 a second, as one stays polite *(ours)*.
#[must_use]
pub fn savvy() -> Profile {
    let mut profile = Profile::new("savvy");
    profile.limits = Limits::builder().every_call(Quota::per_second(100));
    profile.rules = Rules::new()
        .body(
            BodyRule::new(200..=200, "responseCode", Test::IsNot("0".into()))
                .means(Verdict::Rejected),
        )
        .body(BodyRule::new(201..=299, "responseCode", Test::Present))
        .body(BodyRule::new(200..=299, "responseCode", Test::Missing))
        .body(BodyRule::new(429..=429, "message", Test::Present).delay_after("Try again in"));
    profile.keys = Some(Dialect::body_field("RequestId"));
    profile.deadline = seconds(300);
    profile.attempt_timeout = AttemptTimeout::new(seconds(90)).then(seconds(120));
    profile
}

/// Payalo.
///
/// - 50 status checks a second, `GET /payments/{reference}/status` *(docs)*; 20
///   calls in flight *(docs: 10 to 20)*.
/// - The key is the body's field `merchantReference` *(docs)*. A 409 that names
///   the first use of it means: done before *(ours)*. It is a success where an
///   earlier attempt of the same call may have been that first use. Where none
///   may, somebody else used the reference, or this program before it was
///   restarted, and whether it was for the same payment is not said: then the
///   outcome is unknown, to be looked up by the reference *(ours)*. A decline
///   speaks for itself alone, and not for an earlier attempt that may be late.
/// - 30 s for an attempt *(docs)*.
/// - 20 connections, as many as calls in flight.
#[must_use]
pub fn payalo() -> Profile {
    let mut profile = Profile::new("payalo");
    profile.limits = Limits::builder()
        .every_call(Quota::concurrent(20))
        .endpoint(
            Endpoint::get("/payments/{reference}/status"),
            Quota::per_second(50),
        );
    profile.rules = Rules::new().body(
        BodyRule::new(
            409..=409,
            "code",
            Test::Is("DUPLICATE_MERCHANT_REFERENCE".into()),
        )
        .done_before(),
    );
    profile.keys = Some(Dialect::body_field("merchantReference").refuses_repeats());
    profile
}
