//! Where a request says that it goes, as each protocol wants it.

use http::header::{CONTENT_LENGTH, Entry, HOST, PROXY_AUTHORIZATION};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Uri, Version};
use http_body::Body;

use crate::connect::ProxyAuth;
use crate::host::Host;
use crate::key::Key;

/// HTTP/1.1 wants the path in its first line, and the host in a header. A
/// proxy that passes plain HTTP on wants the whole URL. The version is the
/// connection's: that of a request which came in over HTTP/3 hyper would take for
/// a bug, and to one of HTTP/1.0 it gives no body whose size it doesn't know.
pub(crate) fn address_h1<B>(request: &mut Request<B>, host: &Host<B>, proxied: Option<&ProxyAuth>) {
    if let Some(ProxyAuth(auth)) = proxied {
        address_proxy(request, host, auth.as_ref());
    } else if request.uri().scheme().is_some() {
        let parts = std::mem::take(request.uri_mut()).into_parts();
        if let Some(path) = parts.path_and_query {
            *request.uri_mut() = path.into();
        }
    }
    *request.version_mut() = Version::HTTP_11;
    if let Entry::Vacant(vacant) = request.headers_mut().entry(HOST) {
        vacant.insert(host.header.clone());
    }
}

/// Says of a body that is empty that it is, where the method lets expect one
/// (RFC 9110, 8.6): some servers answer 411 otherwise. hyper says so over HTTP/2
/// only. A `Transfer-Encoding` it takes away from such a request.
pub(crate) fn tell_empty<B: Body>(request: &mut Request<B>) {
    if matches!(
        *request.method(),
        Method::POST | Method::PUT | Method::PATCH
    ) && request.body().is_end_stream()
        && let Entry::Vacant(vacant) = request.headers_mut().entry(CONTENT_LENGTH)
    {
        vacant.insert(HeaderValue::from_static("0"));
    }
}

#[cold]
fn address_proxy<B>(request: &mut Request<B>, host: &Host<B>, auth: Option<&HeaderValue>) {
    restore_url(request, host);
    if let Some(auth) = auth {
        let headers = request.headers_mut();
        headers.insert(PROXY_AUTHORIZATION, auth.clone());
    }
}

/// Makes a path a URL again, where it has been on an HTTP/1.1 connection that
/// died.
fn restore_url<B>(request: &mut Request<B>, host: &Host<B>) {
    if request.uri().scheme().is_none() {
        let path = request.uri().path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = host.absolute(path);
    }
}

/// HTTP/2 wants the whole URL, and no header for the host. The headers that
/// are about an HTTP/1.1 connection are removed by hyper.
pub(crate) fn address_h2<B>(request: &mut Request<B>, host: &Host<B>) {
    let authority = request.headers_mut().remove(HOST);
    restore_url(request, host);
    // `https://api.example.com?a=b`: HTTP/1.1 has the path where it is written.
    if let Some(path) = request.uri().path_and_query()
        && path.as_str().starts_with('?')
    {
        add_slash(request);
    }
    // A host of the caller's choice stays their choice.
    if let Some(authority) = authority
        && authority != host.header
        && let Ok(authority) = http::uri::Authority::try_from(authority.as_bytes())
    {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.authority = Some(authority);
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
}

/// A path begins with a slash (RFC 9113, 8.3.1).
#[cold]
fn add_slash<B>(request: &mut Request<B>) {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    // As it is displayed, it does.
    let path = parts.path_and_query.map(|path| path.to_string());
    parts.path_and_query = path.and_then(|path| path.try_into().ok());
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// Makes a host of the caller's choice a header again, where HTTP/2 has put it
/// into the URL of a request that comes back unsent: the next connection may be
/// an HTTP/1.1 one.
#[cold]
pub(crate) fn restore_host<B>(request: &mut Request<B>, host: &Host<B>) {
    if let Some(authority) = request.uri().authority()
        && Key::of(request.uri()).as_ref() != Ok(&host.key)
        && let Ok(header) = HeaderValue::from_str(authority.as_str())
    {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
        restore_url(request, host);
        request.headers_mut().insert(HOST, header);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host<()> {
        let key = Key::of(&Uri::from_static("https://api.example.com/")).unwrap();
        Host::unconnected(key).unwrap()
    }

    #[test]
    fn a_host_of_the_callers_choice_survives_any_change_of_protocol() {
        let host = host();
        let mut request = Request::get("https://API.example.com:443/v1?a=b")
            .header(HOST, "other.example.com")
            .body(())
            .unwrap();
        for _ in 0..2 {
            address_h2(&mut request, &host);
            assert_eq!(request.uri(), "https://other.example.com/v1?a=b");
            assert!(!request.headers().contains_key(HOST));
            restore_host(&mut request, &host);
            address_h1(&mut request, &host, None);
            assert_eq!(request.uri(), "/v1?a=b");
            assert_eq!(request.headers()[HOST], "other.example.com");
            restore_host(&mut request, &host);
        }
    }

    #[test]
    fn the_host_of_the_url_is_no_choice() {
        let host = host();
        let mut request = Request::get("https://API.example.com:443/")
            .body(())
            .unwrap();
        address_h2(&mut request, &host);
        restore_host(&mut request, &host);
        address_h1(&mut request, &host, None);
        assert_eq!(request.headers()[HOST], "api.example.com");
    }
}
