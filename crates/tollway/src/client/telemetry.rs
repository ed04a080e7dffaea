//! The span of a call.

use std::fmt;

use http::{Method, Request, Response, Uri, Version};
use tollway_core::{Endpoint, Phase, Verdict};
use tollway_retry::Attempts;
use tracing::Span;
use tracing::field::{Empty, display};

use super::Error;

/// A span for the whole call, with the fields of OpenTelemetry's conventions for
/// HTTP clients. Without a subscriber that wants it, it costs a look at a flag.
pub(super) fn span<B>(provider: &str, request: &Request<B>) -> Span {
    let span = tracing::info_span!(
        target: "tollway::client",
        "call",
        // What tracing-opentelemetry calls it.
        otel.name = %Name::of(request),
        otel.kind = "client",
        otel.status_code = Empty,
        otel.status_description = Empty,
        tollway.provider = provider,
        http.request.method = known(request.method()).unwrap_or("_OTHER"),
        http.request.method_original = Empty,
        http.request.resend_count = Empty,
        server.address = Empty,
        server.port = Empty,
        // The template, not the path: that names objects and has no bounds.
        url.template = Empty,
        network.protocol.version = Empty,
        http.response.status_code = Empty,
        "error.type" = Empty,
        tollway.verdict = Empty,
    );
    if span.is_disabled() {
        return span;
    }
    if known(request.method()).is_none() {
        span.record("http.request.method_original", request.method().as_str());
    }
    if let Some(host) = request.uri().host() {
        span.record("server.address", &*address(host));
    }
    // Numbers are signed throughout: OpenTelemetry knows no others, and
    // tracing-opentelemetry makes texts of those that aren't.
    if let Some(port) = port(request.uri()) {
        span.record("server.port", i64::from(port));
    }
    if let Some(endpoint) = Endpoint::of(request.extensions()) {
        span.record("url.template", endpoint.template());
    }
    span
}

/// The name of a span: the method, and the template where it is known, so that
/// there are not more names than endpoints.
struct Name<'a> {
    method: &'a str,
    template: Option<&'a str>,
}

impl<'a> Name<'a> {
    fn of<B>(request: &'a Request<B>) -> Self {
        Self {
            method: known(request.method()).unwrap_or("HTTP"),
            template: Endpoint::of(request.extensions()).map(Endpoint::template),
        }
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.method)?;
        self.template
            .map_or(Ok(()), |template| write!(f, " {template}"))
    }
}

/// The method's name, if it is one that the conventions know.
fn known(method: &Method) -> Option<&str> {
    match *method {
        Method::GET
        | Method::HEAD
        | Method::POST
        | Method::PUT
        | Method::DELETE
        | Method::CONNECT
        | Method::OPTIONS
        | Method::TRACE
        | Method::PATCH => Some(method.as_str()),
        _ => None,
    }
}

/// As the conventions write it.
fn version(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        _ => None,
    }
}

/// As the pool has it, in one spelling: a name in lower case, an IPv6 address
/// without its brackets.
fn address(host: &str) -> String {
    host.trim_matches(['[', ']']).to_ascii_lowercase()
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
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if let Some(version) = version(response.version()) {
        span.record("network.protocol.version", version);
    }
    resent(span, Attempts::of(response.extensions()));
    if status.is_client_error() || status.is_server_error() {
        // The status says it all, so that there is no description.
        span.record("otel.status_code", "ERROR");
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
    resent(span, error.attempts());
    span.record("otel.status_code", "ERROR");
    span.record(
        "otel.status_description",
        display(format_args!("{error:#}")),
    );
    span.record("error.type", kind);
    span.record("tollway.verdict", error.verdict().as_str());
}

/// Notes that a call was dropped before it had ended. Whether its request was sent,
/// nobody can say any more.
pub(super) fn dropped(span: &Span) {
    if span.is_disabled() {
        return;
    }
    span.record("otel.status_code", "ERROR");
    span.record("error.type", "dropped");
    span.record("tollway.verdict", Verdict::Unknown.as_str());
}

/// The conventions want the number only where there is one.
fn resent(span: &Span, attempts: Option<&Attempts>) {
    let resends = attempts.map_or(0, |attempts| attempts.made().saturating_sub(1));
    if resends > 0 {
        span.record("http.request.resend_count", i64::from(resends));
    }
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

    #[test]
    fn a_host_has_one_spelling() {
        assert_eq!(address("Pay.example"), "pay.example");
        assert_eq!(address("[::1]"), "::1");
        assert_eq!(address("127.0.0.1"), "127.0.0.1");
    }

    #[test]
    fn there_are_not_more_names_than_methods_and_endpoints() {
        let name = |method: &str, endpoint: Option<Endpoint>| {
            let mut request = Request::new(());
            *request.method_mut() = method.parse().unwrap();
            *request.uri_mut() = Uri::from_static("https://pay.example/v1/payouts/po_1");
            if let Some(endpoint) = endpoint {
                request.extensions_mut().insert(endpoint);
            }
            Name::of(&request).to_string()
        };
        let payout = || Some(Endpoint::get("/v1/payouts/{id}"));
        assert_eq!(name("GET", payout()), "GET /v1/payouts/{id}");
        assert_eq!(name("GET", None), "GET");
        assert_eq!(name("MAKE-UP", None), "HTTP");
    }
}
