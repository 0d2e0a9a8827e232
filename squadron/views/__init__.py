"""What passes on the bus and what replicas tell of themselves, as figures and pictures; no commands."""
