//! Which host a request goes to.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};

use http::Uri;
use http::uri::{Authority, Scheme};

/// Scheme, host and port, as the pool tells hosts apart.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    https: bool,
    host: Box<str>,
    port: u16,
}

/// The same, still inside of a request's `Uri`: a look-up allocates nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRef<'a> {
    pub(crate) https: bool,
    /// In any case, and an IPv6 address in its brackets.
    host: &'a str,
    port: u16,
}

/// What is wrong with a request's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadUrl {
    Relative,
    Scheme,
    Credentials,
}

impl<'a> KeyRef<'a> {
    pub(crate) fn of(uri: &'a Uri) -> Result<Self, BadUrl> {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(BadUrl::Relative);
        };
        let https = if *scheme == Scheme::HTTPS {
            true
        } else if *scheme == Scheme::HTTP {
            false
        } else {
            return Err(BadUrl::Scheme);
        };
        if authority.as_str().contains('@') {
            return Err(BadUrl::Credentials);
        }
        if authority.host().is_empty() {
            return Err(BadUrl::Relative);
        }
        let port = authority.port_u16().unwrap_or(default_port(https));
        Ok(Self {
            https,
            host: authority.host(),
            port,
        })
    }

    pub(crate) fn to_key(self) -> Key {
        Key {
            https: self.https,
            host: self.host.to_ascii_lowercase().into(),
            port: self.port,
        }
    }
}

const fn default_port(https: bool) -> u16 {
    if https { 443 } else { 80 }
}

impl Key {
    pub(crate) fn https(&self) -> bool {
        self.https
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
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

/// What `Key` and `KeyRef` have in common, so that a map of the one can be
/// asked for the other.
pub(crate) trait AsKey {
    fn as_key(&self) -> KeyRef<'_>;
}

impl AsKey for Key {
    fn as_key(&self) -> KeyRef<'_> {
        KeyRef {
            https: self.https,
            host: &self.host,
            port: self.port,
        }
    }
}

impl AsKey for KeyRef<'_> {
    fn as_key(&self) -> KeyRef<'_> {
        *self
    }
}

impl PartialEq for KeyRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.port == other.port
            && self.https == other.https
            && self.host.eq_ignore_ascii_case(other.host)
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Hosts are compared without regard to case, so they are hashed so.
        let mut folded = [0; 64];
        for chunk in self.host.as_bytes().chunks(folded.len()) {
            let folded = &mut folded[..chunk.len()];
            folded.copy_from_slice(chunk);
            folded.make_ascii_lowercase();
            state.write(folded);
        }
        state.write_u32(u32::from(self.port) << 1 | u32::from(self.https));
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_key() == other.as_key()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_key().hash(state);
    }
}

impl PartialEq for dyn AsKey + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.as_key() == other.as_key()
    }
}

impl Eq for dyn AsKey + '_ {}

impl Hash for dyn AsKey + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_key().hash(state);
    }
}

impl<'a> Borrow<dyn AsKey + 'a> for Key {
    fn borrow(&self) -> &(dyn AsKey + 'a) {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use http::Uri;

    use super::{AsKey, BadUrl, KeyRef};

    fn found(known: &'static str, asked: &'static str) -> bool {
        let (known, asked) = (Uri::from_static(known), Uri::from_static(asked));
        let set = HashSet::from([KeyRef::of(&known).unwrap().to_key()]);
        set.contains(&KeyRef::of(&asked).unwrap() as &dyn AsKey)
    }

    #[test]
    fn a_host_is_its_scheme_name_and_port_in_any_spelling() {
        assert!(found(
            "https://API.example.com/a",
            "https://api.Example.com:443/b?c"
        ));
        assert!(found("http://[::1]:8080/", "http://[::1]:8080/x"));
        assert!(found("http://example.com", "http://example.com:80"));
        assert!(!found("https://example.com", "http://example.com:443"));
        assert!(!found("https://example.com", "https://example.com:8443"));
        assert!(!found("https://example.com", "https://example.org"));
    }

    #[test]
    fn the_host_header_has_the_port_only_where_it_must() {
        let authority = |uri| {
            let uri = Uri::from_static(uri);
            let key = KeyRef::of(&uri).unwrap().to_key();
            key.authority().unwrap().to_string()
        };
        assert_eq!(authority("https://Example.com:443/"), "example.com");
        assert_eq!(authority("http://example.com:443/"), "example.com:443");
        assert_eq!(authority("https://[::1]:8443/"), "[::1]:8443");
    }

    #[test]
    fn what_names_no_host_is_refused() {
        let bad = |uri| KeyRef::of(&Uri::from_static(uri)).unwrap_err();
        assert_eq!(bad("/v1/charges"), BadUrl::Relative);
        assert_eq!(bad("example.com:443"), BadUrl::Relative);
        assert_eq!(bad("ftp://example.com/"), BadUrl::Scheme);
        assert_eq!(bad("https://user:secret@example.com/"), BadUrl::Credentials);
    }
}
