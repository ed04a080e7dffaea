//! Which host a request goes to.

use std::fmt;

use http::Uri;
use http::uri::{Authority, Scheme};

/// Scheme, host and port, as the pool tells hosts apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    https: bool,
    host: Box<str>,
    port: u16,
}

/// What is wrong with a request's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadUrl {
    Relative,
    Scheme,
    Port,
    Credentials,
}

/// How `uri` spells its host: whether by `https`, and its authority.
pub(crate) fn spelled(uri: &Uri) -> Result<(bool, &Authority), BadUrl> {
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(BadUrl::Relative);
    };
    if *scheme == Scheme::HTTPS {
        Ok((true, authority))
    } else if *scheme == Scheme::HTTP {
        Ok((false, authority))
    } else {
        Err(BadUrl::Scheme)
    }
}

const fn default_port(https: bool) -> u16 {
    if https { 443 } else { 80 }
}

impl Key {
    pub(crate) fn of(uri: &Uri) -> Result<Self, BadUrl> {
        let (https, authority) = spelled(uri)?;
        let (host, port) = (authority.host(), authority.port_u16());
        if authority.as_str().contains('@') {
            return Err(BadUrl::Credentials);
        }
        if host.is_empty() {
            return Err(BadUrl::Relative);
        }
        // `http` takes any text for a port, and says that there is none.
        let written = authority.as_str().get(host.len()..).unwrap_or_default();
        if port.is_none() && !matches!(written, "" | ":") {
            return Err(BadUrl::Port);
        }
        Ok(Self {
            https,
            host: host.to_ascii_lowercase().into(),
            port: port.unwrap_or(default_port(https)),
        })
    }

    pub(crate) fn https(&self) -> bool {
        self.https
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The host as OpenTelemetry has it: an IPv6 address without its brackets.
    pub(crate) fn address(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// As the `Host` header has it: the port only where it isn't the
    /// scheme's own.
    pub(crate) fn authority(&self) -> Option<Authority> {
        if self.port == default_port(self.https) {
            self.host.parse().ok()
        } else {
            format!("{}:{}", self.host, self.port).parse().ok()
        }
    }

    pub(crate) fn scheme(&self) -> Scheme {
        if self.https {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme(), self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use http::Uri;

    use super::{BadUrl, Key};

    fn key(uri: &'static str) -> Key {
        Key::of(&Uri::from_static(uri)).unwrap()
    }

    #[test]
    fn a_host_is_its_scheme_name_and_port_in_any_spelling() {
        let same = |a, b| key(a) == key(b);
        assert!(same(
            "https://API.example.com/a",
            "https://api.Example.com:443/b?c"
        ));
        assert!(same("http://[::1]:8080/", "http://[::1]:8080/x"));
        assert!(same("http://example.com", "http://example.com:80"));
        assert!(same("http://example.com", "http://example.com:/"));
        assert!(!same("https://example.com", "http://example.com:443"));
        assert!(!same("https://example.com", "https://example.com:8443"));
        assert!(!same("https://example.com", "https://example.org"));
    }

    #[test]
    fn the_host_header_has_the_port_only_where_it_must() {
        let authority = |uri| key(uri).authority().unwrap().to_string();
        assert_eq!(authority("https://Example.com:443/"), "example.com");
        assert_eq!(authority("http://example.com:443/"), "example.com:443");
        assert_eq!(authority("https://[::1]:8443/"), "[::1]:8443");
    }

    #[test]
    fn an_address_has_no_brackets() {
        assert_eq!(key("https://[::1]:8443/").address(), "::1");
        assert_eq!(key("https://Example.com/").address(), "example.com");
    }

    #[test]
    fn what_names_no_host_is_refused() {
        let bad = |uri| Key::of(&Uri::from_static(uri)).unwrap_err();
        assert_eq!(bad("/v1/charges"), BadUrl::Relative);
        assert_eq!(bad("example.com:443"), BadUrl::Relative);
        assert_eq!(bad("ftp://example.com/"), BadUrl::Scheme);
        assert_eq!(bad("https://example.com:99999/"), BadUrl::Port);
        assert_eq!(bad("https://[::1]:https/"), BadUrl::Port);
        assert_eq!(bad("https://user:secret@example.com/"), BadUrl::Credentials);
    }
}
