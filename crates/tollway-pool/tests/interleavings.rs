//! What threads share of a connection's errands, in every order in which they may
//! get at it.
//!
//! Neither tokio's sockets nor hyper build under loom's own `cfg`. So the file in
//! question is taken in here, with loom's lock and atomics in the place of std's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use loom::future::block_on;
use loom::model::Builder;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

#[allow(dead_code, reason = "the crate's own tests look at more")]
#[path = "../src/errands/queue.rs"]
mod queue;

use queue::{Errands, Inbox};

/// Every order with so many preemptions, unless `LOOM_MAX_PREEMPTIONS` says
/// otherwise. A second or two each, unoptimised.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(run);
}

/// What becomes of the errands of one model.
struct Ledger {
    done: AtomicUsize,
    dropped: AtomicUsize,
}

impl Ledger {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            done: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
        })
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }
}

/// Ends when it is told, as often as it takes, and keeps its waker to the last.
#[derive(Clone)]
struct Tell(Arc<Mutex<(usize, Option<Waker>)>>);

impl Tell {
    fn new() -> Self {
        Self(Arc::new(Mutex::new((0, None))))
    }

    fn tell(&self) {
        let waker = {
            let mut told = self.0.lock().unwrap();
            told.0 += 1;
            told.1.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// An errand. It isn't to be polled once it is over.
struct Told {
    tell: Tell,
    times: usize,
    over: bool,
    ledger: Arc<Ledger>,
}

impl Told {
    fn new(tell: &Tell, times: usize, ledger: &Arc<Ledger>) -> Self {
        Self {
            tell: tell.clone(),
            times,
            over: false,
            ledger: ledger.clone(),
        }
    }
}

impl Future for Told {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        assert!(!self.over, "polled after its end");
        let mut told = self.tell.0.lock().unwrap();
        told.1 = Some(cx.waker().clone());
        let over = told.0 >= self.times;
        drop(told);
        if !over {
            return Poll::Pending;
        }
        self.over = true;
        self.ledger.done.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(())
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.ledger.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

fn push(inbox: &Inbox, errand: Told) {
    assert!(inbox.push(errand).is_ok());
}

/// The connection's task, until so many errands are done.
fn run_until(errands: &mut Errands, ledger: &Ledger, done: usize) {
    block_on(poll_fn(|cx| {
        errands.expect();
        errands.run(cx);
        match ledger.done() {
            now if now == done => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }));
}

#[test]
fn an_errand_that_is_handed_over_and_told_by_others_is_run() {
    model(|| {
        let (inbox, ledger, tell) = (Inbox::new(), Ledger::new(), Tell::new());
        let mut errands = Errands::new(inbox.clone());
        let pusher = {
            let errand = Told::new(&tell, 1, &ledger);
            thread::spawn(move || push(&inbox, errand))
        };
        let teller = thread::spawn(move || tell.tell());
        run_until(&mut errands, &ledger, 1);
        pusher.join().unwrap();
        teller.join().unwrap();
        assert!(errands.is_done());
        assert_eq!(ledger.dropped(), 1);
    });
}

#[test]
fn one_that_is_told_again_and_again_misses_nothing() {
    model(|| {
        let (inbox, ledger, tell) = (Inbox::new(), Ledger::new(), Tell::new());
        let mut errands = Errands::new(inbox.clone());
        push(&inbox, Told::new(&tell, 3, &ledger));
        let tellers = [2, 1].map(|times| {
            let tell = tell.clone();
            thread::spawn(move || (0..times).for_each(|_| tell.tell()))
        });
        run_until(&mut errands, &ledger, 1);
        for teller in tellers {
            teller.join().unwrap();
        }
    });
}

/// The bell of an errand that is over may ring for the next in its place.
#[test]
fn a_late_bell_neither_runs_what_is_over_nor_loses_what_comes_next() {
    model(|| {
        let (inbox, ledger, tell) = (Inbox::new(), Ledger::new(), Tell::new());
        let mut errands = Errands::new(inbox.clone());
        push(&inbox, Told::new(&tell, 1, &ledger));
        let next = Tell::new();
        let teller = {
            let (next, tell) = (next.clone(), tell.clone());
            thread::spawn(move || {
                tell.tell();
                tell.tell();
                next.tell();
            })
        };
        run_until(&mut errands, &ledger, 1);
        push(&inbox, Told::new(&next, 1, &ledger));
        run_until(&mut errands, &ledger, 2);
        teller.join().unwrap();
        assert_eq!(ledger.dropped(), 2);
    });
}

/// As the connection ends, each errand is run to its end, or let go of, or handed
/// back; and one that was told by then has been run.
#[test]
fn a_task_that_ends_forgets_nothing_that_comes_just_then() {
    model(|| {
        let (inbox, ledger) = (Inbox::new(), Ledger::new());
        let (tell, never) = (Tell::new(), Tell::new());
        let mut errands = Errands::new(inbox.clone());
        push(&inbox, Told::new(&tell, 1, &ledger));
        push(&inbox, Told::new(&never, 1, &ledger));
        let waker = Waker::noop();
        errands.run(&mut Context::from_waker(waker));
        tell.tell();
        let pusher = {
            let (never, ledger) = (never.clone(), ledger.clone());
            thread::spawn(move || {
                let at_once = Told::new(&Tell::new(), 0, &ledger);
                if let Err(back) = inbox.push(at_once) {
                    block_on(back);
                }
                never.tell();
            })
        };
        errands.expect();
        drop(errands);
        pusher.join().unwrap();
        assert!(ledger.done() >= 2);
        assert_eq!(ledger.dropped(), 3);
    });
}
