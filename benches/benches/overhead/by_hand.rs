//! The duties of the five layers in one function, for one kind of call, and for
//! the case alone that all goes well: what there is to do at the least. It
//! decides nothing, tells nobody of the deadline, and leaves out whatever a
//! layer has to be ready for.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::pin::pin;
use std::sync::Mutex;
use std::task::Poll;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, Request, Response};
use tokio::time::{Instant, sleep_until};
use tower::Service;

use crate::bare::{Bare, Body, request};
use crate::cases::Group;
use crate::{ATTEMPT_TIMEOUT, CALL_TIMEOUT, LIMIT, WINDOW};

pub(crate) fn add<const PENDING: bool>(group: &mut Group) {
    let duties = ByHand::<PENDING>::default();
    group.calls("stack", "by hand", duties, async |duties| {
        duties.call(black_box(request())).await;
    });
}

struct ByHand<const PENDING: bool> {
    window: Mutex<VecDeque<Instant>>,
}

impl<const PENDING: bool> Default for ByHand<PENDING> {
    fn default() -> Self {
        Self {
            window: VecDeque::new().into(),
        }
    }
}

impl<const PENDING: bool> ByHand<PENDING> {
    async fn call(&self, mut request: Request<Body>) -> Response<Body> {
        const KEY: HeaderName = HeaderName::from_static("idempotency-key");
        let start = Instant::now();
        let deadline = start + CALL_TIMEOUT;
        let millis = SystemTime::now().duration_since(UNIX_EPOCH);
        let millis = u64::try_from(millis.unwrap_or_default().as_millis()).unwrap_or(0);
        let key = uuid::Builder::from_unix_timestamp_millis(millis, &rand::random());
        let mut text = uuid::Uuid::encode_buffer();
        let text = key.into_uuid().hyphenated().encode_lower(&mut text);
        let key = HeaderValue::from_str(text).expect("a valid header");
        request.headers_mut().insert(KEY, key);
        let kept = request.clone();
        {
            let mut window = self.window.lock().expect("no panic");
            while window.front().is_some_and(|&end| end <= start) {
                window.pop_front();
            }
            assert!(window.len() < LIMIT as usize);
        }
        let answer = Bare::<PENDING>.call(request);
        let end = deadline.min(start + ATTEMPT_TIMEOUT);
        let mut sleep = pin!(None);
        let mut answer = pin!(answer);
        let response = poll_fn(|cx| {
            loop {
                if let Poll::Ready(Ok(response)) = answer.as_mut().poll(cx) {
                    return Poll::Ready(response);
                }
                if sleep.is_none() {
                    sleep.set(Some(sleep_until(end)));
                }
                let sleep = sleep.as_mut().as_pin_mut().expect("just made");
                assert!(sleep.poll(cx).is_pending());
            }
        })
        .await;
        let mut window = self.window.lock().expect("no panic");
        window.push_back(Instant::now() + WINDOW);
        if !response.status().is_success() {
            black_box(&kept);
        }
        response
    }
}
