"""Who serves what and who is alive, and how it is found. Only the bridge writes deployments."""
