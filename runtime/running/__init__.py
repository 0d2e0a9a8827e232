"""The side that runs: from a delivery over the handler to the stored outcome. Nothing here knows Ray or NATS."""
