"""Where the outside is: JetStream, Ray Serve, and the in-memory stand-ins for both."""
