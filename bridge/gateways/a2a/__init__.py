"""A2A 1.0: each agent with a card, its topics as skills, its tasks as tasks. Only this room imports `a2a`."""
