"""Models and the agents that think with them. Nothing here pursues a goal over several rounds of topics."""
