//! The errands of one task, and how other threads get at them.

use std::future::{Future, pending};
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use pin_project_lite::pin_project;
use tokio_util::sync::ReusableBoxFuture;

use super::sync::{AtomicBool, Mutex, MutexGuard, Ordering};

/// How many boxes are kept for further errands.
pub(super) const KEPT: usize = 100;

/// An errand, in a box that is kept for the next one when it is over.
type Boxed = ReusableBoxFuture<'static, ()>;

pin_project! {
    /// What an errand holds goes when it is over, and not with its box.
    struct Errand<F> {
        #[pin]
        future: Option<F>,
    }
}

impl<F: Future<Output = ()>> Future for Errand<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if let Some(future) = this.future.as_mut().as_pin_mut() {
            ready!(future.poll(cx));
        }
        this.future.set(None);
        Poll::Ready(())
    }
}

/// Where a task is handed errands, and told which of them can go on.
pub(crate) struct Inbox {
    mail: Mutex<Mail>,
    /// Whether the task will yet look into the inbox without being woken. It
    /// says no under the lock. So whoever reads yes under the lock, with mail
    /// of theirs in the box, has the task's look still to come.
    attentive: AtomicBool,
}

pub(super) struct Mail {
    new: Vec<Boxed>,
    pub(super) woken: Vec<usize>,
    pub(super) spare: Vec<Boxed>,
    waker: Waker,
    closed: bool,
}

impl Inbox {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            mail: Mutex::new(Mail {
                new: Vec::new(),
                woken: Vec::new(),
                spare: Vec::new(),
                waker: Waker::noop().clone(),
                closed: false,
            }),
            // The task's first poll is sure to come.
            attentive: AtomicBool::new(true),
        })
    }

    /// Hands the task an errand, or back if there is no task any more.
    pub(crate) fn push<F>(&self, future: F) -> Result<(), F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut mail = self.lock();
        if mail.closed {
            return Err(future);
        }
        let spare = mail.spare.pop();
        let mut boxed = spare.unwrap_or_else(|| ReusableBoxFuture::new(pending()));
        let future = Some(future);
        boxed.set(Errand { future });
        mail.new.push(boxed);
        self.rouse(&mail);
        Ok(())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rouse(&self, mail: &Mail) {
        if !self.attentive.load(Ordering::Relaxed) {
            self.attentive.store(true, Ordering::Relaxed);
            // Under the lock, since it is tokio's, and only puts a task into a
            // queue.
            mail.waker.wake_by_ref();
        }
    }
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.new.is_empty() && self.woken.is_empty()
    }
}

/// An errand can go on.
struct Bell {
    at: usize,
    inbox: Arc<Inbox>,
    /// Whether the inbox says so already. Only touched under its lock.
    rung: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut mail = self.inbox.lock();
        if !mail.closed && !self.rung.load(Ordering::Relaxed) {
            self.rung.store(true, Ordering::Relaxed);
            mail.woken.push(self.at);
            self.inbox.rouse(&mail);
        }
    }
}

/// The errands of one task.
///
/// Dropped, it lets each that was woken by then run for a last time.
pub(crate) struct Errands {
    inbox: Arc<Inbox>,
    places: Vec<Place>,
    free: Vec<usize>,
    // What follows is empty between runs, and kept for its memory.
    new: Vec<Boxed>,
    woken: Vec<usize>,
    done: Vec<Boxed>,
}

struct Place {
    errand: Option<Boxed>,
    /// For whichever errand is in it.
    bell: Arc<Bell>,
    /// Rings it.
    waker: Waker,
}

impl Errands {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        Self {
            inbox,
            places: Vec::new(),
            free: Vec::new(),
            new: Vec::new(),
            woken: Vec::new(),
            done: Vec::new(),
        }
    }

    /// The task's poll begins, and will end with [`run`](Self::run). So nobody
    /// has to wake it meanwhile.
    pub(crate) fn expect(&self) {
        self.inbox.attentive.store(true, Ordering::Relaxed);
    }

    /// Runs those that are new or have been woken, each once: what is woken by
    /// that has its turn in the task's next poll.
    pub(crate) fn run(&mut self, cx: &mut Context<'_>) {
        let mut mail = self.inbox.lock();
        if !mail.is_empty() {
            mem::swap(&mut mail.new, &mut self.new);
            mem::swap(&mut mail.woken, &mut self.woken);
            for &at in &self.woken {
                self.places[at].bell.rung.store(false, Ordering::Relaxed);
            }
            drop(mail);
            self.poll_all();
            mail = self.inbox.lock();
            let room = KEPT.saturating_sub(mail.spare.len());
            self.done.truncate(room);
            mail.spare.append(&mut self.done);
        }
        let again = !mail.is_empty();
        self.inbox.attentive.store(again, Ordering::Relaxed);
        if again {
            cx.waker().wake_by_ref();
        }
        if !mail.waker.will_wake(cx.waker()) {
            mail.waker.clone_from(cx.waker());
        }
    }

    /// Whether all are done that have been seen.
    pub(crate) fn is_done(&self) -> bool {
        self.free.len() == self.places.len()
    }

    fn poll_all(&mut self) {
        let mut new = mem::take(&mut self.new);
        for errand in new.drain(..) {
            let at = self.free.pop().unwrap_or_else(|| self.add_place());
            self.places[at].errand = Some(errand);
            self.poll(at);
        }
        self.new = new;
        let mut woken = mem::take(&mut self.woken);
        for at in woken.drain(..) {
            self.poll(at);
        }
        self.woken = woken;
    }

    fn add_place(&mut self) -> usize {
        let at = self.places.len();
        let bell = Arc::new(Bell {
            at,
            inbox: self.inbox.clone(),
            rung: AtomicBool::new(false),
        });
        self.places.push(Place {
            errand: None,
            waker: bell.clone().into(),
            bell,
        });
        at
    }

    /// The place may be empty, if two woke its errand.
    fn poll(&mut self, at: usize) {
        let Place { errand, waker, .. } = &mut self.places[at];
        let mut cx = Context::from_waker(waker);
        if errand
            .as_mut()
            .is_some_and(|errand| errand.poll(&mut cx).is_ready())
        {
            self.done.extend(errand.take());
            self.free.push(at);
        }
    }
}

impl Drop for Errands {
    fn drop(&mut self) {
        {
            let mut mail = self.inbox.lock();
            mail.closed = true;
            self.new = mem::take(&mut mail.new);
            self.woken = mem::take(&mut mail.woken);
            mail.waker = Waker::noop().clone();
        }
        if !std::thread::panicking() {
            self.poll_all();
        }
    }
}
