//! Those who call.

use std::time::Duration;

use http::{Request, Response, StatusCode};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep, sleep_until};
use tower::{Service, ServiceExt};

/// When callers send.
#[derive(Clone, Copy)]
pub(crate) enum Load {
    /// As fast as they are let.
    Saturating,
    /// The first trickles at 2 a second; the others send in the last 2 s of
    /// every 6.5 s.
    OnOff,
    /// One request each, at once.
    Once,
}

impl Load {
    /// Until the caller of this index may send again.
    async fn turn(self, index: usize, start: Instant) {
        match self {
            Self::OnOff if index == 0 => {
                let tick = start.elapsed().as_millis() as u64 / 500 + 1;
                sleep_until(start + Duration::from_millis(500 * tick)).await;
            }
            Self::OnOff => {
                let into = start.elapsed().as_millis() % 6500;
                if into < 4500 {
                    sleep(Duration::from_millis(4500 - into as u64)).await;
                }
            }
            Self::Saturating | Self::Once => {}
        }
    }
}

/// One caller: sends, and after a rejection backs off with full jitter, three
/// times.
pub(crate) async fn call<S>(
    service: S,
    load: Load,
    index: usize,
    start: Instant,
    mut random: StdRng,
) where
    S: Service<Request<()>, Response = Response<()>> + Clone,
{
    loop {
        load.turn(index, start).await;
        for attempt in 0..4 {
            let request = Request::new(());
            let Ok(response) = service.clone().oneshot(request).await else {
                break;
            };
            if response.status() == StatusCode::OK {
                break;
            }
            let most = 100u64 << attempt;
            sleep(Duration::from_millis(random.random_range(0..=most))).await;
        }
        if let Load::Once = load {
            return;
        }
    }
}
