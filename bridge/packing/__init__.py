"""How an agent class travels to its replicas: by name or by value. Neither Ray nor NATS."""
