//! The pool over a connector of the user's.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use http::Uri;
use http_body::Body;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::Connection;
use tollway_core::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use crate::builder::{Config, InvalidPool, PoolBuilder};
use crate::dial::Dialer;
use crate::service::Pool;

/// A [`Pool`] over any connector: a `Service<Uri>` whose responses are
/// hyper's I/O and tell of themselves by hyper-util's
/// [`Connection`], as hyper-util's and hyper-rustls's connectors do.
///
/// The connector does everything up to the stream, TLS included; by
/// [`Connected::negotiated_h2`](hyper_util::client::legacy::connect::Connected::negotiated_h2)
/// it says which protocol goes over it. To have the pool's own TLS over a
/// connector, wrap that into [`Https`](crate::connect::Https), or use
/// [`PoolBuilder::build_over`].
pub struct PoolLayer<B> {
    config: Arc<Config>,
    body: PhantomData<fn(B)>,
}

impl<B> PoolLayer<B> {
    /// The layer as `builder` describes the pool.
    ///
    /// # Errors
    ///
    /// Where the builder's settings don't make sense, or it has TLS settings,
    /// which are the connector's affair here.
    pub fn new(builder: PoolBuilder<B>) -> Result<Self, InvalidPool> {
        builder.into_layer_config().map(Self::from_config)
    }

    pub(crate) fn from_config(config: Arc<Config>) -> Self {
        Self {
            config,
            body: PhantomData,
        }
    }
}

impl<B> Default for PoolLayer<B> {
    /// The layer with every setting at its default.
    fn default() -> Self {
        Self::from_config(Arc::new(Config::default()))
    }
}

impl<B, C> Layer<C> for PoolLayer<B>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Read + Write + Connection + Unpin + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Service = Pool<B>;

    fn layer(&self, connector: C) -> Pool<B> {
        let config = self.config.clone();
        let dialer = Dialer {
            connector,
            config: config.clone(),
        };
        Pool::new(config, Arc::new(dialer))
    }
}

impl<B> Clone for PoolLayer<B> {
    fn clone(&self) -> Self {
        Self {
            config: self.config.clone(),
            body: PhantomData,
        }
    }
}

impl<B> fmt::Debug for PoolLayer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolLayer")
            .field("config", &self.config)
            .finish()
    }
}
