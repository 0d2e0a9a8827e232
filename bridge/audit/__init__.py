"""The audit trail: what is recorded of each message and action, how it is chained, anchored, read and verified.

The rules are here; what NATS has to do with it is in `bridge.jetstream` (`audit_streams`, `intake`).
"""
