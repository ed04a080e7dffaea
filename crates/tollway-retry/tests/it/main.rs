//! What the layer does, over a scripted service in virtual time, and over real
//! sockets where connections count.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cancel;
mod early_answer;
mod hedge;
mod retry;
mod sockets;
mod storm;
mod support;
mod telemetry;
