//! Independent tower layers for calling a rate-limited HTTP API, composed into one client.
