"""The only folder that speaks NATS."""
