"""What people write: agents, models, the supervisor and the crew. Never NATS, never Ray."""
