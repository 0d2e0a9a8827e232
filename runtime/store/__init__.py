"""What is kept beside the messages: claims and dead letters. Written against the ports, never against a server."""
