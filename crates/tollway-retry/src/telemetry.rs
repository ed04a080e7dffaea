//! What is told to whoever listens.
//!
//! Attribute names are those of OpenTelemetry's HTTP client conventions where
//! there is one; durations are in seconds, as there.

use std::error::Error;
use std::time::Duration;

use http::{Response, StatusCode};
use tollway_core::{BoxError, Fault, Phase, Verdict};

use crate::story::Stop;

/// The call is tried again: `made` attempts came before.
pub(crate) fn retry<B>(
    made: u32,
    verdict: Verdict,
    delay: Duration,
    outcome: &Result<Response<B>, BoxError>,
) {
    tracing::debug!(
        target: "tollway::retry",
        {
            http.request.resend_count = i64::from(made),
            http.response.status_code = outcome.as_ref().ok().map(|it| number(it.status())),
            "error.type" = outcome.as_ref().err().map(|error| error_type(&**error)),
            tollway.verdict = verdict.as_str(),
            tollway.retry.delay = delay.as_secs_f64(),
        },
        "retrying"
    );
}

/// The call has ended, `made` attempts later, and `stop` is why. `safe` says that
/// it asked for no effect.
pub(crate) fn stop(
    made: u32,
    verdict: Verdict,
    safe: bool,
    stop: Stop,
    status: Option<StatusCode>,
    error: Option<&(dyn Error + 'static)>,
) {
    let resends = made.saturating_sub(1);
    // Somebody has to look such a call up, but not a look-up.
    if verdict == Verdict::Unknown && !safe {
        tracing::warn!(
            target: "tollway::retry",
            {
                http.request.resend_count = i64::from(resends),
                http.response.status_code = status.map(number),
                "error.type" = error.map(error_type),
                tollway.verdict = verdict.as_str(),
                tollway.retry.stop = stop.as_str(),
            },
            "outcome unknown"
        );
    } else {
        tracing::debug!(
            target: "tollway::retry",
            {
                http.request.resend_count = i64::from(resends),
                http.response.status_code = status.map(number),
                "error.type" = error.map(error_type),
                tollway.verdict = verdict.as_str(),
                tollway.retry.stop = stop.as_str(),
            },
            "call ended"
        );
    }
}

/// Signed, as all numbers here: OpenTelemetry knows no others, and
/// tracing-opentelemetry makes texts of those that aren't.
fn number(status: StatusCode) -> i64 {
    status.as_u16().into()
}

/// Where the attempt failed: a handful of names, and never a text that might
/// hold a secret.
fn error_type(error: &(dyn Error + 'static)) -> &'static str {
    Fault::find(error)
        .and_then(Fault::phase)
        .map_or("_OTHER", Phase::as_str)
}
