//! What is kept of a request's extensions.

use http::Extensions;
use tollway_core::{Deadline, Endpoint, IdempotencyKey, Priority};

/// What is kept of a request's extensions: those that Tollway's layers know, or
/// else a clone of the map, which costs several allocations.
#[derive(Clone, Default)]
pub(super) enum Carried {
    #[default]
    Nothing,
    Known(Known),
    Any(Extensions),
}

#[derive(Clone)]
pub(super) struct Known {
    deadline: Option<Deadline>,
    priority: Option<Priority>,
    endpoint: Option<Endpoint>,
    key: Option<IdempotencyKey>,
}

impl Carried {
    #[inline]
    pub(super) fn fill(&mut self, extensions: &Extensions) {
        if !extensions.is_empty() {
            *self = Self::of(extensions);
        }
    }

    #[inline]
    pub(super) fn clear(&mut self) {
        if !matches!(self, Self::Nothing) {
            *self = Self::Nothing;
        }
    }

    fn of(extensions: &Extensions) -> Self {
        // Looked up, the most usual first, until none is left to find.
        let mut left = extensions.len();
        let key = find::<IdempotencyKey>(extensions, &mut left);
        let endpoint = find::<Endpoint>(extensions, &mut left);
        let priority = find::<Priority>(extensions, &mut left);
        let deadline = find::<Deadline>(extensions, &mut left);
        if left > 0 {
            return Self::Any(extensions.clone());
        }
        Self::Known(Known {
            deadline,
            priority,
            endpoint,
            key,
        })
    }

    /// The deadline of an attempt with these extensions that is made right now.
    pub(super) fn deadline(&self) -> Option<Deadline> {
        match self {
            Self::Nothing => Deadline::held(),
            Self::Known(known) => known.deadline.into_iter().chain(Deadline::held()).min(),
            Self::Any(extensions) => Deadline::of(extensions),
        }
    }

    pub(super) fn key(&self) -> Option<&IdempotencyKey> {
        match self {
            Self::Nothing => None,
            Self::Known(known) => known.key.as_ref(),
            Self::Any(extensions) => IdempotencyKey::of(extensions),
        }
    }

    pub(super) fn into_map(self) -> Extensions {
        match self {
            Self::Nothing => Extensions::new(),
            Self::Known(known) => known.into_map(),
            Self::Any(extensions) => extensions,
        }
    }
}

impl Known {
    fn into_map(self) -> Extensions {
        let mut extensions = Extensions::new();
        if let Some(deadline) = self.deadline {
            extensions.insert(deadline);
        }
        if let Some(priority) = self.priority {
            extensions.insert(priority);
        }
        if let Some(endpoint) = self.endpoint {
            extensions.insert(endpoint);
        }
        if let Some(key) = self.key {
            extensions.insert(key);
        }
        extensions
    }
}

/// The extension of this type, which is counted off from those `left`.
fn find<T: Clone + Send + Sync + 'static>(extensions: &Extensions, left: &mut usize) -> Option<T> {
    if *left == 0 {
        return None;
    }
    let found = extensions.get::<T>().cloned();
    *left -= usize::from(found.is_some());
    found
}
