use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake};

use tokio::sync::oneshot;

use super::queue::{Errands, Inbox, KEPT};

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
