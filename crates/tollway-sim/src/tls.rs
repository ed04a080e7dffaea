//! A certificate authority made for one gateway, and the certificate it issues.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::error::SimError;

/// What a client must trust.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    pub(crate) pem: String,
    pub(crate) der: CertificateDer<'static>,
}

/// Makes an authority and, issued by it, a certificate for `localhost`, `127.0.0.1` and `::1`.
pub(crate) fn make(http2: bool) -> Result<(Authority, TlsAcceptor), SimError> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    name(&mut params, "Tollway simulated gateway CA");
    let key = KeyPair::generate().map_err(SimError::tls)?;
    let ca = CertifiedIssuer::self_signed(params, key).map_err(SimError::tls)?;

    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut params = CertificateParams::new(names).map_err(SimError::tls)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    name(&mut params, "Tollway simulated gateway");
    let key = KeyPair::generate().map_err(SimError::tls)?;
    let leaf = params.signed_by(&key, &ca).map_err(SimError::tls)?;

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(SimError::tls)?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .map_err(SimError::tls)?;
    config.alpn_protocols = if http2 {
        vec![b"h2".to_vec(), b"http/1.1".to_vec()]
    } else {
        vec![b"http/1.1".to_vec()]
    };
    let authority = Authority {
        pem: ca.pem(),
        der: ca.der().clone(),
    };
    Ok((authority, TlsAcceptor::from(Arc::new(config))))
}

fn name(params: &mut CertificateParams, name: &str) {
    params.distinguished_name.push(DnType::CommonName, name);
}
