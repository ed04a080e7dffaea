//! A tower layer that keeps a client inside its provider's rate limits, exactly.
