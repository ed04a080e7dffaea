//! Copies of heads, and the boxes that they are kept in.

use http::header;
use proptest::prelude::*;
use tollway_core::{Endpoint, IdempotencyKey, Priority};

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Foreign(u8);

proptest! {
    #[test]
    fn a_copy_is_equal(
        fields in prop::collection::vec(("[a-c]{1,2}", "[ -~]{0,8}", any::<bool>()), 0..20),
        foreign: bool,
    ) {
        let mut request = Request::post("https://pay.example/v1/charges?x=1").body(()).unwrap();
        *request.version_mut() = Version::HTTP_2;
        for (name, value, sensitive) in fields {
            let mut value = HeaderValue::from_str(&value).unwrap();
            value.set_sensitive(sensitive);
            request.headers_mut().append(HeaderName::try_from(name).unwrap(), value);
        }
        let endpoint = Endpoint::post("/v1/charges");
        let key: IdempotencyKey = "k-1".parse().unwrap();
        let deadline = Deadline::at(Instant::now());
        request.extensions_mut().insert(endpoint.clone());
        request.extensions_mut().insert(key.clone());
        request.extensions_mut().insert(deadline);
        request.extensions_mut().insert(Priority::High);
        if foreign {
            request.extensions_mut().insert(Foreign(1));
        }

        let mut head = KeptHead::of(&request);
        prop_assert_eq!(head.deadline(), Some(deadline));
        for copy in [head.to_request(()), head.take_request(())] {
            prop_assert_eq!(copy.method(), request.method());
            prop_assert_eq!(copy.uri(), request.uri());
            prop_assert_eq!(copy.version(), request.version());
            prop_assert_eq!(copy.headers(), request.headers());
            for (name, value) in copy.headers() {
                let same = request.headers().get_all(name).iter()
                    .any(|v| v == value && v.is_sensitive() == value.is_sensitive());
                prop_assert!(same);
            }
            let extensions = copy.extensions();
            prop_assert_eq!(extensions.len(), request.extensions().len());
            prop_assert_eq!(Endpoint::of(extensions), Some(&endpoint));
            prop_assert_eq!(IdempotencyKey::of(extensions), Some(&key));
            prop_assert_eq!(Deadline::of(extensions), Some(deadline));
            prop_assert_eq!(Priority::of(extensions), Priority::High);
            prop_assert_eq!(extensions.get::<Foreign>().is_some(), foreign);
        }
    }
}

#[test]
fn the_earlier_of_the_carried_deadline_and_the_held_one_is_the_attempts() {
    let sooner = Deadline::at(Instant::now());
    let later = Deadline::at(Instant::now() + std::time::Duration::from_secs(1));
    for (carried, held) in [(sooner, later), (later, sooner)] {
        let mut request = Request::new(());
        carried.insert_into(request.extensions_mut());
        let known = KeptHead::of(&request);
        request.extensions_mut().insert(Foreign(1));
        let any = KeptHead::of(&request);
        let nothing = KeptHead::of(&Request::new(()));
        let _held = held.hold(None);
        assert_eq!(known.deadline(), Some(sooner));
        assert_eq!(any.deadline(), Some(sooner));
        assert_eq!(nothing.deadline(), Some(held));
    }
}

#[test]
fn a_box_that_waits_holds_nothing_of_the_last_call() {
    let bytes = bytes::Bytes::from(b"secret".to_vec());
    let mut request = Request::new(());
    let value = HeaderValue::from_maybe_shared(bytes.clone()).unwrap();
    request.headers_mut().insert(header::AUTHORIZATION, value);
    let held = std::sync::Arc::new(());
    request
        .extensions_mut()
        .insert(std::sync::Arc::clone(&held));
    let head = KeptHead::of(&request);
    assert!(!bytes.is_unique());
    drop((request, head));
    assert!(bytes.is_unique());
    assert_eq!(std::sync::Arc::strong_count(&held), 1);
    // And the next call starts with an empty one.
    let head = KeptHead::of(&Request::new(()));
    assert!(head.to_request(()).headers().is_empty());
}

#[test]
fn no_more_boxes_wait_than_are_worth_it() {
    let request = Request::new(());
    let heads: Vec<_> = (0..2 * MAX_SPARE).map(|_| KeptHead::of(&request)).collect();
    drop(heads);
    assert_eq!(SPARE.with_borrow(Vec::len), MAX_SPARE);
}

#[test]
fn a_box_that_waits_keeps_room_for_a_few_headers() {
    let mut request = Request::new(());
    for n in 0..100 {
        let name = HeaderName::try_from(format!("x-{n}")).unwrap();
        request.headers_mut().insert(name, HeaderValue::from(n));
    }
    drop(KeptHead::of(&request));
    let rooms = SPARE.with_borrow(|spare| {
        let head = spare.last().unwrap();
        [head.names.capacity(), head.values.capacity()]
    });
    assert_eq!(rooms, [MAX_ROOM; 2]);
}
