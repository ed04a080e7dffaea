//! What is kept of a request, so that it can be made again.

use std::cell::RefCell;
use std::mem;
use std::ops::{Deref, DerefMut};

use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Uri, Version};
use tokio::time::Instant;
use tollway_core::Deadline;

use crate::evidence::Evidence;
use crate::policy::Settings;

mod carried;

use carried::Carried;

/// A copy of a request's head. It shares every name and value with the request.
#[derive(Default)]
pub(crate) struct Head {
    method: Method,
    /// None in a box that waits for the next call: a default one takes its time
    /// to be made and to be dropped.
    uri: Option<Uri>,
    version: Version,
    /// Apart from the values: a pair would be put together on the stack, piece
    /// by piece, and copied from there in larger pieces, which a processor has
    /// to wait for.
    names: Vec<HeaderName>,
    values: Vec<HeaderValue>,
    extensions: Carried,
}

impl Head {
    fn fill<B>(&mut self, request: &Request<B>) {
        self.method = request.method().clone();
        self.uri = Some(request.uri().clone());
        self.version = request.version();
        for (name, value) in request.headers() {
            self.names.push(name.clone());
            self.values.push(value.clone());
        }
        self.extensions.fill(request.extensions());
    }

    /// Lets go of everything but the room for headers.
    fn clear(&mut self) {
        self.method = Method::default();
        self.uri = None;
        self.names.clear();
        self.values.clear();
        if self.names.capacity() > MAX_ROOM {
            self.names.shrink_to(MAX_ROOM);
            self.values.shrink_to(MAX_ROOM);
        }
        self.extensions.clear();
    }

    /// The request once more, with `body`.
    pub(crate) fn to_request<B>(&self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone().unwrap_or_default();
        *request.version_mut() = self.version;
        request.headers_mut().reserve(self.names.len());
        for (name, value) in self.names.iter().zip(&self.values) {
            request.headers_mut().append(name.clone(), value.clone());
        }
        *request.extensions_mut() = self.extensions.clone().into_map();
        request
    }

    /// The same, for the last time. What stays behind is empty.
    pub(crate) fn take_request<B>(&mut self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = mem::take(&mut self.method);
        *request.uri_mut() = self.uri.take().unwrap_or_default();
        *request.version_mut() = self.version;
        request.headers_mut().reserve(self.names.len());
        for (name, value) in self.names.drain(..).zip(self.values.drain(..)) {
            request.headers_mut().append(name, value);
        }
        *request.extensions_mut() = mem::take(&mut self.extensions).into_map();
        request
    }

    /// The deadline of an attempt made right now.
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.extensions.deadline()
    }

    pub(crate) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    pub(crate) fn evidence<R>(&self, settings: &Settings<R>, started: Instant) -> Evidence {
        let carried = self.extensions.key();
        Evidence::new(&self.method, carried, settings, started, |wanted| {
            let at = self.names.iter().position(|name| name == wanted)?;
            self.values.get(at)
        })
    }
}

thread_local! {
    #[expect(clippy::vec_box, reason = "the box is what is kept")]
    static SPARE: RefCell<Vec<Box<Head>>> = const { RefCell::new(Vec::new()) };
}

/// As many heads that are out of use wait on each thread for the next calls.
const MAX_SPARE: usize = 64;

/// A head that waits for the next call keeps room for as many headers.
const MAX_ROOM: usize = 16;

/// A head in a box that is used again and again.
///
/// Every call keeps a head, and hardly any needs it. As a part of the future it
/// would be the largest by far, and copied each time the future is moved; in a
/// box of its own it would cost allocations on every call. So the boxes are
/// kept, a few on each thread: a steady load allocates none.
pub(crate) struct KeptHead(Option<Box<Head>>);

impl KeptHead {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        // Without the thread's store, which a thread that ends may have lost
        // already, a box is a box.
        let spare = SPARE.try_with(|spare| spare.try_borrow_mut().ok()?.pop());
        let mut head = spare.ok().flatten().unwrap_or_default();
        head.fill(request);
        Self(Some(head))
    }
}

impl Deref for KeptHead {
    type Target = Head;

    fn deref(&self) -> &Head {
        self.0.as_ref().expect(IN_PLACE)
    }
}

impl DerefMut for KeptHead {
    fn deref_mut(&mut self) -> &mut Head {
        self.0.as_mut().expect(IN_PLACE)
    }
}

const IN_PLACE: &str = "the box is taken out only when it is dropped";

impl Drop for KeptHead {
    fn drop(&mut self) {
        let Some(mut head) = self.0.take() else {
            return;
        };
        // What the caller's values do when they are dropped is their own: not
        // while the store is borrowed.
        head.clear();
        let _ = SPARE.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut()
                && spare.len() < MAX_SPARE
            {
                spare.push(head);
            }
        });
    }
}

#[cfg(test)]
mod tests;
