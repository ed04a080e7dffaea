//! What a TLS connection costs, and what keeping it saves: the first call on a
//! new connection without and with a session to resume, and a call on a kept
//! one.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Uri;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::runtime::{self, Runtime};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tollway_benches::{Report, median};
use tollway_core::BoxError;
use tollway_pool::Pool;
use tower::Service;

use crate::exchange::{Body, read, request};
use crate::server::{answer, listen};

const ROUNDS: usize = 60;

pub(crate) fn report(report: &mut Report) -> Result<(), BoxError> {
    let host = Host::new()?;
    let caller = Caller::new(host.serve()?)?;
    let (mut cold, mut resumed, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    let keeping = host.client_config()?;
    caller.micros(keeping.clone(), 2)?;
    for _ in 0..ROUNDS {
        cold.extend(caller.micros(host.client_config()?, 1)?);
        let times = caller.micros(keeping.clone(), 3)?;
        resumed.push(times[0]);
        warm.push(times[2]);
    }
    let warm = median(warm);
    for (case, took) in [
        ("TLS, new connection", median(cold)),
        ("TLS, new connection, session resumed", median(resumed)),
        ("TLS, kept connection", warm),
    ] {
        report.row(case, "tollway", "call", took, "µs");
        report.row(case, "tollway", "of kept", took / warm, "");
    }
    Ok(())
}

/// A host with a certificate of its own making.
struct Host {
    provider: Arc<CryptoProvider>,
    cert: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Host {
    fn new() -> Result<Self, BoxError> {
        let key = rcgen::KeyPair::generate()?;
        let cert = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
        Ok(Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            cert: cert.self_signed(&key)?.der().clone(),
            key: key.serialize_der().into(),
        })
    }

    fn serve(&self) -> Result<SocketAddr, BoxError> {
        let config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.cert.clone()], self.key.clone_key().into())?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let addr = listen(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let answering =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), answer());
                let _ = answering.await;
            }
        })?;
        Ok(addr)
    }

    /// Trusts the host, and has no session with it yet.
    fn client_config(&self) -> Result<ClientConfig, BoxError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.cert.clone())?;
        Ok(ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

struct Caller {
    runtime: Runtime,
    uri: Uri,
}

impl Caller {
    fn new(addr: SocketAddr) -> Result<Self, BoxError> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let uri = format!("https://localhost:{}/", addr.port()).parse()?;
        Ok(Self { runtime, uri })
    }

    /// How long each of so many calls takes, the first of which connects.
    fn micros(&self, config: ClientConfig, calls: usize) -> Result<Vec<f64>, BoxError> {
        let pool: Pool<Body> = Pool::builder().tls(config).build()?;
        self.runtime.block_on(async {
            let mut times = Vec::new();
            for _ in 0..calls {
                let began = Instant::now();
                let response = pool.clone().call(request(self.uri.clone())).await?;
                read(response.into_body()).await;
                times.push(began.elapsed().as_secs_f64() * 1e6);
                // A session's ticket comes after the handshake.
                tokio::task::yield_now().await;
            }
            Ok(times)
        })
    }
}
