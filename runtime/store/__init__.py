"""What is kept beside messages: claims, dead letters, sealed payloads. Written against the ports, not a server."""
