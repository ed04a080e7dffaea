//! Where a request says that it goes, as each protocol wants it.

use http::header::{Entry, HOST, PROXY_AUTHORIZATION};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Version};

use crate::connect::ProxyAuth;
use crate::host::Host;

/// HTTP/1.1 wants the path in its first line, and the host in a header. A
/// proxy that passes plain HTTP on wants the whole URL. Versions that it can't
/// say, such as that of a request which came in over HTTP/3, hyper would take
/// for a bug.
pub(crate) fn address_h1<B>(request: &mut Request<B>, host: &Host<B>, proxied: Option<&ProxyAuth>) {
    if let Some(ProxyAuth(auth)) = proxied {
        address_proxy(request, host, auth.as_ref());
    } else if request.uri().scheme().is_some() {
        let parts = std::mem::take(request.uri_mut()).into_parts();
        if let Some(path) = parts.path_and_query {
            *request.uri_mut() = path.into();
        }
    }
    if request.version() != Version::HTTP_10 {
        *request.version_mut() = Version::HTTP_11;
    }
    if let Entry::Vacant(vacant) = request.headers_mut().entry(HOST) {
        vacant.insert(host.header.clone());
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
    // A host of the caller's choice stays their choice.
    if let Some(authority) = authority
        && authority != host.header
        && let Ok(authority) = http::uri::Authority::try_from(authority.as_bytes())
    {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.authority = Some(authority);
        *request.uri_mut() = http::Uri::from_parts(parts).unwrap_or_default();
    }
}
