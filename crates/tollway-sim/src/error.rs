//! What keeps a gateway from starting.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::rule::RuleError;

/// A gateway that couldn't start, or a setting it refused.
#[derive(Debug)]
pub struct SimError(Kind);

#[derive(Debug)]
enum Kind {
    Config {
        field: &'static str,
        value: String,
        expected: String,
    },
    Rule(RuleError),
    Bind(SocketAddr, io::Error),
    Tls(Box<dyn Error + Send + Sync>),
}

impl SimError {
    pub(crate) fn config(
        field: &'static str,
        value: impl fmt::Debug,
        expected: impl Into<String>,
    ) -> Self {
        Self(Kind::Config {
            field,
            value: format!("{value:?}"),
            expected: expected.into(),
        })
    }

    pub(crate) const fn bind(addr: SocketAddr, error: io::Error) -> Self {
        Self(Kind::Bind(addr, error))
    }

    pub(crate) fn tls(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Kind::Tls(error.into()))
    }

    /// Whether a setting was refused.
    #[must_use]
    pub const fn is_config(&self) -> bool {
        matches!(self.0, Kind::Config { .. } | Kind::Rule(_))
    }

    /// Whether the address couldn't be listened on.
    #[must_use]
    pub const fn is_bind(&self) -> bool {
        matches!(self.0, Kind::Bind(..))
    }
}

impl From<RuleError> for SimError {
    fn from(error: RuleError) -> Self {
        Self(Kind::Rule(error))
    }
}

impl fmt::Display for SimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Config {
                field,
                value,
                expected,
            } => {
                write!(
                    f,
                    "bad gateway setting: `{field}` is {value}, expected {expected}"
                )
            }
            Kind::Rule(_) => f.write_str("bad gateway setting: a rule can't be put to use"),
            Kind::Bind(addr, _) => {
                write!(
                    f,
                    "could not listen on {addr}; choose a free address, or port 0"
                )
            }
            Kind::Tls(_) => f.write_str("could not make the gateway's certificate"),
        }
    }
}

impl Error for SimError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Config { .. } => None,
            Kind::Rule(error) => Some(error),
            Kind::Bind(_, error) => Some(error),
            Kind::Tls(error) => Some(&**error),
        }
    }
}
