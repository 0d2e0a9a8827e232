"""What the bridge does, on ports alone: deployments, mailboxes, presence. Neither Ray nor NATS."""
