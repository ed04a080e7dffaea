//! A call whose body is read before it goes.

use std::sync::Arc;

use http::Request;
use tollway_core::BoxError;

use crate::gather::Gathered;
use crate::keys::{Chosen, Keys, Outcome};
use crate::{KeyBody, KeyError, KeyGenerator};

/// What a call holds beside its body while that is read.
pub(crate) struct Rest {
    pub(crate) head: Request<()>,
    /// The key, where it doesn't stand in the body.
    pub(crate) chosen: Option<Chosen>,
    /// Whether the body told its length.
    pub(crate) sized: bool,
}

impl Rest {
    /// The call, now that its body was read.
    pub(crate) fn with<G: KeyGenerator, B>(
        self,
        read: Result<Gathered, BoxError>,
        keys: &Keys<G>,
    ) -> Result<Prepared<B>, KeyError> {
        let Self {
            mut head,
            chosen,
            sized,
        } = self;
        let mut read = match read {
            Ok(read) => read,
            Err(error) => {
                let key = chosen.map(|chosen| chosen.key);
                return Err(KeyError::body(key, error));
            }
        };
        let trailers = read.trailers.take();
        let headers = head.headers_mut();
        let (data, chosen) = keys.read(chosen, headers, trailers.as_ref(), read.data())?;
        Ok(Prepared {
            request: head.map(|()| KeyBody::read(data, trailers, sized)),
            chosen,
        })
    }
}

/// A call with its key that can go.
pub(crate) struct Prepared<B> {
    request: Request<KeyBody<B>>,
    chosen: Chosen,
}

impl<B> Prepared<B> {
    /// Lets the call go. Its key is remembered only now, for the inner service to
    /// be called right behind it: until here it can be dropped without a trace.
    pub(crate) fn admit<G: KeyGenerator>(
        mut self,
        keys: &Arc<Keys<G>>,
    ) -> Result<(Request<KeyBody<B>>, Outcome<G>), KeyError> {
        // The body shares its bytes with this copy.
        let data = self.request.body().data().cloned().unwrap_or_default();
        let outcome = keys.admit(self.chosen, &mut self.request, Some(&data))?;
        Ok((self.request, outcome))
    }
}
