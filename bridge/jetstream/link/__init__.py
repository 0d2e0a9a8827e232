"""The connection to NATS, and the embedded server. Nothing here knows a stream."""
