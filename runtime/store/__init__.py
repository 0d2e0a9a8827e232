"""What is kept beside the messages: claims and dead letters; and sealed payloads. Written against the ports, never against a server."""
