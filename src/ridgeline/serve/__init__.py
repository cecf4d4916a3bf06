"""The HTTP server: bytes into frozen Requests, TokenEvents into bytes. Knows nothing of the scheduler's inside."""
