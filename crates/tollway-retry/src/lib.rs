//! A tower layer that retries an HTTP call only where that cannot charge twice.
