//! Five payment gateways, simulated with their rate limits, idempotency and faults.
