"""The web console: one page on which an environment is watched and steered. It needs NATS only."""
