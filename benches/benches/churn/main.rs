//! Servers that close: after so many requests on a connection, or after so many
//! milliseconds without one. How many calls fail, and is any request sent
//! twice?
//!
//! "tollway" is the composed client, of Stripe's profile without its limits;
//! a POST of its carries a key unless the case says otherwise. "pool" is the
//! pool alone, without keys and without retries. hyper-util's legacy client and
//! reqwest stand beside them as they come. The server's ledger is the witness:
//! "twice" counts requests without a key that took effect more than once, and
//! "false" counts failures that were called not executed although the request
//! had taken effect.
//!
//! Its timers are real. Each caller pauses between calls, for up to twice the
//! server's patience.

mod contestants;
mod figures;
mod server;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::Full;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tollway_benches::Report;
use tollway_core::BoxError;

use contestants::{Contestant, contestants};
use figures::Figures;
use server::{Closes, Server, Version};

type Body = Full<Bytes>;

const CALLERS: usize = 16;
const CALLS: usize = 100;
const SENT: &str = "amount=1100";

const SWEEP: [Closes; 6] = [
    Closes::AfterRequests(1),
    Closes::AfterRequests(2),
    Closes::AfterRequests(10),
    Closes::AfterIdle(Duration::from_millis(1)),
    Closes::AfterIdle(Duration::from_millis(5)),
    Closes::AfterIdle(Duration::from_millis(20)),
];

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut report = Report::new("churn");
    for (version, name) in [(Version::Http1, "HTTP/1.1"), (Version::Http2, "HTTP/2")] {
        for closes in SWEEP {
            for (method, keyed, what) in [
                (Method::GET, false, "GET"),
                (Method::POST, true, "POST with a key"),
                (Method::POST, false, "POST"),
            ] {
                for (who, call) in contestants(version, keyed)? {
                    let case = format!("{name}, {}, {what}", closes.name());
                    let figures = run(version, closes, &method, call).await?;
                    figures.report(&mut report, &case, who, keyed || method == Method::GET);
                }
            }
        }
    }
    report.finish()?;
    Ok(())
}

async fn run(
    version: Version,
    closes: Closes,
    method: &Method,
    call: Contestant,
) -> Result<Figures, BoxError> {
    let server = Server::start(version, closes).await?;
    let uri: Uri = format!("http://{}/v1/payouts", server.addr).parse()?;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (call, method, uri) = (call.clone(), method.clone(), uri.clone());
        callers.spawn(async move {
            let mut outcomes = Vec::new();
            for number in 0..CALLS {
                let name = format!("{caller}-{number}");
                let request = request(&method, &uri, &name);
                outcomes.push((name, call(request).await));
                sleep(closes.pause().mul_f64(rand::random())).await;
            }
            outcomes
        });
    }
    let outcomes = callers.join_all().await.concat();
    Ok(Figures::of(&outcomes, &server))
}

/// The call of this name.
fn request(method: &Method, uri: &Uri, name: &str) -> Request<Body> {
    let mut request = Request::new(Body::from(SENT));
    *request.method_mut() = method.clone();
    *request.uri_mut() = uri.clone();
    if let Ok(value) = name.parse() {
        request.headers_mut().insert("x-call", value);
    }
    request
}
