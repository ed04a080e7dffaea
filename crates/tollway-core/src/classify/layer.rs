use std::sync::Arc;

use tower_layer::Layer;

use super::{ClassifyService, Rules};

/// Reads each answer once, and puts the [`Verdict`](crate::Verdict) into the
/// response's extensions, where it isn't the plain success that the status says
/// anyway. [`Verdict::of_response`](crate::Verdict::of_response) reads both.
///
/// It belongs directly above the transport, below everything that acts on a
/// verdict. A layer that decodes bodies (decompression) belongs below it, or
/// else rules about the body see what was compressed.
///
/// Where a rule needs the body, its start is read (at most
/// [64 KiB](Self::MAX_BODY), and only for the statuses that need it) and handed
/// on byte for byte. Waiting for that start is part of waiting for the head: an
/// attempt timeout above covers both. Dropping the future drops the response
/// with all that was read.
///
/// A [`RetryAdvice`](crate::RetryAdvice) is put beside the verdict where there
/// is one. An error that [`Classify::classify_error`](super::Classify) has a
/// [`Fault`](crate::Fault) for is wrapped in it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tollway_core::BoxError> {
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use bytes::Bytes;
/// use tollway_core::{BodyRule, ClassifyLayer, Rules, Test, Verdict};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// let rules = Rules::new().body(
///     BodyRule::new(200..=299, "responseCode", Test::IsNot("0".into())).means(Verdict::Rejected),
/// );
/// let service = ServiceBuilder::new()
///     .layer(ClassifyLayer::new(rules))
///     .service(service_fn(|_: Request<()>| async {
///         let body = Full::new(Bytes::from_static(br#"{"responseCode":51}"#));
///         Ok::<_, std::io::Error>(Response::new(body))
///     }));
///
/// let response = service.oneshot(Request::new(())).await?;
/// assert_eq!(Verdict::of(response.extensions()), Some(Verdict::Rejected));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ClassifyLayer<C = Rules> {
    classify: Arc<C>,
}

impl<C> ClassifyLayer<C> {
    /// The most of a body that is looked at, in bytes. The answers that carry a
    /// verdict in their body are a few hundred bytes long.
    pub const MAX_BODY: usize = 64 * 1024;

    /// A layer that classifies by these rules, which [`Rules::check`] can look
    /// through for mistakes.
    #[must_use]
    pub fn new(classify: C) -> Self {
        Self {
            classify: Arc::new(classify),
        }
    }
}

// For these rules alone, so that `ClassifyLayer::default()` needs no type said.
impl Default for ClassifyLayer<Rules> {
    fn default() -> Self {
        Self::new(Rules::new())
    }
}

impl<C> Clone for ClassifyLayer<C> {
    fn clone(&self) -> Self {
        Self {
            classify: Arc::clone(&self.classify),
        }
    }
}

impl<S, C> Layer<S> for ClassifyLayer<C> {
    type Service = ClassifyService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        ClassifyService::new(inner, Arc::clone(&self.classify))
    }
}
