//! Those who call, one call at a time each.

use std::future::{Future, ready};
use std::time::Duration;

use tokio::runtime::{self, Runtime};
use tokio::time::Instant;
use tollway_core::BoxError;

use crate::exchange::ANSWER;

/// How many callers there are at once.
pub(crate) const CALLERS: usize = 64;
/// How long a turn is.
const TURN: Duration = Duration::from_millis(100);

/// One client, with as many callers as there may be.
pub(crate) trait Contestant {
    fn who(&self) -> &'static str;
    /// So many calls, one after the other.
    fn run(&mut self, calls: u32);
    /// How many calls a second so many callers get done.
    fn rate(&mut self, in_flight: usize) -> f64;
}

/// Somebody who makes one call at a time.
pub(crate) trait Caller: Send + 'static {
    /// The length of the answer.
    fn call(&mut self) -> impl Future<Output = usize> + Send;
}

pub(crate) struct Callers<C> {
    who: &'static str,
    runtime: Runtime,
    callers: Vec<C>,
}

impl<C: Caller> Callers<C> {
    /// Each of them made anew.
    pub(crate) fn made<Fut>(
        who: &'static str,
        make: impl Fn() -> Fut,
    ) -> Result<Box<dyn Contestant>, BoxError>
    where
        Fut: Future<Output = Result<C, BoxError>>,
    {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let callers = runtime.block_on(async {
            let mut callers = Vec::new();
            for _ in 0..CALLERS {
                callers.push(make().await?);
            }
            Ok::<_, BoxError>(callers)
        })?;
        Ok(Box::new(Self {
            who,
            runtime,
            callers,
        }))
    }

    /// All of them clones of one.
    pub(crate) fn clones(who: &'static str, one: &C) -> Result<Box<dyn Contestant>, BoxError>
    where
        C: Clone,
    {
        Self::made(who, || ready(Ok(one.clone())))
    }
}

impl<C: Caller> Contestant for Callers<C> {
    fn who(&self) -> &'static str {
        self.who
    }

    fn run(&mut self, calls: u32) {
        let caller = &mut self.callers[0];
        self.runtime.block_on(async {
            for _ in 0..calls {
                assert_eq!(caller.call().await, ANSWER.len());
            }
        });
    }

    fn rate(&mut self, in_flight: usize) -> f64 {
        let callers: Vec<C> = self.callers.drain(..in_flight).collect();
        let (callers, calls, took) = self.runtime.block_on(async move {
            let began = Instant::now();
            let until = began + TURN;
            let tasks: Vec<_> = callers
                .into_iter()
                .map(|mut caller| {
                    tokio::spawn(async move {
                        let mut calls = 0_u32;
                        while Instant::now() < until {
                            assert_eq!(caller.call().await, ANSWER.len());
                            calls += 1;
                        }
                        (caller, calls)
                    })
                })
                .collect();
            let (mut back, mut calls) = (Vec::new(), 0);
            for task in tasks {
                let (caller, made) = task.await.unwrap_or_else(|error| panic!("{error}"));
                back.push(caller);
                calls += made;
            }
            (back, calls, began.elapsed())
        });
        self.callers.splice(0..0, callers);
        f64::from(calls) / took.as_secs_f64()
    }
}
