//! What whoever listens is told.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;

use tollway_core::Verdict;
use tollway_retry::Budget;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::support::*;

type Fields = BTreeMap<&'static str, String>;

thread_local! {
    static EVENTS: RefCell<Vec<Fields>> = const { RefCell::new(Vec::new()) };
}

/// Keeps the events of the layer, each thread's apart. It has to listen on all
/// of them: whether somebody does is decided for the whole process.
struct Listener;

struct Collect<'a>(&'a mut Fields);

impl Visit for Collect<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        panic!("tracing-opentelemetry would make a text of {field} = {value}");
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "tollway::retry"
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let level = event.metadata().level().to_string();
        let mut fields = Fields::from([("level", level)]);
        event.record(&mut Collect(&mut fields));
        EVENTS.with_borrow_mut(|events| events.push(fields));
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test(start_paused = true)]
async fn each_retry_and_the_reason_to_stop_are_told() {
    tracing::subscriber::set_global_default(Listener).unwrap();
    let gateway = Gateway::answering([error(Verdict::NO_EFFECT), Ok(status(503))]);
    let budget = Budget::builder()
        .capacity(1)
        .per_second(0.0)
        .build()
        .unwrap();
    let response = call(policy().budget(budget), &gateway, post_with_key()).await;
    assert_eq!(response.unwrap().status(), 503);

    let events = EVENTS.take();
    let [retry, stop] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(retry["message"], "retrying");
    assert_eq!(retry["http.request.resend_count"], "1");
    assert_eq!(retry["error.type"], "\"connect\"");
    assert_eq!(retry["tollway.verdict"], "\"not_executed\"");
    assert_eq!(retry["tollway.retry.delay"], "0.0");
    assert_eq!(stop["message"], "outcome unknown");
    assert_eq!(stop["level"], "WARN");
    assert_eq!(stop["http.request.resend_count"], "1");
    assert_eq!(stop["http.response.status_code"], "503");
    assert_eq!(stop["tollway.retry.stop"], "\"budget\"");
    // The key is a secret.
    assert!(!format!("{events:?}").contains("order-1"));

    // A look-up that failed isn't looked up.
    let gateway = Gateway::answering([Ok(status(503))]);
    call(policy().max_attempts(1), &gateway, get())
        .await
        .unwrap();
    let events = EVENTS.take();
    let [stop] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(stop["message"], "call ended");
    assert_eq!(stop["level"], "DEBUG");
    assert_eq!(stop["tollway.verdict"], "\"unknown\"");
}
