//! A gateway that runs in this process.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::builder::GatewayBuilder;
use crate::error::SimError;
use crate::faults::{FaultDraw, Faults};
use crate::handler::Shared;
use crate::ledger::Ledger;
use crate::provider::Provider;
use crate::stats::Stats;
use crate::tls::Authority;

/// A simulated gateway, listening on a port of its own.
///
/// Dropping it shuts it down: the port is released and open connections are closed, soon after
/// and without waiting for answers. [`shutdown`](Self::shutdown) waits until that is done.
pub struct Gateway {
    pub(crate) provider: Provider,
    pub(crate) addr: SocketAddr,
    pub(crate) authority: Option<Authority>,
    pub(crate) seed: u64,
    pub(crate) shared: Arc<Shared>,
    /// Its end is the gateway's end, for every task of it.
    pub(crate) open: watch::Sender<()>,
    pub(crate) accepting: JoinHandle<()>,
}

impl Gateway {
    /// Starts to configure a gateway of this provider.
    pub fn builder(provider: Provider) -> GatewayBuilder {
        GatewayBuilder::new(provider)
    }

    /// Whose gateway it is.
    #[must_use]
    pub const fn provider(&self) -> Provider {
        self.provider
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its base URL, without a slash at the end: `http://127.0.0.1:54321`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.authority.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.addr)
    }

    /// The certificate, in PEM, that a client must trust; `None` without TLS.
    #[must_use]
    pub fn ca_certificate_pem(&self) -> Option<&str> {
        self.authority.as_ref().map(|authority| &*authority.pem)
    }

    /// The certificate, in DER, that a client must trust; `None` without TLS.
    #[must_use]
    pub fn ca_certificate_der(&self) -> Option<&[u8]> {
        self.authority.as_ref().map(|authority| &*authority.der)
    }

    /// What took effect until now.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.shared.state().books.snapshot()
    }

    /// What was counted until now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.state().stats.clone()
    }

    /// Replaces the faults from the next request on. They are drawn anew from the seed, and a
    /// script starts at its first line.
    ///
    /// # Errors
    ///
    /// When a share isn't within 0 and 1, when a mix has no weight, or when an error's status
    /// isn't a 5xx. The faults are then left as they were.
    pub fn set_faults(&self, faults: Faults) -> Result<(), SimError> {
        faults.check()?;
        self.shared.state().faults = FaultDraw::new(faults, self.seed);
        Ok(())
    }

    /// Shuts down, and waits until the port is released and every connection is closed.
    ///
    /// Dropping the returned future shuts down all the same, without the wait.
    pub async fn shutdown(self) {
        drop(self.open);
        // It fails only where the runtime is shutting down, and then it is gone too.
        let _ = self.accepting.await;
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("provider", &self.provider)
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}
