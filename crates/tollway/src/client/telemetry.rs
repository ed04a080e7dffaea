//! The span of a call.

use http::{Request, Response};
use tollway_core::{Endpoint, Verdict};
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
    if let Some(port) = request.uri().port_u16() {
        span.record("server.port", port);
    }
    if let Some(endpoint) = Endpoint::of(request.extensions()) {
        span.record("url.template", endpoint.template());
    }
    span
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
        "_OTHER"
    };
    span.record("error.type", kind);
    span.record("tollway.verdict", error.verdict().as_str());
}
