//! Small futures that a task runs beside its own work.

use std::future::{Future, pending};
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use pin_project_lite::pin_project;
use tokio_util::sync::ReusableBoxFuture;

/// How many boxes are kept for further errands.
const KEPT: usize = 100;

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

struct Mail {
    new: Vec<Boxed>,
    woken: Vec<usize>,
    spare: Vec<Boxed>,
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

    fn lock(&self) -> MutexGuard<'_, Mail> {
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::oneshot;

    use super::*;

    /// Counts how often the task was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Task {
        errands: Errands,
        woken: Arc<Woken>,
    }

    impl Task {
        fn new() -> (Self, Arc<Inbox>) {
            let inbox = Inbox::new();
            let mut task = Self {
                errands: Errands::new(inbox.clone()),
                woken: Arc::default(),
            };
            task.run();
            (task, inbox)
        }

        fn run(&mut self) {
            let waker = self.woken.clone().into();
            self.errands.expect();
            self.errands.run(&mut Context::from_waker(&waker));
        }

        fn woken(&self) -> usize {
            self.woken.0.load(Ordering::SeqCst)
        }
    }

    /// Ends when it is told.
    fn told() -> (
        oneshot::Sender<()>,
        impl Future<Output = ()> + Send + 'static,
    ) {
        let (tell, told) = oneshot::channel();
        (tell, async { told.await.unwrap_or_default() })
    }

    fn push(inbox: &Inbox, errand: impl Future<Output = ()> + Send + 'static) {
        assert!(inbox.push(errand).is_ok());
    }

    #[test]
    fn the_task_is_woken_once_for_all_that_there_is_to_do() {
        let (mut task, inbox) = Task::new();
        let (tells, errands): (Vec<_>, Vec<_>) = (0..3).map(|_| told()).unzip();
        for errand in errands {
            push(&inbox, errand);
        }
        assert_eq!(task.woken(), 1);
        task.run();
        assert!(!task.errands.is_done());
        for tell in tells {
            tell.send(()).unwrap();
        }
        assert_eq!(task.woken(), 2);
        task.run();
        assert!(task.errands.is_done());
        assert_eq!(task.woken(), 2);
    }

    #[test]
    fn the_task_is_not_woken_while_it_runs_and_does_what_was_left_for_it() {
        let (mut task, inbox) = Task::new();
        let (tell, errand) = told();
        push(&inbox, errand);
        task.run();
        task.errands.expect();
        tell.send(()).unwrap();
        push(&inbox, async {});
        assert_eq!(task.woken(), 1);
        task.run();
        assert!(task.errands.is_done());
    }

    #[test]
    fn an_errand_that_wakes_itself_gets_its_turn_and_no_more() {
        let (mut task, inbox) = Task::new();
        let polled = Arc::new(AtomicUsize::new(0));
        let polls = polled.clone();
        push(
            &inbox,
            poll_fn(move |cx| {
                cx.waker().wake_by_ref();
                match polls.fetch_add(1, Ordering::SeqCst) {
                    2 => Poll::Ready(()),
                    _ => Poll::Pending,
                }
            }),
        );
        for polls in 1..=3 {
            assert_eq!(task.woken(), polls);
            task.run();
            assert_eq!(polled.load(Ordering::SeqCst), polls);
        }
        assert!(task.errands.is_done());
        // Woken once more, though it was over.
        task.run();
        assert_eq!((polled.load(Ordering::SeqCst), task.woken()), (3, 4));
    }

    #[test]
    fn a_bell_that_is_rung_again_and_again_is_heard_once_each_time() {
        let (mut task, inbox) = Task::new();
        let (give, waker) = std::sync::mpsc::channel();
        push(
            &inbox,
            poll_fn(move |cx| {
                let _ = give.send(cx.waker().clone());
                Poll::Pending
            }),
        );
        for _ in 0..3 {
            task.run();
            let waker = waker.try_recv().unwrap();
            for _ in 0..3 {
                waker.wake_by_ref();
            }
            assert_eq!(inbox.lock().woken.len(), 1);
        }
    }

    #[test]
    fn boxes_are_kept_up_to_a_bound_and_nothing_in_them() {
        let (mut task, inbox) = Task::new();
        let held = Arc::new(());
        for _ in 0..2 * KEPT {
            let held = held.clone();
            push(&inbox, async move { drop(held) });
        }
        task.run();
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(inbox.lock().spare.len(), KEPT);
    }

    #[test]
    fn a_task_that_ends_runs_what_was_woken_lets_go_of_the_rest_and_takes_no_more() {
        let (mut task, inbox) = Task::new();
        let (tell, errand) = told();
        let (waits_for_ever, never_told) = told();
        let (new, has_run) = oneshot::channel();
        push(&inbox, errand);
        push(&inbox, never_told);
        task.run();
        push(&inbox, async { new.send(()).unwrap() });
        tell.send(()).unwrap();
        drop(task);
        assert_eq!(has_run.blocking_recv(), Ok(()));
        assert!(waits_for_ever.is_closed());
        assert!(inbox.push(async {}).is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_errand_is_forgotten_however_threads_meet() {
        let inbox = Inbox::new();
        let mut errands = Errands::new(inbox.clone());
        let task = tokio::spawn(poll_fn(move |cx| {
            errands.expect();
            errands.run(cx);
            Poll::<()>::Pending
        }));
        let callers = (0..4).map(|_| {
            let inbox = inbox.clone();
            tokio::spawn(async move {
                for _ in 0..2_000 {
                    let (tell, errand) = told();
                    let (done, is_done) = oneshot::channel();
                    push(&inbox, async move {
                        errand.await;
                        done.send(()).unwrap();
                    });
                    tokio::spawn(async move { tell.send(()).unwrap() });
                    is_done.await.unwrap();
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        task.abort();
    }
}
