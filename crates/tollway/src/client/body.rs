//! The request body of a client.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tollway_core::BoxError;

/// The request body of a [`Client`](crate::Client), whatever it was made of.
///
/// Bytes, texts and `Full<Bytes>` are held as they are, so that a retry replays
/// them by reference count. Any other body is boxed, once.
pub struct Body(Kind);

enum Kind {
    Full(Full<Bytes>),
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
}

impl Body {
    /// The body without anything in it.
    #[must_use]
    pub fn empty() -> Self {
        Bytes::new().into()
    }

    /// Any body.
    pub fn new<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // Downcasting an `Option` moves the value out without a box.
        let mut body = Some(body);
        let any = &mut body as &mut dyn Any;
        if let Some(whole) = any.downcast_mut::<Option<Self>>().and_then(Option::take) {
            return whole;
        }
        if let Some(full) = any
            .downcast_mut::<Option<Full<Bytes>>>()
            .and_then(Option::take)
        {
            return Self(Kind::Full(full));
        }
        if let Some(text) = any.downcast_mut::<Option<String>>().and_then(Option::take) {
            return text.into();
        }
        match body {
            Some(body) => Self(Kind::Boxed(body.map_err(Into::into).boxed_unsync())),
            None => Self::empty(),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(Kind::Full(Full::new(bytes)))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self::empty()
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is in it may be anybody's account number.
        f.debug_struct("Body")
            .field("size_hint", &self.size_hint())
            .finish_non_exhaustive()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Full(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|infallible| match infallible {}),
            Kind::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(body) => body.is_end_stream(),
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(body) => body.size_hint(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_boxed(body: &Body) -> bool {
        matches!(body.0, Kind::Boxed(_))
    }

    #[test]
    fn whole_bodies_are_not_boxed() {
        assert!(!is_boxed(&Body::new(Full::new(Bytes::from("a")))));
        assert!(!is_boxed(&Body::new(String::from("a"))));
        assert!(!is_boxed(&Body::new(Body::from("a"))));
    }

    #[test]
    fn an_empty_body_is_at_its_end() {
        let boxed = Body::new(http_body_util::Empty::new().map_err(|never| match never {}));
        assert!(is_boxed(&boxed));
        for body in [Body::empty(), Body::from(()), boxed] {
            assert!(body.is_end_stream());
        }
        assert!(!Body::from("a").is_end_stream());
    }

    #[tokio::test]
    async fn any_other_body_is_boxed_and_flows_through() {
        let body = Body::new(Full::new(Bytes::from("abc")).map_err(|never| match never {}));
        let boxed: Body = Body::new(body.map_err(|error: BoxError| error));
        assert!(is_boxed(&boxed));
        assert_eq!(boxed.size_hint().exact(), Some(3));
        assert_eq!(boxed.collect().await.unwrap().to_bytes(), "abc");
    }

    #[test]
    fn a_log_shows_no_content() {
        let shown = format!("{:?}", Body::from("account 4711"));
        assert!(!shown.contains("4711"), "{shown}");
    }
}
