use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use http::HeaderMap;
use http_body_util::combinators::WithTrailers;
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;

use super::*;

/// The body of the first attempt, and what the later ones are made from.
fn open<B>(mut body: B, bound: usize) -> (ReplayBody<B>, Replay<B>)
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    let opening = Opening::of(&mut body, bound);
    let replay = opening.replay();
    let first = opening
        .whole()
        .unwrap_or_else(|opening| opening.first(body));
    (first, replay)
}

/// A body of these frames. Pending where there is none yet, until it is closed.
#[derive(Default)]
struct Script {
    steps: VecDeque<Step>,
    exact: Option<u64>,
    alive: Arc<()>,
}

#[derive(Clone, Debug)]
enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Error,
    Panic,
    /// Once.
    Pending,
    End,
}

impl Script {
    fn of(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            ..Self::default()
        }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.steps.pop_front() {
            Some(Step::Data(data)) => {
                if let Some(left) = &mut self.exact {
                    *left -= data.len() as u64;
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Step::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Step::Error) => Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into()))),
            Some(Step::Panic) => panic!("as a timer of a runtime that has ended"),
            Some(Step::End) => Poll::Ready(None),
            Some(Step::Pending) | None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.exact == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.exact.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

fn data(text: &str) -> Step {
    Step::Data(Bytes::copy_from_slice(text.as_bytes()))
}

fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("checksum", "4711".parse().unwrap());
    trailers
}

type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

fn poll<B>(body: &mut ReplayBody<B>) -> Polled
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
}

/// All that can be read at once: the data, and the trailers.
fn read<B>(body: &mut ReplayBody<B>) -> (Vec<u8>, Option<HeaderMap>)
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    let mut all = (Vec::new(), None);
    while let Poll::Ready(Some(frame)) = poll(body) {
        match frame.unwrap().into_data() {
            Ok(data) => all.0.extend_from_slice(&data),
            Err(frame) => all.1 = frame.into_trailers().ok(),
        }
    }
    all
}

fn assert_superseded<B>(body: &mut ReplayBody<B>)
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    let Poll::Ready(Some(Err(error))) = poll(body) else {
        panic!("not an error");
    };
    assert!(error.is::<Superseded>());
    // Nothing of it may look like a whole body.
    assert!(!body.is_end_stream());
    assert_eq!(body.size_hint().exact(), None);
}

#[test]
fn a_body_that_is_whole_is_shared_not_copied() {
    let bytes = Bytes::from(vec![7; 1 << 20]);
    // The bound is for what would have to be recorded.
    let (mut first, replay) = open(Full::new(bytes.clone()), 1024);
    for body in [&mut first, &mut replay.next(), &mut replay.next()] {
        assert_eq!(body.size_hint().exact(), Some(1 << 20));
        let Poll::Ready(Some(Ok(frame))) = poll(body) else {
            panic!("no frame");
        };
        assert_eq!(frame.into_data().unwrap().as_ptr(), bytes.as_ptr());
        assert!(body.is_end_stream());
        assert!(matches!(poll(body), Poll::Ready(None)));
    }
}

#[test]
fn an_empty_body_stays_empty() {
    let (first, replay) = open(Full::<Bytes>::default(), 0);
    for body in [first, replay.next()] {
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
    }
}

#[test]
fn a_stream_is_recorded_with_its_trailers() {
    let script = [data("ab"), data("cde"), Step::Trailers(trailers())];
    let (mut first, replay) = open(Script::of(script), 1024);
    assert_eq!(read(&mut first), (b"abcde".to_vec(), Some(trailers())));
    for _ in 0..3 {
        assert!(replay.is_possible());
        let mut again = replay.next();
        assert_eq!(read(&mut again), (b"abcde".to_vec(), Some(trailers())));
        assert!(again.is_end_stream());
    }
}

#[test]
fn a_whole_body_with_trailers_keeps_them() {
    for text in ["abc", ""] {
        let trailing = std::future::ready(Some(Ok::<_, Infallible>(trailers())));
        let body: WithTrailers<Full<Bytes>, _> = Full::from(text).with_trailers(trailing);
        let (mut first, replay) = open(body, 1024);
        let all = (text.as_bytes().to_vec(), Some(trailers()));
        assert_eq!(read(&mut first), all);
        assert_eq!(read(&mut replay.next()), all);
    }
}

/// `Content-Length` is made from it, and may not differ between attempts.
#[test]
fn the_size_hint_is_the_same_on_every_attempt() {
    let mut script = Script::of([data("ab"), Step::Pending, data("cde")]);
    script.exact = Some(5);
    let (mut first, replay) = open(script, 1024);
    assert_eq!(first.size_hint().exact(), Some(5));
    assert_eq!(read(&mut first).0, b"ab");
    assert_eq!(first.size_hint().exact(), Some(3));
    let mut second = replay.next();
    assert_eq!(second.size_hint().exact(), Some(5));
    assert_eq!(read(&mut second).0, b"abcde");
    assert!(second.is_end_stream());
    assert_eq!(replay.next().size_hint().exact(), Some(5));
}

/// A body without a length is sent in chunks, and only there HTTP/1.1 has room
/// for trailers: the next attempt may not come with a length.
#[test]
fn a_body_of_unknown_length_is_so_on_every_attempt() {
    let script = [data("ab"), data("cde"), Step::Trailers(trailers())];
    let (mut first, replay) = open(Script::of(script), 1024);
    assert_eq!(first.size_hint().exact(), None);
    read(&mut first);
    let again = replay.next();
    assert_eq!(again.size_hint().exact(), None);
    assert_eq!(again.size_hint().lower(), 5);
}

#[test]
fn an_attempt_dropped_half_sent_leaves_the_rest_to_the_next() {
    let (mut first, replay) = open(Script::of([data("ab"), data("cd"), Step::End]), 99);
    assert!(poll(&mut first).is_ready());
    drop(first);
    assert!(replay.is_possible());
    assert_eq!(read(&mut replay.next()).0, b"abcd");
}

#[test]
fn a_body_that_nothing_was_read_of_can_be_sent_whatever_its_size() {
    let (first, replay) = open(Script::of([data(&"x".repeat(4096))]), 100);
    drop(first);
    assert!(replay.is_possible());
    let mut second = replay.next();
    assert_eq!(read(&mut second).0.len(), 4096);
    assert!(!replay.is_possible());
}

#[test]
fn a_body_that_outgrows_the_bound_is_sent_but_not_again() {
    let long = "x".repeat(60);
    let script = [
        data(&long),
        data(&long),
        data("end"),
        Step::Trailers(trailers()),
    ];
    let (mut first, replay) = open(Script::of(script), 100);
    assert!(poll(&mut first).is_ready());
    assert!(replay.is_possible());
    let (rest, ending) = read(&mut first);
    assert_eq!((rest.len(), ending), (63, Some(trailers())));
    assert!(!replay.is_possible());
}

#[test]
fn a_first_frame_that_was_there_at_once_counts_against_the_bound() {
    let mut script = Script::of([data(&"x".repeat(60)), data(&"x".repeat(60))]);
    script.exact = Some(120);
    let (mut first, replay) = open(script, 100);
    assert!(poll(&mut first).is_ready());
    assert!(replay.is_possible());
    assert!(poll(&mut first).is_ready());
    assert!(!replay.is_possible());
}

/// A frame costs memory of its own, so a body sent byte by byte is bounded as
/// well.
#[test]
fn the_bound_holds_for_a_body_sent_byte_by_byte() {
    let (mut first, replay) = open(Script::of((0..1000).map(|_| data("x"))), 3200);
    for _ in 0..100 {
        assert!(poll(&mut first).is_ready());
    }
    assert!(replay.is_possible());
    assert!(poll(&mut first).is_ready());
    assert!(!replay.is_possible());
}

#[test]
fn a_body_that_fails_cannot_be_sent_again() {
    let (mut first, replay) = open(Script::of([data("ab"), Step::Error]), 99);
    assert!(poll(&mut first).is_ready());
    assert!(matches!(poll(&mut first), Poll::Ready(Some(Err(_)))));
    assert!(matches!(poll(&mut first), Poll::Ready(None)));
    assert!(!replay.is_possible());
    // Also where it fails before anybody sends it.
    let mut script = Script::of([Step::Error]);
    script.exact = Some(9);
    let (mut first, replay) = open(script, 99);
    assert!(!replay.is_possible());
    // Else a connection could take it for an empty one, and send it.
    assert!(!first.is_end_stream());
    assert_eq!(first.size_hint().exact(), None);
    assert!(matches!(poll(&mut first), Poll::Ready(Some(Err(_)))));
}

/// It panics in the task of a connection, where nobody but the next attempt would
/// notice.
#[test]
fn a_body_that_panics_cannot_be_sent_again() {
    let (mut first, replay) = open(Script::of([data("ab"), Step::Panic, Step::End]), 99);
    assert!(poll(&mut first).is_ready());
    assert!(replay.is_possible());
    let reading = std::panic::AssertUnwindSafe(|| poll(&mut first));
    assert!(std::panic::catch_unwind(reading).is_err());
    assert!(!replay.is_possible());
}

/// A server may answer before it has the whole request. Its connection still
/// sends the body when the next attempt starts.
#[test]
fn an_attempt_that_is_still_sending_is_superseded_and_told_so() {
    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let mut script = Script::of([data("ab"), Step::Pending, data("cd"), Step::End]);
    script.exact = Some(4);
    let (mut first, replay) = open(script, 99);
    assert!(poll(&mut first).is_ready());
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&woken));
    let pending = Pin::new(&mut first).poll_frame(&mut Context::from_waker(&waker));
    assert!(pending.is_pending());

    let mut second = replay.next();
    assert!(woken.0.load(Ordering::Relaxed));
    assert_superseded(&mut first);
    assert!(!first.is_end_stream());
    assert_eq!(first.size_hint().exact(), None);
    assert_eq!(read(&mut second).0, b"abcd");
    assert_superseded(&mut first);
}

/// The connection reads on during the wait for the next attempt, which gets all
/// of the body or nothing.
#[test]
fn what_an_earlier_attempt_still_sends_is_never_missing_from_the_next() {
    let long = "x".repeat(60);
    let script = || Script::of([data(&long), data(&long), data("end"), Step::End]);
    let (mut first, replay) = open(script(), 100);
    assert!(poll(&mut first).is_ready());
    assert!(replay.claim());
    assert_superseded(&mut first);
    assert_eq!(read(&mut replay.next()).0.len(), 123);

    let (mut first, replay) = open(script(), 100);
    assert!(poll(&mut first).is_ready());
    assert!(poll(&mut first).is_ready());
    assert!(!replay.claim());
    let mut second = replay.next();
    assert!(!second.is_end_stream());
    assert!(matches!(poll(&mut second), Poll::Ready(Some(Err(_)))));
    // The first isn't disturbed.
    assert_eq!(read(&mut first).0, b"end");
}

#[test]
fn the_last_attempt_lets_go_of_what_it_has_sent() {
    let (mut first, replay) = open(Script::of([data("ab"), data("cd"), Step::End]), 99);
    assert!(poll(&mut first).is_ready());
    drop(first);
    let mut last = replay.next();
    drop(replay);
    let Kind::Taped { tape, .. } = &last.0 else {
        panic!("not recorded");
    };
    let tape = Arc::clone(tape);
    assert_eq!(read(&mut last).0, b"abcd");
    let tape = lock(&tape);
    assert!(tape.held_bytes() == 0);
    assert!(!tape.can_rewind());
}

#[test]
fn a_body_is_no_larger_than_its_bytes() {
    assert_eq!(size_of::<ReplayBody<Full<Bytes>>>(), size_of::<Bytes>());
}

#[test]
fn nothing_keeps_the_original_once_all_is_dropped() {
    let script = Script::of([data("ab")]);
    let alive = Arc::downgrade(&script.alive);
    let (first, replay) = open(script, 99);
    drop(replay);
    assert!(alive.upgrade().is_some());
    drop(first);
    assert!(alive.upgrade().is_none());
}

#[test]
fn a_call_without_retries_passes_its_body_through() {
    let script = [data("ab"), data("cd"), Step::Trailers(trailers())];
    let (mut only, replay) = open(Script::of(script), 99);
    drop(replay);
    assert_eq!(read(&mut only), (b"abcd".to_vec(), Some(trailers())));
    let Kind::Taped { tape, .. } = &only.0 else {
        panic!("not passed through");
    };
    assert_eq!(lock(tape).held_bytes(), 0);
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => "[a-z]{0,9}".prop_map(|text| data(&text)),
        1 => Just(Step::Pending),
    ];
    prop::collection::vec(step, 0..12)
}

proptest! {
    /// However far each attempt gets: the next one sends the whole body.
    #[test]
    fn every_attempt_sends_the_same_bytes(
        mut steps in steps(),
        reads in prop::collection::vec(0_usize..14, 0..5),
        with_trailers: bool,
        exact: bool,
    ) {
        let whole: Vec<u8> = steps.iter().flat_map(|step| match step {
            Step::Data(data) => data.to_vec(),
            _ => Vec::new(),
        }).collect();
        if with_trailers {
            steps.push(Step::Trailers(trailers()));
        }
        steps.push(Step::End);
        let mut script = Script::of(steps.clone());
        script.exact = (exact && !with_trailers).then_some(whole.len() as u64);
        let (mut body, replay) = open(script, 1 << 16);
        for polls in reads {
            let mut sent = Vec::new();
            for _ in 0..polls {
                if let Poll::Ready(Some(frame)) = poll(&mut body)
                    && let Ok(data) = frame.unwrap().into_data()
                {
                    sent.extend_from_slice(&data);
                }
                prop_assert!(whole.starts_with(&sent));
                prop_assert!(body.size_hint().lower() + sent.len() as u64 <= whole.len() as u64);
            }
            prop_assert!(replay.is_possible());
            body = replay.next();
        }
        let mut sent = (Vec::new(), None);
        // Each pending step stands for a wait.
        for _ in 0..=steps.len() {
            let part = read(&mut body);
            sent.0.extend(part.0);
            sent.1 = sent.1.or(part.1);
        }
        prop_assert_eq!(sent, (whole, with_trailers.then(trailers)));
        prop_assert!(body.is_end_stream());
    }
}
