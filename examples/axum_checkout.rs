//! An axum service that calls a payment gateway through one shared client.
//!
//! `POST /checkout` with `{"reference": "...", "amount": 1250, "currency": "EUR"}`
//! pays through a simulated Stripe that fails now and then. The inbound request
//! has a deadline, which holds for all that its handler does: the outgoing call,
//! its retries and its wait for a permit included, ends with it. Ctrl-C shuts
//! down gracefully: calls in flight finish.

use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::Request;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tollway::core::{BoxError, Priority, Verdict};
use tollway::idempotency::key_from_reference;
use tollway::timeout::{DeadlineLayer, is_timeout};
use tollway::{Body, Client, profiles};
use tollway_sim::{Faults, Gateway, Provider};
use tower::ServiceBuilder;

#[derive(Clone)]
struct Shop {
    client: Client,
    gateway: String,
}

#[derive(Deserialize)]
struct Order {
    reference: String,
    amount: u64,
    currency: String,
}

#[derive(Serialize)]
struct Paid {
    reference: String,
    outcome: &'static str,
}

fn app(shop: Shop) -> Router {
    // The deadline of the inbound request. It holds for the handler's outgoing
    // call too, which is told first and can say whether it was paid.
    let deadline = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(|error: BoxError| async move {
            if is_timeout(&*error) {
                (StatusCode::GATEWAY_TIMEOUT, "out of time\n")
            } else {
                (StatusCode::INTERNAL_SERVER_ERROR, "something went wrong\n")
            }
        }))
        .layer(DeadlineLayer::new(Duration::from_secs(10)));
    Router::new()
        .route("/checkout", post(checkout))
        .layer(deadline)
        .with_state(shop)
}

async fn checkout(State(shop): State<Shop>, Json(order): Json<Order>) -> Result<Response, Failure> {
    // A customer who presses the button twice sends the same reference, and
    // pays once.
    let key = key_from_reference("checkout", &order.reference)?;
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("amount", &order.amount.to_string())
        .append_pair("currency", &order.currency.to_ascii_lowercase())
        .append_pair("metadata[reference]", &order.reference)
        .finish();
    let request = Request::post(format!("{}/v1/payment_intents", shop.gateway))
        .header("content-type", "application/x-www-form-urlencoded")
        .extension(Priority::High)
        .extension(key)
        .body(Body::from(body))?;
    let verdict = match shop.client.send(request).await {
        Ok(response) => Verdict::of_response(&response),
        Err(error) => {
            eprintln!("{}: {error:#}", order.reference);
            error.verdict()
        }
    };
    let (status, outcome) = match verdict {
        Verdict::Done => (StatusCode::OK, "paid"),
        // By the gateway, or by the client: the reference of another order.
        Verdict::Rejected => (StatusCode::PAYMENT_REQUIRED, "refused"),
        // Not by this call, that is: before this program was restarted, another
        // may have paid the order. The same key is safe to try again with.
        Verdict::NotExecuted { .. } => (StatusCode::SERVICE_UNAVAILABLE, "not now, try again"),
        // A real shop notes it, and asks the gateway later, or waits for its
        // webhook.
        Verdict::Unknown => (StatusCode::ACCEPTED, "unknown, we look it up"),
    };
    let reference = order.reference;
    Ok((status, Json(Paid { reference, outcome })).into_response())
}

/// What no caller should see the details of.
struct Failure(BoxError);

impl<E: Into<BoxError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        eprintln!("{}", self.0);
        (StatusCode::BAD_REQUEST, "that is no order\n").into_response()
    }
}

async fn shop(faults: Faults) -> Result<(Shop, Gateway), BoxError> {
    let gateway = Gateway::builder(Provider::Stripe)
        .faults(faults)
        .start()
        .await?;
    let client = Client::builder(profiles::stripe())
        .plain_http(true)
        .build()?;
    let shop = Shop {
        client,
        gateway: gateway.url(),
    };
    Ok((shop, gateway))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (shop, gateway) = shop(Faults::rate(0.2)).await?;
    let client = shop.client.clone();
    let address = "127.0.0.1:3000";
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| format!("can't listen on {address}: {error}"))?;
    println!("serving on http://{}; try", listener.local_addr()?);
    println!(
        "  curl -H 'content-type: application/json' http://127.0.0.1:3000/checkout \\\n    \
         -d '{{\"reference\": \"order-1\", \"amount\": 1250, \"currency\": \"EUR\"}}'"
    );
    axum::serve(listener, app(shop))
        .with_graceful_shutdown(async {
            // Where there is no signal to wait for, the server serves for ever.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
        .await?;
    // No inbound call is left; now the outbound connections.
    let cut_off = client.drain(Duration::from_secs(5)).await;
    println!("closed, {cut_off} calls cut off");
    gateway.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tollway_sim::Fault;
    use tower::ServiceExt;

    use tollway::core::Deadline;

    use super::*;

    fn order(reference: &str) -> Request<axum::body::Body> {
        let body = format!(r#"{{"reference":"{reference}","amount":1250,"currency":"EUR"}}"#);
        Request::post("/checkout")
            .header("content-type", "application/json")
            .body(body.into())
            .unwrap()
    }

    async fn text(response: Response) -> String {
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn an_order_is_paid_once_though_the_gateway_fails_and_the_button_is_pressed_twice() {
        let (shop, gateway) = shop(Faults::script([Some(Fault::ErrorAfter(500))]))
            .await
            .unwrap();
        let app = app(shop);
        for _ in 0..2 {
            let response = app.clone().oneshot(order("order-1")).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let said = text(response).await;
            assert_eq!(said, r#"{"reference":"order-1","outcome":"paid"}"#);
        }
        assert_eq!(gateway.ledger().times_applied("order-1"), 1);
    }

    #[tokio::test]
    async fn another_order_under_the_same_reference_is_refused() {
        let (shop, gateway) = shop(Faults::none()).await.unwrap();
        let app = app(shop);
        for (amount, status) in [
            ("1250", StatusCode::OK),
            ("9", StatusCode::PAYMENT_REQUIRED),
        ] {
            let body = format!(r#"{{"reference":"order-3","amount":{amount},"currency":"EUR"}}"#);
            let request = Request::post("/checkout").header("content-type", "application/json");
            let request = request.body(axum::body::Body::from(body)).unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status);
        }
        assert_eq!(gateway.ledger().times_applied("order-3"), 1);
    }

    #[tokio::test]
    async fn a_restarted_shop_doesn_t_say_that_a_paid_order_isn_t() {
        let hang = Fault::HangAfterEffect(Duration::from_secs(60));
        let (before, gateway) = shop(Faults::script([Some(hang)])).await.unwrap();
        let (mut after, _) = shop(Faults::none()).await.unwrap();
        after.gateway = gateway.url();
        let client = after.client.clone();
        let mut request = order("order-4");
        let soon = tokio::time::Instant::now() + Duration::from_secs(1);
        request.extensions_mut().insert(Deadline::at(soon));
        let response = app(before).oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        assert_eq!(gateway.ledger().times_applied("order-4"), 1);

        // It is about to close, and sends nothing.
        client.drain(Duration::ZERO).await;
        let response = app(after).oneshot(order("order-4")).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let said = text(response).await;
        assert!(!said.contains("not paid"), "{said}");
    }

    #[tokio::test]
    async fn the_inbound_deadline_ends_the_outgoing_call() {
        let hang = Fault::Hang(Duration::from_secs(60));
        let (shop, gateway) = shop(Faults::script([Some(hang)])).await.unwrap();
        let mut request = order("order-2");
        let soon = tokio::time::Instant::now() + Duration::from_millis(200);
        request.extensions_mut().insert(Deadline::at(soon));
        let response = app(shop).oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        assert_eq!(gateway.ledger().times_applied("order-2"), 0);
    }
}
