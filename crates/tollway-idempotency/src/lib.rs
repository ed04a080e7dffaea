//! A tower layer that gives each HTTP call one idempotency key for all its attempts.
