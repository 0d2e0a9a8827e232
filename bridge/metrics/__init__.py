"""Metrics: replicas count, heartbeats carry it, the bridge adds it up and shows it. Neither NATS nor Ray."""
