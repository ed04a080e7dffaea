//! A keep-alive connection pool for HTTP/1.1 and HTTP/2 as a tower service.
