//! The span of a call.

use http::{Request, Response, Uri};
use tollway_core::{Endpoint, Phase, Verdict};
use tracing::Span;
use tracing::field::{Empty, display};

use super::Error;

/// A span for the whole call, with the fields of OpenTelemetry's conventions for
/// HTTP clients. Without a subscriber that wants it, it costs a look at a flag.
pub(super) fn span<B>(provider: &str, request: &Request<B>) -> Span {
    let span = tracing::info_span!(
        target: "tollway::client",
        "call",
        otel.kind = "client",
        tollway.provider = provider,
        http.request.method = %request.method(),
        server.address = Empty,
        server.port = Empty,
        // The template, not the path: that names objects and has no bounds.
        url.template = Empty,
        http.response.status_code = Empty,
        "error.type" = Empty,
        tollway.verdict = Empty,
    );
    if span.is_disabled() {
        return span;
    }
    if let Some(host) = request.uri().host() {
        span.record("server.address", host);
    }
    if let Some(port) = port(request.uri()) {
        span.record("server.port", port);
    }
    if let Some(endpoint) = Endpoint::of(request.extensions()) {
        span.record("url.template", endpoint.template());
    }
    span
}

/// The conventions want the port, whether or not the URL says it.
fn port(uri: &Uri) -> Option<u16> {
    uri.port_u16().or_else(|| match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    })
}

/// Notes the answer that a call ended with.
pub(super) fn answered<B>(span: &Span, response: &Response<B>) {
    if span.is_disabled() {
        return;
    }
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    if status.is_client_error() || status.is_server_error() {
        span.record("error.type", display(status.as_u16()));
    }
    span.record("tollway.verdict", Verdict::of_response(response).as_str());
}

/// Notes the error that a call ended with.
pub(super) fn failed(span: &Span, error: &Error) {
    if span.is_disabled() {
        return;
    }
    let kind = if error.is_timeout() {
        "timeout"
    } else {
        error.phase().map_or("_OTHER", Phase::as_str)
    };
    span.record("error.type", kind);
    span.record("tollway.verdict", error.verdict().as_str());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_told_whether_or_not_the_url_says_it() {
        let port = |uri| port(&Uri::from_static(uri));
        assert_eq!(port("https://pay.example/v1"), Some(443));
        assert_eq!(port("http://pay.example/v1"), Some(80));
        assert_eq!(port("https://pay.example:8443/v1"), Some(8443));
        assert_eq!(port("/v1"), None);
    }
}
