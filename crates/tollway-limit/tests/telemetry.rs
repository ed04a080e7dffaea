//! What a listener hears.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use tokio::time::Instant;
use tollway_core::{Deadline, Scope, Verdict};
use tollway_limit::{Call, Limits, Quota, Shape};

/// What was written, for all who write.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn waits_refusals_and_pauses_are_told() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);

    let quota = Quota::per_second(1).shape(Shape::Burst);
    let quota = quota.penalty(Duration::from_secs(3));
    let limits = Limits::builder().every_call(quota).build().unwrap();
    let call = Call::new(&Method::GET, "/");
    drop(limits.acquire(&call).await.unwrap());
    let permit = limits.acquire(&call).await.unwrap();
    permit.over(Verdict::NotExecuted {
        retry_after: None,
        scope: Scope::GlobalRate,
    });
    let soon = || Deadline::after(Instant::now(), Duration::from_secs(2)).unwrap();
    assert!(limits.acquire(&call.deadline(soon())).await.is_err());
    // A lock on one object pauses nothing.
    let permit = limits.acquire(&call).await.unwrap();
    permit.over(Verdict::NotExecuted {
        retry_after: Some(Duration::from_secs(1)),
        scope: Scope::Call,
    });
    // One that waits for an attempt in flight learns only at its deadline.
    let busy = Limits::builder().every_call(Quota::concurrent(1));
    let busy = busy.build().unwrap();
    let held = busy.acquire(&call).await.unwrap();
    assert!(busy.acquire(&call.deadline(soon())).await.is_err());
    drop(held);
    drop(guard);

    let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    let events: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once("tollway::limit: "))
        .map(|(_, event)| event)
        .collect();
    let [waited, refused, none, paused, call, late] = events[..] else {
        panic!("{text}");
    };
    assert_eq!(waited, "waited for a permit tollway.limit.wait=1.0");
    let event = "the provider refused an attempt tollway.limit.scope=";
    assert_eq!(
        refused,
        format!("{event}\"global_rate\" tollway.limit.pause=3.0")
    );
    let no_permit = "gave no permit tollway.limit.reason=\"deadline\"";
    assert_eq!(none, format!("{no_permit} tollway.limit.wait=3.0"));
    assert_eq!(paused, "waited for a permit tollway.limit.wait=3.0");
    assert_eq!(
        call,
        format!("{event}\"call\" tollway.limit.retry_after=1.0")
    );
    assert_eq!(late, no_permit);
}
