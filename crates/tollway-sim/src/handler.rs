//! One request, from its head to its answer, with whatever goes wrong in between.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use rand::rngs::StdRng;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::body::SimBody;
use crate::call::{self, Call};
use crate::connection::{Busy, Control};
use crate::desk::{self, Answer};
use crate::dialect::{self, Dialect, Found, Route};
use crate::faults::{Fault, FaultDraw, Latency};
use crate::ledger::Books;
use crate::limits::{Arrival, Cap, LimitBook, Refusal, Scope};
use crate::reply::Reply;
use crate::stats::Stats;

/// Bodies beyond this many bytes are refused with a 413.
const LARGEST_BODY: usize = 1024 * 1024;

/// What all connections of a gateway share.
pub(crate) struct Shared {
    pub(crate) dialect: &'static dyn Dialect,
    pub(crate) started: Instant,
    pub(crate) latency: Latency,
    pub(crate) max_requests: Option<u64>,
    pub(crate) goaway_after: Option<u64>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) state: Mutex<State>,
}

/// All that changes, under one lock that is never held across an await.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) faults: FaultDraw,
    pub(crate) latencies: StdRng,
    pub(crate) limits: LimitBook,
    pub(crate) books: Books,
    pub(crate) stats: Stats,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gateway's own endpoints: not counted, not limited, not faulted.
    fn inspect(&self, method: &Method, path: &str) -> Option<Reply> {
        let path = path.strip_prefix("/_sim/")?;
        let failure = |status| Some(self.dialect.failure(status));
        if method != Method::GET {
            return failure(StatusCode::METHOD_NOT_ALLOWED);
        }
        match path {
            "ledger" => Some(show(&self.state().books.snapshot())),
            "stats" => Some(show(&self.state().stats)),
            _ => failure(StatusCode::NOT_FOUND),
        }
    }
}

fn show(value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(json) => Reply::new(StatusCode::OK, json),
        Err(_) => Reply::new(StatusCode::INTERNAL_SERVER_ERROR, "{}"),
    }
}

/// How a request that gets no answer ends. On HTTP/2 its stream is reset with this reason; on
/// HTTP/1.1 it ends the connection.
type NoAnswer = h2::Error;

/// Answers one request, or doesn't.
pub(crate) async fn handle(
    shared: Arc<Shared>,
    control: Arc<Control>,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<SimBody>, NoAnswer> {
    let (busy, nth) = control.begin();
    let (head, body) = request.into_parts();
    let mut exchange = Exchange {
        shared: &shared,
        control: &control,
        version: head.version,
        last: false,
    };
    exchange.count_towards_the_last(nth);
    if let Some(reply) = shared.inspect(&head.method, head.uri.path()) {
        return Ok(exchange.whole(&reply, busy));
    }
    shared.state().stats.arrived(control.index, head.version);
    let (route, parameter) =
        match dialect::find(shared.dialect.routes(), &head.method, head.uri.path()) {
            Found::Route(route, parameter) => (
                route,
                parameter.map(|segment| call::decode(segment).into_owned()),
            ),
            other => {
                shared.state().stats.accepted += 1;
                let status = match other {
                    Found::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
                    _ => StatusCode::NOT_FOUND,
                };
                return Ok(exchange.whole(&shared.dialect.failure(status), busy));
            }
        };
    let fault = exchange.draw(route);
    if matches!(fault, Some(Fault::ResetBeforeRead | Fault::RefusedStream)) {
        return Err(exchange.reset(fault));
    }
    let host = host(&head);
    let call = match exchange.read(route, parameter, head, body).await? {
        Ok(call) => call,
        Err(reply) => return Ok(exchange.whole(&reply, busy)),
    };
    match exchange.admit(&call, peer, &host, fault) {
        Ok(admitted) => exchange.answer(admitted, fault, busy).await,
        Err(reply) => Ok(exchange.whole(&reply, busy)),
    }
}

fn host(head: &Parts) -> String {
    let header = || head.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = head.uri.authority().map(|authority| authority.as_str());
    host.or_else(header).unwrap_or_default().to_owned()
}

struct Exchange<'a> {
    shared: &'a Shared,
    control: &'a Control,
    version: Version,
    /// Whether the connection takes no more requests on HTTP/1.1.
    last: bool,
}

/// A request that the limits let through.
struct Admitted {
    /// When its answer is due.
    due: Duration,
    /// `None` where a fault keeps the request from the core.
    reply: Option<Reply>,
}

impl Exchange<'_> {
    fn is_http2(&self) -> bool {
        self.version == Version::HTTP_2
    }

    fn count_towards_the_last(&mut self, nth: u64) {
        if self.is_http2() {
            if self.shared.goaway_after == Some(nth) {
                self.control.finish();
            }
        } else if self.shared.max_requests.is_some_and(|most| nth >= most) {
            self.last = true;
        }
    }

    fn draw(&self, route: &Route) -> Option<Fault> {
        let mut state = self.shared.state();
        let fault = state.faults.next(route.writes());
        if let Some(fault) = &fault {
            state.stats.faulted(fault.name());
        }
        fault
    }

    /// Reads the body. The outer error is a client that broke off.
    async fn read(
        &self,
        route: &'static Route,
        mut object: Option<String>,
        head: Parts,
        body: Incoming,
    ) -> Result<Result<Call, Reply>, NoAnswer> {
        let dialect = self.shared.dialect;
        let payload: Bytes = match Limited::new(body, LARGEST_BODY).collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Ok(Err(dialect.failure(StatusCode::PAYLOAD_TOO_LARGE)));
            }
            Err(_) => return Err(h2::Reason::CANCEL.into()),
        };
        let fields = call::fields(&head.headers, &payload);
        if let dialect::Action::Create(resource) = route.action {
            object = resource
                .parent
                .and_then(|parent| call::text_at(fields.as_ref()?, &[parent]));
        }
        Ok(Ok(Call {
            route,
            object,
            query: call::query(head.uri.query()),
            headers: head.headers,
            payload,
            fields,
        }))
    }

    /// Puts a request to the limits and then to the core, in one step: no other request comes
    /// in between.
    fn admit(
        &self,
        call: &Call,
        peer: IpAddr,
        host: &str,
        fault: Option<Fault>,
    ) -> Result<Admitted, Reply> {
        let Shared { dialect, .. } = *self.shared;
        let mut state = self.shared.state();
        let State {
            latencies,
            limits,
            books,
            stats,
            ..
        } = &mut *state;
        let now = self.shared.started.elapsed();
        let latency = self.shared.latency.draw(latencies);
        let due = now.saturating_add(latency);
        let busy_until = due.saturating_add(fault.map(|fault| fault.holds()).unwrap_or_default());
        let arrival = Arrival {
            route: call.route,
            ip: peer,
            host,
            object: call.object.as_deref(),
        };
        let verdict = if dialect.wants_throttling(&call.headers) {
            Err(Box::new(asked_for()))
        } else {
            limits.admit(&arrival, now, busy_until)
        };
        if let Err(refusal) = verdict {
            stats.throttled += 1;
            stats.blocks += u64::from(refusal.starts_block);
            return Err(dialect.throttled(&refusal));
        }
        stats.accepted += 1;
        let kept_away = fault.is_some_and(|fault| fault.prevents_effect());
        if kept_away {
            return Ok(Admitted { due, reply: None });
        }
        let Answer { reply, due } = desk::perform(dialect, books, call, now, due);
        let reply = Some(reply);
        Ok(Admitted { due, reply })
    }

    /// Sends the answer when it is due, or what a fault makes of it.
    async fn answer(
        mut self,
        admitted: Admitted,
        fault: Option<Fault>,
        busy: Busy,
    ) -> Result<Response<SimBody>, NoAnswer> {
        let dialect = self.shared.dialect;
        let wait = admitted.due.saturating_sub(self.shared.started.elapsed());
        // Even a sleep of no time at all may last until the timer's next tick.
        if !wait.is_zero() {
            sleep(wait).await;
        }
        let status =
            |code: u16| StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        match (fault, admitted.reply) {
            (None | Some(Fault::SlowBody(Duration::ZERO)), Some(reply)) => {
                Ok(self.whole(&reply, busy))
            }
            (Some(Fault::GoAway), Some(reply)) => {
                self.last = true;
                if self.is_http2() {
                    self.control.finish();
                }
                Ok(self.whole(&reply, busy))
            }
            (Some(Fault::HalfResponse), Some(reply)) => {
                let body = SimBody::half(&reply.body, busy);
                Ok(self.promising_length(&reply, body))
            }
            (Some(Fault::SlowBody(over)), Some(reply)) => {
                let body = SimBody::slow(reply.body.clone(), over, busy);
                Ok(self.promising_length(&reply, body))
            }
            (Some(Fault::ErrorBefore(code) | Fault::ErrorAfter(code)), _) => {
                Ok(self.whole(&dialect.failure(status(code)), busy))
            }
            (Some(Fault::Refuse(code)), _) => Ok(self.whole(&dialect.refused(status(code)), busy)),
            (Some(Fault::LockTimeout), _) => Ok(self.whole(&dialect.lock_timeout(), busy)),
            (Some(Fault::Hang(time) | Fault::HangAfterEffect(time)), _) => {
                sleep(time).await;
                Err(self.reset(fault))
            }
            (Some(Fault::AbortConnection), _) if self.is_http2() => {
                self.control.abort();
                // Not a reset of the stream first: the client could take the connection for
                // sound, and send another request into its end.
                std::future::pending().await
            }
            // The resets, and a request that was kept from the core.
            _ => Err(self.reset(fault)),
        }
    }

    /// Ends the request with a reset in place of an answer.
    fn reset(&self, fault: Option<Fault>) -> NoAnswer {
        match fault {
            _ if !self.is_http2() => {
                // The connection ends with the request, and nobody else is on it.
                self.control.reset_on_close();
                h2::Reason::CANCEL.into()
            }
            Some(Fault::RefusedStream) => h2::Reason::REFUSED_STREAM.into(),
            _ => h2::Reason::INTERNAL_ERROR.into(),
        }
    }

    fn whole(&self, reply: &Reply, busy: Busy) -> Response<SimBody> {
        self.finish_head(reply.around(SimBody::whole(reply.body.clone(), busy)))
    }

    fn promising_length(&self, reply: &Reply, body: SimBody) -> Response<SimBody> {
        let mut response = self.finish_head(reply.around(body));
        let length = HeaderValue::from(reply.body.len());
        response.headers_mut().insert(CONTENT_LENGTH, length);
        response
    }

    fn finish_head(&self, mut response: Response<SimBody>) -> Response<SimBody> {
        let headers: &mut HeaderMap = response.headers_mut();
        if self.last && !self.is_http2() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The refusal of a request that asked to be refused.
const fn asked_for() -> Refusal {
    Refusal {
        scope: Scope::EachPath,
        cap: Cap::InFlight(0),
        retry_after: Duration::ZERO,
        starts_block: false,
    }
}
