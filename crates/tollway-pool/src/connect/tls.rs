//! TLS.

use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, ClientConfig, Error};
use rustls_platform_verifier::BuilderVerifierExt;

use crate::builder::InvalidPool;
use crate::failure::{OpenError, find, find_io};

/// The platform's roots, TLS 1.3 and 1.2, session resumption.
pub(crate) fn platform_tls() -> Result<ClientConfig, InvalidPool> {
    let refused = |error: Error| {
        InvalidPool::new(
            "tls",
            "left to the platform, whose roots can't be loaded",
            "the package ca-certificates to be installed, or a configuration with roots of your own",
        )
        .caused_by(error)
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_platform_verifier()
        .map_err(refused)?;
    Ok(builder.with_no_client_auth())
}

/// What went wrong, for somebody who doesn't know TLS.
pub(crate) fn explain_tls(host: &str, error: &OpenError) -> String {
    match find::<Error>(error) {
        _ if refuses_client(error) => client_refused(host),
        Some(Error::InvalidCertificate(error)) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("the certificate of {host} has expired: or is this machine's clock wrong?")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!(
                    "the certificate of {host} is not valid yet: is this machine's clock wrong?"
                )
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("the certificate that {host} presents is another host's")
            }
            CertificateError::UnknownIssuer => format!(
                "the certificate of {host} is issued by nobody whom this machine trusts: a test \
                 server, a company's own authority, or an interception; trust its root with tls()"
            ),
            CertificateError::Revoked => format!("the certificate of {host} has been revoked"),
            _ => format!("the certificate of {host} is not accepted"),
        },
        Some(Error::InvalidMessage(_)) => format!(
            "{host} answered the TLS handshake with something that is not TLS: does the port \
             speak plain http?"
        ),
        Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            format!("{host} doesn't speak the version of HTTP that protocol() asks for")
        }
        Some(Error::PeerIncompatible(_))
        | Some(Error::AlertReceived(AlertDescription::ProtocolVersion)) => {
            format!("{host} has no TLS version or cipher in common with this client")
        }
        _ => match find_io(error).map(io::Error::kind) {
            Some(
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe,
            ) => format!(
                "{host} closed the connection during the TLS handshake: does the port speak TLS, \
                 and for this host's name?"
            ),
            _ => format!("TLS with {host} could not be established"),
        },
    }
}

/// Whether the peer found fault with the client's certificate. With TLS 1.3 it
/// says so only after the handshake has ended here, in place of an answer.
pub(crate) fn refuses_client(error: &(dyn std::error::Error + 'static)) -> bool {
    use AlertDescription as Alert;

    matches!(
        find::<Error>(error),
        Some(Error::AlertReceived(
            Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
        ))
    )
}

pub(crate) fn client_refused(host: &str) -> String {
    format!("{host} doesn't accept this client's certificate, or wants one: see tls()")
}
