//! What is measured: runs of calls, and the bare service's beside them.

use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::Request;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tower::Service;

use crate::bare::{Bare, Body, request};

/// Makes so many calls, and says how long they took.
pub(crate) type Run = Box<dyn FnMut(u64) -> Duration>;

pub(crate) struct Case {
    pub(crate) case: String,
    pub(crate) who: &'static str,
    pub(crate) run: Run,
}

/// Cases whose Δ is against the same bare service.
pub(crate) struct Group {
    pub(crate) bare: Run,
    pub(crate) cases: Vec<Case>,
    runtime: Rc<Runtime>,
    suffix: &'static str,
}

impl Group {
    /// Of services that need no other task.
    pub(crate) fn alone<const PENDING: bool>(runtime: &Rc<Runtime>) -> Self {
        Self::new::<PENDING>(
            runtime,
            alone(runtime, Bare::<PENDING>, async |bare| {
                call(bare, request).await;
            }),
        )
    }

    /// Of services that do.
    pub(crate) fn among_others<const PENDING: bool>(runtime: &Rc<Runtime>) -> Self {
        Self::new::<PENDING>(runtime, among_others(runtime, Bare::<PENDING>))
    }

    fn new<const PENDING: bool>(runtime: &Rc<Runtime>, bare: Run) -> Self {
        Self {
            bare,
            cases: Vec::new(),
            runtime: Rc::clone(runtime),
            suffix: if PENDING { ", yield" } else { "" },
        }
    }

    fn add(&mut self, case: &str, who: &'static str, run: Run) {
        let case = format!("{case}{}", self.suffix);
        self.cases.push(Case { case, who, run });
    }

    /// One service takes all calls.
    pub(crate) fn one<S>(&mut self, case: &str, who: &'static str, service: S)
    where
        S: Service<Request<Body>> + 'static,
    {
        self.one_with(case, who, service, request);
    }

    /// The same, for calls of another kind.
    pub(crate) fn one_with<S>(
        &mut self,
        case: &str,
        who: &'static str,
        service: S,
        request: fn() -> Request<Body>,
    ) where
        S: Service<Request<Body>> + 'static,
    {
        self.calls(case, who, service, async move |service: &mut S| {
            call(service, request).await;
        });
    }

    /// Each call has a clone of its own.
    pub(crate) fn cloned<S>(&mut self, case: &str, who: &'static str, service: S)
    where
        S: Service<Request<Body>> + Clone + 'static,
    {
        self.calls(case, who, service, async |service: &mut S| {
            call(&mut service.clone(), request).await;
        });
    }

    /// Something that isn't a service. What the bare service costs is added, so
    /// that the Δ is its own cost.
    pub(crate) fn check(
        &mut self,
        case: &str,
        who: &'static str,
        mut check: impl FnMut() + 'static,
    ) {
        self.calls(case, who, Bare::<false>, async move |service| {
            check();
            call(service, request).await;
        });
    }

    /// Something that is called in a way of its own.
    pub(crate) fn calls<S: 'static>(
        &mut self,
        case: &str,
        who: &'static str,
        service: S,
        call: impl AsyncFnMut(&mut S) + 'static,
    ) {
        let run = alone(&self.runtime, service, call);
        self.add(case, who, run);
    }

    /// One service, with a task, takes all calls.
    pub(crate) fn among<S>(&mut self, case: &str, who: &'static str, service: S)
    where
        S: Service<Request<Body>> + 'static,
    {
        let run = among_others(&self.runtime, service);
        self.add(case, who, run);
    }
}

/// Runs calls in one task that is never suspended: where a service is pending,
/// it is polled again at once, and the runtime's own work stays out of it.
fn alone<S: 'static>(
    runtime: &Rc<Runtime>,
    mut service: S,
    mut call: impl AsyncFnMut(&mut S) + 'static,
) -> Run {
    let runtime = Rc::clone(runtime);
    Box::new(move |runs| {
        // Without a budget, which would turn timers away after 128 polls.
        runtime.block_on(tokio::task::coop::unconstrained(async {
            let start = Instant::now();
            for _ in 0..runs {
                call(&mut service).await;
            }
            start.elapsed()
        }))
    })
}

/// Runs calls that need another task, so that both take turns on the runtime.
fn among_others<S>(runtime: &Rc<Runtime>, mut service: S) -> Run
where
    S: Service<Request<Body>> + 'static,
{
    let runtime = Rc::clone(runtime);
    Box::new(move |runs| {
        runtime.block_on(async {
            let start = Instant::now();
            for _ in 0..runs {
                let ready = poll_fn(|cx| service.poll_ready(cx)).await;
                assert!(ready.is_ok());
                assert!(service.call(black_box(request())).await.is_ok());
            }
            start.elapsed()
        })
    })
}

async fn call<S: Service<Request<Body>>>(service: &mut S, request: fn() -> Request<Body>) {
    let ready = poll_fn(|cx| service.poll_ready(cx)).await;
    assert!(ready.is_ok());
    let mut answer = pin!(service.call(black_box(request())));
    poll_fn(|cx| {
        for _ in 0..2 {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                assert!(answer.is_ok());
                return Poll::Ready(());
            }
        }
        unreachable!("pending more than once")
    })
    .await;
}
