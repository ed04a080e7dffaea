//! In which runtimes a timer is to be set, and when.
//!
//! Each runtime in which somebody waits has a timer, set for the next time that
//! matters to anybody. One for all wouldn't do: nobody knows which runtime will be
//! driven until then, nor who of those that wait will be polled.

#[cfg(feature = "tokio")]
use std::sync::Arc;

use smallvec::SmallVec;

use super::State;
#[cfg(feature = "tokio")]
use super::Wakers;
use crate::lanes::NOWHERE;
use crate::sync::Runtime;
use crate::time::{Nanos, nanos};
#[cfg(feature = "tokio")]
use crate::timer::Timer;

/// A runtime in which somebody waits, or has waited.
#[derive(Debug)]
pub(crate) struct Post {
    /// Or outside of any.
    runtime: Option<Runtime>,
    waiting: u32,
    /// The time for which its timer is set. One that has passed says nothing.
    armed: Nanos,
    /// A task of its own is to set it, or was gone before it could: nobody else is
    /// sent until somebody is polled there.
    is_arming: bool,
    #[cfg(feature = "tokio")]
    timer: Arc<Timer>,
}

/// Where a task of its own is to set the timer, if there can be one.
pub(crate) type Arms = SmallVec<[Option<Runtime>; 1]>;

/// No timer is set for later: it is looked again then.
const FARTHEST: Nanos = nanos(std::time::Duration::from_secs(86_400));

impl Post {
    fn new(runtime: Option<Runtime>) -> Self {
        Self {
            runtime,
            waiting: 0,
            armed: 0,
            is_arming: false,
            #[cfg(feature = "tokio")]
            timer: Arc::default(),
        }
    }

    fn must_arm(&self, next: Nanos, now: Nanos) -> bool {
        self.waiting > 0 && (self.armed <= now || next < self.armed)
    }
}

impl State {
    /// Notes in which runtime a waiter is polled. It sees to the timer there.
    pub(crate) fn waits_in(&mut self, waiter: u32, runtime: Option<&Runtime>) {
        let post = self.post(runtime);
        let Some(entry) = self.lanes.waiter_mut(waiter) else {
            return;
        };
        let old = std::mem::replace(&mut entry.post, post);
        if let Some(post) = self.posts.get_mut(usize::from(post)) {
            post.waiting += 1;
            post.is_arming = false;
        }
        self.leaves(old);
    }

    /// Notes that one who was polled there waits no longer.
    pub(super) fn leaves(&mut self, post: u16) {
        if let Some(post) = self.posts.get_mut(usize::from(post)) {
            post.waiting -= 1;
        }
    }

    fn post(&mut self, runtime: Option<&Runtime>) -> u16 {
        let mut posts = self.posts.iter();
        let known = posts.find(|(_, post)| post.runtime.as_ref() == runtime);
        let post = known.map(|(post, _)| post).unwrap_or_else(|| {
            self.posts.retain(|_, post| post.waiting > 0);
            self.posts.insert(Post::new(runtime.cloned()))
        });
        // There are fewer runtimes than that.
        u16::try_from(post).unwrap_or(NOWHERE)
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn posts(&self) -> usize {
        self.posts.len()
    }

    /// Has each timer set anew that has to be, but the one `here`: whoever asks
    /// sets that. The others are set by tasks of their own in these runtimes: one
    /// who is woken to do it may not be polled for long.
    pub(crate) fn have_armed(&mut self, here: Option<&Runtime>, now: Nanos) -> Arms {
        let Some(next) = self.next_wake() else {
            return Arms::new();
        };
        let is_driven = self.is_driven();
        let posts = self.posts.iter_mut().map(|(_, post)| post);
        posts
            .filter(|post| !post.is_arming && post.must_arm(next, now))
            .filter(|post| match &post.runtime {
                None => !is_driven,
                runtime => runtime.as_ref() != here,
            })
            .map(|post| {
                post.is_arming = true;
                post.runtime.clone()
            })
            .collect()
    }

    /// Whether somebody waits in a runtime, which sees to the time for all.
    fn is_driven(&self) -> bool {
        let mut posts = self.posts.iter();
        posts.any(|(_, post)| post.runtime.is_some() && post.waiting > 0)
    }

    /// Whether a time is waited for, and only outside of runtimes.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_adrift(&self) -> bool {
        self.next_wake().is_some() && !self.is_driven()
    }

    /// The task that was to set the timer there is about to.
    #[cfg(feature = "tokio")]
    pub(crate) fn sets(&mut self, runtime: &Runtime) {
        if let Some(post) = self.post_in(runtime) {
            post.is_arming = false;
        }
    }

    /// The timer there can't be set: who waits there has to see for itself.
    #[cfg(feature = "tokio")]
    pub(crate) fn gives_up(&self, runtime: Option<&Runtime>) -> Wakers {
        let mut posts = self.posts.iter();
        let post = posts.find(|(_, post)| post.runtime.as_ref() == runtime);
        let post = post.and_then(|(post, _)| u16::try_from(post).ok());
        post.map_or_else(Wakers::new, |post| self.lanes.wakers(post))
    }

    /// The timer there is set no longer.
    #[cfg(feature = "tokio")]
    pub(crate) fn fired(&mut self, runtime: &Runtime) {
        if let Some(post) = self.post_in(runtime) {
            post.armed = 0;
        }
    }

    #[cfg(feature = "tokio")]
    fn post_in(&mut self, runtime: &Runtime) -> Option<&mut Post> {
        let mut posts = self.posts.iter_mut().map(|(_, post)| post);
        posts.find(|post| post.runtime.as_ref() == Some(runtime))
    }

    /// When to call [`pump`](Self::pump) next.
    pub(crate) fn next_wake(&self) -> Option<Nanos> {
        let timer = self.timers.first().map(|&(time, _)| time);
        let deadline = self.deadlines.first().map(|&(time, _)| time);
        match (timer, deadline) {
            (Some(timer), Some(deadline)) => Some(timer.min(deadline)),
            (time, None) | (None, time) => time,
        }
    }

    /// The timer of this runtime, if it has to be set anew.
    #[cfg(feature = "tokio")]
    pub(crate) fn unset_timer(&mut self, runtime: &Runtime, now: Nanos) -> Option<Arc<Timer>> {
        let next = self.next_wake()?;
        let post = self.post_in(runtime)?;
        post.must_arm(next, now).then(|| Arc::clone(&post.timer))
    }

    /// When the timer of this runtime is to fire, which is set for then. Unless it
    /// has another by now: all who waited were gone, and others have come.
    #[cfg(feature = "tokio")]
    pub(crate) fn arm(
        &mut self,
        runtime: &Runtime,
        timer: &Arc<Timer>,
        now: Nanos,
    ) -> Option<Nanos> {
        let next = self.next_wake()?;
        let post = self.post_in(runtime);
        let post = post.filter(|post| Arc::ptr_eq(&post.timer, timer))?;
        post.armed = next.min(now.saturating_add(FARTHEST));
        Some(post.armed)
    }
}
